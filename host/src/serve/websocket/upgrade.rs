//! How an HTTP request becomes a WebSocket (RFC 6455, section 4), or what else it is answered. No socket
//! here, and nothing of a request is kept but its header, which is bounded.

use std::fmt::Write;

use httparse::{EMPTY_HEADER, Header, Request, Status};
use tungstenite::handshake::derive_accept_key;

use crate::limits::process::{UPGRADE_BYTES, UPGRADE_HEADERS};

/// Which requests a door takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The path that is asked for.
    pub path: String,
    /// The origins of pages whose scripts may connect, as browsers write them (`https://example.org`); `*`
    /// is any. Without, those of the same host.
    pub origins: Vec<String>,
}

/// A request that is being received.
#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    received: Vec<u8>,
}

/// What to do with a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The rest of it has not come.
    Wait,
    /// Send this; what follows is WebSocket, of which this has come already.
    Accept { response: Vec<u8>, early: Vec<u8> },
    /// Send [`Refusal::response`], and close.
    Refuse(Refusal),
}

/// Why there is no WebSocket. The `Display` text is what the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this is no HTTP request")]
    NoHttp,
    #[error("this is TLS, and the port is for ws://")]
    Tls,
    #[error("the request's header is longer than {UPGRADE_BYTES} bytes")]
    TooLong,
    #[error("the request has more than {UPGRADE_HEADERS} header lines")]
    TooMany,
    #[error("the request has no `Host`, or several")]
    Host,
    #[error("the request has several `Origin`s")]
    Origins,
    #[error("the request has no valid `Sec-WebSocket-Key`")]
    Key,
    #[error("a WebSocket begins with GET")]
    Method,
    #[error("there is nothing at this path")]
    Path,
    #[error("scripts of this `Origin` may not connect")]
    Origin,
    #[error("this is a WebSocket server: connect with ws:// or wss://")]
    NoUpgrade,
    #[error("this server speaks version 13 of WebSocket")]
    Version,
    #[error("error: too many connections")]
    Full,
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Refusal::Origin => "403 Forbidden",
            Refusal::Path => "404 Not Found",
            Refusal::Method => "405 Method Not Allowed",
            Refusal::NoUpgrade | Refusal::Version => "426 Upgrade Required",
            Refusal::TooLong | Refusal::TooMany => "431 Request Header Fields Too Large",
            Refusal::Full => "503 Service Unavailable",
            Refusal::NoHttp | Refusal::Tls | Refusal::Host | Refusal::Origins | Refusal::Key => {
                "400 Bad Request"
            }
        }
    }

    /// What the client gets: a text for people.
    pub(crate) fn response(self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {}\r\nConnection: close", self.status());
        head.push_str(match self {
            Refusal::Method => "\r\nAllow: GET",
            // `Connection` has to name it.
            Refusal::NoUpgrade | Refusal::Version => {
                ", Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
            }
            _ => "",
        });
        let body = format!("{self}\n");
        let length = body.len();
        let _ = write!(
            head,
            "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        head.into_bytes()
    }
}

impl Upgrade {
    /// Takes what has come of the request.
    pub(crate) fn receive(&mut self, bytes: &[u8], rules: &Rules) -> Verdict {
        let before = self.received.len();
        self.received.extend_from_slice(bytes);
        match self.received.first() {
            Some(22) => return Verdict::Refuse(Refusal::Tls),
            Some(b'A'..=b'Z') | None => {}
            Some(_) => return Verdict::Refuse(Refusal::NoHttp),
        }
        let is_long = self.received.len() >= UPGRADE_BYTES;
        // Only the end of a line can end a header, or be wrong where there was no error before.
        if memchr::memchr(b'\n', &self.received[before..]).is_none() && !is_long {
            return Verdict::Wait;
        }
        let mut headers = [EMPTY_HEADER; UPGRADE_HEADERS];
        let mut request = Request::new(&mut headers);
        match request.parse(&self.received) {
            Ok(Status::Complete(header_bytes)) if header_bytes <= UPGRADE_BYTES => {
                match accept_key(&request, rules) {
                    Ok(key) => Verdict::Accept {
                        response: switching(&key),
                        early: self.received[header_bytes..].to_vec(),
                    },
                    Err(refusal) => Verdict::Refuse(refusal),
                }
            }
            Ok(Status::Partial) if !is_long => Verdict::Wait,
            Ok(_) => Verdict::Refuse(Refusal::TooLong),
            Err(httparse::Error::TooManyHeaders) => Verdict::Refuse(Refusal::TooMany),
            Err(_) => Verdict::Refuse(Refusal::NoHttp),
        }
    }
}

fn switching(key: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
    )
    .into_bytes()
}

/// What proves to the client that this server speaks WebSocket.
fn accept_key(request: &Request<'_, '_>, rules: &Rules) -> Result<String, Refusal> {
    let values = |name: &'static str| {
        let headers = request.headers.iter();
        let named = headers.filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header: &Header<'_>| header.value.trim_ascii())
    };
    let only = |name, otherwise: Refusal| {
        let mut values = values(name);
        match (values.next(), values.next()) {
            (Some(_), Some(_)) => Err(otherwise),
            (value, _) => Ok(value),
        }
    };
    // Whether a list that may stand in several lines has this word.
    let has = |name, word: &str| {
        let words = values(name).flat_map(|value| value.split(|&byte| byte == b','));
        words
            .map(<[u8]>::trim_ascii)
            .any(|one| one.eq_ignore_ascii_case(word.as_bytes()))
    };
    let target = request.path.unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    if path != rules.path {
        return Err(Refusal::Path);
    }
    match request.method {
        Some("GET") => {}
        Some("HEAD") => return Err(Refusal::NoUpgrade),
        _ => return Err(Refusal::Method),
    }
    if request.version != Some(1) || !has("Upgrade", "websocket") || !has("Connection", "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if only("Sec-WebSocket-Version", Refusal::Version)? != Some(b"13") {
        return Err(Refusal::Version);
    }
    let host = only("Host", Refusal::Host)?.ok_or(Refusal::Host)?;
    // Who sends none is no browser, which could be made to connect by any page that it shows.
    if let Some(origin) = only("Origin", Refusal::Origins)?
        && !is_allowed(origin, host, rules)
    {
        return Err(Refusal::Origin);
    }
    match only("Sec-WebSocket-Key", Refusal::Key)? {
        // 16 bytes in Base64.
        Some(key) if key.len() == 24 && key.ends_with(b"==") => Ok(derive_accept_key(key)),
        _ => Err(Refusal::Key),
    }
}

fn is_allowed(origin: &[u8], host: &[u8], rules: &Rules) -> bool {
    if rules.origins.is_empty() {
        let place = memchr::memmem::find(origin, b"://").map(|place| place + 3);
        return place.is_some_and(|place| origin[place..].eq_ignore_ascii_case(host));
    }
    let mut allowed = rules.origins.iter();
    allowed.any(|allowed| allowed == "*" || origin.eq_ignore_ascii_case(allowed.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &str = "Host: a.example:80\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn rules(origins: &[&str]) -> Rules {
        Rules {
            path: "/chat".to_owned(),
            origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
        }
    }

    /// What a request gets that comes byte by byte.
    fn verdict(request: &str, rules: &Rules) -> Result<Vec<u8>, Refusal> {
        let mut upgrade = Upgrade::default();
        for byte in request.bytes() {
            match upgrade.receive(&[byte], rules) {
                Verdict::Wait => {}
                Verdict::Accept { response, .. } => return Ok(response),
                Verdict::Refuse(refusal) => return Err(refusal),
            }
        }
        panic!("waits after {request}");
    }

    fn with(change: impl Fn(String) -> String) -> Result<Vec<u8>, Refusal> {
        let request = format!("GET /chat?a=b HTTP/1.1\r\n{HEADERS}\r\n");
        verdict(&change(request), &rules(&[]))
    }

    #[test]
    fn a_request_for_a_websocket_is_accepted_with_its_key() {
        let response = with(|request| request).map(String::from_utf8);
        let response = response.expect("a response").expect("a text");
        assert!(response.starts_with("HTTP/1.1 101 "));
        // That of RFC 6455.
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    }

    #[test]
    fn what_follows_a_request_is_kept() {
        let request = format!("GET /chat HTTP/1.1\r\n{HEADERS}\r\nmore");
        let mut upgrade = Upgrade::default();
        let verdict = upgrade.receive(request.as_bytes(), &rules(&[]));
        assert!(matches!(verdict, Verdict::Accept { early, .. } if early == b"more"));
    }

    #[test]
    fn whatever_else_comes_is_refused_with_its_reason() {
        for (from, to, refusal) in [
            ("GET", "POST", Refusal::Method),
            ("GET", "HEAD", Refusal::NoUpgrade),
            ("/chat", "/", Refusal::Path),
            ("/chat", "/chatter", Refusal::Path),
            ("HTTP/1.1", "HTTP/1.0", Refusal::NoUpgrade),
            ("HTTP/1.1", "HTTP/5", Refusal::NoHttp),
            ("WebSocket\r", "h2c\r", Refusal::NoUpgrade),
            (", Upgrade", "", Refusal::NoUpgrade),
            (": 13", ": 8", Refusal::Version),
            ("Host", "Post", Refusal::Host),
            ("\r\nHost", "\r\nHost: b\r\nHost", Refusal::Host),
            (
                "\r\nHost",
                "\r\nOrigin: a\r\nOrigin: b\r\nHost",
                Refusal::Origins,
            ),
            ("==", "", Refusal::Key),
            ("Sec-WebSocket-Key", "Key", Refusal::Key),
            ("GET", "Ada\n", Refusal::NoHttp),
            ("GET", "get", Refusal::NoHttp),
            ("GET", "\u{16}\u{3}\u{1}", Refusal::Tls),
        ] {
            let result = with(|request| request.replacen(from, to, 1));
            assert_eq!(result, Err(refusal), "{from:?} {to:?}");
        }
        let many = "A: b\r\n".repeat(UPGRADE_HEADERS);
        let result = with(|request| request.replacen("Host", &format!("{many}Host"), 1));
        assert_eq!(result, Err(Refusal::TooMany));
        for long in ["A".repeat(UPGRADE_BYTES), "A: b\r\n".repeat(UPGRADE_BYTES)] {
            let result = with(|request| request.replacen("Host", &format!("X: {long}\r\nHost"), 1));
            assert!(matches!(result, Err(Refusal::TooLong | Refusal::TooMany)));
        }
    }

    #[test]
    fn scripts_of_the_same_host_or_of_those_that_are_named_may_connect() {
        let named = ["https://b.example", "http://localhost:8080"];
        for (origin, origins, is_let_in) in [
            ("http://a.example:80", &[][..], true),
            ("https://A.example:80", &[], true),
            ("http://a.example", &[], false),
            ("http://b.example:80", &[], false),
            ("null", &[], false),
            ("a.example:80", &[], false),
            ("https://b.example", &named, true),
            ("http://localhost:8080", &named, true),
            ("http://a.example:80", &named, false),
            ("http://b.example", &named, false),
            ("https://b.example.org", &named, false),
            ("null", &["*"], true),
        ] {
            let request = format!("GET /chat HTTP/1.1\r\nOrigin: {origin}\r\n{HEADERS}\r\n");
            let result = verdict(&request, &rules(origins));
            assert_eq!(result.is_ok(), is_let_in, "{origin} {origins:?}");
        }
    }

    #[test]
    fn whoever_is_no_websocket_client_reads_why_and_how() {
        let response = String::from_utf8(Refusal::NoUpgrade.response()).expect("a text");
        assert_eq!(
            response,
            "HTTP/1.1 426 Upgrade Required\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 61\r\n\r\nthis is a WebSocket server: connect with ws:// or wss://\n"
                .replace(
                    "61",
                    &"this is a WebSocket server: connect with ws:// or wss://\n"
                        .len()
                        .to_string()
                )
        );
    }
}

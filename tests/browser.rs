//! A real browser at a door for WebSocket: Debian's Chromium, with a page that this test serves.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use percent_encoding::percent_decode_str;
use tempfile::TempDir;

use crate::authority::Authority;
use crate::support::{PATIENCE, Server, installed};

/// Talks with the server that its address names, and tells whoever served it what was heard.
const PAGE: &str = r#"<!doctype html>
<script>
const heard = [], lines = ["Michael", "x".repeat(65536), "exit"];
const socket = new WebSocket(location.search.slice(1));
socket.onmessage = (event) => {
    heard.push(event.data.length > 100 ? event.data.length : event.data);
    socket.send(lines.shift());
};
socket.onclose = (event) => {
    heard.push(event.code, event.wasClean);
    fetch("/heard?" + encodeURIComponent(heard.join("\n")));
};
</script>
"#;

const GREETED: &str = "Welcome!\nHello, Michael!\n65544\n1000\ntrue";
/// What a page is told of a connection that it may not make.
const DENIED: &str = "1006\nfalse";

/// Serves a page, and has browsers show it.
pub(crate) struct Host {
    address: SocketAddr,
    heard: Receiver<String>,
}

impl Host {
    pub(crate) fn start(page: &str) -> Host {
        let page = page.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, heard) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (tell, page) = (tell.clone(), page.clone());
                // A browser opens connections that it may need, too.
                thread::spawn(move || answer(stream.unwrap(), &page, &tell));
            }
        });
        Host { address, heard }
    }

    /// As browsers name it.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a browser hears whose page talks with this server.
    fn browse(&self, url: &str) -> String {
        let page = format!("{}/page?{url}", self.origin());
        let _browser = Browser::show(&page);
        self.heard.recv_timeout(PATIENCE).unwrap()
    }
}

/// Answers one request. Whatever else is asked for (`/favicon.ico`) is nothing.
fn answer(mut stream: TcpStream, page: &str, tell: &Sender<String>) -> Option<()> {
    let mut request = String::new();
    BufReader::new(&stream).read_line(&mut request).ok()?;
    let target = request.split(' ').nth(1)?;
    if let Some(text) = target.strip_prefix("/heard?") {
        tell.send(percent_decode_str(text).decode_utf8().ok()?.into_owned())
            .ok()?;
    }
    let (status, body) = match target.starts_with("/page?") {
        true => ("200 OK", page),
        false => ("404 Not Found", ""),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .ok()
}

/// It ends with this.
pub(crate) struct Browser {
    child: Child,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn show(page: &str) -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            // Nothing but what the page does.
            .args(["--no-first-run", "--disable-background-networking"])
            .args([
                "--disable-component-update",
                "--disable-sync",
                "--disable-quic",
            ])
            // Who has issued a certificate is said nowhere but in a user's own store.
            .arg("--ignore-certificate-errors")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(page)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Browser {
            child,
            _profile: profile,
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_browser_is_greeted_answered_and_let_go() {
    if !installed("chromium") {
        return;
    }
    let host = Host::start(PAGE);
    let door = format!("127.0.0.1:0/chat?origins={}", host.origin());
    let server = Server::start(&[&format!("--listen=ws://{door}")]);
    let url = format!("ws://{}/chat", server.tcp());
    assert_eq!(host.browse(&url), GREETED);
    server.logged(&["closed", "the guest closed", "lines=3"]);

    let authority = Authority::new("Test CA");
    let listen = authority
        .issue("server", &["localhost"])
        .listen("")
        .replace("tls://127.0.0.1:0?", &format!("wss://{door}&"));
    let server = Server::start(&[&listen]);
    let url = format!("wss://localhost:{}/chat", server.tcp().port());
    assert_eq!(host.browse(&url), GREETED);
    server.logged(&["closed", "the guest closed", "lines=3"]);
}

#[test]
fn a_page_of_another_host_is_not_let_in_by_a_browser() {
    if !installed("chromium") {
        return;
    }
    let host = Host::start(PAGE);
    let server = Server::start(&["--listen=ws://127.0.0.1:0/chat"]);
    let url = format!("ws://{}/chat", server.tcp());
    assert_eq!(host.browse(&url), DENIED);
    server.logged(&["a WebSocket handshake failed", "Origin"]);
}

//! Doors for WebSocket: real clients, the rules of the protocol, and whoever does not keep them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tungstenite::client::IntoClientRequest;
use tungstenite::http::StatusCode;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};
use tungstenite::{Error, Message, WebSocket};

use crate::authority::Authority;
use crate::support::{CLIENT, Server, installed, run};
use crate::tls_client::connect;

const LISTEN: &str = "--listen=ws://127.0.0.1:0/chat";

/// A server at a door for WebSocket.
fn started(options: &[&str]) -> Server {
    Server::start(&[&[LISTEN], options].concat())
}

/// A client that sends exactly what it is told.
struct Client(WebSocket<TcpStream>);

impl Client {
    fn connect(server: &Server) -> Client {
        Client::request(server, &[]).unwrap()
    }

    /// Connects with these headers too.
    fn request(server: &Server, headers: &[(&'static str, &str)]) -> Result<Client, StatusCode> {
        let address = server.tcp();
        let mut request = format!("ws://{address}/chat")
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match tungstenite::client(request, connect(address)) {
            Ok((client, _)) => Ok(Client(client)),
            Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => {
                Err(response.status())
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn greeted(server: &Server) -> Client {
        let mut client = Client::connect(server);
        assert_eq!(client.hear(), "Welcome!");
        client
    }

    fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    fn send_frame(&mut self, opcode: OpCode, is_final: bool, content: &[u8]) {
        self.try_send_frame(opcode, is_final, content).unwrap();
    }

    fn try_send_frame(
        &mut self,
        opcode: OpCode,
        is_final: bool,
        content: &[u8],
    ) -> Result<(), Error> {
        self.0
            .send(Message::Frame(frame(opcode, is_final, content)))
    }

    /// Bytes of frames, as they are.
    fn send_raw(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The next text.
    fn hear(&mut self) -> String {
        loop {
            match self.0.read().unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.hear()
    }

    /// All texts until the server's close frame, and its code.
    fn rest(&mut self) -> (Vec<String>, u16) {
        let mut texts = Vec::new();
        let code = loop {
            match self.0.read().unwrap() {
                Message::Text(text) => texts.push(text.to_string()),
                Message::Close(close) => break close.map_or(0, |close| close.code.into()),
                _ => {}
            }
        };
        // The server closes then, as the rules have it.
        while self.0.read().is_ok() {}
        (texts, code)
    }
}

fn frame(opcode: OpCode, is_final: bool, content: &[u8]) -> Frame {
    let header = FrameHeader {
        opcode,
        is_final,
        ..FrameHeader::default()
    };
    Frame::from_payload(header, content.to_vec().into())
}

const TEXT: OpCode = OpCode::Data(Data::Text);
const MORE: OpCode = OpCode::Data(Data::Continue);
const PING: OpCode = OpCode::Control(Control::Ping);

/// Talks with a server through Python's `websockets`.
const PYTHON: &str = r#"
import asyncio, ssl, sys, websockets

async def talk(url, ca):
    context = ssl.create_default_context(cafile=ca) if ca else None
    async with websockets.connect(url, ssl=context) as socket:
        print(await socket.recv())
        await socket.send("Michael")
        print(await socket.recv())
        await socket.send(["Tr", "", "acy"])
        print(await socket.recv())
        await (await socket.ping())
        for number in range(1000):
            await socket.send(str(number))
        for number in range(1000):
            assert await socket.recv() == f"Hello, {number}!"
        await socket.send("exit")
        try:
            print(await socket.recv())
        except websockets.ConnectionClosed as closed:
            print(closed.rcvd.code, closed.rcvd_then_sent)

asyncio.run(talk(sys.argv[1], sys.argv[2] if sys.argv[2:] else None))
"#;

/// The same through the WebSocket of Node, which is that of browsers.
const NODE: &str = r#"
const socket = new WebSocket(process.argv[1]);
const lines = ["Michael", "Tracy", "exit"];
socket.onmessage = (event) => { console.log(event.data); socket.send(lines.shift()); };
socket.onclose = (event) => console.log(event.code, event.wasClean);
socket.onerror = (event) => console.log(event.message);
"#;

/// A Python that has the library, of those that may be there: CI installs it for Debian's.
fn python() -> Option<&'static str> {
    let has_it = |python: &&str| {
        let mut command = Command::new(python);
        let import = command.args(["-c", "import websockets"]);
        import.output().is_ok_and(|output| output.status.success())
    };
    let python = ["python3", "/usr/bin/python3"].into_iter().find(has_it);
    assert!(
        python.is_some() || std::env::var_os("CI").is_none(),
        "CI has to install Python's `websockets`"
    );
    python
}

/// A server with TLS, and whoever issued its certificate.
fn encrypted(options: &[&str]) -> (Server, Authority) {
    let authority = Authority::new("Test CA");
    let pair = authority.issue("server", &["localhost"]);
    let listen = pair
        .listen("")
        .replace("tls://127.0.0.1:0", "wss://127.0.0.1:0/chat");
    let server = Server::start(&[&[&*listen], options].concat());
    (server, authority)
}

fn shown(output: &std::process::Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    out.into_owned() + &error
}

#[test]
fn python_is_greeted_answered_and_let_go() {
    let Some(program) = python() else {
        return;
    };
    const WANTED: &str = "Welcome!\nHello, Michael!\nHello, Tracy!\n1000 True\n";
    let server = started(&[]);
    let url = format!("ws://{}/chat", server.tcp());
    let output = run(Command::new(program).args(["-c", PYTHON, &url]), b"");
    assert_eq!(shown(&output), WANTED);
    let (server, authority) = encrypted(&[]);
    let url = format!("wss://localhost:{}/chat", server.tcp().port());
    let mut python = Command::new(program);
    python
        .args(["-c", PYTHON, &url])
        .arg(authority.certificate());
    assert_eq!(shown(&run(&mut python, b"")), WANTED);
    server.logged(&["closed", "the guest closed", "lines=1003"]);
}

#[test]
fn node_is_greeted_answered_and_let_go() {
    if !installed("node") {
        return;
    }
    let mut node = Command::new("node");
    let node = run(
        node.args(["--experimental-websocket", "-e", "WebSocket"]),
        b"",
    );
    if !node.status.success() {
        eprintln!("skipped: this Node is older than its WebSocket");
        return;
    }
    const WANTED: &str = "Welcome!\nHello, Michael!\nHello, Tracy!\n1000 true\n";
    let node = |url: &str, ca: Option<&Path>| {
        let mut node = Command::new("node");
        node.args(["--no-warnings", "--experimental-websocket", "-e", NODE, url]);
        if let Some(ca) = ca {
            node.env("NODE_EXTRA_CA_CERTS", ca);
        }
        shown(&run(&mut node, b""))
    };
    let server = started(&[]);
    let url = format!("ws://{}/chat", server.tcp());
    assert_eq!(node(&url, None), WANTED);
    let (server, authority) = encrypted(&[]);
    let url = format!("wss://localhost:{}/chat", server.tcp().port());
    assert_eq!(node(&url, Some(&authority.certificate())), WANTED);
}

#[test]
fn the_client_binary_prints_every_reply() {
    let server = started(&["--max-line=8"]);
    let url = format!("ws://{}/chat", server.tcp());
    let client = |options: &[&str]| {
        let output = run(Command::new(CLIENT).arg("--connect").args(options), b"");
        (shown(&output), output.status.code())
    };
    let wanted = "Welcome!\nHello, Michael!\nHello, Tracy!\n".to_owned();
    assert_eq!(client(&[&url, "Michael", "Tracy"]), (wanted, Some(0)));
    let wanted = "Welcome!\nerror: line is longer than 8 bytes\nclient: `Maximiliane` was not \
        answered: the server refused: line is longer than 8 bytes\n";
    assert_eq!(client(&[&url, "Maximiliane"]), (wanted.to_owned(), Some(1)));
    let (text, status) = client(&[&format!("ws://{}", server.tcp()), "Ada"]);
    assert_eq!(status, Some(1));
    assert!(text.starts_with("client: no WebSocket: "), "{text}");
    assert!(text.contains("404"), "{text}");
}

#[test]
fn curl_reads_what_there_is_instead_of_a_page() {
    if !installed("curl") {
        return;
    }
    let server = started(&[]);
    let (encrypted, authority) = encrypted(&[]);
    let ca = authority.certificate();
    for (url, ca) in [
        (format!("http://{}", server.tcp()), None),
        (
            format!("https://localhost:{}", encrypted.tcp().port()),
            Some(&ca),
        ),
    ] {
        let curl = |options: &[&str], path| {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--include"]).args(options);
            if let Some(ca) = ca {
                curl.arg("--cacert").arg(ca);
            }
            let output = run(curl.arg(format!("{url}{path}")), b"");
            assert!(output.status.success(), "{output:?}");
            shown(&output)
        };
        let text = curl(&[], "/chat");
        for part in [
            "HTTP/1.1 426 Upgrade Required\r\n",
            "\r\nUpgrade: websocket\r\n",
            "\r\nSec-WebSocket-Version: 13\r\n",
            "\r\n\r\nthis is a WebSocket server",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(curl(&["--head"], "/chat").starts_with("HTTP/1.1 426 "));
        assert!(curl(&[], "/").starts_with("HTTP/1.1 404 "));
        assert!(curl(&["--data", "a=b"], "/chat").starts_with("HTTP/1.1 405 "));
    }
    server.logged(&[
        "a WebSocket handshake failed",
        "there is nothing at this path",
    ]);
}

#[test]
fn what_is_no_http_is_told_so_and_is_one_line_in_the_log() {
    let server = started(&[]);
    let mut plain = connect(server.tcp());
    plain.write_all(b"Ada\n").unwrap();
    let mut text = String::new();
    plain.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
    server.logged(&["a WebSocket handshake failed", "this is no HTTP request"]);
    let mut tls = connect(server.tcp());
    tls.write_all(&[22, 3, 1, 2, 0]).unwrap();
    server.logged(&["a WebSocket handshake failed", "this is TLS"]);
    drop(connect(server.tcp()));
    server.logged(&["a WebSocket handshake failed", "in the middle of it"]);
    // None of them was given a guest.
    assert!(!server.log().iter().any(|line| line.contains("accepted")));
}

#[test]
fn a_text_message_is_a_line_and_a_reply_is_a_text_message() {
    let server = started(&[]);
    let mut client = Client::greeted(&server);
    for (text, reply) in [
        ("Ada", "Hello, Ada!"),
        ("", "Hello, !"),
        // An ending of a line is none of the text, and what is not at the end is no ending.
        ("Ada\n", "Hello, Ada!"),
        ("Ada\r\n", "Hello, Ada!"),
        ("A\nb", "Hello, A\nb!"),
        ("🦀\u{0}", "Hello, 🦀\u{0}!"),
    ] {
        assert_eq!(client.ask(text), reply);
    }
    let long = "x".repeat(65_536);
    assert_eq!(client.ask(&long), format!("Hello, {long}!"));
    let (_, code) = {
        client.send("exit");
        client.rest()
    };
    assert_eq!(code, 1000);
    server.logged(&["closed", "the guest closed", "lines=8"]);
}

#[test]
fn messages_are_the_same_however_they_are_cut() {
    let server = started(&[]);
    let mut client = Client::greeted(&server);
    let mut bytes = Vec::new();
    for (opcode, is_final, content) in [
        (TEXT, false, "A"),
        (PING, true, "?"),
        (MORE, false, ""),
        (MORE, true, "da"),
        (TEXT, true, "Eve"),
    ] {
        let mut frame = frame(opcode, is_final, content.as_bytes());
        frame.header_mut().mask = Some([7, 6, 5, 4]);
        let mut formatted = Vec::new();
        frame.format(&mut formatted).unwrap();
        bytes.extend(formatted);
    }
    for byte in &bytes {
        client.send_raw(&[*byte]);
    }
    assert_eq!(client.hear(), "Hello, Ada!");
    assert_eq!(client.hear(), "Hello, Eve!");
    client.send_raw(&bytes.repeat(1000));
    for _ in 0..1000 {
        assert_eq!(client.hear(), "Hello, Ada!");
        assert_eq!(client.hear(), "Hello, Eve!");
    }
}

#[test]
fn a_message_over_the_limit_is_refused_and_the_next_one_served() {
    let server = started(&["--max-line=8"]);
    let mut client = Client::greeted(&server);
    for count in [9, 11, 100_000] {
        assert_eq!(
            client.ask(&"x".repeat(count)),
            "error: line is longer than 8 bytes"
        );
        assert_eq!(client.ask("12345678\r\n"), "Hello, 12345678!");
    }
    // In as many fragments as one likes.
    client.send_frame(TEXT, false, b"12345678");
    for _ in 0..10_000 {
        client.send_frame(MORE, false, b"9");
    }
    client.send_frame(MORE, true, b"");
    assert_eq!(client.hear(), "error: line is longer than 8 bytes");
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
}

/// A frame as a client sends it, with its first byte as it is given.
fn bytes_of(first: u8, content: &[u8]) -> Vec<u8> {
    const MASKED: u8 = 0x80;
    let mut bytes = vec![first];
    match u8::try_from(content.len()) {
        Ok(length @ ..126) => bytes.push(MASKED | length),
        _ => {
            bytes.push(MASKED | 126);
            bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        }
    }
    // A mask that changes nothing.
    bytes.extend([0; 4]);
    bytes.extend(content);
    bytes
}

/// With the first byte's bit for the last of a message, or without.
const CLOSE: u8 = 0x88;
const FIRST_TEXT: u8 = 0x01;
const LAST_MORE: u8 = 0x80;

/// The rules that the cases of Autobahn's suite are about.
#[test]
fn what_breaks_the_rules_is_answered_with_its_code() {
    let long = [b'x'; 126];
    let begun = |next| [bytes_of(FIRST_TEXT, b"A"), next].concat();
    let mut cases = vec![
        (bytes_of(0x82, b"Ada"), 1003, "send text"),
        (bytes_of(0x02, b"Ada"), 1003, "send text"),
        (b"\x81\x03Ada".to_vec(), 1002, "without a mask"),
        (b"\x89\x00".to_vec(), 1002, "without a mask"),
        (bytes_of(LAST_MORE, b"Ada"), 1002, "of no message"),
        (bytes_of(0x00, b"Ada"), 1002, "of no message"),
        (begun(bytes_of(0x81, b"da")), 1002, "inside of another one"),
        (begun(bytes_of(0xc0, b"da")), 1002, "of an extension"),
        (bytes_of(CLOSE, b"\x03"), 1002, "a code that is none"),
        (bytes_of(CLOSE, b"\x03\xe8\xce"), 1007, "not UTF-8"),
    ];
    // Of text and of a ping.
    for first in [0xc1, 0xa1, 0x91, 0xf1, 0xc9] {
        cases.push((bytes_of(first, b"Ada"), 1002, "of an extension"));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        cases.push((bytes_of(0x80 | opcode, b""), 1002, "of no known kind"));
    }
    for control in [8, 9, 10] {
        let reason = "too long, or in fragments";
        cases.push((bytes_of(control, b""), 1002, reason));
        cases.push((bytes_of(0x80 | control, &long), 1002, reason));
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535_u16,
    ] {
        let close = bytes_of(CLOSE, &code.to_be_bytes());
        cases.push((close, 1002, "a code that is none"));
    }
    let server = started(&[]);
    for (bytes, code, reason) in cases {
        let mut client = Client::greeted(&server);
        // What came before is answered, and nothing that comes after.
        client.send("Ada");
        client.send_raw(&[bytes.clone(), bytes_of(0x81, b"Eve")].concat());
        let wanted = (vec!["Hello, Ada!".to_owned()], code);
        assert_eq!(client.rest(), wanted, "{bytes:x?}");
        server.logged(&["closed", "lines=1", reason]);
    }
}

#[test]
fn every_code_that_a_client_may_give_comes_back() {
    let server = started(&[]);
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999,
    ] {
        let mut client = Client::greeted(&server);
        client.send_raw(&bytes_of(
            CLOSE,
            &[&u16::to_be_bytes(code), &b"bye"[..]].concat(),
        ));
        assert_eq!(client.rest(), (vec![], code));
    }
    let mut client = Client::greeted(&server);
    client.send_raw(&bytes_of(CLOSE, b""));
    assert_eq!(client.rest(), (vec![], 0));
}

#[test]
fn text_is_utf_8_wherever_it_is_cut() {
    let server = started(&[]);
    // With the first and the last of each length, and all around what is none.
    for text in [
        "\u{80}\u{7ff}",
        "\u{800}\u{d7ff}",
        "\u{e000}\u{fffe}",
        "\u{10000}\u{10ffff}",
    ] {
        let mut client = Client::greeted(&server);
        for cut in 0..=text.len() {
            let (first, last) = text.as_bytes().split_at(cut);
            client.send_raw(&[bytes_of(FIRST_TEXT, first), bytes_of(LAST_MORE, last)].concat());
            assert_eq!(client.hear(), format!("Hello, {text}!"));
        }
    }
    for bytes in [
        // Not from its beginning, and without its end.
        &b"\x80"[..],
        b"\xce",
        b"\xf0\x9f\xa6",
        // Longer than it has to be.
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        // Half of a pair, and beyond the last.
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        // Nowhere in it: the last is how the shim ends a message inside.
        b"\xf8\x88\x80\x80\x80",
        b"\xfe",
        b"A\xffa",
    ] {
        for cut in 0..=bytes.len() {
            let (first, last) = bytes.split_at(cut);
            let mut client = Client::greeted(&server);
            client.send_raw(&[bytes_of(FIRST_TEXT, first), bytes_of(LAST_MORE, last)].concat());
            let word = "error: line is not valid UTF-8".to_owned();
            assert_eq!(client.rest(), (vec![word], 1007), "{bytes:x?} {cut}");
        }
    }
    server.logged(&["closed", "a message was not UTF-8"]);
}

#[test]
fn a_ping_comes_back_with_its_content_and_a_pong_that_nobody_asked_for_does_not() {
    let server = started(&[]);
    let mut client = Client::greeted(&server);
    for content in [&b""[..], b"\x00\xff\xfe", &[b'x'; 125]] {
        client.send_raw(&bytes_of(0x8a, content));
        client.send_raw(&bytes_of(0x89, content));
        assert_eq!(
            client.0.read().unwrap(),
            Message::Pong(content.to_vec().into())
        );
    }
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
}

#[test]
fn every_end_has_its_last_word_and_its_code() {
    let server = started(&["--idle-timeout=300ms"]);
    let timed_out = (vec!["error: timed out waiting for a line".to_owned()], 1008);
    assert_eq!(Client::greeted(&server).rest(), timed_out);
    // Pings say nothing.
    let mut client = Client::greeted(&server);
    let began = Instant::now();
    while client.try_send_frame(PING, true, b"?").is_ok() && client.0.can_read() {
        match client.0.read() {
            Ok(Message::Pong(_)) => {}
            Ok(Message::Text(text)) => {
                assert_eq!(text.as_str(), timed_out.0[0]);
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    // Nor do fragments without content.
    let server = started(&["--line-timeout=300ms"]);
    let mut client = Client::greeted(&server);
    client.send_frame(TEXT, false, b"A");
    while client.try_send_frame(MORE, false, b"").is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    server.logged(&["closed", "timed out"]);

    let mut server = started(&[]);
    let mut client = Client::greeted(&server);
    // One that has not finished its handshake holds nothing up.
    let half = connect(server.tcp());
    server.signal("TERM");
    let word = "error: server is shutting down".to_owned();
    assert_eq!(client.rest(), (vec![word], 1001));
    drop(client);
    assert!(server.ended().success());
    drop(half);

    let server = Server::with_guest("hostile", &[LISTEN]);
    let mut client = Client::connect(&server);
    assert_eq!(client.hear(), "ready");
    client.send("trap");
    let word = "error: the guest failed".to_owned();
    assert_eq!(client.rest(), (vec![word], 1011));
}

#[test]
fn a_client_that_closes_gets_its_replies_and_its_code() {
    let server = started(&[]);
    let mut client = Client::greeted(&server);
    client.send("Ada");
    client.send("Eve");
    let close = tungstenite::protocol::CloseFrame {
        code: CloseCode::Library(4321),
        reason: "bye".into(),
    };
    client.0.close(Some(close)).unwrap();
    let texts = ["Hello, Ada!", "Hello, Eve!"].map(str::to_owned);
    assert_eq!(client.rest(), (texts.to_vec(), 4321));
    server.logged(&["closed", "the client closed", "lines=2"]);
    // One that goes without a word, between two messages and inside of one.
    let mut client = Client::greeted(&server);
    assert_eq!(client.ask("Ada"), "Hello, Ada!");
    drop(client);
    server.logged(&["closed", "the client closed", "lines=1"]);
    let mut client = Client::greeted(&server);
    client.send_frame(TEXT, false, b"transfer 10");
    drop(client);
    server.logged(&["closed", "lines=0", "in the middle of a message"]);
}

#[test]
fn scripts_of_other_hosts_may_connect_only_if_they_are_named() {
    let connects = |server: &Server, origin: &str| {
        let client = Client::request(server, &[("Origin", origin)]);
        client.map(|mut client| assert_eq!(client.hear(), "Welcome!"))
    };
    let server = started(&[]);
    let own = format!("http://{}", server.tcp());
    assert_eq!(connects(&server, &own), Ok(()));
    let forbidden = Err(StatusCode::FORBIDDEN);
    assert_eq!(connects(&server, "https://a.example"), forbidden);
    server.logged(&["a WebSocket handshake failed", "Origin"]);
    let listen = format!("{LISTEN}?origins=https://a.example&origins=https://b.example");
    let server = Server::start(&[&listen]);
    for (origin, result) in [
        ("https://a.example", Ok(())),
        ("https://b.example", Ok(())),
        ("https://c.example", forbidden),
    ] {
        assert_eq!(connects(&server, origin), result, "{origin}");
    }
    assert_eq!(Client::greeted(&server).ask("Ada"), "Hello, Ada!");
}

#[test]
fn whoever_is_too_many_is_told_so_in_http() {
    let server = started(&["--max-connections=1"]);
    let client = Client::greeted(&server);
    let refused = Client::request(&server, &[]).err();
    assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
    drop(client);
}

#[test]
fn a_client_that_does_not_read_is_waited_for_and_hears_all() {
    let server = started(&[]);
    let mut client = Client::greeted(&server);
    let name = "x".repeat(999);
    let stream = client.0.get_mut();
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut frame = Frame::message(name.clone().into_bytes(), TEXT, true);
    frame.header_mut().mask = Some([0; 4]);
    let mut bytes = Vec::new();
    frame.format(&mut bytes).unwrap();
    let (mut sent, mut left) = (0, 0);
    let stalled = loop {
        left = if left == 0 { bytes.len() } else { left };
        match stream.write(&bytes[bytes.len() - left..]) {
            Ok(count) => {
                left -= count;
                sent += u32::from(left == 0);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(stalled.kind(), ErrorKind::WouldBlock);
    for number in 0..sent {
        assert!(
            client.hear() == format!("Hello, {name}!"),
            "{number} of {sent}"
        );
    }
}

/// Sends frames that say nothing, and knows that others are served meanwhile.
#[test]
fn a_million_small_frames_cost_their_sender_and_nobody_else() {
    let server = started(&[]);
    let mut flooding = Client::greeted(&server);
    let mut other = Client::greeted(&server);
    let mut ping = Frame::ping(Vec::new());
    ping.header_mut().mask = Some([0; 4]);
    let mut bytes = Vec::new();
    ping.format(&mut bytes).unwrap();
    let bytes = bytes.repeat(1000);
    // It reads no answer: those that find no room are not kept.
    for part in 0..1000 {
        flooding.send_raw(&bytes);
        if part % 100 == 0 {
            assert_eq!(other.ask("Ada"), "Hello, Ada!");
        }
    }
    assert_eq!(flooding.ask("Eve"), "Hello, Eve!");
}

/// A header without an end, and one that comes byte by byte.
#[test]
fn a_header_ends_soon_or_is_refused() {
    let server = started(&[]);
    for header in [
        "A: b\r\n".repeat(2000),
        format!("A: {}", "b".repeat(10_000)),
    ] {
        let mut client = connect(server.tcp());
        client.write_all(b"GET /chat HTTP/1.1\r\n").unwrap();
        let _ = client.write_all(header.as_bytes());
        let mut text = String::new();
        let _ = client.read_to_string(&mut text);
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    }
    let mut slow = connect(server.tcp());
    let request = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for byte in request.bytes() {
        slow.write_all(&[byte]).unwrap();
    }
    let mut room = [0; 12];
    slow.read_exact(&mut room).unwrap();
    assert_eq!(&room, b"HTTP/1.1 101");
}

#[test]
fn whoever_does_not_finish_a_handshake_is_let_go_in_time() {
    let server = started(&[]);
    let mut slow = connect(server.tcp());
    slow.write_all(b"GET /chat HTTP/1.1\r\n").unwrap();
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    server.logged(&["a WebSocket handshake failed", "it took longer than 10s"]);
}

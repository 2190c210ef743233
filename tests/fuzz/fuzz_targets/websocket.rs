//! The door for WebSocket: what a client may send of its request and of its frames. However that is cut,
//! the verdict and the messages are the same; they are those that Tungstenite reads; and what is sent back
//! is what a server may send.

#![no_main]

use std::io::{self, Cursor, Read, Write};

use airlock_fuzz::{limits, talk};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};
use websocket::frames::Frames;
use websocket::upgrade::{Rules, Upgrade, Verdict};

use talk::framing::MESSAGE_END;

#[path = "../../../host/src/serve/websocket"]
#[expect(dead_code, reason = "a connection uses more of it")]
mod websocket {
    pub(crate) mod frames;
    pub(crate) mod upgrade;
}

#[derive(Debug, Arbitrary)]
struct Script {
    request: Vec<Line>,
    any_origin: bool,
    input: Vec<Part>,
    /// The lengths of the pieces in which all of it comes, over and over.
    cuts: Vec<u8>,
}

/// Of a request.
#[derive(Debug, Arbitrary)]
enum Line {
    Known(u8),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Part {
    Frame {
        first: u8,
        mask: [u8; 4],
        content: Vec<u8>,
    },
    Text {
        is_final: bool,
        text: String,
    },
    Bytes(Vec<u8>),
}

/// What requests are made of: the first is a good one but for its end, which the second is.
const LINES: [&str; 12] = [
    "GET /chat?a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "\r\n",
    "GET /chat HTTP/1.1\r\n",
    "POST /chat HTTP/1.1\r\n",
    "Host: a\r\n",
    "Upgrade: websocket\r\n",
    "Connection: keep-alive, Upgrade\r\n",
    "Sec-WebSocket-Version: 13\r\n",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "Origin: http://a\r\n",
    "Origin: http://b\r\n",
    "A: b\r\n",
];

impl Line {
    fn bytes(&self) -> &[u8] {
        match self {
            Line::Known(number) => LINES[usize::from(*number) % LINES.len()].as_bytes(),
            Line::Bytes(bytes) => bytes,
        }
    }
}

impl Part {
    fn bytes(&self) -> Vec<u8> {
        let (first, mask, content) = match self {
            Part::Bytes(bytes) => return bytes.clone(),
            Part::Frame {
                first,
                mask,
                content,
            } => (*first, *mask, content.as_slice()),
            Part::Text { is_final, text } => {
                (1 | u8::from(*is_final) << 7, [0; 4], text.as_bytes())
            }
        };
        let header = FrameHeader {
            mask: Some(mask),
            ..FrameHeader::default()
        };
        let mut bytes = Vec::new();
        header
            .format(content.len() as u64, &mut bytes)
            .expect("a vector takes it");
        bytes[0] = first;
        bytes.extend(
            content
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        bytes
    }
}

/// These bytes in pieces of these lengths.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = cuts.iter().cycle();
    std::iter::from_fn(move || {
        let length = lengths
            .next()
            .map_or(bytes.len(), |&length| 1 + usize::from(length));
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The answer to a request and what follows it, or nothing if it was refused or is not whole.
fn accepted(bytes: &[u8], cuts: &[u8], rules: &Rules) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut upgrade = Upgrade::default();
    let mut pieces = pieces(bytes, cuts);
    while let Some(piece) = pieces.next() {
        match upgrade.receive(piece, rules) {
            Verdict::Wait => {}
            Verdict::Accept { response, early } => {
                let rest: Vec<_> = pieces.flatten().copied().collect();
                return Some((response, [early, rest].concat()));
            }
            Verdict::Refuse(refusal) => {
                assert!(refusal.response().starts_with(b"HTTP/1.1 4"));
                return None;
            }
        }
    }
    None
}

/// What comes of frames: the content of messages, and whether they have ended well.
fn decoded(bytes: &[u8], cuts: &[u8]) -> (Vec<u8>, String, bool) {
    let mut frames = Frames::default();
    let (mut content, mut sent) = (Vec::new(), Vec::new());
    for piece in pieces(bytes, cuts) {
        let mut room = [b"?", piece].concat();
        let count = frames.decode(&mut room);
        assert!(count <= room.len());
        content.extend_from_slice(&room[..count]);
        let mut takes = |bytes: &[u8]| sent.write(bytes);
        frames.answer_ping(&mut takes).expect("it takes all");
    }
    let mut takes = |bytes: &[u8]| sent.write(bytes);
    frames
        .send(b"a reply\xff", &mut takes)
        .expect("it takes all");
    frames
        .end(CloseCode::Normal, &mut takes)
        .expect("it takes all");
    assert_eq!(frames.sent_bytes(), sent.len() as u64);
    check_sent(&sent);
    (
        content,
        format!("{:?}", frames.input_end()),
        frames.is_cut(),
    )
}

/// Pongs, a reply and a close frame, which a client takes.
fn check_sent(sent: &[u8]) {
    let mut client = reading(sent, Role::Client);
    let mut replies = 0;
    loop {
        match client.read().expect("frames as a server sends them") {
            Message::Pong(_) => {}
            Message::Text(text) if text.as_str() == "a reply" => replies += 1,
            Message::Close(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(replies, 1);
}

/// What has been received, and what is written nowhere.
struct Received<'a>(Cursor<&'a [u8]>);

impl Read for Received<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.0.read(room)
    }
}

impl Write for Received<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn reading(bytes: &[u8], role: Role) -> WebSocket<Received<'_>> {
    let config = WebSocketConfig::default();
    WebSocket::from_raw_socket(Received(Cursor::new(bytes)), role, Some(config))
}

/// The texts that another implementation reads until something ends it.
fn expected(bytes: &[u8]) -> Vec<u8> {
    let mut server = reading(bytes, Role::Server);
    let mut content = Vec::new();
    loop {
        match server.read() {
            Ok(Message::Text(text)) => {
                content.extend_from_slice(text.as_bytes());
                content.push(MESSAGE_END);
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(_) | Err(_) => return content,
        }
    }
}

fuzz_target!(|script: Script| {
    let rules = Rules {
        path: "/chat".to_owned(),
        origins: script
            .any_origin
            .then(|| "*".to_owned())
            .into_iter()
            .collect(),
    };
    let request: Vec<_> = script
        .request
        .iter()
        .flat_map(|line| line.bytes())
        .copied()
        .collect();
    let input: Vec<_> = script.input.iter().flat_map(Part::bytes).collect();

    let both = [request, input.clone()].concat();
    assert_eq!(
        accepted(&both, &script.cuts, &rules),
        accepted(&both, &[], &rules)
    );

    let whole = decoded(&input, &[]);
    assert_eq!(decoded(&input, &script.cuts), whole);
    let expected = expected(&input);
    assert!(whole.0.starts_with(&expected), "{whole:?} {expected:?}");
});

//! The door for proxies: what a proxy may send before its client does. However that is cut, the header is
//! the same, and what follows it stays in the socket.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use airlock_fuzz::{limits, talk};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use proxy::{Header, NoHeader, Proxied};
use socket2::Socket;

#[path = "../../../host/src/serve/proxy.rs"]
mod proxy;

#[derive(Debug, Arbitrary)]
struct Script {
    parts: Vec<Part>,
    /// The length of the pieces in which all of it comes.
    piece_bytes: u8,
}

#[derive(Debug, Arbitrary)]
enum Part {
    Known(u8),
    /// The beginning of version 2, up to its length.
    Binary {
        version: u8,
        family: u8,
        length: u8,
    },
    Bytes(Vec<u8>),
}

/// What headers of version 1 are made of.
const WORDS: [&[u8]; 8] = [
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN ",
    b"203.0.113.7 192.0.2.1 ",
    b"2001:db8::7 ::ffff:1.2.3.4 ",
    b"50312 9999",
    b"\r\n",
];

impl Part {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Part::Known(number) => WORDS[usize::from(*number) % WORDS.len()].to_vec(),
            Part::Binary {
                version,
                family,
                length,
            } => [
                &b"\r\n\r\n\0\r\nQUIT\n"[..],
                &[*version, *family, 0, *length],
            ]
            .concat(),
            Part::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// What comes of the bytes, and what was not taken with the header.
type Outcome = (Result<Option<Option<Proxied>>, NoHeader>, Vec<u8>);

fn received(bytes: &[u8], piece_bytes: usize) -> Outcome {
    let (mut proxy, server) = UnixStream::pair().expect("two sockets");
    let socket = Socket::from(server);
    let mut header = Header::default();
    let mut result = Ok(None);
    let mut pieces = bytes.chunks(piece_bytes);
    while result == Ok(None)
        && let Some(piece) = pieces.next()
    {
        proxy.write_all(piece).expect("there is room for it");
        result = header.receive(&socket);
    }
    drop(proxy);
    let mut left = Vec::new();
    (&socket).read_to_end(&mut left).expect("what is left");
    left.extend(pieces.flatten());
    (result, left)
}

fuzz_target!(|script: Script| {
    let bytes: Vec<_> = script.parts.iter().flat_map(Part::bytes).collect();
    if bytes.is_empty() {
        return;
    }
    let (whole, left) = received(&bytes, bytes.len());
    let (cut, left_of_cut) = received(&bytes, 1 + usize::from(script.piece_bytes));
    match (whole, cut) {
        // Which reason it is may depend on how much of it has come.
        (Err(_), Err(_)) => {}
        (whole, cut) => {
            assert_eq!(whole, cut);
            assert_eq!(left, left_of_cut);
            assert!(bytes.ends_with(&left));
        }
    }
});

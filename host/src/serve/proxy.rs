//! The PROXY protocol: what a proxy says of a client before anything that client says.
//!
//! What has come is looked at before it is taken, so nothing that belongs to the conversation is ever
//! taken with the header: what follows stays in the kernel's buffer.

use std::io::{self, ErrorKind};

use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};
use rustix::net::{RecvFlags, recv};
use socket2::Socket;

use crate::limits::wire::PROXY_HEADER_BYTES;
use crate::talk::client::Endpoint;

/// How a header begins, in version 1 and 2.
const BEGINNINGS: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];

/// The longest header of version 1 there can be.
const V1_BYTES: usize = 107;

/// Of version 2: up to where its length stands.
const V2_HEAD_BYTES: usize = 16;

/// Both ends of a connection to a proxy, as that says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxied {
    pub(crate) peer: Endpoint,
    pub(crate) local: Endpoint,
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoHeader {
    #[error("what came first is no PROXY header")]
    Other,
    #[error("the PROXY header is longer than {PROXY_HEADER_BYTES} bytes")]
    TooLong,
    #[error("it ended before its PROXY header did")]
    Ended,
}

/// A whole header: of whom, if it says that; and how long it is.
type Parsed = (Option<Proxied>, usize);

/// A header that has not come whole.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// What has been taken of it.
    bytes: Vec<u8>,
}

impl Header {
    /// Takes what has come of it, and nothing else. Returns it when it is whole: whom the connection
    /// is of, or nobody, if it is the proxy's own or one that it does not know.
    pub(crate) fn receive(&mut self, socket: &Socket) -> Result<Option<Option<Proxied>>, NoHeader> {
        loop {
            let mut room = [0; PROXY_HEADER_BYTES];
            let room = &mut room[self.bytes.len()..];
            let looked = recv(socket, &mut *room, RecvFlags::PEEK | RecvFlags::DONTWAIT);
            let count = match looked.map_err(io::Error::from) {
                Ok((0, _)) => return Err(NoHeader::Ended),
                Ok((count, _)) => count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    ErrorKind::Interrupted => continue,
                    _ => return Err(NoHeader::Ended),
                },
            };
            let before = self.bytes.len();
            self.bytes.extend_from_slice(&room[..count]);
            let whole = parse(&self.bytes)?;
            let length = whole
                .as_ref()
                .map_or(self.bytes.len(), |(_, length)| *length);
            // It is there already.
            let taken = recv(socket, &mut room[..length - before], RecvFlags::DONTWAIT);
            if taken.is_err() {
                return Err(NoHeader::Ended);
            }
            if let Some((proxied, _)) = whole {
                return Ok(Some(proxied));
            }
        }
    }
}

/// The header that these bytes begin with, or nothing if it has not come whole.
fn parse(bytes: &[u8]) -> Result<Option<Parsed>, NoHeader> {
    let begins = |beginning: &&[u8]| {
        let length = beginning.len().min(bytes.len());
        bytes[..length] == beginning[..length]
    };
    if !BEGINNINGS.iter().any(begins) {
        return Err(NoHeader::Other);
    }
    // Only the addresses are of interest.
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    let is_v1 = bytes.first() == Some(&b'P');
    match ProxyHeader::parse(bytes, config) {
        Ok((_, length)) if is_v1 && length > V1_BYTES => Err(NoHeader::Other),
        Ok((header, length)) => {
            let proxied = header.proxied_address().map(ends);
            Ok(Some((proxied, length)))
        }
        Err(proxy_header::Error::BufferTooShort) => {
            match bytes.get(V2_HEAD_BYTES - 2..V2_HEAD_BYTES) {
                Some(&[high, low]) if !is_v1 && is_too_long(high, low) => Err(NoHeader::TooLong),
                _ => Ok(None),
            }
        }
        Err(_) => Err(NoHeader::Other),
    }
}

fn is_too_long(high: u8, low: u8) -> bool {
    let rest = usize::from(u16::from_be_bytes([high, low]));
    V2_HEAD_BYTES + rest > PROXY_HEADER_BYTES
}

fn ends(address: &ProxiedAddress) -> Proxied {
    Proxied {
        peer: address.source.into(),
        local: address.destination.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use proxy_header::Tlv;

    use super::*;

    fn proxied(peer: &str, local: &str) -> Option<Proxied> {
        let [peer, local] = [peer, local].map(|end| end.parse::<SocketAddr>().expect("an address"));
        Some(Proxied {
            peer: peer.into(),
            local: local.into(),
        })
    }

    fn v2(peer: &str, local: &str, tlv_bytes: usize) -> Vec<u8> {
        let [peer, local] = [peer, local].map(|end| end.parse().expect("an address"));
        let address = ProxiedAddress::stream(peer, local);
        let tlvs = (tlv_bytes > 0).then_some(Tlv::Noop(tlv_bytes));
        let mut bytes = Vec::new();
        let header = ProxyHeader::with_tlvs(Some(address), tlvs);
        header.encode_v2(&mut bytes).expect("a header");
        bytes
    }

    #[test]
    fn whole_headers_are_taken_for_what_they_say_and_no_further() {
        let four = ("203.0.113.7:50312", "192.0.2.1:9999");
        let six = ("[2001:db8::7]:50312", "[2001:db8::1]:9999");
        let text = |text: &str| text.as_bytes().to_vec();
        let mut local = v2(four.0, four.1, 0);
        local[12] = 0x20;
        for (header, expected) in [
            (
                text("PROXY TCP4 203.0.113.7 192.0.2.1 50312 9999\r\n"),
                proxied(four.0, four.1),
            ),
            (
                text("PROXY TCP6 2001:db8::7 2001:db8::1 50312 9999\r\n"),
                proxied(six.0, six.1),
            ),
            // It is not IPv6 really.
            (
                text("PROXY TCP6 ::ffff:203.0.113.7 ::ffff:192.0.2.1 50312 9999\r\n"),
                proxied(four.0, four.1),
            ),
            (text("PROXY UNKNOWN\r\n"), None),
            (text("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), None),
            (v2(four.0, four.1, 0), proxied(four.0, four.1)),
            (v2(six.0, six.1, 100), proxied(six.0, six.1)),
            (local, None),
        ] {
            let length = header.len();
            let followed = [&header[..], b"Ada\nGrace\n"].concat();
            let whole = Ok(Some((expected, length)));
            assert_eq!(parse(&followed), whole);
            assert_eq!(parse(&header), whole);
            for end in 0..length {
                assert_eq!(parse(&header[..end]), Ok(None), "{end} of {header:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_known_at_its_first_wrong_byte() {
        for (bytes, why) in [
            (&b"A"[..], NoHeader::Other),
            (b"PRO\n", NoHeader::Other),
            (b"PROXY\tTCP4", NoHeader::Other),
            (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n", NoHeader::Other),
            (b"PROXY TCP4 1.2.3.400 1.2.3.4 1 1\r\n", NoHeader::Other),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 70000 1\r\n", NoHeader::Other),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\rx", NoHeader::Other),
            (b"\r\n\r\n\0\r\nQUIT\r\n", NoHeader::Other),
            // Version 3, and a command that there is not.
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", NoHeader::Other),
            (b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c", NoHeader::Other),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", NoHeader::TooLong),
        ] {
            assert_eq!(parse(bytes), Err(why), "{bytes:?}");
        }
        let endless = [b"PROXY UNKNOWN ", &[b'x'; 2000][..]].concat();
        assert_eq!(parse(&endless[..106]), Ok(None));
        assert_eq!(parse(&endless), Err(NoHeader::Other));
        let long = [&endless[..120], b"\r\n"].concat();
        assert_eq!(parse(&long), Err(NoHeader::Other));
        let longest = v2("1.2.3.4:1", "1.2.3.4:1", PROXY_HEADER_BYTES - 16 - 12 - 3);
        assert_eq!(longest.len(), PROXY_HEADER_BYTES);
        assert_eq!(parse(&longest[..100]), Ok(None));
        assert!(matches!(
            parse(&longest),
            Ok(Some((Some(_), PROXY_HEADER_BYTES)))
        ));
        let longer = v2("1.2.3.4:1", "1.2.3.4:1", PROXY_HEADER_BYTES - 16 - 12 - 2);
        assert_eq!(parse(&longer[..16]), Err(NoHeader::TooLong));
    }

    proptest! {
        /// No bytes at all make it panic, or take more than there is.
        #[test]
        fn any_bytes_are_a_header_or_not(
            beginning in 0..3_usize,
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let beginning = BEGINNINGS.get(beginning).copied().unwrap_or_default();
            let bytes = [beginning, &bytes].concat();
            if let Ok(Some((_, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
                // It was not whole before.
                prop_assert_eq!(parse(&bytes[..length - 1]), Ok(None));
            }
        }
    }
}

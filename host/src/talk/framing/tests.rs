//! What the wire contract says of messages, byte by byte.

use std::collections::VecDeque;
use std::io::{self, Read};

use proptest::prelude::*;

use super::*;

const MAX_LINE_BYTES: usize = 16;

type Owned = (Result<String, Refusal>, Ending);

/// Every message of an input that arrives in the given pieces.
fn messages(framing: Framing, pieces: &[&[u8]]) -> Vec<Owned> {
    messages_by(framing, pieces, |reader, found| {
        while let Some(message) = reader.next_message() {
            found.push((message.text.map(str::to_owned), message.ending));
        }
    })
}

/// The same, by a way of taking those that have been read.
fn messages_by(
    framing: Framing,
    pieces: &[&[u8]],
    take: impl Fn(&mut Reader, &mut Vec<Owned>),
) -> Vec<Owned> {
    let mut source = Pieces(pieces.iter().map(|piece| piece.to_vec()).collect());
    let mut reader = Reader::new(framing, MAX_LINE_BYTES);
    let mut found = Vec::new();
    loop {
        take(&mut reader, &mut found);
        if fill(&mut reader, &mut source) == 0 {
            take(&mut reader, &mut found);
            return found;
        }
    }
}

/// Reads once.
fn fill(reader: &mut Reader, source: &mut impl Read) -> usize {
    let count = source.read(reader.room()).expect("it has no errors");
    match count {
        0 => reader.end(),
        _ => reader.add(count),
    }
    count
}

/// Takes lines that are at hand together, all but a few of them, and other messages one by one.
fn take_together(reader: &mut Reader, found: &mut Vec<Owned>) {
    loop {
        if let Some(lines) = reader.lines_at_hand() {
            let lines: Vec<_> = lines.split_terminator('\n').map(lf).collect();
            assert!(lines.len() >= 2);
            let count = 1 + found.len() % lines.len();
            assert_eq!(reader.take_lines(count), count);
            found.extend(lines.into_iter().take(count));
        } else if let Some(message) = reader.next_message() {
            found.push((message.text.map(str::to_owned), message.ending));
        } else {
            return;
        }
    }
}

/// A source that gives one piece at a read, as a socket gives packets.
struct Pieces(VecDeque<Vec<u8>>);

impl Read for Pieces {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(mut piece) = self.0.pop_front() else {
            return Ok(0);
        };
        let count = piece.len().min(room.len());
        room[..count].copy_from_slice(&piece[..count]);
        if count < piece.len() {
            self.0.push_front(piece.split_off(count));
        }
        Ok(count)
    }
}

fn lf(text: &str) -> Owned {
    (Ok(text.to_owned()), Ending::Lf)
}

fn crlf(text: &str) -> Owned {
    (Ok(text.to_owned()), Ending::CrLf)
}

fn too_long(ending: Ending) -> Owned {
    let limit_bytes = MAX_LINE_BYTES;
    (Err(Refusal::TooLong { limit_bytes }), ending)
}

#[test]
fn a_line_ends_at_lf_and_drops_one_cr_before_it() {
    let input: &[u8] = b"a\n\nb\r\n\r\nc\rd\ne\r\r\n";
    let expected = [
        lf("a"),
        lf(""),
        crlf("b"),
        crlf(""),
        lf("c\rd"),
        crlf("e\r"),
    ];
    assert_eq!(messages(Framing::Lines, &[input]), expected);
    assert_eq!(messages(Framing::Auto, &[input]), expected);
}

#[test]
fn what_is_pending_at_the_end_is_a_last_message() {
    assert_eq!(messages(Framing::Lines, &[b"a\nb"]), [lf("a"), lf("b")]);
    assert_eq!(messages(Framing::Auto, &[b"a"]), [lf("a")]);
    assert_eq!(messages(Framing::Lines, &[b"a\r"]), [lf("a\r")]);
    assert_eq!(messages(Framing::Lines, &[b"a\n"]), [lf("a")]);
}

#[test]
fn a_line_at_the_limit_is_served_and_one_byte_more_refused() {
    let most = "x".repeat(MAX_LINE_BYTES);
    for ending in ["\n", "\r\n", ""] {
        let found = messages(Framing::Lines, &[format!("{most}{ending}").as_bytes()]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.as_deref(), Ok(most.as_str()), "{ending:?}");
        let found = messages(Framing::Lines, &[format!("{most}x{ending}a\n").as_bytes()]);
        assert_eq!(found[0], too_long(Ending::Lf), "{ending:?}");
    }
}

#[test]
fn the_rest_of_a_refused_line_is_dropped_and_the_next_line_served() {
    let long = [b'x'; 10 * MAX_LINE_BYTES];
    let pieces: &[&[u8]] = &[b"a\r\n", &long, &long, b"tail\nb\n"];
    let expected = [crlf("a"), too_long(Ending::CrLf), lf("b")];
    assert_eq!(messages(Framing::Lines, pieces), expected);
    assert_eq!(messages(Framing::Auto, pieces), expected);
}

#[test]
fn a_refused_line_is_never_stored() {
    let mut reader = Reader::new(Framing::Lines, MAX_LINE_BYTES);
    let mut endless = io::repeat(b'x');
    let mut refusals = 0;
    for _ in 0..10_000 {
        fill(&mut reader, &mut endless);
        while reader.next_message().is_some() {
            refusals += 1;
        }
    }
    assert_eq!(refusals, 1);
    assert!(reader.buffer.len() <= READ_BYTES);
    assert_eq!(reader.waiting(), Waiting::ForRestOfLine);
}

#[test]
fn bytes_that_are_not_utf8_are_refused_and_the_next_line_served() {
    let found = messages(Framing::Lines, &[b"\xff\xfe\r\nb\n"]);
    assert_eq!(found, [(Err(Refusal::NotUtf8), Ending::CrLf), lf("b")]);
}

#[test]
fn settled_bytes_are_a_chunk_and_so_is_every_read_after_it() {
    let mut source = Pieces([b"Micha".to_vec(), b"el".to_vec(), b"a\nb\r\n".to_vec()].into());
    let mut reader = Reader::new(Framing::Auto, MAX_LINE_BYTES);
    assert_eq!(reader.waiting(), Waiting::ForMessage);
    for _ in 0..2 {
        fill(&mut reader, &mut source);
        assert_eq!(reader.next_message(), None);
        assert_eq!(reader.waiting(), Waiting::ForFraming);
    }
    reader.settle();
    let chunk = |text| {
        Some(Message {
            text: Ok(text),
            ending: Ending::None,
        })
    };
    assert_eq!(reader.next_message(), chunk("Michael"));
    assert_eq!(reader.next_message(), None);
    assert_eq!(reader.waiting(), Waiting::ForMessage);
    fill(&mut reader, &mut source);
    assert_eq!(reader.next_message(), chunk("a\nb\r\n"));
    assert_eq!(reader.ending(), Ending::None);
}

#[test]
fn one_newline_makes_lines_for_good() {
    let mut source = Pieces([b"a\nb".to_vec()].into());
    let mut reader = Reader::new(Framing::Auto, MAX_LINE_BYTES);
    fill(&mut reader, &mut source);
    assert!(reader.next_message().is_some());
    assert_eq!(reader.next_message(), None);
    assert_eq!(reader.waiting(), Waiting::ForRestOfLine);
}

#[test]
fn lines_are_at_hand_up_to_the_first_that_needs_more_than_to_be_handed_on() {
    for (input, expected) in [
        ("a\nb\nc", Some("a\nb\n")),
        ("a\nb\nc\r\nd\n", Some("a\nb\n")),
        ("a\nb\n\u{e9}\n", Some("a\nb\n\u{e9}\n")),
        ("a\n\n\n", Some("a\n\n\n")),
        ("a\nb", None),
        ("a\r\nb\nc\n", None),
        ("ab", None),
        // The last one might be too long.
        ("a\nb\n12345678901234567\n", Some("a\nb\n")),
    ] {
        let mut reader = Reader::new(Framing::Lines, MAX_LINE_BYTES);
        let mut source = input.as_bytes();
        fill(&mut reader, &mut source);
        assert_eq!(reader.lines_at_hand(), expected, "{input:?}");
    }
    let mut reader = Reader::new(Framing::Lines, MAX_LINE_BYTES);
    let mut source = &b"a\nb\n\xff\nc\n"[..];
    fill(&mut reader, &mut source);
    assert_eq!(reader.lines_at_hand(), Some("a\nb\n"));
    assert_eq!(reader.take_lines(9), 4, "all there are");
}

#[test]
fn a_chunk_has_at_most_1024_bytes() {
    let found = messages(Framing::Chunks, &[&[b'x'; 2 * CHUNK_BYTES + 1], b"y"]);
    let sizes: Vec<_> = found
        .iter()
        .map(|(text, _)| text.as_ref().map_or(0, String::len))
        .collect();
    assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, 1, 1]);
}

#[test]
fn a_burst_grows_the_buffer_and_quiet_shrinks_it() {
    let mut reader = Reader::new(Framing::Lines, MAX_LINE_BYTES);
    let mut newlines = io::repeat(b'\n');
    for _ in 0..10 {
        fill(&mut reader, &mut newlines);
        while reader.next_message().is_some() {}
    }
    assert_eq!(reader.buffer.len(), READ_BYTES);
    for _ in 0..2 {
        fill(&mut reader, &mut &b"a\n"[..]);
        while reader.next_message().is_some() {}
    }
    assert_eq!(reader.buffer.len(), FIRST_BUFFER_BYTES);
}

#[test]
fn replies_leave_in_one_write_each_with_its_own_ending() {
    let mut writer = Writer::default();
    writer.push("a", Ending::Lf);
    writer.push("b", Ending::CrLf);
    writer.push("c", Ending::None);
    assert_eq!(writer.output(), b"a\nb\r\nc");
    writer.remove(6);
    assert!(writer.is_empty() && writer.output().is_empty());
}

#[test]
fn what_a_write_did_not_take_stays_in_front_of_what_is_added() {
    let mut writer = Writer::default();
    writer.push("ab", Ending::Lf);
    writer.remove(1);
    assert!(!writer.is_empty());
    writer.push("c", Ending::Lf);
    assert_eq!(writer.output(), b"b\nc\n");
    writer.remove(4);
    writer.push("d", Ending::Lf);
    assert_eq!(writer.output(), b"d\n");
}

/// Input with much of what matters: newlines, carriage returns, lines around the limit, non-UTF-8.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => Just(b'x'),
        1 => Just(b'\n'),
        1 => Just(b'\r'),
        1 => any::<u8>(),
    ];
    proptest::collection::vec(byte, 0..400)
}

#[test]
fn each_line_of_a_reply_has_the_ending_of_the_line_it_answers() {
    let written = |text: &str, ending| {
        let mut writer = Writer::default();
        writer.push(text, ending);
        String::from_utf8(writer.output().to_vec()).expect("text")
    };
    assert_eq!(written("a\n\nb", Ending::Lf), "a\n\nb\n");
    assert_eq!(written("a\n\nb", Ending::CrLf), "a\r\n\r\nb\r\n");
    assert_eq!(written("a\n\nb", Ending::None), "a\n\nb");
    // An empty last line is a line too, and all other bytes are the guest's.
    assert_eq!(written("a\n", Ending::CrLf), "a\r\n\r\n");
    assert_eq!(
        written("\0a\rb\r\n\u{85}", Ending::CrLf),
        "\0a\rb\r\r\n\u{85}\r\n"
    );
    assert_eq!(written("", Ending::CrLf), "\r\n");
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_lines_gives_the_same_messages(
        input in input(),
        cuts in proptest::collection::vec(1..40_usize, 0..400),
    ) {
        let mut pieces = Vec::new();
        let mut rest = input.as_slice();
        for cut in cuts {
            let (piece, tail) = rest.split_at(cut.min(rest.len()));
            if piece.is_empty() {
                break;
            }
            pieces.push(piece);
            rest = tail;
        }
        pieces.extend((!rest.is_empty()).then_some(rest));

        let whole = messages(Framing::Lines, &[&input]);
        prop_assert_eq!(&messages(Framing::Lines, &pieces), &whole);
        prop_assert_eq!(&messages(Framing::Auto, &pieces), &whole);
        prop_assert_eq!(&messages_by(Framing::Auto, &pieces, take_together), &whole);
    }

    #[test]
    fn lines_are_what_splitting_at_lf_gives(input in input()) {
        let mut expected: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
        let last = expected.pop().filter(|last| !last.is_empty());
        let lines = expected
            .into_iter()
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .chain(last);
        let expected: Vec<_> = lines
            .map(|line| match std::str::from_utf8(line) {
                _ if line.len() > MAX_LINE_BYTES => None,
                Ok(text) => Some(text.to_owned()),
                Err(_) => None,
            })
            .collect();
        let found: Vec<_> = messages(Framing::Lines, &[&input])
            .into_iter()
            .map(|(text, _)| text.ok())
            .collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn chunks_lose_and_reorder_nothing(input in proptest::collection::vec(b' '..b'~', 0..5000)) {
        let found: String = messages(Framing::Chunks, &[&input])
            .into_iter()
            .map(|(text, _)| text.expect("printable bytes are UTF-8"))
            .collect();
        prop_assert_eq!(found.as_bytes(), &input);
    }
}

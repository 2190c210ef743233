//! However the bytes are cut, the messages are the same; and no more is stored than the limits say.

#![no_main]

use airlock_fuzz::talk::framing::{Ending, Framing, Reader, Refusal};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input {
    max_line_bytes: u8,
    pieces: Vec<Vec<u8>>,
}

type Message = (Result<String, Refusal>, Ending);

fn messages<'a>(
    framing: Framing,
    max_line_bytes: usize,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Vec<Message> {
    let mut reader = Reader::new(framing, max_line_bytes);
    let mut found = Vec::new();
    let mut take = |reader: &mut Reader| {
        while let Some(message) = reader.next_message() {
            found.push((message.text.map(str::to_owned), message.ending));
        }
    };
    for mut piece in pieces {
        while !piece.is_empty() {
            let room = reader.room();
            let (taken, rest) = piece.split_at(piece.len().min(room.len()));
            room[..taken.len()].copy_from_slice(taken);
            reader.add(taken.len());
            piece = rest;
            take(&mut reader);
            // A line, and what may be its ending: half of one, or in a message a whole one.
            let ending_bytes = if framing == Framing::Messages { 2 } else { 1 };
            assert!(reader.pending_bytes() <= max_line_bytes + ending_bytes);
        }
    }
    reader.end();
    take(&mut reader);
    found
}

fuzz_target!(|input: Input| {
    let limit = usize::from(input.max_line_bytes);
    let pieces = || input.pieces.iter().map(Vec::as_slice);
    let whole = input.pieces.concat();
    let expected = messages(Framing::Lines, limit, [whole.as_slice()].into_iter());
    assert_eq!(messages(Framing::Lines, limit, pieces()), expected);
    assert_eq!(messages(Framing::Auto, limit, pieces()), expected);
    for (text, _) in &expected {
        assert!(text.as_ref().map_or(0, String::len) <= limit);
    }
    messages(Framing::Chunks, limit, pieces());
    let expected = messages(Framing::Messages, limit, [whole.as_slice()].into_iter());
    assert_eq!(messages(Framing::Messages, limit, pieces()), expected);
});

use std::io::ErrorKind;

use proptest::prelude::*;

use super::*;

const MASK: [u8; 4] = [1, 2, 3, 4];

/// A frame as a client sends it.
fn frame(opcode: OpCode, is_final: bool, content: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        is_final,
        opcode,
        mask: Some(MASK),
        ..FrameHeader::default()
    };
    let mut bytes = Vec::new();
    let _ = header.format(content.len() as u64, &mut bytes);
    let mask = MASK.iter().cycle();
    bytes.extend(content.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    bytes
}

const TEXT: OpCode = OpCode::Data(Data::Text);
const MORE: OpCode = OpCode::Data(Data::Continue);
const PING: OpCode = OpCode::Control(Control::Ping);
const CLOSE: OpCode = OpCode::Control(Control::Close);

/// What comes of these bytes, received in pieces of so many.
fn decoded(frames: &mut Frames, bytes: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        let mut room = [b"?", piece].concat();
        let count = frames.decode(&mut room);
        all.extend_from_slice(&room[..count]);
    }
    all
}

/// All that is sent, by a socket that takes so much at once, every other time.
fn sent(frames: &mut Frames, mut output: &[u8], most: usize) -> Vec<u8> {
    let (mut all, mut calls) = (Vec::new(), 0);
    while !output.is_empty() {
        let sent = frames.send(output, |bytes| {
            calls += 1;
            if calls % 2 == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(most);
            all.extend_from_slice(&bytes[..count]);
            Ok(count)
        });
        if let Ok(count) = sent {
            output = &output[count..];
        }
    }
    all
}

proptest! {
    #[test]
    fn messages_are_the_same_however_they_are_cut(
        messages in prop::collection::vec(prop::collection::vec(".{0,40}", 1..4), 0..6),
        piece_bytes in 1_usize..60,
    ) {
        let (mut bytes, mut wanted) = (Vec::new(), Vec::new());
        for fragments in &messages {
            for (number, fragment) in fragments.iter().enumerate() {
                let opcode = if number == 0 { TEXT } else { MORE };
                let is_final = number + 1 == fragments.len();
                bytes.extend(frame(PING, true, b"ping"));
                bytes.extend(frame(opcode, is_final, fragment.as_bytes()));
                wanted.extend(fragment.bytes());
            }
            wanted.push(MESSAGE_END);
        }
        let mut frames = Frames::default();
        prop_assert_eq!(decoded(&mut frames, &bytes, piece_bytes), wanted);
        prop_assert!(!frames.is_cut() && frames.input_end().is_none());
    }

    #[test]
    fn nothing_that_comes_is_too_strange(bytes: Vec<u8>, piece_bytes in 1_usize..60) {
        let mut frames = Frames::default();
        let decoded = decoded(&mut frames, &bytes, piece_bytes);
        prop_assert!(decoded.len() <= bytes.len());
    }

    #[test]
    fn replies_are_a_frame_each_however_they_are_cut(
        replies in prop::collection::vec(prop::collection::vec(0_u8..0x80, 0..300), 0..6),
        most in 1_usize..400,
    ) {
        let output: Vec<u8> = replies.iter().flat_map(|reply| [reply, &[MESSAGE_END][..]].concat()).collect();
        let wanted: Vec<u8> = replies.iter().flat_map(|reply| plain(reply)).collect();
        prop_assert_eq!(sent(&mut Frames::default(), &output, most), wanted);
    }
}

/// A reply's frame.
fn plain(reply: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = OwnFrame::message(reply.to_vec(), TEXT, true).format(&mut bytes);
    bytes
}

#[test]
fn a_reply_larger_than_a_piece_is_one_frame() {
    let reply = vec![b'x'; 3 * SEND_BYTES];
    let output = [b"a\xff".as_slice(), &reply, b"\xffb\xff"].concat();
    let wanted = [plain(b"a"), plain(&reply), plain(b"b")].concat();
    assert!(sent(&mut Frames::default(), &output, 10_000) == wanted);
}

#[test]
fn an_end_of_messages_inside_of_one_is_none() {
    let mut frames = Frames::default();
    let bytes = frame(TEXT, true, b"a\xffb");
    assert_eq!(decoded(&mut frames, &bytes, 100), b"a\xfeb\xff");
}

#[test]
fn only_the_last_ping_is_answered_and_not_inside_of_a_reply() {
    let mut frames = Frames::default();
    let pings: Vec<u8> = (0..100_u8)
        .flat_map(|number| frame(PING, true, &[number]))
        .collect();
    assert_eq!(decoded(&mut frames, &pings, 1000), b"");
    let full = |_: &[u8]| Err(ErrorKind::WouldBlock.into());
    assert!(frames.answer_ping(full).is_err());
    decoded(&mut frames, &pings, 1000);
    assert!(frames.answer_ping(full).is_err());
    decoded(&mut frames, &pings, 1000);
    let (mut all, mut pong) = (Vec::new(), Vec::new());
    let result = frames.send(b"a\xff", |bytes| {
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    });
    assert!(matches!(result, Ok(2)));
    let result = frames.answer_ping(|bytes| {
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    });
    assert!(result.is_ok());
    let _ = OwnFrame::pong(vec![99]).format(&mut pong);
    assert_eq!(all, [pong.clone(), plain(b"a"), pong].concat());
}

#[test]
fn what_breaks_the_rules_ends_it_with_its_code() {
    let unmasked = plain(b"a");
    let mut extension = frame(TEXT, true, b"a");
    extension[0] |= 0x40;
    let long = frame(PING, true, &[0; 126]);
    let twice = [frame(TEXT, false, b"a"), frame(TEXT, true, b"b")].concat();
    let code = |code: u16, reason: &[u8]| {
        let content = [&code.to_be_bytes()[..], reason].concat();
        frame(CLOSE, true, &content)
    };
    for (bytes, violation, wanted) in [
        (
            frame(OpCode::Data(Data::Binary), true, b"a"),
            Violation::Binary,
            1003,
        ),
        (unmasked, Violation::Unmasked, 1002),
        (extension, Violation::Extension, 1002),
        (
            frame(OpCode::Data(Data::Reserved(3)), true, b""),
            Violation::Opcode,
            1002,
        ),
        (frame(MORE, true, b"a"), Violation::StrayFragment, 1002),
        (twice, Violation::Interleaved, 1002),
        (frame(PING, false, b""), Violation::Control, 1002),
        (long, Violation::Control, 1002),
        (frame(CLOSE, true, b"a"), Violation::Code, 1002),
        (code(1005, b""), Violation::Code, 1002),
        (code(1000, b"\xc3"), Violation::Reason, 1007),
    ] {
        let mut frames = Frames::default();
        decoded(&mut frames, &bytes, 1000);
        assert_eq!(frames.input_end(), Some(InputEnd::Violated(violation)));
        let mut close = Vec::new();
        let ended = frames.end(CloseCode::Normal, |bytes| {
            close.extend_from_slice(bytes);
            Ok(bytes.len())
        });
        assert!(ended.is_ok());
        assert_eq!(close[..2], [0x88, close.len() as u8 - 2]);
        assert_eq!(close[2..4], u16::to_be_bytes(wanted), "{violation:?}");
    }
}

#[test]
fn a_close_frame_is_answered_with_its_code_and_nothing_follows_it() {
    for (content, wanted) in [
        (&b""[..], &b"\x88\x00"[..]),
        (b"\x03\xe8bye", b"\x88\x02\x03\xe8"),
        (b"\x0f\xa0", b"\x88\x02\x0f\xa0"),
    ] {
        let mut frames = Frames::default();
        let bytes = [
            frame(TEXT, true, b"a"),
            frame(CLOSE, true, content),
            frame(TEXT, true, b"b"),
        ];
        assert_eq!(decoded(&mut frames, &bytes.concat(), 1000), b"a\xff");
        let mut close = Vec::new();
        let ended = frames.end(CloseCode::Away, |bytes| {
            close.extend_from_slice(bytes);
            Ok(bytes.len())
        });
        assert!(ended.is_ok());
        assert_eq!(close, wanted);
    }
}

//! Plays a conversation from a file to a guest, without a network.

use crate::limits::guest::SCRIPT_BYTES;
use crate::talk::handler::{Handler, Outcome};
use crate::talk::recorder::{Capped, Recorder};
use crate::talk::transcript::Line;

/// Plays the messages of a conversation to a guest that `start` makes, without a network, until they
/// are over or the guest closes or fails; what somebody else has published goes to `publish`, as topic
/// and body. Returns what was said on both sides, as text, and how the guest failed, if it has.
pub fn play<H: Handler>(
    script: &[Line<'_>],
    publish: impl Fn(&str, &[u8]),
    start: impl FnOnce() -> Result<H, H::Error>,
) -> (String, Option<H::Error>) {
    let mut played = Vec::new();
    let failure = converse(script, publish, start, &mut played).err();
    // What is played is text.
    (String::from_utf8_lossy(&played).into_owned(), failure)
}

fn converse<H: Handler>(
    script: &[Line<'_>],
    publish: impl Fn(&str, &[u8]),
    start: impl FnOnce() -> Result<H, H::Error>,
    played: &mut Vec<u8>,
) -> Result<(), H::Error> {
    let mut guest = Recorder::start(Some(Capped::new(played, SCRIPT_BYTES)), start)?;
    guest.greeting()?;
    let mut closes = hear(&mut guest)?;
    let mut script = script.iter().peekable();
    while !closes && let Some(line) = script.next() {
        match line {
            Line::Sent(message) => {
                closes = matches!(guest.handle_line(message)?, Outcome::Close(_));
            }
            Line::Published { topic, body } => publish(topic, body.as_bytes()),
            Line::Said(_) | Line::Close => {}
        }
        // Those that stand together are heard together.
        let goes_on = matches!(
            (line, script.peek()),
            (Line::Published { .. }, Some(Line::Published { .. }))
        );
        if !closes && !goes_on {
            closes = hear(&mut guest)?;
        }
    }
    Ok(())
}

/// Has the guest hear all that waits for it, its own messages too. Returns whether it closes.
fn hear<H: Handler>(guest: &mut H) -> Result<bool, H::Error> {
    // One that answers each message with another would go on for ever.
    for _ in 0..HEARINGS {
        let Some(mailbox) = guest.mailbox().filter(|mailbox| mailbox.has_mail()) else {
            break;
        };
        let mail = mailbox.take();
        if guest.hear(&mail)?.close {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How often a guest hears its mail after one line.
const HEARINGS: u32 = 100;

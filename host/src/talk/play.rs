//! Plays a conversation from a file to a guest, without a network.

use crate::limits::guest::SCRIPT_BYTES;
use crate::talk::handler::{Handler, Outcome};
use crate::talk::recorder::{Capped, Recorder};
use crate::talk::transcript::Line;

/// Plays the messages of a conversation to a guest that `start` makes, without a network, until they
/// are over or the guest closes or fails. Returns what was said on both sides, as text, and how the
/// guest failed, if it has.
pub fn play<H: Handler>(
    script: &[Line<'_>],
    start: impl FnOnce() -> Result<H, H::Error>,
) -> (String, Option<H::Error>) {
    let mut played = Vec::new();
    let failure = converse(script, start, &mut played).err();
    // What is played is text.
    (String::from_utf8_lossy(&played).into_owned(), failure)
}

fn converse<H: Handler>(
    script: &[Line<'_>],
    start: impl FnOnce() -> Result<H, H::Error>,
    played: &mut Vec<u8>,
) -> Result<(), H::Error> {
    let mut guest = Recorder::start(Some(Capped::new(played, SCRIPT_BYTES)), start)?;
    guest.greeting()?;
    for line in script {
        if let Line::Sent(message) = line
            && let Outcome::Close(_) = guest.handle_line(message)?
        {
            break;
        }
    }
    Ok(())
}

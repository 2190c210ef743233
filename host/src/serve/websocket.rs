//! WebSocket at a door.

pub(crate) mod frames;
pub mod upgrade;

use tungstenite::protocol::frame::coding::CloseCode;

use crate::talk::conversation::End;

/// What a close frame says of the end of a conversation.
pub(crate) fn close_code<E>(end: &End<E>) -> CloseCode {
    match end {
        End::ClientClosed | End::GuestClosed => CloseCode::Normal,
        End::GuestFailed(_) => CloseCode::Error,
        End::NotText => CloseCode::Invalid,
        End::TimedOut | End::NotReading => CloseCode::Policy,
        End::ShuttingDown => CloseCode::Away,
        End::Broken(_) => CloseCode::Protocol,
    }
}

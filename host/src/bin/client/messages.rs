//! WebSocket, as the client speaks it: a line is a message.

use std::io::{self, ErrorKind};

use airlock::limits::wire::ANSWER_BYTES;
use anyhow::{Context, Result, anyhow, bail};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message, WebSocket};

use crate::Target;
use crate::wire::Wire;

/// A server that speaks in messages.
pub(crate) struct Messages(Box<WebSocket<Wire>>);

impl Messages {
    /// Asks the server for it.
    pub(crate) fn begin(wire: Wire, target: &Target) -> Result<Messages> {
        let address = &target.address;
        let most = usize::try_from(ANSWER_BYTES).ok();
        let config = WebSocketConfig::default()
            .max_message_size(most)
            .max_frame_size(most);
        let url = format!("{}{}{}", address.scheme, address.endpoint, address.path);
        let shaken = tungstenite::client::client_with_config(url, wire, Some(config));
        let (socket, _) = shaken
            .map_err(|error| anyhow!("{error}"))
            .context("no WebSocket")?;
        Ok(Messages(Box::new(socket)))
    }

    pub(crate) fn wire(&mut self) -> &mut Wire {
        self.0.get_mut()
    }

    pub(crate) fn send(&mut self, line: &str) -> io::Result<()> {
        let sent = self.0.send(Message::text(line));
        sent.map_err(|error| match error {
            Error::Io(error) => error,
            other => io::Error::other(other),
        })
    }

    /// One message; none at the end.
    pub(crate) fn receive(&mut self) -> Result<Option<String>> {
        loop {
            match self.0.read() {
                Ok(Message::Text(text)) => return Ok(Some(text.to_string())),
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    return Ok(None);
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    bail!("the server is silent")
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says that nothing more comes. The server may have said so first.
    pub(crate) fn end(&mut self) {
        let _ = self.0.close(None);
    }
}

//! One connection: commands go out, answers come back, each until a time.
//!
//! The crate `redis` writes commands and reads answers. Its own connections know no deadline for a
//! whole answer, only one for each read.

use std::io::{self, Write};
use std::time::Instant;

use redis::{Cmd, Parser, ServerError, Value};
use rustix::net::{RecvFlags, recv};
use socket2::SockAddr;

use crate::limits::process::REDIS_PROBE_TIME;
use crate::redis::address::Target;
use crate::redis::stream::Stream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server's own words. Whatever was asked has not happened.
    #[error("{0}")]
    Refused(String),
    /// It has not answered in time. What was asked may happen all the same.
    #[error("no answer in time")]
    Timeout,
    /// More is being asked already than there is room for. Nothing was sent.
    #[error("too many are waiting for it")]
    Busy,
    /// There is no connection, or no more.
    #[error("{0}")]
    Unavailable(String),
    /// It answers with more than was asked for.
    #[error("the answer is too large")]
    TooLarge,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::Timeout,
            _ => Failure::Unavailable(error.to_string()),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Failure {
        let details = error.details().unwrap_or_default();
        Failure::Refused(format!("{} {details}", error.code()))
    }
}

/// A connection that is ready for commands. After any failure but [`Failure::Refused`] it is of no
/// more use: an answer to what was asked before may still come.
pub(crate) struct Connection {
    pub(super) stream: Stream,
    pub(super) parser: Parser,
    packed: Vec<u8>,
}

impl Connection {
    /// Looks up where the server is, connects, and says who it is. Returns the addresses too.
    pub(crate) fn reach(target: &Target) -> Result<(Connection, Vec<SockAddr>), Failure> {
        let addresses = target.resolve().map_err(Failure::Unavailable)?;
        let until = Instant::now() + REDIS_PROBE_TIME;
        let connection = Connection::open(target, &addresses, until)?;
        Ok((connection, addresses))
    }

    /// Connects to one of these addresses, and says who it is.
    pub(crate) fn open(
        target: &Target,
        addresses: &[SockAddr],
        until: Instant,
    ) -> Result<Connection, Failure> {
        let mut failure = Failure::Unavailable("its name has no address".to_owned());
        for address in addresses {
            match Stream::connect(target, address, until) {
                Ok(stream) => return Connection::greet(target, stream, until),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }

    fn greet(target: &Target, stream: Stream, until: Instant) -> Result<Connection, Failure> {
        let mut connection = Connection {
            stream,
            parser: Parser::new(),
            packed: Vec::new(),
        };
        if let Some(password) = &target.password {
            let mut auth = redis::cmd("AUTH");
            connection.ask(auth.arg(&target.user).arg(password), until)?;
        }
        if target.database != 0 {
            let mut select = redis::cmd("SELECT");
            connection.ask(select.arg(target.database), until)?;
        }
        // A server that wants a password, or is not ready, says so now.
        connection.ask(&redis::cmd("PING"), until)?;
        Ok(connection)
    }

    /// The answer to a command.
    pub(crate) fn ask(&mut self, command: &Cmd, until: Instant) -> Result<Value, Failure> {
        self.stream.ends_at(until);
        self.stream.next_answer();
        self.packed.clear();
        command.write_packed_command(&mut self.packed);
        self.stream.write_all(&self.packed)?;
        self.stream.flush()?;
        match self.parser.parse_value(&mut self.stream) {
            Ok(Value::ServerError(error)) => Err(error.into()),
            Ok(value) => Ok(value),
            Err(error) if error.is_timeout() => Err(Failure::Timeout),
            Err(_) if self.stream.is_too_much() => Err(Failure::TooLarge),
            Err(error) => Err(Failure::Unavailable(error.to_string())),
        }
    }

    /// Whether the server has neither closed it nor said anything unasked, as far as is known here.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let heard = recv(&self.stream, &mut [0; 1], flags);
        matches!(heard, Err(rustix::io::Errno::AGAIN))
    }
}

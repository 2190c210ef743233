//! One connection's own instance of the guest.
//!
//! Messages go in, outcomes come out. Every call has a deadline. After the first error the instance
//! is in no known state: drop the session.

use std::time::Duration;

use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;

use crate::bindings::LineServer;
use crate::bindings::batched::Batch;
use crate::bindings::exports::airlock::line::handler;
use crate::conversation::{Answers, Handler, Outcome};
use crate::limits::{self, LOG_LINE_BYTES, Limits};
use crate::sandbox::{self, CallTimedOut, Refused, Sandbox, State};
use crate::server::Client;

/// A live instance, and the clock and the limits around it.
pub struct Session<'a> {
    store: Store<State>,
    guest: LineServer,
    /// For many lines at once, where the guest has that.
    batch: Option<Batch>,
    call_ticks: u64,
    limits: &'a Limits,
}

/// How a guest failed. The client reads `error: the guest failed`; the log says this.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The call overran its time, awake or asleep.
    #[error("a call took longer than {} (--call-timeout)", humantime::format_duration(*.limit))]
    CallTime {
        /// `--call-timeout`.
        limit: Duration,
    },
    /// The reply or greeting was too long.
    #[error("it answered {bytes} bytes and the limit is {limit_bytes} (--max-reply)")]
    ReplyTooLong {
        /// What it answered.
        bytes: usize,
        /// `--max-reply`.
        limit_bytes: usize,
    },
    /// It says that it has handled none of several lines, or more than there were.
    #[error("it says that it has handled {handled} of {count} lines")]
    Count {
        /// What it says.
        handled: usize,
        /// What it was given.
        count: usize,
    },
    /// The last of its replies to several lines has no line feed.
    #[error("its replies to several lines do not end with a line feed")]
    Unended,
    /// It ended itself through `wasi:cli/exit`.
    #[error("it called exit with status {0}")]
    Exit(i32),
    /// It failed after it had been refused memory.
    #[error("{0}")]
    Memory(Refused),
    /// The shim failed, not the guest.
    #[error("the shim panicked; the log has the place")]
    Panic,
    /// Everything else that ends an instance: a trap, or a value that is none of its type.
    #[error("{0}")]
    Trap(String),
}

impl<'a> Session<'a> {
    /// Makes a fresh instance for `client`.
    ///
    /// # Errors
    /// The guest failed while it was initialised.
    pub fn start(sandbox: &'a Sandbox, client: Client) -> Result<Session<'a>, GuestError> {
        let limits = &sandbox.runtime.limits;
        let mut store = Store::new(&sandbox.runtime.engine, State::new(sandbox, client));
        store.limiter(|state| &mut state.memory);
        // Bounds what the host allocates to receive a value, before its length is looked at. What a
        // guest prints is received the same way, 4 KiB at a time.
        let most_bytes = limits
            .reply_bytes
            .saturating_mul(2)
            .max(limits::LEAST_TRANSFER_BYTES);
        store.set_hostcall_fuel(most_bytes);
        let call_ticks = sandbox::ticks(limits.call_time);
        start_call(&mut store, call_ticks);
        let instantiated = sandbox.instantiate(&mut store);
        let (guest, batch) = instantiated.map_err(|error| guest_error(&error, &store, limits))?;
        Ok(Session {
            store,
            guest,
            batch,
            call_ticks,
            limits,
        })
    }

    /// Bytes of the instance's linear memories.
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().memory.held_bytes
    }

    fn check_reply(&self, text: Option<&str>) -> Result<(), GuestError> {
        match text {
            Some(text) if text.len() > self.limits.reply_bytes => Err(GuestError::ReplyTooLong {
                bytes: text.len(),
                limit_bytes: self.limits.reply_bytes,
            }),
            _ => Ok(()),
        }
    }
}

impl Handler for Session<'_> {
    type Error = GuestError;

    fn greeting(&mut self) -> Result<Option<String>, GuestError> {
        start_call(&mut self.store, self.call_ticks);
        let text = self
            .guest
            .airlock_line_handler()
            .call_greeting(&mut self.store)
            .map_err(|error| guest_error(&error, &self.store, self.limits))?;
        self.check_reply(text.as_deref())?;
        Ok(text)
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, GuestError> {
        start_call(&mut self.store, self.call_ticks);
        let outcome = self
            .guest
            .airlock_line_handler()
            .call_handle_line(&mut self.store, line)
            .map_err(|error| guest_error(&error, &self.store, self.limits))?;
        let outcome = match outcome {
            handler::Outcome::Reply(text) => Outcome::Reply(text),
            handler::Outcome::NoReply => Outcome::NoReply,
            handler::Outcome::Close(text) => Outcome::Close(text),
        };
        self.check_reply(match &outcome {
            Outcome::Reply(text) => Some(text),
            Outcome::NoReply => None,
            Outcome::Close(text) => text.as_deref(),
        })?;
        Ok(outcome)
    }

    fn handle_lines<'b>(
        &mut self,
        lines: impl FnOnce() -> Option<&'b str>,
        enough: usize,
    ) -> Result<Option<Answers>, GuestError> {
        let Some((batch, lines)) = self
            .batch
            .as_ref()
            .and_then(|batch| Some((batch, lines()?)))
        else {
            return Ok(None);
        };
        start_call(&mut self.store, self.call_ticks);
        // So that one reply more than enough stays below what may be received from a guest at all.
        let enough = enough.min(self.limits.reply_bytes);
        let answers = batch
            .airlock_line_batch()
            .call_handle_lines(&mut self.store, lines, enough as u32)
            .map_err(|error| guest_error(&error, &self.store, self.limits))?;
        let most_bytes = self.limits.reply_bytes + enough;
        if answers.replies.len() > most_bytes {
            return Err(GuestError::ReplyTooLong {
                bytes: answers.replies.len(),
                limit_bytes: most_bytes,
            });
        }
        let handled = answers.handled as usize;
        let count = memchr::memchr_iter(b'\n', lines.as_bytes()).count();
        if handled == 0 || handled > count {
            return Err(GuestError::Count { handled, count });
        }
        if !answers.replies.is_empty() && !answers.replies.ends_with('\n') {
            return Err(GuestError::Unended);
        }
        Ok(Some(Answers {
            replies: answers.replies,
            handled,
            close: answers.close,
        }))
    }

    /// Time since the server started, in whole ticks.
    fn clock(&self) -> Duration {
        self.store.data().clock()
    }
}

/// Both clocks: Wasmtime's, which stops wasm code, and the one that bounds waiting in the host.
fn start_call(store: &mut Store<State>, ticks: u64) {
    store.set_epoch_deadline(ticks);
    store.data_mut().start_call(ticks);
}

fn guest_error(error: &wasmtime::Error, store: &Store<State>, limits: &Limits) -> GuestError {
    let timed_out = error.downcast_ref::<Trap>() == Some(&Trap::Interrupt)
        || error.downcast_ref::<CallTimedOut>().is_some();
    if timed_out {
        return GuestError::CallTime {
            limit: limits.call_time,
        };
    }
    if let Some(refused) = store.data().memory.refused {
        return GuestError::Memory(refused);
    }
    if let Some(&I32Exit(status)) = error.downcast_ref() {
        return GuestError::Exit(status);
    }
    // The chain ends with the cause; before it stands a backtrace of many lines.
    tracing::debug!("the guest failed: {error:?}");
    let mut cause = error.root_cause().to_string();
    cause.truncate(cause.floor_char_boundary(LOG_LINE_BYTES));
    GuestError::Trap(cause)
}

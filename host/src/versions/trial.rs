//! What a guest has to go through before it may serve: compiled, linked, instantiated once, and
//! asked for its greeting, all under the usual limits.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::process::room::Need;
use crate::sandbox::linking::Sandbox;
use crate::sandbox::memory::Refused;
use crate::sandbox::rejection::RejectedGuest;
use crate::sandbox::runtime::Runtime;
use crate::sandbox::session::{Cause, GuestError, Session};
use crate::talk::client::Client;
use crate::talk::handler::Handler;

/// A guest that has passed.
pub struct Passed {
    /// It, ready to serve.
    pub sandbox: Sandbox,
    /// How long compiling and linking took.
    pub compile_time: Duration,
    /// How long making an instance took.
    pub instantiate_time: Duration,
    /// Bytes of that instance's linear memories, after its greeting.
    pub memory_bytes: u64,
    /// What it greets with.
    pub greeting: Option<String>,
}

impl Passed {
    /// What each of its connections will take.
    pub fn need(&self) -> Need {
        self.sandbox.need(self.memory_bytes)
    }
}

/// Why a guest has not passed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It cannot be served at all.
    #[error(transparent)]
    Rejected(#[from] RejectedGuest),
    /// It can, but every connection would fail at once.
    #[error("it fails before its first line: {0}")]
    Greeting(GuestError),
    /// A bug of ours, or of Wasmtime's.
    #[error("the shim panicked over it; the log has the place")]
    Panic,
}

/// Not as a source, which would be said twice.
impl From<GuestError> for Failed {
    fn from(error: GuestError) -> Failed {
        Failed::Greeting(error)
    }
}

impl Failed {
    /// Whether the same guest may pass later: the guests that serve had all the memory there is for
    /// guests, or the system had no room for the compiler.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self,
            Failed::Rejected(RejectedGuest::NoCompiler(_))
                | Failed::Greeting(GuestError {
                    cause: Cause::Memory(Refused::Total),
                    ..
                })
        )
    }
}

/// Tries `component`, and gives up compiling it when it is no longer `wanted`.
///
/// # Errors
/// Why it must not serve.
pub fn run(
    runtime: &Arc<Runtime>,
    component: &[u8],
    wanted: &dyn Fn() -> bool,
) -> Result<Passed, Failed> {
    attempt(runtime, || Sandbox::new(runtime, component, wanted))
}

/// Tries a guest that has passed with other settings.
///
/// # Errors
/// Why it must not serve with these.
pub fn again(runtime: &Arc<Runtime>, sandbox: &Sandbox) -> Result<Passed, Failed> {
    attempt(runtime, || sandbox.with(runtime))
}

fn attempt(
    runtime: &Runtime,
    sandbox: impl FnOnce() -> Result<Sandbox, RejectedGuest>,
) -> Result<Passed, Failed> {
    panic::catch_unwind(AssertUnwindSafe(|| pass(runtime, sandbox))).unwrap_or(Err(Failed::Panic))
}

fn pass(
    runtime: &Runtime,
    sandbox: impl FnOnce() -> Result<Sandbox, RejectedGuest>,
) -> Result<Passed, Failed> {
    let started = Instant::now();
    let sandbox = sandbox()?;
    let compile_time = started.elapsed();

    let started = Instant::now();
    let mut session = Session::start(&sandbox, Client::NOBODY, runtime.scratch())?;
    let instantiate_time = started.elapsed();
    let greeting = session.greeting()?;
    let memory_bytes = session.memory_bytes();
    drop(session);
    if runtime.stores.is_empty() && sandbox.wants_stores() {
        tracing::warn!(
            service = runtime.service(),
            "the guest asks for stores and has none: grant it one with --store NAME=URL, or each is \
             `no-such-store` to it"
        );
    }
    if runtime.topics.is_none() && sandbox.wants_topics() {
        tracing::warn!(
            service = runtime.service(),
            "the guest asks for topics and has none: grant it some with --topics memory:, or all of it is \
             `access-denied` to it"
        );
    }
    let limits = &runtime.limits;
    let room_bytes = (limits.guest.memory_bytes as u64).saturating_sub(memory_bytes);
    if room_bytes < limits.wire.line_bytes as u64 {
        tracing::warn!(
            service = runtime.service(),
            "a line of {} bytes (--max-line) may not fit into the guest: it holds {memory_bytes} \
             bytes, and may hold {} (--guest-memory)",
            limits.wire.line_bytes,
            limits.guest.memory_bytes,
        );
    }
    Ok(Passed {
        sandbox,
        compile_time,
        instantiate_time,
        memory_bytes,
        greeting,
    })
}

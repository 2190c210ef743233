//! What a guest may do besides answering: the authority of an instance, and its bounds.
//!
//! WASI 0.2 is linked whole, so that guests of every language instantiate, and granted sparely:
//! clocks, random numbers, the variables that `--env` names, and output that becomes log lines.
//! There are no files, no sockets, no names, no arguments, and standard input is at its end.

use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::Result;
use wasmtime::component::{HasData, HasSelf, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::io::poll as pollables;
use wasmtime_wasi::p2::bindings::sync::io::poll;
use wasmtime_wasi::runtime::in_tokio;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::limits;
use crate::limits::guest::TICK;
use crate::process::waiting;
use crate::sandbox::bindings::LineServer;
use crate::sandbox::bindings::airlock::line::connection;
use crate::sandbox::guest_log::{GuestLog, LogRate};
use crate::sandbox::memory::Memory;
use crate::sandbox::ticker::Ticks;
use crate::store::bucket::Buckets;
use crate::talk::client::Client;
use crate::talk::mailbox::Mailbox;
use crate::topics::member::Member;

/// The native side of one instance.
pub(crate) struct State {
    client: Client,
    environment: Arc<[(String, String)]>,
    /// Made when the guest first asks WASI for something; many never do.
    wasi: Option<WasiCtx>,
    stderr: Option<GuestLog>,
    /// What may be logged of this and all other instances.
    log: Arc<LogRate>,
    pub(super) table: ResourceTable,
    pub(super) stores: Buckets,
    /// How long one operation of a store may take.
    pub(super) store_time: Duration,
    /// Those of the call in progress.
    pub(super) operations: u32,
    pub(super) topics: Member,
    pub(crate) memory: Memory,
    ticks: Ticks,
    /// The tick at which the call in progress has to end.
    deadline: u64,
}

/// A guest slept, waited for something that does not come, or called the host, until its call's time
/// was over. Time that it computes for is checked by Wasmtime instead, and ends in a trap.
#[derive(Debug, thiserror::Error)]
#[error("the call's time is over")]
pub(crate) struct CallTimedOut;

impl State {
    /// Of an instance for `client` that has this environment, memory, clock, share of the log, stores
    /// with the time for an operation, and topics.
    pub(super) fn new(
        client: Client,
        environment: Arc<[(String, String)]>,
        memory: Memory,
        ticks: Ticks,
        log: Arc<LogRate>,
        (stores, store_time): (Buckets, Duration),
        topics: Member,
    ) -> State {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::guest::GUEST_RESOURCES);
        State {
            client,
            environment,
            wasi: None,
            stderr: None,
            log,
            table,
            stores,
            store_time,
            operations: 0,
            topics,
            memory,
            ticks,
            deadline: 0,
        }
    }

    /// Starts the clock of one call.
    pub(crate) fn start_call(&mut self, ticks: u64) {
        self.deadline = self.ticks.now().saturating_add(ticks);
        self.operations = 0;
        self.topics.start_call();
    }

    /// Time since the server started, in whole ticks.
    pub(crate) fn clock(&self) -> Duration {
        time(self.ticks.now())
    }

    /// Whether the call's time is over.
    pub(crate) fn is_over(&self) -> bool {
        self.ticks.now() >= self.deadline
    }

    /// Itself, for a function of the host; every one begins here. When the call's time is over, it
    /// unwinds to [`caught`] instead: Wasmtime looks at its clock where a function of the guest or a
    /// loop begins, so calls of the host one after the other would go on. There is no other way to
    /// fail here, and Wasmtime carries an unwinding out of the guest. (A call hook could fail, and
    /// costs each line 7 % more instructions.)
    pub(super) fn in_time(&mut self) -> &mut State {
        if self.is_over() {
            panic::resume_unwind(Box::new(CallTimedOut));
        }
        self
    }

    /// Where what others publish waits for it, once it has subscribed to something.
    pub(crate) fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.topics.mailbox()
    }

    /// What the guest wrote last to its standard error, if that may still be logged.
    pub(crate) fn last_words(&self) -> String {
        let stderr = self.stderr.as_ref();
        stderr.map(GuestLog::last_words).unwrap_or_default()
    }

    pub(super) fn time_left(&self) -> Duration {
        time(self.deadline.saturating_sub(self.ticks.now()))
    }
}

/// Runs a call, and takes what [`State::in_time`] throws for the error that it is.
pub(crate) fn caught<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    // Whatever ends by unwinding is not used again.
    panic::catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|thrown| {
        match thrown.downcast::<CallTimedOut>() {
            Ok(timed_out) => Err((*timed_out).into()),
            Err(bug) => panic::resume_unwind(bug),
        }
    })
}

fn time(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.saturating_mul(TICK.as_nanos() as u64))
}

/// Links all that a guest may import: the world in `wit/`, and everything of WASI 0.2, with waiting
/// replaced by waiting for a bounded time.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    poll::add_to_linker::<State, HasBoundedPoll>(linker, |state| {
        let state = state.in_time();
        BoundedPoll {
            time_left: state.time_left(),
            table: &mut state.table,
        }
    })?;
    linker.allow_shadowing(false);
    LineServer::add_to_linker::<State, HasSelf<State>>(linker, State::in_time)?;
    Ok(())
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let state = self.in_time();
        let ctx = state.wasi.get_or_insert_with(|| {
            let log = |stream| GuestLog::new(state.client.id, stream, &state.log);
            let stderr = state.stderr.insert(log("stderr"));
            WasiCtx::builder()
                .envs(&state.environment)
                .stdout(log("stdout"))
                .stderr(stderr.clone())
                // Every address would be denied, but a socket that nobody uses is a descriptor.
                .allow_tcp(false)
                .allow_udp(false)
                // The host fills them in one go, which no clock of ours interrupts.
                .max_random_size(limits::guest::RANDOM_BYTES)
                .build()
        });
        WasiCtxView {
            ctx,
            table: &mut state.table,
        }
    }
}

impl connection::Host for State {
    fn id(&mut self) -> u64 {
        self.client.id
    }

    fn peer_address(&mut self) -> String {
        self.client.peer.to_string()
    }

    fn local_address(&mut self) -> String {
        self.client.local.to_string()
    }

    fn is_encrypted(&mut self) -> bool {
        self.client.is_encrypted
    }

    fn peer_identity(&mut self) -> Option<connection::Identity> {
        let identity = self.client.identity.as_ref()?;
        Some(connection::Identity {
            subject: identity.subject.clone(),
            dns_names: identity.dns_names.clone(),
        })
    }
}

/// `wasi:io/poll`, where every sleep of a guest comes to: Wasmtime's epochs do not interrupt a
/// thread that is blocked in the host.
struct BoundedPoll<'a> {
    table: &'a mut ResourceTable,
    time_left: Duration,
}

struct HasBoundedPoll;

impl HasData for HasBoundedPoll {
    type Data<'a> = BoundedPoll<'a>;
}

impl poll::Host for BoundedPoll<'_> {
    fn poll(&mut self, list: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        within(self.time_left, pollables::Host::poll(self.table, list))
    }
}

impl poll::HostPollable for BoundedPoll<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> Result<bool> {
        within(
            self.time_left,
            pollables::HostPollable::ready(self.table, pollable),
        )
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        within(
            self.time_left,
            pollables::HostPollable::block(self.table, pollable),
        )
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        pollables::HostPollable::drop(self.table, pollable)
    }
}

fn within<T>(time: Duration, wait: impl Future<Output = Result<T>>) -> Result<T> {
    waiting::begins();
    in_tokio(async { tokio::time::timeout(time, wait).await })
        .unwrap_or_else(|_| Err(CallTimedOut.into()))
}

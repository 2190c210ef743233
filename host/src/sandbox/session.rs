//! One connection's own instance of the guest.
//!
//! Messages go in, outcomes come out. Every call has a deadline. After the first error the instance
//! is in no known state: drop the session.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{FrameInfo, Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::limits::guest::LOG_LINE_BYTES;
use crate::limits::guest::{self, Guest};
use crate::logging::printable;
use crate::process::room::MemoryClaim;
use crate::sandbox::bindings::LineServer;
use crate::sandbox::bindings::batched::Batch;
use crate::sandbox::bindings::exports::airlock::line::handler;
use crate::sandbox::bindings::topical::Topics;
use crate::sandbox::bindings::topical::exports::airlock::line::subscriber;
use crate::sandbox::linking::Sandbox;
use crate::sandbox::machine::ticks;
use crate::sandbox::memory::Refused;
use crate::sandbox::runtime::Scratch;
use crate::sandbox::wasi::{CallTimedOut, State, caught};
use crate::store::bucket::Buckets;
use crate::talk::client::Client;
use crate::talk::handler::{Answers, Handler, Outcome, Pushed};
use crate::talk::mailbox::{Mail, Mailbox, Message, Recipient};
use crate::topics::exchange::Exchange;

/// A live instance, and the clock and the limits around it.
pub struct Session {
    store: Store<State>,
    guest: LineServer,
    /// For many lines at once, where the guest has that.
    batch: Option<Batch>,
    /// For what others publish, where it has that.
    subscriber: Option<Topics>,
    call_ticks: u64,
    limits: Guest,
}

/// A guest has failed. The client reads `error: the guest failed`; the log says this.
#[derive(Debug, thiserror::Error)]
#[error("{cause}{}{last_words}", if last_words.is_empty() { "" } else { "; it wrote last: " })]
pub struct GuestError {
    /// How.
    pub cause: Cause,
    /// The last lines that the instance wrote to its standard error, if any: printable, on one line.
    pub last_words: String,
}

/// How a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The call overran its time, awake or asleep, or returned late.
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
    /// What it handed over at once was more than is received.
    #[error("it handed over more than {limit_bytes} bytes at once (twice --max-reply)")]
    TooMuchData {
        /// What is received.
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
    /// It was refused memory, and failed.
    #[error("{0}")]
    Memory(Refused),
    /// The shim failed, not the guest.
    #[error("the shim panicked; the log has the place")]
    Panic,
    /// Everything else that ends an instance: a trap, or a value that is none of its type.
    #[error("{0}")]
    Trap(String),
}

impl From<Cause> for GuestError {
    fn from(cause: Cause) -> GuestError {
        GuestError {
            cause,
            last_words: String::new(),
        }
    }
}

impl Session {
    /// Makes a fresh instance for a trial, with nothing that is live.
    ///
    /// # Errors
    /// The guest failed while it was initialised.
    pub fn start(
        sandbox: &Sandbox,
        client: Client,
        scratch: Scratch,
    ) -> Result<Session, GuestError> {
        let memory = sandbox.runtime.room.no_memory();
        Session::begin(sandbox, client, memory, scratch.stores, scratch.topics)
    }

    /// One that serves, with memory that has been taken for it.
    pub(crate) fn start_with(
        sandbox: &Sandbox,
        client: Client,
        memory: MemoryClaim,
    ) -> Result<Session, GuestError> {
        let stores = sandbox.runtime.stores.clone();
        let topics = sandbox.runtime.topics.clone();
        Session::begin(sandbox, client, memory, stores, topics)
    }

    fn begin(
        sandbox: &Sandbox,
        client: Client,
        memory: MemoryClaim,
        stores: Buckets,
        topics: Option<Arc<Exchange>>,
    ) -> Result<Session, GuestError> {
        let limits = sandbox.runtime.limits.guest;
        let has_stores = !stores.is_empty();
        let state = sandbox.state(client, memory, stores, topics);
        let mut store = Store::new(&sandbox.machine.engine, state);
        store.limiter(|state| &mut state.memory);
        store.set_max_component_handles(guest::GUEST_HANDLES);
        store.set_hostcall_fuel(most_bytes(&limits, has_stores));
        let claimed = store.data_mut().memory.claim(sandbox.instance_bytes);
        claimed.map_err(Cause::Memory)?;
        let call_ticks = ticks(limits.call_time);
        let (guest, batch, subscriber) = call(&mut store, call_ticks, &limits, |store| {
            sandbox.instantiate(store)
        })?;
        Ok(Session {
            store,
            guest,
            batch,
            subscriber,
            call_ticks,
            limits,
        })
    }

    /// Bytes that the instance takes: its linear memories, its tables, and itself.
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().memory.held_bytes
    }

    /// Has the guest hear messages, and that others were missed.
    fn tell(
        &mut self,
        messages: &[Arc<Message>],
        missed: bool,
    ) -> Result<Pushed<'static>, GuestError> {
        // Whoever has none cannot subscribe, but for its client.
        let Some(subscriber) = &self.subscriber else {
            return Ok(Pushed::default());
        };
        let subscriber = subscriber.airlock_line_subscriber();
        let messages = messages.iter().map(|message| subscriber::Message {
            topic: &message.topic,
            body: &message.body,
        });
        let messages: Vec<_> = messages.collect();
        let pushed = call(&mut self.store, self.call_ticks, &self.limits, |store| {
            subscriber.call_on_messages(store, &messages, missed)
        })?;
        for line in &pushed.lines {
            self.check_reply(Some(line))?;
        }
        Ok(Pushed {
            lines: pushed.lines.into_iter().map(Cow::Owned).collect(),
            close: pushed.close,
        })
    }

    fn check_reply(&self, text: Option<&str>) -> Result<(), GuestError> {
        match text {
            Some(text) if text.len() > self.limits.reply_bytes => {
                Err(self.reply_too_long(text.len(), self.limits.reply_bytes))
            }
            _ => Ok(()),
        }
    }

    fn reply_too_long(&self, bytes: usize, limit_bytes: usize) -> GuestError {
        self.failed(Cause::ReplyTooLong { bytes, limit_bytes })
    }

    fn failed(&self, cause: Cause) -> GuestError {
        failed(cause, &self.store)
    }
}

impl Handler for Session {
    type Error = GuestError;

    fn greeting(&mut self) -> Result<Option<String>, GuestError> {
        let handler = self.guest.airlock_line_handler();
        let text = call(&mut self.store, self.call_ticks, &self.limits, |store| {
            handler.call_greeting(store)
        })?;
        self.check_reply(text.as_deref())?;
        Ok(text)
    }

    fn handle_line(&mut self, line: &str) -> Result<Outcome, GuestError> {
        let handler = self.guest.airlock_line_handler();
        let outcome = call(&mut self.store, self.call_ticks, &self.limits, |store| {
            handler.call_handle_line(store, line)
        })?;
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
        // So that one reply more than enough stays below what may be received from a guest at all.
        let enough = enough.min(self.limits.reply_bytes);
        let batch = batch.airlock_line_batch();
        let answers = call(&mut self.store, self.call_ticks, &self.limits, |store| {
            batch.call_handle_lines(store, lines, enough as u32)
        })?;
        let replies = &answers.replies;
        let most_bytes = self.limits.reply_bytes + enough;
        if replies.len() > most_bytes {
            return Err(self.reply_too_long(replies.len(), most_bytes));
        }
        let handled = answers.handled as usize;
        let count = memchr::memchr_iter(b'\n', lines.as_bytes()).count();
        if handled == 0 || handled > count {
            return Err(self.failed(Cause::Count { handled, count }));
        }
        if !replies.is_empty() && !replies.ends_with('\n') {
            return Err(self.failed(Cause::Unended));
        }
        // Few enough bytes for one reply need no look at each. (One of several lines cannot be told
        // from several, and each of its lines passes.)
        if replies.len() > self.limits.reply_bytes {
            for reply in replies.split_terminator('\n') {
                self.check_reply(Some(reply))?;
            }
        }
        Ok(Some(Answers {
            replies: answers.replies,
            handled,
            close: answers.close,
        }))
    }

    fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        self.store.data().mailbox()
    }

    fn hear<'m>(&mut self, mail: &'m Mail) -> Result<Pushed<'m>, GuestError> {
        if mail.recipient == Recipient::Guest {
            return self.tell(&mail.messages, mail.missed);
        }
        let lines = mail.messages.iter();
        let lines = lines.map(|message| String::from_utf8_lossy(&message.body));
        let fits = |line: &Cow<'_, str>| line.len() <= self.limits.reply_bytes;
        let lines: Vec<_> = lines.filter(fits).collect();
        if !mail.missed && lines.len() == mail.messages.len() {
            return Ok(Pushed {
                lines,
                close: false,
            });
        }
        let mut pushed = self.tell(&[], true)?;
        if !pushed.close {
            pushed.lines.extend(lines);
        }
        Ok(pushed)
    }

    /// Time since the server started, in whole ticks.
    fn clock(&self) -> Duration {
        self.store.data().clock()
    }
}

/// What the host allocates at most to receive a value, before its length is looked at. What a guest
/// prints is received the same way.
fn most_bytes(limits: &Guest, has_stores: bool) -> usize {
    let two_replies = limits.reply_bytes.saturating_mul(2);
    two_replies.max(match has_stores {
        true => guest::LEAST_STORE_TRANSFER_BYTES,
        false => guest::LEAST_TRANSFER_BYTES,
    })
}

/// One call, which has failed too when it returns late: whatever the guest has found that nothing
/// interrupts, it gains nothing by it.
fn call<T>(
    store: &mut Store<State>,
    ticks: u64,
    limits: &Guest,
    call: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> Result<T, GuestError> {
    // Both clocks: Wasmtime's, which stops wasm code, and the one that bounds time in the host.
    store.set_epoch_deadline(ticks);
    store.data_mut().start_call(ticks);
    match caught(|| call(store)) {
        Ok(value) if !store.data().is_over() => Ok(value),
        Ok(_) => Err(call_failed(&CallTimedOut.into(), store, limits)),
        Err(error) => Err(call_failed(&error, store, limits)),
    }
}

#[cold]
fn call_failed(error: &wasmtime::Error, store: &Store<State>, limits: &Guest) -> GuestError {
    let mut failed = failed(cause(error, store, limits), store);
    if let Cause::Trap(text) = &mut failed.cause
        && failed.last_words.is_empty()
    {
        text.push_str(&called_in(error));
    }
    failed
}

#[cold]
fn failed(cause: Cause, store: &Store<State>) -> GuestError {
    GuestError {
        cause,
        last_words: store.data().last_words(),
    }
}

fn cause(error: &wasmtime::Error, store: &Store<State>, limits: &Guest) -> Cause {
    /// How Wasmtime says that [`most_bytes`] did not do; it has no type for it.
    const TOO_MUCH_DATA: &str = "too much data is being copied between the host and the guest";

    let timed_out = error.downcast_ref::<Trap>() == Some(&Trap::Interrupt)
        || error.downcast_ref::<CallTimedOut>().is_some();
    if timed_out {
        return Cause::CallTime {
            limit: limits.call_time,
        };
    }
    if let Some(refused) = store.data().memory.refused {
        return Cause::Memory(refused);
    }
    if let Some(&I32Exit(status)) = error.downcast_ref() {
        return Cause::Exit(status);
    }
    // The chain ends with the cause; before it stands a backtrace of many lines.
    tracing::debug!("the guest failed: {}", printable(&format!("{error:?}")));
    let mut cause = error.root_cause().to_string();
    if cause.starts_with(TOO_MUCH_DATA) {
        return Cause::TooMuchData {
            limit_bytes: most_bytes(limits, !store.data().stores.is_empty()),
        };
    }
    cause.truncate(cause.floor_char_boundary(LOG_LINE_BYTES));
    Cause::Trap(printable(&cause))
}

/// In which functions it was, if they have names, the last called first; for a guest that has not said
/// itself what is wrong.
fn called_in(error: &wasmtime::Error) -> String {
    const FRAMES: usize = 3;
    let frames = error.downcast_ref::<WasmBacktrace>();
    let frames = frames.map_or(&[][..], WasmBacktrace::frames);
    let names = frames.iter().filter_map(FrameInfo::func_name).take(FRAMES);
    let names: Vec<_> = names.map(readable).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(", in {}", names.join(", called by "))
}

/// The beginning of a function's name; Rust's as it is written in the source.
fn readable(name: &str) -> String {
    /// What has room for more as long as it is short: a name of a few bytes may stand for megabytes.
    struct Start(String);

    impl fmt::Write for Start {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            if self.0.len() >= NAME_BYTES {
                return Err(fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }

    const NAME_BYTES: usize = 100;
    let name = &name[..name.floor_char_boundary(LOG_LINE_BYTES)];
    let mut start = Start(String::new());
    // That it has no room for more is no error.
    let _ = write!(start, "{:#}", rustc_demangle::demangle(name));
    start.0.truncate(start.0.floor_char_boundary(NAME_BYTES));
    printable(&start.0)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::thread;

    use wasmtime::component::Component;
    use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
    use wit_parser::abi::{AbiVariant, WasmType};
    use wit_parser::{Handle, Resolve, Type, TypeDefKind, WorldId, WorldItem};

    use super::*;
    use crate::limits::Limits;
    use crate::limits::process::Process;
    use crate::sandbox::compiler::Compiler;
    use crate::sandbox::host::Host;
    use crate::sandbox::runtime::{Grants, Runtime};
    use crate::store::bucket::Bucket;
    use crate::store::memory::Memory;

    #[test]
    fn a_conversation_can_move_to_another_thread_between_two_turns() {
        fn is_send<T: Send + 'static>() {}
        is_send::<crate::talk::conversation::Conversation<Session>>();
    }

    /// Where the WIT of the Wasmtime that is linked is kept.
    fn wasi() -> PathBuf {
        // Of one platform: the packages of the others need not be on this machine.
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let cargo = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--locked"])
            .args(["--filter-platform", &platform])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        let metadata: serde_json::Value =
            serde_json::from_slice(&cargo.stdout).expect("cargo describes the workspace");
        let packages = metadata["packages"].as_array().expect("packages");
        let package = packages
            .iter()
            .find(|package| package["name"] == "wasmtime-wasi")
            .expect("wasmtime-wasi");
        let manifest = package["manifest_path"].as_str().expect("a path");
        Path::new(manifest).with_file_name("src/p2/wit")
    }

    /// What the component below asks for in its greeting, and the handle that it gets for each: only
    /// with one can functions of these resources be called.
    const HANDLES: [(&str, &str, &str); 7] = [
        ("output-stream", "wasi:cli/stdout", "get-stdout"),
        ("input-stream", "wasi:cli/stdin", "get-stdin"),
        (
            "pollable",
            "wasi:clocks/monotonic-clock",
            "subscribe-duration",
        ),
        (
            "network",
            "wasi:sockets/instance-network",
            "instance-network",
        ),
        ("bucket", "wasi:keyvalue/store@0.2.0-draft", "open"),
        ("bucket", "wasi:keyvalue/store@0.2.0-draft2", "open"),
        (
            "cas",
            "wasi:keyvalue/atomics@0.2.0-draft2",
            "[static]cas.new",
        ),
    ];

    /// Whether a handle is one of a resource that is known to an interface: each version of one has its
    /// own.
    fn is_of(handle: &(&str, &str, &str), resource: Option<&str>, interface: &str) -> bool {
        let version = handle.1.split_once('@').map(|(_, version)| version);
        let own = interface.split_once('@').map(|(_, version)| version);
        Some(handle.0) == resource && (version.is_none() || version == own)
    }

    /// What a function is called with: the handle that it needs, and zeros.
    fn values(function: &Function) -> String {
        let resource = function.resource.as_deref();
        let mut handles = HANDLES.iter();
        let handle = handles.position(|handle| is_of(handle, resource, &function.interface));
        let mut values: Vec<_> = function
            .params
            .iter()
            .map(|kind| format!("({kind}.const 0)"))
            .collect();
        if let Some(handle) = handle {
            values[0] = format!("(i32.const {})", handle + 1);
        }
        values.join(" ")
    }

    /// A function of the host: its name, its parameters as core WebAssembly has them, the resource
    /// that it needs a handle of, and its result.
    struct Function {
        interface: String,
        name: String,
        params: Vec<&'static str>,
        resource: Option<String>,
        result: &'static str,
    }

    /// All functions that `world` imports, with those that drop a resource.
    fn functions(resolve: &Resolve, world: WorldId) -> Vec<Function> {
        let kind = |kind: &WasmType| match kind {
            WasmType::I64 | WasmType::PointerOrI64 => "i64",
            WasmType::F32 => "f32",
            WasmType::F64 => "f64",
            WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32",
        };
        let mut functions = Vec::new();
        for (key, item) in &resolve.worlds[world].imports {
            let WorldItem::Interface { id, .. } = item else {
                continue;
            };
            let interface = resolve.name_world_key(key);
            for (name, function) in &resolve.interfaces[*id].functions {
                let signature = resolve.wasm_signature(AbiVariant::GuestImport, function);
                // It is the first parameter, where there is one.
                let resource = match function.params.first().map(|param| param.ty) {
                    Some(Type::Id(first)) => match resolve.types[first].kind {
                        TypeDefKind::Handle(Handle::Borrow(id) | Handle::Own(id)) => {
                            resolve.types[id].name.clone()
                        }
                        _ => None,
                    },
                    _ => None,
                };
                functions.push(Function {
                    interface: interface.clone(),
                    name: name.clone(),
                    params: signature.params.iter().map(kind).collect(),
                    resource,
                    result: signature.results.first().map_or("", kind),
                });
            }
            for (name, id) in &resolve.interfaces[*id].types {
                if matches!(resolve.types[*id].kind, TypeDefKind::Resource) {
                    functions.push(Function {
                        interface: interface.clone(),
                        name: format!("[resource-drop]{name}"),
                        params: vec!["i32"],
                        resource: Some(name.clone()),
                        result: "",
                    });
                }
            }
        }
        functions
    }

    /// A component that imports every function there is, and calls the one whose number is the length
    /// of the line, with a handle where it needs one, and zeros; and them all.
    fn asking_for_everything() -> (Vec<u8>, Vec<Function>) {
        let mut resolve = Resolve::default();
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
        resolve.push_path(ours).expect("our WIT");
        let draft = Path::new(env!("CARGO_MANIFEST_DIR")).join("wit/keyvalue-0.2.0-draft");
        resolve
            .push_path(draft)
            .expect("the WIT of an older version");
        resolve.push_path(wasi()).expect("the WIT of WASI");
        let text = "package test:all; world all {
            include airlock:line/line-server@0.1.0; include wasmtime:wasi/bindings;
            include wasi:keyvalue/imports@0.2.0-draft; include wasi:keyvalue/imports@0.2.0-draft2; }";
        let package = resolve.push_str("all.wit", text).expect("both");
        let world = resolve.select_world(&[package], None).expect("one world");
        let functions = functions(&resolve, world);
        let (mut imports, mut calls, mut handles) = (String::new(), String::new(), String::new());
        for (number, function) in functions.iter().enumerate() {
            let Function {
                interface, name, ..
            } = function;
            let (result, drop) = match function.result {
                "" => (String::new(), ""),
                kind => (format!("(result {kind})"), "drop"),
            };
            let (kinds, values) = (function.params.join(" "), values(function));
            imports += &format!(
                r#"(import "{interface}" "{name}" (func $f{number} (param {kinds}) {result}))"#
            );
            calls += &format!(
                "(if (i32.eq (local.get 1) (i32.const {number}))
                    (then (call $f{number} {values}) {drop}))"
            );
        }
        for (_, interface, name) in HANDLES {
            let number = functions
                .iter()
                .position(|function| {
                    let rest = function.interface.strip_prefix(interface);
                    let is_it = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'));
                    is_it && function.name == name
                })
                .expect("a function that gives a handle");
            let function = &functions[number];
            let drop = if function.result.is_empty() {
                ""
            } else {
                "drop"
            };
            handles += &format!("(call $f{number} {}) {drop} ", values(function));
        }
        let mut module = wat::parse_str(format!(
            r#"(module
                {imports}
                (memory (export "memory") 4)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
                (func (export "airlock:line/handler@0.1.0#greeting") (result i32)
                    {handles} i32.const 0)
                (func (export "airlock:line/handler@0.1.0#handle-line")
                    (param i32 i32) (result i32) {calls} i32.const 0))"#
        ))
        .expect("a module");
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
            .expect("a component's module");
        let mut encoder = ComponentEncoder::default();
        encoder.module(&module).expect("a module for a component");
        (encoder.encode().expect("a component"), functions)
    }

    const LIMITS: Limits = Limits::new(1);

    fn sandbox(component: &[u8]) -> Sandbox {
        // What compiles is another program, which this is not.
        let compiler = Compiler::new("", true);
        let host = Host::new(Process::new(1, 1 << 30), compiler).expect("a machine");
        let memory = Arc::new(Memory::new(1 << 20));
        let grants = Grants {
            stores: Buckets::new([("default".to_owned(), Bucket::new(memory, None))]),
            ..Grants::default()
        };
        let runtime = Runtime::new(&host, None, grants, LIMITS);
        let machine = host.machines.get(false);
        let component = Component::from_binary(&machine.engine, component).expect("a component");
        Sandbox::link(&runtime, machine, &component, 0).expect("a guest")
    }

    /// Wasmtime's own clock stands still here: it is looked at where a function of the guest begins,
    /// and none need begin between two calls of the host.
    #[test]
    fn every_function_of_the_host_ends_a_call_whose_time_is_over() {
        let (component, functions) = asking_for_everything();
        let sandbox = sandbox(&component);
        let mut reached = 0;
        for (number, Function { name, .. }) in functions.iter().enumerate() {
            let call = |ticks| {
                let mut session =
                    Session::start(&sandbox, Client::NOBODY, sandbox.runtime.scratch())
                        .expect("an instance");
                session.greeting().expect("handles");
                let Session { store, guest, .. } = &mut session;
                store.set_epoch_deadline(1 << 32);
                store.data_mut().start_call(ticks);
                let handler = guest.airlock_line_handler();
                let line = "x".repeat(number);
                caught(|| handler.call_handle_line(store, &line))
            };
            let timed_out = |result: &wasmtime::Result<_>| {
                let error = result.as_ref().err();
                error.is_some_and(|error| error.downcast_ref::<CallTimedOut>().is_some())
            };
            let (over, in_time) = (call(0), call(1000));
            // A resource that nobody gets has functions that nobody can call.
            if over.as_ref().is_err_and(|error| {
                let cause = error.root_cause().to_string();
                cause.starts_with("unknown handle index")
            }) {
                continue;
            }
            reached += 1;
            assert!(timed_out(&over), "{name}: {over:?}");
            assert!(!timed_out(&in_time), "{name}: {in_time:?}");
        }
        assert!((40..functions.len()).contains(&reached), "{reached}");
    }

    #[test]
    fn a_name_is_readable_and_no_longer_than_fits() {
        let mangled = "_ZN4core9panicking9panic_fmt17h0123456789abcdefE";
        assert_eq!(readable(mangled), "core::panicking::panic_fmt");
        assert_eq!(readable("_RNvC7hostile7recurse"), "hostile::recurse");
        assert_eq!(readable("a\nb"), "a\\nb");
        assert_eq!(readable(&"x".repeat(1 << 20)), "x".repeat(100));
        let tuples = format!("_RINvC1a1fT{}EE", "TuuE".repeat(200));
        assert_eq!(readable(&tuples).len(), 100, "{}", readable(&tuples));
    }

    #[test]
    fn a_call_that_returns_late_has_failed_whatever_it_returns() {
        let sandbox = sandbox(crate::GREETER);
        let mut session = Session::start(&sandbox, Client::NOBODY, sandbox.runtime.scratch())
            .expect("an instance");
        let in_time = call(&mut session.store, 1000, &LIMITS.guest, |_| Ok("a reply"));
        assert_eq!(in_time.expect("a reply"), "a reply");
        let late = call(&mut session.store, 1, &LIMITS.guest, |store| {
            while !store.data().is_over() {
                thread::yield_now();
            }
            Ok("a reply")
        });
        let error = late.expect_err("no reply");
        assert!(matches!(error.cause, Cause::CallTime { .. }), "{error}");
    }
}

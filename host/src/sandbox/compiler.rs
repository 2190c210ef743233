//! Compiling a guest where it can do no harm: in a process of its own.
//!
//! What a component does to a compiler is as hostile as what it does later: a few KiB can ask for
//! hours, for all of the machine's memory, or for more stack than there is. So a child process (this
//! program, by a hidden command) gets the file on its standard input and answers with the compiled
//! form; and another one loads that, before this process does. They are bounded in memory, time and
//! authority ([`child`]); when one fails, it fails alone.
//!
//! The compiled form is native code. It is loaded from the pipe to that child only, and from
//! Wasmtime's cache in the directory of the server's user. The cache is read and written by this
//! process alone: the child has no files. Its entries are named by the digest of the component and
//! of the compiler's settings, which this process computes; so a child that a guest's bytes had
//! taken over could lie about that guest, whose author it works for anyway, and about no other.

pub mod child;
mod compiled;
mod confinement;

use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGABRT, SIGXCPU};
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime_internal_cache::{Cache, CacheConfig, ModuleCacheEntry};

use crate::budget::{Budget, Claim};
use crate::limits::guest::{
    CACHED_BYTES, COMPILE_THREADS, COMPILED_BYTES, GUEST_IMAGE_BYTES, Guest, LOAD_MEMORY_BYTES,
};
use crate::logging::printable;
use crate::sandbox::compiler::compiled::Compiled;
use crate::sandbox::machine::{self, Machine};
use crate::sandbox::rejection::{RejectedGuest, one_line};

/// How often a compilation is asked whether its result is still wanted.
const LOOK_TIME: Duration = Duration::from_millis(20);

/// A compilation that takes longer is spoken of.
const SILENT_TIME: Duration = Duration::from_secs(1);

/// What a child may say about a failure.
const MESSAGE_BYTES: usize = 4 * 1024;

/// Compiles guests in processes of their own.
pub struct Compiler {
    /// The program with the hidden command.
    program: PathBuf,
    /// What has been compiled before.
    cache: Option<Cache>,
}

impl Compiler {
    /// Whose children run `program`, which is an `airlock`. What they have compiled is kept in
    /// Wasmtime's cache, in the user's cache directory; where there is none, or when `uncached`,
    /// nothing is kept.
    pub fn new(program: impl Into<PathBuf>, uncached: bool) -> Compiler {
        let cache = || {
            Cache::new(CacheConfig::new())
                .inspect_err(|error| tracing::debug!("no cache of compiled guests: {error:#}"))
                .ok()
        };
        Compiler {
            program: program.into(),
            cache: if uncached { None } else { cache() },
        }
    }

    /// Whose children run the program that this is, also when its file has been replaced since.
    pub fn this_program(uncached: bool) -> Compiler {
        Compiler::new("/proc/self/exe", uncached)
    }

    /// A component that is ready to be linked, compiled now or earlier; what an instance takes; and
    /// the machine to run it on, of those that `machine` gives. Compiling waits for its part of the
    /// `memory` of all that compile. It is given up when it is no longer `wanted`, which is asked all
    /// the time.
    pub(super) fn compile(
        &self,
        machine: &dyn Fn(bool) -> Arc<Machine>,
        memory: &Arc<Budget>,
        limits: &Guest,
        component: &[u8],
        wanted: &dyn Fn() -> bool,
    ) -> Result<Loaded, RejectedGuest> {
        let settings = machine(false).settings;
        let compile = || {
            let task = |input: &[u8], memory_bytes, load| {
                let arguments = child::arguments(settings, limits, memory_bytes, load);
                Compilation::run(&self.program, limits, arguments, input, wanted)
            };
            let _memory = wait_for(memory, limits.compile_memory_bytes, wanted)?;
            let output = task(component, limits.compile_memory_bytes, false)?;
            // Before it is done here: what it takes to load it is the file's business too.
            let load_bytes = LOAD_MEMORY_BYTES + 4 * output.len() as u64;
            task(&output, load_bytes, true).map_err(|error| match error {
                RejectedGuest::CompileMemory(_) => RejectedGuest::Load,
                other => other,
            })?;
            let nothing = || RejectedGuest::CompilerDied("it answered nothing".to_owned());
            let compiled = Compiled::read(output).ok_or_else(nothing)?;
            let machine = machine(compiled.images);
            Loaded::new(&machine, &compiled)
                .map_err(|error| why_too_large(&machine, limits, &compiled, &error))
        };
        let key = Key {
            engine: &machine(false).engine,
            component,
            machine,
            compile: &compile,
        };
        ModuleCacheEntry::new("airlock", self.cache.as_ref()).get_data_raw(
            &key,
            |key| (key.compile)(),
            |_, loaded| loaded.to_be_kept(),
            |key, bytes| {
                let compiled = Compiled::read(bytes)?;
                Loaded::new(&(key.machine)(compiled.images), &compiled).ok()
            },
        )
    }
}

/// A compiler's part of the memory that all of them may take together, when there is as much.
fn wait_for(
    memory: &Arc<Budget>,
    bytes: u64,
    wanted: &dyn Fn() -> bool,
) -> Result<Claim, RejectedGuest> {
    let mut claim = Claim::none(memory);
    while !claim.cover(bytes) {
        if !wanted() {
            return Err(RejectedGuest::NotWanted);
        }
        thread::sleep(LOOK_TIME);
    }
    Ok(claim)
}

/// A component in this process.
pub(super) struct Loaded {
    pub(super) component: Component,
    pub(super) machine: Arc<Machine>,
    /// What an instance takes besides its memories and tables.
    pub(super) instance_bytes: u64,
}

impl Loaded {
    fn new(machine: &Arc<Machine>, compiled: &Compiled) -> wasmtime::Result<Loaded> {
        Ok(Loaded {
            component: compiled.load(&machine.engine)?,
            machine: Arc::clone(machine),
            instance_bytes: compiled.instance_bytes,
        })
    }

    /// What the cache keeps: nothing so large that a few of them would fill it.
    fn to_be_kept(&self) -> Option<Vec<u8>> {
        let compiled = Compiled {
            images: self.machine.settings.images,
            instance_bytes: self.instance_bytes,
            code: self.component.serialize().ok()?,
        };
        (compiled.code.len() <= CACHED_BYTES).then(|| compiled.write())
    }
}

/// What an entry of the cache is named by, and what makes it.
struct Key<'a> {
    engine: &'a Engine,
    component: &'a [u8],
    machine: &'a dyn Fn(bool) -> Arc<Machine>,
    compile: &'a dyn Fn() -> Result<Loaded, RejectedGuest>,
}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // What stands before the code follows from this program.
        env!("CARGO_PKG_VERSION").hash(state);
        GUEST_IMAGE_BYTES.hash(state);
        self.engine.precompile_compatibility_hash().hash(state);
        self.component.hash(state);
    }
}

/// A child at work. Dropped, it is ended.
struct Compilation {
    child: Child,
    output: Vec<u8>,
    message: Vec<u8>,
}

impl Compilation {
    /// Gives a child its `input`, and returns its output.
    fn run(
        program: &PathBuf,
        limits: &Guest,
        arguments: Vec<String>,
        input: &[u8],
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, RejectedGuest> {
        let started = Instant::now();
        let mut compilation =
            Compilation::start(program, arguments).map_err(RejectedGuest::NoCompiler)?;
        let deadline = started + limits.compile_time;
        let spoken = started + SILENT_TIME;
        let mut silent = true;
        let bytes = input.len();
        let mut input = Input::new(compilation.child.stdin.take(), input);
        while !compilation.has_answered() {
            let now = Instant::now();
            if !wanted() {
                return Err(RejectedGuest::NotWanted);
            }
            if now >= deadline {
                return Err(RejectedGuest::CompileTime(limits.compile_time));
            }
            if silent && now >= spoken {
                silent = false;
                tracing::info!(bytes, "compiling the guest");
            }
            compilation
                .exchange(&mut input)
                .map_err(RejectedGuest::NoCompiler)?;
            if compilation.output.len() > COMPILED_BYTES {
                return Err(RejectedGuest::CompiledBytes);
            }
        }
        match compilation.ended(deadline) {
            Ok(status) if status.success() => {
                if !silent {
                    tracing::info!(time = ?started.elapsed(), "compiled the guest");
                }
                Ok(std::mem::take(&mut compilation.output))
            }
            Ok(status) => Err(compilation.failure(status, limits)),
            Err(error) => Err(RejectedGuest::NoCompiler(error)),
        }
    }

    fn start(program: &PathBuf, arguments: Vec<String>) -> io::Result<Compilation> {
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            // Each takes addresses for a heap of its own, and a large machine has many cores.
            .env("RAYON_NUM_THREADS", COMPILE_THREADS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(input) = &mut child.stdin {
            rustix::io::ioctl_fionbio(input, true)?;
        }
        Ok(Compilation {
            child,
            output: Vec::new(),
            message: Vec::new(),
        })
    }

    fn has_answered(&self) -> bool {
        self.child.stdout.is_none() && self.child.stderr.is_none()
    }

    /// Gives and takes what can be given and taken now, or within [`LOOK_TIME`].
    fn exchange(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        let Child { stdout, stderr, .. } = &mut self.child;
        let mut waits = Vec::with_capacity(3);
        waits.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        waits.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        waits.extend(
            input
                .pipe
                .as_ref()
                .map(|pipe| PollFd::new(pipe, PollFlags::OUT)),
        );
        let time = Timespec::try_from(LOOK_TIME).ok();
        match poll(&mut waits, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = waits.into_iter().map(|wait| !wait.revents().is_empty());
        let mut next = |there: bool| there && ready.next().unwrap_or(false);
        let (answers, speaks, listens) = (
            next(stdout.is_some()),
            next(stderr.is_some()),
            next(input.pipe.is_some()),
        );
        if answers {
            take(stdout, &mut self.output, usize::MAX)?;
        }
        if speaks {
            take(stderr, &mut self.message, MESSAGE_BYTES)?;
        }
        if listens {
            input.give()?;
        }
        Ok(())
    }

    /// The end of a child that has closed its outputs: at once, or by our hand.
    fn ended(&mut self, deadline: Instant) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Why the child has failed, from its end and its last words.
    fn failure(&self, status: ExitStatus, limits: &Guest) -> RejectedGuest {
        let message = String::from_utf8_lossy(&self.message);
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let out_of_memory = [
            "memory allocation of",
            "Cannot allocate memory",
            "out of memory",
        ];
        let out_of_memory = out_of_memory.iter().any(|words| message.contains(words));
        match (status.code(), status.signal()) {
            // Also what it says of a component may be that it has found no memory for it.
            (Some(child::REFUSED), _) if !message.starts_with("out of memory") => {
                RejectedGuest::Invalid(message)
            }
            _ if out_of_memory => {
                RejectedGuest::CompileMemory(ByteSize(limits.compile_memory_bytes))
            }
            (_, Some(SIGXCPU)) => RejectedGuest::CompileTime(limits.compile_time),
            (_, Some(SIGABRT)) if message.contains("overflowed its stack") => RejectedGuest::Nested,
            _ => RejectedGuest::CompilerDied(printable(&format!("{status}: {message}"))),
        }
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        // It may have ended already, and nothing could be done about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads once into `to`, which keeps `most` bytes, and closes what has ended.
fn take(pipe: &mut Option<impl Read>, to: &mut Vec<u8>, most: usize) -> io::Result<()> {
    let mut room = [0; 64 * 1024];
    let Some(source) = pipe else { return Ok(()) };
    match source.read(&mut room) {
        Ok(0) => *pipe = None,
        Ok(count) => {
            let room = &room[..count.min(most.saturating_sub(to.len()))];
            to.extend_from_slice(room);
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What the child has not been given yet.
struct Input<'a> {
    pipe: Option<ChildStdin>,
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn new(pipe: Option<ChildStdin>, bytes: &'a [u8]) -> Input<'a> {
        Input { pipe, bytes }
    }

    fn give(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        match pipe.write(self.bytes) {
            Ok(count) => self.bytes = &self.bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It has died; how, its end says.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.bytes = &[],
            Err(error) => return Err(error),
        }
        if self.bytes.is_empty() {
            self.pipe = None;
        }
        Ok(())
    }
}

/// Wasmtime refuses a component with too large a memory in words that name none of our options;
/// the sizes can be asked for where there is no pool.
fn why_too_large(
    machine: &Machine,
    limits: &Guest,
    compiled: &Compiled,
    error: &wasmtime::Error,
) -> RejectedGuest {
    Engine::new(&machine::config(machine.settings))
        .and_then(|engine| compiled.load(&engine))
        .ok()
        .and_then(|component| too_large(&component, limits))
        .unwrap_or_else(|| RejectedGuest::Invalid(one_line(error)))
}

/// Why its instances would begin with more memory than they may have, if they would.
pub(super) fn too_large(component: &Component, limits: &Guest) -> Option<RejectedGuest> {
    const PAGE_BYTES: u64 = 64 * 1024;
    let needed_pages = component.resources_required()?.max_initial_memory_size?;
    let needed_bytes = needed_pages.saturating_mul(PAGE_BYTES);
    (needed_bytes > limits.memory_bytes as u64).then_some(RejectedGuest::Memory {
        needed_bytes,
        limit_bytes: limits.memory_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_together_take_no_more_memory_than_there_is() {
        let memory = Budget::new(10);
        let first = wait_for(&memory, 6, &|| true).expect("there is as much");
        let refused = wait_for(&memory, 6, &|| false);
        assert!(matches!(refused, Err(RejectedGuest::NotWanted)));
        thread::scope(|scope| {
            let second = scope.spawn(|| wait_for(&memory, 6, &|| true).is_ok());
            thread::sleep(2 * LOOK_TIME);
            assert!(!second.is_finished());
            drop(first);
            assert!(second.join().expect("no panic"));
        });
    }
}

//! Servers that are loaded, as processes of their own that end with this one.

use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use airlock::cli;
use airlock::serve::scheduling::Scheduling;
use airlock::settings::address::{Address, Scheme};
use airlock::talk::client::Endpoint;
use nix::time::ClockId;
use nix::unistd::Pid;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::cores::{self, Cores};
use crate::door::Door;
use crate::fault::Fault;
use crate::load::Target;
use crate::twin::Twin;

/// A server that can be started again and again.
#[derive(Clone)]
pub struct Subject<'a> {
    /// What to call it.
    pub name: &'static str,
    /// Where it listens; its port, if it has one, is the one that it says.
    pub address: Address,
    /// It takes a free port and prints `listening on ADDR:PORT`.
    pub command: Rc<dyn Fn() -> Command + 'a>,
}

/// A running server. Dropping it ends it.
pub struct Server<'a> {
    child: Child,
    /// Where it listens.
    pub address: Address,
    load: &'a [usize],
    /// What to call it.
    pub name: &'static str,
    /// From its start until it said where it listens.
    pub start_time: Duration,
}

/// How long a server may take until it listens.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// `program`, which is an `airlock-bench`, as a native twin at this door, with these options.
pub fn native<'a>(
    program: &'a Path,
    twin: Twin,
    door: &Door,
    options: &'a [String],
) -> Subject<'a> {
    let (name, argument) = match twin {
        Twin::Plain => ("native twin", "--twin=plain"),
        Twin::Shim => ("shim alone", "--twin=shim"),
        Twin::Epoll => ("epoll twin", "--twin=epoll"),
        Twin::Haproxy => ("HAProxy", "--twin=haproxy"),
    };
    let listen = door.listen("twin");
    let command = move || {
        let mut command = Command::new(program);
        command.args([argument, &listen]).args(options);
        command
    };
    Subject {
        name,
        address: door.address("twin"),
        command: Rc::new(command),
    }
}

/// `program`, which is an `airlock`, as a server with its greeter, at this door, with these threads and options
/// and, for the rest, its default limits: without the variables that would set others.
pub fn airlock<'a>(
    program: &'a Path,
    door: &Door,
    threads: Scheduling,
    options: &'a [String],
) -> Subject<'a> {
    let address = door.address("airlock");
    let mut listen = vec![door.listen("airlock")];
    if address.scheme == Scheme::Unix {
        // Of a path it does not say that it listens there; of this port it does, when it listens at both.
        listen.push("--listen=127.0.0.1:0".to_owned());
    }
    let command = move || {
        let mut command = Command::new(program);
        command.arg("-q").args(&listen);
        command.arg(format!("--threads={threads}")).args(options);
        for variable in cli::variables() {
            command.env_remove(variable);
        }
        command
    };
    Subject {
        name: match threads {
            Scheduling::PerConnection => "Airlock",
            Scheduling::Shared(_) => "Airlock, few threads",
        },
        address,
        command: Rc::new(command),
    }
}

impl Server<'_> {
    /// Starts a server on its core.
    ///
    /// # Errors
    /// It does not start, or does not say where it listens.
    pub fn start<'a>(subject: &Subject, cores: Option<&'a Cores>) -> Result<Server<'a>, Fault> {
        let name = subject.name;
        let mut command = (subject.command)();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        end_with_this_thread(&mut command, cores.map(|cores| cores.server));
        let load = cores.map_or([].as_slice(), |cores| &cores.load);
        let started = Instant::now();
        let child = command.spawn();
        let server = child.and_then(|child| Server::announced(child, load, subject));
        let mut server = server.map_err(|error| Fault::Server(name, error))?;
        server.start_time = started.elapsed();
        Ok(server)
    }

    /// Waits until it says where it listens.
    fn announced<'a>(child: Child, load: &'a [usize], subject: &Subject) -> io::Result<Server<'a>> {
        let mut server = Server {
            child,
            address: subject.address.clone(),
            load,
            name: subject.name,
            start_time: Duration::ZERO,
        };
        let (sender, announcement) = mpsc::channel();
        if let Some(output) = server.child.stdout.take() {
            // It ends with the server's output.
            thread::Builder::new().spawn(move || {
                let mut line = String::new();
                let read = BufReader::new(output).read_line(&mut line);
                // Nobody may be waiting any more.
                let _ = sender.send(read.map(|_| line));
            })?;
        }
        let line = announcement
            .recv_timeout(START_PATIENCE)
            .map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
        let said = line.trim().strip_prefix("listening on ");
        let said = said.ok_or_else(|| io::Error::other("it does not say where it listens"))?;
        if let Endpoint::Ip(address) = &mut server.address.endpoint {
            *address = said.parse().map_err(io::Error::other)?;
        }
        Ok(server)
    }

    /// What it has taken of the processors, in user and in system.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn processor_time(&self) -> io::Result<Duration> {
        let process = Pid::from_raw(self.child.id().cast_signed());
        let clock = ClockId::pid_cpu_clock_id(process)?;
        Ok(clock.now()?.into())
    }

    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            address: self.address.clone(),
            cores: self.load,
            process: Some(self.child.id()),
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It has nothing to lose, and may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the child end when the thread that starts it does, however that comes; and run on one core.
#[expect(
    unsafe_code,
    reason = "what runs between fork and exec is only promised to be safe"
)]
pub(crate) fn end_with_this_thread(command: &mut Command, core: Option<usize>) {
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        core.map_or(Ok(()), |core| cores::pin(&[core]))
    };
    // SAFETY: these are two system calls: nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

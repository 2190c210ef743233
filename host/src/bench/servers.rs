//! The two servers that are compared, as processes of their own that end with this one.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::Fault;
use super::cores::{self, Cores};
use super::load::Target;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Native,
    Airlock,
}

/// A running server. Dropping it ends it.
pub(super) struct Server<'a> {
    child: Child,
    address: SocketAddr,
    load: &'a [usize],
    pub(super) name: &'static str,
}

impl Server<'_> {
    /// Starts this program, without the variables that would set options, on its core.
    pub(super) fn start<'a>(
        kind: Kind,
        program: &Path,
        variables: &[OsString],
        cores: Option<&'a Cores>,
    ) -> Result<Server<'a>, Fault> {
        let (name, arguments) = match kind {
            Kind::Native => ("the native twin", ["bench", "--twin"]),
            Kind::Airlock => ("the embedded server", ["--listen=127.0.0.1:0", "-q"]),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        for variable in variables {
            command.env_remove(variable);
        }
        end_with_this_thread(&mut command, cores.map(|cores| cores.server));
        let load = cores.map_or([].as_slice(), |cores| &cores.load);
        let child = command.spawn();
        child
            .and_then(|child| Server::announced(child, load, name))
            .map_err(|error| Fault::Server(name, error))
    }

    /// Waits until it says where it listens.
    fn announced<'a>(
        child: Child,
        load: &'a [usize],
        name: &'static str,
    ) -> io::Result<Server<'a>> {
        let mut server = Server {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            load,
            name,
        };
        let mut line = String::new();
        if let Some(output) = server.child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let address = line.trim().strip_prefix("listening on ");
        server.address = address
            .and_then(|address| address.parse().ok())
            .ok_or_else(|| io::Error::other("it does not say where it listens"))?;
        Ok(server)
    }

    pub(super) fn target(&self) -> Target<'_> {
        Target {
            address: self.address,
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
fn end_with_this_thread(command: &mut Command, core: Option<usize>) {
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        core.map_or(Ok(()), |core| cores::pin(&[core]))
    };
    // SAFETY: these are two system calls: nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

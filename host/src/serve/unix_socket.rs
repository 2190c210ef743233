//! Binds a Unix socket to listen at: makes way for its file, and says who may connect.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;

use nix::unistd::Group;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::process::listener::Listener;

/// Who may connect, and how many may wait.
#[derive(Debug, Clone, Default)]
pub struct UnixOptions {
    /// How many connections the kernel completes ahead of time.
    pub backlog: u32,
    /// The mode of the socket's file; nothing for what the umask leaves.
    pub mode: Option<u32>,
    /// Its group, by name or number; nothing for that of the process.
    pub group: Option<String>,
}

/// Binds a Unix socket of our own.
///
/// # Errors
/// A sentence that says what to do about it.
pub fn bind(path: &Path, options: &UnixOptions) -> Result<Listener, String> {
    let cannot =
        |why: &dyn std::fmt::Display| format!("cannot listen on unix:{}: {why}", path.display());
    make_way(path).map_err(|why| cannot(&why))?;
    let group = options.group.as_deref().map(number).transpose();
    let group = group.map_err(|why| cannot(&why))?;
    let bound = try_bind(path, options, group).map_err(|error| match error.kind() {
        ErrorKind::NotFound => cannot(&"its folder does not exist"),
        ErrorKind::PermissionDenied => {
            cannot(&"this user may not make it there, or give it that group")
        }
        _ => cannot(&error),
    })?;
    Ok(bound)
}

/// Removes what a process has left that was killed: a socket at which nobody listens.
fn make_way(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err("there is a file already, and it is no socket".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let connected = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        // It is not waited for room in its queue.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    });
    let removed = match connected {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(()) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Err("a program listens there; stop it, or take another path".to_owned())
        }
        Err(error) => Err(format!("there is a socket already: {error}")),
    }
}

fn number(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group `{group}`")),
        Err(error) => Err(format!("whether there is a group `{group}`: {error}")),
    }
}

/// The file is bound at its path, whose name the socket keeps: the next process knows it by that. Until
/// it listens the kernel refuses whoever connects, so nobody comes in before the mode is set.
fn try_bind(path: &Path, options: &UnixOptions, group: Option<u32>) -> io::Result<Listener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // From here on its file is removed if anything fails.
    let listener = Listener::bound(socket);
    if group.is_some() {
        chown(path, None, group)?;
    }
    if let Some(mode) = options.mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    listener.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(listener)
}

//! HAProxy in front of the native twin, as in front of a server that has no TLS: it ends TLS, and passes
//! the bytes on. Both run on the same core.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, thread};

use airlock::process::listener::Listener;
use airlock::serve::listener::{self, TcpOptions};
use airlock::settings::door::DoorSettings;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::servers::end_with_this_thread;
use crate::twin;

/// Serves until HAProxy ends, with the first certificate of the door.
pub(crate) fn serve(front: &Listener, door: &DoorSettings) -> io::Result<Infallible> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let behind = listener::bind(any, &TcpOptions::default()).map_err(io::Error::other)?;
    let address = behind.local_addr()?.as_socket();
    let address = address.ok_or(ErrorKind::AddrNotAvailable)?;
    thread::Builder::new().spawn(move || twin::greet_each(&behind))?;
    let certificate = door.cert.first().ok_or(ErrorKind::NotFound)?;
    // HAProxy finds the key beside it, by its name.
    let config = format!(
        "global\n    nbthread 1\n\
         defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1h\n    timeout server 1h\n\
         listen tls\n    bind fd@{} ssl crt {}\n    server twin {address}\n",
        front.as_raw_fd(),
        certificate.display(),
    );
    let folder = certificate.parent().unwrap_or(Path::new("."));
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config)?;
    fcntl_setfd(&**front, FdFlags::empty())?;
    let mut haproxy = Command::new("haproxy");
    haproxy.args(["-q", "-db", "-f"]).arg(&file);
    end_with_this_thread(haproxy.stdin(Stdio::null()), None);
    let status = haproxy.status();
    let status = status.map_err(|error| io::Error::other(format!("`haproxy`: {error}")))?;
    Err(io::Error::other(format!("`haproxy` has ended: {status}")))
}

//! Who is connected, and how the server ends: no new connections, the messages in progress
//! answered, then everybody told and closed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown as Direction, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::process::interrupt::{self, Reader};

/// Ends a server. Clones end the same one.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    draining: AtomicBool,
    handed_over: AtomicBool,
    open: Mutex<Open>,
    /// The last connection has closed, or the drain has begun.
    changed: Condvar,
    /// Becomes readable, for good, when nobody is accepted any more: `accept` waits for it too.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    /// How many of them each address has.
    addresses: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<TcpStream>,
    /// The number of its guest's version.
    version: u64,
    reader: Reader,
    /// All has been said; the client only has to take note.
    finished: AtomicBool,
}

impl Connection {
    /// Has its thread look whether it has to end: the read after this gives up, and so does the one
    /// that has begun.
    fn wake(&self) {
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(1)));
        self.reader.interrupt();
    }
}

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    pub(crate) total: usize,
    pub(crate) per_ip: usize,
}

/// Why a connection has no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Full {
    #[error("all {0} connections are taken (--max-connections)")]
    Total(usize),
    #[error("{1} has {0} connections already (--max-connections-per-ip)")]
    Address(usize, IpAddr),
}

/// A place among the open connections, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    id: u64,
    address: IpAddr,
    connection: Arc<Connection>,
    shutdown: Shutdown,
}

impl Shutdown {
    /// Nobody is connected and nothing has begun to end.
    ///
    /// # Errors
    /// The process is out of descriptors, or may handle no signals.
    pub fn new() -> io::Result<Shutdown> {
        interrupt::prepare()?;
        Ok(Shutdown(Arc::new(Shared {
            draining: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            open: Mutex::default(),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
        })))
    }

    /// Begins to end the server: it accepts nobody any more, and each connection closes when it
    /// has answered what it has read. Doing it again changes nothing.
    pub fn drain(&self) {
        let open = self.open();
        self.0.draining.store(true, Ordering::SeqCst);
        for connection in open.connections.values() {
            connection.wake();
        }
        self.0.changed.notify_all();
        self.wake_up();
    }

    /// Stops accepting, since another process does; the connections that are open go on.
    pub fn hand_over(&self) {
        self.0.handed_over.store(true, Ordering::SeqCst);
        self.wake_up();
    }

    fn wake_up(&self) {
        let _ = rustix::io::write(&self.0.wake, &1_u64.to_ne_bytes());
    }

    /// Ends the connections of one version of the guest, which has been retired, as a drain ends all.
    pub(crate) fn retire(&self, version: u64) {
        let open = self.open();
        for connection in open.connections.values() {
            if connection.version == version {
                connection.wake();
            }
        }
    }

    /// Ends the connections that are left, in the middle of whatever they do, and returns how many
    /// those are. One that only waits for its client to take note is none of them.
    pub fn cut(&self) -> usize {
        let mut count = 0;
        for connection in self.open().connections.values() {
            if !connection.finished.load(Ordering::SeqCst) {
                count += 1;
                let _ = connection.stream.shutdown(Direction::Both);
            }
        }
        count
    }

    /// Whether [`Shutdown::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::SeqCst)
    }

    /// Whether the server takes new connections.
    pub(crate) fn is_accepting(&self) -> bool {
        !self.is_draining() && !self.0.handed_over.load(Ordering::Relaxed)
    }

    /// Readable once nobody is accepted any more.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// A place for `stream`, on this version of the guest, unless the caps are reached.
    pub(crate) fn admit(
        &self,
        id: u64,
        stream: &Arc<TcpStream>,
        peer: IpAddr,
        version: u64,
        caps: Caps,
    ) -> Result<Permit, Full> {
        let mut open = self.open();
        if open.connections.len() >= caps.total {
            return Err(Full::Total(caps.total));
        }
        let address = network(peer);
        let taken = open.addresses.entry(address).or_default();
        if *taken >= caps.per_ip {
            return Err(Full::Address(caps.per_ip, address));
        }
        *taken += 1;
        let connection = Arc::new(Connection {
            stream: Arc::clone(stream),
            version,
            reader: Reader::default(),
            finished: AtomicBool::new(false),
        });
        open.connections.insert(id, Arc::clone(&connection));
        Ok(Permit {
            id,
            address,
            connection,
            shutdown: self.clone(),
        })
    }

    /// Waits until every connection has closed, and returns how many have not after `time`.
    pub(crate) fn wait_until_empty(&self, time: Duration) -> usize {
        self.wait(time, |_| true)
    }

    /// The same, but not beyond the beginning of a drain.
    pub(crate) fn wait_until_empty_or_draining(&self, time: Duration) -> usize {
        self.wait(time, |shutdown| !shutdown.is_draining())
    }

    fn wait(&self, time: Duration, patient: impl Fn(&Shutdown) -> bool) -> usize {
        self.0
            .changed
            .wait_timeout_while(self.open(), time, |open| {
                !open.connections.is_empty() && patient(self)
            })
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .connections
            .len()
    }

    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one address: of IPv6 the network, since a host has all of a /64 to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

impl Permit {
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.connection.stream
    }

    /// This thread serves the connection. To be said before it asks whether it has to end.
    pub(crate) fn begin(&self) {
        self.connection.reader.is_this_thread();
    }

    /// All has been said.
    pub(crate) fn finish(&self) {
        self.connection.finished.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shutdown.is_draining()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.shutdown.open();
        open.connections.remove(&self.id);
        if let Entry::Occupied(mut taken) = open.addresses.entry(self.address) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
        if open.connections.is_empty() {
            self.shutdown.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let stream = Arc::new(TcpStream::connect(address).expect("a connection"));
        let shutdown = Shutdown::new().expect("a descriptor");
        let caps = Caps {
            total: 10,
            per_ip: 2,
        };
        let admit = |id, peer: &str| {
            let peer = peer.parse().expect("an address");
            shutdown.admit(id, &stream, peer, 1, caps)
        };
        let first = admit(1, "2001:db8:1:2::1").expect("a place");
        let _second = admit(2, "2001:db8:1:2:ffff:ffff:ffff:ffff").expect("a place");
        let full = admit(3, "2001:db8:1:2:3::").expect_err("the network has two");
        assert_eq!(
            full.to_string(),
            "2001:db8:1:2:: has 2 connections already (--max-connections-per-ip)"
        );
        let _beside = admit(4, "2001:db8:1:3::1").expect("it is another network");
        drop(first);
        let _third = admit(5, "2001:db8:1:2:3::").expect("there is room again");
        // An address of IPv4 is one host, however it is written.
        let _fourth = admit(6, "::ffff:192.0.2.1").expect("a place");
        let _fifth = admit(7, "192.0.2.1").expect("a place");
        admit(8, "::ffff:192.0.2.1").expect_err("the host has two");
        let _beside = admit(9, "192.0.2.2").expect("it is another host");
    }
}

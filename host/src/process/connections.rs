//! Who is connected, who may be admitted, and how all of them are told to end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr, Shutdown as Direction};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use slab::Slab;
use socket2::Socket;

use crate::process::interrupt::Reader;

/// The open connections of a process.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// All have to end.
    ending: AtomicBool,
    open: Mutex<Open>,
    /// The last connection has closed, or all have to end.
    changed: Condvar,
    /// How often some have been told to end.
    endings: AtomicU64,
    /// Written to when connections have to look whether they have to end.
    wakers: Mutex<Vec<OwnedFd>>,
}

#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    services: Slab<Members>,
    /// How many more may come of services that have fewer connections than are kept for them.
    kept: usize,
}

impl Open {
    /// Reckons again what is kept for each service, since there are others or they have other caps.
    /// However few connections there are, half of them are for whoever comes first.
    fn keep(&mut self) {
        let count = self.services.len();
        for (_, members) in &mut self.services {
            let Caps { process, kept, .. } = members.caps;
            members.most_kept = kept.min(process / count / 2);
        }
        self.kept = self.services.iter().map(|(_, one)| one.kept()).sum();
    }

    /// Ends those that are of a group and version that is meant, and have not said all. Returns how
    /// many.
    fn cut(&self, is_meant: impl Fn((usize, u64)) -> bool) -> usize {
        let meant = |connection: &&Arc<Connection>| {
            is_meant(connection.version()) && !connection.finished.load(Ordering::SeqCst)
        };
        let meant = self.connections.values().filter(meant);
        meant
            .inspect(|connection| {
                let _ = connection.stream.shutdown(Direction::Both);
            })
            .count()
    }
}

/// The connections of one service.
#[derive(Debug)]
struct Members {
    caps: Caps,
    /// What is kept for it while it has no connection.
    most_kept: usize,
    count: usize,
    /// How many of them each address has.
    addresses: HashMap<IpAddr, usize>,
}

impl Members {
    /// One connection more of this address.
    fn take_share(&mut self, address: IpAddr) -> Result<(), Full> {
        let per_ip = self.caps.per_ip;
        let taken = self.addresses.entry(address).or_default();
        if *taken >= per_ip {
            return Err(Full::Address(per_ip, address));
        }
        *taken += 1;
        Ok(())
    }

    /// How many more are kept for it.
    fn kept(&self) -> usize {
        self.most_kept.saturating_sub(self.count)
    }
}

#[derive(Debug)]
struct Connection {
    stream: Arc<Socket>,
    /// Its service's number.
    service: usize,
    /// That of its guest's version; 0 as long as it has none.
    version: AtomicU64,
    reader: Reader,
    /// An eventfd(2) that its thread waits for beside the socket, if it does.
    bell: OnceLock<Arc<OwnedFd>>,
    /// All has been said; the client only has to take note.
    finished: AtomicBool,
}

impl Connection {
    /// Its service's number, and that of its guest's version.
    fn version(&self) -> (usize, u64) {
        (self.service, self.version.load(Ordering::SeqCst))
    }

    /// Has its thread look whether it has to end: the read after this gives up, and so does the one
    /// that has begun.
    fn wake(&self) {
        if self.reader.has_begun() {
            let _ = self.stream.set_read_timeout(Some(Duration::from_millis(1)));
            self.reader.interrupt();
            if let Some(bell) = self.bell.get() {
                let _ = rustix::io::write(&**bell, &1_u64.to_ne_bytes());
            }
        }
    }
}

/// How many connections of one service may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// With those of all other services.
    pub(crate) process: usize,
    pub(crate) service: usize,
    pub(crate) per_ip: usize,
    /// As many as no other service takes, unless there are too few for all services.
    pub(crate) kept: usize,
}

/// Why a connection is not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Full {
    #[error("all {0} connections are taken (--max-connections)")]
    Service(usize),
    #[error(
        "all {0} connections of the process are taken, but for those that are kept for other services"
    )]
    Process(usize),
    #[error("{1} has {0} connections already (--max-connections-per-ip)")]
    Address(usize, IpAddr),
}

/// The connections of one service, among those of the process.
#[derive(Debug)]
pub(crate) struct Group {
    number: usize,
    /// All of them have to end.
    ending: AtomicBool,
    connections: Arc<Connections>,
}

/// Leave to be connected, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    id: u64,
    /// Where one has a share of its own.
    address: Option<IpAddr>,
    connection: Arc<Connection>,
    group: Arc<Group>,
}

impl Group {
    /// A permit for `stream`, unless the caps are reached: that of its address too, if it has one that
    /// is known. And how many connections of other services have to stay possible beside it.
    pub(crate) fn admit(
        self: &Arc<Group>,
        id: u64,
        stream: &Arc<Socket>,
        peer: Option<IpAddr>,
    ) -> Result<(Permit, usize), Full> {
        let mut open = self.connections.open();
        let Open {
            connections,
            services,
            kept,
        } = &mut *open;
        let members = &mut services[self.number];
        let Caps {
            process, service, ..
        } = members.caps;
        if members.count >= service {
            return Err(Full::Service(service));
        }
        // What is kept for this service is there for it, whatever is kept for others.
        let leaves = match members.kept() {
            0 => *kept,
            _ => 0,
        };
        if connections.len() + leaves >= process {
            return Err(Full::Process(process));
        }
        let address = peer.map(network);
        if let Some(address) = address {
            members.take_share(address)?;
        }
        *kept -= members.kept();
        members.count += 1;
        *kept += members.kept();
        let connection = Arc::new(Connection {
            stream: Arc::clone(stream),
            service: self.number,
            version: AtomicU64::new(0),
            reader: Reader::default(),
            bell: OnceLock::new(),
            finished: AtomicBool::new(false),
        });
        connections.insert(id, Arc::clone(&connection));
        let permit = Permit {
            id,
            address,
            connection,
            group: Arc::clone(self),
        };
        Ok((permit, leaves))
    }

    /// Has the connections of one version of its guest look whether that has been retired.
    pub(crate) fn wake_version(&self, version: u64) {
        self.wake_if(|own| own == version);
    }

    /// Has each of them end when it has answered what it has read. Nobody may be admitted any more.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.wake_if(|_| true);
    }

    /// Whether that has been said.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn wake_if(&self, is_meant: impl Fn(u64) -> bool) {
        for connection in self.connections.open().connections.values() {
            let (group, version) = connection.version();
            if group == self.number && is_meant(version) {
                connection.wake();
            }
        }
        self.connections.wake_all();
    }

    /// Has other caps from now on. Whoever is connected stays.
    pub(crate) fn change(&self, caps: Caps) {
        let mut open = self.connections.open();
        open.services[self.number].caps = caps;
        open.keep();
    }

    /// Ends its connections that are left, as [`Connections::cut`] does.
    pub(crate) fn cut(&self) -> usize {
        self.connections
            .open()
            .cut(|(group, _)| group == self.number)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        // Each of its connections holds it, so there are none.
        open.services.remove(self.number);
        open.keep();
    }
}

impl Connections {
    /// One service more, which has no connection yet.
    pub(crate) fn join(self: &Arc<Connections>, caps: Caps) -> Arc<Group> {
        let mut open = self.open();
        let number = open.services.insert(Members {
            caps,
            most_kept: 0,
            count: 0,
            addresses: HashMap::new(),
        });
        open.keep();
        Arc::new(Group {
            number,
            ending: AtomicBool::new(false),
            connections: Arc::clone(self),
        })
    }

    /// Has this eventfd(2) written to when connections have to look whether they have to end, for
    /// those that have no thread of their own.
    pub(crate) fn add_waker(&self, waker: OwnedFd) {
        let wakers = self.wakers.lock();
        wakers.unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    /// How often connections have been told to end: when it grows, those that have no thread of their
    /// own have to look.
    pub(crate) fn endings(&self) -> u64 {
        self.endings.load(Ordering::SeqCst)
    }

    fn wake_all(&self) {
        self.endings.fetch_add(1, Ordering::SeqCst);
        let wakers = self.wakers.lock();
        for waker in &*wakers.unwrap_or_else(PoisonError::into_inner) {
            let _ = rustix::io::write(waker, &1_u64.to_ne_bytes());
        }
    }

    /// Has each connection end when it has answered what it has read.
    pub(crate) fn end_all(&self) {
        self.ending.store(true, Ordering::SeqCst);
        for connection in self.open().connections.values() {
            connection.wake();
        }
        self.changed.notify_all();
        self.wake_all();
    }

    /// Whether that has been said.
    pub(crate) fn are_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Ends the connections that are left, in the middle of whatever they do, and returns how many
    /// those are. One that only waits for its client to take note is none of them.
    pub(crate) fn cut(&self) -> usize {
        self.open().cut(|_| true)
    }

    /// Waits until every connection has closed, and returns how many have not after `time`.
    pub(crate) fn wait_until_closed(&self, time: Duration) -> usize {
        self.wait(time, |_| true)
    }

    /// The same, but not beyond the beginning of the end of all.
    pub(crate) fn wait_until_closed_or_ending(&self, time: Duration) -> usize {
        self.wait(time, |connections| !connections.are_ending())
    }

    fn wait(&self, time: Duration, patient: impl Fn(&Connections) -> bool) -> usize {
        self.changed
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
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(crate) fn stream(&self) -> &Arc<Socket> {
        &self.connection.stream
    }

    /// It is known now whose connection this is: it takes of the share of that address.
    pub(crate) fn set_peer(&mut self, peer: Option<IpAddr>) -> Result<(), Full> {
        if let (None, Some(peer)) = (self.address, peer) {
            let address = network(peer);
            let mut open = self.group.connections.open();
            open.services[self.group.number].take_share(address)?;
            self.address = Some(address);
        }
        Ok(())
    }

    /// Its guest has this version. To be said before it asks whether it has to end.
    pub(crate) fn set_version(&self, version: u64) {
        self.connection.version.store(version, Ordering::SeqCst);
    }

    /// This thread serves the connection. To be said before it asks whether it has to end.
    pub(crate) fn begin(&self) {
        self.connection.reader.is_this_thread();
    }

    /// The thread that serves it waits for this eventfd(2) too. To be said before it asks whether it has
    /// to end.
    pub(crate) fn set_bell(&self, bell: Arc<OwnedFd>) {
        let _ = self.connection.bell.set(bell);
    }

    /// All has been said.
    pub(crate) fn finish(&self) {
        self.connection.finished.store(true, Ordering::SeqCst);
    }

    /// Whether all connections have to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.group.connections.are_ending()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Group {
            number,
            connections: all,
            ..
        } = &*self.group;
        let mut open = all.open();
        let Open {
            connections,
            services,
            kept,
        } = &mut *open;
        connections.remove(&self.id);
        let members = &mut services[*number];
        *kept -= members.kept();
        members.count -= 1;
        *kept += members.kept();
        if let Some(address) = self.address
            && let Entry::Occupied(mut taken) = members.addresses.entry(address)
        {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
        if connections.is_empty() {
            all.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn stream() -> Arc<Socket> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        Arc::new(TcpStream::connect(address).expect("a connection").into())
    }

    /// As many connections as it is let have, each with its own id.
    fn fill(group: &Arc<Group>, ids: &mut std::ops::RangeFrom<u64>) -> Vec<Permit> {
        let (stream, peer) = (stream(), IpAddr::from([192, 0, 2, 1]));
        ids.map_while(|id| group.admit(id, &stream, Some(peer)).ok())
            .map(|(permit, _)| permit)
            .collect()
    }

    #[test]
    fn a_service_leaves_to_others_what_is_kept_for_them() {
        let connections = Arc::<Connections>::default();
        let join = |service, kept| {
            connections.join(Caps {
                process: 24,
                service,
                per_ip: 24,
                kept,
            })
        };
        let (one, other, small) = (join(24, 4), join(24, 4), join(2, 2));
        let mut ids = 1..;
        let first = fill(&one, &mut ids);
        assert_eq!(first.len(), 24 - 4 - 2);
        let full = one.admit(1000, &stream(), Some([192, 0, 2, 2].into()));
        let full = full.expect_err("the rest is for others").to_string();
        assert!(full.contains("kept for other services"), "{full}");
        // The others have what is kept for them, and no more.
        let second = fill(&other, &mut ids);
        assert_eq!((second.len(), fill(&small, &mut ids).len()), (4, 2));
        // What those have given back is kept again, and one that has gone needs nothing.
        drop(second);
        assert_eq!(fill(&one, &mut ids).len(), 0);
        drop(small);
        assert_eq!(fill(&one, &mut ids).len(), 2);
        assert_eq!(fill(&other, &mut ids).len(), 6);
        drop((first, one));
        assert_eq!(fill(&other, &mut ids).len(), 24);
    }

    #[test]
    fn however_many_services_there_are_half_of_all_is_for_whoever_comes_first() {
        let connections = Arc::<Connections>::default();
        let caps = Caps {
            process: 24,
            service: 24,
            per_ip: 24,
            kept: 4,
        };
        let mut groups: Vec<_> = (0..6).map(|_| connections.join(caps)).collect();
        // Also when all have been changed.
        groups.iter().for_each(|group| group.change(caps));
        let mut ids = 1..;
        let first = fill(&groups[0], &mut ids);
        assert_eq!(first.len(), 24 - 5 * 2);
        for other in &groups[1..] {
            assert_eq!(fill(other, &mut ids).len(), 2);
        }
        drop(first);
        // What is kept grows again when services go.
        groups.truncate(2);
        assert_eq!(fill(&groups[0], &mut ids).len(), 24 - 4);
    }

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let stream = stream();
        let group = Arc::<Connections>::default().join(Caps {
            process: 10,
            service: 10,
            per_ip: 2,
            kept: 0,
        });
        let admit = |id, peer: &str| {
            let peer = peer.parse().expect("an address");
            group.admit(id, &stream, Some(peer))
        };
        let first = admit(1, "2001:db8:1:2::1").expect("a permit");
        let _second = admit(2, "2001:db8:1:2:ffff:ffff:ffff:ffff").expect("a permit");
        let full = admit(3, "2001:db8:1:2:3::").expect_err("the network has two");
        assert_eq!(
            full.to_string(),
            "2001:db8:1:2:: has 2 connections already (--max-connections-per-ip)"
        );
        let _beside = admit(4, "2001:db8:1:3::1").expect("it is another network");
        drop(first);
        let _third = admit(5, "2001:db8:1:2:3::").expect("there is room again");
        // An address of IPv4 is one host, however it is written.
        let _fourth = admit(6, "::ffff:192.0.2.1").expect("a permit");
        let _fifth = admit(7, "192.0.2.1").expect("a permit");
        admit(8, "::ffff:192.0.2.1").expect_err("the host has two");
        let _beside = admit(9, "192.0.2.2").expect("it is another host");
    }
}

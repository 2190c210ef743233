//! What open connections take of the process besides descriptors: memory mappings, of which the
//! kernel has few, and the memory of guests. Whoever finds no room is turned away at the door, and
//! what is open keeps what it has and a reserve to grow into. Where there are several services, each
//! has a share of the memory that no other takes, and mappings for its first connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::budget::{Budget, Claim};
use crate::limits::guest::GUEST_MEMORIES;
use crate::limits::process::{
    GUEST_RESERVE_SHARE, Process, SERVICE_CONNECTIONS, SERVICES_MEMORY_SHARE,
};
use crate::process::capacity::{MEMORY_MAPPINGS, THREAD_MAPPINGS};

/// What one connection takes, which follows from its version of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Linear memories of an instance.
    pub memories: u32,
    /// Whether they begin as images.
    pub images: bool,
    /// Bytes that an instance has when it has greeted.
    pub memory_bytes: u64,
}

impl Need {
    /// Memory mappings, with those of a thread of its own.
    pub fn mappings(self) -> u64 {
        THREAD_MAPPINGS + self.memory_mappings()
    }

    fn memory_mappings(self) -> u64 {
        let each = MEMORY_MAPPINGS + u64::from(self.images);
        each * u64::from(self.memories)
    }
}

/// Memory mappings of one connection at most, whatever its guest.
const MOST_MAPPINGS: u64 = THREAD_MAPPINGS + (MEMORY_MAPPINGS + 1) * GUEST_MEMORIES as u64;

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The kernel would map no more memories and stacks.
    #[error("as many memory mappings as may be are taken (vm.max_map_count)")]
    Mappings,
    /// The rest is for those that are open.
    #[error("guests hold as much memory as leaves a reserve to them (--total-guest-memory)")]
    Memory,
}

/// The room of one process.
#[derive(Debug)]
pub struct Room {
    connections: usize,
    /// Whether each has a thread of its own.
    thread_each: bool,
    mappings: u64,
    /// How many of them the first connections of each service take, if there are several.
    own_mappings: u64,
    /// Services that there are.
    shares: AtomicU64,
    memory_bytes: u64,
    /// How much of it each service has to itself at most.
    own_bytes: u64,
    /// What they have to themselves, together.
    kept_bytes: AtomicU64,
    /// What of the memory is no service's own.
    shared: Arc<Memory>,
    /// Of guests without images, and of those with.
    pools: [Pool; 2],
    /// One connection at a time takes of it.
    taking: Mutex<()>,
}

/// One service's part of the room.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    /// No other service takes of it.
    own: Memory,
}

/// Memory that guests may take, and how many connections do.
#[derive(Debug)]
struct Memory {
    bytes: AtomicU64,
    left: Arc<Budget>,
    /// Open connections of those who take of it.
    open: AtomicU64,
}

impl Memory {
    fn new(bytes: u64) -> Memory {
        Memory {
            bytes: AtomicU64::new(bytes),
            left: Budget::new(bytes),
            open: AtomicU64::new(0),
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What a new connection leaves to those that are open. The first has nobody to leave it to.
    fn reserve_bytes(&self) -> u64 {
        match self.open.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.bytes() / GUEST_RESERVE_SHARE,
        }
    }

    /// How many bytes new connections may take together.
    fn for_new_bytes(&self) -> u64 {
        self.bytes() - self.bytes() / GUEST_RESERVE_SHARE
    }
}

/// Memory that one instance has taken, of its service's own as long as there is any, given back when it
/// is dropped.
#[derive(Debug)]
pub(crate) struct MemoryClaim {
    own: Claim,
    shared: Claim,
}

impl MemoryClaim {
    /// Takes what is missing until it is `bytes` together, or nothing and returns false.
    pub(crate) fn cover(&mut self, bytes: u64) -> bool {
        self.cover_leaving(bytes, 0, 0)
    }

    /// The same, if these are left then.
    fn cover_leaving(&mut self, bytes: u64, own_bytes: u64, shared_bytes: u64) -> bool {
        let rest = bytes.saturating_sub(self.shared.bytes());
        if self.own.cover_leaving(rest, own_bytes) {
            return true;
        }
        let rest = bytes.saturating_sub(self.own.bytes());
        self.shared.cover_leaving(rest, shared_bytes)
    }
}

/// Memory mappings of the instances of one engine.
#[derive(Debug, Default)]
struct Pool {
    /// Of open connections.
    open: AtomicU64,
    /// The most that there were. Wasmtime keeps what it has mapped, for later instances.
    kept: AtomicU64,
}

impl Room {
    /// All of it, with these limits.
    pub fn new(limits: &Process) -> Room {
        let services = limits.services as u64;
        Room {
            connections: limits.connections,
            thread_each: limits.thread_each,
            mappings: limits.mappings,
            own_mappings: match services {
                1 => 0,
                _ => SERVICE_CONNECTIONS as u64 * MOST_MAPPINGS,
            },
            shares: AtomicU64::new(0),
            memory_bytes: limits.total_guest_memory_bytes,
            own_bytes: match services {
                1 => 0,
                _ => limits.total_guest_memory_bytes / SERVICES_MEMORY_SHARE / services,
            },
            kept_bytes: AtomicU64::new(0),
            shared: Arc::new(Memory::new(limits.total_guest_memory_bytes)),
            pools: Default::default(),
            taking: Mutex::default(),
        }
    }

    /// One service's part. However many are added, half of the memory is left for whoever needs it. To
    /// be called by one thread.
    pub(crate) fn share(self: &Arc<Room>) -> Arc<Share> {
        let shared = &self.shared;
        let left_bytes = self.memory_bytes / 2 - self.kept_bytes.load(Ordering::Relaxed);
        let own_bytes = self.own_bytes.min(left_bytes / 2);
        let own_bytes = match shared.left.take(own_bytes) {
            true => own_bytes,
            false => {
                tracing::warn!(
                    "the guests hold too much memory to keep a part for one more service"
                );
                0
            }
        };
        shared.bytes.fetch_sub(own_bytes, Ordering::Relaxed);
        self.kept_bytes.fetch_add(own_bytes, Ordering::Relaxed);
        self.shares.fetch_add(1, Ordering::Relaxed);
        Arc::new(Share {
            room: Arc::clone(self),
            own: Memory::new(own_bytes),
        })
    }

    /// How many connections of one version fit where it is the only one, and what to raise for more.
    pub fn most(&self, need: Need) -> (usize, &'static str) {
        let bytes = self.memory_bytes - self.memory_bytes / GUEST_RESERVE_SHARE;
        self.most_in(bytes, need)
    }

    fn most_in(&self, memory_bytes: u64, need: Need) -> (usize, &'static str) {
        // The first has nobody to leave a reserve to.
        let memory_bytes = match memory_bytes {
            rest if rest < need.memory_bytes => self.memory_bytes.min(need.memory_bytes),
            rest => rest,
        };
        let bounds = [
            (self.connections as u64, "--max-connections"),
            (self.mappings / self.mappings_of(need), "vm.max_map_count"),
            (
                memory_bytes / need.memory_bytes.max(1),
                "--total-guest-memory",
            ),
        ];
        let (most, bound) = bounds
            .into_iter()
            .min_by_key(|&(most, _)| most)
            .unwrap_or_default();
        (usize::try_from(most).unwrap_or(usize::MAX), bound)
    }

    fn mappings_of(&self, need: Need) -> u64 {
        let mappings = if self.thread_each {
            need.mappings()
        } else {
            need.memory_mappings()
        };
        mappings.max(1)
    }

    /// Whether there is room for one more thread beside those of connections, where there are `threads`
    /// already.
    pub(crate) fn check_thread(&self, threads: usize) -> Result<(), NoRoom> {
        let kept = self
            .pools
            .iter()
            .map(|pool| pool.kept.load(Ordering::Relaxed));
        let taken: u64 = kept.sum();
        let threads = THREAD_MAPPINGS.saturating_mul(threads as u64 + 1);
        // However many services there are, half of it is for whoever needs it.
        let kept = self.own_mappings * self.shares.load(Ordering::Relaxed);
        let kept = kept.min(self.mappings / 2);
        if threads.saturating_add(taken + kept) > self.mappings {
            return Err(NoRoom::Mappings);
        }
        Ok(())
    }
}

impl Share {
    /// How many connections of one version of this service fit, and what to raise for more.
    pub(crate) fn most(&self, need: Need) -> (usize, &'static str) {
        let room = &self.room;
        let bytes = self.own.for_new_bytes() + room.shared.for_new_bytes();
        room.most_in(bytes, need)
    }

    /// Room for one more connection, where there are `threads` already, and the memory that its
    /// instance begins with. There has to be room for so many of other services then.
    pub(crate) fn take(
        self: &Arc<Share>,
        need: Need,
        threads: usize,
        leaves: usize,
    ) -> Result<(Reservation, MemoryClaim), NoRoom> {
        let room = &self.room;
        // Nothing panics here, so a poisoned lock is as good as any.
        let _taking = room.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let mappings = need.memory_mappings();
        let ours = usize::from(need.images);
        let pool = &room.pools[ours];
        let open = pool.open.load(Ordering::Relaxed) + mappings;
        let kept = pool.kept.load(Ordering::Relaxed).max(open);
        let others = room.pools[1 - ours].kept.load(Ordering::Relaxed);
        let thread_mappings = THREAD_MAPPINGS.saturating_mul(threads as u64 + 1);
        let left = MOST_MAPPINGS.saturating_mul(leaves as u64);
        if thread_mappings.saturating_add(kept + others + left) > room.mappings {
            return Err(NoRoom::Mappings);
        }
        let mut memory = self.no_memory();
        let (own_bytes, shared_bytes) = (self.own.reserve_bytes(), room.shared.reserve_bytes());
        if !memory.cover_leaving(need.memory_bytes, own_bytes, shared_bytes) {
            return Err(NoRoom::Memory);
        }
        for memory in [&self.own, &room.shared] {
            memory.open.fetch_add(1, Ordering::Relaxed);
        }
        pool.open.fetch_add(mappings, Ordering::Relaxed);
        pool.kept.store(kept, Ordering::Relaxed);
        let reservation = Reservation {
            pool: ours,
            mappings,
            share: Arc::clone(self),
        };
        Ok((reservation, memory))
    }

    /// For an instance that takes its memory as it needs it.
    pub(crate) fn no_memory(&self) -> MemoryClaim {
        MemoryClaim {
            own: Claim::none(&self.own.left),
            shared: Claim::none(&self.room.shared.left),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let (shared, own_bytes) = (&self.room.shared, self.own.bytes());
        self.room.kept_bytes.fetch_sub(own_bytes, Ordering::Relaxed);
        self.room.shares.fetch_sub(1, Ordering::Relaxed);
        shared.bytes.fetch_add(own_bytes, Ordering::Relaxed);
        shared.left.give_back(own_bytes);
    }
}

/// One connection's part of the room, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    pool: usize,
    mappings: u64,
    share: Arc<Share>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Share { room, own } = &*self.share;
        let pool = &room.pools[self.pool];
        pool.open.fetch_sub(self.mappings, Ordering::Relaxed);
        for memory in [own, &room.shared] {
            memory.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Need = Need {
        memories: 1,
        images: false,
        memory_bytes: 10,
    };

    const LARGE: Need = Need {
        memories: 3,
        images: true,
        memory_bytes: 10,
    };

    fn room_of(services: usize, mappings: u64, memory_bytes: u64) -> Arc<Room> {
        Arc::new(Room::new(&Process {
            services,
            mappings,
            ..Process::new(1_000_000, memory_bytes)
        }))
    }

    /// All of it, for one service.
    fn room(mappings: u64, memory_bytes: u64) -> Arc<Share> {
        room_of(1, mappings, memory_bytes).share()
    }

    #[test]
    fn a_service_has_memory_that_no_other_takes() {
        let room = room_of(2, u64::MAX, 1600);
        let (one, other) = (room.share(), room.share());
        let fill = |share: &Arc<Share>| -> Vec<_> {
            (0..).map_while(|n| share.take(SMALL, n, 0).ok()).collect()
        };
        // Of its own 200 and the common 1200, an eighth is for those that are open.
        let mut first = fill(&one);
        assert_eq!(first.len(), 17 + 105);
        // Which may take the common part whole, and nothing of the other's.
        let (_, greedy) = &mut first[0];
        let mut bytes = 10;
        while greedy.cover(bytes + 10) {
            bytes += 10;
        }
        assert_eq!(bytes, 10 + 200 - 170 + 1200 - 1050);
        assert_eq!(fill(&other).len(), 17);
        // When all is given back, so is where it came from.
        drop(first);
        assert_eq!(fill(&other).len(), 17 + 105);
        assert_eq!(fill(&one).len(), 17 + 105);
        // What a service had that is gone is there for the others.
        drop(one);
        assert_eq!(fill(&other).len(), 17 + (1400 - 1400 / 8) / 10);
    }

    #[test]
    fn mappings_are_left_for_the_connections_that_are_kept_for_others() {
        for (leaves, mappings) in [(0, 10 * MOST_MAPPINGS), (4, 6 * MOST_MAPPINGS)] {
            let share = room_of(2, 10 * MOST_MAPPINGS, u64::MAX).share();
            let taken = (0..).map_while(|n| share.take(LARGE, n, leaves).ok());
            let taken: Vec<_> = taken.collect();
            assert_eq!(taken.len() as u64, mappings / LARGE.mappings());
        }
        // Nor do threads for those that wait beside a slow guest take them.
        let kept = 2 * SERVICE_CONNECTIONS as u64 * MOST_MAPPINGS;
        let room = room_of(2, 2 * kept, u64::MAX);
        let _shares = [room.share(), room.share()];
        let threads = (kept / THREAD_MAPPINGS) as usize;
        assert!(room.check_thread(threads - 1).is_ok() && room.check_thread(threads).is_err());
        // Of more services, no more than half.
        let _more = [room.share(), room.share()];
        assert!(room.check_thread(threads - 1).is_ok() && room.check_thread(threads).is_err());
    }

    #[test]
    fn services_that_are_added_leave_half_of_the_memory_to_whoever_needs_it() {
        let room = room_of(2, u64::MAX, 1600);
        let own = |shares: &[Arc<Share>]| -> Vec<_> {
            shares.iter().map(|share| share.own.bytes()).collect()
        };
        let mut shares: Vec<_> = (0..40).map(|_| room.share()).collect();
        assert_eq!(own(&shares[..6]), [200, 200, 200, 100, 50, 25]);
        let all: u64 = own(&shares).iter().sum();
        assert!(all < 800 && room.shared.bytes() == 1600 - all);
        // Those who go leave their part to the next.
        shares.truncate(1);
        shares.push(room.share());
        assert_eq!(own(&shares), [200, 200]);
    }

    #[test]
    fn new_connections_leave_a_reserve_to_those_that_are_open() {
        let room = room(u64::MAX, 160);
        assert_eq!(room.most(SMALL), (14, "--total-guest-memory"));
        let mut reservations: Vec<_> = (0..14)
            .filter_map(|n| room.take(SMALL, n, 0).ok())
            .collect();
        assert_eq!(reservations.len(), 14);
        assert_eq!(room.take(SMALL, 14, 0).err(), Some(NoRoom::Memory));
        // What is open may have the reserve.
        let (reservation, mut memory) = reservations.remove(0);
        assert!(memory.cover(30) && !memory.cover(31));
        drop((reservation, memory));
        assert!(room.take(SMALL, 14, 0).is_ok());
    }

    #[test]
    fn one_connection_has_all_the_memory_there_is() {
        let room = room(u64::MAX, 10);
        assert_eq!(room.most(SMALL), (1, "--total-guest-memory"));
        let taken = room.take(SMALL, 0, 0);
        assert!(taken.is_ok());
        assert_eq!(room.take(SMALL, 1, 0).err(), Some(NoRoom::Memory));
        drop(taken);
        assert!(room.take(SMALL, 1, 0).is_ok());
    }

    #[test]
    fn what_only_some_connections_took_lowers_the_room_of_the_others_by_no_more() {
        let each = SMALL.mappings();
        let room = room(100 * each, u64::MAX);
        assert_eq!(room.most(SMALL), (100, "vm.max_map_count"));
        // A version that needs more, tried on ten connections and rolled back.
        let larger = Need {
            memories: 3,
            ..SMALL
        };
        let tried: Vec<_> = (0..10)
            .filter_map(|n| room.take(larger, n, 0).ok())
            .collect();
        assert_eq!(tried.len(), 10);
        drop(tried);
        let mut reservations = Vec::new();
        while let Ok(one) = room.take(SMALL, reservations.len(), 0) {
            reservations.push(one);
        }
        assert_eq!(reservations.len(), 100);
    }

    #[test]
    fn what_one_engine_keeps_is_not_there_for_the_other() {
        let room = room(1000, u64::MAX);
        let reservations: Vec<_> = (0..100)
            .map_while(|n| room.take(SMALL, n, 0).ok())
            .collect();
        assert_eq!(reservations.len(), 100);
        drop(reservations);
        let reservations: Vec<_> = (0..100)
            .map_while(|n| room.take(LARGE, n, 0).ok())
            .collect();
        let taken = reservations.len() as u64 * LARGE.mappings() + 100 * SMALL.memory_mappings();
        assert!(taken <= 1000 && !reservations.is_empty(), "{taken}");
    }

    #[test]
    fn threads_and_memories_never_take_more_mappings_than_there_are() {
        let room = room(100, u64::MAX);
        let reservations: Vec<_> = (0..100)
            .map_while(|n| room.take(LARGE, n, 0).ok())
            .collect();
        let taken = reservations.len() as u64 * LARGE.mappings();
        assert!(
            taken <= 100 && room.most(LARGE).0 == reservations.len(),
            "{taken}"
        );
        drop(reservations);
        // Threads stay for a while, and so do the memories.
        assert_eq!(room.take(LARGE, 100, 0).err(), Some(NoRoom::Mappings));
    }
}

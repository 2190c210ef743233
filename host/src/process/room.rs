//! What open connections take of the process besides descriptors: memory mappings, of which the
//! kernel has few, and the memory of guests. Whoever finds no room is turned away at the door, and
//! what is open keeps what it has and a reserve to grow into.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::budget::{Budget, Claim};
use crate::limits::process::GUEST_RESERVE_SHARE;
use crate::limits::process::Process;
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
    memory_bytes: u64,
    reserve_bytes: u64,
    memory: Arc<Budget>,
    /// Open connections.
    open: AtomicU64,
    /// Of guests without images, and of those with.
    pools: [Pool; 2],
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
        Room {
            connections: limits.connections,
            thread_each: limits.thread_each,
            mappings: limits.mappings,
            memory_bytes: limits.total_guest_memory_bytes,
            reserve_bytes: limits.total_guest_memory_bytes / GUEST_RESERVE_SHARE,
            memory: Budget::new(limits.total_guest_memory_bytes),
            open: AtomicU64::new(0),
            pools: Default::default(),
        }
    }

    /// How many connections of one version fit, and what to raise for more.
    pub fn most(&self, need: Need) -> (usize, &'static str) {
        // The first has nobody to leave a reserve to.
        let memory_bytes = match self.memory_bytes - self.reserve_bytes {
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

    /// Room for one more connection, where there are `threads` already, and the memory that its
    /// instance begins with. To be called by one thread.
    pub(crate) fn take(
        self: &Arc<Room>,
        need: Need,
        threads: usize,
    ) -> Result<(Reservation, Claim), NoRoom> {
        let mappings = need.memory_mappings();
        let ours = usize::from(need.images);
        let pool = &self.pools[ours];
        let open = pool.open.load(Ordering::Relaxed) + mappings;
        let kept = pool.kept.load(Ordering::Relaxed).max(open);
        let others = self.pools[1 - ours].kept.load(Ordering::Relaxed);
        let thread_mappings = THREAD_MAPPINGS.saturating_mul(threads as u64 + 1);
        if thread_mappings.saturating_add(kept + others) > self.mappings {
            return Err(NoRoom::Mappings);
        }
        let reserve_bytes = match self.open.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.reserve_bytes,
        };
        let mut memory = self.no_memory();
        if !memory.cover_leaving(need.memory_bytes, reserve_bytes) {
            return Err(NoRoom::Memory);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        pool.open.fetch_add(mappings, Ordering::Relaxed);
        pool.kept.store(kept, Ordering::Relaxed);
        let reservation = Reservation {
            pool: ours,
            mappings,
            room: Arc::clone(self),
        };
        Ok((reservation, memory))
    }

    /// Whether there is room for one more thread, where there are `threads` already.
    pub(crate) fn check_thread(&self, threads: usize) -> Result<(), NoRoom> {
        let kept = self
            .pools
            .iter()
            .map(|pool| pool.kept.load(Ordering::Relaxed));
        let threads = THREAD_MAPPINGS.saturating_mul(threads as u64 + 1);
        if threads.saturating_add(kept.sum()) > self.mappings {
            return Err(NoRoom::Mappings);
        }
        Ok(())
    }

    /// For an instance that takes its memory as it needs it.
    pub(crate) fn no_memory(&self) -> Claim {
        Claim::none(&self.memory)
    }
}

/// One connection's part of the room, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    pool: usize,
    mappings: u64,
    room: Arc<Room>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let pool = &self.room.pools[self.pool];
        pool.open.fetch_sub(self.mappings, Ordering::Relaxed);
        self.room.open.fetch_sub(1, Ordering::Relaxed);
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

    fn room(mappings: u64, memory_bytes: u64) -> Arc<Room> {
        Arc::new(Room::new(&Process {
            mappings,
            ..Process::new(1_000_000, memory_bytes)
        }))
    }

    #[test]
    fn new_connections_leave_a_reserve_to_those_that_are_open() {
        let room = room(u64::MAX, 160);
        assert_eq!(room.most(SMALL), (14, "--total-guest-memory"));
        let mut reservations: Vec<_> = (0..14).filter_map(|n| room.take(SMALL, n).ok()).collect();
        assert_eq!(reservations.len(), 14);
        assert_eq!(room.take(SMALL, 14).err(), Some(NoRoom::Memory));
        // What is open may have the reserve.
        let (reservation, mut memory) = reservations.remove(0);
        assert!(memory.cover(30) && !memory.cover(31));
        drop((reservation, memory));
        assert!(room.take(SMALL, 14).is_ok());
    }

    #[test]
    fn one_connection_has_all_the_memory_there_is() {
        let room = room(u64::MAX, 10);
        assert_eq!(room.most(SMALL), (1, "--total-guest-memory"));
        let taken = room.take(SMALL, 0);
        assert!(taken.is_ok());
        assert_eq!(room.take(SMALL, 1).err(), Some(NoRoom::Memory));
        drop(taken);
        assert!(room.take(SMALL, 1).is_ok());
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
        let tried: Vec<_> = (0..10).filter_map(|n| room.take(larger, n).ok()).collect();
        assert_eq!(tried.len(), 10);
        drop(tried);
        let mut reservations = Vec::new();
        while let Ok(one) = room.take(SMALL, reservations.len()) {
            reservations.push(one);
        }
        assert_eq!(reservations.len(), 100);
    }

    #[test]
    fn what_one_engine_keeps_is_not_there_for_the_other() {
        let room = room(1000, u64::MAX);
        let reservations: Vec<_> = (0..100).map_while(|n| room.take(SMALL, n).ok()).collect();
        assert_eq!(reservations.len(), 100);
        drop(reservations);
        let reservations: Vec<_> = (0..100).map_while(|n| room.take(LARGE, n).ok()).collect();
        let taken = reservations.len() as u64 * LARGE.mappings() + 100 * SMALL.memory_mappings();
        assert!(taken <= 1000 && !reservations.is_empty(), "{taken}");
    }

    #[test]
    fn threads_and_memories_never_take_more_mappings_than_there_are() {
        let room = room(100, u64::MAX);
        let reservations: Vec<_> = (0..100).map_while(|n| room.take(LARGE, n).ok()).collect();
        let taken = reservations.len() as u64 * LARGE.mappings();
        assert!(
            taken <= 100 && room.most(LARGE).0 == reservations.len(),
            "{taken}"
        );
        drop(reservations);
        // Threads stay for a while, and so do the memories.
        assert_eq!(room.take(LARGE, 100).err(), Some(NoRoom::Mappings));
    }
}

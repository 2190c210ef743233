//! The connections at one seat: which of them waits for what, and until when.

use std::collections::{BTreeSet, VecDeque};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use slab::Slab;

use crate::serve::seats::parked::{Occasion, Parked, Waits};

/// The turn of nobody, from which the first thread takes the seat.
pub(super) const FIRST_TURN: u64 = 1;

/// What a thread has that holds a seat.
pub(super) struct Board {
    /// The number of the last turn.
    turn: u64,
    /// When this round began.
    pub(super) now: Instant,
    places: Slab<Place>,
    /// Those that have more to do, and wait for their next turn.
    ready: VecDeque<usize>,
    /// One for each connection that has a deadline, or had one, with its place.
    timers: BTreeSet<(Instant, usize)>,
    /// When clients are let in again, if they are not now.
    pub(super) listen_at: Option<Instant>,
    /// How often connections had been told to end when all that have to knew; nothing if some may not.
    pub(super) endings: Option<u64>,
}

/// Where a connection is while it waits.
struct Place {
    /// Nothing while it is driven.
    parked: Option<Box<Parked>>,
    stream: Arc<TcpStream>,
    /// What the kernel tells of its socket, if anything.
    interest: Option<EventFlags>,
    deadline: Option<Instant>,
    /// When the timer goes off that looks at the deadline. A deadline that moves on, as it does with
    /// every line, leaves the timer alone.
    timer: Option<Instant>,
}

impl Board {
    /// No connection yet.
    pub(super) fn new() -> Board {
        Board {
            turn: FIRST_TURN,
            now: Instant::now(),
            places: Slab::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            listen_at: None,
            endings: Some(0),
        }
    }

    /// The number of the next turn.
    pub(super) fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// How long nothing has to be done if nothing happens.
    pub(super) fn patience(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let timer = self.timers.first().map(|(when, _)| *when);
        let next = timer.into_iter().chain(self.listen_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// A place for a connection that is to be driven for the first time: it stays taken until it is
    /// given up.
    pub(super) fn reserve(&mut self, stream: Arc<TcpStream>) -> usize {
        self.places.insert(Place {
            parked: None,
            stream,
            interest: None,
            deadline: None,
            timer: None,
        })
    }

    /// Takes a connection from its place, if this is an occasion for it.
    pub(super) fn take(&mut self, place: usize, occasion: Occasion) -> Option<Box<Parked>> {
        let place = self.places.get_mut(place)?;
        place.parked.take_if(|parked| parked.waits.is_for(occasion))
    }

    /// The kernel tells of a connection that is still driven, by a thread that has lost this seat. It
    /// would go on telling; when the connection is back, it is asked again.
    pub(super) fn ignore(&mut self, epoll: &OwnedFd, place: usize) {
        if let Some(place) = self.places.get_mut(place)
            && place.parked.is_none()
            && place.interest.take().is_some()
        {
            let _ = epoll::delete(epoll, &place.stream);
        }
    }

    /// Puts a connection back into its place, to wait for what it waits for.
    pub(super) fn put(&mut self, epoll: &OwnedFd, id: usize, parked: Box<Parked>) {
        let Some(place) = self.places.get_mut(id) else {
            return;
        };
        match parked.waits {
            Waits::Turn => {
                place.deadline = None;
                self.ready.push_back(id);
            }
            Waits::Input(within) | Waits::Room(within) | Waits::End(within) => {
                let flags = match parked.waits {
                    Waits::Room(_) => EventFlags::OUT,
                    _ => EventFlags::IN,
                };
                let data = EventData::new_u64(id as u64);
                let told = match place.interest {
                    Some(same) if same == flags => Ok(()),
                    Some(_) => epoll::modify(epoll, &place.stream, data, flags),
                    None => epoll::add(epoll, &place.stream, data, flags),
                };
                // Without room in the kernel its time runs out.
                place.interest = told.is_ok().then_some(flags);
                // Not from the beginning of the round, which may have been long.
                let deadline = Instant::now() + within;
                place.deadline = Some(deadline);
                if place.timer.is_none_or(|timer| timer > deadline) {
                    if let Some(later) = place.timer.replace(deadline) {
                        self.timers.remove(&(later, id));
                    }
                    self.timers.insert((deadline, id));
                }
            }
        }
        place.parked = Some(parked);
    }

    /// A connection that was taken does not come back. With its place goes the last that holds its
    /// socket, so the kernel forgets it.
    pub(super) fn give_up(&mut self, id: usize) {
        let place = self.places.try_remove(id);
        if let Some(when) = place.and_then(|place| place.timer) {
            self.timers.remove(&(when, id));
        }
    }

    /// How many wait for a turn, and nothing else.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The one that has waited longest.
    pub(super) fn next_ready(&mut self) -> Option<usize> {
        self.ready.pop_front()
    }

    /// One whose time is over. One that was moved is looked at then.
    pub(super) fn next_due(&mut self) -> Option<usize> {
        loop {
            let &(when, id) = self.timers.first()?;
            if when > self.now {
                return None;
            }
            self.timers.pop_first();
            let place = self.places.get_mut(id)?;
            place.timer = None;
            match place.deadline {
                Some(deadline) if deadline <= self.now => return Some(id),
                Some(deadline) => {
                    place.timer = Some(deadline);
                    self.timers.insert((deadline, id));
                }
                None => {}
            }
        }
    }

    /// Those that have to end and do not know it.
    pub(super) fn draining(&self) -> Vec<usize> {
        let draining = self.places.iter().filter(|(_, place)| {
            let parked = place.parked.as_ref();
            parked.is_some_and(|parked| parked.has_to_drain())
        });
        draining.map(|(id, _)| id).collect()
    }

    /// Whether clients are to be let in again.
    pub(super) fn is_time_to_listen(&mut self) -> bool {
        self.listen_at.take_if(|when| *when <= self.now).is_some()
    }
}

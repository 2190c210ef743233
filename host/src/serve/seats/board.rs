//! The connections at one seat: which of them waits for what, and until when.

use std::collections::{BTreeSet, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use slab::Slab;
use socket2::Socket;

use crate::limits::process::{ACCEPT_PAUSE, EVENTS_PER_ROUND};
use crate::serve::seats::parked::{Occasion, Parked, Told, Waits};

/// The turn of nobody, from which the first thread takes the seat.
pub(super) const FIRST_TURN: u64 = 1;

/// The client has ended its side, or the connection is no more.
const LAST: EventFlags = EventFlags::RDHUP
    .union(EventFlags::HUP)
    .union(EventFlags::ERR);

/// What a thread has that holds a seat.
pub(super) struct Board {
    /// The number of the last turn.
    turn: u64,
    /// When this round began.
    pub(super) now: Instant,
    places: Slab<Place>,
    /// What the kernel has told, and about what. It does not tell it again, so this stays here for
    /// whoever takes the seat.
    events: VecDeque<(u64, Told)>,
    /// There may be letters in the inbox, or connections that have to end.
    pub(super) look_up: bool,
    /// Those that have more to do, or mail, and wait for their next turn.
    ready: VecDeque<(usize, Occasion)>,
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
    stream: Arc<Socket>,
    /// What the kernel tells of its socket, if anything.
    interest: Option<EventFlags>,
    /// What it has told while that could not be acted upon.
    told: Option<Told>,
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
            events: VecDeque::with_capacity(EVENTS_PER_ROUND),
            look_up: false,
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

    /// Waits until something has to be done.
    pub(super) fn wait(&mut self, epoll: &OwnedFd) {
        if !self.events.is_empty() {
            return;
        }
        let time = self.patience();
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        let mut room = [const { MaybeUninit::uninit() }; EVENTS_PER_ROUND];
        match epoll::wait(epoll, &mut room, time.as_ref()) {
            Ok((events, _)) => self.events.extend(events.iter().map(|event| {
                let told = match { event.flags }.intersects(LAST) {
                    true => Told::Last,
                    false => Told::More,
                };
                (event.data.u64(), told)
            })),
            Err(Errno::INTR) => {}
            // It cannot fail otherwise, and must not spin if it does.
            Err(_) => thread::sleep(ACCEPT_PAUSE),
        }
    }

    /// The next thing that the kernel has told, and what it is about.
    pub(super) fn next_event(&mut self) -> Option<(u64, Told)> {
        self.events.pop_front()
    }

    /// How long nothing has to be done if nothing happens.
    fn patience(&self) -> Option<Duration> {
        if self.look_up || !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let timer = self.timers.first().map(|(when, _)| *when);
        let next = timer.into_iter().chain(self.listen_at).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// A place for a connection that is to be driven for the first time: it stays taken until it is
    /// given up.
    pub(super) fn reserve(&mut self, stream: Arc<Socket>) -> usize {
        self.places.insert(Place {
            parked: None,
            stream,
            interest: None,
            told: None,
            deadline: None,
            timer: None,
        })
    }

    /// Takes a connection from its place, if this is an occasion for it. What the kernel has told
    /// otherwise is kept, since it tells it once: the connection has its turn later, or is driven by a
    /// thread that has lost this seat.
    pub(super) fn take(&mut self, place: usize, occasion: Occasion) -> Option<Box<Parked>> {
        let place = self.places.get_mut(place)?;
        let parked = place.parked.take_if(|parked| parked.waits_for(occasion));
        if let (None, Occasion::Told(told)) = (&parked, occasion) {
            place.told = place.told.max(Some(told));
        }
        parked
    }

    /// Puts a connection back into its place, to wait for what it waits for.
    pub(super) fn put(&mut self, epoll: &OwnedFd, id: usize, mut parked: Box<Parked>) {
        let Some(place) = self.places.get_mut(id) else {
            return;
        };
        if parked.waits != Waits::Turn
            && let Some(told) = place.told.take()
        {
            parked.hear(told);
        }
        parked.look_for_mail();
        match parked.waits {
            Waits::Turn => {
                place.deadline = None;
                self.ready.push_back((id, Occasion::Turn));
            }
            Waits::Input(within) | Waits::Room(within) | Waits::End(within) => {
                // Told once of what comes, not as long as it is there: the kernel would look at each
                // socket twice for a line, and would go on telling of a connection that is driven by
                // a thread that has lost this seat.
                let flags = match parked.waits {
                    Waits::Room(_) => EventFlags::OUT | EventFlags::ET,
                    Waits::End(_) => EventFlags::IN,
                    _ => EventFlags::IN | EventFlags::RDHUP | EventFlags::ET,
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

    /// There is mail for the connections at these places.
    pub(super) fn bring_mail(&mut self, places: Vec<usize>) {
        let with_mail = places.into_iter().map(|id| (id, Occasion::Mail));
        self.ready.extend(with_mail);
    }

    /// A connection that was taken does not come back. With its place goes the last that holds its
    /// socket, so the kernel forgets it.
    pub(super) fn give_up(&mut self, id: usize) {
        let place = self.places.try_remove(id);
        if let Some(when) = place.and_then(|place| place.timer) {
            self.timers.remove(&(when, id));
        }
    }

    /// How many wait for a turn; some may have heard their mail already.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The one that has waited longest, and why.
    pub(super) fn next_ready(&mut self) -> Option<(usize, Occasion)> {
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

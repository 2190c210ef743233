//! Few threads for many connections.
//!
//! A *seat* is an epoll descriptor, the connections that wait at it, and their timers ([`board`]).
//! One thread holds a seat: it waits there, and drives whoever has something to say
//! ([`parked`]). For the time of a turn, in which the guest is called, it lets go of the seat. If the
//! guest computes for longer than a tick ([`monitor`]), or is about to wait in the host, a spare
//! thread takes the seat; the one that has lost it finishes its turn, hands the connection back, and
//! is a spare.

mod board;
mod monitor;
mod parked;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::limits::process::{
    ACCEPT_PAUSE, ACCEPTS_PER_ROUND, OTHERS_PER_ROUND, THREAD_IDLE_TIME, THREAD_STACK_BYTES,
};
use crate::logging::Recurring;
use crate::process::capacity;
use crate::process::shutdown::Shutdown;
use crate::process::waiting;
use crate::serve::admission::{Accepted, Admission};
use crate::serve::connection::Admitted;
use crate::serve::seats::board::{Board, FIRST_TURN};
use crate::serve::seats::monitor::{Monitor, Watched};
use crate::serve::seats::parked::{Occasion, Parked};
use crate::serve::service::Service;
use crate::serve::threads::Threads;

/// What an event is about, where it is no connection; otherwise that is its place.
const WAKE: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;

/// How many connections more than another a seat may have before it lets that one have the next.
const UNEVEN: usize = 8;

/// All seats of a server, until they are dropped. Threads that hold one end then; one that is stuck
/// with a guest ends with the process.
pub(crate) struct Seats {
    shared: Arc<Shared>,
    /// How often somebody had waited at each seat when that was last asked.
    asked: Vec<u64>,
}

struct Shared {
    seats: Vec<Seat>,
    service: Arc<Service>,
    entrance: Mutex<Entrance>,
    shutdown: Shutdown,
    threads: Threads<Order>,
    /// No thread could be had for a seat.
    lacking: Mutex<Recurring>,
    /// Readable once the listener is broken.
    attention: OwnedFd,
    broken: Mutex<Option<io::Error>>,
    stopping: AtomicBool,
    /// Sees whether seats are held up.
    monitor: OnceLock<Monitor>,
}

struct Seat {
    epoll: OwnedFd,
    /// Wakes whoever waits at it.
    wake: OwnedFd,
    /// The thread that holds the seat has it locked, but for the time of a turn.
    board: Mutex<Board>,
    /// The turn that is under way, by its number; 0 if none is. Whoever ends it, by making it 0, has
    /// the seat from then on: the thread whose turn it is, or the one that takes the seat from it.
    turn: AtomicU64,
    /// The last turn for which a spare thread was called.
    called: AtomicU64,
    /// How often somebody has waited here.
    rounds: AtomicU64,
    /// How many connections it has, those on their way counted.
    connections: AtomicUsize,
    inbox: Mutex<VecDeque<Letter>>,
}

/// Where clients come in, one at a time.
struct Entrance {
    admission: Admission,
    /// Nothing when nobody is let in any more.
    listener: Option<TcpListener>,
}

/// What comes to a seat from other threads.
enum Letter {
    /// A client that another seat has let in.
    New(Admitted),
    /// A connection whose turn was finished after the seat had been lost, for its place. Nothing, if
    /// it has ended.
    Back(usize, Option<Box<Parked>>),
}

/// For a thread: take this seat, if this turn is still under way.
struct Order {
    shared: Arc<Shared>,
    seat: usize,
    turn: u64,
}

thread_local! {
    /// The seat that this thread holds or held last, and the turn it is in, or 0.
    static TURN: Cell<(usize, u64)> = const { Cell::new((0, 0)) };
}

impl Seats {
    /// Makes `count` seats, which accept from `listener` at once.
    ///
    /// # Errors
    /// The process is out of descriptors, or there is no thread.
    pub(crate) fn start(
        count: usize,
        listener: TcpListener,
        admission: Admission,
        service: &Arc<Service>,
        shutdown: &Shutdown,
    ) -> io::Result<Seats> {
        let connections = service.runtime.limits.process.connections;
        let seats = (0..count).map(|_| Seat::new());
        let shared = Arc::new(Shared {
            seats: seats.collect::<io::Result<_>>()?,
            service: Arc::clone(service),
            entrance: Mutex::new(Entrance {
                admission,
                listener: Some(listener),
            }),
            shutdown: shutdown.clone(),
            threads: Threads::new(
                connections.saturating_add(count),
                THREAD_STACK_BYTES,
                THREAD_IDLE_TIME,
                |order: Order| order.shared.hold(order.seat, order.turn),
            ),
            lacking: Mutex::new(Recurring::new()),
            attention: eventfd(0, EventfdFlags::CLOEXEC)?,
            broken: Mutex::default(),
            stopping: AtomicBool::new(false),
            monitor: OnceLock::new(),
        });
        let monitor = Monitor::start(Arc::downgrade(&shared))?;
        shared.monitor.get_or_init(|| monitor);
        for (number, seat) in shared.seats.iter().enumerate() {
            shared.listen(number, true)?;
            shutdown.connections().add_waker(seat.wake.try_clone()?);
            shared.threads.run(Order {
                shared: Arc::clone(&shared),
                seat: number,
                turn: FIRST_TURN,
            })?;
        }
        Ok(Seats {
            shared,
            asked: Vec::new(),
        })
    }

    /// Readable when [`Seats::error`] has something to say.
    pub(crate) fn attention(&self) -> BorrowedFd<'_> {
        self.shared.attention.as_fd()
    }

    /// What is wrong with the listener, if anything.
    pub(crate) fn error(&self) -> Option<io::Error> {
        lock(&self.shared.broken).take()
    }

    /// Nobody is let in any more.
    pub(crate) fn stop_accepting(&self) {
        for number in 0..self.shared.seats.len() {
            let _ = self.shared.listen(number, false);
        }
        lock(&self.shared.entrance).listener = None;
    }

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        lock(&self.shared.entrance).admission.count()
    }

    /// Whether somebody has waited at each seat since this was last asked; it wakes them for the next
    /// time.
    pub(crate) fn are_alive(&mut self) -> bool {
        let seats = self.shared.seats.iter();
        let rounds: Vec<_> = seats
            .map(|seat| seat.rounds.load(Ordering::SeqCst))
            .collect();
        let alive = self
            .asked
            .iter()
            .zip(&rounds)
            .all(|(asked, now)| asked != now);
        self.asked = rounds;
        self.shared.seats.iter().for_each(Seat::wake);
        alive
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.seats.iter().for_each(Seat::wake);
        if let Some(monitor) = self.shared.monitor.get() {
            monitor.stop();
        }
    }
}

impl Watched for Weak<Shared> {
    fn look(&self, turns: &mut Vec<u64>) -> Option<u64> {
        let shared = self.upgrade()?;
        turns.clear();
        turns.extend(
            shared
                .seats
                .iter()
                .map(|seat| seat.turn.load(Ordering::Relaxed)),
        );
        let rounds = shared.seats.iter();
        (!shared.stopping.load(Ordering::SeqCst))
            .then(|| rounds.map(|seat| seat.rounds.load(Ordering::SeqCst)).sum())
    }

    fn is_held_up(&self, seat: usize, turn: u64) {
        if let Some(shared) = self.upgrade() {
            shared.call_spare(seat, turn);
        }
    }
}

impl Seat {
    fn new() -> io::Result<Seat> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Seat {
            epoll,
            wake,
            board: Mutex::new(Board::new()),
            turn: AtomicU64::new(FIRST_TURN),
            called: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            inbox: Mutex::default(),
        })
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn send(&self, letter: Letter) {
        lock(&self.inbox).push_back(letter);
        self.wake();
    }

    /// Puts a connection back into its place after a turn, or gives that up if it has ended.
    fn put_back(&self, board: &mut Board, place: usize, parked: Option<Box<Parked>>) {
        match parked {
            Some(parked) => board.put(&self.epoll, place, parked),
            None => {
                board.give_up(place);
                self.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Begins a turn, for which the board is let go.
    fn begin_turn(&self, number: usize, mut board: MutexGuard<'_, Board>) -> u64 {
        let turn = board.next_turn();
        TURN.set((number, turn));
        self.turn.store(turn, Ordering::Release);
        turn
    }

    /// The board again, for a thread that has let go of it in a panic; unless it has lost the seat.
    fn reclaim(&self) -> Option<MutexGuard<'_, Board>> {
        match TURN.get() {
            (_, 0) => Some(lock(&self.board)),
            (_, turn) => self.end_turn(turn),
        }
    }

    /// Ends a turn, and has the seat from then on; unless somebody else has ended it.
    fn end_turn(&self, turn: u64) -> Option<MutexGuard<'_, Board>> {
        TURN.set((TURN.get().0, 0));
        let ended = self
            .turn
            .compare_exchange(turn, 0, Ordering::AcqRel, Ordering::Acquire);
        ended.is_ok().then(|| lock(&self.board))
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Has a spare thread take a seat whose thread is stuck in this turn.
    fn call_spare(self: &Arc<Shared>, number: usize, turn: u64) {
        let seat = &self.seats[number];
        if seat.called.swap(turn, Ordering::Relaxed) == turn {
            return;
        }
        let order = Order {
            shared: Arc::clone(self),
            seat: number,
            turn,
        };
        let room = self.service.runtime.room.check_thread(self.threads.live());
        let called = room
            .map_err(io::Error::other)
            .and_then(|()| self.threads.run(order));
        if let Err(error) = called {
            seat.called.store(0, Ordering::Relaxed);
            if let Some(times) = lock(&self.lacking).again() {
                tracing::warn!(
                    times,
                    "no thread for those that wait beside a slow guest: {error}"
                );
            }
        }
    }

    /// What a thread does that takes a seat, until it loses it.
    fn hold(self: &Arc<Shared>, number: usize, stuck: u64) {
        let shared = Arc::clone(self);
        waiting::before_each(move || {
            let (number, turn) = TURN.get();
            if turn != 0 && shared.seats[number].turn.load(Ordering::Relaxed) == turn {
                shared.call_spare(number, turn);
            }
        });
        let seat = &self.seats[number];
        // Whoever held it may have come back in time.
        let Some(mut board) = seat.end_turn(stuck) else {
            return;
        };
        while !self.stopping.load(Ordering::SeqCst) {
            // A panic would be a bug of ours. It may cost one connection, and not all at the seat.
            let round = panic::catch_unwind(AssertUnwindSafe(|| self.round(number, board)));
            board = match round.unwrap_or_else(|_| seat.reclaim()) {
                Some(board) => board,
                None => return,
            };
        }
    }

    /// Waits, and drives whoever has something to say. Returns the board, unless the seat was lost.
    fn round<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
    ) -> Option<MutexGuard<'a, Board>> {
        let seat = &self.seats[number];
        board.wait(&seat.epoll);
        board.now = Instant::now();
        seat.rounds.fetch_add(1, Ordering::SeqCst);
        if let Some(monitor) = self.monitor.get() {
            monitor.wake();
        }
        while let Some((about, told)) = board.next_event() {
            board = match about {
                WAKE => self.look_up(number, board)?,
                LISTENER => self.accept(number, board)?,
                place => self.advance(number, board, place as usize, Occasion::Told(told))?,
            };
        }
        for _ in 0..board.ready() {
            if let Some(id) = board.next_ready() {
                board = self.advance(number, board, id, Occasion::Turn)?;
            }
        }
        for _ in 0..OTHERS_PER_ROUND {
            let Some(id) = board.next_due() else {
                break;
            };
            board = self.advance(number, board, id, Occasion::TimeUp)?;
        }
        if board.is_time_to_listen() && self.listen(number, true).is_err() {
            board.listen_at = Some(Instant::now() + ACCEPT_PAUSE);
        }
        Some(board)
    }

    /// Drives one connection as far as it gets.
    fn advance<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
        place: usize,
        occasion: Occasion,
    ) -> Option<MutexGuard<'a, Board>> {
        match board.take(place, occasion) {
            Some(parked) => self.take_turn(number, board, place, || parked.advance(occasion)),
            None => Some(board),
        }
    }

    /// Lets go of the board for a turn of the connection at this place.
    fn take_turn<'a>(
        &'a self,
        number: usize,
        board: MutexGuard<'a, Board>,
        place: usize,
        drive: impl FnOnce() -> Option<Box<Parked>>,
    ) -> Option<MutexGuard<'a, Board>> {
        let seat = &self.seats[number];
        let turn = seat.begin_turn(number, board);
        let parked = drive();
        let Some(mut board) = seat.end_turn(turn) else {
            seat.send(Letter::Back(place, parked));
            return None;
        };
        seat.put_back(&mut board, place, parked);
        Some(board)
    }

    /// Takes what has come, and has those end that have to.
    fn look_up<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
    ) -> Option<MutexGuard<'a, Board>> {
        let seat = &self.seats[number];
        let _ = rustix::io::read(&seat.wake, &mut [0_u8; 8]);
        for _ in 0..OTHERS_PER_ROUND {
            let Some(letter) = lock(&seat.inbox).pop_front() else {
                break;
            };
            match letter {
                Letter::Back(place, parked) => {
                    if parked.as_ref().is_some_and(|parked| parked.has_to_drain()) {
                        board.endings = None;
                    }
                    seat.put_back(&mut board, place, parked);
                }
                Letter::New(admitted) => {
                    board = self.start(number, board, admitted).or_else(|| {
                        // Whoever has the seat now goes on with the rest.
                        seat.wake();
                        None
                    })?;
                }
            }
        }
        if !lock(&seat.inbox).is_empty() {
            seat.wake();
        }
        let endings = Some(self.shutdown.connections().endings());
        if board.endings != endings {
            // Until all have been told: the seat may be lost before that, and others have to have
            // their turns in between.
            board.endings = None;
            let draining = board.draining();
            let more = draining.len() > OTHERS_PER_ROUND;
            for id in draining.into_iter().take(OTHERS_PER_ROUND) {
                let told = self.advance(number, board, id, Occasion::Drain);
                board = told.or_else(|| {
                    seat.wake();
                    None
                })?;
            }
            if more {
                seat.wake();
            } else {
                board.endings = endings;
            }
        }
        Some(board)
    }

    /// Lets clients in, each to the seat that has the fewest.
    fn accept<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
    ) -> Option<MutexGuard<'a, Board>> {
        for _ in 0..ACCEPTS_PER_ROUND {
            if !self.shutdown.is_accepting() {
                break;
            }
            let accepted = {
                let Entrance {
                    admission,
                    listener: Some(listener),
                } = &mut *lock(&self.entrance)
                else {
                    break;
                };
                match admission.accept(listener, self.threads.live()) {
                    // Where each has a thread, that is asked when the thread is started.
                    Ok(Accepted::Client(admitted)) => match self.check_addresses() {
                        Ok(()) => Ok(Accepted::Client(admitted)),
                        Err(error) => {
                            admission.refuse(admitted.permit.stream(), &error.to_string());
                            Ok(Accepted::Refused)
                        }
                    },
                    other => other,
                }
            };
            match accepted {
                Ok(Accepted::Client(admitted)) => {
                    let fewest = self.fewest(number);
                    self.seats[fewest]
                        .connections
                        .fetch_add(1, Ordering::Relaxed);
                    if fewest == number {
                        board = self.start(number, board, admitted)?;
                    } else {
                        self.seats[fewest].send(Letter::New(admitted));
                    }
                }
                Ok(Accepted::Refused) => {}
                Ok(Accepted::Nobody) => break,
                Ok(Accepted::Starved) => {
                    let _ = self.listen(number, false);
                    board.listen_at = Some(Instant::now() + ACCEPT_PAUSE);
                    break;
                }
                Err(error) => {
                    let _ = self.listen(number, false);
                    *lock(&self.broken) = Some(error);
                    let _ = rustix::io::write(&self.attention, &1_u64.to_ne_bytes());
                    break;
                }
            }
        }
        Some(board)
    }

    /// Whether there are addresses for one connection more.
    fn check_addresses(&self) -> io::Result<()> {
        let seats = self.seats.iter();
        let counts = seats.map(|seat| seat.connections.load(Ordering::Relaxed));
        capacity::check_addresses(counts.sum::<usize>().max(self.threads.live()))
    }

    /// The seat for one connection more: this one, unless another has far fewer.
    fn fewest(&self, number: usize) -> usize {
        let count = |seat: &Seat| seat.connections.load(Ordering::Relaxed);
        let seats = self.seats.iter().enumerate();
        let fewest = seats.min_by_key(|(_, seat)| count(seat));
        match fewest {
            Some((fewest, seat)) if count(seat) + UNEVEN < count(&self.seats[number]) => fewest,
            _ => number,
        }
    }

    /// Serves a client from now on, at this seat.
    fn start<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
        admitted: Admitted,
    ) -> Option<MutexGuard<'a, Board>> {
        let place = board.reserve(Arc::clone(admitted.permit.stream()));
        self.take_turn(number, board, place, || {
            Parked::start(admitted, &self.service)
        })
    }

    /// Has clients let in by this seat, or not.
    fn listen(&self, number: usize, listens: bool) -> io::Result<()> {
        let seat = &self.seats[number];
        let entrance = lock(&self.entrance);
        let Some(listener) = &entrance.listener else {
            return Ok(());
        };
        if listens {
            // A client wakes one seat of those that are exclusive, and this may be a seat of another
            // process, which has just handed the listener over and accepts no more. So one is not.
            let flags = match number {
                0 => EventFlags::IN,
                _ => EventFlags::IN | EventFlags::EXCLUSIVE,
            };
            epoll::add(&seat.epoll, listener, EventData::new_u64(LISTENER), flags)?;
        } else {
            epoll::delete(&seat.epoll, listener)?;
        }
        Ok(())
    }
}

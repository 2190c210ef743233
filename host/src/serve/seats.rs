//! Few threads for many connections.
//!
//! A *seat* is an epoll descriptor, the connections that wait at it, and their timers ([`board`]).
//! One thread holds a seat: it waits there, and drives whoever has something to say
//! ([`parked`]). For the time of a turn, in which the guest is called, it lets go of the seat. If the
//! guest computes for longer than a tick ([`monitor`]), or is about to wait in the host, a spare
//! thread takes the seat; the one that has lost it finishes its turn, hands the connection back, and
//! is a spare.

mod board;
mod entrance;
mod monitor;
mod parked;
mod seat;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::limits::process::{
    ACCEPT_PAUSE, OTHERS_PER_ROUND, THREAD_IDLE_TIME, THREAD_STACK_BYTES,
};
use crate::logging::Recurring;
use crate::process::room::Room;
use crate::process::shutdown::Shutdown;
use crate::process::waiting;
use crate::sandbox::host::Host;
use crate::serve::admission::{Candidate, Door};
use crate::serve::connection::Admitted;
use crate::serve::handshakes::{self, Newcomer};
use crate::serve::headers;
use crate::serve::seats::board::{Board, FIRST_TURN};
use crate::serve::seats::entrance::Entrance;
use crate::serve::seats::monitor::{Monitor, Watched};
use crate::serve::seats::parked::{Occasion, Parked};
use crate::serve::seats::seat::{DOORS, Letter, Seat, WAKE, lock, this_turn};
use crate::serve::threads::Threads;
use crate::serve::waiting_room::WaitingRoom;

/// All seats of a server, until they are dropped. Threads that hold one end then; one that is stuck
/// with a guest ends with the process.
pub(crate) struct Seats {
    /// Both end before the seats do, to which they give clients.
    _headers: WaitingRoom<Candidate>,
    _handshakes: WaitingRoom<Newcomer>,
    shared: Arc<Shared>,
    /// How often somebody had waited at each seat when that was last asked.
    asked: Vec<u64>,
}

struct Shared {
    seats: Arc<[Seat]>,
    room: Arc<Room>,
    entrance: Entrance,
    shutdown: Shutdown,
    threads: Arc<Threads<Order>>,
    /// No thread could be had for a seat.
    lacking: Mutex<Recurring>,
    /// Readable once the listener is broken.
    attention: OwnedFd,
    broken: Mutex<Option<io::Error>>,
    stopping: AtomicBool,
    /// Sees whether seats are held up.
    monitor: OnceLock<Monitor>,
}

/// For a thread: take this seat, if this turn is still under way.
struct Order {
    shared: Arc<Shared>,
    seat: usize,
    turn: u64,
}

impl Seats {
    /// Makes `count` seats. There is no door yet.
    ///
    /// # Errors
    /// The process is out of descriptors, or there is no thread.
    pub(crate) fn start(count: usize, host: &Host, shutdown: &Shutdown) -> io::Result<Seats> {
        let seats = (0..count).map(|_| Seat::new());
        let seats = seats.collect::<io::Result<Arc<[_]>>>()?;
        let threads = Arc::new(Threads::new(
            host.limits.connections.saturating_add(count),
            THREAD_STACK_BYTES,
            THREAD_IDLE_TIME,
            |order: Order| order.shared.hold(order.seat, order.turn),
        ));
        let handshakes = handshakes::room(shutdown, {
            let seats = Arc::clone(&seats);
            move |admitted| entrance::seat(&seats, admitted)
        });
        let headers = headers::room(shutdown, {
            let (seats, threads) = (Arc::clone(&seats), Arc::clone(&threads));
            let queue = Arc::clone(handshakes.queue());
            move |candidate, proxied| {
                entrance::let_in_later(&seats, &queue, candidate, proxied, threads.live());
            }
        });
        let queues = (Arc::clone(headers.queue()), Arc::clone(handshakes.queue()));
        let shared = Arc::new(Shared {
            seats,
            room: Arc::clone(&host.room),
            entrance: Entrance::new(shutdown.clone(), queues.0, queues.1),
            shutdown: shutdown.clone(),
            threads,
            lacking: Mutex::new(Recurring::new()),
            attention: eventfd(0, EventfdFlags::CLOEXEC)?,
            broken: Mutex::default(),
            stopping: AtomicBool::new(false),
            monitor: OnceLock::new(),
        });
        let monitor = Monitor::start(Arc::downgrade(&shared))?;
        shared.monitor.get_or_init(|| monitor);
        for (number, seat) in shared.seats.iter().enumerate() {
            shutdown.connections().add_waker(seat.waker()?);
            shared.threads.run(Order {
                shared: Arc::clone(&shared),
                seat: number,
                turn: FIRST_TURN,
            })?;
        }
        Ok(Seats {
            _headers: headers,
            _handshakes: handshakes,
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

    /// Lets clients in at these doors from now on, and at no others.
    pub(crate) fn change(&self, doors: Vec<Door>) {
        self.shared.entrance.change(&self.shared.seats, doors);
    }

    /// How many clients have been let in.
    pub(crate) fn count(&self) -> u64 {
        self.shared.entrance.count()
    }

    /// Whether somebody has waited at each seat since this was last asked; it wakes them for the next
    /// time.
    pub(crate) fn are_alive(&mut self) -> bool {
        let rounds: Vec<_> = self.shared.seats.iter().map(Seat::rounds).collect();
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
        turns.extend(shared.seats.iter().map(Seat::turn));
        (!shared.stopping.load(Ordering::SeqCst))
            .then(|| shared.seats.iter().map(Seat::rounds).sum())
    }

    fn is_held_up(&self, seat: usize, turn: u64) {
        if let Some(shared) = self.upgrade() {
            shared.call_spare(seat, turn);
        }
    }
}

impl Shared {
    /// Has a spare thread take a seat whose thread is stuck in this turn.
    fn call_spare(self: &Arc<Shared>, number: usize, turn: u64) {
        let seat = &self.seats[number];
        if !seat.calls_for(turn) {
            return;
        }
        let order = Order {
            shared: Arc::clone(self),
            seat: number,
            turn,
        };
        let room = self.room.check_thread(self.threads.live());
        let called = room
            .map_err(io::Error::other)
            .and_then(|()| self.threads.run(order));
        if let Err(error) = called {
            seat.call_again();
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
            let (number, turn) = this_turn();
            if turn != 0 && shared.seats[number].turn() == turn {
                shared.call_spare(number, turn);
            }
        });
        let seat = &self.seats[number];
        // Whoever held it may have come back in time.
        let Some(mut board) = seat.end_turn(stuck) else {
            return;
        };
        while !self.stopping.load(Ordering::SeqCst) {
            // A panic would be a bug of ours. It must not cost all connections at the seat.
            let round = panic::catch_unwind(AssertUnwindSafe(|| self.round(number, board)));
            board = match round.unwrap_or_else(|_| Some(seat.board())) {
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
        seat.count_round();
        if let Some(monitor) = self.monitor.get() {
            monitor.wake();
        }
        while let Some((about, told)) = board.next_event() {
            match about {
                WAKE => {
                    seat.has_woken();
                    board.bring_mail(seat.take_mail());
                    board.look_up = true;
                }
                door @ DOORS.. => self.let_in(number, &mut board, (door - DOORS) as usize),
                place => {
                    board = self.advance(number, board, place as usize, Occasion::Told(told))?;
                }
            }
        }
        if board.look_up {
            board = self.look_up(number, board)?;
        }
        for _ in 0..board.ready() {
            if let Some((id, occasion)) = board.next_ready() {
                board = self.advance(number, board, id, occasion)?;
            }
        }
        for _ in 0..OTHERS_PER_ROUND {
            let Some(id) = board.next_due() else {
                break;
            };
            board = self.advance(number, board, id, Occasion::TimeUp)?;
        }
        if board.is_time_to_listen() && self.entrance.listen(seat, number, true).is_err() {
            board.listen_at = Some(Instant::now() + ACCEPT_PAUSE);
        }
        Some(board)
    }

    fn let_in(&self, number: usize, board: &mut Board, door: usize) {
        let threads = self.threads.live();
        let let_in = self
            .entrance
            .let_in(&self.seats, number, board, door, threads);
        if let Err(error) = let_in {
            *lock(&self.broken) = Some(error);
            let _ = rustix::io::write(&self.attention, &1_u64.to_ne_bytes());
        }
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
        // A panic ends this connection.
        let parked = panic::catch_unwind(AssertUnwindSafe(drive)).unwrap_or(None);
        if let Some(mailbox) = parked.as_ref().and_then(|parked| parked.mailbox())
            && !mailbox.has_bell()
        {
            let seats = Arc::downgrade(&self.seats);
            mailbox.ring(move || {
                if let Some(seats) = seats.upgrade() {
                    seats[number].post(place);
                }
            });
        }
        let Some(mut board) = seat.end_turn(turn) else {
            seat.send(Letter::Back(place, parked));
            return None;
        };
        seat.put_back(&mut board, place, parked);
        Some(board)
    }

    /// Takes what has come, and has those end that have to: some of them, since others have to have
    /// their turns in between. The seat may be lost on the way, so that it is to be done stays on the
    /// board until all is.
    fn look_up<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
    ) -> Option<MutexGuard<'a, Board>> {
        let seat = &self.seats[number];
        for _ in 0..OTHERS_PER_ROUND {
            match seat.next_letter() {
                Some(Letter::New(admitted)) => board = self.start(number, board, admitted)?,
                Some(Letter::Back(place, parked)) => {
                    if parked.as_ref().is_some_and(|parked| parked.has_to_drain()) {
                        board.endings = None;
                    }
                    seat.put_back(&mut board, place, parked);
                }
                None => break,
            }
        }
        let endings = Some(self.shutdown.connections().endings());
        let mut draining = match board.endings == endings {
            true => Vec::new(),
            false => board.draining(),
        };
        let told = draining.len().min(OTHERS_PER_ROUND);
        for place in draining.drain(..told) {
            board = self.advance(number, board, place, Occasion::Drain)?;
        }
        if draining.is_empty() {
            board.endings = endings;
            board.look_up = seat.has_letters();
        }
        Some(board)
    }

    /// Serves a client from now on, at this seat.
    fn start<'a>(
        &'a self,
        number: usize,
        mut board: MutexGuard<'a, Board>,
        admitted: Box<Admitted>,
    ) -> Option<MutexGuard<'a, Board>> {
        let place = board.reserve(Arc::clone(admitted.permit.stream()));
        self.take_turn(number, board, place, || Parked::start(admitted))
    }
}

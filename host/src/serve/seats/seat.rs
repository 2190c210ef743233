//! One seat: where the connections of one thread wait, and whose turn it is.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::serve::connection::Admitted;
use crate::serve::seats::board::{Board, FIRST_TURN};
use crate::serve::seats::parked::Parked;

/// What an event is about, where it is no connection; otherwise that is its place.
pub(super) const WAKE: u64 = u64::MAX;
/// With the number of the door.
pub(super) const DOORS: u64 = 1 << 32;

pub(super) struct Seat {
    pub(super) epoll: OwnedFd,
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
    inbox: Mutex<Inbox>,
    /// Places of connections that have mail.
    mail: Mutex<Vec<usize>>,
}

/// What comes to a seat besides events.
pub(super) enum Letter {
    /// A client that has been let in.
    New(Box<Admitted>),
    /// A connection whose turn was finished after the seat had been lost, for its place. Nothing, if
    /// it has ended.
    Back(usize, Option<Box<Parked>>),
}

/// Letters that nobody has read. Thousands may be new at once, and those who come back are served
/// already: they are first.
#[derive(Default)]
struct Inbox {
    back: VecDeque<Letter>,
    new: VecDeque<Letter>,
}

thread_local! {
    /// The seat that this thread holds or held last, and the turn it is in, or 0.
    static TURN: Cell<(usize, u64)> = const { Cell::new((0, 0)) };
}

/// The seat that this thread holds or held last, and the turn it is in, or 0.
pub(super) fn this_turn() -> (usize, u64) {
    TURN.get()
}

impl Seat {
    /// # Errors
    /// The process is out of descriptors.
    pub(super) fn new() -> io::Result<Seat> {
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
            mail: Mutex::default(),
        })
    }

    /// Has whoever waits at it look into the inbox, and whether connections have to end.
    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Whoever was woken looks now.
    pub(super) fn has_woken(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
    }

    /// Another descriptor that wakes it when it is written to.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub(super) fn waker(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// Leaves a letter for whoever holds it, and wakes nobody.
    pub(super) fn leave(&self, letter: Letter) {
        let mut inbox = lock(&self.inbox);
        match letter {
            Letter::New(_) => inbox.new.push_back(letter),
            Letter::Back(..) => inbox.back.push_back(letter),
        }
    }

    pub(super) fn send(&self, letter: Letter) {
        self.leave(letter);
        self.wake();
    }

    /// The connection at this place has mail. Whoever is first wakes the one who holds the seat.
    pub(super) fn post(&self, place: usize) {
        let mut mail = lock(&self.mail);
        let is_first = mail.is_empty();
        mail.push(place);
        drop(mail);
        if is_first {
            self.wake();
        }
    }

    /// The places of those that have mail since this was last asked.
    pub(super) fn take_mail(&self) -> Vec<usize> {
        mem::take(&mut *lock(&self.mail))
    }

    pub(super) fn next_letter(&self) -> Option<Letter> {
        let mut inbox = lock(&self.inbox);
        inbox.back.pop_front().or_else(|| inbox.new.pop_front())
    }

    pub(super) fn has_letters(&self) -> bool {
        let inbox = lock(&self.inbox);
        !inbox.back.is_empty() || !inbox.new.is_empty()
    }

    /// How many connections it has, those on their way counted.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// One more is on its way.
    pub(super) fn expect_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts a connection back into its place after a turn, or gives that up if it has ended.
    pub(super) fn put_back(&self, board: &mut Board, place: usize, parked: Option<Box<Parked>>) {
        match parked {
            Some(parked) => board.put(&self.epoll, place, parked),
            None => {
                board.give_up(place);
                self.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// How often somebody has waited here.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    pub(super) fn count_round(&self) {
        self.rounds.fetch_add(1, Ordering::SeqCst);
    }

    /// The turn that is under way, or 0.
    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Whether a spare thread is to be called for this turn, the first time that is asked.
    pub(super) fn calls_for(&self, turn: u64) -> bool {
        self.called.swap(turn, Ordering::Relaxed) != turn
    }

    /// None has come.
    pub(super) fn call_again(&self) {
        self.called.store(0, Ordering::Relaxed);
    }

    /// Begins a turn, for which the board is let go.
    pub(super) fn begin_turn(&self, number: usize, mut board: MutexGuard<'_, Board>) -> u64 {
        let turn = board.next_turn();
        TURN.set((number, turn));
        self.turn.store(turn, Ordering::Release);
        turn
    }

    /// Ends a turn, and has the seat from then on; unless somebody else has ended it.
    pub(super) fn end_turn(&self, turn: u64) -> Option<MutexGuard<'_, Board>> {
        TURN.set((TURN.get().0, 0));
        let ended = self
            .turn
            .compare_exchange(turn, 0, Ordering::AcqRel, Ordering::Acquire);
        ended.is_ok().then(|| self.board())
    }

    /// The board, for the thread that holds the seat and is in no turn.
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }
}

/// A panic while one of these locks is held leaves nothing half done that matters, so a poisoned one is
/// as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

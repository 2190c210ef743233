//! A thread that looks at every tick whether a turn is the same as at the last, and so sees which seats
//! are held up; and that sleeps while nothing happens, when it has given back memory that is free.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use crate::limits::process::SEAT_TICK;
use crate::process::heap;

/// Ticks after which it sleeps when nobody has done anything at any seat.
const IDLE_TICKS: u32 = 100;

/// Wakes it.
pub(super) struct Monitor {
    thread: Thread,
    asleep: Arc<AtomicBool>,
}

/// What it looks at. Nothing: the seats are no more, and it ends.
pub(super) trait Watched: Send + 'static {
    /// The turn that is under way at each seat, 0 for none, and how often somebody has waited at any.
    fn look(&self, turns: &mut Vec<u64>) -> Option<u64>;

    /// The turn at this seat is the same as a tick before.
    fn is_held_up(&self, seat: usize, turn: u64);
}

impl Monitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn start(watched: impl Watched) -> io::Result<Monitor> {
        let asleep = Arc::<AtomicBool>::default();
        let thread = thread::Builder::new().name("seats".to_owned()).spawn({
            let asleep = Arc::clone(&asleep);
            move || watch(&watched, &asleep)
        })?;
        Ok(Monitor {
            thread: thread.thread().clone(),
            asleep,
        })
    }

    /// Somebody has waited at a seat, and has counted that.
    pub(super) fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            self.thread.unpark();
        }
    }

    /// Has it look again, and end if there is nothing to look at.
    pub(super) fn stop(&self) {
        self.thread.unpark();
    }
}

fn watch(watched: &impl Watched, asleep: &AtomicBool) {
    let (mut turns, mut last, mut rounds, mut idle_ticks) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        thread::park_timeout(SEAT_TICK);
        let Some(now) = watched.look(&mut turns) else {
            return;
        };
        last.resize(turns.len(), 0);
        for (seat, (turn, last)) in turns.iter().zip(&last).enumerate() {
            if *turn != 0 && turn == last {
                watched.is_held_up(seat, *turn);
            }
        }
        std::mem::swap(&mut turns, &mut last);
        let is_idle = now == rounds && last.iter().all(|turn| *turn == 0);
        idle_ticks = if is_idle { idle_ticks + 1 } else { 0 };
        rounds = now;
        if idle_ticks > IDLE_TICKS {
            idle_ticks = 0;
            heap::give_back();
            asleep.store(true, Ordering::SeqCst);
            // Whoever waits from now on sees that; one who has just done so shows here.
            if watched.look(&mut turns) == Some(rounds) {
                thread::park();
            }
        }
    }
}

//! How clients come in: whichever thread is told of one lets in all that wait, each to the seat with
//! the fewest connections if that is far behind.

use std::io;
use std::sync::Mutex;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::limits::process::{ACCEPT_PAUSE, ACCEPTS_PER_ROUND};
use crate::process::capacity;
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{self, Accepted, Admission};
use crate::serve::seats::board::Board;
use crate::serve::seats::seat::{DOORS, Letter, Seat, lock};

/// How many connections more than another a seat may have before it lets that one have the next.
const UNEVEN: usize = 8;

/// Where clients come in, one at a time.
pub(super) struct Entrance {
    admission: Mutex<Admission>,
    shutdown: Shutdown,
}

impl Entrance {
    /// Until `shutdown` begins. No seat is told of any client yet.
    pub(super) fn new(admission: Admission, shutdown: Shutdown) -> Entrance {
        Entrance {
            admission: Mutex::new(admission),
            shutdown,
        }
    }

    /// How many clients have been let in.
    pub(super) fn count(&self) -> u64 {
        lock(&self.admission).count()
    }

    /// Lets clients in at a door, for the thread that holds the seat of this number and where there are
    /// so many `threads`. Those for this seat are in its inbox then: thousands may come at once, and
    /// would not all have room in the kernel's queue for as long as their guests take to greet.
    ///
    /// # Errors
    /// The listener is broken.
    pub(super) fn let_in(
        &self,
        seats: &[Seat],
        number: usize,
        board: &mut Board,
        door: usize,
        threads: usize,
    ) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_ROUND {
            let connections = seats.iter().map(Seat::connections).sum();
            match self.accept(door, connections, threads) {
                Ok(Accepted::Client(admitted)) => {
                    let fewest = fewest(seats, number);
                    seats[fewest].expect_connection();
                    if fewest == number {
                        seats[fewest].leave(Letter::New(admitted));
                        board.look_up = true;
                    } else {
                        seats[fewest].send(Letter::New(admitted));
                    }
                }
                Ok(Accepted::Refused) => {}
                Ok(Accepted::Nobody) => break,
                Ok(Accepted::Starved) => {
                    let _ = self.listen(&seats[number], number, false);
                    board.listen_at = Some(Instant::now() + ACCEPT_PAUSE);
                    break;
                }
                Err(error) => {
                    let _ = self.listen(&seats[number], number, false);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn accept(&self, door: usize, connections: usize, threads: usize) -> io::Result<Accepted> {
        let mut admission = lock(&self.admission);
        if !self.shutdown.is_accepting() {
            return Ok(Accepted::Nobody);
        }
        match admission.accept(door, threads)? {
            // Where each has a thread, that is asked when the thread is started.
            Accepted::Client(admitted) => match capacity::check_addresses(connections.max(threads))
            {
                Ok(()) => Ok(Accepted::Client(admitted)),
                Err(error) => {
                    let stream = admitted.permit.stream();
                    admission::refuse(&admitted.service, stream, &error.to_string());
                    Ok(Accepted::Refused)
                }
            },
            other => Ok(other),
        }
    }

    /// Has this seat told of clients, or not.
    ///
    /// # Errors
    /// The kernel has no room for that.
    pub(super) fn listen(&self, seat: &Seat, number: usize, listens: bool) -> io::Result<()> {
        // A client wakes one seat of those that are exclusive, and this may be a seat of another
        // process, which has just handed the listener over and accepts no more. So one is not.
        let flags = match number {
            0 => EventFlags::IN,
            _ => EventFlags::IN | EventFlags::EXCLUSIVE,
        };
        let admission = lock(&self.admission);
        for (door, listener) in (DOORS..).zip(admission.listeners()) {
            let told = match listens {
                true => epoll::add(&seat.epoll, listener, EventData::new_u64(door), flags),
                false => epoll::delete(&seat.epoll, listener),
            };
            match told {
                // Some doors may have been told of before there was no room for the others.
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Nobody is let in any more.
    pub(super) fn close(&self, seats: &[Seat]) {
        for (number, seat) in seats.iter().enumerate() {
            let _ = self.listen(seat, number, false);
        }
        lock(&self.admission).close();
    }
}

/// The seat for one connection more: this one, unless another has far fewer.
fn fewest(seats: &[Seat], number: usize) -> usize {
    let fewest = seats
        .iter()
        .enumerate()
        .min_by_key(|(_, seat)| seat.connections());
    match fewest {
        Some((fewest, seat)) if seat.connections() + UNEVEN < seats[number].connections() => fewest,
        _ => number,
    }
}

//! How clients come in: whichever thread is told of one lets in all that wait, each to the seat with
//! the fewest connections if that is far behind.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::limits::process::{ACCEPT_PAUSE, ACCEPTS_PER_ROUND};
use crate::process::capacity;
use crate::process::shutdown::Shutdown;
use crate::serve::admission::{self, Accepted, Admission, Candidate, Changed, Door, Telling};
use crate::serve::connection::Admitted;
use crate::serve::handshakes::{self, Newcomer};
use crate::serve::headers;
use crate::serve::proxy::Proxied;
use crate::serve::seats::board::Board;
use crate::serve::seats::seat::{DOORS, Letter, Seat, lock};
use crate::serve::waiting_room::Queue;

/// How many connections more than another a seat may have before it lets that one have the next.
const UNEVEN: usize = 8;

/// Where clients come in, one at a time.
pub(super) struct Entrance {
    admission: Mutex<Admission>,
    headers: Arc<Queue<Candidate>>,
    shutdown: Shutdown,
    handshakes: Arc<Queue<Newcomer>>,
}

impl Entrance {
    /// Until `shutdown` begins. There is no door yet.
    pub(super) fn new(
        shutdown: Shutdown,
        headers: Arc<Queue<Candidate>>,
        handshakes: Arc<Queue<Newcomer>>,
    ) -> Entrance {
        Entrance {
            admission: Mutex::new(Admission::new()),
            headers,
            shutdown,
            handshakes,
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
                Ok(Accepted::Client(mut admitted)) => {
                    if let Some(handshake) = admitted.handshake.take() {
                        handshakes::shake(&self.handshakes, admitted, handshake);
                        continue;
                    }
                    let fewest = fewest(seats, number);
                    seats[fewest].expect_connection();
                    if fewest == number {
                        seats[fewest].leave(Letter::New(admitted));
                        board.look_up = true;
                    } else {
                        seats[fewest].send(Letter::New(admitted));
                    }
                }
                Ok(Accepted::Expected(candidate)) => headers::expect(&self.headers, candidate),
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
            Accepted::Client(admitted) => {
                let admitted = with_addresses(admitted, connections.max(threads));
                Ok(admitted.map_or(Accepted::Refused, Accepted::Client))
            }
            other => Ok(other),
        }
    }

    /// Has this seat told of clients, or not.
    ///
    /// # Errors
    /// The kernel has no room for that.
    pub(super) fn listen(&self, seat: &Seat, number: usize, listens: bool) -> io::Result<()> {
        let admission = lock(&self.admission);
        for (door, listener) in admission.listeners() {
            let told = match listens {
                true => tell(seat, number, door, listener),
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

    /// Lets clients in at these doors from now on, and at no others.
    pub(super) fn change(&self, seats: &[Seat], doors: Vec<Door>) {
        let mut admission = lock(&self.admission);
        let Changed { opened, closed } = admission.change(doors);
        for (number, seat) in seats.iter().enumerate() {
            for listener in &closed {
                // The next process, or whoever has it from us, may have it open too.
                let _ = epoll::delete(&seat.epoll, listener);
            }
            for &door in &opened {
                let Some(listener) = admission.listener(door) else {
                    continue;
                };
                if let Err(error) = tell(seat, number, door, listener) {
                    tracing::error!("a seat is not told of new clients: {error}");
                }
            }
        }
    }
}

/// Has the seat of this number told of clients at this door.
fn tell(seat: &Seat, number: usize, door: usize, listener: BorrowedFd<'_>) -> Result<(), Errno> {
    // A client wakes one seat of those that are exclusive, and this may be a seat of another
    // process, which has just handed the listener over and accepts no more. So one is not.
    let flags = match number {
        0 => EventFlags::IN,
        _ => EventFlags::IN | EventFlags::EXCLUSIVE,
    };
    let data = EventData::new_u64(DOORS + door as u64);
    epoll::add(&seat.epoll, listener, data, flags)
}

/// Has a client whose proxy has said who it is served, after its handshake if there is to be one.
pub(super) fn let_in_later(
    seats: &[Seat],
    handshakes: &Arc<Queue<Newcomer>>,
    candidate: Candidate,
    proxied: Option<Proxied>,
    threads: usize,
) {
    let connections: usize = seats.iter().map(Seat::connections).sum();
    let admitted = admission::admit(candidate, proxied, threads);
    let admitted = admitted.and_then(|one| with_addresses(one, connections.max(threads)));
    let Some(mut admitted) = admitted else {
        return;
    };
    match admitted.handshake.take() {
        Some(config) => handshakes::shake(handshakes, admitted, config),
        None => seat(seats, admitted),
    }
}

/// Gives a client to the seat with the fewest connections.
pub(super) fn seat(seats: &[Seat], admitted: Box<Admitted>) {
    let fewest = seats.iter().min_by_key(|seat| seat.connections());
    if let Some(seat) = fewest {
        seat.expect_connection();
        seat.send(Letter::New(admitted));
    }
}

/// This client, if there are addresses for one more beside so many, or else it has been told.
fn with_addresses(admitted: Box<Admitted>, connections: usize) -> Option<Box<Admitted>> {
    match capacity::check_addresses(connections) {
        Ok(()) => Some(admitted),
        Err(error) => {
            let telling = Telling::before(admitted.handshake.as_ref());
            let (service, stream) = (&admitted.service, admitted.permit.stream());
            admission::refuse(service, stream, telling, &error.to_string());
            None
        }
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

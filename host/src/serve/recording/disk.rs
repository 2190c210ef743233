//! The thread that writes recordings to the disk, and the queue before it: a disk that is slow, or
//! stuck, makes no client wait.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::budget::Budget;
use crate::limits::process::{RECORDING_END_TIME, RECORDING_QUEUE_BYTES};
use crate::logging::Recurring;
use crate::talk::recorder::CUT;

/// What an order takes beside its text.
const ORDER_BYTES: u64 = 128;

/// The thread. Dropping it has it write what waits, for as long as that may take, and end.
pub struct Disk {
    queue: Queue,
    /// Closed by the thread at its end.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Where connections leave what is to be written. Nobody waits here.
#[derive(Clone)]
pub(super) struct Queue {
    orders: Sender<Order>,
    room: Arc<Budget>,
}

enum Order {
    /// Make this file, which is known by its number from then on, with a text at its top. When it
    /// cannot be written to, that is said by `failed`.
    Begin {
        number: u64,
        path: PathBuf,
        head: String,
        failed: Arc<AtomicBool>,
    },
    /// Write all of this, or nothing.
    Append { number: u64, text: Vec<u8> },
    /// Nothing comes any more, with a word about it when that is too early.
    End { number: u64, cut: bool },
    /// The server ends.
    Stop,
}

impl Disk {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no room for it.
    pub(super) fn start() -> io::Result<Disk> {
        let (orders, ordered) = channel();
        let (alive, ended) = channel();
        let room = Budget::new(RECORDING_QUEUE_BYTES);
        let thread = thread::Builder::new()
            .name("recordings".to_owned())
            .spawn({
                let room = Arc::clone(&room);
                move || {
                    write_all(&ordered, &room);
                    drop::<Sender<()>>(alive);
                }
            })?;
        Ok(Disk {
            queue: Queue { orders, room },
            ended,
            thread: Some(thread),
        })
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.queue.orders.send(Order::Stop);
        if self.ended.recv_timeout(RECORDING_END_TIME) == Err(RecvTimeoutError::Timeout) {
            let bytes = RECORDING_QUEUE_BYTES - self.queue.room.take_rest();
            tracing::error!(
                bytes,
                "the end of the recordings is lost: the disk is too slow"
            );
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Queue {
    /// Whether there was room for it.
    pub(super) fn begin(
        &self,
        number: u64,
        path: PathBuf,
        head: String,
        failed: Arc<AtomicBool>,
    ) -> bool {
        self.leave(Order::Begin {
            number,
            path,
            head,
            failed,
        })
    }

    /// Whether there was room for it.
    pub(super) fn append(&self, number: u64, text: &[u8]) -> bool {
        let text = text.to_vec();
        self.leave(Order::Append { number, text })
    }

    /// There is always room: the beginning has paid for it.
    pub(super) fn end(&self, number: u64, cut: bool) {
        self.leave(Order::End { number, cut });
    }

    fn leave(&self, order: Order) -> bool {
        self.room.take(order.cost_bytes()) && self.orders.send(order).is_ok()
    }
}

impl Order {
    /// What it takes of the queue's room.
    fn cost_bytes(&self) -> u64 {
        match self {
            Order::Begin { path, head, .. } => {
                let path_bytes = path.as_os_str().len();
                2 * ORDER_BYTES + (path_bytes + head.len()) as u64
            }
            Order::Append { text, .. } => ORDER_BYTES + text.len() as u64,
            Order::End { .. } | Order::Stop => 0,
        }
    }
}

/// An open file that has all it was given so far.
struct Recorded {
    file: File,
    bytes: u64,
    failed: Arc<AtomicBool>,
}

fn write_all(orders: &Receiver<Order>, room: &Budget) {
    let mut files: HashMap<u64, Recorded> = HashMap::new();
    for order in orders {
        let bytes = order.cost_bytes();
        match order {
            Order::Begin {
                number,
                path,
                head,
                failed,
            } => {
                if let Some(recorded) = Recorded::begin(path, &head, failed) {
                    files.insert(number, recorded);
                }
            }
            Order::Append { number, text } => {
                if let Some(recorded) = files.get_mut(&number)
                    && !recorded.append(&text)
                {
                    files.remove(&number);
                }
            }
            Order::End { number, cut } => {
                if let Some(mut recorded) = files.remove(&number)
                    && cut
                {
                    recorded.append(CUT.as_bytes());
                }
            }
            Order::Stop => return,
        }
        room.give_back(bytes);
    }
}

impl Recorded {
    fn begin(path: PathBuf, head: &str, failed: Arc<AtomicBool>) -> Option<Recorded> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                cannot_record(&error);
                failed.store(true, Ordering::Relaxed);
                return None;
            }
        };
        let mut recorded = Recorded {
            file,
            bytes: 0,
            failed,
        };
        if !recorded.append(head.as_bytes()) {
            // Better none than an empty one.
            let _ = fs::remove_file(path);
            return None;
        }
        Some(recorded)
    }

    /// All of it or nothing: a conversation that is cut in the middle of a line is none.
    fn append(&mut self, text: &[u8]) -> bool {
        if let Err(error) = self.file.write_all(text) {
            let _ = self.file.set_len(self.bytes);
            cannot_record(&error);
            self.failed.store(true, Ordering::Relaxed);
            return false;
        }
        self.bytes += text.len() as u64;
        true
    }
}

/// The reason is the same for every connection, a full disk for instance: said once in a while.
pub(super) fn cannot_record(error: &dyn Display) {
    static SAID: Mutex<Recurring> = Mutex::new(Recurring::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.again().is_some() {
        tracing::warn!("a conversation is not recorded, or not to its end: {error}");
    }
}

//! Certificates that change while the server serves: noticed, checked, and given to new connections; what is
//! wrong with new ones is said, and the old ones stay. Those that are about to expire are said too.
//!
//! One thread does that for all doors.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::limits::process::{CERTIFICATE_LOOK_TIME, CERTIFICATE_SETTLE_TIME};
use crate::process::service_manager::Reloading;
use crate::serve::tls::Tls;
use crate::versions::guest_file::Fingerprint;
use crate::versions::watch::Watch;

/// How often it is said that a certificate is about to expire.
const WARN_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Looks after the certificates of all doors until it is dropped.
pub struct Renewal {
    orders: Sender<Order>,
    thread: Mutex<Keeping>,
    has_doors: Arc<AtomicBool>,
}

enum Keeping {
    /// There is no door yet, and no thread.
    NotBegun(Receiver<Order>),
    Begun(JoinHandle<()>),
    Ended,
}

/// Asks for the files to be read again, from elsewhere.
#[derive(Clone)]
pub struct Trigger {
    orders: Sender<Order>,
    has_doors: Arc<AtomicBool>,
}

impl Trigger {
    /// Reads all files now, changed or not, as a part of this reload. Returns whether there are any.
    pub fn reload(&self, reloading: Reloading) -> bool {
        let has_doors = self.has_doors.load(Ordering::SeqCst);
        // Without any, nobody would ever take it, and it would never end.
        if has_doors {
            let _ = self.orders.send(Order::Reload(reloading));
        }
        has_doors
    }
}

enum Order {
    /// Look after this door too, for as long as there is one.
    Door(Weak<Tls>),
    /// Files may have changed.
    Look,
    Reload(Reloading),
    Stop,
}

impl Default for Renewal {
    fn default() -> Renewal {
        let (orders, given) = mpsc::channel();
        Renewal {
            orders,
            thread: Mutex::new(Keeping::NotBegun(given)),
            has_doors: Arc::default(),
        }
    }
}

impl Renewal {
    /// Looks after this door too, for as long as somebody else has it.
    ///
    /// # Errors
    /// It is the first, and the system has no room for another thread.
    pub fn look_after(&self, tls: &Arc<Tls>) -> io::Result<()> {
        let mut thread = self.thread();
        *thread = match mem::replace(&mut *thread, Keeping::Ended) {
            Keeping::NotBegun(given) => Keeping::Begun(self.begin(given)?),
            begun => begun,
        };
        drop(thread);
        self.has_doors.store(true, Ordering::SeqCst);
        let _ = self.orders.send(Order::Door(Arc::downgrade(tls)));
        Ok(())
    }

    fn begin(&self, given: Receiver<Order>) -> io::Result<JoinHandle<()>> {
        let changed = self.orders.clone();
        let watch = Watch::start(move || drop(changed.send(Order::Look)));
        if let Err(error) = &watch {
            tracing::warn!(
                "certificates are looked at every {CERTIFICATE_LOOK_TIME:?} only: {error}"
            );
        }
        let keeper = Keeper {
            doors: Vec::new(),
            watch: watch.ok(),
        };
        thread::Builder::new()
            .name("certificates".to_owned())
            .spawn(move || keeper.run(&given))
    }

    /// For whoever may ask for a reload.
    pub fn trigger(&self) -> Trigger {
        Trigger {
            orders: self.orders.clone(),
            has_doors: Arc::clone(&self.has_doors),
        }
    }

    fn thread(&self) -> MutexGuard<'_, Keeping> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        let thread = mem::replace(&mut *self.thread(), Keeping::Ended);
        if let Keeping::Begun(thread) = thread {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    doors: Vec<Door>,
    watch: Option<Watch>,
}

/// What the files of a door are like.
type State = Vec<Option<Fingerprint>>;

struct Door {
    tls: Weak<Tls>,
    /// When they were last read.
    seen: State,
    /// While they change, and since when they are like that.
    unsettled: Option<(State, Instant)>,
    /// When it was last said that they are about to expire.
    warned: SystemTime,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let time = match self.doors.iter().any(|door| door.unsettled.is_some()) {
                true => CERTIFICATE_SETTLE_TIME,
                false => CERTIFICATE_LOOK_TIME,
            };
            // Held until all has been read.
            let reloading = match orders.recv_timeout(time) {
                Ok(Order::Door(tls)) => {
                    self.doors.extend(Door::new(tls));
                    None
                }
                Ok(Order::Reload(reloading)) => Some(reloading),
                Ok(Order::Look) | Err(RecvTimeoutError::Timeout) => None,
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            };
            self.look(reloading.is_some());
        }
    }

    fn look(&mut self, ordered: bool) {
        let doors: Vec<_> = self.doors.iter().map(|door| door.tls.upgrade()).collect();
        if let Some(watch) = &mut self.watch {
            watch.follow(doors.iter().flatten().flat_map(|tls| tls.files()));
        }
        let mut doors = doors.into_iter();
        self.doors.retain_mut(|door| {
            let tls = doors.next().flatten();
            tls.is_some_and(|tls| {
                door.look(&tls, ordered);
                true
            })
        });
    }
}

impl Door {
    /// The files were read just before.
    fn new(tls: Weak<Tls>) -> Option<Door> {
        let seen = state(&*tls.upgrade()?);
        Some(Door {
            tls,
            seen,
            unsettled: None,
            warned: SystemTime::now(),
        })
    }

    fn look(&mut self, tls: &Tls, ordered: bool) {
        let now = state(tls);
        if ordered || now != self.seen {
            let since = match self.unsettled.take() {
                Some((same, since)) if same == now => since,
                _ => Instant::now(),
            };
            // A certificate and its key are two files, written one after the other.
            if ordered || since.elapsed() >= CERTIFICATE_SETTLE_TIME {
                self.seen = now;
                self.reload(tls);
            } else {
                self.unsettled = Some((now, since));
            }
        } else {
            self.unsettled = None;
        }
        let now = SystemTime::now();
        if now.duration_since(self.warned).unwrap_or(WARN_TIME) >= WARN_TIME {
            self.warned = now;
            tls.warn(now);
        }
    }

    fn reload(&mut self, tls: &Tls) {
        match tls.reload() {
            Ok(()) => {
                tracing::info!(expires = %tls.expires(), "new connections get the certificates as they are now");
                self.warned = SystemTime::now();
                tls.warn(self.warned);
            }
            Err(error) => {
                tracing::error!("refused the new certificates, those before stay: {error}");
            }
        }
    }
}

fn state(tls: &Tls) -> State {
    tls.files().map(Fingerprint::of).collect()
}

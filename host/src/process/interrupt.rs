//! Ends the wait of a thread that is blocked in a read.
//!
//! Ending the input of its socket would wake it too, but for good: from then on the kernel answers
//! whatever the client sends after our last word with a reset, which may overtake that word.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use signal_hook::consts::SIGURG;
use signal_hook::flag;

/// Makes this process ready to interrupt its threads. A read that has a time limit and is interrupted
/// by a signal fails with `EINTR`, whatever its handler asks for (signal(7)); nothing else is to
/// happen, so the signal is one that nobody else sends or would miss.
///
/// # Errors
/// The system refuses a signal handler.
pub(crate) fn prepare() -> io::Result<()> {
    flag::register(SIGURG, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// The thread that reads from a connection.
#[derive(Debug, Default)]
pub(crate) struct Reader(
    /// Its number in the system; 0 until it has begun.
    AtomicI32,
);

impl Reader {
    /// It is the one that calls this.
    pub(crate) fn is_this_thread(&self) {
        let thread = rustix::thread::gettid();
        self.0
            .store(thread.as_raw_nonzero().get(), Ordering::SeqCst);
    }

    /// Whether there is such a thread.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Ends a read that it is blocked in. One that it is about to begin is not ended.
    #[expect(unsafe_code, reason = "there is no safe interface to tgkill")]
    pub(crate) fn interrupt(&self) {
        let thread = self.0.load(Ordering::SeqCst);
        if thread == 0 {
            return;
        }
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: `tgkill` takes three numbers and touches no memory. If the thread has ended, its
        // number is nobody's, or that of another thread of this process, to which the signal does
        // as little.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SIGURG) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_blocked_read_is_interrupted_and_can_be_done_again() {
        prepare().expect("a handler");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        let (mut server, _) = listener.accept().expect("the same");
        server
            .set_read_timeout(Some(Duration::from_secs(3600)))
            .expect("a socket");
        let reader = Arc::new(Reader::default());
        reader.interrupt();
        let same = Arc::clone(&reader);
        let reading = thread::spawn(move || {
            same.is_this_thread();
            let kinds = [(); 2].map(|()| server.read(&mut [0]).map_err(|error| error.kind()));
            drop(client);
            kinds
        });
        // It may not have begun to read yet.
        while !reading.is_finished() {
            reader.interrupt();
            thread::sleep(Duration::from_millis(1));
        }
        let kinds = reading.join().expect("no panic");
        assert_eq!(kinds, [Err(ErrorKind::Interrupted); 2]);
    }
}

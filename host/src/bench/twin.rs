//! The native twin: a plain server with a thread per connection and the greeter's logic compiled
//! in, as fast as that gets.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use super::talk::CHUNK;
use crate::listener;

/// As many as Airlock's.
const BACKLOG: u16 = 1024;

/// Serves on a free port, which is printed, until the process ends.
///
/// # Errors
/// There is no port, or nobody to tell.
pub fn serve(mut output: impl Write) -> io::Result<()> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = listener::bind(any, BACKLOG, false).map_err(io::Error::other)?;
    writeln!(output, "listening on {}", listener.local_addr()?)?;
    for stream in listener.incoming().flatten() {
        // Clients that leave in the middle are no concern of a benchmark; one without a thread
        // notices.
        let _ = thread::Builder::new().spawn(move || greet(&stream));
    }
    Ok(())
}

fn greet(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"Welcome!\n")?;
    let mut buffer = vec![0; CHUNK];
    let mut pending = 0;
    let mut replies = Vec::new();
    loop {
        let count = stream.read(&mut buffer[pending..])?;
        if count == 0 {
            return Ok(());
        }
        let end = pending + count;
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &buffer[start..end]) {
            let line = &buffer[start..start + length];
            start += length + 1;
            match str::from_utf8(line) {
                Ok("exit") => return stream.write_all(&replies),
                Ok(name) => {
                    replies.extend_from_slice(b"Hello, ");
                    replies.extend_from_slice(name.as_bytes());
                    replies.extend_from_slice(b"!\n");
                }
                Err(_) => return Ok(()),
            }
        }
        buffer.copy_within(start..end, 0);
        pending = end - start;
        stream.write_all(&replies)?;
        replies.clear();
    }
}

//! Connections that have heard the greeting.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use airlock::process::capacity;

use crate::fault::Fault;
use crate::plan::Plan;
use crate::talk::{CHUNK, wrong};

/// Connections that are opened before the greetings of all of them are heard: the way to a distant
/// server is waited for once, and no backlog overflows.
const BATCH: usize = 64;

/// How long the end of a wrong greeting may take.
const REST_TIME: Duration = Duration::from_millis(100);

/// Raises the limit of open files, of the servers that are started too.
///
/// # Errors
/// There is no room for so many connections.
pub fn make_room(connections: usize) -> Result<(), Fault> {
    let room = capacity::raise_open_files();
    if connections as u64 > room {
        return Err(Fault::Descriptors { connections, room });
    }
    Ok(())
}

/// Opens so many connections, which do not block from then on.
pub(crate) fn open(
    plan: &Plan,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<TcpStream>, Fault> {
    let mut streams: Vec<TcpStream> = Vec::with_capacity(count);
    while streams.len() < count {
        let greeted = streams.len();
        for _ in 0..BATCH.min(count - greeted) {
            let stream = connect(plan, address).map_err(|error| Fault::Connect(address, error))?;
            streams.push(stream);
        }
        for stream in &streams[greeted..] {
            hear_greeting(plan, stream)?;
            stream.set_nonblocking(true)?;
        }
    }
    Ok(streams)
}

fn connect(plan: &Plan, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, plan.timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(plan.timeout))?;
    Ok(stream)
}

fn hear_greeting(plan: &Plan, mut stream: &TcpStream) -> Result<(), Fault> {
    const WHAT: &str = "the greeting";
    let greeting = &plan.talk.greeting;
    let mut heard = vec![0; greeting.len()];
    let mut end = 0;
    while end < heard.len() {
        end += match stream.read(&mut heard[end..]) {
            Ok(0) => return Err(Fault::Closed(WHAT)),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(Fault::Silent(WHAT, plan.timeout));
            }
            Err(error) => return Err(Fault::Broken(WHAT, error)),
        };
        // At once: a wrong one may be shorter, and the rest would never come.
        if !greeting.starts_with(&heard[..end]) {
            let line = [&heard[..end], &rest_of_line(stream, &heard[..end])].concat();
            return Err(wrong(WHAT, &line, greeting));
        }
    }
    Ok(())
}

/// What a wrong greeting has beyond the length of the right one, so that it is shown whole.
fn rest_of_line(mut stream: &TcpStream, heard: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    if !heard.contains(&b'\n') && stream.set_read_timeout(Some(REST_TIME)).is_ok() {
        rest.resize(CHUNK, 0);
        // No more is as good as an error here.
        let count = stream.read(&mut rest).unwrap_or_default();
        rest.truncate(count);
    }
    rest
}

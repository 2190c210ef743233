//! The load: one thread that waits for all connections.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use airlock::talk::client::Endpoint;
use anyhow::{Context, Result, bail, ensure};
use bench::servers::Server;
use hdrhistogram::Histogram;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lines,
    /// The same, and who hears gets what is published as it is.
    Relayed,
    Redis,
}

/// What came of one turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Of the server's time on its processor.
    pub(crate) per_core: f64,
    pub(crate) per_second: f64,
    /// From when a message was sent until it was there.
    pub(crate) p99_millis: f64,
}

/// Of each by itself; none of no turns.
pub(crate) fn medians(turns: &[Figures]) -> Option<Figures> {
    let median = |pick: fn(&Figures) -> f64| {
        let mut values: Vec<_> = turns.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Figures {
        per_core: median(|turn| turn.per_core)?,
        per_second: median(|turn| turn.per_second)?,
        p99_millis: median(|turn| turn.p99_millis)?,
    })
}

/// A guest may publish 100 messages a second: so several speak in turn. With few who hear, that is too few,
/// and the bench ends since nothing comes any more.
const SPEAKERS: usize = 16;

/// Nothing that works takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Each message goes to all who hear, when the one before has come to all.
pub(crate) fn one_to_many(
    server: &Server<'_>,
    kind: Kind,
    count: usize,
    duration: Duration,
) -> Result<Figures> {
    let mut speakers = VecDeque::new();
    for _ in 0..SPEAKERS {
        speakers.push_back(Connection::open(server, kind)?);
    }
    let mut hearers = Hearers::new()?;
    for _ in 0..count {
        let mut hearer = Connection::open(server, kind)?;
        hearer.hear("t")?;
        hearers.add(hearer)?;
    }
    let mut latencies = Histogram::<u64>::new(3)?;
    let (began, cpu_before) = (Instant::now(), server.processor_time()?);
    let mut number = 0;
    let mut last_heard = vec![0; count];
    while began.elapsed() < duration {
        number += 1;
        let sent = Instant::now();
        if let Some(mut speaker) = speakers.pop_front() {
            speaker.say("t", &body(number))?;
            speakers.push_back(speaker);
        }
        let mut left = count;
        while left > 0 {
            hearers.next(|hearer, said| {
                let last = &mut last_heard[hearer];
                ensure!(said == *last + 1, "it hears {said} after {last}");
                *last = said;
                left -= 1;
                latencies.saturating_record(sent.elapsed().as_micros() as u64);
                Ok(None)
            })?;
        }
    }
    figures(server, number * count as u64, began, cpu_before, &latencies)
}

/// Two and two tell each other what they have heard.
pub(crate) fn pairs(
    server: &Server<'_>,
    kind: Kind,
    count: usize,
    duration: Duration,
) -> Result<Figures> {
    let mut hearers = Hearers::new()?;
    for number in 0..2 * count {
        let mut hearer = Connection::open(server, kind)?;
        hearer.hear(&format!("t{number}"))?;
        hearers.add(hearer)?;
    }
    let mut latencies = Histogram::<u64>::new(3)?;
    let (began, cpu_before) = (Instant::now(), server.processor_time()?);
    let mut sent = vec![began; count];
    for pair in 0..count {
        let other = format!("t{}", 2 * pair + 1);
        hearers.connections[2 * pair].say(&other, &body(1))?;
    }
    let mut messages = 0;
    let mut expected = vec![1; count];
    while began.elapsed() < duration {
        hearers.next(|hearer, said| {
            let pair = hearer / 2;
            let expected = &mut expected[pair];
            ensure!(said == *expected, "it hears {said}, not {expected}");
            *expected += 1;
            messages += 1;
            latencies.saturating_record(sent[pair].elapsed().as_micros() as u64);
            sent[pair] = Instant::now();
            Ok(Some((format!("t{}", hearer ^ 1), body(*expected))))
        })?;
    }
    figures(server, messages, began, cpu_before, &latencies)
}

fn figures(
    server: &Server<'_>,
    count: u64,
    began: Instant,
    cpu_before: Duration,
    latencies: &Histogram<u64>,
) -> Result<Figures> {
    let elapsed = began.elapsed();
    let cpu = server.processor_time()?.saturating_sub(cpu_before);
    Ok(Figures {
        per_core: count as f64 / cpu.as_secs_f64(),
        per_second: count as f64 / elapsed.as_secs_f64(),
        p99_millis: latencies.value_at_quantile(0.99) as f64 / 1e3,
    })
}

/// All are equally long, so that each costs the same.
fn body(number: u64) -> String {
    format!("message-{number:020}")
}

struct Connection {
    stream: TcpStream,
    kind: Kind,
    /// What has come of a line whose end has not.
    pending: Vec<u8>,
}

impl Connection {
    fn open(server: &Server<'_>, kind: Kind) -> Result<Connection> {
        let Endpoint::Ip(address) = server.address.endpoint else {
            bail!("it listens at {}", server.address);
        };
        let stream = TcpStream::connect::<SocketAddr>(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Connection {
            stream,
            kind,
            pending: Vec::new(),
        };
        if kind != Kind::Redis {
            connection.wait_for(b"hello\n")?;
        }
        Ok(connection)
    }

    fn hear(&mut self, topic: &str) -> Result<()> {
        let (command, confirmed) = match self.kind {
            Kind::Lines => (format!("hear {topic}\n"), b"ok\n".as_slice()),
            Kind::Relayed => (format!("relay {topic}\n"), b"ok\n".as_slice()),
            Kind::Redis => (format!("SUBSCRIBE {topic}\r\n"), b":1\r\n".as_slice()),
        };
        self.stream.write_all(command.as_bytes())?;
        self.wait_for(confirmed)
    }

    fn say(&mut self, topic: &str, body: &str) -> Result<()> {
        let text = match self.kind {
            Kind::Lines => format!("say {topic} {body}\n"),
            Kind::Relayed => format!("tell {topic} {body}\n"),
            Kind::Redis => format!("PUBLISH {topic} {body}\r\n"),
        };
        Ok(self.stream.write_all(text.as_bytes())?)
    }

    fn wait_for(&mut self, end: &[u8]) -> Result<()> {
        while !self.pending.ends_with(end) {
            let mut room = [0; 256];
            let count = self.stream.read(&mut room)?;
            ensure!(count > 0, "it has closed");
            self.pending.extend_from_slice(&room[..count]);
        }
        self.pending.clear();
        Ok(())
    }
}

/// Connections that hear something.
struct Hearers {
    connections: Vec<Connection>,
    epoll: OwnedFd,
}

impl Hearers {
    fn new() -> Result<Hearers> {
        Ok(Hearers {
            connections: Vec::new(),
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    fn add(&mut self, connection: Connection) -> Result<()> {
        connection.stream.set_nonblocking(true)?;
        let data = EventData::new_u64(self.connections.len() as u64);
        epoll::add(&self.epoll, &connection.stream, data, EventFlags::IN)?;
        self.connections.push(connection);
        Ok(())
    }

    /// Waits until some have heard something, and calls `heard` with each one's place and the number that
    /// it hears. Says what that returns, as topic and body.
    fn next(
        &mut self,
        mut heard: impl FnMut(usize, u64) -> Result<Option<(String, String)>>,
    ) -> Result<()> {
        let mut room = [const { MaybeUninit::uninit() }; 256];
        let patience = PATIENCE.try_into()?;
        let (events, _) = epoll::wait(&self.epoll, &mut room, Some(&patience))?;
        ensure!(!events.is_empty(), "nothing comes any more");
        for event in &*events {
            let place = event.data.u64() as usize;
            let connection = &mut self.connections[place];
            let mut room = [0; 4096];
            let count = match connection.stream.read(&mut room) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            ensure!(count > 0, "it has closed");
            connection.pending.extend_from_slice(&room[..count]);
            let end = memchr::memrchr(b'\n', &connection.pending).map_or(0, |end| end + 1);
            let lines: Vec<u8> = connection.pending.drain(..end).collect();
            for line in lines.split(|&byte| byte == b'\n') {
                let line = str::from_utf8(line).context("it is no text")?;
                let Some((_, number)) = line.trim_end().split_once("message-") else {
                    // What else a Redis says is around its messages.
                    ensure!(
                        connection.kind == Kind::Redis || matches!(line, "" | "ok"),
                        "it says {line:?}"
                    );
                    continue;
                };
                if let Some((topic, body)) = heard(place, number.parse()?)? {
                    connection.say(&topic, &body)?;
                }
            }
        }
        Ok(())
    }
}

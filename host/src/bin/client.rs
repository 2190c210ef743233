//! `client`: talks to a line server. With names it sends them one by one; without, it sends what
//! it reads on standard input.

use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use airlock::limits::wire::ANSWER_BYTES;
use airlock::logging::printable;
use anyhow::{Context, Result, bail};
use clap::Parser;

/// Greets a server with each NAME and prints what it answers, then leaves with `exit`.
///
/// It expects one line for each name, as the greeter answers.
/// The exit status is 0 when every name was answered.
#[derive(Debug, Parser)]
#[command(name = "client", version, max_term_width = 100)]
struct Cli {
    /// The server
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9999")]
    #[arg(value_parser = airlock::settings::values::address)]
    connect: std::net::SocketAddr,

    /// How long to wait for the connection, and for the whole of each answer
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: humantime::Duration,

    /// Do not wait for a greeting: the server expects the client to speak first
    #[arg(long)]
    no_greeting: bool,

    /// What to send; without any, the lines of standard input
    #[arg(value_name = "NAME", value_parser = one_line)]
    names: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match talk(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "client: {}", printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn one_line(name: &str) -> Result<String, String> {
    if name.contains(['\n', '\r']) {
        return Err("a name is one line".to_owned());
    }
    Ok(name.to_owned())
}

fn talk(cli: &Cli) -> Result<()> {
    let stream = TcpStream::connect_timeout(&cli.connect, *cli.timeout)
        .with_context(|| format!("cannot connect to {}", cli.connect))?;
    stream.set_nodelay(true)?;
    let mut server = Server::new(&stream, *cli.timeout);
    if !cli.no_greeting {
        server.answer().context("no greeting")?;
    }
    if cli.names.is_empty() {
        talk_from_stdin(&mut server)?;
    } else {
        for name in cli.names.iter().take_while(|name| *name != "exit") {
            server.ask(name)?;
        }
    }
    server.send("exit").context("cannot take leave")?;
    // For a guest that leaves at another word.
    stream.shutdown(Shutdown::Write)?;
    server.rest()
}

fn talk_from_stdin(server: &mut Server<'_>) -> Result<()> {
    let interactive = io::stdin().is_terminal();
    let mut lines = io::stdin().lines();
    loop {
        if interactive {
            let mut out = io::stdout().lock();
            out.write_all(b"> ")?;
            out.flush()?;
        }
        match lines.next().transpose()? {
            Some(line) if line == "exit" => return Ok(()),
            Some(line) => server.ask(&line)?,
            None => return Ok(()),
        }
    }
}

/// A server that has so much time for each answer, from the question to the end of it.
struct Server<'a> {
    input: BufReader<Timed<'a>>,
    time: Duration,
}

impl<'a> Server<'a> {
    fn new(stream: &'a TcpStream, time: Duration) -> Server<'a> {
        let deadline = Instant::now() + time;
        Server {
            input: BufReader::new(Timed { stream, deadline }),
            time,
        }
    }

    /// Sends one line and prints the answer.
    fn ask(&mut self, line: &str) -> Result<()> {
        let sent = self.send(line);
        // A server that has closed may have said why.
        let answered = self.answer();
        sent.and(answered)
            .with_context(|| format!("`{line}` was not answered"))
    }

    fn send(&mut self, line: &str) -> Result<()> {
        let output = self.input.get_mut();
        output.deadline = Instant::now() + self.time;
        match output.write_all(format!("{line}\n").as_bytes()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("the server does not read")
            }
            sent => Ok(sent?),
        }
    }

    fn answer(&mut self) -> Result<()> {
        let Some(line) = self.line()? else {
            bail!("the server closed the connection");
        };
        writeln!(io::stdout(), "{}", printable(&line))?;
        // The shim's own words are no answer to a name.
        match line.strip_prefix("error: ") {
            Some(refusal) => bail!("the server refused: {refusal}"),
            None => Ok(()),
        }
    }

    /// Prints what the server says after the leave, until it closes.
    fn rest(&mut self) -> Result<()> {
        while let Some(line) = self.line().context("the server does not close")? {
            writeln!(io::stdout(), "{}", printable(&line))?;
        }
        Ok(())
    }

    /// One line without its ending, or what is left of one; none at the end.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let mut input = (&mut self.input).take(ANSWER_BYTES);
        match input.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(None),
            Ok(_) if input.limit() == 0 => bail!("a line is longer than {ANSWER_BYTES} bytes"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => match line.len() {
                0 => bail!("the server is silent"),
                _ => bail!("the server does not finish its line"),
            },
            Err(error) => return Err(error.into()),
        }
        let line = String::from_utf8_lossy(&line);
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// A socket until a deadline, however often it is ready before that. After it all is `WouldBlock`.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn time_left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::WouldBlock.into()),
            time => Ok(Some(time)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.time_left()?)?;
        self.stream.read(room)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.time_left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

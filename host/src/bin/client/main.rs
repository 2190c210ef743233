//! `client`: talks to a line server. With names it sends them one by one; without, it sends what
//! it reads on standard input.

mod messages;
mod tls;
mod wire;

use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use airlock::limits::wire::ANSWER_BYTES;
use airlock::logging::printable;
use airlock::settings::address::Address;
use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::messages::Messages;
use crate::tls::TlsOptions;
use crate::wire::{Wire, connect};

/// Greets a server with each NAME and prints what it answers, then leaves with `exit`.
///
/// It expects one line for each name, as the greeter answers.
/// The exit status is 0 when every name was answered.
#[derive(Debug, Parser)]
#[command(name = "client", version, max_term_width = 100)]
struct Cli {
    /// The server
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9999")]
    connect: Target,

    #[command(flatten)]
    tls: TlsOptions,

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

/// Where a server is, and what it is called.
#[derive(Debug, Clone)]
struct Target {
    address: Address,
    host: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (_, rest) = text.split_once("://").unwrap_or(("", text));
        let (host, _) = rest.rsplit_once(':').unwrap_or((rest, ""));
        Ok(Target {
            address: text.parse()?,
            host: host.trim_matches(['[', ']']).to_owned(),
        })
    }
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
    let Cli {
        connect: target,
        tls,
        timeout,
        ..
    } = cli;
    let wire = connect(target, tls, **timeout);
    let wire = wire.with_context(|| format!("cannot connect to {}", target.address))?;
    let mut server = Server {
        speech: Speech::new(wire, target)?,
        time: **timeout,
    };
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
    server.end()?;
    server.rest()
}

fn talk_from_stdin(server: &mut Server) -> Result<()> {
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
struct Server {
    speech: Speech,
    time: Duration,
}

/// What is spoken with it.
enum Speech {
    Lines(BufReader<Wire>),
    Messages(Messages),
}

impl Speech {
    fn new(wire: Wire, target: &Target) -> Result<Speech> {
        Ok(match target.address.scheme.is_websocket() {
            true => Speech::Messages(Messages::begin(wire, target)?),
            false => Speech::Lines(BufReader::new(wire)),
        })
    }

    fn wire(&mut self) -> &mut Wire {
        match self {
            Speech::Lines(input) => input.get_mut(),
            Speech::Messages(messages) => messages.wire(),
        }
    }
}

impl Server {
    /// Sends one line and prints the answer.
    fn ask(&mut self, line: &str) -> Result<()> {
        let sent = self.send(line);
        // A server that has closed may have said why.
        let answered = self.answer();
        sent.and(answered)
            .with_context(|| format!("`{line}` was not answered"))
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.speech.wire().begin_time(self.time);
        let sent = match &mut self.speech {
            Speech::Lines(input) => input.get_mut().write_all(format!("{line}\n").as_bytes()),
            Speech::Messages(messages) => messages.send(line),
        };
        match sent {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("the server does not read")
            }
            sent => Ok(sent?),
        }
    }

    /// Says that nothing more comes.
    fn end(&mut self) -> Result<()> {
        match &mut self.speech {
            Speech::Lines(input) => input.get_mut().end_output()?,
            Speech::Messages(messages) => messages.end(),
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        let Some(line) = self.line()? else {
            bail!("the server closed the connection");
        };
        print(&line)?;
        // The shim's own words are no answer to a name.
        match line.strip_prefix("error: ") {
            Some(refusal) => bail!("the server refused: {refusal}"),
            None => Ok(()),
        }
    }

    /// Prints what the server says after the leave, until it closes.
    fn rest(&mut self) -> Result<()> {
        while let Some(line) = self.line().context("the server does not close")? {
            print(&line)?;
        }
        Ok(())
    }

    /// One line without its ending, or what is left of one, or one message; none at the end.
    fn line(&mut self) -> Result<Option<String>> {
        let input = match &mut self.speech {
            Speech::Lines(input) => input,
            Speech::Messages(messages) => return messages.receive(),
        };
        let mut line = Vec::new();
        let mut input = input.take(ANSWER_BYTES);
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

/// A message may have several lines.
fn print(text: &str) -> io::Result<()> {
    let mut lines = text.split('\n');
    lines.try_for_each(|line| writeln!(io::stdout(), "{}", printable(line)))
}

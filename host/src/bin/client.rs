//! `client`: talks to a line server. With names it sends them one by one; without, it sends what
//! it reads on standard input.

use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;

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
    #[arg(value_parser = airlock::cli::address)]
    connect: std::net::SocketAddr,

    /// How long to wait for the connection and for each answer
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
            let _ = writeln!(io::stderr(), "client: {error:#}");
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
    stream.set_read_timeout(Some(*cli.timeout))?;
    let mut server = Server {
        output: &stream,
        input: BufReader::new(&stream),
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

struct Server<'a> {
    output: &'a TcpStream,
    input: BufReader<&'a TcpStream>,
}

impl Server<'_> {
    /// Sends one line and prints the answer.
    fn ask(&mut self, line: &str) -> Result<()> {
        let sent = self.send(line);
        // A server that has closed may have said why.
        let answered = self.answer();
        sent.and(answered)
            .with_context(|| format!("`{line}` was not answered"))
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.output.write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("the server is silent"),
            Err(error) => return Err(error.into()),
        }
        let line = line.trim_end_matches(['\r', '\n']);
        writeln!(io::stdout(), "{line}")?;
        // The shim's own words are no answer to a name.
        match line.strip_prefix("error: ") {
            Some(refusal) => bail!("the server refused: {refusal}"),
            None => Ok(()),
        }
    }

    /// Prints what the server says after the leave, until it closes.
    fn rest(&mut self) -> Result<()> {
        io::copy(&mut self.input, &mut io::stdout()).context("the server does not close")?;
        Ok(())
    }
}

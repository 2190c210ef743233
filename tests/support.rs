//! A server and its clients, as the tests use them. Every wait here is bounded.

pub(crate) mod place;
mod relay;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use airlock::settings::address::{Address, Scheme};
use airlock::talk::client::Endpoint;
use procfs_core::FromRead;
use procfs_core::process::Stat;
use rustix::param::clock_ticks_per_second;
use socket2::{Socket, Type};
use tempfile::TempDir;

use place::{Place, tested_door};
use relay::Progress;

/// Far longer than anything takes, so that only what hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const AIRLOCK: &str = env!("CARGO_BIN_EXE_airlock");
pub(crate) const CLIENT: &str = env!("CARGO_BIN_EXE_client");

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Whether a page at `path` is what it should be; with `AIRLOCK_BLESS` set, it becomes that.
pub(crate) fn agrees(path: &Path, page: &str, current: &str) {
    if std::env::var_os("AIRLOCK_BLESS").is_some() {
        fs::write(path, current).unwrap();
    } else {
        assert!(
            page == current,
            "run it with AIRLOCK_BLESS=1 and commit the result"
        );
    }
}

/// The way to schedule that is tested, where it makes a difference to a test: servers that a test starts
/// have the same environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    PerConnection,
    /// So many threads share all connections.
    Shared(u64),
}

impl Mode {
    pub(crate) fn tested() -> Mode {
        match std::env::var("AIRLOCK_THREADS").as_deref() {
            Err(_) | Ok("per-connection") => Mode::PerConnection,
            Ok(number) => Mode::Shared(number.parse().unwrap()),
        }
    }

    /// How many threads wait for connections that have none of their own.
    pub(crate) fn seats(self) -> u64 {
        match self {
            Mode::PerConnection => 0,
            Mode::Shared(count) => count,
        }
    }
}

/// A running server. Dropping it ends it; when a test fails its log is shown.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: Address,
    /// Where it listens besides, if it does.
    port: Option<SocketAddr>,
    log: Log,
    place: Place,
}

impl Server {
    /// Starts the default server with these options, at the door that is tested.
    pub(crate) fn start(options: &[&str]) -> Server {
        Server::start_command(Command::new(AIRLOCK).args(options))
    }

    /// Serves one of the guests in `tests/guests`.
    pub(crate) fn with_guest(name: &str, options: &[&str]) -> Server {
        let guest = guest(name);
        Server::start_command(
            Command::new(AIRLOCK)
                .arg("--guest")
                .arg(guest)
                .args(options),
        )
    }

    /// Starts a server by a command that may have an environment, or be a wrapper around it. An
    /// address that it names has to have port 0.
    pub(crate) fn start_command(command: &mut Command) -> Server {
        let mut options = command.get_args().filter_map(|option| option.to_str());
        assert!(
            tested_door() == Scheme::Tcp || !options.any(|option| option.starts_with("--listen")),
            "a test with a door of its own is the same at all others: leave it out in every_door.rs"
        );
        Server::start_at(&Place::new(), command)
    }

    /// The same at this place, if the command names no other.
    pub(crate) fn start_at(place: &Place, command: &mut Command) -> Server {
        let (mut child, log) = spawn(command.env("AIRLOCK_LISTEN", &place.listen));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .and_then(|address| address.parse::<SocketAddr>().ok());
        let Some(port) = address else {
            panic!("no server, but {:?} and {:?}", line, log.wait_for_end());
        };
        Server {
            child,
            address: place.address(port),
            port: Some(port),
            log,
            place: place.clone(),
        }
    }

    /// Starts a server at a port that another one has already.
    pub(crate) fn start_beside(other: &Server, options: &[&str]) -> Server {
        let mut command = Command::new(AIRLOCK);
        let listen = other
            .place
            .listen
            .replace("127.0.0.1:0", &other.tcp().to_string());
        let (child, log) = spawn(command.env("AIRLOCK_LISTEN", listen).args(options));
        log.wait_for(&["waiting for connections"]);
        Server {
            child,
            address: other.address.clone(),
            port: other.port,
            log,
            place: other.place.clone(),
        }
    }

    /// Serves what a file describes, whose addresses all have port 0. Returns them too, in its order,
    /// with the services that they belong to, if there are several.
    pub(crate) fn of_file(file: &Path, count: usize) -> (Server, Vec<(String, SocketAddr)>) {
        Server::of_file_by(Command::new(AIRLOCK).arg("--config").arg(file), count)
    }

    /// The same by a command that may have an environment.
    pub(crate) fn of_file_by(
        command: &mut Command,
        count: usize,
    ) -> (Server, Vec<(String, SocketAddr)>) {
        let (mut child, log) = spawn(command);
        let stdout = child.stdout.take().unwrap();
        // From here on it ends with the test, whatever becomes of that.
        let mut server = Server {
            child,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(),
            port: None,
            log,
            place: Place::new(),
        };
        let lines = BufReader::new(stdout).lines().take(count);
        let addresses = lines.map(|line| {
            let line = line.unwrap();
            let (name, address) = line.split_once("listening on ").unwrap();
            (
                name.trim_end_matches(": ").to_owned(),
                address.parse().unwrap(),
            )
        });
        let addresses: Vec<(_, SocketAddr)> = addresses.collect();
        match addresses.first() {
            Some(&(_, address)) => server.address = address.into(),
            None => panic!("no server, but {:?}", server.whole_log()),
        }
        (server, addresses)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address.clone())
    }

    /// The client binary, which is told of the server.
    pub(crate) fn client(&self) -> Command {
        let mut client = Command::new(CLIENT);
        client.args(self.place.client_options(&self.address));
        client
    }

    /// What a client hears that is turned away with these words.
    pub(crate) fn refusal(&self, words: &'static str) -> &'static str {
        match self.address.scheme.is_encrypted() {
            // Before its handshake there are only alerts.
            true => "",
            false => words,
        }
    }

    /// Whether nobody listens there.
    pub(crate) fn is_closed(&self) -> bool {
        match connected(&self.address, |_| ()) {
            Ok(_) => false,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ),
        }
    }

    /// Its address and port.
    pub(crate) fn tcp(&self) -> SocketAddr {
        match (self.port, &self.address.endpoint) {
            (Some(port), _) => port,
            (None, Endpoint::Ip(address)) => *address,
            (None, Endpoint::Unix(_)) => panic!("this server has no port"),
        }
    }

    /// Connects and takes the default greeting.
    pub(crate) fn greeted(&self) -> Client {
        let mut client = self.connect();
        assert_eq!(client.hear(), "Welcome!\n");
        client
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the log has a line with all of these words, and returns it.
    pub(crate) fn logged(&self, words: &[&str]) -> String {
        self.log.wait_for(words)
    }

    /// The log so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// The log of a server that has ended.
    pub(crate) fn whole_log(&self) -> Vec<String> {
        self.log.wait_for_end()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Stops the process, and waits until it has stopped, which takes the kernel a moment.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        let threads = format!("/proc/{}/task", self.id());
        eventually("all its threads stop", || {
            let mut threads = fs::read_dir(&threads).unwrap();
            threads.all(|thread| {
                // One that has just ended has stopped too.
                let stat = Stat::from_file(thread.unwrap().path().join("stat"));
                stat.map_or(true, |stat| stat.state == 'T')
            })
        });
    }

    /// What it has taken of the processors so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = Stat::from_file(format!("/proc/{}/stat", self.id())).unwrap();
        Duration::from_secs(stat.utime + stat.stime) / clock_ticks_per_second() as u32
    }

    /// Has all of these bytes wait for a connection before the server reads any of them.
    pub(crate) fn send_at_once(&self, client: &mut Client, bytes: impl AsRef<[u8]>) {
        self.pause();
        client.send(bytes);
        client.wait_until_passed();
        self.signal("CONT");
    }

    /// Waits for the end of the process.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

fn spawn(command: &mut Command) -> (Child, Log) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Log::follow(child.stderr.take().unwrap());
    (child, log)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the server's log:\n{}", self.log.lines().join("\n"));
        }
    }
}

/// A server whose guest's file can be changed.
pub(crate) struct Changing {
    pub(crate) server: Server,
    pub(crate) file: PathBuf,
    _folder: TempDir,
}

impl Changing {
    /// Serves the greeter from a file.
    pub(crate) fn start(options: &[&str]) -> Changing {
        Changing::start_with(options, |_, _| ())
    }

    /// The same, with nothing compiled before.
    pub(crate) fn start_uncached(options: &[&str]) -> Changing {
        Changing::start_with(options, |command, folder| {
            command.env("XDG_CACHE_HOME", folder.join("cache"));
        })
    }

    fn start_with(options: &[&str], prepare: impl FnOnce(&mut Command, &Path)) -> Changing {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("guest.wasm");
        fs::write(&file, airlock::GREETER).unwrap();
        let mut command = Command::new(AIRLOCK);
        command.arg(format!("--guest={}", file.display()));
        prepare(command.args(options), folder.path());
        Changing {
            server: Server::start_command(&mut command),
            file,
            _folder: folder,
        }
    }

    /// Puts another file in its place, all at once.
    pub(crate) fn replace(&self, component: &[u8]) {
        put(&self.file, component);
    }
}

/// Puts a component in a file's place, all at once.
pub(crate) fn put(file: &Path, component: &[u8]) {
    fs::rename(write_beside(file, component), file).unwrap();
}

/// The first half of that: the file that is to take the place.
pub(crate) fn write_beside(file: &Path, component: &[u8]) -> PathBuf {
    let new = file.with_extension("new");
    fs::write(&new, component).unwrap();
    new
}

/// The lines a process has written, and those it will write.
#[derive(Clone)]
struct Log(Arc<(Mutex<LogState>, Condvar)>);

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn follow(source: impl Read + Send + 'static) -> Log {
        let log = Log(Arc::default());
        let writer = log.clone();
        thread::spawn(move || {
            let (state, changed) = &*writer.0;
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                state.lock().unwrap().lines.push(line);
                changed.notify_all();
            }
            state.lock().unwrap().ended = true;
            changed.notify_all();
        });
        log
    }

    fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }

    fn wait_for(&self, words: &[&str]) -> String {
        let find = |state: &LogState| {
            let mut lines = state.lines.iter();
            lines
                .find(|line| words.iter().all(|word| line.contains(word)))
                .cloned()
        };
        let (state, changed) = &*self.0;
        let state = changed
            .wait_timeout_while(state.lock().unwrap(), PATIENCE, |state| {
                find(state).is_none() && !state.ended
            })
            .unwrap()
            .0;
        let found = find(&state);
        let lines = state.lines.len();
        drop(state);
        found.unwrap_or_else(|| panic!("none of {lines} log lines has {words:?}"))
    }

    fn wait_for_end(&self) -> Vec<String> {
        let (state, changed) = &*self.0;
        let state = changed
            .wait_timeout_while(state.lock().unwrap(), PATIENCE, |state| !state.ended)
            .unwrap()
            .0;
        state.lines.clone()
    }
}

/// A connection's socket, which `prepare` has before it is connected.
fn connected(address: &Address, prepare: impl Fn(&Socket)) -> io::Result<Socket> {
    let server = address.socket_address().unwrap();
    let stream = Socket::new(server.domain(), Type::STREAM, None)?;
    prepare(&stream);
    if address.endpoint.ip().is_some() {
        stream.connect_timeout(&server, PATIENCE)?;
        stream.set_tcp_nodelay(true)?;
    } else {
        // Until there is room in the queue, as long as a write may take (unix(7)).
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.connect(&server)?;
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A client that sends exactly what it is told and knows what it has heard. What is lines for it may
/// be messages of WebSocket, or records of TLS, for the server.
pub(crate) struct Client {
    pub(crate) stream: Socket,
    reader: BufReader<Socket>,
    address: Endpoint,
    sent_bytes: u64,
    /// Of what is between it and the server.
    relay: Option<Progress>,
}

impl Client {
    pub(crate) fn connect(address: impl Into<Address>) -> Client {
        Client::connect_prepared(address, |_| ())
    }

    /// Connects a socket that is prepared for that.
    pub(crate) fn connect_prepared(
        address: impl Into<Address>,
        prepare: impl Fn(&Socket),
    ) -> Client {
        let address = address.into();
        match address.scheme {
            Scheme::Tcp | Scheme::Unix => Client::of(connected(&address, prepare).unwrap()),
            Scheme::Tls | Scheme::Ws | Scheme::Wss => {
                let (stream, here, relay) = relay::begin(&address, prepare);
                Client {
                    address: here,
                    relay: Some(relay),
                    ..Client::of(stream)
                }
            }
        }
    }

    /// Of a connection.
    pub(crate) fn of(stream: Socket) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Client {
            address: Endpoint::from(&stream.local_addr().unwrap()),
            stream,
            reader,
            sent_bytes: 0,
            relay: None,
        }
    }

    /// Where it is, as the server sees it.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Breaks the connection, as soon as there is one.
    pub(crate) fn reset(self) {
        if let Some(relay) = &self.relay {
            relay.wait_until_open();
        }
        relay::reset(&self.stream);
    }

    /// Waits until all that it has sent is on its way.
    fn wait_until_passed(&self) {
        if let Some(relay) = &self.relay {
            relay.wait_until_passed(self.sent_bytes);
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.stream.write_all(bytes).unwrap();
        self.sent_bytes += bytes.len() as u64;
    }

    /// One line with its ending; empty at the end of input.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line
    }

    /// The same from a server that may be killed meanwhile: a whole line, or nothing.
    pub(crate) fn try_hear(&mut self) -> Option<String> {
        let mut line = String::new();
        let heard = self.reader.read_line(&mut line);
        (heard.is_ok() && line.ends_with('\n')).then_some(line)
    }

    /// Sends a line and returns the answer without its ending.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n"));
        let answer = self.hear();
        answer
            .strip_suffix('\n')
            .unwrap_or_else(|| panic!("{line:?} was answered {answer:?}"))
            .to_owned()
    }

    /// What one read returns, as the tutorial's `recv(1024)`.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut room = [0; 1024];
        let count = self.reader.read(&mut room).unwrap();
        room[..count].to_vec()
    }

    pub(crate) fn read_exact(&mut self, room: &mut [u8]) {
        self.reader.read_exact(room).unwrap();
    }

    /// Ends the sending side.
    pub(crate) fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// All that comes until the server closes.
    pub(crate) fn rest(&mut self) -> String {
        let mut text = String::new();
        self.reader.read_to_string(&mut text).unwrap();
        text
    }

    /// Whether the connection has been closed or reset; waits for that.
    pub(crate) fn is_gone(&mut self) -> bool {
        match io::copy(&mut self.reader, &mut io::sink()) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// A program that is talked to while it runs.
pub(crate) struct Program {
    child: Child,
    output: Log,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Program {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = Log::follow(child.stdout.take().unwrap());
        Program { child, output }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the program has printed a line with this text.
    pub(crate) fn shows(&self, text: &str) {
        self.output.wait_for(&[text]);
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

/// Runs a command to its end, with this text as its standard input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input is fine.
    let _ = child.stdin.take().unwrap().write_all(input);
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    Output {
        status: wait(&mut child),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn read_all(mut source: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Sends a signal to a process.
pub(crate) fn signal(id: u32, name: &str) {
    let mut kill = Command::new("kill");
    let status = kill.args(["-s", name, &id.to_string()]).status();
    assert!(status.unwrap().success());
}

/// Waits for the end of a process, and ends it when it does not.
fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("process {} does not end", child.id());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a condition holds that nothing announces.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a program of another package is installed. CI installs all that are used; elsewhere a
/// test that needs a missing one says so and does nothing.
pub(crate) fn installed(program: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(program).is_file());
    assert!(
        found || std::env::var_os("CI").is_none(),
        "CI has to install `{program}`"
    );
    if !found {
        eprintln!("skipped: `{program}` is not installed");
    }
    found
}

const GUESTS: [&str; 9] = [
    "chat",
    "counter",
    "hostile",
    "keeper",
    "keeper-draft",
    "keeper-older",
    "guestbook",
    "speaker",
    "ticker",
];

/// The component of a crate in `tests/guests`, or of an example, built once.
pub(crate) fn guest(name: &str) -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| build_guests(&root(), &GUESTS));
    BUILT.join(name.replace('-', "_")).with_extension("wasm")
}

/// Builds packages for WebAssembly as docs/guests.md does by hand, and returns where they are.
pub(crate) fn build_guests(workspace: &Path, packages: &[&str]) -> PathBuf {
    const TARGET: &str = "wasm32-wasip2";
    let target_dir = root().join("target/guests");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .env_remove("RUSTFLAGS")
        .current_dir(workspace);
    let output = cargo.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target_dir.join(TARGET).join("release")
}

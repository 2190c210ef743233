//! What the pages for users say is true: every command works, in its order and as it is written, and
//! every link leads somewhere.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, eventually, installed, root};
use airlock::settings::address::Address;

const DEFAULT_ADDRESS: &str = "127.0.0.1:9999";
/// How long a command may build before its server listens.
const BUILD_TIME: Duration = Duration::from_secs(600);

/// Where the pages have their reader write a guest, record conversations, hand a server over, and
/// listen.
/// The test takes other places.
const PLACES: [&str; 8] = [
    "/tmp/shout",
    "/tmp/conversations",
    "/tmp/airlock.sock",
    "/tmp/greeter.sock",
    "/tmp/guestbook.db",
    "/tmp/chat.db",
    "/tmp/notes.db",
    "/tmp/lines",
];

/// What a client hears first from each server that a page starts, in the page's order.
const GREETER: &str = "Welcome!\nHello, Ada!\n";
const EMPTY_BOOK: &str =
    "The guest book is empty. Write the first line!\nThank you, that is line 1.\n";
const BOOK: &str =
    "Lines in the guest book: 1. Write one, or `read` them.\nThank you, that is line 2.\n";
/// What follows has a name in it that chance has chosen.
const CHAT: &str = "* Welcome! /help says what you can do.\n";
const SERVERS: [(&str, &[&str]); 8] = [
    (
        "README.md",
        &[
            GREETER,
            "Say something.\nADA\n",
            EMPTY_BOOK,
            CHAT,
            "Louder, please!\nADA\n",
        ],
    ),
    ("CONTRIBUTING.md", &[GREETER]),
    ("docs/doors.md", &[GREETER; 3]),
    ("docs/guests.md", &[GREETER, "Hi\nHello, Ada!\n", GREETER]),
    ("docs/operating.md", &[GREETER; 5]),
    ("docs/performance.md", &[GREETER]),
    ("docs/stores.md", &[EMPTY_BOOK, BOOK]),
    ("docs/wire.md", &[GREETER]),
];

/// Commands that would take minutes, or start this test again. `.ci/run` runs each as it stands here
/// (`bench/compare` and `--bench topics` with options that make it short).
const RUN_BY_CI: [&str; 18] = [
    "cargo test -p host --test airlock --test walls -- --ignored every_door --nocapture",
    "cargo test --workspace",
    "cargo fmt --all",
    "cargo clippy --workspace --all-targets",
    "bench/compare",
    "bench/compare --shared",
    "cargo bench -p bench --bench topics",
    "cargo run -p bench --release",
    "cargo run -p bench --release -- --mode pipeline",
    "cargo run -p bench --release -- --mode churn",
    "cargo run -p bench --release -- --threads 1",
    "cargo run -p bench --release -- --door tls",
    "cargo run -p bench --release -- --door tls --mode churn --haproxy --connections 16",
    "cargo run -p bench --release -- --door wss --mode hold",
    "cargo run -p bench --release -- --store file:/tmp/bench.db --operation set",
    "cargo run -p bench --release -- --threads 1 --mode hold --connections 19000 --rounds 1 -- --total-guest-memory=24GiB",
    "cargo test -p host --release --test walls -- --ignored thousands --nocapture",
    "cargo test -p host --release --test walls -- --ignored attacks_take_turns --nocapture",
];

/// Commands that nobody runs as they stand, and why.
const NOT_RUN: [(&str, &str); 4] = [
    (".ci/run", "it runs this test"),
    (
        "cargo +nightly fuzz run --fuzz-dir tests/fuzz framing",
        "it needs a nightly compiler, and has no end; .ci/run fuzzes for a while where there is one",
    ),
    (
        "AIRLOCK_BLESS=1 cargo test -p host --test airlock -- the_limits_are",
        "it changes a file that another test of this program reads",
    ),
    (
        "AIRLOCK_BLESS=1 cargo test -p host --test airlock -- the_page_has",
        "so does this",
    ),
];

/// All pages of the repository, in the order in which they are followed.
fn pages() -> Vec<String> {
    let folder = fs::read_dir(root().join("docs")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<_> = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .chain(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(String::from))
        .chain(["ARCHITECTURE.md", "CHANGELOG.md"].map(String::from))
        .collect();
    pages.sort();
    pages
}

fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).unwrap()
}

#[test]
fn every_command_works_as_written() {
    if !installed("nc") {
        return;
    }
    assert!(
        TcpStream::connect(DEFAULT_ADDRESS).is_err(),
        "stop the server on {DEFAULT_ADDRESS}: the pages' commands start their own"
    );
    let mut left: Vec<_> = RUN_BY_CI.into_iter().collect();
    left.extend(NOT_RUN.map(|(command, _)| command));
    for page in pages() {
        let left_here = follow(&page);
        left.retain(|command| !left_here.iter().any(|one| one == command));
    }
    assert_eq!(left, [""; 0], "no page has these commands any more");
}

/// Does what a page says, and returns the commands that were left to others.
fn follow(page: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = folder.path().join(Path::new(name).file_name().unwrap());
        path.into_os_string().into_string().unwrap()
    };
    let text = PLACES
        .iter()
        .fold(read(page), |text, name| text.replace(name, &place(name)));
    let [own_guest, records, ..] = PLACES.map(place);
    let mut reader = Reader {
        records,
        server: None,
        heard: Vec::new(),
        left: Vec::new(),
    };
    for (language, block) in blocks(&text) {
        match language {
            "sh" => {
                let commands = block.replace("\\\n", "");
                commands
                    .lines()
                    .for_each(|command| reader.follow(command, ""));
            }
            "console" => {
                for session in format!("\n{block}").split("\n$ ").skip(1) {
                    let (command, output) = session.split_once('\n').unwrap_or((session, ""));
                    reader.follow(command, output.trim_end());
                }
            }
            "toml" if block.starts_with("# airlock.toml") => {
                fs::write(format!("{own_guest}/airlock.toml"), block).unwrap();
            }
            "toml" => {
                let path = format!("{own_guest}/Cargo.toml");
                let manifest = fs::read_to_string(&path).unwrap();
                fs::write(path, format!("{manifest}\n{block}")).unwrap();
            }
            "rust" => fs::write(format!("{own_guest}/src/lib.rs"), block).unwrap(),
            "text" => {}
            other => panic!("{page}: what is to be done with `{other}`?"),
        }
    }
    let expected = SERVERS.iter().find(|(name, _)| *name == page);
    let expected = expected.map_or(&[][..], |(_, servers)| servers);
    let heard = &reader.heard;
    let mut both = heard.iter().zip(expected);
    assert!(
        heard.len() == expected.len() && both.all(|(heard, first)| heard.starts_with(first)),
        "{page}: {heard:?}"
    );
    reader.left
}

/// The fenced blocks of a Markdown text, with their languages.
fn blocks(markdown: &str) -> Vec<(&str, &str)> {
    let fenced = markdown.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

/// Somebody who types what a page says.
struct Reader {
    records: String,
    server: Option<Running>,
    /// What each server has said to a client.
    heard: Vec<String>,
    left: Vec<String>,
}

impl Reader {
    /// Runs a command; what it prints has to begin with `output`.
    fn follow(&mut self, command: &str, output: &str) {
        if RUN_BY_CI.contains(&command) {
            assert!(read(".ci/run").contains(command), "{command}");
            self.left.push(command.to_owned());
        } else if NOT_RUN.iter().any(|(known, _)| *known == command) {
            self.left.push(command.to_owned());
        } else if is_server(command) {
            self.serve(command);
        } else {
            if command.contains(&self.records) {
                eventually("a conversation is recorded", || !is_empty(&self.records));
            }
            // A new version of a guest takes a moment.
            eventually(command, || output_of(command).starts_with(output));
        }
    }

    fn serve(&mut self, command: &str) {
        let old = self.server.take();
        let old = old.filter(|old| old.hands_over() && command.contains("--takeover"));
        self.server = Some(Running::start(command));
        if let Some(old) = old {
            old.wait_for_end();
        }
        self.heard.push(converse());
    }
}

fn is_empty(folder: &str) -> bool {
    fs::read_dir(folder).map_or(true, |mut files| files.next().is_none())
}

fn is_server(command: &str) -> bool {
    let aside = ["--bin ", "-- check ", "-- test ", "-- config ", "-- store "];
    command.starts_with("cargo run -p host") && !aside.iter().any(|word| command.contains(word))
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(root());
    // A reader has none of what cargo says to a test: ring is built again whenever it differs.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "OUT_DIR"
            || text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_MANIFEST_")
        {
            shell.env_remove(&name);
        }
    }
    shell
}

fn output_of(command: &str) -> String {
    let output = shell(command).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// A server that a command of a page has started.
struct Running {
    child: Child,
    command: String,
}

impl Running {
    fn start(command: &str) -> Running {
        // `exec` twice, by the shell and by cargo: the child is the server itself.
        let child = shell(&format!("exec {command}")).spawn().unwrap();
        let command = command.to_owned();
        let mut running = Running { child, command };
        let deadline = Instant::now() + BUILD_TIME;
        while TcpStream::connect(DEFAULT_ADDRESS).is_err() {
            assert!(!running.has_ended(), "{} has ended", running.command);
            assert!(
                Instant::now() < deadline,
                "{} does not listen",
                running.command
            );
            thread::sleep(Duration::from_millis(50));
        }
        running
    }

    fn hands_over(&self) -> bool {
        self.command.contains("--takeover")
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn wait_for_end(mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.has_ended() {
            assert!(Instant::now() < deadline, "{} has not ended", self.command);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn converse() -> String {
    let mut client = Client::connect(DEFAULT_ADDRESS.parse::<Address>().unwrap());
    client.send("Ada\n");
    format!("{}{}", client.hear(), client.hear())
}

#[test]
fn the_figures_of_the_readme_are_those_that_were_measured() {
    let measured = read("docs/performance.md");
    let readme = read("README.md");
    let (_, section) = readme.split_once("## What it costs").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<_> = rows.skip(2).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let mut cells = row.split(" | ").map(|cell| cell.trim_matches([' ', '|']));
        let title = cells.next().unwrap();
        let head = format!("| {title} | ");
        let measured = measured.lines().find(|row| row.starts_with(&head));
        let measured: Vec<_> = measured.unwrap().split(" | ").collect();
        for cell in cells {
            assert!(
                cell.is_empty() || measured.contains(&cell),
                "{title}: {cell}"
            );
        }
    }
}

#[test]
fn every_link_leads_to_a_file_and_to_a_heading_of_it() {
    for page in pages() {
        let text = read(&page);
        let folder = PathBuf::from(&page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = match file {
                "" => root().join(&page),
                file => root().join(&folder).join(file),
            };
            assert!(file.exists(), "{page}: {link}");
            if !heading.is_empty() {
                let target = fs::read_to_string(&file).unwrap();
                let headings = target.lines().filter_map(|line| line.strip_prefix("## "));
                let anchors: Vec<_> = headings.map(anchor).collect();
                assert!(
                    anchors.iter().any(|anchor| anchor == heading),
                    "{page}: {link}"
                );
            }
        }
    }
}

/// What a link to a heading says after its `#`.
fn anchor(heading: &str) -> String {
    let words = heading.to_lowercase().replace(' ', "-");
    words
        .chars()
        .filter(|char| char.is_alphanumeric() || *char == '-')
        .collect()
}

/// Each by its name, or with all of a small folder (`compiler/`, `limits/`).
#[test]
fn every_file_of_the_host_has_a_line_in_architecture() {
    let page = read("ARCHITECTURE.md");
    let rows: String = page.lines().filter(|line| line.starts_with('|')).collect();
    let mut folders = vec![(root().join("host/src"), String::new())];
    while let Some((folder, name)) = folders.pop() {
        let is_told_file_by_file = rows.contains(&format!("**`{name}/`**")) || name.is_empty();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push((path, file));
                continue;
            }
            let is_root = file == "lib.rs" || path.with_extension("").is_dir();
            let is_told = rows.contains(&format!("{file}`"))
                || file == "tests.rs"
                || !is_told_file_by_file && page.contains(&format!("{name}/"));
            assert!(is_root || is_told, "{}", path.display());
        }
    }
}

/// A table that a blank line cuts in two is shown as text from there on.
#[test]
fn every_table_is_whole() {
    for page in pages() {
        let text = read(&page);
        let mut lines = text.lines().peekable();
        let mut above = "";
        while let Some(line) = lines.next() {
            if line.starts_with('|') && !above.starts_with('|') {
                let below = lines.peek().copied().unwrap_or_default();
                assert!(below.starts_with("| ---"), "{page}: {line}");
                assert_eq!(above, "", "{page}: {line}");
            }
            above = line;
        }
    }
}

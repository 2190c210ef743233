//! A Redis of a test's own: Debian's, with nothing on the disk.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long it may take to begin, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// One that runs until it is dropped, at a Unix socket.
pub(crate) struct RedisServer {
    child: Child,
    folder: TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// With these options; none, if it is not installed. CI installs it.
    #[allow(clippy::print_stderr, reason = "a test says that it does nothing")]
    pub(crate) fn start(options: &[&str]) -> Option<RedisServer> {
        let folder = tempfile::tempdir().expect("a folder");
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let child = match begin(folder.path(), &options) {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "redis-server: {error}");
                eprintln!("skipped: `redis-server`: {error}");
                return None;
            }
        };
        let server = RedisServer {
            child,
            folder,
            options,
        };
        server.wait();
        Some(server)
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// What it answers to a command, in one line.
    pub(crate) fn command(&self, words: &[impl AsRef<[u8]>]) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("it runs");
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words.iter().map(AsRef::as_ref) {
            command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            command.extend_from_slice(word);
            command.extend_from_slice(b"\r\n");
        }
        stream.write_all(&command).expect("it reads");
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .expect("it answers");
        answer.trim_end().to_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.expect("kill").success());
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it has ended");
        fs::remove_file(self.socket()).expect("its socket");
    }

    /// Starts it again, empty, at the same place.
    pub(crate) fn start_again(&mut self) {
        self.child = begin(self.folder.path(), &self.options).expect("it is installed");
        self.wait();
    }

    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not begin");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn begin(folder: &Path, options: &[String]) -> std::io::Result<Child> {
    Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(folder.join("socket"))
        .args(options)
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
}

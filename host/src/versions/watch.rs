//! Notices when a file may have changed, however it is changed: written to, replaced by a rename,
//! removed and made again, or a symbolic link anywhere on the way to it repointed.
//!
//! What is watched are folders, since a replaced file is another file; and a folder that changes is
//! a reason to look, no more.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::limits::guest::GUEST_EVENT_TIME;

/// Symbolic links on the way to one file: as many as Linux follows.
const MOST_LINKS: usize = 40;

/// All that can make a name stand for another file, or change a file. Not that one is read: looking
/// at one reads it.
const CHANGES: WatchFlags = WatchFlags::ONLYDIR
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF);

/// Calls back until it is dropped.
pub(crate) struct Watch {
    events: Arc<OwnedFd>,
    /// The kernel's numbers of the folders that are watched.
    watched: BTreeSet<i32>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Will call `changed` from a thread of its own.
    ///
    /// # Errors
    /// The user has too many watches, or the process no descriptor or thread.
    pub(crate) fn start(changed: impl Fn() + Send + 'static) -> io::Result<Watch> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = Arc::new(events);
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let thread = thread::Builder::new().name("watch".to_owned()).spawn({
            let (events, stop) = (Arc::clone(&events), stop.try_clone()?);
            move || {
                while wait(Some(&events), &stop) {
                    drain(&events);
                    changed();
                    // However many events there are: what they say is seen by looking once.
                    if !wait(None, &stop) {
                        break;
                    }
                }
            }
        })?;
        Ok(Watch {
            events,
            watched: BTreeSet::new(),
            stop,
            thread: Some(thread),
        })
    }

    /// Watches the folders that decide now which files `paths` are, and no others. Cheap where they are
    /// watched already; one that was made anew is another folder, so it has to be said again.
    pub(crate) fn follow<'a>(&mut self, paths: impl IntoIterator<Item = &'a Path>) {
        let mut watched = BTreeSet::new();
        let folders: BTreeSet<_> = paths.into_iter().flat_map(folders).collect();
        for folder in folders {
            match inotify::add_watch(&self.events, &folder, CHANGES) {
                Ok(number) => {
                    watched.insert(number);
                }
                Err(error) => {
                    tracing::debug!(folder = %folder.display(), "cannot be watched: {error}");
                }
            }
        }
        for &number in self.watched.difference(&watched) {
            // One that is gone is watched no more.
            let _ = inotify::remove_watch(&self.events, number);
        }
        self.watched = watched;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and nothing could be done about it here.
            let _ = thread.join();
        }
    }
}

/// Waits for events, or without them for [`GUEST_EVENT_TIME`]. Returns whether to go on.
fn wait(events: Option<&OwnedFd>, stop: &OwnedFd) -> bool {
    let stop = PollFd::new(stop, PollFlags::IN);
    let waited = match events {
        Some(events) => {
            let mut waits = [stop, PollFd::new(events, PollFlags::IN)];
            poll(&mut waits, None).map(|_| waits[0].revents())
        }
        None => {
            let time = Timespec::try_from(GUEST_EVENT_TIME).ok();
            let mut waits = [stop];
            poll(&mut waits, time.as_ref()).map(|_| waits[0].revents())
        }
    };
    match waited {
        Ok(stopped) => stopped.is_empty(),
        // A look too many does no harm.
        Err(Errno::INTR) => true,
        Err(_) => false,
    }
}

/// Takes the events that there are, but not those that come meanwhile: with enough noise it would
/// never end.
fn drain(events: &OwnedFd) {
    const MOST_READS: usize = 16;
    let mut room = [0; 16 * 1024];
    for _ in 0..MOST_READS {
        match rustix::io::read(events, &mut room) {
            Ok(count) if count > room.len() / 2 => {}
            _ => return,
        }
    }
}

/// The folders that hold `path` itself or a symbolic link on the way to it.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut links = 0;
    let mut folder = PathBuf::new();
    let mut ahead: VecDeque<OsString> = parts(&std::path::absolute(path).unwrap_or_default());
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            folder.pop();
            continue;
        }
        let next = folder.join(&part);
        let link = fs::read_link(&next).ok();
        if link.is_some() || ahead.is_empty() {
            folders.insert(folder.clone());
        }
        match link {
            Some(_) if links == MOST_LINKS => break,
            Some(target) => {
                links += 1;
                // An absolute target replaces the folder, a relative one goes on from it.
                for part in parts(&target).into_iter().rev() {
                    ahead.push_front(part);
                }
            }
            None => folder = next,
        }
    }
    folders
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_folder_on_the_way_to_a_file_is_found() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let root = root.path().canonicalize()?;
        for folder in ["app", "data/v1", "real"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::write(root.join("real/guest.wasm"), "")?;
        // As Kubernetes lays out a volume, and one link more.
        symlink("../real/guest.wasm", root.join("data/guest.wasm"))?;
        symlink(root.join("data"), root.join("app/current"))?;
        let found = folders(&root.join("app/./current/guest.wasm"));
        let expected = ["app", "data", "real"].map(|folder| root.join(folder));
        assert_eq!(found, expected.into());
        // A file that is not there yet, and links in a circle.
        assert!(folders(&root.join("real/other")).contains(&root.join("real")));
        symlink("loop", root.join("loop"))?;
        assert!(folders(&root.join("loop")).contains(&root));
        Ok(())
    }
}

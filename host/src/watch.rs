//! Notices when a file may have changed, however it is changed: written to, replaced by a rename,
//! removed and made again, or a symbolic link anywhere on the way to it repointed.
//!
//! What is watched are folders, since a replaced file is another file; and a folder that changes is
//! a reason to look, no more.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Symbolic links on the way to one file: as many as Linux follows.
const MOST_LINKS: usize = 40;

/// Calls back until it is dropped.
pub(crate) struct Watch {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    /// Will call `changed` from a thread of its own.
    pub(crate) fn start(changed: impl Fn() + Send + 'static) -> notify::Result<Watch> {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and looking at one reads it.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                changed();
            }
        })?;
        Ok(Watch {
            watcher,
            watched: BTreeSet::new(),
        })
    }

    /// Watches the folders that decide now which file `path` is, and no others. Cheap where they are
    /// watched already; one that was made anew is another folder, so it has to be said again.
    pub(crate) fn follow(&mut self, path: &Path) {
        let folders = folders(path);
        for folder in self.watched.difference(&folders) {
            // One that is gone is watched no more.
            let _ = self.watcher.unwatch(folder);
        }
        for folder in &folders {
            if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                tracing::debug!(folder = %folder.display(), "cannot be watched: {error}");
            }
        }
        self.watched = folders;
    }
}

/// The folders that hold `path` itself or a symbolic link on the way to it.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut links = 0;
    let mut place = PathBuf::new();
    let mut ahead: VecDeque<OsString> = parts(&std::path::absolute(path).unwrap_or_default());
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            place.pop();
            continue;
        }
        let next = place.join(&part);
        let link = fs::read_link(&next).ok();
        if link.is_some() || ahead.is_empty() {
            folders.insert(place.clone());
        }
        match link {
            Some(_) if links == MOST_LINKS => break,
            Some(target) => {
                links += 1;
                // An absolute target replaces the place, a relative one goes on from it.
                for part in parts(&target).into_iter().rev() {
                    ahead.push_front(part);
                }
            }
            None => place = next,
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

//! The threads that write recordings: they come and go with what is recorded.

use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use airlock::serve::recording::Recordings;
use airlock::serve::recording::disk::Disk;
use anyhow::{Context, Result};

/// All of a server. Each ends after the connections that are recorded.
#[derive(Clone, Default)]
pub(crate) struct Recorders(Arc<Mutex<Vec<Recorder>>>);

struct Recorder {
    /// What has something for it.
    recordings: Weak<Recordings>,
    _disk: Disk,
}

impl Recorders {
    /// Another one, which writes into this folder.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub(crate) fn start(&self, folder: &Path) -> Result<Arc<Recordings>> {
        let cannot = || format!("cannot record into `{}`", folder.display());
        let (recordings, disk) = Recordings::new(folder.to_owned()).with_context(cannot)?;
        let recordings = Arc::new(recordings);
        self.lock().push(Recorder {
            recordings: Arc::downgrade(&recordings),
            _disk: disk,
        });
        Ok(recordings)
    }

    /// Ends those that nobody has anything for any more, when they have written it.
    pub(crate) fn end_unused(&self) {
        let is_unused = |recorder: &mut Recorder| recorder.recordings.strong_count() == 0;
        let unused: Vec<_> = self.lock().extract_if(.., is_unused).collect();
        drop(unused);
    }

    /// Ends all, when they have written what there is.
    pub(crate) fn end(&self) {
        let all = mem::take(&mut *self.lock());
        drop(all);
    }

    /// Nothing panics while it holds this lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Vec<Recorder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

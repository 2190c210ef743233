//! The file of settings of a server that serves: when it changes, or that is asked for, the services
//! change.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use airlock::cli::Source;
use airlock::limits::guest::COMPILE_STACK_BYTES;
use airlock::process::shutdown::Shutdown;
use airlock::versions::following::{Following, Trigger};
use airlock::versions::guest_file::Fingerprint;
use anyhow::anyhow;

use crate::commands::services::Services;

/// A file of settings.
pub(crate) struct SettingsFile {
    source: Source,
    following: Following,
}

/// Looks after the file until it is dropped. A change that is under way then ends with the process: a
/// guest that is tried must not hold up the end of the server.
pub(crate) struct Follower(Trigger);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl SettingsFile {
    pub(crate) fn new(source: Source) -> SettingsFile {
        SettingsFile {
            following: Following::new(source.path.clone(), source.seen, true),
            source,
        }
    }

    /// For whoever may ask for a reload.
    pub(crate) fn trigger(&self) -> Trigger {
        self.following.trigger()
    }

    /// Has these services follow the file, on a thread.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub(crate) fn follow(
        mut self,
        mut services: Services,
        shutdown: Shutdown,
    ) -> io::Result<Follower> {
        let trigger = self.trigger();
        thread::Builder::new()
            .name("settings".to_owned())
            .stack_size(2 * COMPILE_STACK_BYTES)
            .spawn(move || {
                loop {
                    if self.following.is_due() && shutdown.is_accepting() {
                        self.read(&mut services, &shutdown);
                    }
                    if !self.following.wait(Duration::MAX) {
                        break;
                    }
                }
            })?;
        Ok(Follower(trigger))
    }

    fn read(&mut self, services: &mut Services, shutdown: &Shutdown) {
        let path = &self.source.path;
        let before = Fingerprint::of(path);
        let read = match fs::metadata(path) {
            // Opening a pipe would wait for whoever writes to it.
            Ok(file) if !file.is_file() => Err(anyhow!("`{}` is no regular file", path.display())),
            _ => self.source.read().map_err(|faults| anyhow!("{faults}")),
        };
        if !self.following.was_read(before) {
            return;
        }
        let order = self.following.order();
        let wanted = || self.following.is_wanted() && shutdown.is_accepting();
        let changed = read.and_then(|(settings, at_start)| {
            if !at_start.is_empty() {
                let keys = at_start.join(", ");
                tracing::warn!("the next start obeys what has changed of the process: {keys}");
            }
            services.change(settings, order.as_ref(), &wanted)
        });
        if let Err(error) = changed {
            tracing::error!("the settings stay as they were: {error:#}");
        }
        // Else the file is read again.
        if wanted() {
            self.following.end_order();
        }
    }
}

//! The TLS of the doors of a server: read once for each door, and looked after.

use std::sync::{Arc, Weak};

use airlock::serve::renewal::Renewal;
use airlock::serve::tls::{Tls, TlsFiles};
use airlock::settings::door::DoorSettings;
use airlock::settings::service::ServiceSettings;
use anyhow::{Context, Result};

/// The TLS of the doors of one service.
#[derive(Default)]
pub(crate) struct DoorsTls(Vec<(TlsFiles, Arc<Tls>)>);

impl DoorsTls {
    /// That of this door, if it has any.
    pub(crate) fn of(&self, door: Option<&DoorSettings>) -> Option<Arc<Tls>> {
        let files = door?.tls()?;
        let (_, tls) = self.0.iter().find(|(same, _)| *same == files)?;
        Some(Arc::clone(tls))
    }
}

/// The TLS of all doors.
pub(crate) struct Certificates {
    renewal: Arc<Renewal>,
    known: Vec<(TlsFiles, Weak<Tls>)>,
}

impl Certificates {
    /// Of no door yet; `renewal` will look after them.
    pub(crate) fn new(renewal: Arc<Renewal>) -> Certificates {
        Certificates {
            renewal,
            known: Vec::new(),
        }
    }

    /// For the doors of a service: what other doors with the same files have, or read now.
    ///
    /// # Errors
    /// A file is wrong, and which.
    pub(crate) fn of(&mut self, service: &ServiceSettings) -> Result<DoorsTls> {
        let mut all = DoorsTls::default();
        for door in &service.listen {
            let Some(files) = door.tls() else {
                continue;
            };
            self.known.retain(|(_, tls)| tls.strong_count() > 0);
            let known = self.known.iter().find(|(same, _)| *same == files);
            let tls = match known.and_then(|(_, tls)| tls.upgrade()) {
                Some(tls) => tls,
                None => {
                    let tls = Tls::new(files.clone());
                    let tls = tls.with_context(|| format!("no TLS at {}", door.address))?;
                    self.renewal.look_after(&tls)?;
                    self.known.push((files.clone(), Arc::downgrade(&tls)));
                    tls
                }
            };
            all.0.push((files, tls));
        }
        Ok(all)
    }
}

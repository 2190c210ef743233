//! What the settings come to on a machine with its capacity: the bounds of the process, and of each
//! service.

use std::collections::BTreeSet;

use crate::limits::Limits;
use crate::limits::guest::{GUEST_MEMORIES, GUEST_MEMORY_BYTES, Guest};
use crate::limits::process::{ADDED_SERVICES, ADDRESS_SPACE_BYTES, Process};
use crate::limits::wire::Wire;
use crate::process::capacity::{self, Capacity, Each};
use crate::serve::scheduling::Scheduling;
use crate::settings::service::{ServiceSettings, Settings};
use crate::settings::store_url::StoreUrl;

impl Settings {
    /// What each connection takes.
    pub fn each(&self) -> Each {
        let any = |has: fn(&ServiceSettings) -> bool| self.services.iter().any(has);
        let records = any(|service| service.record.is_some());
        let thread = self.process.threads == Scheduling::PerConnection;
        // A thread that hears others waits for that at a descriptor of its own.
        let hears = thread && any(|service| service.guest_settings.topics.is_some());
        Each {
            files: 1 + u64::from(records) + u64::from(hears),
            thread,
        }
    }

    /// What this machine has room for. `grows`: services may be added later.
    pub fn capacity(&self, grows: bool) -> Capacity {
        const ADDED: u64 =
            ADDED_SERVICES as u64 * (capacity::LISTENER_FILES + capacity::WATCH_FILES);
        let added = match grows {
            true => capacity::WATCH_FILES + ADDED,
            false => 0,
        };
        let mut each = self.each();
        if grows {
            // Its conversations may be recorded later.
            each.files = each.files.max(2);
        }
        capacity::claim(each, self.own_files() + added)
    }

    /// Open files of stores, and of more seats, listeners and watched guests than one of each.
    fn own_files(&self) -> u64 {
        let seats = match self.process.threads {
            Scheduling::PerConnection => 0,
            Scheduling::Shared(count) => count.get(),
        };
        let listeners = self.services.iter().map(|service| service.listen.len());
        let watched = self
            .services
            .iter()
            .filter(|service| service.guest.is_some() && !service.reload.no_watch);
        let stores = self
            .services
            .iter()
            .flat_map(|service| &service.guest_settings.stores);
        let files = stores.filter_map(|store| match &store.url {
            StoreUrl::File(path) => Some(path),
            _ => None,
        });
        let files = files.collect::<BTreeSet<_>>().len() as u64;
        let beside_one = |count: usize, files| count.saturating_sub(1) as u64 * files;
        beside_one(seats, capacity::SEAT_FILES)
            + beside_one(listeners.sum(), capacity::LISTENER_FILES)
            + beside_one(watched.count(), capacity::WATCH_FILES)
            + files * capacity::STORE_FILES
    }

    /// Every bound of the process, and of each service in their order. `grows`: services may be added
    /// later, and change.
    ///
    /// # Errors
    /// More was asked for than there is room for.
    pub fn bounds(
        &self,
        capacity: Capacity,
        grows: bool,
    ) -> Result<(Process, Vec<Limits>), String> {
        let services = &self.services;
        let mut limits = self.limits(capacity)?;
        let memories = limits.iter().map(|limits| limits.guest.memory_bytes);
        let usual = grows.then_some(GUEST_MEMORY_BYTES);
        let guest_memory_bytes = memories.chain(usual).max().unwrap_or_default();
        let (room, _) = capacity.connections_with(guest_memory_bytes as u64);
        let wanted = limits.iter().map(|limits| limits.connections);
        let mut connections = wanted.fold(0, usize::saturating_add).min(room);
        check_addresses(connections, guest_memory_bytes, services.len())?;
        if grows {
            connections = connections.max(room.min(most_with(guest_memory_bytes)));
        }
        for limits in &mut limits {
            limits.connections = limits.connections.min(connections);
        }
        let total = self.process.limits.total_guest_memory;
        let process = Process {
            // One that is alone has to leave something to the next.
            services: services.len().max(if grows { 2 } else { 1 }),
            trials: services.len() + if grows { ADDED_SERVICES } else { 0 },
            connections,
            total_guest_memory_bytes: total
                .map_or(capacity.guest_memory_bytes, |total| total.bytes()),
            guest_memory_bytes,
            // Where there is less, the kernel would end more than the compilers.
            total_compile_memory_bytes: capacity.guest_memory_bytes,
            mappings: capacity.mappings,
            thread_each: self.each().thread,
            drain_time: self.process.limits.drain_timeout.into(),
        };
        Ok((process, limits))
    }

    /// Every bound of each service, in a process that has been started with these. Whether the memories of
    /// its pool are large enough is not looked at.
    ///
    /// # Errors
    /// More was asked for than there is room for.
    pub fn limits_within(
        &self,
        capacity: Capacity,
        process: &Process,
    ) -> Result<Vec<Limits>, String> {
        let mut limits = self.limits(capacity)?;
        for limits in &mut limits {
            limits.connections = limits.connections.min(process.connections);
        }
        Ok(limits)
    }

    fn limits(&self, capacity: Capacity) -> Result<Vec<Limits>, String> {
        let limits = self.services.iter().map(|service| {
            let limits = service.limits(capacity);
            limits.map_err(|error| match self.services.len() {
                1 => error,
                _ => format!("service `{}`: {error}", service.name),
            })
        });
        limits.collect()
    }
}

impl ServiceSettings {
    /// Every bound of this service, whatever others there are.
    ///
    /// # Errors
    /// More was asked for than there is room for.
    pub fn limits(&self, capacity: Capacity) -> Result<Limits, String> {
        let guest = self.guest_settings.limits();
        let (room, bound) = capacity.connections_with(guest.memory_bytes as u64);
        if room == 0 {
            return Err(format!("there is room for no connection: raise {bound}"));
        }
        let connections = self
            .max_connections
            .map_or(room, |most| most.get() as usize);
        if connections > room {
            return Err(format!(
                "--max-connections {connections} is more than the {room} that there is room for: \
                 lower it, or raise {bound}"
            ));
        }
        check_addresses(connections, guest.memory_bytes, 1)?;
        Ok(Limits {
            wire: Wire {
                line_bytes: self.max_line.as_usize(),
                idle_time: self.idle_timeout.into(),
                line_time: self.line_timeout.into(),
                write_time: self.write_timeout.into(),
            },
            guest: Guest {
                compile_memory_bytes: guest.compile_memory_bytes.min(capacity.guest_memory_bytes),
                ..guest
            },
            connections,
            connections_per_ip: self
                .max_connections_per_ip
                .map_or(connections, |most| most.get() as usize),
        })
    }
}

/// Whether the memories of so many instances can be reserved.
fn check_addresses(connections: usize, memory_bytes: usize, services: usize) -> Result<(), String> {
    let memory_bytes = memory_bytes as u64;
    let memories = connections as u64 * u64::from(GUEST_MEMORIES);
    if memory_bytes.saturating_mul(memories) <= ADDRESS_SPACE_BYTES {
        return Ok(());
    }
    let memory = bytesize::ByteSize(memory_bytes);
    let most = most_with(memory_bytes as usize);
    Err(match services {
        1 => format!(
            "{connections} connections with --guest-memory {memory} each need more addresses than \
             there are: lower it, or --max-connections to {most}"
        ),
        _ => format!(
            "{connections} connections of all services need more addresses than there are, since \
             one of them has guest-memory {memory}: lower that, or the max-connections of all to \
             {most} together"
        ),
    })
}

/// How many instances with memories of this size there are addresses for.
fn most_with(memory_bytes: usize) -> usize {
    let most = ADDRESS_SPACE_BYTES / u64::from(GUEST_MEMORIES) / memory_bytes.max(1) as u64;
    usize::try_from(most).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::file::Reading;

    fn settings(file: &str) -> Settings {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("airlock.toml");
        std::fs::write(&path, file).expect("it is written");
        let reading = Reading::new(&path).expect("it is read");
        assert!(reading.faults.is_empty(), "{:?}", reading.faults);
        reading.settings
    }

    fn bounds(connections: usize, file: &str) -> Result<(Process, Vec<Limits>), String> {
        settings(file).bounds(
            Capacity {
                connections,
                bound: "nothing",
                guest_memory_bytes: 4 << 30,
                mappings: u64::MAX,
                addresses: u64::MAX,
            },
            false,
        )
    }

    #[test]
    fn services_share_what_the_process_has() {
        let (process, limits) = bounds(
            1000,
            r#"
            [service.one]
            listen = "127.0.0.1:1"
            max-connections = 30
            guest-memory = "128MiB"
            [service.two]
            listen = "127.0.0.1:2"
            "#,
        )
        .expect("there is room");
        assert_eq!((process.services, process.connections), (2, 1000));
        assert_eq!(process.guest_memory_bytes, 128 << 20);
        let connections = limits.iter().map(|limits| limits.connections);
        assert_eq!(connections.collect::<Vec<_>>(), [30, 1000]);
    }

    #[test]
    fn seats_listeners_watched_guests_and_stores_take_open_files() {
        let one = r#"
            [service.one]
            guest = "one.wasm"
            "#;
        assert_eq!(settings(one).own_files(), 0);
        let several = r#"
            threads = 16
            [service.one]
            listen = ["127.0.0.1:1", "127.0.0.1:2"]
            guest = "one.wasm"
            store = { a = "file:/a", b = "file:/b", c = "memory:" }
            [service.two]
            listen = "127.0.0.1:3"
            guest = "two.wasm"
            store = { a = "file:/a" }
            [service.three]
            listen = "127.0.0.1:4"
            guest = "three.wasm"
            no-watch = true
            "#;
        assert_eq!(settings(several).own_files(), 15 * 3 + 3 * 3 + 3 + 2 * 19);
    }

    #[test]
    fn the_largest_guest_needs_addresses_for_all() {
        let file = r#"
            [service.one]
            listen = "127.0.0.1:1"
            [service.two]
            listen = "127.0.0.1:2"
            max-connections = 10
            guest-memory = "4GiB"
            "#;
        let error = bounds(10_000, file).expect_err("there are too few");
        assert!(error.contains("to 2048 together"), "{error}");
    }
}

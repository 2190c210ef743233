//! What the kernel knows of a server: its memory, threads, descriptors and processor time.

use std::cell::Cell;
use std::fs;

use procfs_core::FromRead;
use procfs_core::process::Status;

use crate::support::{Server, eventually};

impl Server {
    fn status(&self) -> Status {
        Status::from_file(format!("/proc/{}/status", self.id())).unwrap()
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        self.status().vmrss.unwrap()
    }

    pub(crate) fn address_kib(&self) -> u64 {
        self.status().vmsize.unwrap()
    }

    pub(crate) fn mappings(&self) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.id())).unwrap();
        maps.lines().count() as u64
    }

    /// Without what is shared: files, and the images of guests' memories.
    pub(crate) fn own_kib(&self) -> u64 {
        self.status().rssanon.unwrap()
    }

    pub(crate) fn threads(&self) -> u64 {
        self.status().threads
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id()))
            .unwrap()
            .count()
    }

    /// The process that compiles for this server, once there is one.
    pub(crate) fn compiler(&self) -> u32 {
        let found = Cell::new(0);
        eventually("a compiler has been started", || {
            let processes = fs::read_dir("/proc").unwrap();
            let numbers =
                processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
            let mut children = numbers.filter(|number: &u32| {
                let status = Status::from_file(format!("/proc/{number}/status"));
                status.is_ok_and(|status| status.ppid.cast_unsigned() == self.id())
            });
            children.next().is_some_and(|number| {
                found.set(number);
                true
            })
        });
        found.get()
    }
}

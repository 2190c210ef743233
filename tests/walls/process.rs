//! What the kernel knows of a server: its memory, threads, descriptors and processor time.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use crate::support::{Server, eventually};

impl Server {
    /// A line of /proc/PID/status, as a number.
    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse().unwrap()
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        self.status("VmRSS")
    }

    pub(crate) fn address_kib(&self) -> u64 {
        self.status("VmSize")
    }

    /// What it has taken of the processors so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // Fields 14 and 15, of which the second has a name in brackets: user and system time, in
        // ticks of 10 ms.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split(' ').collect();
        let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
        Duration::from_millis(10 * (ticks(12) + ticks(13)))
    }

    pub(crate) fn mappings(&self) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.id())).unwrap();
        maps.lines().count() as u64
    }

    /// Without what is shared: files, and the images of guests' memories.
    pub(crate) fn own_kib(&self) -> u64 {
        self.status("RssAnon")
    }

    pub(crate) fn threads(&self) -> u64 {
        self.status("Threads")
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
            let parent = format!("PPid:\t{}\n", self.id());
            let mut children = numbers.filter(|number: &u32| {
                let status = fs::read_to_string(format!("/proc/{number}/status"));
                status.is_ok_and(|status| status.contains(&parent))
            });
            children.next().is_some_and(|number| {
                found.set(number);
                true
            })
        });
        found.get()
    }
}

//! The table of figures, as it stands in performance.md.

use std::fs;
use std::time::SystemTime;

use anyhow::Result;
use bench::servers::Subject;

use crate::Options;
use crate::measures::Wanted;
use crate::rounds::Figures;
use crate::subjects::GO;

/// Rows of figures, a column for each server, and what is said of some of them.
pub(crate) struct Table<'a> {
    subjects: &'a [Subject<'a>],
    remarks: &'a [Remark],
}

/// How one server's figure is set against another one's, in a column behind it.
pub(crate) struct Remark {
    /// Whose figure it is.
    pub(crate) of: usize,
    pub(crate) against: Other,
    /// Whether another column says what is wanted.
    pub(crate) says_wanted: bool,
}

/// Who else is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Other {
    /// One of ours.
    Twin(usize),
    /// The newest that there is.
    Go,
}

impl Table<'_> {
    pub(crate) fn new<'a>(subjects: &'a [Subject<'a>], remarks: &'a [Remark]) -> Table<'a> {
        Table { subjects, remarks }
    }

    /// The machine, and the head of the table.
    pub(crate) fn heading(&self, versions: &str, options: &Options) -> Result<String> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name\t: "));
        let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut columns = vec![String::new()];
        for (number, subject) in self.subjects.iter().enumerate() {
            columns.push(subject.name.to_owned());
            for remark in self.remarks_of(number) {
                columns.push(match remark.against {
                    Other::Twin(twin) => format!("of the {}", self.subjects[twin].name),
                    Other::Go => "of Go".to_owned(),
                });
                columns.extend(remark.says_wanted.then(|| "wanted".to_owned()));
            }
        }
        Ok(format!(
            "{}: {} cores, {}, Linux {}.{} Rounds: {}, of {}.\n\n{}{}",
            &today[..10],
            cpus.matches("processor\t:").count(),
            model.unwrap_or("of an unknown kind"),
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            versions,
            options.rounds,
            options.duration,
            line(&columns),
            line(&vec!["---"; columns.len()]),
        ))
    }

    /// One row, with what is wanted for each of the remarks.
    pub(crate) fn row(&self, title: &str, wanted: &[Wanted], figures: &Figures) -> String {
        let mut cells = vec![title.to_owned()];
        for (number, &value) in figures.iter().enumerate() {
            cells.push(value.map_or("–".to_owned(), figure));
            for (remark, wanted) in self.remarks.iter().zip(wanted) {
                if remark.of == number {
                    let other = self.number(remark.against).and_then(|other| figures[other]);
                    cells.push(wanted.against(value, other));
                    cells.extend(remark.says_wanted.then(|| wanted.to_string()));
                }
            }
        }
        line(&cells)
    }

    fn remarks_of(&self, number: usize) -> impl Iterator<Item = &Remark> {
        self.remarks
            .iter()
            .filter(move |remark| remark.of == number)
    }

    fn number(&self, other: Other) -> Option<usize> {
        match other {
            Other::Twin(twin) => Some(twin),
            Other::Go => self
                .subjects
                .iter()
                .position(|subject| GO.contains(&subject.name)),
        }
    }
}

fn line(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<_> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// With the digits that mean something, and spaces between thousands.
fn figure(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    groups.join(" ")
}

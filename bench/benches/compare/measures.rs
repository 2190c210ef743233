//! What is measured of every server, and what is wanted of Airlock's figures.

use std::fmt;

use bench::measured::Measured;

/// A load, and what it shows.
pub(crate) struct Load {
    /// Those of `airlock-bench`.
    pub(crate) arguments: &'static str,
    pub(crate) rows: &'static [Row],
}

/// A row of the table.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) value: fn(&Measured) -> f64,
    pub(crate) wanted: Expectation,
}

/// What is wanted of Airlock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expectation {
    /// With a thread for each connection, set against the native twin's figure.
    pub(crate) per_connection: Wanted,
    /// With one thread, of Go's.
    pub(crate) few: Wanted,
}

/// How a figure is set against another one, and what is wanted of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// At least this part of it.
    Part(f64),
    /// At most this much more.
    More(f64),
    /// At most this much, whatever the other does.
    AtMost(f64),
    /// It is only shown.
    Nothing,
}

/// The same for both.
const fn parts(per_connection: f64, few: f64) -> Expectation {
    Expectation {
        per_connection: Wanted::Part(per_connection),
        few: Wanted::Part(few),
    }
}

const fn per_second(title: &'static str, wanted: Expectation) -> Row {
    Row {
        title,
        value: Measured::per_second,
        wanted,
    }
}

/// Without those that are held.
pub(crate) const TALKING: [Load; 5] = [
    Load {
        arguments: "--mode=ping --connections=1",
        rows: &[per_second(
            "1 connection, 1 line in flight: lines/s",
            parts(0.95, 1.0),
        )],
    },
    Load {
        arguments: "--mode=ping --connections=64",
        rows: &[per_second(
            "64 connections, 1 line in flight: lines/s",
            parts(0.8, 1.0),
        )],
    },
    Load {
        arguments: "--mode=ping --connections=1000",
        rows: &[per_second(
            "1 000 connections, 1 line in flight: lines/s",
            parts(0.8, 0.95),
        )],
    },
    Load {
        arguments: "--mode=pipeline",
        rows: &[per_second(
            "8 connections, 100 lines in flight: lines/s",
            parts(0.5, 0.85),
        )],
    },
    Load {
        arguments: "--mode=churn",
        rows: &[per_second(
            "connect, greeting, `exit`, a fresh sandbox each: connections/s",
            parts(0.7, 0.95),
        )],
    },
];

pub(crate) const HELD: Load = Load {
    arguments: "--mode=hold --connections=10000",
    rows: &[
        Row {
            title: "10 000 connections held: KiB resident for each",
            value: kibibytes,
            wanted: Expectation {
                per_connection: Wanted::More(32.0),
                few: Wanted::AtMost(38.0),
            },
        },
        Row {
            title: "10 000 that come at once: all greeted within, ms",
            value: |run| run.greeted.unwrap_or_default().as_secs_f64() * 1e3,
            wanted: Expectation {
                per_connection: Wanted::Nothing,
                few: Wanted::AtMost(1000.0),
            },
        },
        Row {
            title: "10 000 held, then a line on each: 99 % answered within, ms",
            value: |run| run.latency(0.99).as_secs_f64() * 1e3,
            wanted: Expectation {
                per_connection: Wanted::AtMost(1000.0),
                few: Wanted::AtMost(1000.0),
            },
        },
    ],
};

/// No load shows this.
pub(crate) const START_TIME: &str = "process start to listening, but for the first time: ms";
pub(crate) const START_WANTED: Wanted = Wanted::AtMost(30.0);

pub(crate) fn kibibytes(run: &Measured) -> f64 {
    run.resident_bytes.unwrap_or_default() / 1024.0
}

impl Wanted {
    /// One figure set against another one, as far as there are both.
    pub(crate) fn against(self, ours: Option<f64>, other: Option<f64>) -> String {
        let Some((ours, other)) = ours.zip(other) else {
            return "–".to_owned();
        };
        match self {
            Wanted::Part(_) => format!("{:.2}", ours / other),
            Wanted::More(_) => format!("{:+.1}", ours - other),
            Wanted::AtMost(_) | Wanted::Nothing => String::new(),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Part(part) => write!(f, "≥ {part:.2}"),
            Wanted::More(more) => write!(f, "≤ +{more}"),
            Wanted::AtMost(most) => write!(f, "Airlock ≤ {most}"),
            Wanted::Nothing => Ok(()),
        }
    }
}

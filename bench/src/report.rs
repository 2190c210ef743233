//! What was measured, as text and as JSON.

use std::fmt::Write;
use std::iter;
use std::time::Duration;

use airlock::serve::scheduling::Scheduling;
use airlock::settings::address::Scheme;
use serde_json::{Map, Value, json};

use crate::measured::Measured;
use crate::plan::{Mode, Operation, Plan};
use crate::turns::Comparison;

/// The parts of the answers whose times are shown.
const PARTS: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

const GREETED: &str = "all_greeted_seconds";
const MEMORY: &str = "resident_bytes_per_connection";

impl Plan {
    /// What is done, in a line.
    pub fn title(&self) -> String {
        let (count, depth) = (self.connections, self.depth);
        let time = humantime::format_duration(self.duration);
        let rate = self
            .rate
            .map(|rate| format!(", {rate} {}/s", self.mode.unit()));
        let what = match self.mode {
            Mode::Ping => format!("{count} connections, 1 line in flight on each, {time}"),
            Mode::Pipeline => {
                format!("{count} connections, {depth} lines in flight on each, {time}")
            }
            Mode::Churn => format!("connect, greeting, leave; {count} at a time, {time}"),
            Mode::Hold => {
                format!("{count} connections at once, held for {time}, then a line on each")
            }
        };
        let name = match self.operation {
            Some(operation) => operation.name(),
            None => self.mode.name(),
        };
        format!("{name}: {what}{}", rate.unwrap_or_default())
    }

    fn as_json(&self) -> Map<String, Value> {
        let entries = [
            ("mode", json!(self.mode.name())),
            ("operation", json!(self.operation.map(Operation::name))),
            ("connections", json!(self.connections)),
            ("depth", json!(self.depth)),
            ("load_threads", json!(self.load_threads)),
            ("rate", json!(self.rate)),
            ("duration_seconds", json!(self.duration.as_secs_f64())),
        ];
        entries
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .collect()
    }
}

/// One run, for people.
pub fn as_text(plan: &Plan, measured: &Measured) -> String {
    let mut text = plan.title() + "\n";
    let mut row = |name: &str, value: String| text += &format!("{name:12} {value}\n");
    let unit = plan.mode.unit();
    row(
        "answered",
        match plan.mode {
            Mode::Hold => format!("{} of {}", measured.answered, plan.connections),
            _ => format!("{} {unit}", measured.answered),
        },
    );
    if plan.mode != Mode::Hold {
        row(
            "throughput",
            format!("{:.0} {unit}/s", measured.per_second()),
        );
    }
    if let Some(greeted) = measured.greeted {
        row("all greeted", format!("within {}", shown(greeted)));
    }
    for (name, part) in PARTS {
        row(name, shown(measured.latency(part)));
    }
    if plan.rate.is_some() {
        row(
            "never sent",
            format!("{} {unit} that were due", measured.unsent),
        );
    }
    row("errors", measured.errors.to_string());
    text
}

/// One run, for programs.
pub fn as_json(plan: &Plan, measured: &Measured) -> Value {
    let mut object = plan.as_json();
    object.append(&mut run_as_json(measured));
    Value::Object(object)
}

fn run_as_json(measured: &Measured) -> Map<String, Value> {
    let latencies = PARTS.map(|(name, part)| {
        let seconds = measured.latency(part).as_secs_f64();
        (name.to_owned(), json!(seconds))
    });
    let latencies: Map<_, _> = latencies.into_iter().collect();
    let entries = [
        ("answered", json!(measured.answered)),
        ("seconds", json!(measured.time.as_secs_f64())),
        ("per_second", json!(measured.per_second())),
        ("latency_seconds", Value::Object(latencies)),
        ("never_sent", json!(measured.unsent)),
        ("errors", json!(measured.errors)),
        (
            GREETED,
            json!(measured.greeted.map(|time| time.as_secs_f64())),
        ),
        (MEMORY, json!(measured.resident_bytes)),
    ];
    let known = entries.into_iter().filter(|(_, value)| !value.is_null());
    known
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// A row of a comparison.
struct Row {
    /// For programs.
    name: &'static str,
    /// For people, who read the value times the scale.
    title: String,
    scale: f64,
    value: Box<dyn Fn(&Measured) -> f64>,
}

/// What is compared. The first row is what the mode is about.
fn rows(mode: Mode) -> Vec<Row> {
    let first = match mode {
        Mode::Hold => Row {
            name: MEMORY,
            title: "KiB resident for each connection".to_owned(),
            scale: 1.0 / 1024.0,
            value: Box::new(|run| run.resident_bytes.unwrap_or_default()),
        },
        _ => Row {
            name: "per_second",
            title: format!("{}/s", mode.unit()),
            scale: 1.0,
            value: Box::new(Measured::per_second),
        },
    };
    let latencies = PARTS.map(|(name, part)| Row {
        name,
        title: format!("{name}, µs"),
        scale: 1e6,
        value: Box::new(move |run| run.latency(part).as_secs_f64()),
    });
    let greeted = (mode == Mode::Hold).then(|| Row {
        name: GREETED,
        title: "all greeted within, ms".to_owned(),
        scale: 1e3,
        value: Box::new(|run| run.greeted.unwrap_or_default().as_secs_f64()),
    });
    iter::once(first).chain(greeted).chain(latencies).collect()
}

impl Row {
    /// The medians of both servers, native and Airlock.
    fn medians(&self, compared: &Comparison) -> [f64; 2] {
        [&compared.native, &compared.airlock]
            .map(|runs| median(runs.iter().map(&self.value).collect()).unwrap_or_default())
    }
}

/// The middle one of these values; of an even number of them, the larger of the two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Both servers, for people: the medians of their rounds.
pub fn comparison_as_text(plan: &Plan, compared: &Comparison) -> String {
    let rounds = match compared.native.len() {
        1 => "1 round".to_owned(),
        rounds => format!("{rounds} rounds"),
    };
    let mut options = match compared.threads {
        Scheduling::PerConnection => String::new(),
        Scheduling::Shared(count) => format!("; --threads {count}"),
    };
    if compared.scheme != Scheme::Tcp {
        options += &format!("; --door {}", compared.scheme.name());
    }
    if !compared.options.is_empty() {
        options += &format!("; {}", compared.options.join(" "));
    }
    let mut text = format!("{}{options}; medians of {rounds}\n", plan.title());
    text += &format!(
        "{:34}{:>12}{:>12}{:>8}\n",
        "",
        compared.twin.column(),
        "airlock",
        "ratio"
    );
    for row in rows(plan.mode) {
        let [native, airlock] = row.medians(compared).map(|value| value * row.scale);
        let (title, ratio) = (&row.title, airlock / native);
        // Infallible: a string takes everything.
        let _ = writeln!(text, "{title:34}{native:>12.0}{airlock:>12.0}{ratio:>8.2}");
        if row.name == MEMORY {
            let _ = writeln!(
                text,
                "{:34}{:>24.0}",
                "the sandbox takes of that",
                airlock - native
            );
        }
    }
    text
}

/// Both servers, for programs.
pub fn comparison_as_json(plan: &Plan, compared: &Comparison) -> Value {
    let mut object = plan.as_json();
    let runs =
        |runs: &[Measured]| -> Value { runs.iter().map(run_as_json).map(Value::Object).collect() };
    let rows = rows(plan.mode);
    let entries = rows.iter().map(|row| {
        let [native, airlock] = row.medians(compared);
        let entry = json!({
            "native": native,
            "airlock": airlock,
            "difference": airlock - native,
            "ratio": airlock / native,
        });
        (row.name.to_owned(), entry)
    });
    let medians: Map<_, _> = entries.collect();
    let ratio = rows
        .first()
        .map(|first| medians[first.name]["ratio"].clone());
    object.insert("beside".to_owned(), json!(compared.twin.column()));
    object.insert("door".to_owned(), json!(compared.scheme.name()));
    object.insert("threads".to_owned(), json!(compared.threads.to_string()));
    object.insert("airlock_options".to_owned(), json!(compared.options));
    object.insert("ratio".to_owned(), json!(ratio));
    object.insert("medians".to_owned(), Value::Object(medians));
    object.insert("native".to_owned(), runs(&compared.native));
    object.insert("airlock".to_owned(), runs(&compared.airlock));
    Value::Object(object)
}

/// To three digits.
fn shown(time: Duration) -> String {
    format!("{time:.2?}")
}

//! The drawings: what more and more connections cost.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use bench::measured::Measured;
use bench::open::make_room;
use bench::plot::{self, Axes, Curve};
use bench::servers::Subject;

use crate::measures::kibibytes;
use crate::rounds::{Figures, Rounds};
use crate::subjects::OURS;

/// Where the curves have points.
const CONNECTIONS: [usize; 5] = [8, 64, 512, 4096, 16_384];

/// So many are within the default limits of every server of ours. For more Airlock has the option
/// below, and who cannot hold them has no point there.
const USUAL: usize = 4096;

/// Airlock reckons with what guests may use. By default they get half of the machine's memory, too
/// little for so many on a usual one.
pub(crate) const FOR_MORE: &str = "--total-guest-memory=24GiB";

/// What is drawn.
struct Drawing {
    name: &'static str,
    title: &'static str,
    y: &'static str,
    /// Those of `airlock-bench`, but for the connections.
    mode: &'static str,
    value: fn(&Measured) -> f64,
}

const DRAWINGS: [Drawing; 2] = [
    Drawing {
        name: "throughput",
        title: "1 line in flight on each",
        y: "lines/s",
        mode: "--mode=ping",
        value: Measured::per_second,
    },
    Drawing {
        name: "memory",
        title: "connections held",
        y: "KiB resident for each",
        mode: "--mode=hold",
        value: kibibytes,
    },
];

/// Measures and draws a curve for each server, and returns how performance.md shows the drawings.
pub(crate) fn draw(
    rounds: &mut Rounds,
    usual: &[Subject],
    for_more: &[Subject],
    folder: &Path,
) -> Result<String> {
    let mut page = String::new();
    for drawing in &DRAWINGS {
        let mut points = Vec::new();
        for connections in CONNECTIONS {
            let (subjects, needed) = if connections <= USUAL {
                (usual, OURS)
            } else {
                (for_more, 0)
            };
            if needed == 0
                && let Err(fault) = make_room(connections)
            {
                eprintln!("{fault}");
                continue;
            }
            let arguments = format!("{} --connections={connections}", drawing.mode);
            let turns = rounds.load(&arguments, subjects, needed)?;
            points.push((connections as f64, rounds.medians(&turns, drawing.value)));
        }
        let Drawing { name, title, y, .. } = drawing;
        let svg = drawing.svg(usual, &points)?;
        fs::write(folder.join(name).with_extension("svg"), svg)?;
        page += &format!("\n![{title}: {y}]({name}.svg)\n");
    }
    Ok(page)
}

impl Drawing {
    fn svg(&self, subjects: &[Subject], points: &[(f64, Figures)]) -> Result<String> {
        let curve = |(number, subject): (usize, &Subject)| Curve {
            name: subject.name,
            points: points
                .iter()
                .filter_map(|(connections, figures)| Some((*connections, figures[number]?)))
                .collect(),
        };
        let curves: Vec<_> = subjects.iter().enumerate().map(curve).collect();
        let axes = Axes {
            title: self.title,
            x: "connections",
            x_label: |connections| format!("{connections:.0}"),
            y: self.y,
        };
        plot::draw(&axes, &curves).map_err(|error| anyhow!(error))
    }
}

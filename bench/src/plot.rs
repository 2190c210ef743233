//! Drawings: curves over an axis on which each step is a multiple of the one before.

use std::error::Error;

use hdrhistogram::Histogram;
use plotters::prelude::*;

use crate::measured::Measured;

/// In pixels.
const SIZE: (u32, u32) = (900, 500);

/// Colours of the curves, told apart by everybody (Okabe and Ito's, and grey).
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
    RGBColor(240, 228, 66),
];

/// Points of a curve of latencies for each time that the answers beyond it are halved.
const POINTS: u32 = 10;

/// What is drawn over what.
pub struct Axes<'a> {
    /// Above it all.
    pub title: &'a str,
    /// Below.
    pub x: &'a str,
    /// How a value on this axis reads.
    pub x_label: fn(f64) -> String,
    /// On the left.
    pub y: &'a str,
}

/// One curve.
pub struct Curve<'a> {
    /// Beside it.
    pub name: &'a str,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// An SVG of how long the fastest part of the answers took, up to the last one; a curve for each of
/// these servers, of all its rounds together.
///
/// # Errors
/// The drawing library refuses.
pub fn draw_latencies(
    title: &str,
    servers: &[(&str, &[Measured])],
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let curves: Vec<_> = servers
        .iter()
        .map(|(name, rounds)| {
            let mut latencies = Measured::new().latencies;
            for round in *rounds {
                latencies += &round.latencies;
            }
            Curve {
                name,
                points: points(&latencies),
            }
        })
        .collect();
    let axes = Axes {
        title,
        x: "this part of the answers took",
        x_label: part,
        y: "at most, µs",
    };
    draw(&axes, &curves)
}

/// One of how many answers took longer than how many microseconds.
fn points(latencies: &Histogram<u64>) -> Vec<(f64, f64)> {
    let all = latencies.len().max(1) as f64;
    let steps = 0..=(all.log2() * f64::from(POINTS)) as u32;
    let one_of = steps.map(|step| (f64::from(step) / f64::from(POINTS)).exp2());
    let point = one_of.map(|one_of| {
        let nanoseconds = latencies.value_at_quantile(1.0 - 1.0 / one_of);
        (one_of, nanoseconds as f64 / 1000.0)
    });
    point.collect()
}

/// An SVG of these curves.
///
/// # Errors
/// The drawing library refuses.
pub fn draw(axes: &Axes<'_>, curves: &[Curve<'_>]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut svg = String::new();
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let left = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min);
    let left = if left.is_finite() { left } else { 1.0 };
    let right = points().map(|(x, _)| x).fold(10.0 * left, f64::max);
    // With room for the names above the curves.
    let room = 1.1 + 0.08 * curves.len() as f64;
    let top = points().map(|(_, y)| y).fold(1.0, f64::max) * room;
    let digits = if top < 10.0 { 1 } else { 0 };
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(refusal)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(axes.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((left..right).log_scale(), 0.0..top)
            .map_err(refusal)?;
        chart
            .configure_mesh()
            .x_desc(axes.x)
            .y_desc(axes.y)
            .label_style(("sans-serif", 15))
            .x_label_formatter(&|&x| (axes.x_label)(x))
            .y_label_formatter(&|y| format!("{y:.digits$}"))
            .light_line_style(WHITE)
            .draw()
            .map_err(refusal)?;
        for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
            let line = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour);
            chart
                .draw_series(LineSeries::new(
                    curve.points.iter().copied(),
                    colour.stroke_width(2),
                ))
                .map_err(refusal)?
                .label(curve.name)
                .legend(line);
        }
        chart
            .configure_series_labels()
            .label_font(("sans-serif", 15))
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()
            .map_err(refusal)?;
        area.present().map_err(refusal)?;
    }
    Ok(svg)
}

/// All but one of ten are 90 %, of a hundred 99 %.
fn part(one_of: f64) -> String {
    let digits = (one_of.log10() - 2.0).clamp(0.0, 9.0).ceil() as usize;
    format!("{:.digits$} %", 100.0 - 100.0 / one_of)
}

fn refusal(error: impl Error) -> Box<dyn Error + Send + Sync> {
    error.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_as_many_nines_as_they_need() {
        let parts = [1.0, 10.0, 100.0, 1000.0, 100_000.0].map(part);
        assert_eq!(parts, ["0 %", "90 %", "99 %", "99.9 %", "99.999 %"]);
    }
}

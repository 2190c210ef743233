//! Latencies as a drawing: how long the fastest part of the answers took, up to the last one.

use std::error::Error;

use hdrhistogram::Histogram;
use plotters::prelude::*;

use super::Measured;

/// In pixels.
const SIZE: (u32, u32) = (900, 500);

/// Colours of the curves, told apart by everybody.
const COLOURS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0)];

/// Points of a curve for each time that the answers beyond it are halved.
const POINTS: u32 = 10;

/// The latencies of one server.
pub struct Curve<'a> {
    name: &'a str,
    latencies: Histogram<u64>,
}

impl Curve<'_> {
    /// Of all its rounds together.
    pub fn new<'a>(name: &'a str, rounds: &[Measured]) -> Curve<'a> {
        let mut latencies = Measured::new().latencies;
        for round in rounds {
            latencies += &round.latencies;
        }
        Curve { name, latencies }
    }

    /// One of how many answers took longer than how many microseconds.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let all = self.latencies.len().max(1) as f64;
        let steps = 0..=(all.log2() * f64::from(POINTS)) as u32;
        let one_of = steps.map(|step| (f64::from(step) / f64::from(POINTS)).exp2());
        one_of.map(|one_of| {
            let nanoseconds = self.latencies.value_at_quantile(1.0 - 1.0 / one_of);
            (one_of, nanoseconds as f64 / 1000.0)
        })
    }
}

/// An SVG of these curves.
///
/// # Errors
/// The drawing library refuses.
pub fn draw(title: &str, curves: &[Curve<'_>]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut svg = String::new();
    let points = || curves.iter().flat_map(Curve::points);
    let right = points().map(|(one_of, _)| one_of).fold(10.0, f64::max);
    let top = points().map(|(_, time)| time).fold(1.0, f64::max) * 1.05;
    let digits = if top < 10.0 { 1 } else { 0 };
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(refusal)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((1.0..right).log_scale(), 0.0..top)
            .map_err(refusal)?;
        chart
            .configure_mesh()
            .x_desc("this part of the answers took")
            .y_desc("at most, µs")
            .label_style(("sans-serif", 15))
            .x_label_formatter(&|&one_of| part(one_of))
            .y_label_formatter(&|time| format!("{time:.digits$}"))
            .light_line_style(WHITE)
            .draw()
            .map_err(refusal)?;
        for (curve, colour) in curves.iter().zip(COLOURS) {
            let line = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour);
            chart
                .draw_series(LineSeries::new(curve.points(), colour.stroke_width(2)))
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

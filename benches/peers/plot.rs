//! Draws the distribution of latencies.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::outcome::{Outcome, quantile};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 420;
/// The plot ends at this share of the connections, counted from the fastest.
const LAST: f64 = 0.999;
const STEPS: u32 = 200;

/// Draws a chart for each scenario: the share of connections across, their latency upward.
pub fn draw(outcomes: &[Outcome], path: &Path) -> Result<(), Box<dyn Error>> {
    let height = HEIGHT * outcomes.len() as u32;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let parts = root.split_evenly((outcomes.len(), 1));
    for (outcome, part) in outcomes.iter().zip(parts) {
        let all = outcome
            .servers
            .iter()
            .map(|server| quantile(&server.latencies, LAST));
        let slowest = all.fold(0.001, f64::max) * 1e3;
        let fastest = outcome
            .servers
            .iter()
            .map(|server| quantile(&server.latencies, 0.01));
        let fastest = fastest.fold(slowest, f64::min).max(1e-5) * 1e3;
        let mut chart = ChartBuilder::on(&part)
            .caption(outcome.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(24)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..100.0, (fastest..slowest).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("percentage of connections")
            .y_desc("ms or less")
            .draw()?;
        for (index, server) in outcome.servers.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let width = if index == 0 { 3 } else { 1 };
            let points = (0..=STEPS).map(|step| {
                let share = f64::from(step) / f64::from(STEPS) * LAST;
                (share * 100.0, quantile(&server.latencies, share) * 1e3)
            });
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(width)))?
                .label(server.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(width))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

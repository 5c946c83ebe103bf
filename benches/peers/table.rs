//! The measurements, as a table in Markdown.

use std::fmt::Write;

use crate::outcome::{Outcome, quantile};

/// The last column is the rate of fdtools divided by the row's.
pub fn render(outcome: &Outcome) -> String {
    let mut text = format!("### {}\n\n", outcome.title);
    text.push_str(
        "| server | connections/s | p50 ms | p99 ms | failures | CPU µs each | fdtools / this |\n",
    );
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: | --- |\n");
    for (index, server) in outcome.servers.iter().enumerate() {
        let ratios = outcome.ratios(server);
        let ratio = match index {
            0 => String::new(),
            _ => format!(
                "{:.2} ({:.2} to {:.2})",
                quantile(&ratios, 0.5),
                quantile(&ratios, 0.0),
                quantile(&ratios, 1.0)
            ),
        };
        // A write to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.2} | {:.2} | {} | {:.0} | {ratio} |",
            // A bar would begin the next column.
            server.name.replace('|', "\\|"),
            server.median(|round| round.rate),
            server.median(|round| round.p50) * 1e3,
            server.median(|round| round.p99) * 1e3,
            server.failures(),
            server.median(|round| round.cpu) * 1e6,
        );
    }
    text
}

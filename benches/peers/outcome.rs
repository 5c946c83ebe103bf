//! The measurements, as numbers. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::load::Load;

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub name: &'static str,
    pub title: &'static str,
    pub clients: usize,
    /// fdtools is the first; the others are compared with it.
    pub servers: Vec<Measured>,
}

#[derive(Debug, Serialize)]
pub struct Measured {
    pub name: &'static str,
    pub rounds: Vec<Round>,
    /// All rounds together, in seconds, sorted.
    #[serde(skip)]
    pub latencies: Vec<f64>,
}

/// One server in one round.
#[derive(Debug, Serialize)]
pub struct Round {
    /// Connections per second.
    pub rate: f64,
    /// The median latency in seconds.
    pub p50: f64,
    pub p99: f64,
    pub failures: usize,
    /// Processor time per connection in seconds.
    pub cpu: f64,
}

impl Outcome {
    pub fn new(name: &'static str, title: &'static str, clients: usize) -> Self {
        Self {
            name,
            title,
            clients,
            servers: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &'static str) {
        self.servers.push(Measured {
            name,
            rounds: Vec::new(),
            latencies: Vec::new(),
        });
    }

    pub fn record(&mut self, server: usize, load: Load, cpu: Duration) {
        let mut latencies: Vec<f64> = load.latencies.iter().map(Duration::as_secs_f64).collect();
        latencies.sort_by(f64::total_cmp);
        let count = latencies.len() as f64;
        let server = &mut self.servers[server];
        server.rounds.push(Round {
            rate: load.rate,
            p50: quantile(&latencies, 0.5),
            p99: quantile(&latencies, 0.99),
            failures: load.failures,
            cpu: cpu.as_secs_f64() / count.max(1.0),
        });
        server.latencies.extend(latencies);
        server.latencies.sort_by(f64::total_cmp);
    }

    /// The rate of fdtools divided by the server's, of each round, sorted.
    pub fn ratios(&self, server: &Measured) -> Vec<f64> {
        let rounds = self.servers[0].rounds.iter().zip(&server.rounds);
        sorted(rounds.map(|(ours, theirs)| ours.rate / theirs.rate))
    }
}

impl Measured {
    /// The median of one number over all rounds.
    pub fn median(&self, number: impl Fn(&Round) -> f64) -> f64 {
        quantile(&sorted(self.rounds.iter().map(number)), 0.5)
    }

    pub fn failures(&self) -> usize {
        self.rounds.iter().map(|round| round.failures).sum()
    }
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

/// A quantile of sorted numbers, interpolated; 0 if there are none.
pub fn quantile(sorted: &[f64], which: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = which * last as f64;
    let (below, above) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    below + (above - below) * place.fract()
}

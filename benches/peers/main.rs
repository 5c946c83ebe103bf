//! fdtools against every other program that could do the same here, side by side.
//!
//! ```text
//! cargo bench --bench peers -- [--rounds N] [--seconds S] [--scenario NAME] [--json FILE] [--plot FILE]
//! ```
//!
//! All servers run at once and are loaded in turns, so that what else happens on the machine hits them
//! alike: what counts are the ratios of one round, of which the median and the range are printed.

mod baseline;
mod lineup;
mod load;
mod outcome;
mod plot;
mod server;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use outcome::Outcome;
use server::Server;

/// fdtools and its peers, measured side by side.
#[derive(Parser)]
struct Arguments {
    /// How often each server is loaded, in turns
    #[arg(long, default_value_t = 10)]
    rounds: usize,

    /// How long, each time
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,

    /// Only this scenario (repeatable)
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,

    /// Also write everything to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Also draw the latencies into FILE, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Only load what listens on this port of 127.0.0.1, with 16 clients
    #[arg(long, value_name = "PORT")]
    against: Option<u16>,

    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,

    /// Be one of the baselines instead
    #[arg(long, hide = true, num_args = 2)]
    baseline: Option<Vec<String>>,
}

/// What is compared.
struct Scenario {
    name: &'static str,
    title: &'static str,
    clients: usize,
    servers: fn() -> Vec<Server>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "process",
        title: "A process for each connection, 16 clients",
        clients: 16,
        servers: lineup::process_per_connection,
    },
    Scenario {
        name: "process-1",
        title: "A process for each connection, 1 client",
        clients: 1,
        servers: lineup::process_per_connection,
    },
    Scenario {
        name: "process-64",
        title: "A process for each connection, 64 clients",
        clients: 64,
        servers: lineup::process_per_connection,
    },
    Scenario {
        name: "workers",
        title: "Two workers that stay, 16 clients",
        clients: 16,
        servers: lineup::workers,
    },
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(baseline) = &arguments.baseline {
        baseline::run(&baseline[0], &baseline[1]);
    }
    let seconds = Duration::from_secs_f64(arguments.seconds);
    if let Some(port) = arguments.against {
        let load = load::run(port, 16, seconds);
        let rate = load.latencies.len() as f64 / load.elapsed.as_secs_f64();
        println!("{rate:.0} connections/s, {} failures", load.failures);
        return ExitCode::SUCCESS;
    }
    let wanted = |scenario: &&Scenario| {
        let names = &arguments.scenario;
        names.is_empty() || names.iter().any(|name| name == scenario.name)
    };
    let mut outcomes = Vec::new();
    for scenario in SCENARIOS.iter().filter(wanted) {
        let outcome = measure(scenario, arguments.rounds, seconds);
        println!("{}", table::render(&outcome));
        outcomes.push(outcome);
    }
    if outcomes.is_empty() {
        eprintln!("no such scenario");
        return ExitCode::from(2);
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcomes).expect("numbers and names");
        std::fs::write(path, text).expect("the JSON can be written");
    }
    if let Some(path) = &arguments.plot {
        plot::draw(&outcomes, path).expect("the plot can be drawn");
    }
    ExitCode::SUCCESS
}

/// Loads the servers of a scenario in turns.
fn measure(scenario: &Scenario, rounds: usize, length: Duration) -> Outcome {
    let mut servers = (scenario.servers)();
    let mut outcome = Outcome::new(scenario.name, scenario.title, scenario.clients);
    for server in &servers {
        outcome.add(server.name);
        // Caches, and whatever a server does at its first connection.
        load::run(
            server.port,
            scenario.clients,
            length.min(Duration::from_millis(300)),
        );
    }
    for round in 0..rounds {
        // Each is the first one in turn.
        let count = servers.len();
        for index in (0..count).map(|index| (index + round) % count) {
            let server = &mut servers[index];
            let before = server.cpu_time();
            let load = load::run(server.port, scenario.clients, length);
            let cpu = server.cpu_time().saturating_sub(before);
            if load.failures > 0 {
                let (name, failures) = (server.name, load.failures);
                eprintln!("round {round}: {failures} of {name}'s connections failed");
            }
            outcome.record(index, load, cpu);
        }
    }
    outcome
}

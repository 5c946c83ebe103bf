//! Compares fdtools with every other program here that can do the same.
//!
//! ```text
//! cargo bench --bench peers -- [--rounds N] [--seconds S] [--scenario NAME] [--json FILE] [--plot FILE]
//! ```
//!
//! All servers run at once and are loaded in turns, so that other load on the machine hits them
//! alike. The ratios within one round count; their median and range are printed.

mod baseline;
mod lineup;
mod load;
mod outcome;
mod plot;
mod server;
mod table;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use outcome::Outcome;
use server::Server;

/// fdtools and its peers, measured side by side.
#[derive(Parser)]
struct Arguments {
    /// How often each server is loaded, in turns
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How long, each time
    #[arg(long, default_value = "1.5", value_parser = parse_seconds)]
    seconds: Duration,

    /// Only this scenario (repeatable)
    #[arg(long, value_name = "NAME", value_parser = scenario_names())]
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

    /// What cargo bench says to every benchmark, and cargo test does not
    #[arg(long, hide = true)]
    bench: bool,

    /// Be one of the baselines instead
    #[arg(long, hide = true, num_args = 2)]
    baseline: Option<Vec<String>>,
}

struct Scenario {
    name: &'static str,
    title: &'static str,
    clients: usize,
    servers: fn() -> Option<Vec<Server>>,
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

fn scenario_names() -> PossibleValuesParser {
    SCENARIOS.iter().map(|scenario| scenario.name).into()
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
    let length = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    length.ok_or_else(|| "not a number of seconds above 0".into())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(baseline) = &arguments.baseline {
        baseline::run(&baseline[0], &baseline[1]);
    }
    if let Some(port) = arguments.against {
        let load = load::run(port, 16, arguments.seconds);
        println!("{:.0} connections/s, {} failures", load.rate, load.failures);
        return ExitCode::SUCCESS;
    }
    if !arguments.bench {
        println!("nothing is tested here: this is for cargo bench");
        return ExitCode::SUCCESS;
    }
    match compare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(), String> {
    // An unwritable file is noticed before minutes have passed.
    for path in arguments.json.iter().chain(&arguments.plot) {
        File::create(path).map_err(|error| unwritten(path, &error))?;
    }
    let names = &arguments.scenario;
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut outcomes = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| is_wanted(scenario.name)) {
        let outcome = measure(scenario, arguments.rounds, arguments.seconds)
            .ok_or("there is nothing to compare without fdtools")?;
        println!("{}", table::render(&outcome));
        outcomes.push(outcome);
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcomes).expect("numbers and names");
        std::fs::write(path, text).map_err(|error| unwritten(path, &error))?;
    }
    if let Some(path) = &arguments.plot {
        plot::draw(&outcomes, path).map_err(|error| unwritten(path, &error))?;
    }
    Ok(())
}

fn unwritten(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot write {}: {error}", path.display())
}

/// Loads the servers of a scenario in turns; `None` if fdtools does not answer.
fn measure(scenario: &Scenario, rounds: u32, length: Duration) -> Option<Outcome> {
    let mut servers = (scenario.servers)()?;
    let mut outcome = Outcome::new(scenario.name, scenario.title, scenario.clients);
    for server in &servers {
        outcome.add(server.name);
        // For caches, and for whatever a server does at its first connection.
        load::run(
            server.port,
            scenario.clients,
            length.min(Duration::from_millis(300)),
        );
    }
    for round in 0..rounds as usize {
        // Each server comes first in turn.
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
    Some(outcome)
}

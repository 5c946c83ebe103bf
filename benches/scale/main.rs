//! Which costs of fdtools grow and which do not: slots, waiting connections, open connections,
//! memory, system calls, and the time to start.
//!
//! ```text
//! cargo bench --bench scale -- [--scenario NAME]...
//! ```

mod calls;
mod hold;
#[path = "../peers/load.rs"]
mod load;
mod memory;
mod open;
mod process;
#[path = "../peers/server.rs"]
mod server;
mod slots;
mod start;
mod waiting;

use clap::Parser;
use clap::builder::PossibleValuesParser;

/// What grows with fdtools and what does not.
#[derive(Parser)]
struct Arguments {
    /// Only this scenario (repeatable)
    #[arg(long, value_name = "NAME", value_parser = scenario_names())]
    scenario: Vec<String>,

    /// What cargo bench says to every benchmark, and cargo test does not
    #[arg(long, hide = true)]
    bench: bool,

    /// Be a worker that holds connections instead
    #[arg(long, hide = true)]
    hold: bool,
}

const SCENARIOS: &[(&str, fn())] = &[
    ("slots", slots::measure),
    ("waiting", waiting::measure),
    ("open", open::measure),
    ("memory", memory::measure),
    ("start", start::measure),
    ("calls", calls::measure),
];

fn scenario_names() -> PossibleValuesParser {
    SCENARIOS.iter().map(|(name, _)| *name).into()
}

fn main() {
    let arguments = Arguments::parse();
    if arguments.hold {
        hold::run();
    }
    if !arguments.bench {
        println!("nothing is tested here: this is for cargo bench");
        return;
    }
    // This process and its servers have the two ends of every open connection.
    process::raise_limit();
    let names = &arguments.scenario;
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    for (_, measure) in SCENARIOS.iter().filter(|(name, _)| wanted(name)) {
        measure();
        println!();
    }
}

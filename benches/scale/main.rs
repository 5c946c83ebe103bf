//! What grows with fdtools and what does not: slots, connections that wait, connections that are open,
//! memory, system calls, and how long it takes to start.
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

use std::process::ExitCode;

use clap::Parser;

/// What grows with fdtools and what does not.
#[derive(Parser)]
struct Arguments {
    /// Only this scenario (repeatable)
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,

    /// What cargo says to every benchmark
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.hold {
        hold::run();
    }
    // Both ends of every open connection of this benchmark are counted.
    fdtools::limit::Limit::raise();
    let names = &arguments.scenario;
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut measured = 0;
    for (_, measure) in SCENARIOS.iter().filter(|(name, _)| wanted(name)) {
        measure();
        println!();
        measured += 1;
    }
    if measured == 0 {
        eprintln!("no such scenario");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

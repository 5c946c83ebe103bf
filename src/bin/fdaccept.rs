//! fdaccept: listens, accepts, and passes each connection into a queue.

#![cfg_attr(target_env = "gnu", no_main)]

use fdtools::accept::{self, Acceptor, Parts};
use fdtools::accept_arguments::Arguments;
use fdtools::chain::Chain;
use fdtools::footprint::Footprint;
use fdtools::limit::Limit;
use fdtools::listen_fds::Passed;
use fdtools::signals::Signals;
use fdtools::store::Store;
use fdtools::{Result, sandbox};

const PROGRAM: &str = "fdaccept";

fdtools::program!(PROGRAM, run);

fn run() -> Result<u8> {
    let arguments = Arguments::parse()?;
    let log = arguments.log.log(PROGRAM);
    let limit = Limit::raise();
    let command = arguments.command()?;
    let user = arguments.service.user()?;
    let passed = Passed::from_environment()?;
    let supervisor = arguments.service.supervisor(&log)?;
    let mut store = Store::open(&passed, &supervisor, arguments.service.store(), &log)?;
    let (sink, read_end) = arguments.sink(user.as_ref(), &mut store)?;
    let guard = arguments.guard()?;
    // Looking up a host may take long; until it is over a signal simply ends us.
    let listeners = arguments.listeners(&passed, &mut store)?;
    if let Some(user) = &user {
        listeners
            .iter()
            .try_for_each(|listener| listener.give_to(user))?;
    }
    let headers = arguments.guard.awaited_headers(&listeners)?;
    arguments.service.write_ports(&listeners)?;
    let signals = Signals::new(&accept::signals(arguments.guard.has_rules()))?;
    if let Some(user) = user {
        user.assume()?;
        sink.check()?;
    }
    // Before anybody is told: from then on nothing is opened but for connections.
    let footprint = Footprint::of_start();
    for listener in &listeners {
        log.notice(format_args!("listening on {listener}"));
    }
    let chain = match command.zip(read_end) {
        Some((command, read_end)) => {
            let mask = signals.original_mask();
            Some(Chain::start(&command, read_end, &mask, &limit)?)
        }
        None => None,
    };
    let child = chain.as_ref().map(Chain::pid);
    let acceptor = Acceptor::new(Parts {
        listeners,
        headers,
        guard,
        sink,
        chain,
        supervisor,
        signals,
        grace: arguments.grace,
        log,
    })?;
    footprint.reduce();
    if arguments.service.sandbox() {
        sandbox::enter(child)?;
    }
    acceptor.run()
}

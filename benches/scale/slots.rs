//! A connection costs the same whatever the number of slots.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::load;
use crate::process::{processor_time, wake_ups};
use crate::server::{Line, Server, children};

const CLIENTS: usize = 16;
const LENGTH: Duration = Duration::from_secs(3);
/// How long all slots may take to start.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many connections, one after another, are made to count the slots' wake-ups.
const SINGLE: usize = 300;

/// A pool of this many slots that runs `cat`.
macro_rules! pool_of {
    ($slots:literal) => {
        Line {
            name: concat!("fdpool ", $slots),
            needs: &[],
            text: concat!(
                "exec fdaccept -q 127.0.0.1:PORT -- fdpool -q ",
                $slots,
                " -- cat"
            ),
        }
    };
}
pub(crate) use pool_of;

pub fn measure() {
    println!(
        "| slots | started after ms | wake-ups each | connections/s | CPU us of fdtools each |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: |");
    let pools = [
        (1, pool_of!(1)),
        (16, pool_of!(16)),
        (256, pool_of!(256)),
        (1000, pool_of!(1000)),
    ];
    for (count, line) in pools {
        let start = Instant::now();
        let Some(server) = Server::start(&line, &[]) else {
            continue;
        };
        let pool = Pool::of(server.pid());
        let slots = loop {
            let slots = pool.slots();
            if slots.len() >= count || start.elapsed() >= PATIENCE {
                break slots;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let started = start.elapsed();
        if slots.len() < count {
            eprintln!("left out: {} has only {} slots", line.name, slots.len());
            continue;
        }
        let woken = wake_ups_of(&slots, server.port);
        let everybody = [&slots[..], &[pool.fdaccept, pool.fdpool]].concat();
        let spent = || {
            everybody
                .iter()
                .copied()
                .map(processor_time)
                .sum::<Duration>()
        };
        let before = spent();
        let load = load::run(server.port, CLIENTS, LENGTH);
        let spent = spent() - before;
        let served = load.latencies.len() as f64;
        println!(
            "| {count} | {:.0} | {woken:.2} | {:.0} | {:.0} |",
            started.as_secs_f64() * 1e3,
            load.rate,
            spent.as_secs_f64() * 1e6 / served,
        );
    }
}

/// How often a connection wakes a slot. One slot wakes up when the connection comes, when its
/// handler has started, and when the handler has ended. The other slots sleep on.
fn wake_ups_of(slots: &[Pid], port: u16) -> f64 {
    let count = || slots.iter().copied().map(wake_ups).sum::<u64>();
    let before = count();
    for _ in 0..SINGLE {
        assert!(load::ask(port), "an answer");
    }
    (count() - before) as f64 / SINGLE as f64
}

/// The processes of `fdaccept ... -- fdpool ...`.
pub struct Pool {
    pub fdaccept: Pid,
    pub fdpool: Pid,
}

impl Pool {
    pub fn of(fdaccept: Pid) -> Self {
        let fdpool = children(fdaccept)[0];
        Self { fdaccept, fdpool }
    }

    pub fn slots(&self) -> Vec<Pid> {
        children(self.fdpool)
    }
}

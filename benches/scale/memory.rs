//! The memory that the programs take.

use std::time::Duration;

use crate::load;
use crate::process::proportional_set_size;
use crate::server::{Line, Server};
use crate::slots::{Pool, pool_of};

pub fn measure() {
    let Some(server) = Server::start(&pool_of!(16), &[]) else {
        return;
    };
    load::run(server.port, 16, Duration::from_millis(500));
    let pool = Pool::of(server.pid());
    let slots = pool.slots();
    let sum: u64 = slots.iter().copied().map(proportional_set_size).sum();
    println!(
        "KiB of memory (proportional set size): fdaccept {}, fdpool {}, a waiting slot {}",
        proportional_set_size(pool.fdaccept),
        proportional_set_size(pool.fdpool),
        sum / slots.len() as u64
    );
}

//! fdpool and fdrecv: what handlers and workers find, and how pools start, change and end.

#[path = "../support/mod.rs"]
mod support;

mod descendants;
mod gone_clients;
mod handler;
mod hang_up;
mod heartbeat;
mod identity;
mod idle;
mod lingering;
mod pool;
mod replacement;
mod shortage;
mod told;
mod workers;

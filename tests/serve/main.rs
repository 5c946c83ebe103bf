//! fdpool and fdrecv: what handlers and workers find, and how pools start, change and end.

#[path = "../support/mod.rs"]
mod support;

mod descendants;
mod handler;
mod idle;
mod pool;
mod replacement;
mod shortage;
mod workers;

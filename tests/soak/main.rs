//! Load and disorder for as long as it takes: nothing is lost, and nothing is left over.

#[path = "../support/mod.rs"]
mod support;

mod hostile_soak;
mod load;
mod pool_chaos;
mod pool_soak;

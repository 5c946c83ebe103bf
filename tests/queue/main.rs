//! How a connection is passed: names, tickets and messages, and what becomes of bad ones.

#[path = "../support/mod.rs"]
mod support;

mod hostile_messages;
mod names;
mod sources_and_sinks;
mod strangers;
mod tickets;
mod trouble;

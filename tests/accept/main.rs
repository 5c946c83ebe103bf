//! fdaccept: who may come, where it listens, what it passes on, and who runs it.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod addresses;
mod dead_clients;
mod failing_accept;
mod heartbeat;
mod inherited_listeners;
mod limits;
mod link_local;
mod misled_commands;
mod port_file;
mod privileges;
mod proxy_protocol;
mod queue_limit;
mod readiness;
mod sandbox;
mod short_of_descriptors;
mod silent_clients;
mod socket_options;
mod stopping;
mod strangers;
mod supervision;
mod told;

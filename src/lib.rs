//! fdtools passes open connections between processes.

pub mod accept;
pub mod address;
pub mod alarm;
pub mod arguments;
pub mod chain;
pub mod command;
pub mod connection;
pub mod descriptor;
mod diag;
pub mod error;
pub mod fork;
pub mod handler;
pub mod inherited;
pub mod interrupt;
pub mod limit;
pub mod listener;
pub mod message;
pub mod name;
pub mod pool;
pub mod queue;
pub mod report;
pub mod scoreboard;
pub mod signals;
pub mod sink;
pub mod slot;
pub mod sockopt;
pub mod source;
pub mod ticket;
pub mod trust;
pub mod wait;

pub use error::{Error, Result};

//! fdpool and fdrecv: connections from a queue to the commands that serve them.

pub(crate) mod cpu_activity;
mod farewell;
pub(crate) mod handler;
mod lingering;
mod link;
pub(crate) mod pool;
mod returned;
pub(crate) mod scoreboard;
mod seldom;
mod shortage;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod source;
pub(crate) mod watchdog;
pub(crate) mod worker;
pub(crate) mod workers;

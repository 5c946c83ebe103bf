//! What the tests have in common: starting the real programs, waiting for events under a
//! deadline, and looking at what is open.
#![allow(dead_code, unused_imports)] // each group of tests uses its share

/// Tests that differ in the arguments of one check: `name: arguments;`.
#[allow(unused_macros)]
macro_rules! cases {
    ($check:ident; $($name:ident: $($argument:expr),+;)+) => {$(
        #[test]
        fn $name() {
            $check($($argument),+);
        }
    )+};
}
pub(crate) use cases;

mod acceptor;
mod clients;
mod ends;
mod fdaccept;
mod fuse;
mod hostile;
mod load;
mod log;
mod manager;
mod names;
mod network;
mod observe;
mod peers;
pub mod poll;
mod pool;
mod proc;
mod process;
mod queue;
mod random;
mod terminal;
mod users;
mod variables;
mod wait;

pub use acceptor::*;
pub use clients::*;
pub use ends::*;
pub use fdaccept::*;
pub use fuse::*;
pub use hostile::*;
pub use load::*;
pub use log::*;
pub use manager::*;
pub use names::*;
pub use network::*;
pub use observe::*;
pub use peers::*;
pub use pool::*;
pub use proc::*;
pub use process::*;
pub use queue::*;
pub use random::*;
pub use terminal::*;
pub use users::*;
pub use variables::*;
pub use wait::*;

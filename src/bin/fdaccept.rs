//! fdaccept: listens, accepts, and passes each connection into a queue.

#![cfg_attr(target_env = "gnu", no_main)]

fdtools::program!("fdaccept", fdtools::fdaccept);

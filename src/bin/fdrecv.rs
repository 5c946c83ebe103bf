//! fdrecv: takes one connection from a queue and becomes the command that serves it.

#![cfg_attr(target_env = "gnu", no_main)]

fdtools::program!("fdrecv", fdtools::fdrecv);

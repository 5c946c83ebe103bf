//! fdpool: keeps a number of handlers busy with the connections of a queue.

#![cfg_attr(target_env = "gnu", no_main)]

fdtools::program!("fdpool", fdtools::fdpool);

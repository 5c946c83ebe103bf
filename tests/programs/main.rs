//! The programs as others see them: other programs, shells, README and --help.

#[path = "../support/mod.rs"]
mod support;

mod existing_programs;
mod foreign_workers;
mod forking;
mod haproxy;
mod interoperation;
mod journal;
mod layers;
mod logs;
mod readme;
mod shells;
mod usage;

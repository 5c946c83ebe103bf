//! What a pool asks of those who serve in it, be they slots or workers.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::WaitStatus;

use crate::supply::Supply;

/// The processes of a pool. None of the calls waits for what one of them does, once it executes its
/// program.
pub(crate) trait Crew {
    /// The signals that the crew understands, besides those that every pool does.
    const RELOADING: &'static [Signal];

    /// How many are wanted.
    fn size(&self) -> usize;

    /// Says how many are wanted from now on.
    fn resize(&mut self, size: usize);

    /// Does what is due: starts who is missing, if there is a queue, and goes on with what the
    /// clock ends. Returns when something is due again.
    fn attend(&mut self, supply: &mut Supply) -> Option<Instant>;

    /// What else to wait for until it is readable.
    fn watched(&self) -> Vec<BorrowedFd<'_>>;

    /// A child of this process has ended.
    fn ended(&mut self, pid: Pid, status: WaitStatus, supply: &mut Supply);

    /// Whether nobody is there any more.
    fn is_gone(&self) -> bool;

    /// Replaces everybody, without a gap, when one of [`Crew::RELOADING`] comes.
    fn reload(&mut self) {}

    /// Takes nothing more: who is idle ends at once, who serves has `grace` to finish.
    fn stop(&mut self, grace: Duration);

    /// Ends everybody now.
    fn stop_now(&mut self);

    /// When something was served last, as far as can be seen: now, if something is.
    fn last_service(&mut self) -> Instant;
}

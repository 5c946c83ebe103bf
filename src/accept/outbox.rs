//! The connection in hand, and when to try to pass it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::accept::sink::{Delivery, Sink};
use crate::error::Result;
use crate::queue::RETRY;
use crate::system::log::Log;
use crate::system::pause::Pause;
use crate::system::quick_close::QuickClose;

/// The longest time between 2 tries to pass a connection.
const LONGEST_RETRY: Duration = Duration::from_millis(250);

/// An admitted connection that is not in the queue yet.
pub(super) struct InHand {
    pub connection: QuickClose<OwnedFd>,
    pub lease: Option<OwnedFd>,
    pub payload: Vec<u8>,
}

/// At most 1 connection for the sink.
pub(super) struct Outbox {
    in_hand: Option<InHand>,
    /// No new attempt to pass the connection during this pause.
    retry: Pause,
    retry_after: Duration,
}

impl Outbox {
    pub fn new() -> Self {
        Self {
            in_hand: None,
            retry: Pause::default(),
            retry_after: RETRY,
        }
    }

    pub fn is_free(&self) -> bool {
        self.in_hand.is_none()
    }

    /// Takes a connection in hand. None may be in hand yet.
    pub fn take(&mut self, in_hand: InHand) {
        self.in_hand = Some(in_hand);
    }

    /// Whether to wait for room in the sink.
    pub fn wants_room(&self) -> bool {
        self.in_hand.is_some() && !self.retry.is_on()
    }

    /// Passes the connection in hand to the sink, if there is room. `None` without an attempt.
    ///
    /// # Errors
    /// See [`Sink::pass`].
    pub fn pass(&mut self, sink: &mut Sink, log: &Log) -> Result<Option<Delivery>> {
        let Some(hand) = &self.in_hand else {
            return Ok(None);
        };
        if self.retry.is_on() {
            return Ok(None);
        }
        let lease = hand.lease.as_ref().map(AsFd::as_fd);
        let connection = hand.connection.as_fd();
        let delivery = sink.pass(connection, lease, &hand.payload, log)?;
        match delivery {
            // Closes our copy, so that the client sees the end when the handler closes its own.
            Delivery::Done => {
                self.in_hand = None;
                self.retry_after = RETRY;
            }
            Delivery::Later => {
                self.retry.begin(self.retry_after);
                self.retry_after = (self.retry_after * 2).min(LONGEST_RETRY);
            }
            Delivery::Full | Delivery::Gone => {}
        }
        Ok(Some(delivery))
    }

    /// When to try the connection in hand again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry.deadline()
    }
}

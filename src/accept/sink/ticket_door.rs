//! The door for tickets: issues them, and hands the read end to a peer that shows one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{bind, getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::accept::sink::door::{Consumer, Door, Event};
use crate::accept::sink::read_end::ReadEnd;
use crate::accept::sink::refusals::Refusals;
use crate::error::{Error, Result};
use crate::queue::message::VERSION_LINE;
use crate::queue::scm::{try_receive_bytes, try_send};
use crate::queue::ticket::{LONGEST_SHOWN, Ticket, Token, door_address, shown};
use crate::system::log::Log;
use crate::system::pause::Pause;
use crate::system::poll::{PollFlags, Watched, earliest};
use crate::system::quick_close::quickly;

/// How many tickets may be out. One more voids the oldest.
const OUTSTANDING: usize = 64;
/// How many tickets in a row may stay unredeemed before further tickets are delayed.
pub(super) const IN_VAIN: usize = 256;
/// How many peers may be without a token. One more drops the oldest.
const STRANGERS: usize = 16;
/// How long a peer may take to show its token.
const TOKEN_PATIENCE: Duration = Duration::from_secs(2);

/// The pause between tickets after too many unredeemed tickets.
const VAIN_PAUSE: Duration = Duration::from_millis(250);
/// The action in error messages.
const OPEN: &str = "open a door for tickets";

/// A peer that has not shown a token yet.
#[derive(Debug)]
struct Stranger {
    socket: Consumer,
    until: Instant,
}

#[derive(Debug)]
pub(super) struct TicketDoor {
    door: Door,
    name: Token,
    /// The user that the kernel reports as the door's owner, even if we become another user later.
    uid: u32,
    tickets: Tickets,
    strangers: VecDeque<Stranger>,
    /// See [`TicketDoor::is_misread`].
    is_said: bool,
}

#[derive(Debug, Default)]
struct Tickets {
    issued: VecDeque<Token>,
    refusals: Refusals,
    /// How many tickets were issued since the last redemption.
    in_vain: usize,
    /// Delays the next ticket.
    pause: Pause,
}

impl TicketDoor {
    /// Opens a door under a name that nobody can guess.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn open() -> Result<Self> {
        let name = Token::random()?;
        let address = door_address(name)?;
        let failed = |errno| Error::system(OPEN, errno);
        let bind = |listener: BorrowedFd<'_>| bind(listener.as_raw_fd(), &address).map_err(failed);
        let (door, ()) = Door::open(OPEN.into(), bind)?;
        Ok(Self {
            door,
            name,
            uid: geteuid().as_raw(),
            tickets: Tickets::default(),
            strangers: VecDeque::new(),
            is_said: false,
        })
    }

    /// Issues a ticket. If 64 tickets are out, the oldest becomes void.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel has no random bytes.
    pub fn issue(&mut self) -> Result<Ticket> {
        let token = Token::random()?;
        self.tickets.add(token);
        Ok(Ticket::new(self.name, self.uid, token))
    }

    /// Whether many tickets were read and none was redeemed. True once.
    pub fn is_misread(&mut self) -> bool {
        let is_first = self.tickets.in_vain > IN_VAIN && !self.is_said;
        self.is_said |= is_first;
        is_first
    }

    /// Whether to write a ticket when the pipe has room.
    pub fn is_ticket_due(&self) -> bool {
        !self.tickets.pause.is_on()
    }

    /// How many peers were refused because they showed no valid ticket.
    pub fn refused(&self) -> u64 {
        self.tickets.refusals.count()
    }

    /// Serves the peers, without blocking. A peer with a valid token gets the read end, once. A
    /// peer is dropped if it shows anything else, or nothing in time.
    pub fn attend(&mut self, read_end: &mut ReadEnd, log: &Log) {
        quickly(|| self.attend_all(read_end, log));
    }

    fn attend_all(&mut self, read_end: &mut ReadEnd, log: &Log) {
        let now = Instant::now();
        let (tickets, strangers) = (&mut self.tickets, &mut self.strangers);
        for stranger in std::mem::take(strangers) {
            strangers.extend(tickets.admit(stranger, read_end, now, log));
        }
        self.door.attend(|event| match event {
            Event::Consumer(socket) => {
                let until = now + TOKEN_PATIENCE;
                let stranger = tickets.admit(Stranger { socket, until }, read_end, now, log);
                strangers.extend(stranger);
                strangers.len() <= STRANGERS || drop_oldest(strangers)
            }
            Event::Short => drop_oldest(strangers),
        });
    }
}

/// Drops the peer that has waited longest. False if there is no peer.
fn drop_oldest(strangers: &mut VecDeque<Stranger>) -> bool {
    strangers.pop_front().is_some()
}

impl Tickets {
    fn add(&mut self, token: Token) {
        if self.issued.len() == OUTSTANDING {
            self.issued.pop_front();
        }
        self.issued.push_back(token);
        // A reader that redeems nothing, such as cat, must not take all our time.
        self.in_vain += 1;
        if self.in_vain > IN_VAIN {
            self.pause.begin(VAIN_PAUSE);
        }
    }

    /// Serves a peer. Returns the peer if its token has not arrived yet.
    fn admit(
        &mut self,
        stranger: Stranger,
        read_end: &mut ReadEnd,
        now: Instant,
        log: &Log,
    ) -> Option<Stranger> {
        let mut message = [0; LONGEST_SHOWN];
        let message = match try_receive_bytes(&*stranger.socket, &mut message) {
            // It left without a word.
            Ok(0) => return None,
            Ok(length) => &message[..length],
            Err(Errno::EAGAIN | Errno::EINTR) if now < stranger.until => return Some(stranger),
            // It was late, or is gone.
            Err(_) => return None,
        };
        let token = shown(message);
        let place = token.and_then(|token| self.issued.iter().position(|known| *known == token));
        match place {
            // Only success uses up a token: a consumer that got nothing tries again.
            Some(place) if read_end.hand_over(&stranger.socket).is_ok() => {
                self.issued.remove(place);
                self.in_vain = 0;
                self.pause.end();
            }
            Some(_) => {}
            None => {
                // A consumer learns that its ticket is void. A stranger learns nothing.
                if token.is_some() {
                    let _ = try_send(&*stranger.socket, VERSION_LINE, &[]);
                }
                self.refuse(&stranger, token.is_some(), log);
            }
        }
        None
    }

    fn refuse(&mut self, stranger: &Stranger, had_ticket: bool, log: &Log) {
        let peer = getsockopt(&*stranger.socket, sockopt::PeerCredentials);
        let uid = peer.map_or_else(|errno| errno.to_string(), |peer| peer.uid().to_string());
        let why = if had_ticket {
            "the ticket is void"
        } else {
            "it showed no ticket"
        };
        self.refusals.add(format_args!("{why} (uid {uid})"), log);
    }
}

impl Watched for TicketDoor {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        self.door.descriptors(poll);
        for stranger in &self.strangers {
            poll(stranger.socket.as_fd(), PollFlags::IN);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let patience = self.strangers.front().map(|stranger| stranger.until);
        let next_ticket = self.tickets.pause.deadline();
        earliest([patience, self.door.deadline(), next_ticket])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_64_tickets_are_out() {
        let mut tickets = Tickets::default();
        let tokens = [(); OUTSTANDING + 1].map(|()| Token::random().unwrap());
        for token in &tokens[..OUTSTANDING] {
            tickets.add(*token);
        }
        assert!(tickets.issued.contains(&tokens[0]));
        tickets.add(tokens[OUTSTANDING]);
        assert!(!tickets.issued.contains(&tokens[0]));
        assert_eq!(tickets.issued.len(), OUTSTANDING);
    }
}

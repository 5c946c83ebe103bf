//! Tickets: how a consumer gets the read end of a queue through a pipe, which carries only text.
//!
//! A ticket is one line. It names a door, which is a listening socket in the abstract namespace,
//! and a token that opens it once. [`Door`] issues tickets and hands the read end to whoever
//! shows a token; [`redeem`] is the other side.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{Backlog, SockType, UnixAddr, bind, getsockopt, listen, sockopt};
use rustix::io::Errno as Rerrno;
use rustix::net::{SocketFlags, accept_with};

use crate::error::to_nix;
use crate::message::VERSION_LINE;
use crate::queue::{self, Receiver, Visit, close_unread};
use crate::{Error, Result};

/// The length of every ticket in bytes, its newline included.
pub const LENGTH: usize = 94;

/// Tickets that may be out at once; issuing one more voids the oldest.
const OUTSTANDING: usize = 64;
/// Tickets in a row that nobody redeems before there is time between them.
const IN_VAIN: usize = 256;
/// Peers that have not shown a token yet; one more drops the oldest.
const STRANGERS: usize = 16;
/// How long a peer may take to show its token.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the door stays shut when descriptors are short.
const PAUSE: Duration = Duration::from_millis(250);

const PREFIX: &str = "fdtools-ticket 1 ";
/// What a door's name in the abstract namespace starts with.
const DOOR: &str = "fdtools-";

/// 128 random bits.
#[derive(Clone, Copy, Eq)]
struct Token([u8; 16]);

impl PartialEq for Token {
    /// Takes the same time wherever the two differ.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        pairs.fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl Token {
    fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        // Up to 256 bytes come whole (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::system("get random bytes", to_nix(errno)))?;
        Ok(Self(bytes))
    }

    fn parse(hex: &[u8]) -> Option<Self> {
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != 32 || !hex.iter().all(lower) {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(hex.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    /// A token is a key: it is not for logs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token")
    }
}

/// One line on a pipe, worth one fetch of the read end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    door: Token,
    uid: u32,
    token: Token,
}

impl Ticket {
    /// The line, [`LENGTH`] bytes.
    pub fn encode(&self) -> String {
        let Self { door, uid, token } = self;
        format!("{PREFIX}{door} {uid:010} {token}\n")
    }

    /// Reads a line. Returns `None` for anything that is not exactly what [`Ticket::encode`]
    /// writes.
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() != LENGTH {
            return None;
        }
        let line = line.strip_prefix(PREFIX.as_bytes())?;
        let fields: Vec<_> = line.strip_suffix(b"\n")?.split(|b| *b == b' ').collect();
        let [door, uid, token] = fields[..] else {
            return None;
        };
        if uid.len() != 10 || !uid.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(Self {
            door: Token::parse(door)?,
            uid: std::str::from_utf8(uid).ok()?.parse().ok()?,
            token: Token::parse(token)?,
        })
    }

    /// What tells one door from another.
    pub(crate) fn door(&self) -> impl Eq + use<> {
        self.door
    }

    fn address(&self) -> Result<UnixAddr> {
        door_address(self.door)
    }
}

fn door_address(door: Token) -> Result<UnixAddr> {
    UnixAddr::new_abstract(format!("{DOOR}{door}").as_bytes())
        .map_err(|errno| Error::system("name a door", errno))
}

/// What a consumer shows at the door.
fn show(token: Token) -> Vec<u8> {
    [VERSION_LINE, format!("TOKEN={token}\n").as_bytes()].concat()
}

/// Reads what [`show`] wrote.
fn shown(payload: &[u8]) -> Option<Token> {
    let line = payload.strip_prefix(VERSION_LINE)?;
    Token::parse(line.strip_prefix(b"TOKEN=")?.strip_suffix(b"\n")?)
}

/// Somebody at the door who has not shown a token yet.
#[derive(Debug)]
struct Stranger {
    socket: OwnedFd,
    until: Instant,
}

/// Issues tickets and hands the read end of a queue to whoever shows one.
#[derive(Debug)]
pub struct Door {
    name: Token,
    /// Whom the kernel says to be the owner of the door, whoever we become later.
    uid: u32,
    listener: OwnedFd,
    issued: VecDeque<Token>,
    /// Tickets since one was redeemed.
    in_vain: usize,
    /// When there may be a next one.
    next: Option<Instant>,
    strangers: VecDeque<Stranger>,
    shut_until: Option<Instant>,
}

impl Door {
    /// A new door with a name that nobody can guess.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn open() -> Result<Self> {
        let name = Token::random()?;
        let listener = queue::unix_socket_without_waiting(SockType::SeqPacket)?;
        let address = door_address(name)?;
        bind(listener.as_raw_fd(), &address)
            .and_then(|()| listen(&listener, Backlog::MAXCONN))
            .map_err(|errno| Error::system("open a door for tickets", errno))?;
        Ok(Self {
            name,
            uid: nix::unistd::geteuid().as_raw(),
            listener,
            issued: VecDeque::new(),
            in_vain: 0,
            next: None,
            strangers: VecDeque::new(),
            shut_until: None,
        })
    }

    /// A new ticket. The oldest of more than 64 that nobody has redeemed becomes void.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel has no random bytes.
    pub fn issue(&mut self) -> Result<Ticket> {
        let token = Token::random()?;
        if self.issued.len() == OUTSTANDING {
            self.issued.pop_front();
        }
        self.issued.push_back(token);
        // Whoever reads them without end, as cat does, is no consumer, and not worth all our time.
        self.in_vain += 1;
        if self.in_vain > IN_VAIN {
            self.next = Some(Instant::now() + PAUSE);
        }
        Ok(Ticket {
            door: self.name,
            uid: self.uid,
            token,
        })
    }

    /// Whether a next ticket is due, if there is room for it.
    pub fn is_ticket_due(&self) -> bool {
        self.next.is_none_or(|next| next <= Instant::now())
    }

    /// The descriptors that are readable when [`Door::attend`] has something to do.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = self.shut_until.is_none().then(|| self.listener.as_fd());
        let strangers = self.strangers.iter();
        listener
            .into_iter()
            .chain(strangers.map(|stranger| stranger.socket.as_fd()))
    }

    /// When [`Door::attend`] has something to do even if nothing is readable.
    pub fn deadline(&self) -> Option<Instant> {
        let patience = self.strangers.front().map(|stranger| stranger.until);
        let next = self.next.filter(|_| !self.is_ticket_due());
        [patience, self.shut_until, next]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets in whoever is there: to one who shows a token the read end is handed over by
    /// `hand_over`, once; who shows something else, or nothing in time, is dropped. Never blocks.
    pub fn attend(&mut self, mut hand_over: impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>) {
        let now = Instant::now();
        if self.shut_until.is_some_and(|until| until <= now) {
            self.shut_until = None;
        }
        for stranger in std::mem::take(&mut self.strangers) {
            self.admit(stranger, &mut hand_over, now);
        }
        // A crowd at the door must not keep us from everything else.
        for _ in 0..STRANGERS {
            if self.shut_until.is_some() {
                break;
            }
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let until = now + PATIENCE;
                    self.admit(Stranger { socket, until }, &mut hand_over, now);
                    if self.strangers.len() > STRANGERS {
                        self.drop_oldest();
                    }
                }
                Err(Rerrno::INTR | Rerrno::CONNABORTED) => {}
                Err(Rerrno::AGAIN) => break,
                // Descriptors are short: whoever has waited longest goes, then nobody comes in
                // for a while.
                Err(_) => {
                    if !self.drop_oldest() {
                        self.shut_until = Some(now + PAUSE);
                    }
                }
            }
        }
    }

    /// Drops who has waited longest; false if there is nobody.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.strangers.pop_front();
        oldest
            .map(|stranger| close_unread(stranger.socket))
            .is_some()
    }

    /// Serves one peer, or keeps it waiting.
    fn admit(
        &mut self,
        stranger: Stranger,
        hand_over: &mut impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>,
        now: Instant,
    ) {
        let message = match queue::receive(&stranger.socket, false) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) if now < stranger.until => {
                self.strangers.push_back(stranger);
                return;
            }
            Err(_) => return close_unread(stranger.socket),
        };
        let token = shown(&message.payload);
        let place = token.and_then(|token| self.issued.iter().position(|known| *known == token));
        match place {
            // A token is used up by success alone: a consumer that got nothing tries again.
            Some(place) if hand_over(stranger.socket.as_fd()).is_ok() => {
                self.issued.remove(place);
                self.in_vain = 0;
                self.next = None;
            }
            None if token.is_some() => {
                let _ = queue::send(&stranger.socket, VERSION_LINE, &[], false);
            }
            _ => {}
        }
        close_unread(stranger.socket);
    }
}

/// What a ticket was worth.
pub enum Redeemed {
    /// The read end.
    Queue(Receiver),
    /// Nothing: it was used before, or too many newer ones are out.
    Void,
    /// Nothing: who issued it is gone.
    Gone,
    /// Nothing yet: a signal broke it off ([`crate::interrupt`]).
    BrokenOff,
}

/// Fetches the read end that `ticket` is worth. A visit that the door had to drop, since too many
/// others were waiting there, is made again.
///
/// # Errors
/// [`Error::Peer`] if somebody else has taken the door's name, or it answers something else;
/// [`Error::System`].
pub fn redeem(ticket: &Ticket) -> Result<Redeemed> {
    let failed = |errno| Error::system("redeem a ticket", errno);
    let mut pause = Duration::from_millis(1);
    loop {
        let visit = Visit::new()?;
        let _watch = crate::interrupt::watch(visit.as_fd());
        match visit.connect(&ticket.address()?) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => return Ok(Redeemed::Gone),
            Err(Errno::ENOTSOCK) => return Ok(Redeemed::BrokenOff),
            Err(errno) => return Err(failed(errno)),
        }
        let owner = match getsockopt(&visit, sockopt::PeerCredentials) {
            Ok(owner) => owner.uid(),
            Err(Errno::ENOTSOCK) => return Ok(Redeemed::BrokenOff),
            Err(errno) => return Err(failed(errno)),
        };
        if owner != ticket.uid {
            return Err(Error::Peer(format!(
                "the door of a ticket from uid {} is held by uid {owner}",
                ticket.uid
            )));
        }
        let answer = queue::send(&visit, &show(ticket.token), &[], true);
        match answer.and_then(|()| visit.fetch()) {
            Ok(Some(receiver)) => return Ok(Redeemed::Queue(receiver)),
            Ok(None) => return Ok(Redeemed::Void),
            Err(Errno::ENOTSOCK) => return Ok(Redeemed::BrokenOff),
            Err(Errno::EPIPE | Errno::ECONNRESET) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // Nothing announces that the crowd at the door is smaller.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Reads exactly one ticket, and not a byte more: the next belongs to somebody else. `None` at
/// the end of the pipe.
///
/// # Errors
/// [`Error::Peer`] if what comes is no ticket, [`Error::System`] if the pipe cannot be read.
pub fn read(mut pipe: impl Read) -> Result<Option<Ticket>> {
    let mut line = [0; LENGTH];
    let mut length = 0;
    while length < LENGTH {
        match pipe.read(&mut line[length..]) {
            Ok(0) if length == 0 => return Ok(None),
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read a ticket", error)),
        }
        // What is no ticket is not waited for to its end.
        let ends = line[..length].iter().position(|byte| *byte == b'\n');
        if ends.is_some_and(|at| at + 1 < LENGTH) {
            break;
        }
        if !line[..length.min(PREFIX.len())]
            .iter()
            .eq(PREFIX.as_bytes().iter().take(length))
        {
            break;
        }
    }
    match Ticket::parse(&line[..length]) {
        Some(ticket) => Ok(Some(ticket)),
        None => Err(Error::Peer(
            "what comes from the pipe is no ticket of fdaccept's".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Ticket {
        Ticket {
            door: Token([0xab; 16]),
            uid: 1000,
            token: Token([0x01; 16]),
        }
    }

    #[test]
    fn a_ticket_is_one_line_of_fixed_length() {
        let line = sample().encode();
        assert_eq!(line.len(), LENGTH);
        assert_eq!(Ticket::parse(line.as_bytes()), Some(sample()));
    }

    #[test]
    fn what_differs_in_any_byte_is_no_ticket_or_another_one() {
        let line = sample().encode().into_bytes();
        for at in 0..line.len() {
            for byte in [0, b' ', b'\n', b'g', b'A', b'+', 0xff] {
                let mut other = line.clone();
                if other[at] == byte {
                    continue;
                }
                other[at] = byte;
                assert_eq!(Ticket::parse(&other), None, "{at} {byte}");
            }
        }
        assert_eq!(Ticket::parse(&line[..LENGTH - 1]), None);
    }

    #[test]
    fn a_reader_takes_one_ticket_and_leaves_the_next() {
        let two = [sample().encode(), sample().encode()].concat();
        let mut rest = two.as_bytes();
        assert_eq!(read(&mut rest).unwrap(), Some(sample()));
        assert_eq!(rest.len(), LENGTH);
        assert_eq!(read(&mut rest).unwrap(), Some(sample()));
        assert_eq!(read(&mut rest).unwrap(), None);
        assert!(read(&two.as_bytes()[..LENGTH - 1]).is_err());
        assert!(read(&b"GET / HTTP/1.1\r\n"[..]).is_err());
    }

    #[test]
    fn at_most_64_tickets_are_out() {
        let mut door = Door::open().unwrap();
        let first = door.issue().unwrap();
        for _ in 1..OUTSTANDING {
            door.issue().unwrap();
        }
        assert!(door.issued.contains(&first.token));
        door.issue().unwrap();
        assert!(!door.issued.contains(&first.token));
        assert_eq!(door.issued.len(), OUTSTANDING);
    }

    proptest::proptest! {
        #[test]
        fn nothing_crashes_it(line: Vec<u8>) {
            assert_eq!(Ticket::parse(&line), None);
            let _ = read(&line[..]);
            let _ = shown(&line);
        }

        #[test]
        fn what_is_encoded_is_parsed(door: [u8; 16], uid: u32, token: [u8; 16]) {
            let ticket = Ticket { door: Token(door), uid, token: Token(token) };
            assert_eq!(Ticket::parse(ticket.encode().as_bytes()), Some(ticket));
            assert_eq!(shown(&show(Token(token))), Some(Token(token)));
        }
    }
}

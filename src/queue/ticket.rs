//! Tickets: a consumer gets the read end of a queue by a pipe, which carries only text.
//!
//! A ticket is one line. It names a door, which is a listening socket in the abstract namespace,
//! and a token that opens the door once. fdaccept issues tickets and hands the read end to a
//! consumer that shows a token; [`redeem`] is the consumer's side.

use std::fmt;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{UnixAddr, getsockopt, sockopt};
use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result, to_nix};
use crate::queue::fetch::Visit;
use crate::queue::message::VERSION_LINE;
use crate::queue::receiver::Receiver;
use crate::queue::scm;
use crate::system::interrupt;

/// The length of every ticket in bytes, with its newline.
pub const LENGTH: usize = 94;

const PREFIX: &str = "fdtools-ticket 1 ";
/// The start of a door's name in the abstract namespace.
const DOOR: &str = "fdtools-";

/// 128 random bits.
#[derive(Clone, Copy, Eq)]
pub(crate) struct Token([u8; 16]);

impl PartialEq for Token {
    /// Takes the same time wherever two tokens differ.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        pairs.fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl Token {
    /// # Errors
    /// [`Error::System`] if the kernel has no random bytes.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        // Up to 256 bytes come whole; a signal interrupts the wait for the first ones after boot
        // (getrandom(2)).
        retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))
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
    /// A token is a key and must not get into a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token")
    }
}

/// One line of a pipe, good for one fetch of the read end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    door: Token,
    uid: u32,
    token: Token,
}

impl Ticket {
    /// The ticket as a line of [`LENGTH`] bytes.
    pub fn encode(&self) -> String {
        let Self { door, uid, token } = self;
        format!("{PREFIX}{door} {uid:010} {token}\n")
    }

    /// Parses a line. Returns `None` for anything but the exact output of [`Ticket::encode`].
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() != LENGTH {
            return None;
        }
        let line = line.strip_prefix(PREFIX.as_bytes())?;
        let fields: Vec<_> = line.strip_suffix(b"\n")?.split(|b| *b == b' ').collect();
        let [door, uid, token] = fields[..] else {
            return None;
        };
        Some(Self {
            door: Token::parse(door)?,
            uid: parse_uid(uid)?,
            token: Token::parse(token)?,
        })
    }

    /// A ticket that opens `door`, which belongs to `uid`, by `token`.
    pub(crate) fn new(door: Token, uid: u32, token: Token) -> Self {
        Self { door, uid, token }
    }

    pub(crate) fn door(&self) -> Token {
        self.door
    }

    fn address(&self) -> Result<UnixAddr> {
        door_address(self.door)
    }
}

/// Parses 10 digits.
fn parse_uid(field: &[u8]) -> Option<u32> {
    let is_padded = field.len() == 10 && field.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(field).ok().filter(|_| is_padded)?;
    text.parse().ok()
}

pub(crate) fn door_address(door: Token) -> Result<UnixAddr> {
    UnixAddr::new_abstract(format!("{DOOR}{door}").as_bytes())
        .map_err(|errno| Error::system("name a door", errno))
}

/// The message of a consumer at the door.
fn show(token: Token) -> Vec<u8> {
    [VERSION_LINE, format!("TOKEN={token}\n").as_bytes()].concat()
}

/// More than the length of a consumer's message.
pub(crate) const LONGEST_SHOWN: usize = 64;

/// The token in a consumer's message.
pub(crate) fn shown(payload: &[u8]) -> Option<Token> {
    let line = payload.strip_prefix(VERSION_LINE)?;
    Token::parse(line.strip_prefix(b"TOKEN=")?.strip_suffix(b"\n")?)
}

/// The result of [`redeem`].
#[non_exhaustive]
pub enum Redeemed {
    /// The read end.
    Queue(Receiver),
    /// Nothing: the ticket was used before, or too many newer tickets were issued.
    Void,
    /// Nothing: the issuer is gone.
    Gone,
    /// Nothing yet: a signal interrupted the call ([`crate::interrupt`]).
    Interrupted,
}

/// Fetches the read end for `ticket`. The door drops a visit if too many others wait there; the
/// visit is then repeated.
///
/// # Errors
/// [`Error::Peer`] if another user holds the door's name; [`Error::System`].
pub fn redeem(ticket: &Ticket) -> Result<Redeemed> {
    let failed = |errno| Error::system("redeem a ticket", errno);
    let mut pause = Duration::from_millis(1);
    loop {
        let visit = Visit::new()?;
        let _watch = interrupt::watch(visit.as_fd());
        match visit.connect(&ticket.address()?) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => return Ok(Redeemed::Gone),
            Err(Errno::ENOTSOCK) => return Ok(Redeemed::Interrupted),
            Err(errno) => return Err(failed(errno)),
        }
        let owner = match getsockopt(&visit, sockopt::PeerCredentials) {
            Ok(owner) => owner.uid(),
            Err(Errno::ENOTSOCK) => return Ok(Redeemed::Interrupted),
            Err(errno) => return Err(failed(errno)),
        };
        if owner != ticket.uid {
            return Err(Error::Peer(format!(
                "the door of a ticket from uid {} is held by uid {owner}",
                ticket.uid
            )));
        }
        let sent = scm::send(&visit, &show(ticket.token), &[]);
        match sent.and_then(|()| visit.fetch()) {
            Ok(Some(read_end)) => return Receiver::from_socket(read_end).map(Redeemed::Queue),
            Ok(None) => return Ok(Redeemed::Void),
            Err(Errno::ENOTSOCK) => return Ok(Redeemed::Interrupted),
            Err(Errno::EPIPE | Errno::ECONNRESET) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // Nothing announces that fewer consumers wait at the door.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Reads exactly one ticket, and no byte of the next, which belongs to another consumer. `None` at
/// the end of the pipe.
///
/// # Errors
/// [`Error::Peer`] if the text is no ticket, [`Error::System`] if the pipe cannot be read.
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
        // Text that is no ticket is not read to its end.
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
    use proptest::collection::vec;
    use proptest::prelude::*;

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
    fn a_reader_fails_on_what_is_no_whole_ticket() {
        let line = sample().encode();
        assert!(read(&line.as_bytes()[..LENGTH - 1]).is_err());
        assert!(read(&b"GET / HTTP/1.1\r\n"[..]).is_err());
    }

    /// A pipe that stays open: there is no end to read.
    struct OpenPipe<'a>(&'a [u8]);

    impl Read for OpenPipe<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            assert!(!self.0.is_empty(), "it waits for more");
            self.0.read(buffer)
        }
    }

    #[test]
    fn text_is_an_error_at_once() {
        assert!(read(OpenPipe(b"hello\n")).is_err());
        assert!(read(OpenPipe(b"\0")).is_err());
    }

    #[test]
    fn a_ticket_of_another_version_is_an_error_at_once() {
        assert!(read(OpenPipe(b"fdtools-ticket 2 ")).is_err());
    }

    #[test]
    fn a_line_that_ends_too_early_is_an_error_at_once() {
        let line = b"fdtools-ticket 1 00000000000000000000000000000000\n";
        assert!(read(OpenPipe(line)).is_err());
    }

    #[test]
    fn a_line_with_a_wrong_field_is_an_error_at_once() {
        let door = "0".repeat(32);
        for uid in ["-000000001", "4294967296", "000000000x"] {
            let line = format!("fdtools-ticket 1 {door} {uid} {door}\n");
            assert!(read(OpenPipe(line.as_bytes())).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_ticket(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Ticket::parse(&bytes), None);
            prop_assert!(matches!(read(&bytes[..]), Ok(None) | Err(_)));
            let _ = shown(&bytes);
        }

        #[test]
        fn what_is_encoded_is_parsed(door: [u8; 16], uid: u32, token: [u8; 16]) {
            let ticket = Ticket { door: Token(door), uid, token: Token(token) };
            assert_eq!(Ticket::parse(ticket.encode().as_bytes()), Some(ticket));
            assert_eq!(shown(&show(Token(token))), Some(Token(token)));
        }

        #[test]
        fn likely_lines_are_tickets_only_if_they_are_what_a_ticket_is(
            door in "[0-9a-f]{31,33}", uid in "[0-9]{9,11}", token in "[0-9a-fA-F]{32}", end in "\n?",
        ) {
            let line = format!("fdtools-ticket 1 {door} {uid} {token}{end}");
            let good = door.len() == 32
                && uid.len() == 10
                && uid.parse::<u32>().is_ok()
                && !token.bytes().any(|byte| byte.is_ascii_uppercase())
                && end == "\n";
            match Ticket::parse(line.as_bytes()) {
                Some(ticket) => {
                    prop_assert!(good);
                    prop_assert_eq!(ticket.encode(), line);
                }
                None => prop_assert!(!good),
            }
        }

        #[test]
        fn a_changed_ticket_is_none_or_what_it_says(at in 0..LENGTH, to in 0..LENGTH, byte: u8) {
            let mut line = sample().encode().into_bytes();
            line.remove(at);
            line.insert(to, byte);
            if let Some(ticket) = Ticket::parse(&line) {
                prop_assert_eq!(ticket.encode().into_bytes(), line);
            }
        }

        #[test]
        fn a_reader_takes_tickets_one_by_one(uids in vec(any::<u32>(), 0..5), rest in vec(any::<u8>(), 0..94)) {
            let lines: Vec<_> = uids
                .iter()
                .map(|uid| format!("fdtools-ticket 1 {:032x} {uid:010} {:032x}\n", 1, 2))
                .collect();
            let all = [lines.concat().as_bytes(), &rest].concat();
            let mut pipe = &all[..];
            for line in &lines {
                let ticket = read(&mut pipe).unwrap().unwrap();
                prop_assert_eq!(&ticket.encode(), line);
            }
            prop_assert_eq!(pipe, &rest[..]);
            match read(&mut pipe) {
                Ok(None) => prop_assert!(rest.is_empty()),
                Ok(Some(_)) => prop_assert!(false, "{rest:?} is a ticket"),
                Err(_) => {}
            }
        }
    }
}

//! Messages with descriptors. Only this file knows `SCM_RIGHTS`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use rustix::io::ioctl_fionread;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::to_nix;
use crate::queue::message::MAX_PAYLOAD;
use crate::system::quick_close::quickly;

/// The most descriptors that one message can carry (`SCM_MAX_FD` of the kernel).
pub const MAX_DESCRIPTORS: usize = 253;

/// More messages than fit into a queue with the largest buffer that anybody may set by default.
pub(crate) const MAX_QUEUED: usize = 1024;

/// Sends one message; blocks while there is no room.
///
/// # Errors
/// The errno of sendmsg(2), but never `EINTR`; `EINVAL` for more than [`MAX_DESCRIPTORS`].
pub(crate) fn send(
    socket: impl AsFd,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    send_with(socket.as_fd(), payload, descriptors, SendFlags::NOSIGNAL)
}

/// Like [`send`], but `EAGAIN` if there is no room.
///
/// # Errors
/// Those of [`send`].
pub(crate) fn try_send(
    socket: impl AsFd,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    send_with(socket.as_fd(), payload, descriptors, flags)
}

fn send_with(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::EINVAL);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(payload)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(to_nix(errno)),
        }
    }
}

/// A received message. Dropping it closes the descriptors that are still in it. None of them lingers
/// (`SO_LINGER`), but closing a file of a stranger's file system takes as long as that file system
/// likes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Message {
    /// The payload, cut to [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
    /// The descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The sender's uid, if the socket asks for it (`SO_PASSCRED`).
    pub sender: Option<u32>,
    /// The payload was longer than [`MAX_PAYLOAD`] (`MSG_TRUNC`).
    pub payload_cut: bool,
    /// There were more descriptors than could be taken, and the kernel closed the rest
    /// (`MSG_CTRUNC`).
    pub descriptors_cut: bool,
}

impl Message {
    /// An empty message reads like the end.
    pub(crate) fn is_empty(&self) -> bool {
        self.payload.is_empty() && self.descriptors.is_empty()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.descriptors.is_empty() {
            quickly(|| self.descriptors.drain(..).for_each(close_unwanted));
        }
    }
}

/// Receives one message; blocks until one comes. An empty payload without descriptors is an empty
/// message or the end.
///
/// # Errors
/// The errno of recvmsg(2), `EINTR` among them.
pub(crate) fn receive(socket: impl AsFd) -> Result<Message, Errno> {
    receive_with(socket.as_fd(), RecvFlags::CMSG_CLOEXEC)
}

/// Like [`receive`], but `EAGAIN` if there is no message.
///
/// # Errors
/// Those of [`receive`].
pub(crate) fn try_receive(socket: impl AsFd) -> Result<Message, Errno> {
    receive_with(
        socket.as_fd(),
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )
}

fn receive_with(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<Message, Errno> {
    // Room for every descriptor that a message can have: without room, the kernel drops them.
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut payload = [0; MAX_PAYLOAD];
    let mut buffers = [IoSliceMut::new(&mut payload)];
    let received = recvmsg(socket, &mut buffers, &mut control, flags).map_err(to_nix)?;
    let mut message = Message {
        payload: Vec::new(),
        descriptors: Vec::new(),
        sender: None,
        payload_cut: received.flags.contains(ReturnFlags::TRUNC),
        descriptors_cut: received.flags.contains(ReturnFlags::CTRUNC),
    };
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(descriptors) => message.descriptors.extend(descriptors),
            // rustix cannot hold the process id 0, that of a sender in another namespace. The
            // message may then have no sender, and is not trusted.
            RecvAncillaryMessage::ScmCredentials(sender) => {
                message.sender = Some(sender.uid.as_raw());
            }
            _ => {}
        }
    }
    message.payload = payload[..received.bytes].to_vec();
    Ok(message)
}

/// Receives the start of one message, without the descriptors in it: the kernel drops them. That does
/// not flush a file, which could block, but a socket may linger. Returns the length.
///
/// # Errors
/// The errno of recvmsg(2); `EAGAIN` if there is no message.
pub(crate) fn try_receive_bytes(socket: impl AsFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut no_control = RecvAncillaryBuffer::new(&mut []);
    let mut buffers = [IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut buffers, &mut no_control, flags);
    received.map(|message| message.bytes).map_err(to_nix)
}

/// The start of a message whose descriptors are dropped, and its sender.
#[derive(Debug)]
pub(crate) struct Words {
    pub length: usize,
    /// The message was longer than the space for it (`MSG_TRUNC`).
    pub is_cut: bool,
    /// The process and the uid that sent it, where the socket asks for them (`SO_PASSCRED`) and the
    /// process has a number in our namespace.
    pub sender: Option<(Pid, u32)>,
}

/// Like [`try_receive_bytes`], with the sender.
///
/// # Errors
/// Those of [`try_receive_bytes`].
pub(crate) fn try_receive_words(socket: impl AsFd, bytes: &mut [u8]) -> Result<Words, Errno> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    // No room for a descriptor.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut buffers, &mut control, flags).map_err(to_nix)?;
    let sender = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmCredentials(sender) => {
            let pid = Pid::from_raw(sender.pid.as_raw_nonzero().get());
            Some((pid, sender.uid.as_raw()))
        }
        _ => None,
    });
    Ok(Words {
        length: received.bytes,
        is_cut: received.flags.contains(ReturnFlags::TRUNC),
        sender,
    })
}

/// Whether `socket` is empty, provided that its other side is gone. An empty message looks like the
/// end, so a connection without payload behind one is not seen.
pub(crate) fn is_drained(socket: BorrowedFd<'_>) -> bool {
    // No byte waits, and no message without bytes either, which may carry a connection.
    ioctl_fionread(socket) == Ok(0) && is_next_the_end(socket)
}

fn is_next_the_end(socket: BorrowedFd<'_>) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    loop {
        let mut buffer = [0];
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        let mut control = RecvAncillaryBuffer::new(&mut []);
        match recvmsg(socket, &mut buffers, &mut control, flags) {
            // Without room for descriptors, the kernel reports that there are some.
            Ok(next) => return next.bytes == 0 && !next.flags.contains(ReturnFlags::CTRUNC),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(_) => return false,
        }
    }
}

/// Closes a stranger's descriptor. It does not linger. What is in flight in it still may.
fn close_unwanted(descriptor: OwnedFd) {
    let linger = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // Fails if the descriptor is no socket, and is not needed then.
    let _ = setsockopt(&descriptor, sockopt::Linger, &linger);
}

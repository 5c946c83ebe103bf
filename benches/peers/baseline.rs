//! Servers that do only the job itself: the least that it costs.

use std::ffi::{CString, OsString};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::wait::{WaitPidFlag, waitpid};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// How many processes echo.
const WORKERS: usize = 2;

pub fn run(name: &str, port: &str) -> ! {
    let port: u16 = port.parse().expect("a port");
    match name {
        "exec" => exec(&listen(port)),
        "echo" => echo(&listen(port)),
        "accept-and-echo" => accept_and_echo(&inherited().into()),
        "pass" => pass(&listen(port)),
        "receive-and-echo" => receive_and_echo(&inherited()),
        _ => panic!("no such baseline"),
    }
}

fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
    // The largest backlog that the kernel allows, as in fdaccept.
    rustix::net::listen(&listener, i32::MAX).expect("it listens already");
    listener
}

/// Only accepts and starts cat.
fn exec(listener: &TcpListener) -> ! {
    let attributes = PosixSpawnAttr::init().expect("memory");
    // The environment of the other servers, on which cat depends, such as on LANG.
    let variables = std::env::vars_os().map(|(name, value)| [name, value].join("=".as_ref()));
    let entry = |text: OsString| CString::new(text.into_vec()).expect("no NUL");
    let environment: Vec<CString> = variables.map(entry).collect();
    loop {
        let Ok((connection, _)) = listener.accept() else {
            continue;
        };
        let mut actions = PosixSpawnFileActions::init().expect("memory");
        for number in [0, 1] {
            actions
                .add_dup2(connection.as_raw_fd(), number)
                .expect("memory");
        }
        posix_spawn(c"/bin/cat", &actions, &attributes, &[c"cat"], &environment).expect("cat runs");
        // Reaps all exited children.
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
    }
}

/// Processes that each accept and echo.
fn echo(listener: &TcpListener) -> ! {
    let _others: Vec<_> = (1..WORKERS)
        .map(|_| start("accept-and-echo", listener))
        .collect();
    accept_and_echo(listener)
}

/// Accepts and passes connections to processes that receive and echo: the least that passing costs.
fn pass(listener: &TcpListener) -> ! {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let pair = socketpair(family, kind, SocketFlags::CLOEXEC, None);
    let (write_end, read_end) = pair.expect("a pair");
    let _workers: Vec<_> = (0..WORKERS)
        .map(|_| start("receive-and-echo", &read_end))
        .collect();
    loop {
        let Ok((connection, _)) = listener.accept() else {
            continue;
        };
        let descriptors = [connection.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let byte = [IoSlice::new(&[0])];
        sendmsg(&write_end, &byte, &mut control, SendFlags::NOSIGNAL).expect("it is received");
    }
}

/// Another process of this program, with `input` as standard input.
fn start(baseline: &str, input: impl AsFd) -> Child {
    let input = input.as_fd().try_clone_to_owned().expect("a descriptor");
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--baseline", baseline, "0"])
        .stdin(input)
        .spawn()
        .expect("a process")
}

/// The descriptor from [`start`].
fn inherited() -> OwnedFd {
    let input = std::io::stdin();
    input.as_fd().try_clone_to_owned().expect("a descriptor")
}

fn receive_and_echo(queue: &OwnedFd) -> ! {
    let mut buffer = [0; 65536];
    loop {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let received = recvmsg(queue, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC);
        if received.is_ok_and(|received| received.bytes == 0) {
            // The accepting process is gone.
            std::process::exit(0);
        }
        for part in control.drain() {
            let RecvAncillaryMessage::ScmRights(descriptors) = part else {
                continue;
            };
            for connection in descriptors {
                let _ = answer(connection.into(), &mut buffer);
            }
        }
    }
}

fn accept_and_echo(listener: &TcpListener) -> ! {
    let mut buffer = [0; 65536];
    loop {
        if let Ok((connection, _)) = listener.accept() {
            let _ = answer(connection, &mut buffer);
        }
    }
}

fn answer(mut connection: TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        match connection.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => connection.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

//! A worker that holds many connections at once and echoes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use fdtools::queue::connection::Connection;
use fdtools::queue::{Received, Receiver};
use rustix::event::epoll;

/// The queue's number among the watched descriptors; connections have others.
const QUEUE: u64 = 0;

pub fn run() -> ! {
    crate::process::raise_limit();
    let queue = Receiver::inherit(0).expect("the queue as standard input");
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor");
    let add = |fd: std::os::fd::BorrowedFd<'_>, number| {
        let data = epoll::EventData::new_u64(number);
        // A message wakes only one of the processes that share the queue.
        let flags = match number {
            QUEUE => epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE,
            _ => epoll::EventFlags::IN,
        };
        epoll::add(&watch, fd, data, flags).expect("memory");
    };
    add(queue.as_fd(), QUEUE);
    let mut held = BTreeMap::new();
    let mut next = QUEUE;
    loop {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let Ok((ready, _)) = epoll::wait(&watch, &mut events, None) else {
            continue;
        };
        for event in ready.iter() {
            let number = event.data.u64();
            if number != QUEUE {
                let ended = held.get_mut(&number).is_some_and(|client| !echo(client));
                if ended {
                    held.remove(&number);
                }
                continue;
            }
            match queue.try_receive() {
                Ok(Some(Received::Connection(connection))) => {
                    next += 1;
                    add(connection.as_fd(), next);
                    held.insert(next, connection);
                }
                Ok(Some(Received::End)) => std::process::exit(0),
                _ => {}
            }
        }
    }
}

/// Returns false at the end.
fn echo(client: &mut Connection) -> bool {
    let mut buffer = [0; 4096];
    match client.read(&mut buffer) {
        Ok(count @ 1..) => client.write_all(&buffer[..count]).is_ok(),
        _ => false,
    }
}

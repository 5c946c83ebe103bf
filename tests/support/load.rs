//! Clients without a pause.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// A request that no other client makes. It fits into the buffers of two sockets, since it is
/// sent before the first byte of the answer is read.
pub fn request(client: usize, number: usize) -> Vec<u8> {
    let mut random = Random((client * 1_000_000 + number) as u64);
    let mut text = format!("client {client}, request {number}\n").into_bytes();
    let length = random.below(8 * 1024);
    text.extend((0..length).map(|_| random.below(256) as u8));
    text
}

/// Counts the clients that were served.
#[derive(Default)]
pub struct Tally(AtomicUsize);

impl Tally {
    /// Waits until one more is.
    #[track_caller]
    pub fn wait(&self) {
        let before = self.0.load(Ordering::SeqCst);
        until("a client to be served", || {
            self.0.load(Ordering::SeqCst) > before
        });
    }
}

/// Tells the clients to end, also where something fails.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Does `trouble` while 6 clients connect again and again, with a pause of less than `pause`
/// microseconds, and expect their own bytes back. Each client's last connection may end after
/// `trouble`: somebody must be left to serve it.
pub fn under_load<T>(port: u16, pause: u64, trouble: impl FnOnce(&Tally) -> T) -> T {
    let (done, tally) = (AtomicBool::new(false), Tally::default());
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        for client in 0..6 {
            let (done, tally) = (&done, &tally);
            scope.spawn(move || {
                let mut random = Random(client as u64);
                for number in 0.. {
                    let text = request(client, number);
                    let answer = try_exchange(port, &text);
                    let answer = answer.unwrap_or_else(|error| {
                        panic!("client {client}, request {number}: {error}")
                    });
                    assert!(answer == text, "client {client}, request {number}");
                    tally.0.fetch_add(1, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    if pause > 0 {
                        random.pause(pause);
                    }
                }
            });
        }
        trouble(&tally)
    })
}

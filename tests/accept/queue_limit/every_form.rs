//! Tests for each way in which consumers get at the queue.

use std::time::Instant;

use nix::sys::socket::SockType;

use super::*;
use crate::support;

/// Counts step by step what waits, what is served, and what is left in the backlog.
#[track_caller]
pub fn assert_limit(form: Form, limit: usize) {
    let mut site = Site::paused(form, 1, &["--queue", &limit.to_string()]);
    let count = limit + 5;
    let clients = site.clients(count);
    site.stays_told(told(limit, limit, 0));
    site.resume();
    // The pool has one in service at a time.
    for (served, client) in clients.into_iter().enumerate() {
        let accepted = count.min(served + 1 + limit);
        match served {
            0 => site.stays_told(told(accepted, accepted, 1)),
            _ => site.until_told(told(accepted, accepted, served + 1)),
        }
        serve(client);
    }
    site.until_told(told(count, count, count));
    let (_, last) = site.stop(0);
    assert_eq!(last, told(count, count, count));
}

fn one_waits(form: Form) {
    assert_limit(form, 1);
}

fn three_wait(form: Form) {
    assert_limit(form, 3);
}

/// More than a quarter of what the kernel's queue holds.
fn a_hundred_wait(form: Form) {
    support::raise_limit();
    let mut site = Site::paused(form, 4, &["--queue", "100"]);
    let (accepted, passed) = form.most(100);
    let count = accepted + 30;
    let clients = site.clients(count);
    site.stays_told(told(accepted, passed, 0));
    // Room is seen also where the kernel does not tell of it.
    thaw(site.slots()[0]);
    site.stays_told(told(accepted + 1, passed + 1, 1));
    site.resume();
    site.stays_told(told(accepted + 4, passed + 4, 4));
    clients.into_iter().for_each(serve);
    site.until_told(told(count, count, count));
}

/// More than the kernel's queue holds.
fn a_thousand_may_wait(form: Form) {
    support::raise_limit();
    let mut site = Site::paused(form, 4, &["--queue", "1000"]);
    let count = match form {
        Form::Connect => form.most(1000).0 + 40,
        _ => 320,
    };
    let crowd = Crowd::connect(site.port, count);
    // How many the queue holds depends on its buffer.
    let mut last = site.ask();
    let mut since = Instant::now();
    until("a full queue", || {
        let now = site.ask();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > WATCH
    });
    assert!(last.passed >= form.most(100).1, "{last:?}");
    let in_hand = usize::from(last.passed < count);
    assert_eq!(last, told(last.passed + in_hand, last.passed, 0));
    is_idle(site.acceptor.pid());
    site.resume();
    crowd.expect_served();
    site.until_told(told(count, count, count));
}

fn a_full_queue_is_no_work(form: Form) {
    support::raise_limit();
    let full = |limit: usize| {
        let mut site = Site::paused(form, 1, &["--queue", &limit.to_string()]);
        let (accepted, passed) = form.most(limit);
        let clients = site.clients(accepted + 5);
        site.until_told(told(accepted, passed, 0));
        (site, told(accepted, passed, 0), clients)
    };
    let mut sites = [full(1), full(100)];
    let pids = sites.each_ref().map(|(site, ..)| site.acceptor.pid());
    are_without_work(&pids);
    // Nor is it work to wait for room in order to stop.
    for (site, ..) in &sites {
        site.acceptor.term();
    }
    are_without_work(&pids);
    for (site, expected, _) in &mut sites {
        assert_eq!(site.ask(), *expected);
    }
}

pub fn consumers_come_late(form: Form) {
    let mut site = Site::start(form, 2, &["--queue", "2"]);
    let crowd = Crowd::connect(site.port, 6);
    site.stays_told(match form {
        // Nobody is at the name.
        Form::Connect => told(1, 0, 0),
        _ => told(2, 2, 0),
    });
    site.bring_pool();
    crowd.expect_served();
    site.until_told(told(6, 6, 6));
}

/// Consumers take several at once, and then none for a while, again and again.
pub fn bursts_are_taken(form: Form) {
    let mut site = Site::paused(form, 8, &["--queue", "3"]);
    let (limit, count) = (3, 120);
    let crowd = Crowd::connect(site.port, count);
    let mut random = Random(1);
    for _ in 0..30 {
        site.resume();
        random.pause(4000);
        site.pause();
        let now = site.ask();
        assert!(now.accepted <= now.taken.unwrap() + limit, "{now:?}");
    }
    let taken = site.ask().taken.unwrap();
    let accepted = count.min(taken + limit);
    site.until_told(told(accepted, accepted, taken));
    site.resume();
    crowd.expect_served();
    site.until_told(told(count, count, count));
}

fn taken_without_a_limit(form: Form) {
    let mut site = Site::paused(form, 1, &[]);
    let clients = site.clients(5);
    site.stays_told(told(5, 5, 0));
    site.resume();
    for (served, client) in clients.into_iter().enumerate() {
        site.until_told(told(5, 5, served + 1));
        serve(client);
    }
    let (_, last) = site.stop(0);
    assert_eq!(last, told(5, 5, 5));
}

pub fn nothing_is_lost_under_load(form: Form) {
    let mut site = Site::start(form, 4, &["--queue", "2"]);
    site.bring_pool();
    let port = site.port;
    std::thread::scope(|scope| {
        for client in 0..10 {
            scope.spawn(move || {
                for number in 0..30 {
                    let request = format!("{client}: {number}").into_bytes();
                    assert_eq!(exchange(port, &request), request);
                }
            });
        }
    });
    site.until_told(told(300, 300, 300));
    let (log, last) = site.stop(0);
    assert_eq!(last, told(300, 300, 300), "{log}");
}

fn a_stop_serves_the_queue_and_the_backlog(form: Form) {
    let mut site = Site::paused(form, 2, &["--grace", "3600", "--queue", "2"]);
    let crowd = Crowd::connect(site.port, 10);
    site.until_told(told(2, 2, 0));
    site.acceptor.term();
    site.stays_told(told(2, 2, 0));
    site.resume();
    crowd.expect_served();
    let (log, last) = site.finish(0);
    assert_eq!((last.accepted, last.passed), (10, 10), "{log}");
    if form.is_waited_for() {
        assert_eq!(last.taken, Some(10), "{log}")
    } else {
        assert!((8..=10).contains(&last.taken.unwrap()), "{log}")
    }
}

macro_rules! forms {
    ($($module:ident: $form:expr;)*) => {$(
        mod $module {
            use super::*;

            forms!{@tests $form;
                at_most_one_waits = one_waits;
                at_most_three_wait = three_wait;
                at_most_a_hundred_wait = a_hundred_wait;
                a_limit_that_is_more_than_the_queue_holds_is_no_obstacle = a_thousand_may_wait;
                a_full_queue_is_waited_for_without_work = a_full_queue_is_no_work;
                consumers_that_come_late_find_what_waits = consumers_come_late;
                the_limit_is_kept_when_consumers_take_in_bursts = bursts_are_taken;
                what_is_taken_is_told_without_a_limit = taken_without_a_limit;
                nothing_is_lost_with_many_clients = nothing_is_lost_under_load;
                a_stop_serves_a_full_queue_and_the_backlog = a_stop_serves_the_queue_and_the_backlog;
            }
        }
    )*};
    (@tests $form:expr; $($name:ident = $check:ident;)*) => {$(
        #[test]
        fn $name() {
            $check($form);
        }
    )*};
}

forms! {
    in_a_chain: Form::Chain;
    through_a_pipe: Form::Pipe;
    at_a_name: Form::Bind;
    to_a_name: Form::Connect;
    into_standard_output: Form::Output(SockType::Stream);
    into_a_descriptor: Form::QueueFd(SockType::SeqPacket);
}

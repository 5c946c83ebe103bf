//! `--queue` beside other options, and its own argument.

use super::*;

#[test]
fn more_than_the_queue_holds_can_be_in_service() {
    let mut site = Site::paused(Form::Bind, 8, &["--queue", "3", "--max", "5"]);
    let clients = site.clients(8);
    site.stays_told(told(3, 3, 0));
    site.resume();
    site.stays_told(told(5, 5, 5));
    clients.into_iter().for_each(serve);
    site.until_told(told(8, 8, 8));
}

#[test]
fn fewer_wait_than_the_queue_may_hold_where_fewer_may_be_in_service() {
    let mut site = Site::paused(Form::Chain, 1, &["--queue", "5", "--max", "3"]);
    let clients = site.clients(8);
    site.stays_told(told(3, 3, 0));
    site.resume();
    site.stays_told(told(3, 3, 1));
    clients.into_iter().for_each(serve);
    site.until_told(told(8, 8, 8));
}

#[test]
fn nobody_is_turned_away_for_a_full_queue() {
    for when_full in ["wait", "close"] {
        let options = ["--queue", "1", "--max", "2", "--when-full", when_full];
        let mut site = Site::paused(Form::Bind, 8, &options);
        let mut clients = site.clients(4);
        site.stays_told(told(1, 1, 0));
        site.resume();
        if when_full == "wait" {
            site.stays_told(told(2, 2, 2));
            clients.into_iter().for_each(serve);
            site.until_told(told(4, 4, 4));
        } else {
            site.stays_told(told(4, 2, 2));
            clients.drain(2..).for_each(Client::expect_closed);
            clients.into_iter().for_each(serve);
        }
    }
}

#[test]
fn clients_beyond_their_own_limit_are_turned_away_when_the_queue_has_room() {
    let options = ["--queue", "2", "--max-per-source", "3"];
    let mut site = Site::paused(Form::Pipe, 8, &options);
    let mut clients = site.clients(6);
    site.stays_told(told(2, 2, 0));
    site.resume();
    site.stays_told(told(6, 3, 3));
    clients.drain(3..).for_each(Client::expect_closed);
    clients.into_iter().for_each(serve);
}

#[test]
fn the_limit_holds_for_those_who_say_whom_they_speak_for_at_once() {
    let mut options = vec!["--queue", "2", "--proxy-timeout", "3600"];
    options.extend(["--proxy-protocol", "v1", "--proxy-from", "127.0.0.0/8"]);
    let mut site = Site::paused(Form::Bind, 1, &options);
    let clients = site.clients(6);
    site.until_told(told(6, 0, 0));
    for client in &clients {
        client.send("PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n");
    }
    site.stays_told(told(6, 2, 0));
    is_idle(site.acceptor.pid());
    site.resume();
    site.stays_told(told(6, 3, 1));
    clients.iter().for_each(Client::end);
    for client in clients {
        assert_eq!(client.rest(), "");
    }
    site.until_told(told(6, 6, 6));
}

/// The clients of one listener do not wait for all clients of another, however few may wait in
/// the queue.
#[track_caller]
fn assert_each_listener_has_its_turn(options: &[&str], waits: usize) {
    let options = [options, &[ADDRESS]].concat();
    let mut site = Site::paused(Form::Bind, 1, &options);
    let crowd = site.clients(60);
    let other = Client::connect(site.acceptor.port());
    other.end();
    site.until_told(told(waits, waits, 0));
    site.resume();
    let mut served = 0;
    for client in crowd {
        // One is in service, and one waits. The other one ends by itself.
        until("the next", || {
            let accepted = 61.min(served + 2);
            other.is_answered() || site.ask() == told(accepted, accepted, served + 1)
        });
        if other.is_answered() {
            break;
        }
        serve(client);
        served += 1;
    }
    assert!(served < 40, "{served} were served first");
    assert_eq!(other.rest(), "");
}

cases! {
    assert_each_listener_has_its_turn;
    each_listener_has_its_turn_while_one_may_wait: &["--queue", "1"], 1;
    each_listener_has_its_turn_while_two_may_be_in_service: &["--max", "2"], 2;
}

#[test]
fn a_limit_is_a_number_and_not_0() {
    let names = Names::new();
    for text in ["0", "-1", "", "x", "1.5", "18446744073709551616"] {
        let mut command = program("fdaccept");
        command.args([&format!("--queue={text}"), "--bind", "./q", ADDRESS]);
        let (status, stdout, stderr) = run(command.current_dir(&names.directory));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{text}: {stderr}");
        assert!(stderr.starts_with("fdaccept: "), "{text}: {stderr}");
        assert!(stderr.contains("--queue"), "{text}: {stderr}");
    }
}

#[test]
fn a_limit_can_be_as_large_as_a_number_can_be() {
    let mut site = Site::paused(Form::Bind, 1, &["--queue", "18446744073709551615"]);
    let clients = site.clients(5);
    site.stays_told(told(5, 5, 0));
    site.resume();
    clients.into_iter().for_each(serve);
}

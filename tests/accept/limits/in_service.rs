//! `--max`: how many are in service at once.

use super::*;

#[test]
fn more_than_max_wait_in_the_backlog_until_one_ends() {
    let (mut acceptor, _pool) = served(&["-v", "--max", "2"], 8);
    let (first, _second) = (acceptor.session(), acceptor.session());
    let third = acceptor.client();
    is_left_waiting(&third);
    assert_eq!(acceptor.log().matches(": accepted ").count(), 2);
    first.finish();
    Session::of(third).finish();
}

#[test]
fn what_waits_in_the_queue_counts_for_max() {
    let acceptor = limited(&["--max", "3"]);
    let _clients = acceptor.clients(5);
    let receiver = acceptor.receiver();
    let mut taken: Vec<_> = (0..3).map(|_| take(&receiver)).collect();
    nothing_comes(&receiver);
    taken.pop();
    taken.push(take(&receiver));
    nothing_comes(&receiver);
}

#[test]
fn max_counts_over_consumers_of_every_kind() {
    let acceptor = limited(&["--max", "2"]);
    let mut fdrecv = acceptor.fdrecv(&[], &["cat"]);
    let in_fdrecv = acceptor.client();
    until_named(fdrecv.pid(), "cat");
    let _pool = acceptor.pool(1);
    let _in_pool = acceptor.session();
    let receiver = acceptor.receiver();
    let _third = acceptor.client();
    nothing_comes(&receiver);
    drop(in_fdrecv);
    fdrecv.expect_exit(0);
    let third = take(&receiver);
    let _fourth = acceptor.client();
    nothing_comes(&receiver);
    drop(third);
    take(&receiver);
}

#[test]
fn max_counts_over_all_listeners() {
    let names = Names::new();
    let path = names.text("listener");
    let words = [&["fdpool", "8", "--"][..], &sh_c(COUNT)].concat();
    let fdaccept = Fdaccept::chain(words).args(["--max", "2"]);
    let fdaccept = fdaccept.listen(ADDRESS).listen(ADDRESS).listen(&path);
    let acceptor = fdaccept.start();
    let one = acceptor.session();
    let connect = || Client::connect(acceptor.ports[1]);
    let _other = Session::of(connect());
    let third = connect();
    is_left_waiting(&third);
    let fourth = Client::connect_unix(&path);
    one.finish();
    // Each listener has its turn.
    fourth.line();
    drop(fourth);
    Session::of(third).finish();
}

/// That `--max 2` holds where fdaccept and a pool find each other as `text` says.
#[track_caller]
fn assert_max_holds(text: &str) {
    let acceptor = Fdaccept::sh(&text.replace("HANDLER", COUNT_IN_SCRIPT)).start();
    let (first, _second) = (acceptor.session(), acceptor.session());
    let third = acceptor.client();
    is_left_waiting(&third);
    first.finish();
    Session::of(third).finish();
}

cases! {
    assert_max_holds;
    max_holds_in_a_chain: "exec fdaccept --max 2 127.0.0.1:0 -- fdpool 8 -- HANDLER";
    max_holds_in_a_pipeline: "fdaccept --max 2 127.0.0.1:0 | fdpool 8 -- HANDLER";
    max_holds_with_a_name_of_the_consumer:
        "fdpool --bind ./q 8 -- HANDLER & exec fdaccept --max 2 --connect ./q 127.0.0.1:0";
}

#[test]
fn max_holds_in_a_loop_of_fdrecv() {
    let each = "while fdrecv --connect ./q -- HANDLER || [ $? -ne 69 ]; do :; done";
    let text = format!(
        "fdaccept --max 2 --bind ./q 127.0.0.1:0 & until [ -S ./q ]; do sleep 0.02; done
         for n in 1 2 3; do {{ {each}; }} & done; wait"
    );
    assert_max_holds(&text);
}

cases! {
    assert_waits_idle;
    waiting_for_room_uses_no_cpu: &["--max", "1"];
}

// Stopping.

#[test]
fn a_stop_lets_the_backlog_in_as_room_comes() {
    let (mut acceptor, _pool) = served(&["--max", "1"], 4);
    let first = acceptor.session();
    let others = acceptor.clients(3);
    acceptor.term();
    stays("fdaccept waits", || acceptor.is_running());
    first.finish();
    for other in others {
        Session::of(other).finish();
    }
    acceptor.expect_exit(0);
}

#[test]
fn a_stop_does_not_wait_for_room_longer_than_its_grace() {
    let (mut acceptor, _pool) = served(&["--max", "1", "--grace", "0.3"], 4);
    let _first = acceptor.session();
    let other = acceptor.client();
    acceptor.term();
    acceptor.wait();
    other.expect_reset();
}

#[test]
fn a_stop_does_not_wait_for_the_end_of_a_service_when_nobody_waits() {
    let mut acceptor = limited(&["--max", "1", "--grace", "3600"]);
    let _pool = acceptor.pool(2);
    let session = acceptor.session();
    acceptor.stop();
    session.finish();
}

//! Where the queue comes from, and what becomes of workers when it ends.

use super::*;

// Where the queue comes from.

#[test]
fn workers_serve_a_queue_that_came_by_ticket() {
    for worker in kinds() {
        let mut acceptor = Fdaccept::piped().start();
        let pool = Pool::plain().stdin(acceptor.take_pipe());
        let mut pool = pool.workers(2, &worker).start();
        assert_two_serve(acceptor.port);
        acceptor.stop();
        assert_ends_quietly(&mut pool);
    }
}

#[test]
fn when_a_pool_behind_a_pipe_stops_so_does_fdaccept() {
    let mut acceptor = Fdaccept::piped().start();
    let pool = Pool::plain().stdin(acceptor.take_pipe());
    let mut pool = pool.workers(2, sh_c(LOOP)).start();
    // No worker may hold the pipe.
    assert_two_serve(acceptor.port);
    pool.stop();
    acceptor.expect_end(0);
}

#[test]
fn workers_serve_a_queue_in_a_chain() {
    for worker in kinds() {
        let pool = ["fdpool", "2", "--worker", "--"].into_iter();
        let chain = pool.chain(worker.iter().map(String::as_str));
        let mut process = Fdaccept::chain(chain).start();
        assert_two_serve(process.port);
        let log = process.stop();
        let lines = besides_counters(&log).into_iter();
        let more = lines.filter(|line| !line.starts_with("fdrecv: "));
        assert_eq!(more.count(), 1, "{log}");
    }
}

#[test]
fn workers_serve_a_queue_that_a_name_gives() {
    let names = Names::new();
    for worker in kinds() {
        for name in [&names.path(), &names.abstract_name()] {
            let mut acceptor = Fdaccept::bound_at(name).start();
            let mut pool = Pool::on(name).workers(2, &worker).start();
            assert_two_serve(acceptor.port);
            acceptor.stop();
            pool.line("waiting");
            let log = pool.stop();
            assert!(!log.contains("the next one"), "{log}");
        }
    }
}

#[test]
fn workers_serve_a_queue_at_a_path_that_the_pool_owns() {
    let names = Names::new();
    let name = &names.path();
    for worker in kinds() {
        let mut pool = Pool::bound_at(name).workers(2, &worker).start();
        let mut acceptor = Fdaccept::plain().args(["--connect", name]).start();
        assert_two_serve(acceptor.port);
        acceptor.stop();
        // Others may come.
        let mut acceptor = Fdaccept::plain().args(["--connect", name]).start();
        assert_two_serve(acceptor.port);
        acceptor.stop();
        assert_eq!(pool.stop(), "");
        assert!(!Path::new(name).exists());
    }
}

#[test]
fn workers_serve_a_queue_that_is_a_descriptor_of_the_pool() {
    for worker in kinds() {
        for text in [
            "exec fdpool 2 --worker -- \"$@\"",
            "exec fdpool --queue-fd 5 2 --worker -- \"$@\" 5<&0 </dev/null",
        ] {
            let (write_end, read_end) = socket_pair(SockType::SeqPacket);
            let mut acceptor = Fdaccept::plain().stdout(write_end).start();
            let mut pool = Pool::of(sh(text).arg("sh").args(&worker).stdin(read_end));
            assert_two_serve(acceptor.port);
            acceptor.stop();
            assert_ends_quietly(&mut pool);
        }
    }
}

// The end of the queue.

#[test]
fn at_the_end_of_the_queue_workers_end_and_so_does_the_pool() {
    for worker in kinds() {
        let mut pool = Workers::of_command(&[], 3, &worker);
        pool.client().expect_served();
        let waiting: Vec<_> = (0..10).map(|_| pool.client()).collect();
        pool.queue.close();
        waiting
            .into_iter()
            .for_each(|client| client.expect_served());
        assert_ends_quietly(&mut pool);
    }
}

#[test]
fn workers_serve_what_waits_though_who_accepted_it_is_gone_and_they_end_again_and_again() {
    let text = "while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done\n\
        mkdir \"$DIR/1\" 2>/dev/null && exit 1; mkdir \"$DIR/2\" 2>/dev/null && kill -9 $$\n\
        fdrecv -- cat; exit 0";
    let mut pool = Workers::start(&[], 1, text);
    let waiting = [pool.client(), pool.client()];
    pool.queue.close();
    pool.touch("gate");
    waiting
        .into_iter()
        .for_each(|client| client.expect_served());
    let log = pool.expect_end(0);
    // An end with status 0 is no failure.
    assert_eq!(log.matches("the next one is started").count(), 2, "{log}");
}

#[test]
fn what_waits_in_the_queue_of_a_name_is_served_though_fdaccept_is_gone_and_then_the_next_one() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Fdaccept::bound_at(name).args(["-v"]).start();
    let text = format!(
        "while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done\n\
         mkdir \"$DIR/first\" 2>/dev/null && exit 1; {LOOP}"
    );
    let pool = Pool::on(name).arg("-v").env("DIR", names.directory.path());
    let mut pool = pool.workers(1, sh_c(&text)).start();
    pool.line("was started");
    let crowd = Crowd::connect(acceptor.port, 5);
    acceptor.until_accepted(5);
    // It is in the queue when there is nothing to do any more.
    until_state(acceptor.pid(), 'S');
    acceptor.slay();
    File::create(names.file("gate")).unwrap();
    pool.line("ended with status 1; the next one is started");
    crowd.expect_served();
    let mut acceptor = Fdaccept::bound_at(name).start();
    assert_eq!(exchange(acceptor.port, b"again"), b"again");
    pool.stop();
    acceptor.stop();
}

#[test]
fn workers_are_started_anew_each_time_that_fdaccept_is_back() {
    for worker in kinds() {
        let names = Names::new();
        let name = &names.path();
        let mut pool = Pool::on(name).workers(2, &worker).start();
        // A queue that ends in either way, twice in a row.
        for signal in [Signal::SIGTERM, Signal::SIGKILL].repeat(2) {
            let mut acceptor = Fdaccept::bound_at(name).start();
            assert_two_serve(acceptor.port);
            assert_eq!(pool.workers().len(), 2);
            acceptor.end_by(signal);
        }
        // The end of the queue is no failure.
        let log = pool.stop();
        assert!(!log.contains("the next one"), "{log}");
    }
}

#[test]
fn a_worker_that_is_busy_when_fdaccept_is_restarted_finishes_while_another_serves() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Pool::on(name).workers(2, sh_c(LOOP)).start();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let client = acceptor.served_client();
    for _ in 0..3 {
        acceptor.slay();
        acceptor = Fdaccept::bound_at(name).start();
        assert_eq!(exchange(acceptor.port, b"next"), b"next");
        client.expect_served();
    }
    // Then its place is the new queue's as well.
    drop(client);
    assert_two_serve(acceptor.port);
    let log = pool.stop();
    assert!(!log.contains("the next one"), "{log}");
    acceptor.stop();
}

#[test]
fn the_only_worker_busy_when_fdaccept_is_restarted_finishes_first() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Pool::on(name).workers(1, sh_c(LOOP)).start();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let client = acceptor.served_client();
    acceptor.slay();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let next = Client::connect(acceptor.port);
    client.expect_served();
    drop(client);
    next.expect_served();
    drop(next);
    pool.stop();
    acceptor.stop();
}

#[test]
fn a_reload_goes_on_when_fdaccept_is_back() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let text = format!("echo >&3; exec 3>&-; {LOOP}");
    let pool = Pool::on(name).args(["--ready-fd", "3"]);
    let mut pool = pool.workers(2, sh_c(&text)).start();
    // It keeps the old queue, and a worker of it.
    let client = acceptor.served_client();
    acceptor.slay();
    pool.line("waiting");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 1 workers to replace");
    client.expect_served();
    let mut acceptor = Fdaccept::bound_at(name).start();
    pool.line("reload: done");
    assert_two_serve(acceptor.port);
    pool.stop();
    acceptor.stop();
}

#[test]
fn once_ends_the_pool_with_the_queue() {
    let names = Names::new();
    let name = &names.path();
    for worker in kinds() {
        let mut acceptor = Fdaccept::bound_at(name).start();
        let pool = Pool::on(name).args(["--once"]);
        let mut pool = pool.workers(2, &worker).start();
        assert_two_serve(acceptor.port);
        let client = acceptor.served_client();
        acceptor.stop();
        until("the end of the idle one", || pool.workers().len() == 1);
        client.expect_served();
        drop(client);
        assert_ends_quietly(&mut pool);
    }
}

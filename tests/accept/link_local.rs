//! Clients with a link-local address, which is one only together with its interface.

use std::process::Command;

use crate::support::*;

const HANDLER: &str = "echo $TCPREMOTEIP $TCPLOCALIP $REMOTE_ADDR";

/// Gives a network namespace an interface with the address fe80::1, and runs the rest of the command
/// line.
const WITH_INTERFACE: &str = "name=$1; shift; ip link set lo up
    ip link add \"$name\" type veth peer name peer && ip link set peer up &&
    ip link set \"$name\" up && ip address add fe80::1/64 dev \"$name\" nodad && exec \"$@\"";

/// An fdaccept with this listener in a network namespace of its own, which has an interface with the
/// address fe80::1.
#[track_caller]
fn on_interface(name: &str, address: &str, options: &[&str]) -> Acceptor {
    let wrapper = ["unshare", "--net", "sh", "-c", WITH_INTERFACE, "sh", name];
    let fdaccept = Fdaccept::behind(&wrapper).args(options);
    let pool = fdaccept.words("fdpool -v 1 -- sh -c").word(HANDLER);
    pool.listen(address).start()
}

/// A program in the network namespace of a process.
fn beside(process: &Process, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", process.pid()));
    command.arg(program);
    command
}

/// A client on an interface. It tells the number of that, and what it is told itself.
const CLIENT: &str = "import socket, sys
interface = socket.if_nametoindex(sys.argv[1])
client = socket.socket(socket.AF_INET6)
client.connect((\"fe80::1\", int(sys.argv[2]), 0, interface))
print(interface, flush=True)
print(client.makefile().read().strip())";

fn client(acceptor: &Acceptor, interface: &str) -> Command {
    let mut client = beside(acceptor, python().unwrap().to_str().unwrap());
    // Where it listens may end in the interface.
    let (_, port) = acceptor.addresses[0].rsplit_once(':').unwrap();
    let port = port.split('%').next().unwrap();
    client.args(["-c", CLIENT, interface, port]);
    client
}

/// The number of the interface, and what the client is told.
#[track_caller]
fn told(acceptor: &Acceptor, interface: &str) -> (String, String) {
    let (status, output, log) = run(&mut client(acceptor, interface));
    assert_eq!(status, Some(0), "{log}");
    let (number, told) = output.trim_end().split_once('\n').unwrap();
    (number.to_owned(), told.to_owned())
}

/// Whether there is what these tests need.
fn can_run() -> bool {
    root()
        && has_ipv6()
        && ["unshare", "nsenter", "ip"]
            .iter()
            .all(|name| peer(name).is_some())
}

#[test]
fn the_interface_of_a_link_local_client_is_told() {
    needs!(can_run());
    needs!(python());
    for (address, options) in [
        ("[fe80::1]:0%link-0.1", &["-v"][..]),
        ("0", &["-v", "--sandbox"]),
    ] {
        let mut acceptor = on_interface("link-0.1", address, options);
        let (_, told) = told(&acceptor, "link-0.1");
        let ip = "fe80::1%link-0.1";
        assert_eq!(told, format!("{ip} {ip} {ip}"));
        acceptor.line(&format!("accepted [{ip}]:"));
        acceptor.line(&format!(" from {ip}"));
    }
}

#[test]
fn an_interface_with_a_name_that_is_no_word_is_told_by_its_number() {
    needs!(can_run());
    needs!(python());
    for name in ["$(date)", "12"] {
        let acceptor = on_interface(name, "0", &[]);
        let (number, told) = told(&acceptor, name);
        let ip = format!("fe80::1%{number}");
        assert_eq!(told, format!("{ip} {ip} {ip}"), "{name}");
    }
}

#[test]
fn an_interface_that_is_gone_is_told_by_its_number() {
    needs!(can_run());
    needs!(python());
    let acceptor = on_interface("short", "0", &[]);
    let mut client = client(&acceptor, "short");
    let mut client = spawn(client.stdout(std::process::Stdio::piped())).unwrap();
    let mut output = std::io::BufReader::new(client.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        line.trim_end().to_owned()
    };
    let number = acceptor.at_once(&[], || {
        let number = line();
        let mut ip = beside(&acceptor, "ip");
        assert!(succeeds(ip.args(["link", "delete", "short"])));
        number
    });
    let ip = format!("fe80::1%{number}");
    // Nothing reaches the client any more.
    let mut acceptor = acceptor;
    acceptor.line(&format!(" from {ip}"));
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn rules_and_limits_look_at_the_address_alone() {
    needs!(can_run());
    needs!(python());
    let mut acceptor = on_interface("eth0", "0", &["-v", "--deny", "fe80::1"]);
    let _ = run(&mut client(&acceptor, "eth0"));
    acceptor.line("refused [fe80::1%eth0]:");
    let options = ["--allow", "fe80::/64", "--max-per-source", "1"];
    let acceptor = on_interface("eth0", "0", &options);
    for _ in 0..3 {
        assert_eq!(
            told(&acceptor, "eth0").1,
            "fe80::1%eth0 fe80::1%eth0 fe80::1%eth0"
        );
    }
}

/// A listener of another network namespace, with a client there, as descriptor 9 of the rest of the
/// command line.
const LISTENER: &str = "import os, socket, sys
listener = socket.socket(socket.AF_INET6)
listener.bind((\"::\", 0))
listener.listen()
if os.fork() == 0:
    client = socket.socket(socket.AF_INET6)
    client.settimeout(30)
    interface = socket.if_nametoindex(\"there\")
    client.connect((\"fe80::1\", listener.getsockname()[1], 0, interface))
    print(client.makefile().read().strip(), flush=True)
    os._exit(0)
os.dup2(listener.fileno(), 9)
os.execvp(sys.argv[1], sys.argv[1:])";

#[test]
fn the_interface_has_the_name_of_the_listeners_namespace() {
    needs!(can_run());
    let python = needs!(python());
    let here = format!("--net=/proc/{}/ns/net", std::process::id());
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", WITH_INTERFACE, "sh", "there"]);
    command.arg(python).args(["-c", LISTENER, "nsenter", &here]);
    command.arg(bin_dir().join("fdaccept")).env("PATH", path());
    command.args(["fd:9", "--", "fdrecv", "sh", "-c", HANDLER]);
    let (status, output, log) = run(&mut command);
    assert_eq!(status, Some(0), "{log}");
    assert_eq!(output, "fe80::1%there fe80::1%there fe80::1%there\n");
}

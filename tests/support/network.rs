//! Network namespaces, and a cable that can be pulled.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;

/// A network of its own for the rest of the command line, with 10.0.0.1 at one end of a cable whose
/// other end is in the network of process `$1`.
const WITH_CABLE: &str = "pid=$1; shift
    ip link add here type veth peer name there netns \"$pid\" &&
    ip address add 10.0.0.1/24 dev here && ip link set here up && exec \"$@\"";

/// A network for clients, which ends with this.
pub struct FarNetwork(Process);

impl FarNetwork {
    /// `None` where this needs root or a program that is not there.
    pub fn new() -> Option<Self> {
        let is_possible = root() && ["unshare", "nsenter", "ip"].into_iter().all(has);
        is_possible.then(|| {
            let text = "echo ready >&2; exec sleep 1000";
            let mut process = Command::new("unshare")
                .args(["--net", "sh", "-c", text])
                .start();
            process.line("ready");
            Self(process)
        })
    }

    /// fdaccept at 10.0.0.1, at the other end of a cable, with this handler.
    #[track_caller]
    pub fn server(&self, options: &str, handler: &str) -> Acceptor {
        let pid = self.0.pid().to_string();
        let wrapper = ["unshare", "--net", "sh", "-c", WITH_CABLE, "sh", &pid];
        let fdaccept = Fdaccept::behind(&wrapper).options(options);
        let chain = fdaccept.words("fdpool 1 --").words(handler);
        let acceptor = chain.listen("10.0.0.1:0").start();
        self.ip("address add 10.0.0.2/24 dev there");
        self.ip("link set there up");
        acceptor
    }

    #[track_caller]
    fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.pid()));
        command.arg("ip").args(arguments.split(' '));
        assert!(succeeds(&mut command), "{command:?}");
    }

    #[track_caller]
    pub fn client(&self, server: &Acceptor) -> Client {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.pid())).unwrap();
        let address = SocketAddr::from(([10, 0, 0, 1], server.port));
        let client = std::thread::spawn(move || {
            // This thread alone changes its network.
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            TcpStream::connect_timeout(&address, DEADLINE).unwrap()
        });
        let client = client.join().unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        Client(client)
    }

    /// From now on nothing comes through in either direction, and nobody is told.
    #[track_caller]
    pub fn pull_cable(&self) {
        self.ip("link set there down");
    }
}

fn has(name: &str) -> bool {
    peer(name).is_some()
}

//! What lies between client and server in a test: nothing but a forwarding router, or the daemon with an outbound.
//!
//! A test that holds for every way is written once, by [`over_every_way!`](crate::over_every_way). The plain way keeps
//! the test itself honest: what it asks of the daemon is what a router without one gives.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::sock::{accept, connect, listen, until_listening};
use crate::socks::{Manners, Socks};

/// How flows get from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The router forwards; no daemon runs.
    Plain,
    /// The daemon relays to the server itself.
    Direct,
    /// The same, and packets are caught by REDIRECT.
    Redirect,
    /// The daemon relays through the tests' own SOCKS5 server, which keeps half-closes and resets.
    Socks,
    /// Through microsocks: a real one, TCP only; it ends both sides when one ends.
    Microsocks,
    /// Through Dante: a real one, with UDP ASSOCIATE.
    Dante,
}

/// The network with everything that a way needs running in it.
pub struct Passage {
    // Dropped in this order: the daemon before what it talks to.
    pub daemon: Option<Daemon>,
    pub socks: Option<Socks>,
    _proxy: Option<Process>,
    pub lab: Lab,
    pub family: Family,
    _files: TempDir,
}

impl Passage {
    /// Opens a way.
    pub fn open(way: Way, family: Family) -> Passage {
        Passage::open_with(way, family, |uci| uci)
    }

    /// Opens a way, with changes to the daemon's configuration.
    pub fn open_with(way: Way, family: Family, change: impl FnOnce(Uci) -> Uci) -> Passage {
        let (lab, files) = (Lab::new(), TempDir::new());
        let (mut socks, mut proxy) = (None, None);
        match way {
            Way::Plain | Way::Direct | Way::Redirect => (),
            Way::Socks => socks = Some(Socks::start(&lab.server, family.proxy(), 1080, Manners::default())),
            Way::Microsocks => proxy = Some(microsocks(&lab, family, &[])),
            Way::Dante => proxy = Some(dante(&lab, &files)),
        }
        let daemon = (way != Way::Plain).then(|| Daemon::start(&lab, &change(uci(way, family))));
        Passage { daemon, socks, _proxy: proxy, lab, family, _files: files }
    }

    /// The daemon of a way that has one.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a way with a daemon")
    }

    /// A server on one of the destinations, on a port that the kernel chooses.
    pub fn listen(&self) -> (TcpListener, SocketAddr) {
        self.listen_at(self.family.destination(80))
    }

    /// A server on an address of any family.
    pub fn listen_at(&self, ip: IpAddr) -> (TcpListener, SocketAddr) {
        let listener = listen(&self.lab.server, ip, 0);
        let at = listener.local_addr().expect("bound");
        (listener, at)
    }

    /// One connection: the client's end and the server's end.
    pub fn pair(&self) -> (TcpStream, TcpStream) {
        let (listener, at) = self.listen();
        self.join(&listener, at)
    }

    /// One more connection to a server.
    pub fn join(&self, listener: &TcpListener, at: SocketAddr) -> (TcpStream, TcpStream) {
        let client = connect(&self.lab.client, at);
        assert_eq!(client.peer_addr().expect("connected"), at, "the client must see whom it called");
        (client, accept(listener))
    }
}

/// The configuration of a way.
pub fn uci(way: Way, family: Family) -> Uci {
    match way {
        Way::Plain => unreachable!("no daemon, no configuration"),
        Way::Direct => Uci::new("direct"),
        Way::Redirect => Uci::new("direct").listener(&[("mode", "redirect")]),
        Way::Socks | Way::Microsocks | Way::Dante => socks_uci(family),
    }
}

/// Everything goes to the proxy's address of this family, port 1080.
pub fn socks_uci(family: Family) -> Uci {
    Uci::new("socks5").outbound(&[("server", &family.proxy().to_string()), ("port", "1080")])
}

/// microsocks on all the proxy's addresses of one family: TCP only.
pub fn microsocks(lab: &Lab, family: Family, args: &[&str]) -> Process {
    let mut command = lab.server.command("microsocks");
    command.args(["-i", &family.any().to_string(), "-p", "1080"]).args(args);
    let process = Process::start(command);
    until_listening(&lab.server, SocketAddr::new(family.proxy(), 1080));
    process
}

/// Dante, which also does UDP ASSOCIATE, on the proxy's addresses of both families.
pub fn dante(lab: &Lab, files: &TempDir) -> Process {
    let config = files.write("danted.conf", DANTE);
    let mut command = lab.server.command("danted");
    command.arg("-f").arg(&config);
    let process = Process::start(command);
    process.wait_for_line(&["running"]);
    process
}

/// `user.privileged` is all there is inside a user namespace with one user.
pub const DANTE: &str = "
logoutput: stdout
internal: eth0 port = 1080
external: eth0
clientmethod: none
socksmethod: none
user.privileged: root
user.notprivileged: root
client pass { from: 0/0 to: 0/0 }
socks pass { from: 0/0 to: 0/0 command: connect udpassociate bindreply udpreply }
";

/// Makes tests `plain_v4`, `plain_v6`, `direct_v4`, … in a module named like the sentence that they show.
#[macro_export]
macro_rules! over_every_way {
    ($name:ident, $body:expr) => {
        $crate::over_ways!($name, $body, plain_v4 Plain V4, plain_v6 Plain V6, direct_v4 Direct V4,
            direct_v6 Direct V6, socks_v4 Socks V4, socks_v6 Socks V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);
    };
}

/// The same for the ways through the daemon alone.
#[macro_export]
macro_rules! over_the_daemons_ways {
    ($name:ident, $body:expr) => {
        $crate::over_ways!($name, $body, direct_v4 Direct V4, direct_v6 Direct V6, socks_v4 Socks V4, socks_v6 Socks V6,
            redirect_v4 Redirect V4, redirect_v6 Redirect V6);
    };
}

/// The same for what only `direct` promises; plain forwarding has to pass too.
#[macro_export]
macro_rules! over_plain_and_direct {
    ($name:ident, $body:expr) => {
        $crate::over_ways!($name, $body, plain_v4 Plain V4, plain_v6 Plain V6, direct_v4 Direct V4, direct_v6 Direct V6,
            redirect_v4 Redirect V4, redirect_v6 Redirect V6);
    };
}

/// One test for each way and family in the list.
#[macro_export]
macro_rules! over_ways {
    ($name:ident, $body:expr, $($test:ident $way:ident $family:ident),+) => {
        mod $name {
            #[allow(unused_imports, reason = "a body names what it needs of its module")]
            use super::*;
            $(#[test]
            fn $test() {
                let body: fn($crate::passage::Way, $crate::lab::Family) = $body;
                body($crate::passage::Way::$way, $crate::lab::Family::$family);
            })+
        }
    };
}

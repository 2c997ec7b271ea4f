//! What a house full of devices and a hostile network do to it, one fault a test. Those of proxies in their handshakes are in
//! `failures.rs`, `connect.rs` and `shadowsocks.rs`, those of the daemon's own life in `lifecycle.rs`.

mod bounds;
mod bugs;
mod clocks;
mod flood;
mod greedy;
mod network;
mod privileges;
mod resources;
mod vanished;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::proxies::{HTTP_PORT, served, tinyproxy};
use crate::sock::{PATIENCE, accept, connect, listen};
use crate::socks::{Manners, Socks};

/// A type of outbound, or of interception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Direct,
    Redirect,
    Forward,
    Socks5,
    Http,
    Group,
    #[cfg(feature = "shadowsocks")]
    Shadowsocks,
}

/// A daemon with an outbound of this type, and what that leads to.
pub struct Ground {
    pub daemon: Daemon,
    _proxy: Option<Process>,
    _socks: Option<Socks>,
    pub lab: Lab,
    exit: Exit,
    _files: TempDir,
}

impl Ground {
    pub fn new(exit: Exit, change: impl FnOnce(Uci) -> Uci) -> Ground {
        Ground::with_member(exit, "", change)
    }

    /// Whoever is silent is given up after two seconds.
    pub fn impatient(exit: Exit) -> Ground {
        let member = "\toption idle_timeout '2s'\n\toption udp_timeout '2s'\n";
        Ground::with_member(exit, member, |uci| match exit {
            Exit::Group => uci,
            _ => uci.outbound(&[("idle_timeout", "2s"), ("udp_timeout", "2s")]),
        })
    }

    fn with_member(exit: Exit, member: &str, change: impl FnOnce(Uci) -> Uci) -> Ground {
        Ground::start(exit, member, change, Daemon::start)
    }

    /// With options of the group's member, and a daemon that is started in a way of its own.
    fn start(
        exit: Exit,
        member: &str,
        change: impl FnOnce(Uci) -> Uci,
        launch: impl FnOnce(&Lab, &Uci) -> Daemon,
    ) -> Ground {
        let (lab, files) = (Lab::new(), TempDir::new());
        let family = Family::V4;
        let server = family.proxy().to_string();
        let (mut proxy, mut socks) = (None, None);
        let start_socks = || Socks::start(&lab.server, family.proxy(), 1_080, Manners::default());
        let uci = match exit {
            Exit::Direct => Uci::new("direct"),
            Exit::Redirect => Uci::new("direct").listener(&[("mode", "redirect")]),
            Exit::Forward => served("forward", family, 8_000),
            Exit::Socks5 => {
                socks = Some(start_socks());
                served("socks5", family, 1_080)
            }
            Exit::Group => {
                socks = Some(start_socks());
                Uci::new("group").outbound(&[("member", "one")]).section(&format!(
                    "config outbound 'one'\n\toption type 'socks5'\n\toption server '{server}'\n\toption port '1080'\n\
                     \toption check_interval '1h'\n{member}"
                ))
            }
            Exit::Http => {
                proxy = Some(tinyproxy(&lab, &files, family, HTTP_PORT, ""));
                served("http", family, HTTP_PORT)
            }
            #[cfg(feature = "shadowsocks")]
            Exit::Shadowsocks => {
                let mut command = lab.server.command("ss-server");
                command.args(["-s", &server, "-p", "8388", "-k", "secret", "-m", "aes-128-gcm", "-u", "-t", "60"]);
                proxy = Some(Process::start(command));
                crate::sock::until_listening(&lab.server, SocketAddr::new(family.proxy(), 8_388));
                served("shadowsocks", family, 8_388).outbound(&[("method", "aes-128-gcm"), ("password", "secret")])
            }
        };
        let daemon = launch(&lab, &change(uci));
        Ground { daemon, _proxy: proxy, _socks: socks, lab, exit, _files: files }
    }

    /// A server to which connections get, and where a client calls for it.
    pub fn listen(&self) -> (TcpListener, SocketAddr) {
        let listener = match self.exit {
            Exit::Forward => listen(&self.lab.server, Family::V4.proxy(), 8_000),
            _ => listen(&self.lab.server, Family::V4.destination(80), 0),
        };
        let at = match self.exit {
            Exit::Forward => SocketAddr::new(Family::V4.silent(), 80),
            _ => listener.local_addr().expect("bound"),
        };
        (listener, at)
    }

    /// One more connection.
    pub fn join(&self, listener: &TcpListener, at: SocketAddr) -> (TcpStream, TcpStream) {
        (connect(&self.lab.client, at), accept(listener))
    }

    /// The daemon's processor time so far.
    fn processor_time(&self) -> Duration {
        processor_time(&self.daemon)
    }

    /// How much of a second the daemon worked while it had nothing to do but wait.
    pub fn spun(&self) -> Duration {
        let before = self.processor_time();
        std::thread::sleep(Duration::from_secs(1));
        self.processor_time() - before
    }

    /// Lets the daemon have that many descriptors beside those that it has.
    pub fn leave_descriptors(&self, free: usize) {
        Ground::leave_descriptors_of(&self.lab, &self.daemon, free);
    }

    /// The same for any daemon.
    pub fn leave_descriptors_of(lab: &Lab, daemon: &Daemon, free: usize) {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", daemon.process().pid())).expect("the daemon runs");
        let open: Vec<usize> =
            folder.flatten().map(|fd| fd.file_name().to_string_lossy().parse().expect("a number")).collect();
        let last = (0..).filter(|n| !open.contains(n)).nth(free).expect("there is always one more");
        limit_descriptors(lab, daemon, &last.to_string());
    }

    /// Gives them back.
    pub fn give_descriptors_back(&self) {
        Ground::give_descriptors_back_to(&self.lab, &self.daemon);
    }

    /// The same for any daemon.
    pub fn give_descriptors_back_to(lab: &Lab, daemon: &Daemon) {
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", daemon.process().pid())).expect("the daemon runs");
        let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
        limit_descriptors(lab, daemon, files.split_whitespace().nth(4).expect("a hard limit"));
    }

    /// Waits until nothing is left, and no more descriptors are open than `before`.
    pub fn wait_clean(&self, before: usize) {
        self.daemon.wait_idle();
        let begin = std::time::Instant::now();
        while self.daemon.descriptors() > before {
            let now = self.daemon.descriptors();
            assert!(begin.elapsed() < PATIENCE, "{now} descriptors are open, {before} were");
            std::thread::yield_now();
        }
    }
}

fn limit_descriptors(lab: &Lab, daemon: &Daemon, soft: &str) {
    let pid = daemon.process().pid().to_string();
    lab.router.tool("prlimit", &["--pid", &pid, &format!("--nofile={soft}:")], "");
}

/// Processor time of the network process so far.
fn processor_time(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.process().pid())).expect("the daemon runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum();
    // USER_HZ is 100 wherever these tests run
    Duration::from_millis(10 * ticks)
}

/// One test for each type of outbound.
#[macro_export]
macro_rules! over_exits {
    ($name:ident, $body:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "a body names what it needs of its module")]
            use super::*;
            use $crate::faults::Exit;
            const BODY: fn(Exit) = $body;
            #[test]
            fn direct() {
                BODY(Exit::Direct);
            }
            #[test]
            fn redirect() {
                BODY(Exit::Redirect);
            }
            #[test]
            fn forward() {
                BODY(Exit::Forward);
            }
            #[test]
            fn socks5() {
                BODY(Exit::Socks5);
            }
            #[test]
            fn http() {
                BODY(Exit::Http);
            }
            #[test]
            fn group() {
                BODY(Exit::Group);
            }
            #[cfg(feature = "shadowsocks")]
            #[test]
            fn shadowsocks() {
                BODY(Exit::Shadowsocks);
            }
        }
    };
}

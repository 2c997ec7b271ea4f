//! Real servers of every type of outbound die in the midst of a transfer, stay dead, and come back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::chance::Chance;
use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::passage::{microsocks, socks_uci};
use crate::process::{Process, TempDir};
use crate::proxies::{HTTP_PORT, at, haproxy, squid, tinyproxy};
use crate::sock::{accept, connect, exchange, listen, read_n, refusal};

/// The network, with a listener for what comes out at its far end.
struct Ground {
    lab: Lab,
    files: TempDir,
    family: Family,
    listener: TcpListener,
    /// Where the client goes.
    to: SocketAddr,
}

impl Ground {
    /// `behind`: the listener is behind a fixed server, not where the client goes.
    fn new(family: Family, behind: bool) -> Ground {
        let (lab, files) = (Lab::new(), TempDir::new());
        let listener = listen(&lab.server, if behind { family.proxy() } else { family.destination(80) }, 9_001);
        let to = if behind { at(family.destination(1), 80) } else { listener.local_addr().expect("bound") };
        Ground { lab, files, family, listener, to }
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        (connect(&self.lab.client, self.to), accept(&self.listener))
    }
}

/// Kills what `start` gives while it carries data, and starts it again. `None`: it is not to be had here.
fn dies_and_comes_back(behind: bool, start: impl Fn(&Ground) -> Option<Process>, uci: impl Fn(Family) -> Uci) {
    for family in Family::BOTH {
        let ground = Ground::new(family, behind);
        let Some(server) = start(&ground) else { return };
        let daemon = Daemon::start(&ground.lab, &uci(family));
        let (mut client, mut far) = ground.pair();
        exchange(&mut client, &mut far, b"ask", b"answer");
        thread::scope(|scope| {
            scope.spawn(|| while far.write_all(&[7; 50_000]).is_ok() {});
            assert_eq!(read_n(&mut client, 1 << 20), vec![7; 1 << 20]);
            drop(server);
            let mut rest = vec![0; 1 << 20];
            let end = loop {
                match client.read(&mut rest) {
                    Ok(0) => break ErrorKind::UnexpectedEof,
                    Ok(n) => assert!(rest[..n].iter().all(|octet| *octet == 7), "what came last is changed"),
                    Err(e) => break e.kind(),
                }
            };
            assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{end:?}");
        });
        drop((client, far));
        daemon.wait_idle();
        assert_eq!(refusal(&ground.lab.client, ground.to), ErrorKind::ConnectionReset);
        // a warning, or within ten seconds of another one at least this
        daemon.process().wait_for_line(&["'out'", "connection refused"]);
        let _server = start(&ground);
        let (mut client, mut far) = ground.pair();
        exchange(&mut client, &mut far, b"again", b"all is well");
        drop((client, far));
        daemon.wait_idle();
        daemon.stop();
    }
}

fn served(kind: &str, family: Family, port: u16) -> Uci {
    let (server, port) = (family.proxy().to_string(), port.to_string());
    Uci::new(kind).outbound(&[("server", &server), ("port", &port)])
}

/// HAProxy that passes connections on as they are.
fn passing_on(ground: &Ground) -> Process {
    let [front, back, ready] = [8_000, 9_001, 8_001].map(|port| at(ground.family.proxy(), port));
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen pass\n bind {front}\n server far {back}\nlisten ready\n bind {ready}\n"
    );
    // to ask at the front would lead to the listener behind
    haproxy(&ground.lab, &ground.files, ground.family, 8_001, &text)
}

#[test]
fn microsocks_dies_and_comes_back() {
    dies_and_comes_back(false, |ground| Some(microsocks(&ground.lab, ground.family, &[])), socks_uci);
}

#[test]
fn tinyproxy_dies_and_comes_back() {
    let start = |ground: &Ground| Some(tinyproxy(&ground.lab, &ground.files, ground.family, HTTP_PORT, ""));
    dies_and_comes_back(false, start, |family| served("http", family, HTTP_PORT));
}

#[test]
fn squid_dies_and_comes_back() {
    let ports = "acl SSL_ports port 9001\n";
    let start = |ground: &Ground| squid(&ground.lab, &ground.files, ground.family, ports);
    dies_and_comes_back(false, start, |family| served("http", family, HTTP_PORT));
}

#[test]
fn haproxy_as_a_fixed_server_dies_and_comes_back() {
    dies_and_comes_back(true, |ground| Some(passing_on(ground)), |family| served("forward", family, 8_000));
}

#[test]
#[cfg(feature = "shadowsocks")]
fn ss_server_dies_and_comes_back() {
    use crate::shadowsocks::{OLD, libev, uci};
    dies_and_comes_back(false, |ground| Some(libev(&ground.lab, ground.family, OLD[2])), |family| uci(family, OLD[2]));
}

#[test]
#[cfg(feature = "shadowsocks")]
fn ssserver_dies_and_comes_back() {
    use crate::shadowsocks::{OLD, rust, uci};
    dies_and_comes_back(false, |ground| rust(&ground.lab, ground.family, OLD[0]), |family| uci(family, OLD[0]));
}

const MEGABYTES: usize = 10 << 20;

#[test]
fn ten_megabytes_each_way_pass_a_fixed_server() {
    let mut chance = Chance::new();
    let (up, down) = (chance.octets(MEGABYTES), chance.octets(MEGABYTES));
    for family in Family::BOTH {
        let ground = Ground::new(family, true);
        let _server = passing_on(&ground);
        let _daemon = Daemon::start(&ground.lab, &served("forward", family, 8_000));
        let (mut client, mut far) = ground.pair();
        let (mut from_client, mut from_far) = (client.try_clone().expect("dup"), far.try_clone().expect("dup"));
        thread::scope(|scope| {
            scope.spawn(|| from_client.write_all(&up).expect("send"));
            scope.spawn(|| from_far.write_all(&down).expect("send"));
            let arrived = scope.spawn(|| read_n(&mut far, MEGABYTES));
            assert!(read_n(&mut client, MEGABYTES) == down, "what came down is not what was sent");
            assert!(arrived.join().expect("no panic") == up, "what came up is not what was sent");
        });
    }
}

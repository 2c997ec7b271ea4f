//! Real servers of every type of outbound die in the midst of a transfer, stay dead, and come back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::chance::Chance;
use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::passage::{DANTE, microsocks, socks_uci};
use crate::process::{Process, TempDir};
use crate::proxies::{HTTP_PORT, at, nginx, passing_on, served, squid, tinyproxy};
use crate::sock::{accept, connect, exchange, listen, read_all, read_n, refusal, until_silent};

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

/// Kills what `start` gives, which listens at `port`, while it carries data, and starts it again. `None`: it is not to be had
/// here.
fn dies_and_comes_back(
    behind: bool,
    port: u16,
    start: impl Fn(&Ground) -> Option<Process>,
    uci: impl Fn(Family) -> Uci,
) {
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
        until_silent(&ground.lab.server, at(family.proxy(), port));
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

#[test]
fn microsocks_dies_and_comes_back() {
    dies_and_comes_back(false, 1_080, |ground| Some(microsocks(&ground.lab, ground.family, &[])), socks_uci);
}

#[test]
fn dante_dies_and_comes_back() {
    let start = |ground: &Ground| {
        // its children outlive it for a while, but not the first process of their namespace
        let mut command = ground.lab.server.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "danted", "-f"]).arg(ground.files.write("danted.conf", DANTE));
        let process = Process::start(command);
        process.wait_for_line(&["running"]);
        Some(process)
    };
    dies_and_comes_back(false, 1_080, start, socks_uci);
}

#[test]
fn tinyproxy_dies_and_comes_back() {
    let start = |ground: &Ground| Some(tinyproxy(&ground.lab, &ground.files, ground.family, HTTP_PORT, ""));
    dies_and_comes_back(false, HTTP_PORT, start, |family| served("http", family, HTTP_PORT));
}

#[test]
fn squid_dies_and_comes_back() {
    let ports = "acl SSL_ports port 9001\n";
    let start = |ground: &Ground| squid(&ground.lab, &ground.files, ground.family, ports);
    dies_and_comes_back(false, HTTP_PORT, start, |family| served("http", family, HTTP_PORT));
}

#[test]
fn haproxy_as_a_fixed_server_dies_and_comes_back() {
    let start = |ground: &Ground| Some(passing_on(&ground.lab, &ground.files, ground.family));
    dies_and_comes_back(true, 8_000, start, |family| served("forward", family, 8_000));
}

#[test]
#[cfg(feature = "shadowsocks")]
fn ss_server_dies_and_comes_back() {
    use crate::shadowsocks::{OLD, PORT, libev, uci};
    let start = |ground: &Ground| Some(libev(&ground.lab, ground.family, OLD[2]));
    dies_and_comes_back(false, PORT, start, |family| uci(family, OLD[2]));
}

#[test]
#[cfg(feature = "shadowsocks")]
fn ssserver_dies_and_comes_back() {
    use crate::shadowsocks::{OLD, PORT, rust, uci};
    dies_and_comes_back(false, PORT, |ground| rust(&ground.lab, ground.family, OLD[0]), |family| uci(family, OLD[0]));
}

const MEGABYTES: usize = 10 << 20;

#[test]
fn ten_megabytes_each_way_pass_a_fixed_server() {
    let mut chance = Chance::new();
    let (up, down) = (chance.octets(MEGABYTES), chance.octets(MEGABYTES));
    for family in Family::BOTH {
        let ground = Ground::new(family, true);
        let _server = passing_on(&ground.lab, &ground.files, family);
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

#[test]
fn ten_megabytes_each_way_reach_nginx_as_a_fixed_server() {
    let mut chance = Chance::new();
    let text = chance.octets(MEGABYTES);
    for family in Family::BOTH {
        let (lab, files) = (Lab::new(), TempDir::new());
        let at = at(family.proxy(), 8_000);
        let http = format!(
            "server {{ listen {at}; root {}; dav_methods PUT; client_max_body_size 20m; }}",
            files.path().display()
        );
        let _server = nginx(&lab, &files, family, 8_000, &http);
        let _daemon = Daemon::start(&lab, &served("forward", family, 8_000));
        let to = SocketAddr::new(family.silent(), 80);
        let ask = |head: &str, body: &[u8]| {
            let mut client = connect(&lab.client, to);
            client
                .write_all(format!("{head} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
                .expect("send");
            client.write_all(body).expect("send");
            read_all(&mut client)
        };
        assert!(ask("PUT /kept", &text).starts_with(b"HTTP/1.1 201"), "what nginx says to a PUT");
        assert!(ask("GET /kept", &[]).ends_with(&text), "what came back is not what was sent");
    }
}

//! `rate` of a rule: a bucket for each client and direction, for all its flows together.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::ns::Namespace;
use crate::sock::{PATIENCE, accept, connect, listen, read_n, receive, udp};

/// Bytes per second of 16 Mbit/s.
const RATE: usize = 2_000_000;

/// What passes at once after a pause: a tenth of a second's.
const BURST: usize = RATE / 10;

/// What one call may move beyond the rate, to be made up for: a pipe.
const OVERDRAWN: usize = 128 * 1024;

const BULK: usize = 4_000_000;

/// Faster than that it is not, however fast the machine is.
fn least(bytes: usize) -> Duration {
    Duration::from_secs_f64((bytes - BURST - OVERDRAWN) as f64 / RATE as f64 * 0.95)
}

fn measured() -> Uci {
    Uci::new("direct")
        .globals(&[("log_level", "info")])
        .listener(&[("device", "lan0 lan1")])
        .section("config rule\n\toption outbound 'direct'\n\toption rate '16M'\n")
}

/// How long `bytes` take from `from` to `to`; they arrive whole.
fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> Duration {
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let piece: Vec<u8> = (0..bytes).map(|n| (n / 251) as u8).collect();
            from.write_all(&piece).expect("send");
        });
        let got = read_n(to, bytes);
        assert!(got.iter().enumerate().all(|(n, octet)| *octet == (n / 251) as u8));
    });
    begun.elapsed()
}

fn join(client: &Namespace, server: &std::net::TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(client, server.local_addr().expect("bound"));
    (client, accept(server))
}

#[test]
fn a_rate_holds_each_way_for_all_connections_of_a_client_together() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &measured());
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let mut pairs = [join(&lab.client, &listener), join(&lab.client, &listener)];
    let begun = Instant::now();
    thread::scope(|scope| {
        for (client, server) in &mut pairs {
            scope.spawn(|| transfer(server, client, BULK / 2));
        }
    });
    assert!(begun.elapsed() >= least(BULK), "down: {:?}", begun.elapsed());
    let [(client, server), _] = &mut pairs;
    let up = transfer(client, server, BULK);
    assert!(up >= least(BULK), "up: {up:?}");
    let status = daemon.status();
    assert_eq!(status.number("meters.used"), 1, "{status}");
}

#[test]
fn clients_do_not_share_a_rate() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &measured());
    let other = lab.second_client();
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    // what the first has still to get takes longer than the test's patience
    let (busy, mut server) = join(&lab.client, &listener);
    let feeder = thread::spawn(move || {
        let piece = [7; 65_536];
        while server.write_all(&piece).is_ok() {}
    });
    let reader = {
        let mut busy = busy.try_clone().expect("a descriptor");
        thread::spawn(move || while busy.read(&mut [0; 65_536]).is_ok_and(|n| n > 0) {})
    };
    daemon.status_until("the first is under way", |status| status.number("outbounds.0.bytes_down") > 1_000_000);
    let (mut client, mut server) = join(&other, &listener);
    let took = transfer(&mut server, &mut client, BULK);
    assert!(took >= least(BULK) && took < PATIENCE, "{took:?}");
    let status = daemon.status();
    assert_eq!(status.number("meters.used"), 2, "{status}");
    busy.shutdown(std::net::Shutdown::Both).expect("shutdown");
    drop(busy);
    reader.join().expect("the reader");
    feeder.join().expect("the feeder");
}

/// Sends `count` datagrams of 1200 octets as fast as it goes, and counts the octets that arrive, and within which time.
fn flood(from: &UdpSocket, to: SocketAddr, at: &UdpSocket, count: usize) -> (usize, Duration) {
    let (begun, done) = (Instant::now(), AtomicBool::new(false));
    at.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..count {
                from.send_to(&[7; 1200], to).expect("send");
                if n % 16 == 15 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let (mut arrived, mut last) = (0, begun.elapsed());
        loop {
            let all_sent = done.load(Ordering::Relaxed);
            match at.recv(&mut [0; 2048]) {
                Ok(n) => (arrived, last) = (arrived + n, begun.elapsed()),
                Err(_) if all_sent => return (arrived, last),
                Err(_) => {}
            }
        }
    })
}

#[test]
fn datagrams_beyond_the_rate_are_dropped_and_counted_each_way() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &measured());
    let server = udp(&lab.server, Family::V4.destination(80), 4000);
    let client = udp(&lab.client, Family::V4.client(), 0);
    let at = server.local_addr().expect("bound");
    client.send_to(b"first", at).expect("send");
    let (_, mapped) = receive(&server);
    let mut dropped = 0;
    for up in [true, false] {
        let (arrived, took) =
            if up { flood(&client, at, &server, 4000) } else { flood(&server, mapped, &client, 4000) };
        let most = BURST as f64 + 1300.0 + RATE as f64 * (took.as_secs_f64() + 0.02);
        assert!(arrived > 0 && (arrived as f64) < most * 1.05, "{arrived} in {took:?}, up: {up}");
        let status = daemon.status_until("some were dropped", |status| status.number("drops.rate") > dropped);
        dropped = status.number("drops.rate");
    }
    // and what keeps to it passes
    let patient_until = Instant::now() + PATIENCE;
    loop {
        client.send_to(b"last", at).expect("send");
        match server.recv(&mut [0; 2048]) {
            Ok(4) => break,
            _ => assert!(Instant::now() < patient_until, "nothing passes any more"),
        }
    }
}

#[test]
fn a_rule_with_a_rate_is_the_processs_even_where_the_kernel_could_decide() {
    let lab = Lab::new();
    let rules = "config rule\n\toption dest_port '80'\n\toption outbound 'direct'\n\toption rate '16M'\n";
    let uci = Uci::new("direct").globals(&[("kernel_verdicts", "1"), ("default", "direct")]).section(rules);
    let daemon = Daemon::start(&lab, &uci);
    for family in Family::BOTH {
        let [measured, plain] = [80, 81].map(|port| Mirror::start_at(&lab.server, family.destination(80), port));
        assert_eq!(seen_by_tcp(&lab.client, measured.at).expect("an answer").ip(), family.router_wan());
        let socket = udp(&lab.client, family.client(), 0);
        let seen = seen_by_udp(&socket, measured.at, PATIENCE).expect("an answer");
        assert_eq!(seen.ip(), family.router_wan());
        let by_kernel = if std::env::var(crate::daemon::BACKEND).is_ok_and(|backend| backend == "iptables") {
            family.router_wan()
        } else {
            family.client()
        };
        assert_eq!(seen_by_tcp(&lab.client, plain.at).expect("an answer").ip(), by_kernel);
    }
    let explained = daemon.command("explain", &["tcp", "192.168.1.2:40000", "203.0.113.80:80"]);
    assert!(explained.contains("The process decides"), "{explained}");
}

#[test]
fn a_live_connection_keeps_its_rate_over_a_reload() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &measured());
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let (mut client, mut server) = join(&lab.client, &listener);
    transfer(&mut server, &mut client, BURST);
    daemon.write_config(&Uci::new("direct").globals(&[("log_level", "info")]).listener(&[("device", "lan0 lan1")]));
    assert!(daemon.reload(&[]).contains("rules"));
    let took = transfer(&mut server, &mut client, BULK);
    assert!(took >= least(BULK), "{took:?}");
}

#[cfg(feature = "shadowsocks")]
#[test]
fn a_rate_holds_where_bytes_are_encrypted() {
    use crate::shadowsocks::{OLD, libev, uci};
    let lab = Lab::new();
    let _server = libev(&lab, Family::V4, OLD[0]);
    let rule = "config rule\n\toption outbound 'out'\n\toption rate '16M'\n";
    let _daemon = Daemon::start(&lab, &uci(Family::V4, OLD[0]).globals(&[("log_level", "info")]).section(rule));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
    // its server dials when the first bytes come
    client.write_all(b"first").expect("send");
    let mut server = accept(&listener);
    assert_eq!(read_n(&mut server, 5), b"first");
    let took = transfer(&mut server, &mut client, BULK);
    assert!(took >= least(BULK), "down: {took:?}");
    let took = transfer(&mut client, &mut server, BULK);
    assert!(took >= least(BULK), "up: {took:?}");
}

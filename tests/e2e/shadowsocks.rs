//! `shadowsocks`: TCP and UDP through `ss-server` of shadowsocks-libev and, where it is installed, `ssserver` of
//! shadowsocks-rust, which alone of the two knows the methods of SIP022.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::thread;

use crate::chance::Chance;
use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::process::Process;
use crate::sock::{
    accept, connect, exchange, expect_reset, listen, read_all, read_n, receive, refusal, udp, until_listening,
};

/// Where the servers listen.
pub const PORT: u16 = 8_388;

pub const OLD: [(&str, &str); 3] =
    [("aes-128-gcm", "secret"), ("aes-256-gcm", "secret"), ("chacha20-ietf-poly1305", "another secret")];

const NEW: [(&str, &str); 3] = [
    ("2022-blake3-aes-128-gcm", "AAECAwQFBgcICQoLDA0ODw=="),
    ("2022-blake3-aes-256-gcm", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ("2022-blake3-chacha20-poly1305", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
];

pub fn uci(family: Family, (method, password): (&str, &str)) -> Uci {
    let (server, port) = (family.proxy().to_string(), PORT.to_string());
    let options = [("server", &*server), ("port", &port), ("method", method), ("password", password)];
    Uci::new("shadowsocks").outbound(&options)
}

pub fn libev(lab: &Lab, family: Family, (method, password): (&str, &str)) -> Process {
    let mut command = lab.server.command("ss-server");
    let (server, port) = (family.proxy().to_string(), PORT.to_string());
    command.args(["-s", &server, "-p", &port, "-k", password, "-m", method, "-u", "-t", "60"]);
    started(lab, family, Process::start(command))
}

/// `ssserver`, if there is one: `ci/test` puts it where this looks.
pub fn rust(lab: &Lab, family: Family, (method, password): (&str, &str)) -> Option<Process> {
    let cache = std::env::var_os("TPROXYD_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/tproxyd")))?;
    let program = cache.join("ssserver/bin/ssserver");
    if !program.exists() {
        println!("not tested with ssserver: there is no {}", program.display());
        return None;
    }
    let mut command = lab.server.command(program.to_str()?);
    let at = SocketAddr::new(family.proxy(), PORT).to_string();
    command.args(["-s", &at, "-k", password, "-m", method, "-U"]);
    Some(started(lab, family, Process::start(command)))
}

fn started(lab: &Lab, family: Family, server: Process) -> Process {
    until_listening(&lab.server, SocketAddr::new(family.proxy(), PORT));
    server
}

const MEGABYTES: usize = 10 << 20;

/// What must go well with every server and method. So many octets go each way at once.
fn all_is_well(lab: &Lab, family: Family, much: usize) {
    let mut chance = Chance::new();
    let listener = listen(&lab.server, family.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let (up, down) = (chance.octets(much), chance.octets(much));
    let (mut client, mut server) = (connect(&lab.client, to), accept(&listener));
    let (mut from_client, mut from_server) = (client.try_clone().expect("dup"), server.try_clone().expect("dup"));
    thread::scope(|scope| {
        scope.spawn(|| from_client.write_all(&up).expect("send"));
        scope.spawn(|| from_server.write_all(&down).expect("send"));
        let arrived = scope.spawn(|| read_n(&mut server, much));
        assert!(read_n(&mut client, much) == down, "what came down is not what was sent");
        assert!(arrived.join().expect("no panic") == up, "what came up is not what was sent");
    });
    // a server that speaks first, and whose end reaches the client
    let (mut client, mut server) = (connect(&lab.client, to), accept(&listener));
    exchange(&mut server, &mut client, b"220 welcome", b"hello");
    server.write_all(&[7; 300_000]).expect("send");
    server.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(read_all(&mut client).len(), 300_000);
    drop((client, server));
    // datagrams to both families, and of every size
    for family in Family::BOTH {
        let client = udp(&lab.client, family.client(), 0);
        let server = udp(&lab.server, family.destination(7), 4_000);
        let to = server.local_addr().expect("bound");
        for size in [1, 500, 1_300] {
            let (ask, answer) = (chance.octets(size), chance.octets(size));
            client.send_to(&ask, to).expect("send");
            let (arrived, from) = receive(&server);
            assert!(arrived == ask, "{size} octets arrived as {}", arrived.len());
            server.send_to(&answer, from).expect("answer");
            assert!(receive(&client) == (answer, to), "the answer of {size} octets");
        }
    }
}

/// The server by both families, ten megabytes by one of them, which are enough for the method.
fn by_both_families(n: usize) -> [(Family, usize); 2] {
    [(Family::BOTH[n % 2], MEGABYTES), (Family::BOTH[(n + 1) % 2], MEGABYTES / 40)]
}

/// Every session has keys of its own, and every one that fits finds a place for them.
#[test]
fn a_full_table_of_encrypted_sessions_is_served_and_the_next_one_waits() {
    let lab = Lab::new();
    let _server = libev(&lab, Family::V4, OLD[0]);
    let daemon =
        Daemon::start(&lab, &uci(Family::V4, OLD[0]).globals(&[("tcp_sessions", "16"), ("udp_sessions", "16")]));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let mut pairs: Vec<_> = (0..16).map(|_| (connect(&lab.client, to), accept(&listener))).collect();
    for (client, far) in &mut pairs {
        exchange(client, far, b"ask", b"answer");
    }
    assert_eq!(daemon.status().number("tcp.active"), 16);
    let mut next = connect(&lab.client, to);
    next.write_all(b"after you").expect("send");
    drop(pairs.pop());
    let mut far = accept(&listener);
    assert_eq!(read_n(&mut far, 9), b"after you");
    // and of 20 client ports the longest silent make room
    let far = udp(&lab.server, Family::V4.destination(7), 4_000);
    for n in 0..20u8 {
        let client = udp(&lab.client, Family::V4.client(), 0);
        client.send_to(&[n], far.local_addr().expect("bound")).expect("send");
        assert_eq!(receive(&far).0, [n]);
    }
    assert_eq!(daemon.status().number("udp.evicted"), 4);
}

#[test]
fn all_is_well_through_libev() {
    for (n, method) in OLD.into_iter().enumerate() {
        for (family, much) in by_both_families(n) {
            let lab = Lab::new();
            let _server = libev(&lab, family, method);
            let daemon = Daemon::start(&lab, &uci(family, method));
            all_is_well(&lab, family, much);
            daemon.stop();
        }
    }
}

#[test]
fn all_is_well_through_ssserver() {
    for (n, method) in OLD.into_iter().chain(NEW).enumerate() {
        for (family, much) in by_both_families(n) {
            let lab = Lab::new();
            let Some(_server) = rust(&lab, family, method) else { return };
            let daemon = Daemon::start(&lab, &uci(family, method));
            all_is_well(&lab, family, much);
            daemon.stop();
        }
    }
}

#[test]
fn a_short_question_gets_a_long_answer() {
    let lab = Lab::new();
    let _server = libev(&lab, Family::V4, OLD[2]);
    let _daemon = Daemon::start(&lab, &uci(Family::V4, OLD[2]));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
    client.write_all(b"that was all").expect("send");
    let mut server = accept(&listener);
    assert_eq!(read_n(&mut server, 12), b"that was all");
    server.write_all(&[5; 100_000]).expect("answer");
    assert_eq!(read_n(&mut client, 100_000), [5; 100_000]);
}

#[test]
fn a_wrong_password_a_dead_server_and_one_that_dies_in_mid_transfer_end_the_client() {
    let lab = Lab::new();
    let server = libev(&lab, Family::V4, OLD[1]);
    let daemon = Daemon::start(&lab, &uci(Family::V4, OLD[1]));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let (mut client, mut far) = (connect(&lab.client, to), accept(&listener));
    exchange(&mut client, &mut far, b"ask", b"answer");
    drop(server);
    match std::io::Read::read(&mut client, &mut [0; 1]) {
        Ok(0) => (),
        other => assert_eq!(other.expect_err("an end").kind(), ErrorKind::ConnectionReset),
    }
    drop((client, far));
    daemon.wait_idle();
    assert_eq!(refusal(&lab.client, to), ErrorKind::ConnectionReset);
    daemon.process().wait_for_line(&["198.51.100.2:8388", "refused"]);
    daemon.stop();
    // what answers in another key than ours is no answer
    let _server = libev(&lab, Family::V4, (OLD[1].0, "not the secret"));
    let daemon = Daemon::start(&lab, &uci(Family::V4, OLD[1]));
    let mut client = connect(&lab.client, to);
    client.write_all(b"ask").expect("send");
    client.set_read_timeout(Some(std::time::Duration::from_millis(500))).expect("SO_RCVTIMEO");
    assert!(!matches!(std::io::Read::read(&mut client, &mut [0; 1]), Ok(1)), "an answer to a wrong password");
    drop(client);
    daemon.stop();
}

/// Whoever answers HTTP, and counts who has asked: the check's target.
fn answer_checks(listener: &std::net::TcpListener) {
    let mut client = accept(listener);
    let question = read_n(&mut client, 15);
    assert_eq!(question, b"HEAD / HTTP/1.0");
    client.write_all(b"HTTP/1.0 204 No Content\r\n\r\n").expect("answer");
}

#[test]
fn a_check_goes_through_the_server_to_its_target() {
    for (n, method) in [OLD[2], NEW[0]].into_iter().enumerate() {
        let lab = Lab::new();
        let Some(_server) =
            (if n == 0 { Some(libev(&lab, Family::V4, method)) } else { rust(&lab, Family::V4, method) })
        else {
            return;
        };
        let target = listen(&lab.server, Family::V4.destination(5), 4_433);
        let options = [("check_target", "203.0.113.5:4433"), ("check_interval", "1s"), ("check_timeout", "2s")];
        let daemon = Daemon::start(&lab, &uci(Family::V4, method).outbound(&options));
        let state = |wanted: &str| {
            daemon.status_until(wanted, |status| {
                status.list("outbounds").iter().any(|o| o.text("name") == "out" && o.text("state") == wanted)
            });
        };
        answer_checks(&target);
        answer_checks(&target);
        state("up");
        // a server that lives without its target is of no use
        drop(target);
        let line = daemon.process().wait_for_line(&["outbound 'out' is down", "check"]);
        assert!(line.contains("request"), "{line}");
        let target = listen(&lab.server, Family::V4.destination(5), 4_433);
        answer_checks(&target);
        answer_checks(&target);
        state("up");
    }
}

#[test]
fn a_check_with_another_password_is_none() {
    let lab = Lab::new();
    let _server = libev(&lab, Family::V4, (OLD[0].0, "not the secret"));
    let _target = listen(&lab.server, Family::V4.destination(5), 4_433);
    let options = [("check_target", "203.0.113.5:4433"), ("check_interval", "1s"), ("check_timeout", "500ms")];
    let daemon = Daemon::start(&lab, &uci(Family::V4, OLD[0]).outbound(&options));
    daemon.process().wait_for_line(&["outbound 'out' is down", "check", "request"]);
}

#[test]
fn a_server_that_sends_rubbish_is_named_and_the_client_reset() {
    let lab = Lab::new();
    let server = listen(&lab.server, Family::V4.proxy(), PORT);
    let daemon = Daemon::start(&lab, &uci(Family::V4, NEW[0]));
    let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
    let mut far = accept(&server);
    far.write_all(&[1; 500]).expect("send");
    expect_reset(&mut client);
    daemon.process().wait_for_line(&["198.51.100.2:8388", "not encrypted with our password and method"]);
    daemon.wait_idle();
}

//! `option spare`: connections to servers that are opened before anybody needs them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::process::TempDir;
use crate::proxies::{HTTP_PORT, tinyproxy};
use crate::sock::{PATIENCE, accept, connect, exchange, listen, read_all, read_n, receive, udp};
use crate::socks::{Asked, Manners, Socks, Stage};

const PORT: u16 = 1_080;

fn uci(kind: &str, more: &[(&str, &str)]) -> Uci {
    let (server, port) = (Family::V4.proxy().to_string(), PORT.to_string());
    Uci::new(kind).outbound(&[("server", &server), ("port", &port), ("spare", "1")]).outbound(more)
}

fn server(lab: &Lab) -> TcpListener {
    listen(&lab.server, Family::V4.proxy(), PORT)
}

/// A field of the outbound's `spare`.
fn spare(status: &Json, field: &str) -> u64 {
    let out = status.list("outbounds").iter().position(|outbound| outbound.text("name") == "out").expect("listed");
    status.number(&format!("outbounds.{out}.spare.{field}"))
}

fn until_ready(daemon: &Daemon, count: u64) {
    daemon.status_until("spares stand", |status| spare(status, "ready") == count);
}

/// Waits for the end of a connection that nobody writes to.
fn expect_end(stream: &mut TcpStream) {
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("expected an end, got {other:?}"),
    }
}

#[test]
fn a_connection_and_an_association_find_greeting_and_password_behind_them() {
    let lab = Lab::new();
    let manners = Manners { login: Some(("me", "secret")), ..Manners::default() };
    let socks = Socks::start(&lab.server, Family::V4.proxy(), PORT, manners);
    let daemon = Daemon::start(&lab, &uci("socks5", &[("username", "me"), ("password", "secret"), ("spare", "2")]));
    until_ready(&daemon, 2);
    let before = socks.asked();
    let came = before.iter().filter(|asked| matches!(asked, Asked::Came(_))).count();
    let logins = before.iter().filter(|asked| matches!(asked, Asked::Login(..))).count();
    assert_eq!((came, logins, before.len()), (2, 2, 4), "{before:?}");
    // of three round trips (connect, greeting, password) none is left
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    exchange(&mut connect(&lab.client, to), &mut accept(&listener), b"ask", b"answer");
    let next = socks.find(|asked| (!matches!(asked, Asked::Came(_) | Asked::Login(..))).then_some(asked));
    assert_eq!(next, Asked::Connect(to));
    until_ready(&daemon, 2);
    let status = daemon.status();
    assert_eq!((spare(&status, "used"), spare(&status, "missing"), spare(&status, "lost")), (1, 0, 0));
    assert!(daemon.command("metrics", &[]).contains("tproxyd_outbound_spare_used_total{outbound=\"out\"} 1\n"));
    // the association, too
    let client = udp(&lab.client, Family::V4.client(), 0);
    let far = udp(&lab.server, Family::V4.destination(1), 4_000);
    client.send_to(b"hello", far.local_addr().expect("bound")).expect("send");
    assert_eq!(receive(&far).0, b"hello");
    assert_eq!(spare(&daemon.status(), "used"), 2);
    daemon.stop();
}

/// The one connection on which a server hears of a client was there before it.
#[test]
fn servers_of_every_type_hear_the_client_over_a_connection_that_stood_before() {
    let key = ("password", "AAECAwQFBgcICQoLDA0ODw==");
    for (kind, more, begin) in [
        ("http", vec![], &b"CONNECT 203.0.113.1:80 HTTP/1.1\r\n"[..]),
        ("forward", vec![], b"hello"),
        ("forward", vec![("send_proxy", "v1")], b"PROXY TCP4 192.168.1.2 203.0.113.1 "),
        ("shadowsocks", vec![("method", "aes-128-gcm"), ("password", "x")], b""),
        ("shadowsocks", vec![("method", "2022-blake3-aes-128-gcm"), key], b""),
    ] {
        if kind == "shadowsocks" && !cfg!(feature = "shadowsocks") {
            continue;
        }
        let lab = Lab::new();
        let server = server(&lab);
        let daemon = Daemon::start(&lab, &uci(kind, &more));
        let mut far = accept(&server);
        until_ready(&daemon, 1);
        let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
        client.write_all(b"hello").expect("send");
        // of what is encrypted: the salt and a tag
        let said = read_n(&mut far, if begin.is_empty() { 32 } else { begin.len() });
        assert!(begin.is_empty() || said == begin, "{kind}: {said:?}");
        let _replacement = accept(&server);
        assert_eq!(spare(&daemon.status(), "used"), 1, "{kind}");
    }
}

#[test]
fn a_real_proxy_serves_clients_over_spares_and_without() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let _proxy = tinyproxy(&lab, &files, Family::V4, HTTP_PORT, "");
    let daemon = Daemon::start(&lab, &uci("http", &[("port", "3128"), ("spare", "3")]));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    until_ready(&daemon, 3);
    for _ in 0..20 {
        let (mut client, mut far) = (connect(&lab.client, to), accept(&listener));
        exchange(&mut client, &mut far, b"ask", b"answer");
        far.write_all(&[9; 100_000]).expect("send");
        far.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(read_all(&mut client), [9; 100_000]);
    }
    until_ready(&daemon, 3);
    let status = daemon.status();
    assert_eq!(spare(&status, "used") + spare(&status, "missing"), 20);
    assert_eq!(status.number("tcp.total"), 20);
}

#[test]
fn a_server_that_speaks_first_is_heard_when_a_client_comes() {
    let lab = Lab::new();
    let server = server(&lab);
    let daemon = Daemon::start(&lab, &uci("forward", &[]));
    let mut far = accept(&server);
    far.write_all(b"220 welcome").expect("send");
    until_ready(&daemon, 1);
    let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 25));
    assert_eq!(read_n(&mut client, 11), b"220 welcome");
    exchange(&mut client, &mut far, b"ask", b"answer");
}

#[test]
fn a_spare_that_the_server_ends_is_noticed_and_replaced() {
    for kind in ["forward", "http"] {
        let lab = Lab::new();
        let server = server(&lab);
        let daemon = Daemon::start(&lab, &uci(kind, &[]));
        drop(accept(&server));
        let mut second = accept(&server);
        daemon.status_until("one is lost, and one stands", |status| {
            (spare(status, "lost"), spare(status, "ready")) == (1, 1)
        });
        let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
        client.write_all(b"hello").expect("send");
        assert!([b'h', b'C'].contains(&read_n(&mut second, 1)[0]), "it goes by the second");
    }
}

#[test]
fn a_server_that_ends_them_at_once_is_left_alone_longer_and_longer() {
    let lab = Lab::new();
    let server = server(&lab);
    let _daemon = Daemon::start(&lab, &uci("forward", &[]));
    drop(accept(&server));
    let begin = Instant::now();
    drop(accept(&server));
    drop(accept(&server));
    assert!(begin.elapsed() >= Duration::from_millis(2_500), "a second, then two: {:?}", begin.elapsed());
}

#[test]
fn a_spare_that_died_unnoticed_costs_the_client_nothing() {
    let lab = Lab::new();
    // it takes the request of a connection that has waited for its end
    let manners = Manners { dies_at: Some(Stage::Request), ..Manners::default() };
    let socks = Socks::start(&lab.server, Family::V4.proxy(), PORT, manners);
    let daemon = Daemon::start(&lab, &uci("socks5", &[]));
    until_ready(&daemon, 1);
    socks.become_like(Manners::default());
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let (mut client, mut far) = (connect(&lab.client, listener.local_addr().expect("bound")), accept(&listener));
    exchange(&mut client, &mut far, b"ask", b"answer");
    let status = daemon.status();
    assert_eq!((spare(&status, "used"), spare(&status, "lost")), (1, 1));
    assert_eq!(status.number("problem_count"), 0, "nothing to warn of");
}

#[test]
fn where_all_are_taken_connections_open_their_own_and_are_counted() {
    let lab = Lab::new();
    let manners = Manners { waits: Duration::from_secs(1), ..Manners::default() };
    let _socks = Socks::start(&lab.server, Family::V4.proxy(), PORT, manners);
    let daemon = Daemon::start(&lab, &uci("socks5", &[("spare", "2")]));
    until_ready(&daemon, 2);
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let mut clients: Vec<_> = (0..8).map(|_| connect(&lab.client, to)).collect();
    for client in &mut clients {
        client.write_all(b"x").expect("send");
    }
    thread::scope(|scope| {
        for _ in 0..8 {
            let mut far = accept(&listener);
            scope.spawn(move || {
                let octet = read_n(&mut far, 1);
                far.write_all(&octet).expect("answer");
            });
        }
    });
    assert!(clients.iter_mut().all(|client| read_n(client, 1) == b"x"));
    let status = daemon.status();
    let (used, missing) = (spare(&status, "used"), spare(&status, "missing"));
    assert!(used >= 2 && missing >= 1 && used + missing == 8, "{used} used, {missing} missing");
}

#[test]
fn spares_are_replaced_before_servers_tire_of_them() {
    let lab = Lab::new();
    let server = server(&lab);
    let daemon = Daemon::start(&lab, &uci("forward", &[]));
    let mut first = accept(&server);
    first.set_read_timeout(Some(2 * PATIENCE)).expect("SO_RCVTIMEO");
    expect_end(&mut first);
    let _second = accept(&server);
    until_ready(&daemon, 1);
    assert_eq!(spare(&daemon.status(), "lost"), 0);
}

#[test]
fn a_reload_ends_those_of_an_outbound_that_has_changed_and_keeps_the_others() {
    let lab = Lab::new();
    let (server, elsewhere) = (server(&lab), listen(&lab.server, Family::V4.proxy(), PORT + 1));
    let daemon = Daemon::start(&lab, &uci("forward", &[]));
    let mut first = accept(&server);
    until_ready(&daemon, 1);
    daemon.write_config(&uci("forward", &[("idle_timeout", "1h"), ("spare", "2")]));
    daemon.reload(&["reloaded"]);
    let mut second = accept(&server);
    until_ready(&daemon, 2);
    daemon.write_config(&uci("forward", &[("port", "1081")]));
    daemon.reload(&["reloaded"]);
    expect_end(&mut first);
    expect_end(&mut second);
    let mut third = accept(&elsewhere);
    until_ready(&daemon, 1);
    daemon.write_config(&uci("forward", &[("port", "1081"), ("spare", "0")]));
    daemon.reload(&["reloaded"]);
    expect_end(&mut third);
}

#[test]
fn those_that_are_bound_to_an_address_that_goes_are_opened_anew_from_the_next() {
    let lab = Lab::new();
    let server = server(&lab);
    let daemon = Daemon::start(&lab, &uci("forward", &[]));
    let first = accept(&server);
    assert_eq!(first.peer_addr().expect("connected").ip(), Family::V4.router_wan());
    until_ready(&daemon, 1);
    let commands = "addr del 198.51.100.1/24 dev wan0\naddr add 198.51.100.9/24 dev wan0\n\
                    route replace 0.0.0.0/0 via 198.51.100.2 dev wan0 onlink\n";
    lab.router.tool("ip", &["-batch", "-"], commands);
    let mut second = loop {
        let next = accept(&server);
        if next.peer_addr().expect("connected").ip() != Family::V4.router_wan() {
            break next;
        }
    };
    let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
    exchange(&mut client, &mut second, b"ask", b"answer");
}

//! `http`: TCP through HTTP proxies by CONNECT.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use crate::chance::Chance;
use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::proxies::{HTTP_PORT, haproxy_before_tinyproxy, squid, tinyproxy};
use crate::sock::{accept, connect, exchange, listen, read_all, read_n, refusal, udp};

fn uci(family: Family, more: &[(&str, &str)]) -> Uci {
    let (server, port) = (family.proxy().to_string(), HTTP_PORT.to_string());
    Uci::new("http").outbound(&[("server", &server), ("port", &port)]).outbound(more)
}

const MEGABYTES: usize = 10 << 20;

/// Ten megabytes each way at once through a proxy, to servers of both families.
fn ten_megabytes(lab: &Lab) {
    let mut chance = Chance::new();
    let (up, down) = (chance.octets(MEGABYTES), chance.octets(MEGABYTES));
    for family in Family::BOTH {
        let listener = listen(&lab.server, family.destination(80), 0);
        let (mut client, mut server) = (connect(&lab.client, listener.local_addr().expect("bound")), accept(&listener));
        let (mut from_client, mut from_server) = (client.try_clone().expect("dup"), server.try_clone().expect("dup"));
        thread::scope(|scope| {
            scope.spawn(|| from_client.write_all(&up).expect("send"));
            scope.spawn(|| from_server.write_all(&down).expect("send"));
            let arrived = scope.spawn(|| read_n(&mut server, MEGABYTES));
            assert!(read_n(&mut client, MEGABYTES) == down, "what came down is not what was sent");
            assert!(arrived.join().expect("no panic") == up, "what came up is not what was sent");
        });
    }
}

/// What every proxy of other people must do.
fn all_is_well_through(start: impl Fn(&Lab, &TempDir, Family) -> Option<Vec<Process>>) {
    for family in Family::BOTH {
        let (lab, files) = (Lab::new(), TempDir::new());
        let Some(_proxy) = start(&lab, &files, family) else { return };
        let daemon = Daemon::start(&lab, &uci(family, &[]));
        ten_megabytes(&lab);
        assert_eq!(refusal(&lab.client, SocketAddr::new(family.destination(9), 9)), ErrorKind::ConnectionReset);
        daemon.process().wait_for_line(&["status 50", "via 'out'"]);
        // a server that ends is told to the client, and what it sent before arrives
        let listener = listen(&lab.server, family.destination(80), 0);
        let (mut client, mut server) = (connect(&lab.client, listener.local_addr().expect("bound")), accept(&listener));
        exchange(&mut client, &mut server, b"ask", b"answer");
        server.write_all(&[9; 100_000]).expect("send");
        drop(server);
        assert_eq!(read_all(&mut client), [9; 100_000]);
        drop(client);
        daemon.wait_idle();
    }
}

#[test]
fn all_is_well_through_tinyproxy() {
    all_is_well_through(|lab, files, family| Some(vec![tinyproxy(lab, files, family, HTTP_PORT, "")]));
}

#[test]
fn all_is_well_through_haproxy() {
    all_is_well_through(|lab, files, family| Some(haproxy_before_tinyproxy(lab, files, family).into()));
}

#[test]
fn all_is_well_through_squid() {
    all_is_well_through(|lab, files, family| Some(vec![squid(lab, files, family, "")?]));
}

#[test]
fn tinyproxy_with_a_password_lets_the_right_one_in_alone() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let _proxy = tinyproxy(&lab, &files, Family::V4, HTTP_PORT, "BasicAuth me secret");
    let login = |password| uci(Family::V4, &[("username", "me"), ("password", password)]);
    let daemon = Daemon::start(&lab, &login("secret"));
    let listener = listen(&lab.server, Family::V4.destination(80), 80);
    let at = listener.local_addr().expect("bound");
    let (mut client, mut server) = (connect(&lab.client, at), accept(&listener));
    exchange(&mut client, &mut server, b"ask", b"answer");
    daemon.stop();
    for (uci, words) in [(login("wrong"), "does not take username"), (uci(Family::V4, &[]), "demands username")] {
        let daemon = Daemon::start(&lab, &uci);
        assert_eq!(refusal(&lab.client, at), ErrorKind::ConnectionReset);
        daemon.process().wait_for_line(&["198.51.100.2:3128", words]);
        daemon.stop();
    }
}

/// A proxy that answers each request by these pieces, one write each, and then by what the client sends.
fn answering(lab: &Lab, pieces: &'static [&'static [u8]]) -> thread::JoinHandle<String> {
    let listener: TcpListener = listen(&lab.server, Family::V4.proxy(), HTTP_PORT);
    thread::spawn(move || {
        let mut client = accept(&listener);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.extend(read_n(&mut client, 1));
        }
        for piece in pieces {
            // a client that has given up is what some tests make of it
            let _ = client.write_all(piece);
        }
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        let _ = client.write_all(&rest);
        String::from_utf8(request).expect("text")
    })
}

#[test]
fn answers_of_any_legal_shape_open_the_tunnel_and_its_first_bytes_are_kept() {
    let shapes: [&'static [&'static [u8]]; 4] = [
        &[b"HTTP/1.1 200 OK\r\n\r\n220 welcome"],
        &[b"HTTP/1.0 200\n\n220 wel", b"come"],
        &[b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n", b"\r\n220 welcome"],
        &[b"H", b"TTP/1.1 2", b"99 \r\nX: y\r", b"\n\r", b"\n2", b"20 welcome"],
    ];
    for pieces in shapes {
        let lab = Lab::new();
        let proxy = answering(&lab, pieces);
        let _daemon = Daemon::start(&lab, &uci(Family::V4, &[]));
        let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
        assert_eq!(read_n(&mut client, 11), b"220 welcome");
        client.write_all(b"echo").expect("send");
        client.shutdown(std::net::Shutdown::Write).expect("half-close");
        assert_eq!(read_all(&mut client), b"echo");
        proxy.join().expect("the proxy ends");
    }
}

#[test]
fn answers_that_are_none_reset_the_client_and_name_server_and_step() {
    const LONG: &[u8] = &[b'x'; 20_000];
    let shapes: [(&'static [&'static [u8]], &str); 6] = [
        (&[b"SSH-2.0-OpenSSH_9.2\r\n"], "no HTTP proxy"),
        (&[b"HTTP/2 200\r\n\r\n"], "HTTP/2"),
        (&[b"HTTP/1.1 403 Forbidden\r\n\r\n"], "403 (forbidden)"),
        (&[b"HTTP/1.1 302 Found\r\n\r\n"], "status 302"),
        (&[b"HTTP/1.1 200 OK\r\nX: ", LONG], "more than 16384 bytes"),
        (&[b"HTTP/1.1 200 OK\r\n"], "no answer within 1 s to the request"),
    ];
    for (pieces, words) in shapes {
        let lab = Lab::new();
        let _proxy = answering(&lab, pieces);
        let daemon = Daemon::start(&lab, &uci(Family::V4, &[("connect_timeout", "1s")]));
        let to = SocketAddr::new(Family::V4.destination(1), 80);
        assert_eq!(refusal(&lab.client, to), ErrorKind::ConnectionReset);
        daemon.process().wait_for_line(&["198.51.100.2:3128", words]);
        daemon.wait_idle();
    }
}

#[test]
fn with_send_domain_the_proxy_is_asked_for_the_name() {
    for (asked, said) in [("Host: www.example", "CONNECT www.example:80 "), ("X: y", "CONNECT 203.0.113.1:80 ")] {
        let lab = Lab::new();
        let proxy = answering(&lab, &[b"HTTP/1.1 200 OK\r\n\r\n"]);
        let _daemon = Daemon::start(&lab, &uci(Family::V4, &[("send_domain", "1")]));
        let mut client = connect(&lab.client, SocketAddr::new(Family::V4.destination(1), 80));
        let ask = format!("GET / HTTP/1.1\r\n{asked}\r\n\r\n");
        client.write_all(ask.as_bytes()).expect("send");
        client.shutdown(std::net::Shutdown::Write).expect("half-close");
        assert_eq!(read_all(&mut client), ask.as_bytes(), "what was looked at is passed on");
        assert!(proxy.join().expect("the proxy ends").starts_with(said));
    }
}

#[test]
fn udp_is_refused_at_once_so_that_quic_falls_back() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab, &uci(family, &[]));
        let client = udp(&lab.client, family.client(), 0);
        client.connect(SocketAddr::new(family.destination(1), 443)).expect("connect");
        client.send(b"quic").expect("send");
        assert_eq!(client.recv(&mut [0; 1]).expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    }
}

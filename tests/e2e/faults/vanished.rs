//! Peers that are gone without a word: a device that leaves the house, a server whose line is cut.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use super::{Exit, Ground};
use crate::lab::Family;
use crate::ns::Namespace;
use crate::over_exits;
use crate::sock::{exchange, receive, reset, udp};

/// Nothing comes in any more, and nothing gets out.
fn cut_off(ns: &Namespace) {
    ns.tool("nft", &["-f", "-"], NOTHING);
}

const NOTHING: &str = "
table inet nothing {
    chain input { type filter hook input priority -300; policy drop; }
    chain output { type filter hook output priority -300; policy drop; }
}
";

/// It hears of an end, of whatever kind.
fn hears_of_the_end(stream: &mut TcpStream) {
    match stream.read(&mut [0; 1]) {
        Ok(0) => (),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => (),
        other => panic!("expected an end, got {other:?}"),
    }
}

over_exits!(a_client_that_vanishes_is_given_up_and_the_server_hears_of_it, |exit| {
    let ground = Ground::impatient(exit);
    let descriptors = ground.daemon.descriptors();
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    cut_off(&ground.lab.client);
    hears_of_the_end(&mut server);
    ground.wait_clean(descriptors);
});

over_exits!(a_server_that_vanishes_is_given_up_and_the_client_hears_of_it, |exit| {
    let ground = Ground::impatient(exit);
    let descriptors = ground.daemon.descriptors();
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    socket.send_to(b"hello", at).expect("send");
    cut_off(&ground.lab.server);
    hears_of_the_end(&mut client);
    ground.wait_clean(descriptors);
});

over_exits!(both_ends_that_reset_at_once_leave_nothing_behind, |exit| {
    let ground = Ground::new(exit, |uci| uci);
    let descriptors = ground.daemon.descriptors();
    let (listener, at) = ground.listen();
    for _ in 0..20 {
        let (mut client, mut server) = ground.join(&listener, at);
        exchange(&mut client, &mut server, b"ask", b"answer");
        std::thread::scope(|scope| {
            scope.spawn(|| reset(client));
            scope.spawn(|| reset(server));
        });
    }
    ground.wait_clean(descriptors);
});

/// Who vanishes while nothing is said is found out by keep-alive, long before `idle_timeout`.
#[test]
fn the_clients_end_is_asked_by_keep_alive_whether_it_lives() {
    let ground = Ground::new(Exit::Direct, |uci| uci);
    let (listener, at) = ground.listen();
    let (mut client, mut server) = ground.join(&listener, at);
    exchange(&mut client, &mut server, b"ask", b"answer");
    let port = format!(":{} ", client.local_addr().expect("connected").port());
    let sockets = ground.lab.router.tool("ss", &["-Htno"], "");
    let near = sockets
        .lines()
        .find(|line| line.contains("192.168.1.2") && line.contains(&port))
        .unwrap_or_else(|| panic!("no {port}in:\n{sockets}"));
    assert!(near.contains("timer:(keepalive,"), "{near}");
}

#[test]
fn a_flow_whose_server_vanishes_ends_and_its_port_serves_again() {
    let ground = Ground::impatient(Exit::Direct);
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    let server = udp(&ground.lab.server, Family::V4.destination(7), 4_000);
    let at = server.local_addr().expect("bound");
    socket.send_to(b"one", at).expect("send");
    receive(&server);
    cut_off(&ground.lab.server);
    socket.send_to(b"lost", at).expect("send");
    ground.daemon.wait_idle();
    ground.lab.server.tool("nft", &["delete", "table", "inet", "nothing"], "");
    socket.send_to(b"two", at).expect("send");
    let (asked, from) = receive(&server);
    assert_eq!(asked, b"two");
    server.send_to(b"answer", from).expect("answer");
    assert_eq!(receive(&socket), (b"answer".to_vec(), at));
}

//! Clients that want more than their share.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use crate::lab::Family;
use crate::ns::Namespace;
use crate::passage::{Passage, Way};
use crate::sock::{accept, exchange, receive, try_connect, udp};

#[test]
fn a_client_that_opens_everything_gets_its_quota_and_the_others_are_served() {
    const QUOTA: usize = 24;
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| {
        let tables = [("tcp_sessions", "32"), ("udp_sessions", "32"), ("client_sessions", "24"), ("log_level", "info")];
        uci.globals(&tables).listener(&[("device", "lan0 lan1")])
    });
    let (lab, daemon) = (&passage.lab, passage.daemon());
    let other = lab.second_client();
    let (listener, at) = passage.listen();
    let echo = udp(&lab.server, Family::V4.destination(7), 4_000);

    let mut served: Vec<(TcpStream, TcpStream)> = Vec::new();
    for n in 0..QUOTA + 16 {
        let client = try_connect(&lab.client, at);
        if n < QUOTA {
            served.push((client.expect("within its quota"), accept(&listener)));
        } else {
            let ended = client.and_then(|mut client| client.read(&mut [0; 1])).map_err(|e| e.kind());
            assert_eq!(ended, Err(ErrorKind::ConnectionReset), "connection {n} of {QUOTA}");
        }
    }
    // flows count as well
    let sockets: Vec<UdpSocket> = (0..16).map(|_| udp(&lab.client, Family::V4.client(), 0)).collect();
    for socket in &sockets {
        socket.send_to(b"more", echo.local_addr().expect("bound")).expect("send");
    }
    let status = daemon.status_until("all of them are refused", |status| status.number("drops.client_sessions") == 32);
    let held = ["tcp.active", "udp.active", "tcp.refused", "udp.refused"].map(|what| status.number(what));
    assert_eq!(held, [QUOTA as u64, 0, 16, 16], "{status}");
    daemon.process().wait_for_line(&["192.168.1.2", "client_sessions"]);

    // another has room for its own, and is answered
    let join = |ns: &Namespace, to: SocketAddr| {
        let client = try_connect(ns, to).expect("another client is served");
        (client, accept(&listener))
    };
    for _ in 0..4 {
        let (mut client, mut server) = join(&other, at);
        exchange(&mut client, &mut server, b"mine", b"yours");
        let socket = udp(&other, Family::V4.second_client(), 0);
        socket.send_to(b"ask", echo.local_addr().expect("bound")).expect("send");
        let (ask, from) = receive(&echo);
        assert_eq!(ask, b"ask", "nothing of the first client's arrives");
        echo.send_to(b"answer", from).expect("answer");
        assert_eq!(receive(&socket).0, b"answer");
    }
    // and what the first gives back it may take again
    served.iter_mut().for_each(|(client, server)| exchange(client, server, b"still", b"here"));
    drop(served.split_off(QUOTA / 2));
    let half = QUOTA as u64 / 2;
    daemon.status_until("half of them have ended", |status| status.number("tcp.active") == half);
    let (mut client, mut server) = join(&lab.client, at);
    exchange(&mut client, &mut server, b"once", b"more");
    client.write_all(b"!").expect("send");
    drop((client, server, served));
    daemon.status_until("all connections have ended", |status| status.number("tcp.active") == 0);
}

//! `device` and `fwmark`: which of two lines an outbound's packets leave by, for every type.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::sock::{accept, connect, listen, read_n, receive, udp};

const PORT: u16 = 8_000;

/// The router's address on its second line.
fn second(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 18, 0, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1].into(),
    }
}

/// A second line to the same server, which nobody takes by itself: as a route of a worse metric, and in a table for a mark.
fn lab() -> Lab {
    let lab = Lab::new();
    let cable = format!(
        "link add wan1 type veth peer name eth1 netns {}\naddr add 198.18.0.1/24 dev wan1\n\
         addr add 2001:db8:2::1/64 dev wan1 nodad\nlink set wan1 up\n",
        lab.server.path()
    );
    lab.router.tool("ip", &["-batch", "-"], &cable);
    let far = "addr add 198.18.0.2/24 dev eth1\naddr add 2001:db8:2::2/64 dev eth1 nodad\nlink set eth1 up\n";
    lab.server.tool("ip", &["-batch", "-"], far);
    let routes = "route add default via 198.18.0.2 dev wan1 metric 4000\n\
                  route add ::/0 via 2001:db8:2::2 dev wan1 metric 4000\n\
                  route add default via 198.18.0.2 dev wan1 table 100\n\
                  route add ::/0 via 2001:db8:2::2 dev wan1 table 100\n\
                  rule add pref 900 fwmark 0x10000/0xff0000 lookup 100\n\
                  -6 rule add pref 900 fwmark 0x10000/0xff0000 lookup 100\n";
    // `ip -batch` takes no family in its lines
    for line in routes.lines().map(str::trim) {
        lab.router.tool("ip", &line.split(' ').collect::<Vec<_>>(), "");
    }
    lab
}

/// From where the server of an outbound hears of a client's connection and of its datagram, if it carries those.
fn heard(lab: &Lab, family: Family, kind: &str) -> Vec<IpAddr> {
    let at = if kind == "direct" { family.destination(1) } else { family.proxy() };
    let (listener, socket) = (listen(&lab.server, at, PORT), udp(&lab.server, at, PORT));
    let to = SocketAddr::new(family.destination(1), PORT);
    let mut client = connect(&lab.client, to);
    client.write_all(b"hello").expect("send");
    let mut from = vec![accept(&listener).peer_addr().expect("connected").ip()];
    let client = udp(&lab.client, family.client(), 0);
    if kind != "http" {
        client.send_to(b"hello", to).expect("send");
    }
    if kind == "socks5" {
        let mut control = accept(&listener);
        assert_eq!(read_n(&mut control, 3), [5, 1, 0]);
        control.write_all(&[5, 0]).expect("answer");
        read_n(&mut control, 10);
        let [high, low] = PORT.to_be_bytes();
        control.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, high, low]).expect("answer");
        from.push(control.peer_addr().expect("connected").ip());
        from.push(receive(&socket).1.ip());
    } else if kind != "http" {
        from.push(receive(&socket).1.ip());
    }
    from
}

/// Every type by the line that these options name.
fn every_type_leaves_by(options: &[(&str, &str)], line: fn(Family) -> IpAddr) {
    for kind in ["direct", "forward", "http", "socks5", "shadowsocks"] {
        if kind == "shadowsocks" && !cfg!(feature = "shadowsocks") {
            continue;
        }
        let lab = lab();
        for family in Family::BOTH {
            let (server, port) = (family.proxy().to_string(), PORT.to_string());
            let mut config = Uci::new(kind).outbound(options);
            if kind != "direct" {
                config = config.outbound(&[("server", &server), ("port", &port)]);
            }
            if kind == "shadowsocks" {
                config = config.outbound(&[("method", "chacha20-ietf-poly1305"), ("password", "secret")]);
            }
            let daemon = Daemon::start(&lab, &config);
            let from = heard(&lab, family, kind);
            assert!(from.iter().all(|ip| *ip == line(family)), "{kind}: {from:?}");
            daemon.stop();
        }
    }
}

#[test]
fn every_type_leaves_by_the_device_that_it_names() {
    every_type_leaves_by(&[("device", "wan1")], second);
}

#[test]
fn every_type_leaves_by_the_line_that_its_mark_is_routed_to() {
    every_type_leaves_by(&[("fwmark", "0x10000/0xff0000")], second);
}

#[test]
fn every_type_leaves_by_the_best_route_otherwise() {
    every_type_leaves_by(&[], Family::router_wan);
}

#[test]
fn a_device_that_is_not_there_resets_the_client_and_is_named() {
    let lab = lab();
    let daemon = Daemon::start(&lab, &Uci::new("direct").outbound(&[("device", "wan7")]));
    let to = SocketAddr::new(Family::V4.destination(1), PORT);
    assert_eq!(crate::sock::refusal(&lab.client, to), std::io::ErrorKind::ConnectionReset);
    daemon.process().wait_for_line(&["bind to its device"]);
}

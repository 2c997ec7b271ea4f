//! Outbounds that carry no UDP, because they can't, shall not, or turn out not to: where it goes then.

use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::sock::{receive, udp};
use crate::socks::{Manners, Socks};

const TYPES: [&str; 6] = ["direct", "forward", "http", "socks5", "shadowsocks", "group"];

/// An outbound `out` of this type that shall carry no UDP.
fn without(kind: &str, family: Family, more: &[(&str, &str)]) -> Uci {
    let server = family.proxy().to_string();
    let served = [("server", &*server), ("port", "1080")];
    let uci = Uci::new(kind).outbound(&[("udp", "0")]).outbound(more);
    match kind {
        "direct" => uci,
        "group" => uci.outbound(&[("member", "one")]).section(&format!(
            "config outbound 'one'\n\toption type 'socks5'\n\toption server '{server}'\n\toption port '1080'\n"
        )),
        "shadowsocks" => uci.outbound(&served).outbound(&[("method", "aes-128-gcm"), ("password", "secret")]),
        _ => uci.outbound(&served),
    }
}

fn types() -> impl Iterator<Item = &'static str> {
    TYPES.into_iter().filter(|kind| *kind != "shadowsocks" || cfg!(feature = "shadowsocks"))
}

#[test]
fn every_type_that_shall_carry_no_udp_refuses_it_at_once() {
    for family in Family::BOTH {
        let lab = Lab::new();
        for kind in types() {
            let daemon = Daemon::start(&lab, &without(kind, family, &[]));
            let client = udp(&lab.client, family.client(), 0);
            client.connect(SocketAddr::new(family.destination(1), 443)).expect("connect");
            client.send(b"quic").expect("send");
            assert_eq!(client.recv(&mut [0; 1]).expect_err("refused").kind(), ErrorKind::ConnectionRefused, "{kind}");
            daemon.stop();
        }
    }
}

#[test]
fn every_type_that_shall_carry_no_udp_leaves_it_to_udp_outbound() {
    let lab = Lab::new();
    for (n, kind) in types().enumerate() {
        let family = Family::BOTH[n % 2];
        let daemon = Daemon::start(&lab, &without(kind, family, &[("udp_outbound", "direct")]));
        let server = udp(&lab.server, family.destination(1), 4_000);
        let client = udp(&lab.client, family.client(), 0);
        client.send_to(b"ask", server.local_addr().expect("bound")).expect("send");
        let (arrived, from) = receive(&server);
        assert_eq!((arrived.as_slice(), from.ip()), (&b"ask"[..], family.router_wan()), "{kind}");
        server.send_to(b"answer", from).expect("answer");
        assert_eq!(receive(&client).0, b"answer");
        daemon.stop();
    }
}

#[test]
fn a_proxy_that_turns_out_to_carry_no_udp_has_it_refused_at_once_from_then_on() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let manners = Manners { refuses: Some(7), ..Manners::default() };
        let _socks = Socks::start(&lab.server, family.proxy(), 1_080, manners);
        let daemon = Daemon::start(&lab, &without("socks5", family, &[("udp", "1")]));
        let to = SocketAddr::new(family.destination(1), 443);
        udp(&lab.client, family.client(), 0).send_to(b"the first finds it out", to).expect("send");
        daemon.process().wait_for_line(&["'out' carries no UDP"]);
        daemon.wait_idle();
        let client = udp(&lab.client, family.client(), 0);
        client.connect(to).expect("connect");
        client.send(b"quic").expect("send");
        assert_eq!(client.recv(&mut [0; 1]).expect_err("refused").kind(), ErrorKind::ConnectionRefused);
    }
}

//! `forward`: everything goes to a fixed server, which may be told client and original destination.

use std::io::Write;
use std::net::SocketAddr;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::proxies::{at, haproxy, nginx};
use crate::sock::{accept, connect, exchange, listen, read_all, receive, udp};

fn uci(family: Family, port: u16, more: &[(&str, &str)]) -> Uci {
    let server = [("server", family.proxy().to_string()), ("port", port.to_string())];
    let server: Vec<_> = server.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Uci::new("forward").outbound(&server).outbound(more)
}

/// What a server that answers a GET with what it was told says to a client that calls `to`, and the client's address.
fn told(lab: &Lab, to: SocketAddr) -> (String, SocketAddr) {
    let mut client = connect(&lab.client, to);
    client.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").expect("send");
    let answer = String::from_utf8(read_all(&mut client)).expect("text");
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_else(|| panic!("no answer, but {answer:?}")).trim().to_owned();
    (body, client.local_addr().expect("bound"))
}

#[test]
fn a_connection_to_anywhere_reaches_the_fixed_server_of_either_family() {
    for (family, server) in [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6)] {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab, &uci(server, 8_000, &[]));
        let listener = listen(&lab.server, server.proxy(), 8_000);
        let (mut client, mut server) = (connect(&lab.client, at(family.silent(), 80)), accept(&listener));
        exchange(&mut client, &mut server, b"ask", b"answer");
        client.shutdown(std::net::Shutdown::Write).expect("half-close");
        assert_eq!(read_all(&mut server), b"");
        server.write_all(&[7; 1_000_000]).expect("send after the client's end");
        drop(server);
        assert_eq!(read_all(&mut client).len(), 1_000_000);
    }
}

#[test]
fn haproxy_learns_client_and_original_destination_from_both_versions() {
    for (family, version) in [(Family::V4, "v1"), (Family::V6, "v1"), (Family::V4, "v2"), (Family::V6, "v2")] {
        let (lab, files) = (Lab::new(), TempDir::new());
        let text = format!(
            "defaults\n mode http\n timeout client 60s\nfrontend told\n bind {} accept-proxy\n \
             http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n",
            at(family.proxy(), 8_000)
        );
        let _server = haproxy(&lab, &files, family, 8_000, &text);
        let _daemon = Daemon::start(&lab, &uci(family, 8_000, &[("send_proxy", version)]));
        let to = at(family.silent(), 4_433);
        let (body, from) = told(&lab, to);
        assert_eq!(body, format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port()));
    }
}

#[test]
fn nginx_learns_client_and_original_destination_from_both_versions() {
    for (family, version) in [(Family::V4, "v1"), (Family::V6, "v2")] {
        let (lab, files) = (Lab::new(), TempDir::new());
        let http = format!(
            "server {{ listen {} proxy_protocol; location / {{ return 200 \
             '$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port'; }} }}",
            at(family.proxy(), 8_000)
        );
        let _server = nginx(&lab, &files, family, 8_000, &http);
        let _daemon = Daemon::start(&lab, &uci(family, 8_000, &[("send_proxy", version)]));
        let to = at(family.silent(), 4_433);
        let (body, from) = told(&lab, to);
        assert_eq!(body, format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port()));
    }
}

#[test]
fn datagrams_to_two_destinations_reach_the_server_apart_and_its_answers_come_from_each() {
    for (family, server_family) in [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V6, Family::V4)] {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, &uci(server_family, 8_000, &[]));
        let server = udp(&lab.server, server_family.proxy(), 8_000);
        let client = udp(&lab.client, family.client(), 0);
        let (one, other) = (at(family.destination(1), 53), at(family.destination(2), 4_000));
        for size in [0, 1, 1_472, 9_000, 65_507] {
            client.send_to(&vec![1; size], one).expect("send");
            let (ask, from_one) = receive(&server);
            client.send_to(&vec![2; size], other).expect("send");
            let (other_ask, from_other) = receive(&server);
            assert_eq!((ask, other_ask), (vec![1; size], vec![2; size]));
            assert!(from_one != from_other, "the server could not tell them apart");
            server.send_to(b"to the other", from_other).expect("answer");
            assert_eq!(receive(&client), (b"to the other".to_vec(), other));
            server.send_to(&vec![3; size], from_one).expect("answer");
            assert_eq!(receive(&client), (vec![3; size], one));
        }
        assert_eq!(daemon.status().number("udp.active"), 2);
    }
}

#[test]
fn each_datagram_carries_a_version_2_header() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, &uci(family, 8_000, &[("send_proxy", "v2")]));
        let server = udp(&lab.server, family.proxy(), 8_000);
        let client = udp(&lab.client, family.client(), 40_000);
        let to = at(family.destination(1), 4_000);
        for payload in [b"first".as_slice(), b"second"] {
            client.send_to(payload, to).expect("send");
            let (datagram, _) = receive(&server);
            let len = if family == Family::V4 { 12 } else { 36 };
            assert_eq!(datagram[..12], *b"\r\n\r\n\0\r\nQUIT\n");
            assert_eq!(datagram[12..16], [0x21, if family == Family::V4 { 0x12 } else { 0x22 }, 0, len]);
            let ports = &datagram[16 + usize::from(len) - 4..16 + usize::from(len)];
            assert_eq!(ports, [40_000u16.to_be_bytes(), 4_000u16.to_be_bytes()].concat());
            assert_eq!(&datagram[16 + usize::from(len)..], payload);
        }
        client.send_to(&vec![0; 65_507], to).expect("send");
        client.send_to(b"third", to).expect("send");
        assert!(receive(&server).0.ends_with(b"third"), "one too long for its header must not come, cut or not");
        assert_eq!(daemon.status().number("drops.too_large"), 1);
    }
}

#[test]
fn dnsdist_learns_the_client_from_the_header_of_a_datagram() {
    for family in Family::BOTH {
        let (lab, files) = (Lab::new(), TempDir::new());
        let text = format!(
            "setLocal('{}')\nsetACL({{'0.0.0.0/0', '::/0'}})\nsetProxyProtocolACL({{'0.0.0.0/0', '::/0'}})\n\
             addAction(AllRule(), LuaAction(function(dq)\n errlog('told ' .. dq.remoteaddr:toStringWithPort() .. ' ' .. \
             dq.localaddr:toStringWithPort())\n return DNSAction.Refused\nend))\n",
            at(family.proxy(), 8_000)
        );
        let config = files.write("dnsdist.conf", &text);
        let mut command = lab.server.command("dnsdist");
        command.args(["--supervised", "--disable-syslog", "-C"]).arg(&config);
        let server = Process::start(command);
        server.wait_for_line(&["Listening on", "8000"]);
        let _daemon = Daemon::start(&lab, &uci(family, 8_000, &[("send_proxy", "v2")]));
        let client = udp(&lab.client, family.client(), 40_000);
        let to = at(family.destination(1), 53);
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\0\0\x01\0\x01";
        client.send_to(query, to).expect("send");
        let (answer, from) = receive(&client);
        assert_eq!((&answer[..2], answer[3] & 15, from), (&query[..2], 5, to));
        server.wait_for_line(&["told", &client.local_addr().expect("bound").to_string(), &to.to_string()]);
    }
}

#[test]
fn a_version_1_header_leaves_udp_to_udp_outbound() {
    let lab = Lab::new();
    let _daemon = Daemon::start(&lab, &uci(Family::V4, 8_000, &[("send_proxy", "v1")]));
    let client = udp(&lab.client, Family::V4.client(), 0);
    client.connect(at(Family::V4.destination(1), 443)).expect("connect");
    client.send(b"quic").expect("send");
    assert_eq!(client.recv(&mut [0; 1]).expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_closed_port_of_the_server_is_told_for_the_destination() {
    for (family, server) in [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6)] {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab, &uci(server, 8_000, &[]));
        let client = udp(&lab.client, family.client(), 0);
        client.connect(at(family.destination(1), 4_000)).expect("connect");
        client.send(b"anybody?").expect("send");
        assert_eq!(client.recv(&mut [0; 1]).expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

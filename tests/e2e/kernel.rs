//! What netfilter decides alone never comes to the process.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::process::until;
use crate::sock::{PATIENCE, accept, connect, listen, read_n, refusal, udp};
use crate::socks::{Manners, Socks};

/// Rules over a default by proxy, with verdicts by the kernel.
fn start(lab: &Lab, rules: &str) -> (Daemon, Socks) {
    let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let uci = Uci::new("socks5")
        .globals(&[("kernel_verdicts", "1")])
        .outbound(&[("server", "198.51.100.2"), ("port", "1080")])
        .section(rules);
    (Daemon::start(lab, &uci), proxy)
}

/// Nothing was accepted, received or relayed.
fn saw_nothing(daemon: &Daemon) {
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (0, 0), "{status}");
    assert_eq!(status.number("listeners.0.accepted"), 0, "{status}");
}

const COUNTRY: &str = "
config set 'country'\n\tlist entry '203.0.113.0/24'\n\tlist entry '2001:db8:77::/64'
config rule\n\tlist domain 'video.example'\n\toption outbound 'out'
config rule\n\tlist dest_ip '@country'\n\toption outbound 'direct'
";

#[test]
fn a_bulk_transfer_that_is_direct_by_address_never_comes_to_the_process() {
    let lab = Lab::new();
    let (daemon, _proxy) = start(&lab, COUNTRY);
    for family in Family::BOTH {
        let listener = listen(&lab.server, family.destination(80), 0);
        let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
        let mut server = accept(&listener);
        const BULK: usize = 64 << 20;
        thread::scope(|scope| {
            scope.spawn(|| {
                let chunk = vec![7; 1 << 20];
                (0..BULK >> 20).for_each(|_| server.write_all(&chunk).expect("send"));
                server.shutdown(Shutdown::Write).expect("half-close");
            });
            let (mut sink, mut got) = (vec![0; 1 << 20], 0);
            while let Ok(n @ 1..) = client.read(&mut sink) {
                got += n;
            }
            assert_eq!(got, BULK);
        });
    }
    saw_nothing(&daemon);
    let status = daemon.status();
    assert_eq!(status.number("rules.1.hits"), 2, "one for each connection: {status}");
    assert_eq!(status.number("outbounds.0.bytes_down"), 0);
}

#[test]
fn direct_reject_and_drop_are_the_kernels_and_the_rest_is_the_processs() {
    let lab = Lab::new();
    let (daemon, _proxy) = start(
        &lab,
        "config rule\n\tlist dest_port '4000'\n\toption outbound 'direct'
config rule\n\tlist dest_port '4001'\n\toption outbound 'reject'
config rule\n\tlist dest_port '4002'\n\toption outbound 'drop'
config outbound 'straight'\n\toption type 'direct'
config rule\n\tlist dest_port '4003'\n\toption outbound 'straight'
config outbound 'open'\n\toption type 'direct'\n\toption full_cone '1'
config rule\n\tlist dest_port '4004'\n\toption outbound 'open'\n",
    );
    for family in Family::BOTH {
        let socket = udp(&lab.client, family.client(), 0);
        for (port, rule) in [(4000, 0), (4003, 3)] {
            let mirror = Mirror::start_at(&lab.server, family.destination(80), port);
            // forwarded as it is: this router does not masquerade
            assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), family.client());
            assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.client());
            let hits = daemon.status().number(&format!("rules.{rule}.hits"));
            assert_eq!(hits, if family == Family::V4 { 2 } else { 4 });
        }
        let rejected = std::net::SocketAddr::new(family.destination(80), 4001);
        assert_eq!(refusal(&lab.client, rejected), ErrorKind::ConnectionRefused, "by a reset of the SYN");
        let asking = udp(&lab.client, family.client(), 0);
        asking.connect(rejected).expect("connect");
        asking.send(b"?").expect("send");
        assert_eq!(asking.recv(&mut [0; 1]).expect_err("nobody answers").kind(), ErrorKind::ConnectionRefused);
        let dropped = Mirror::start_at(&lab.server, family.destination(80), 4002);
        let brief = std::time::Duration::from_millis(300);
        assert!(seen_by_udp(&socket, dropped.at, brief).is_err());
    }
    saw_nothing(&daemon);
    // only its UDP asks for the process
    let mirror = Mirror::start_at(&lab.server, Family::V4.destination(80), 4004);
    assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), Family::V4.client());
    let socket = udp(&lab.client, Family::V4.client(), 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), Family::V4.router_wan());
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (0, 1), "{status}");
    assert_eq!(status.number("rules.4.hits"), 2, "one in the kernel, one in the process");
}

#[test]
fn a_name_is_still_looked_for_where_it_may_be_found() {
    let lab = Lab::new();
    let (daemon, proxy) = start(&lab, COUNTRY);
    let listener = listen(&lab.server, Family::V4.destination(80), 80);
    for (host, proxied) in [("video.example", true), ("other.example", false)] {
        let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.write_all(request.as_bytes()).expect("send");
        assert_eq!(read_n(&mut accept(&listener), request.len()), request.as_bytes());
        assert_eq!(!proxy.asked().is_empty(), proxied, "{host}");
    }
    assert_eq!(daemon.status().number("tcp.total"), 2);
}

#[test]
fn a_live_flow_keeps_the_decision_that_it_had() {
    let lab = Lab::new();
    let (daemon, _proxy) = start(&lab, "");
    let mirror = Mirror::start_at(&lab.server, Family::V4.destination(80), 4000);
    let mut relayed = connect(&lab.client, mirror.at);
    crate::mirror::ask(&mut relayed).expect("an answer");
    let socket = udp(&lab.client, Family::V4.client(), 0);
    let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
    let direct = "config rule\n\tlist dest_port '4000'\n\toption outbound 'direct'\n";
    let uci = Uci::new("socks5").globals(&[("kernel_verdicts", "1")]);
    let uci = uci.outbound(&[("server", "198.51.100.2"), ("port", "1080")]);
    daemon.write_config(&uci.clone().section(direct));
    daemon.reload(&["reload"]);
    crate::mirror::ask(&mut relayed).expect("it goes on by the proxy");
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer"), seen);
    let mut forwarded = connect(&lab.client, mirror.at);
    assert_eq!(crate::mirror::ask(&mut forwarded).expect("an answer").ip(), Family::V4.client(), "new flows go direct");
    daemon.write_config(&uci);
    daemon.reload(&["reload"]);
    assert_eq!(crate::mirror::ask(&mut forwarded).expect("an answer").ip(), Family::V4.client(), "and stay so");
}

#[test]
fn with_reclassify_flows_of_the_kernel_get_the_new_rules_too_and_those_that_stay_direct_live_on() {
    for (masqueraded, mode) in [(false, "tproxy"), (true, "tproxy"), (false, "redirect"), (true, "redirect")] {
        let lab = Lab::new();
        if masqueraded {
            lab.masquerade();
        } else {
            lab.track_connections();
        }
        let seen = if masqueraded { Family::V4.router_wan() } else { Family::V4.client() };
        let uci = Uci::new("socks5").globals(&[("kernel_verdicts", "1"), ("reclassify", "1")]);
        let uci = uci.outbound(&[("server", "198.51.100.2"), ("port", "1080")]).listener(&[("mode", mode)]);
        let direct = |ports: &str| format!("config rule\n\toption dest_port '{ports}'\n\toption outbound 'direct'\n");
        let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
        let daemon = Daemon::start(&lab, &uci.clone().section(&direct("4000-4001")));
        let [stays, goes] = [4000, 4001].map(|port| Mirror::start_at(&lab.server, Family::V4.destination(80), port));
        let mut streams = [&stays, &goes].map(|mirror| connect(&lab.client, mirror.at));
        let sockets = [0, 1].map(|_| udp(&lab.client, Family::V4.client(), 0));
        for (stream, (socket, mirror)) in streams.iter_mut().zip(sockets.iter().zip([&stays, &goes])) {
            assert_eq!(crate::mirror::ask(stream).expect("an answer").ip(), seen);
            assert_eq!(seen_by_udp(socket, mirror.at, PATIENCE).expect("an answer").ip(), seen);
        }
        saw_nothing(&daemon);
        daemon.write_config(&uci.clone().section(&direct("4000")));
        daemon.command("reload", &[]);
        assert_eq!(crate::mirror::ask(&mut streams[0]).expect("an answer").ip(), seen, "it is direct still");
        assert_eq!(seen_by_udp(&sockets[0], stays.at, PATIENCE).expect("an answer").ip(), seen);
        let error = crate::mirror::ask(&mut streams[1]).expect_err("it is for the proxy now");
        assert!([ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()), "{error}");
        let mut again = connect(&lab.client, goes.at);
        crate::mirror::ask(&mut again).expect("an answer");
        // an answer that is on its way just then would begin a flow of its own, which nobody decides about
        until("the helper deletes the entry", || {
            !lab.router.tool("conntrack", &["-L", "-p", "udp", "--orig-port-dst", "4001"], "").contains("dport=4001")
        });
        daemon.status_until("the datagram goes by the proxy", |status| {
            let _ = seen_by_udp(&sockets[1], goes.at, std::time::Duration::from_millis(300));
            status.number("udp.total") > 0
        });
        assert!(seen_by_udp(&sockets[1], goes.at, PATIENCE).is_ok(), "and is answered");
        assert!(!proxy.asked().is_empty());
    }
}

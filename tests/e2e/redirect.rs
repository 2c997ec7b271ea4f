//! What is peculiar to mode redirect: translated flows, and the daemon's dependence on connection tracking.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::lifecycle::{relayed, state};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::over_ways;
use crate::passage::{Passage, Way, uci};
use crate::sock::{PATIENCE, receive, refusal, udp};

over_ways!(after_connection_tracking_forgot_everything_datagrams_still_reach_whom_they_are_for, |way, family| {
    let passage = Passage::open(way, family);
    let lab = &passage.lab;
    let client = udp(&lab.client, family.client(), 0);
    let servers: Vec<_> = (1..=8).map(|n| udp(&lab.server, family.destination(n), 4_000)).collect();
    // In the other order the kernel gives the ports that it remaps to other flows.
    for order in [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 4, 0, 5, 7, 2, 6]] {
        for n in order {
            let to = servers[n].local_addr().expect("bound");
            client.send_to(&[n as u8], to).expect("send");
            let (arrived, outside) = receive(&servers[n]);
            assert_eq!(arrived, [n as u8]);
            servers[n].send_to(&[n as u8, 9], outside).expect("answer");
            assert_eq!(receive(&client), (vec![n as u8, 9], to));
        }
        lab.router.tool("conntrack", &["-F"], "");
    }
}, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(an_answer_that_comes_later_than_connection_tracking_remembers_reaches_the_client, |way, family| {
    let lab = Lab::new();
    lab.track_connections(); // without rules that need it, there is no setting
    lab.router.sysctl(&[("netfilter/nf_conntrack_udp_timeout", "4")]);
    let _daemon = Daemon::start(&lab, &uci(way, family));
    let client = udp(&lab.client, family.client(), 0);
    let server = udp(&lab.server, family.destination(1), 4_000);
    client.send_to(b"slow question", server.local_addr().expect("bound")).expect("send");
    let (_, outside) = receive(&server);
    let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let begin = Instant::now();
    let left = || {
        let list = lab.router.tool("conntrack", &["-L", "-p", "udp", "-f", name, "--orig-port-dst", "4000"], "");
        // udp      17 29 src=…
        let entry = list.lines().find(|line| line.contains("dport=4000") && line.contains("2333"));
        entry.and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
    };
    while left().expect("the entry must not go") < 100 {
        assert!(begin.elapsed() < PATIENCE, "nobody keeps the entry");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.send_to(b"late answer", outside).expect("answer");
    assert_eq!(receive(&client), (b"late answer".to_vec(), server.local_addr().expect("bound")));
}, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(killed_with_on_failure_direct_the_helper_takes_the_redirection_away, |way, family| {
    let lab = Lab::new();
    let (before, mirror) = (state(&lab), Mirror::start(&lab.server, family.destination(80)));
    let daemon = Daemon::start(&lab, &uci(way, family));
    assert!(relayed(&lab, &mirror));
    let socket = udp(&lab.client, family.client(), 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.router_wan());
    daemon.kill();
    let begin = Instant::now();
    assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), family.client());
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.client());
    assert!(begin.elapsed() < Duration::from_secs(1), "it took {:?}", begin.elapsed());
    assert_eq!(state(&lab), before);
}, v4 Redirect V4, v6 Redirect V6);

#[test]
fn tcp_by_redirect_and_udp_by_tproxy_on_the_same_device() {
    let lab = Lab::new();
    let udp_too = "config listener 'udp'\n\toption port '2334'\n\tlist device 'lan0'\n\toption proto 'udp'\n";
    let config = Uci::new("direct").listener(&[("mode", "redirect"), ("proto", "tcp")]).section(udp_too);
    let daemon = Daemon::start(&lab, &config);
    both_protocols_are_relayed(&lab);
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (2, 2));
}

#[test]
fn tproxy_and_redirect_work_beside_each_other_on_different_devices() {
    let lab = Lab::new();
    let guest = lab.second_client();
    let other = "config listener 'guest'\n\toption mode 'redirect'\n\toption port '2334'\n\tlist device 'lan1'\n";
    let _daemon = Daemon::start(&lab, &Uci::new("direct").section(other));
    both_protocols_are_relayed(&lab);
    for family in Family::BOTH {
        let mirror = Mirror::start(&lab.server, family.destination(81));
        assert_eq!(seen_by_tcp(&guest, mirror.at).expect("a connection").ip(), family.router_wan());
        let socket = udp(&guest, family.second_client(), 0);
        assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.router_wan());
    }
}

/// The file's order decides, though the kernel asks for TPROXY before it asks for REDIRECT.
#[test]
fn a_listener_by_redirect_that_stands_first_takes_what_both_match() {
    let lab = Lab::new();
    let second = "config listener 'second'\n\toption port '2334'\n\tlist device 'lan0'\n";
    let config = Uci::new("direct").listener(&[("mode", "redirect"), ("dest_port", "4001")]).section(second);
    let daemon = Daemon::start(&lab, &config);
    for (port, name) in [(4_001, "lan"), (4_002, "second")] {
        let mirror = Mirror::start_at(&lab.server, Family::V4.destination(80), port);
        seen_by_tcp(&lab.client, mirror.at).expect("a connection");
        let counter = lab.router.tool("nft", &["list", "counter", "inet", "tproxyd", &format!("listener_{name}")], "");
        assert!(!counter.contains("packets 0 "), "{counter}");
    }
    assert_eq!(daemon.status().number("tcp.total"), 2);
}

#[test]
fn who_speaks_to_the_port_itself_gets_nowhere() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &uci(Way::Redirect, Family::V4));
    let port = SocketAddr::new("192.168.1.1".parse().expect("an address"), 2_333);
    // Strangers are dropped by rule; the router itself can reach the port, and is turned away.
    assert_eq!(refusal(&lab.router, port), ErrorKind::ConnectionReset);
    assert_eq!(daemon.status().number("drops.not_intercepted"), 1);
}

/// Client – router – server, TCP and UDP, v4 and v6: contents and addresses at both ends.
pub fn both_protocols_are_relayed(lab: &Lab) {
    for family in Family::BOTH {
        let mirror = Mirror::start(&lab.server, family.destination(80));
        assert!(relayed(lab, &mirror), "{family:?}");
        let socket = udp(&lab.client, family.client(), 0);
        assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.router_wan());
    }
}

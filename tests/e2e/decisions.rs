//! Rules choose the outbound of each flow; `reject` and `drop` do what they say.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::over_ways;
use crate::passage::{Passage, Way, uci};
use crate::sock::{PATIENCE, connect, refusal, udp};
use crate::socks::{Asked, Manners, Socks};

const SECOND: Duration = Duration::from_secs(1);

/// Rules in front of `direct`, and a proxy that they can choose.
fn rules(rules: &str) -> Uci {
    Uci::new("direct")
        .section(
            "config outbound 'proxy'\n\toption type 'socks5'\n\toption server '198.51.100.2'\n\toption port '1080'\n",
        )
        .section(rules)
}

fn proxied(lab: &Lab, mirror: &Mirror) -> bool {
    let family = if mirror.at.is_ipv4() { Family::V4 } else { Family::V6 };
    let tcp = seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip() != family.router_wan();
    let socket = udp(&lab.client, family.client(), 0);
    let udp = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip() != family.router_wan();
    assert_eq!(tcp, udp, "TCP and UDP must go the same way");
    tcp
}

#[test]
fn the_first_rule_that_matches_address_and_port_chooses_the_outbound() {
    let lab = Lab::new();
    let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let uci = rules(
        "config rule
	option name 'not this one'
	list dest_ip '203.0.113.7'
	list dest_ip '2001:db8:77::7'
	option outbound 'direct'
config rule
	list dest_ip '203.0.113.0/28'
	list dest_ip '2001:db8:77::/124'
	list dest_port '4000-4002'
	list dest_port '!4001'
	option outbound 'proxy'
",
    );
    let _daemon = Daemon::start(&lab, &uci);
    for family in Family::BOTH {
        for (n, port, expected) in
            [(8, 4_000, true), (8, 4_001, false), (8, 4_002, true), (7, 4_000, false), (16, 4_000, false)]
        {
            let mirror = Mirror::start_at(&lab.server, family.destination(n), port);
            assert_eq!(proxied(&lab, &mirror), expected, "{}", mirror.at);
        }
    }
    assert!(proxy.asked().contains(&Asked::Connect("203.0.113.8:4002".parse().expect("an address"))));
}

#[test]
fn a_rule_may_ask_for_protocol_source_and_set() {
    let lab = Lab::new();
    let _proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let uci = rules(
        "config set 'far'
	list entry '203.0.113.128/25'
config rule
	option proto 'tcp'
	list dest_ip '@far'
	list src_ip '192.168.1.0/24'
	option outbound 'proxy'
",
    );
    let _daemon = Daemon::start(&lab, &uci);
    let socket = udp(&lab.client, Family::V4.client(), 0);
    for (n, expected) in [(128, true), (127, false)] {
        let mirror = Mirror::start(&lab.server, Family::V4.destination(n));
        let seen = seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip();
        assert_eq!(seen != Family::V4.router_wan(), expected, "{seen}");
        let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip();
        assert_eq!(seen, Family::V4.router_wan(), "UDP is not meant");
    }
}

/// TCP: a reset. UDP: ICMP port unreachable. Both at once.
fn rejected(lab: &Lab, to: SocketAddr, family: Family) {
    let begin = Instant::now();
    assert!(matches!(refusal(&lab.client, to), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused));
    unreachable_at_once(lab, to, family);
    assert!(begin.elapsed() < SECOND, "it took {:?}", begin.elapsed());
}

fn unreachable_at_once(lab: &Lab, to: SocketAddr, family: Family) {
    let socket = udp(&lab.client, family.client(), 0);
    let begin = Instant::now();
    socket.connect(to).expect("connect");
    socket.send(b"?").expect("send");
    assert_eq!(socket.recv(&mut [0; 1]).expect_err("nobody answers").kind(), ErrorKind::ConnectionRefused);
    assert!(begin.elapsed() < SECOND, "it took {:?}", begin.elapsed());
}

over_ways!(reject_resets_and_reports_unreachable_at_once, |way, family| {
    let rule = "config rule\n\tlist dest_port '25'\n\toption outbound 'reject'\n";
    let passage = Passage::open_with(way, family, |uci| uci.section(rule));
    let mirror = Mirror::start_at(&passage.lab.server, family.destination(80), 25);
    rejected(&passage.lab, mirror.at, family);
    passage.daemon().wait_idle();
}, v4 Direct V4, v6 Direct V6);

over_ways!(drop_is_silence, |way, family| {
    let rule = "config rule\n\tlist dest_port '25'\n\toption outbound 'drop'\n";
    let passage = Passage::open_with(way, family, |uci| uci.section(rule));
    let mirror = Mirror::start_at(&passage.lab.server, family.destination(80), 25);
    // The handshake may have been completed before the decision; after it nothing comes, not even an end.
    let client = passage.lab.client.within(|| TcpStream::connect_timeout(&mirror.at, SECOND));
    if let Ok(client) = client {
        client.set_read_timeout(Some(SECOND)).expect("SO_RCVTIMEO");
        let silence = std::io::Read::read(&mut &client, &mut [0; 1]).map_err(|e| e.kind());
        assert_eq!(silence, Err(ErrorKind::WouldBlock));
    }
    let socket = udp(&passage.lab.client, family.client(), 0);
    socket.connect(mirror.at).expect("connect");
    let silence = seen_by_udp_connected(&socket);
    assert_eq!(silence, Err(ErrorKind::WouldBlock));
}, v4 Direct V4, v6 Direct V6);

/// One datagram on a connected socket, and what comes back within a second.
fn seen_by_udp_connected(socket: &std::net::UdpSocket) -> Result<usize, ErrorKind> {
    socket.set_read_timeout(Some(SECOND)).expect("SO_RCVTIMEO");
    socket.send(b"?").expect("send");
    socket.recv(&mut [0; 64]).map_err(|e| e.kind())
}

over_ways!(udp_of_an_outbound_without_udp_is_unreachable_at_once, |way, family| {
    let passage = Passage::open_with(way, family, |uci| uci.outbound(&[("udp", "0")]));
    let mirror = Mirror::start(&passage.lab.server, family.destination(80));
    unreachable_at_once(&passage.lab, mirror.at, family);
    seen_by_tcp(&passage.lab.client, mirror.at).expect("TCP goes on");
}, v4 Microsocks V4, v6 Microsocks V6);

#[test]
fn udp_of_an_outbound_without_udp_goes_where_it_says() {
    let passage = Passage::open_with(Way::Microsocks, Family::V4, |uci| {
        uci.outbound(&[("udp", "0"), ("udp_outbound", "direct")])
    });
    let mirror = Mirror::start(&passage.lab.server, Family::V4.destination(80));
    let socket = udp(&passage.lab.client, Family::V4.client(), 0);
    let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
    assert_eq!(seen.ip(), Family::V4.router_wan());
    assert_ne!(seen_by_tcp(&passage.lab.client, mirror.at).expect("a connection").ip(), seen.ip());
}

#[test]
fn a_reload_applies_new_rules_to_new_flows() {
    let lab = Lab::new();
    let mirror = Mirror::start_at(&lab.server, Family::V4.destination(80), 25);
    let daemon = Daemon::start(&lab, &uci(Way::Direct, Family::V4));
    let mut old = connect(&lab.client, mirror.at);
    crate::mirror::ask(&mut old).expect("an answer");
    let rule = "config rule\n\tlist dest_port '25'\n\toption outbound 'reject'\n";
    daemon.write_config(&uci(Way::Direct, Family::V4).section(rule));
    daemon.reload(&["reload"]);
    rejected(&lab, mirror.at, Family::V4);
    crate::mirror::ask(&mut old).expect("live flows keep their outbound");
}

over_ways!(a_rule_may_ask_for_the_device_and_the_mac_address, |way, family| {
    let lab = Lab::new();
    lab.client.tool("ip", &["link", "set", "eth0", "address", "02:00:00:00:00:07"], "");
    let _proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    assert_eq!(way, Way::Direct);
    let uci = |device: &str, mac: &str| {
        rules(&format!(
            "config rule\n\toption device '{device}'\n\toption src_mac '{mac}'\n\toption outbound 'proxy'\n"
        ))
    };
    let daemon = Daemon::start(&lab, &uci("lan*", "02:00:00:00:00:07"));
    let mirror = Mirror::start_at(&lab.server, family.destination(8), 4_000);
    assert!(proxied(&lab, &mirror));
    for (device, mac, expected) in [
        ("lan0", "02:00:00:00:00:08", false),
        ("wlan0", "02:00:00:00:00:07", false),
        ("!lan0", "!02:00:00:00:00:08", false),
        ("!wlan0", "!02:00:00:00:00:08", true),
    ] {
        daemon.write_config(&uci(device, mac));
        daemon.reload(&["reload"]);
        let mirror = Mirror::start_at(&lab.server, family.destination(8), 0);
        assert_eq!(proxied(&lab, &mirror), expected, "{device} {mac}");
    }
}, v4 Direct V4, v6 Direct V6);

#[test]
fn with_reclassify_a_reload_applies_new_rules_to_live_flows() {
    let lab = Lab::new();
    let [kept, ended] = [4_000, 25].map(|port| Mirror::start_at(&lab.server, Family::V4.destination(80), port));
    let uci = uci(Way::Direct, Family::V4).globals(&[("reclassify", "1")]);
    let daemon = Daemon::start(&lab, &uci);
    let mut streams = [&kept, &ended].map(|mirror| connect(&lab.client, mirror.at));
    let socket = udp(&lab.client, Family::V4.client(), 0);
    for (stream, mirror) in streams.iter_mut().zip([&kept, &ended]) {
        crate::mirror::ask(stream).expect("an answer");
        seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
    }
    daemon.write_config(&uci.section("config rule\n\tlist dest_port '25'\n\toption outbound 'reject'\n"));
    daemon.reload(&["reload"]);
    let [mut stays, mut goes] = streams;
    crate::mirror::ask(&mut stays).expect("it goes where it went");
    crate::sock::expect_reset(&mut goes);
    seen_by_udp(&socket, kept.at, PATIENCE).expect("an answer");
    let brief = Duration::from_millis(300);
    assert!(seen_by_udp(&socket, ended.at, brief).is_err(), "its datagrams are rejected");
}

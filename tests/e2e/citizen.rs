//! Beside others: the firewall of OpenWrt with its zones, port forwards and hairpins, and what is never caught.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::ns::Namespace;
use crate::over_ways;
use crate::passage::uci;
use crate::sock::{PATIENCE, receive, try_connect, udp};

/// Long enough for a datagram to arrive that should not.
const BRIEF: Duration = Duration::from_millis(250);

fn device(config: Uci, devices: &str) -> Uci {
    config.listener(&[("device", devices)])
}

/// How a mirror sees one connection and one datagram of `ns`.
fn seen(ns: &Namespace, to: SocketAddr) -> [IpAddr; 2] {
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("an address");
    let datagram = seen_by_udp(&udp(ns, any, 0), to, PATIENCE).expect("an answer");
    [seen_by_tcp(ns, to).expect("a connection").ip(), datagram.ip()]
}

over_ways!(a_zone_whose_input_is_rejected_is_relayed_and_gets_nowhere_else, |way, family| {
    let lab = Lab::new();
    lab.firewall();
    let guest = lab.second_client();
    let in_lan = Mirror::start(&lab.client, family.client());
    let of_router = Mirror::start(&lab.router, family.router_wan());
    let far = Mirror::start(&lab.server, family.destination(80));
    let _daemon = Daemon::start(&lab, &device(uci(way, family), "lan0 lan1"));
    assert_eq!(seen(&guest, far.at), [family.router_wan(); 2]);
    assert_eq!(seen(&lab.client, far.at), [family.router_wan(); 2]);
    // A relayed flow would bypass the chain that rejects it: the prefix is passed by.
    for forbidden in [in_lan.at, of_router.at] {
        let error = try_connect(&guest, forbidden).expect_err("rejected");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{forbidden}");
        let socket = udp(&guest, family.second_client(), 0);
        seen_by_udp(&socket, forbidden, BRIEF).expect_err("rejected");
    }
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

// Connection tracking calls a flow new until it is answered, and chains of type nat see its first packet only.
over_ways!(a_zone_whose_input_is_rejected_lets_all_packets_in_that_come_before_the_first_answer, |way, family| {
    let lab = Lab::new();
    lab.firewall();
    let guest = lab.second_client();
    let server = udp(&lab.server, family.destination(1), 4_000);
    let _daemon = Daemon::start(&lab, &device(uci(way, family), "lan0 lan1"));
    let socket = udp(&guest, family.second_client(), 0);
    for n in 0..8 {
        socket.send_to(&[n], server.local_addr().expect("bound")).expect("send");
        assert_eq!(receive(&server).0, [n]);
    }
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(a_zone_that_rejects_even_what_is_established_is_relayed, |way, family| {
    let lab = Lab::new();
    lab.firewall();
    let guest = lab.second_client();
    let rules = "insert rule inet fw4 input iifname lan1 meta l4proto { tcp, udp } reject
        insert rule inet fw4 input meta mark & 0x03000000 == 0x01000000 accept";
    lab.router.tool("nft", &["-f", "-"], rules);
    let far = Mirror::start(&lab.server, family.destination(80));
    let _daemon = Daemon::start(&lab, &device(uci(way, family), "lan0 lan1"));
    assert_eq!(seen(&guest, far.at), [family.router_wan(); 2]);
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(port_forwards_and_hairpins_work_on, |way, family| {
    let lab = Lab::new();
    lab.firewall();
    lab.masquerade();
    let forward = "table ip nat_of_firewall {
        chain dstnat { type nat hook prerouting priority dstnat;
            ip daddr 198.51.100.1 meta l4proto { tcp, udp } th dport 8080 dnat to 192.168.1.2:80
        }
        chain srcnat { type nat hook postrouting priority srcnat;
            oifname lan0 ct status dnat ip saddr 192.168.1.0/24 masquerade
        }
    }";
    lab.router.tool("nft", &["-f", "-"], forward);
    let service = Mirror::start_at(&lab.client, Family::V4.client(), 80);
    let daemon = Daemon::start(&lab, &uci(way, family));
    let outside = SocketAddr::new(Family::V4.router_wan(), 8_080);
    assert_eq!(seen(&lab.server, outside), [Family::V4.proxy(); 2], "the service sees who called");
    // The device calls its own service by the router's outside address, and is seen as the router.
    let router: IpAddr = "192.168.1.1".parse().expect("an address");
    assert_eq!(seen(&lab.client, outside), [router; 2]);
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (0, 0));
    drop(service);
}, tproxy Direct V4, redirect Redirect V4);

over_ways!(whoever_calls_a_client_from_outside_is_answered, |way, family| {
    let lab = Lab::new();
    lab.track_connections();
    let service = Mirror::start(&lab.client, family.client());
    let daemon = Daemon::start(&lab, &uci(way, family));
    for seen in seen(&lab.server, service.at) {
        assert!(seen != family.router_wan() && seen != family.client(), "{seen}");
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (0, 0));
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(what_is_never_caught, |way, family| {
    let lab = Lab::new();
    // A second address, got later than the start.
    let narrowed = uci(way, family).listener(&[
        ("dest_port", "!4001"),
        ("src_ip", "!192.168.1.3 !fd00:1::3"),
        ("dest_ip", "!203.0.113.99 !2001:db8:77::99"),
    ]);
    let daemon = Daemon::start(&lab, &narrowed);
    let more = "addr add 192.168.1.3/24 dev eth0\naddr add fd00:1::3/64 dev eth0 nodad\n";
    lab.client.tool("ip", &["-batch", "-"], more);
    let late = "addr add 198.51.100.99/32 dev wan0\naddr add 2001:db8:1::99/128 dev wan0 nodad\n";
    lab.router.tool("ip", &["-batch", "-"], late);

    let socket = udp(&lab.client, family.client(), 0);
    socket.set_broadcast(true).expect("SO_BROADCAST");
    let index = lab.client.tool("sh", &["-c", "cat /proc/net/dev_snmp6/eth0 | head -1"], "");
    let index = index.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("an index");
    let scoped = |ip: &str, port| SocketAddr::V6(SocketAddrV6::new(ip.parse().expect("an address"), port, 0, index));
    let plain = |at: &str| at.parse::<SocketAddr>().expect("an address");
    let passed_by = match family {
        Family::V4 => vec![
            plain("224.0.0.251:5353"),      // multicast
            plain("239.255.255.250:1900"),  // multicast of a site
            plain("255.255.255.255:9"),     // broadcast
            plain("192.168.1.255:9"),       // of the network
            plain("169.254.7.7:9"),         // link-local
            plain("203.0.113.5:67"),        // DHCP
            plain("203.0.113.5:68"),
            plain("192.168.1.77:9"),        // on-link
            plain("192.168.1.1:9"),         // the router's own
            plain("198.51.100.1:9"),
            plain("198.51.100.99:9"),       // got later
            plain("203.0.113.99:9"),        // by the user's list
            plain("203.0.113.5:4001"),
        ],
        Family::V6 => vec![
            scoped("ff02::fb", 5353),
            scoped("fe80::1234", 9),
            plain("[ff0e::1234]:9"),
            plain("[2001:db8:77::5]:546"),
            plain("[2001:db8:77::5]:547"),
            plain("[fd00:1::77]:9"),
            plain("[fd00:1::1]:9"),
            plain("[2001:db8:1::1]:9"),
            plain("[2001:db8:1::99]:9"),
            plain("[2001:db8:77::99]:9"),
            plain("[2001:db8:77::5]:4001"),
        ],
    };
    for to in passed_by {
        // Some have no route or neighbour: that is an answer, too. What is pending from the one before must not hide it.
        let _ = socket.send_to(b"x", to);
        let _ = socket.send_to(b"x", to);
    }
    // A client that the user excludes.
    let spared: IpAddr = if family == Family::V4 { "192.168.1.3" } else { "fd00:1::3" }.parse().expect("an address");
    let mirror = Mirror::start(&lab.server, family.destination(80));
    let seen = seen_by_udp(&udp(&lab.client, spared, 0), mirror.at, PATIENCE).expect("an answer");
    assert_eq!(seen.ip(), spared);
    assert_eq!(daemon.status().number("listeners.0.accepted"), 0);
    // And it was not for nothing that nothing came.
    assert_ne!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.client());
    assert_eq!(daemon.status().number("listeners.0.accepted"), 1);
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

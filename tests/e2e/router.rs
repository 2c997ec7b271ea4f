//! What the router itself sends: caught where a listener says `router '1'`, and never what the daemon sends.

use std::net::SocketAddr;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::lifecycle::state;
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::over_ways;
use crate::passage::{Passage, Way, uci};
use crate::sock::{PATIENCE, udp};

/// A passage whose listener also catches what the router sends, by the mode that `way` stands for.
fn of_router(way: Way, family: Family) -> Passage {
    Passage::open_with(Way::Socks, family, |uci| match way {
        Way::Redirect => uci.listener(&[("mode", "redirect"), ("router", "1")]),
        _ => uci.listener(&[("router", "1")]),
    })
}

over_ways!(what_the_router_sends_goes_through_the_outbound_as_what_clients_send, |way, family| {
    let passage = of_router(way, family);
    let (lab, mirror) = (&passage.lab, Mirror::start(&passage.lab.server, family.destination(80)));
    // Strict reverse path filtering must not mind packets that come in by the loopback device.
    lab.router.sysctl(&[("ipv4/conf/all/rp_filter", "1")]);
    for ns in [&lab.router, &lab.client] {
        let seen = seen_by_tcp(ns, mirror.at).expect("a connection").ip();
        assert!(seen != family.router_wan() && seen != family.client(), "the proxy must stand between: {seen}");
        let socket = udp(ns, family.any(), 0);
        let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip();
        assert!(seen != family.router_wan() && seen != family.client(), "the proxy must stand between: {seen}");
    }
    let status = passage.daemon().status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (2, 2), "nothing is caught twice");
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(what_goes_direct_does_not_come_back, |way, family| {
    let lab = Lab::new();
    let config = uci(way, family).listener(&[("router", "1")]);
    let daemon = Daemon::start(&lab, &config);
    let mirror = Mirror::start(&lab.server, family.destination(80));
    let socket = udp(&lab.router, family.any(), 0);
    let own = socket.local_addr().expect("bound").port();
    for _ in 0..3 {
        assert_eq!(seen_by_tcp(&lab.router, mirror.at).expect("a connection").ip(), family.router_wan());
        let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
        assert!(seen.ip() == family.router_wan() && seen.port() != own, "relayed: {seen}");
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (3, 1));
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(one_port_of_the_router_keeps_one_outside_port_for_many_destinations, |way, family| {
    let lab = Lab::new();
    let _daemon = Daemon::start(&lab, &uci(way, family).listener(&[("router", "1")]));
    let mirrors: Vec<_> = (1..=20).map(|n| Mirror::start_at(&lab.server, family.destination(n), 4_000)).collect();
    let socket = udp(&lab.router, family.any(), 0);
    let seen: Vec<_> = mirrors.iter().map(|to| seen_by_udp(&socket, to.at, PATIENCE).expect("an answer")).collect();
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(answers_of_the_routers_services_and_connections_from_before_are_left_alone, |way, family| {
    let lab = Lab::new();
    lab.track_connections();
    let before = Mirror::start(&lab.server, family.destination(80));
    let mut old = crate::sock::connect(&lab.router, before.at);
    let seen = crate::mirror::ask(&mut old).expect("an answer");
    let daemon = Daemon::start(&lab, &uci(way, family).listener(&[("router", "1")]));
    assert_eq!(crate::mirror::ask(&mut old).expect("it goes on"), seen);
    // A service of the router, asked from both sides.
    let service = Mirror::start(&lab.router, family.router_wan());
    for (ns, ip) in [(&lab.server, family.proxy()), (&lab.client, family.client())] {
        assert_ne!(seen_by_tcp(ns, service.at).expect("a connection").ip(), family.router_wan());
        let socket = udp(ns, ip, 0);
        assert_eq!(seen_by_udp(&socket, service.at, PATIENCE).expect("an answer").ip(), ip);
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (0, 0));
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(once_the_daemon_is_gone_the_router_speaks_for_itself, |way, family| {
    let lab = Lab::new();
    let (before, mirror) = (state(&lab), Mirror::start(&lab.server, family.destination(80)));
    let daemon = Daemon::start(&lab, &uci(way, family).listener(&[("router", "1")]));
    let socket = udp(&lab.router, family.any(), 40_404);
    assert_ne!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").port(), 40_404);
    daemon.kill();
    let own = SocketAddr::new(family.router_wan(), 40_404);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer"), own);
    seen_by_tcp(&lab.router, mirror.at).expect("a connection");
    assert_eq!(state(&lab), before);
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

over_ways!(blocked_the_router_keeps_its_dns_and_ntp, |way, family| {
    let lab = Lab::new();
    let config = uci(way, family).listener(&[("router", "1")]).globals(&[("on_failure", "block")]);
    let daemon = Daemon::start(&lab, &config);
    daemon.kill();
    for (port, passes) in [(53, true), (123, true), (4_000, false)] {
        let mirror = Mirror::start_at(&lab.server, family.destination(80), port);
        let socket = udp(&lab.router, family.any(), 0);
        let limit = if passes { PATIENCE } else { std::time::Duration::from_millis(250) };
        assert_eq!(seen_by_udp(&socket, mirror.at, limit).is_ok(), passes, "port {port}");
    }
    daemon.command("clear", &[]);
}, tproxy_v4 Direct V4, redirect_v6 Redirect V6);

/// Narrowing holds for the router, too, and so does the file's order.
#[test]
fn the_routers_flows_are_narrowed_like_others() {
    let lab = Lab::new();
    let config = Uci::new("direct").listener(&[("router", "1"), ("dest_port", "4001")]);
    let daemon = Daemon::start(&lab, &config);
    for port in [4_001, 4_002] {
        let mirror = Mirror::start_at(&lab.server, Family::V4.destination(80), port);
        seen_by_tcp(&lab.router, mirror.at).expect("a connection");
    }
    assert_eq!(daemon.status().number("tcp.total"), 1);
}

// Whoever sets whole marks at output takes ours away, and the daemon's own packets are caught.
over_ways!(a_loop_is_broken_at_its_first_turn_and_its_cause_is_named, |way, family| {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &uci(way, family).listener(&[("router", "1")]));
    let careless = "table inet careless {
        chain output { type route hook output priority mangle - 10;
            meta l4proto { tcp, udp } meta mark set 0x7
        }
    }";
    lab.router.tool("nft", &["-f", "-"], careless);
    let mirror = Mirror::start(&lab.server, family.destination(80));
    let failed = crate::sock::try_connect(&lab.client, mirror.at).and_then(|mut stream| crate::mirror::ask(&mut stream));
    assert!(failed.is_err(), "{failed:?}");
    let socket = udp(&lab.client, family.client(), 0);
    seen_by_udp(&socket, mirror.at, std::time::Duration::from_millis(250)).expect_err("its way is cut");
    let status = daemon.status_until("both are counted", |status| status.number("drops.loop") >= 2);
    let opened = status.number("tcp.total") + status.number("udp.total");
    assert!(opened <= 4, "{opened} were opened for one connection and one datagram");
    daemon.process().wait_for_line(&["loop: our own", "self_mark"]);
    // Once it is mended all is well.
    lab.router.tool("nft", &["delete", "table", "inet", "careless"], "");
    seen_by_tcp(&lab.client, mirror.at).expect("a connection");
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

//! A box that is not between client and main router, but beside them on the same LAN: as the clients' gateway (one arm), or
//! as a side router to which the main router sends what its clients want.
//!
//! ```text
//!  client ──┐                    ┌── main router ── wan0 ──── server     main router: 192.168.1.1, fd00:1::1
//!           ├── switch (bridge) ─┤                                       box: 192.168.1.254, fd00:1::fe
//!           └────────────────────┴── box (tproxyd on lan0)
//! ```

use std::net::IpAddr;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, ask, seen_by_tcp, seen_by_udp};
use crate::ns::Namespace;
use crate::over_ways;
use crate::passage::{Way, uci};
use crate::sock::{PATIENCE, accept, connect, exchange, listen, receive, udp};

/// Addresses of the box.
fn of_box(family: Family) -> IpAddr {
    match family {
        Family::V4 => "192.168.1.254",
        Family::V6 => "fd00:1::fe",
    }
    .parse()
    .expect("an address")
}

const MAC: &str = "02:00:5e:10:00:fe";

/// One connection and one flow of datagrams, whole and with the right addresses: the server must see the box.
fn pass(lab: &Lab, family: Family, port: u16) {
    let listener = listen(&lab.server, family.destination(80), port);
    let to = listener.local_addr().expect("bound");
    let mut client = connect(&lab.client, to);
    let mut server = accept(&listener);
    assert_eq!(client.peer_addr().expect("connected"), to);
    assert_eq!(server.peer_addr().expect("connected").ip(), of_box(family));
    exchange(&mut client, &mut server, b"ask", b"answer");
    exchange(&mut client, &mut server, &[5; 100_000], &[6; 100_000]);
    let server = udp(&lab.server, family.destination(80), port);
    let client = udp(&lab.client, family.client(), 0);
    for n in 0..3u8 {
        client.send_to(&[n; 100], server.local_addr().expect("bound")).expect("send");
        let (arrived, from) = receive(&server);
        assert_eq!((arrived, from.ip()), (vec![n; 100], of_box(family)));
        server.send_to(&[n], from).expect("answer");
        assert_eq!(receive(&client), (vec![n], server.local_addr().expect("bound")));
    }
}

fn firewall(ns: &Namespace) {
    let rules = "table inet fw4 {
        chain forward { type filter hook forward priority filter; policy accept;
            ct state vmap { established : accept, related : accept, invalid : drop }
        }
        chain input { type filter hook input priority filter; policy accept;
            ct state vmap { established : accept, related : accept, invalid : drop }
        }
    }";
    ns.tool("nft", &["-f", "-"], rules);
}

/// The client has not learned a way that leads past the box.
fn still_by_the_box(lab: &Lab, family: Family) {
    let to = family.destination(80).to_string();
    let way = lab.client.tool("ip", &["route", "get", &to], "");
    assert!(way.contains(&format!("via {}", of_box(family))) && !way.contains("redirected"), "{way}");
}

over_ways!(on_one_arm_all_of_a_flow_goes_by_the_box_whether_relayed_or_forwarded, |way, family| {
    let (lab, _main) = Lab::on_one_segment(true);
    firewall(&lab.router);
    let config = uci(way, family).listener(&[("dest_port", "!4001")]);
    let daemon = Daemon::start(&lab, &config);
    for _ in 0..2 {
        pass(&lab, family, 4_000);
        pass(&lab, family, 4_001); // what is excluded leaves in the box's name, else its answers would go past it
        still_by_the_box(&lab, family);
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (2, 2), "relayed: the first port only");
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

// What the kernel decides alone is forwarded, and must come back by the box as well.
over_ways!(on_one_arm_what_the_kernel_decides_comes_back_by_the_box, |way, family| {
    let (lab, _main) = Lab::on_one_segment(true);
    firewall(&lab.router);
    let config = uci(way, family).globals(&[("kernel_verdicts", "1"), ("default", "direct")]);
    let daemon = Daemon::start(&lab, &config);
    pass(&lab, family, 4_000);
    still_by_the_box(&lab, family);
    assert_eq!(daemon.status().number("tcp.total"), 0, "the process had nothing to do with it");
}, v4 Direct V4, v6 Direct V6);

over_ways!(on_one_arm_neighbours_are_left_alone, |way, family| {
    let (lab, main) = Lab::on_one_segment(true);
    let _daemon = Daemon::start(&lab, &uci(way, family));
    let main_router: IpAddr = if family == Family::V4 { "192.168.1.1" } else { "fd00:1::1" }.parse().expect("an address");
    let service = Mirror::start(&main, main_router);
    assert_eq!(seen_by_tcp(&lab.client, service.at).expect("a connection").ip(), family.client());
}, tproxy_v4 Direct V4, redirect_v6 Redirect V6);

// What `rules --main-router` prints is put on the main router as it is.
over_ways!(a_side_router_takes_what_the_main_router_sends_and_answers_directly, |way, family| {
    let (lab, main) = Lab::on_one_segment(false);
    let tracking = "table inet tracking {
        chain forward { type filter hook forward priority 0;
            ct state new accept
        }
    }";
    main.tool("nft", &["-f", "-"], tracking);
    firewall(&lab.router);
    let daemon = Daemon::start(&lab, &uci(way, family));
    let printed = daemon.command("rules", &["--main-router"]);
    assert!(printed.contains(MAC), "{printed}");
    let before = Mirror::start(&lab.server, family.destination(81));
    let mut old = connect(&lab.client, before.at);
    let direct = ask(&mut old).expect("an answer").ip();
    assert_eq!(direct, family.client(), "until then the main router forwards");
    main.tool("nft", &["-f", "-"], &printed);
    for line in printed.lines().filter_map(|line| line.strip_prefix("# ip ").or(line.strip_prefix("# sysctl "))) {
        let words: Vec<_> = line.split_whitespace().collect();
        if words[0] == "-w" {
            let settings: Vec<_> = words[1..].iter().filter_map(|word| word.split_once('=')).collect();
            let paths: Vec<_> = settings.iter().map(|(name, value)| (name.trim_start_matches("net.").replace('.', "/"), *value)).collect();
            main.sysctl(&paths.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>());
        } else {
            main.tool("ip", &words, "");
        }
    }
    pass(&lab, family, 4_000);
    let mirror = Mirror::start(&lab.server, family.destination(80));
    let socket = udp(&lab.client, family.client(), 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), of_box(family));
    let status = daemon.status();
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (1, 2), "the box's own is not sent back to it");
    // The main router itself stays what it is.
    let main_router: IpAddr = if family == Family::V4 { "192.168.1.1" } else { "fd00:1::1" }.parse().expect("an address");
    let service = Mirror::start(&main, main_router);
    assert_eq!(seen_by_tcp(&lab.client, service.at).expect("a connection").ip(), family.client());
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

#[test]
fn check_names_the_redirects_that_would_lead_past_the_box() {
    let (lab, _main) = Lab::on_one_segment(false);
    let daemon = Daemon::start(&lab, &uci(Way::Direct, Family::V4));
    lab.router.sysctl(&[("ipv4/conf/all/send_redirects", "1")]);
    assert!(daemon.check().contains("send_redirects"), "{}", daemon.check());
    lab.router.sysctl(&[("ipv4/conf/all/send_redirects", "0"), ("ipv4/conf/lan0/send_redirects", "0")]);
    assert!(!daemon.check().contains("send_redirects"), "{}", daemon.check());
}

// Clients of a network behind the main router come in by the LAN, and must be answered by it.
over_ways!(check_names_the_missing_way_back_to_clients_behind_the_main_router, |way, family| {
    let (lab, main) = Lab::on_one_segment(false);
    let (far, of_far) = lab.client_behind(&main);
    let (network, gateway) = match family {
        Family::V4 => ("192.168.7.0/24", "192.168.1.1"),
        Family::V6 => ("fd00:7::/64", "fd00:1::1"),
    };
    let of_far = of_far[usize::from(family == Family::V6)];
    let dash = if family == Family::V4 { "-4" } else { "-6" };
    main.tool("ip", &[dash, "rule", "add", "iif", "lan1", "lookup", "77"], "");
    main.tool("ip", &[dash, "route", "add", "default", "via", &of_box(family).to_string(), "table", "77"], "");
    for other in ["203.0.113.0/24", "2001:db8::/32"] {
        let gateway = if other.contains(':') { "fd00:1::1" } else { "192.168.1.1" };
        lab.router.tool("ip", &["route", "add", other, "via", gateway], "");
    }
    let daemon = Daemon::start(&lab, &uci(way, family));
    let mirror = Mirror::start(&lab.server, family.destination(80));
    let socket = udp(&far, of_far, 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("by the default route").ip(), of_box(family));
    assert!(!daemon.check().contains("no answer"), "{}", daemon.check());
    // The route is gone, and so are the answers.
    lab.router.tool("ip", &[dash, "route", "del", "default"], "");
    socket.send_to(b"who am I?", mirror.at).expect("send");
    let found = daemon.check();
    assert!(found.contains("fail") && found.contains("there is no way back"), "{found}");
    let remedy = found.lines().find_map(|line| line.trim().strip_prefix("→ ip ").filter(|line| line.contains("MAIN-ROUTER")));
    let remedy = remedy.expect("a command").split(", ").next().expect("a command").replace("MAIN-ROUTER", gateway);
    assert!(remedy.contains(network), "{remedy}");
    let words: Vec<_> = [dash].into_iter().chain(remedy.split_whitespace()).collect();
    lab.router.tool("ip", &words, "");
    assert!(!daemon.check().contains("no answer"), "{}", daemon.check());
    let socket = udp(&far, of_far, 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), of_box(family));
    assert_eq!(seen_by_tcp(&far, mirror.at).expect("a connection").ip(), of_box(family));
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

#[test]
fn check_names_a_network_that_a_listener_is_narrowed_to_and_that_is_elsewhere() {
    let (lab, _main) = Lab::on_one_segment(false);
    lab.router.tool("ip", &["link", "add", "wan0", "type", "veth", "peer", "name", "wan1"], "");
    lab.router.tool("ip", &["link", "set", "wan0", "up"], "");
    lab.router.tool("ip", &["route", "add", "192.168.7.0/24", "dev", "wan0"], "");
    let of = |src: &str| uci(Way::Direct, Family::V4).listener(&[("src_ip", src)]);
    let daemon = Daemon::start(&lab, &of("192.168.7.0/24"));
    assert!(daemon.check().contains("leads out by wan0, not by lan0"), "{}", daemon.check());
    for fine in ["192.168.0.0/16", "192.168.1.2", "192.168.8.0/24", "!192.168.7.0/24"] {
        daemon.write_config(&of(fine));
        assert!(!daemon.check().contains("no answer"), "{fine}: {}", daemon.check());
    }
}

/// The printed text is complete: it loads as it is, and says how the rest is done.
#[test]
fn rules_for_the_main_router_come_as_nft_iptables_and_uci() {
    let (lab, _main) = Lab::on_one_segment(false);
    let daemon = Daemon::start(&lab, &Uci::new("direct"));
    let printed = daemon.command("rules", &["--main-router"]);
    lab.router.tool("nft", &["-c", "-f", "-"], &printed);
    for words in ["via 192.168.1.254", "via fd00:1::fe", "iptables -t mangle", "ip6tables -t mangle", "config route6"] {
        assert!(printed.contains(words), "{words} is missing in:\n{printed}");
    }
}

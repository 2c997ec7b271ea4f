//! Rules that survive: what others take away is put back, and what depends on the network follows it.

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::lifecycle::state;
use crate::mirror::{Mirror, ask, seen_by_tcp, seen_by_udp};
use crate::over_ways;
use crate::passage::{Way, uci};
use crate::process::until_within;
use crate::sock::{PATIENCE, connect, udp};

fn nft(lab: &Lab, command: &str) -> String {
    lab.router.tool("nft", &["-f", "-"], command)
}

/// Which table was made first does not matter.
fn sorted(state: &str) -> Vec<&str> {
    let mut lines: Vec<_> = state.lines().collect();
    lines.sort_unstable();
    lines
}

/// Waits until the kernel lists what `wanted` looks for: longer than for an answer, since rules rest after a mend.
fn until_state(lab: &Lab, what: &str, wanted: impl Fn(&str) -> bool) {
    until_within(4 * PATIENCE, || format!("{what}; there is:\n{}", state(lab)), || wanted(&state(lab)));
}

// Everything is in place: four flows are relayed, and the connection from before goes on.
over_ways!(what_others_take_away_is_put_back_and_told, |way, _family| {
    let lab = Lab::new();
    lab.track_connections();
    let mirrors = Family::BOTH.map(|family| Mirror::start(&lab.server, family.destination(80)));
    let mut config = uci(way, Family::V4).listener(&[("router", "1")]);
    if way == Way::Direct {
        // Elements of sets must come back, too.
        config = config.listener(&[("dest_ip", "@wanted")]).section(
            "config set 'wanted'\n\tlist entry '203.0.113.0/24'\n\tlist entry '2001:db8:77::/64'\n",
        );
    }
    let daemon = Daemon::start(&lab, &config);
    let mut old = connect(&lab.client, mirrors[0].at);
    assert_eq!(ask(&mut old).expect("an answer").ip(), Family::V4.router_wan());
    let installed = state(&lab);
    let thefts: [(&str, &[&str]); 5] = [
        ("nft", &["flush", "ruleset"]),
        ("nft", &["flush", "table", "inet", "tproxyd"]),
        ("nft", &["flush", "chain", "inet", "tproxyd", "prerouting"]),
        ("ip", &["-6", "rule", "del", "pref", "533"]),
        ("ip", &["-4", "rule", "flush"]),
    ];
    for (n, (tool, args)) in thefts.into_iter().enumerate() {
        lab.router.tool(tool, args, "");
        if args == ["-4", "rule", "flush"] {
            lab.router.tool("ip", &["rule", "add", "pref", "32766", "lookup", "main"], "");
            lab.router.tool("ip", &["rule", "add", "pref", "32767", "lookup", "default"], "");
        }
        if args == ["flush", "ruleset"] {
            lab.track_connections();
        }
        until_state(&lab, &format!("{args:?} was not mended"), |state| sorted(state) == sorted(&installed));
        assert_eq!(ask(&mut old).expect("it goes on").ip(), Family::V4.router_wan());
        for (mirror, family) in mirrors.iter().zip(Family::BOTH) {
            assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), family.router_wan());
            let socket = udp(&lab.client, family.client(), 0);
            let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
            assert_eq!(seen.ip(), family.router_wan(), "after {args:?}");
        }
        if n == 0 {
            daemon.process().wait_for_line(&["rules had been taken away", "in place again"]);
        }
    }
    daemon.stop();
}, tproxy Direct V4, redirect Redirect V4);

#[test]
fn a_firewall_that_reloads_is_no_reason_to_touch_anything() {
    let lab = Lab::new();
    lab.track_connections();
    let daemon = Daemon::start(&lab, &uci(Way::Direct, Family::V4));
    let before = daemon.process().line_count();
    let handles = || lab.router.tool("nft", &["-a", "list", "table", "inet", "tproxyd"], "");
    let rules = handles();
    for _ in 0..5 {
        nft(&lab, "flush table inet firewall");
        lab.track_connections();
    }
    // Something that does concern us comes after it, so that we know when that has been dealt with.
    let _guest = lab.second_client();
    daemon.process().wait_for_line_after(before, &["devices or addresses have changed"]);
    until_state(&lab, "the new prefix is not passed by", |state| state.contains("192.168.2.0/24"));
    let kind = |text: &str| text.lines().filter(|line| line.contains("elements")).count();
    assert!(kind(&handles()) >= kind(&rules));
    assert!(!daemon.process().said().contains("taken away"), "{}", daemon.process().said());
}

/// A device that goes and comes back under its name, as a bridge or a PPP line does.
#[test]
fn a_device_that_comes_back_is_caught_again_without_a_reload() {
    let lab = Lab::new();
    let config = Uci::new("direct").listener(&[("device", "lan1")]);
    let daemon = Daemon::start(&lab, &config);
    for _ in 0..2 {
        let client = lab.second_client();
        for family in Family::BOTH {
            let mirror = Mirror::start(&lab.server, family.destination(80));
            assert_eq!(seen_by_tcp(&client, mirror.at).expect("a connection").ip(), family.router_wan());
        }
        lab.router.tool("ip", &["link", "del", "lan1"], "");
    }
    daemon.stop();
}

#[test]
fn an_address_that_the_router_gets_later_is_its_own_at_once() {
    let lab = Lab::new();
    let _daemon = Daemon::start(&lab, &uci(Way::Direct, Family::V4));
    for (family, address) in Family::BOTH.into_iter().zip(["198.51.100.77/24", "2001:db8:1::77/64"]) {
        let command = format!("addr add {address} dev wan0{}\n", if family == Family::V6 { " nodad" } else { "" });
        lab.router.tool("ip", &["-batch", "-"], &command);
        let ip = address.split('/').next().expect("an address").parse().expect("an address");
        let service = Mirror::start(&lab.router, ip);
        assert_eq!(seen_by_tcp(&lab.client, service.at).expect("a connection").ip(), family.client());
    }
}

/// dnsmasq fills sets of our table, and people read its counters: a reload flushes rules only.
#[test]
fn a_reload_keeps_sets_that_others_fill_and_counters() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &uci(Way::Direct, Family::V4));
    nft(
        &lab,
        "add set inet tproxyd filled_by_others { type ipv4_addr; }\n\
         add element inet tproxyd filled_by_others { 203.0.113.99 }\n",
    );
    let mirror = Mirror::start(&lab.server, Family::V4.destination(80));
    seen_by_tcp(&lab.client, mirror.at).expect("a connection");
    let packets = || {
        let counter = lab.router.tool("nft", &["list", "counter", "inet", "tproxyd", "listener_lan"], "");
        counter
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1)
            .expect("a number")
            .parse::<u64>()
            .expect("a number")
    };
    let before = packets();
    assert!(before > 0);
    daemon.write_config(&uci(Way::Direct, Family::V4).globals(&[("log_level", "info")]));
    daemon.reload(&["reload"]);
    assert!(packets() >= before);
    assert!(state(&lab).contains("203.0.113.99"));
}

// mwan3 (0x3f00) and pbr (0xff0000) mark packets and connections, too: each touches its own bits only.
over_ways!(marks_of_others_survive, |way, family| {
    let lab = Lab::new();
    nft(
        &lab,
        "table inet others {
            chain first { type filter hook prerouting priority mangle - 10;
                iifname lan0 meta mark set meta mark | 0x00aa1500 ct mark set ct mark | 0x00aa1500
            }
            chain last { type filter hook input priority filter;
                iifname lan0 meta mark & 0x00ff3f00 != 0x00aa1500 drop comment \"packet\"
                iifname lan0 ct mark & 0x00ff3f00 != 0x00aa1500 drop comment \"connection\"
                iifname lan0 meta l4proto { tcp, udp } counter comment \"whole\"
            }
        }",
    );
    let _daemon = Daemon::start(&lab, &uci(way, family));
    let mirror = Mirror::start(&lab.server, family.destination(80));
    assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), family.router_wan());
    let socket = udp(&lab.client, family.client(), 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.router_wan());
    let list = lab.router.tool("nft", &["list", "table", "inet", "others"], "");
    let whole = list.lines().find(|line| line.contains("whole")).expect("the last rule");
    assert!(!whole.contains("packets 0 "), "{list}");
    let flows = lab.router.tool("conntrack", &["-L", "-f", if family == Family::V4 { "ipv4" } else { "ipv6" }], "");
    let ours = 0x01aa_1500.to_string();
    assert!(flows.lines().any(|line| line.contains(&format!("mark={ours} "))), "{flows}");
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

//! Start, reload, stop and death of the daemon: what runs through the router goes on, and nothing is left behind.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::daemon::{BACKEND, Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, ask, seen_by_tcp, seen_by_udp};
use crate::ns::Namespace;
use crate::over_the_daemons_ways;
use crate::over_ways;
use crate::passage::{Passage, Way, uci};
use crate::process::describe;
use crate::sock::{PATIENCE, connect, exchange, listen, udp};

const SECOND: Duration = Duration::from_secs(1);

/// Everything that the daemon may touch in the router's namespace. What the kernel itself adds or changes once it sees that a
/// link is up, or knows that an address is nobody else's, may come late, and is left out.
pub fn state(lab: &Lab) -> String {
    let ip = |args: &[&str]| {
        let lines = lab.router.tool("ip", args, "");
        let ours = lines.lines().filter(|line| !line.contains("fe80:") && !line.contains("ff00::"));
        ours.map(|line| line.replace("linkdown ", "") + "\n").collect::<String>()
    };
    let filter = match std::env::var(BACKEND).as_deref() {
        Ok("iptables") => iptables_rules(&lab.router),
        _ => lab.router.tool("nft", &["-s", "list", "ruleset"], ""),
    };
    [
        filter,
        ip(&["-4", "rule"]),
        ip(&["-6", "rule"]),
        ip(&["-4", "route", "show", "table", "all"]),
        ip(&["-6", "route", "show", "table", "all"]),
    ]
    .concat()
}

/// All rules of iptables, of both families, and all chains of ours. (Its tables stay, once there was something in them.)
pub fn iptables_rules(router: &Namespace) -> String {
    let all = ["iptables-save", "ip6tables-save"].map(|tool| router.tool(tool, &[], ""));
    let lines = all.iter().flat_map(|text| text.lines());
    lines.filter(|line| line.starts_with("-A") || line.contains("tproxyd")).collect::<Vec<_>>().join("\n")
}

fn direct() -> Uci {
    uci(Way::Direct, Family::V4)
}

fn blocking() -> Uci {
    direct().globals(&[("on_failure", "block")])
}

fn mirrors(lab: &Lab) -> [Mirror; 2] {
    Family::BOTH.map(|family| Mirror::start(&lab.server, family.destination(80)))
}

/// How a mirror sees a new connection, as the daemon relays it or not.
pub fn relayed(lab: &Lab, mirror: &Mirror) -> bool {
    let seen = seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip();
    let family = if mirror.at.is_ipv4() { Family::V4 } else { Family::V6 };
    assert!(seen == family.client() || seen == family.router_wan(), "{seen}");
    seen == family.router_wan()
}

/// Connections, and datagrams where the router tells old from new, that were there before the daemon.
fn survive_start_reload_and_stop(lab: &Lab, way: Way, datagrams_too: bool) {
    let config = uci(way, Family::V4);
    let mirrors = mirrors(lab);
    let mut old: Vec<_> = mirrors.iter().map(|mirror| connect(&lab.client, mirror.at)).collect();
    let sockets = Family::BOTH.map(|family| udp(&lab.client, family.client(), 0));
    let mut untouched = |when: &str| {
        for (mirror, (stream, socket)) in mirrors.iter().zip(old.iter_mut().zip(&sockets)) {
            let seen = ask(stream).unwrap_or_else(|e| panic!("{when}: {e}"));
            assert_eq!(seen, stream.local_addr().expect("connected"), "TCP, {when}");
            if datagrams_too {
                let seen = seen_by_udp(socket, mirror.at, PATIENCE).unwrap_or_else(|e| panic!("{when}: {e}"));
                assert_eq!(seen, socket.local_addr().expect("bound"), "UDP, {when}");
            }
        }
    };
    untouched("before");
    let daemon = Daemon::start(lab, &config);
    assert!(mirrors.iter().all(|mirror| relayed(lab, mirror)), "new connections are relayed");
    untouched("after the start");
    daemon.write_config(&config.globals(&[("log_level", "info")]));
    daemon.reload(&["reload"]);
    untouched("after a reload");
    daemon.stop();
    untouched("after the stop");
    assert!(!mirrors.iter().any(|mirror| relayed(lab, mirror)), "new connections are forwarded again");
}

over_ways!(flows_from_before_the_start_survive_start_reload_and_stop, |way, _family| {
    let lab = Lab::new();
    lab.track_connections();
    survive_start_reload_and_stop(&lab, way, true);
}, tproxy Direct V4, redirect Redirect V4);

// The kernel takes every first packet that it sees for the beginning of a connection, if nothing has tracked them before.
over_ways!(connections_from_before_the_start_survive_it_even_if_the_router_did_not_track_them, |way, _family| {
    survive_start_reload_and_stop(&Lab::new(), way, false);
}, tproxy Direct V4, redirect Redirect V4);

over_the_daemons_ways!(what_is_relayed_survives_a_reload, |way, family| {
    let passage = Passage::open(way, family);
    let (mut client, mut server) = passage.pair();
    exchange(&mut client, &mut server, b"ask", b"answer");
    let mirror = Mirror::start(&passage.lab.server, family.destination(7));
    let socket = udp(&passage.lab.client, family.client(), 0);
    let seen = seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");

    let daemon = passage.daemon();
    daemon.write_config(&uci(way, family).section("config rule\n\tlist dest_port '9'\n\toption outbound 'reject'\n"));
    daemon.reload(&["reload"]);
    exchange(&mut client, &mut server, b"still", b"there");
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer"), seen, "the same mapping");
    assert_eq!(daemon.status().number("tcp.active"), 1);
});

#[test]
fn a_reload_with_a_bad_file_changes_nothing_and_says_so() {
    let lab = Lab::new();
    let [mirror, _] = mirrors(&lab);
    let daemon = Daemon::start(&lab, &direct());
    let mut stream = connect(&lab.client, mirror.at);
    ask(&mut stream).expect("an answer");
    let before = state(&lab);
    daemon.write_config_text("config globals\n\toption log_levle 'info'\n");
    let line = daemon.reload(&["log_levle"]);
    assert!(line.contains(":2"), "the line must be named: {line}");
    assert_eq!(state(&lab), before);
    ask(&mut stream).expect("the old connection goes on");
    assert!(relayed(&lab, &mirror), "new ones are relayed as before");
    daemon.stop();
}

over_ways!(sigterm_under_load_ends_within_a_second_and_leaves_the_router_as_it_was, |way, family| {
    let lab = Lab::new();
    let before = state(&lab);
    let listener = listen(&lab.server, family.destination(80), 80);
    let daemon = Daemon::start(&lab, &uci(way, family).globals(&[("log_level", "info")]));
    let pairs: Vec<_> = (0..200)
        .map(|_| (connect(&lab.client, listener.local_addr().expect("bound")), crate::sock::accept(&listener)))
        .collect();
    thread::scope(|scope| {
        // The clock ends it where the daemon does not.
        let begin = Instant::now();
        let flood = move |mut stream: &TcpStream| {
            while begin.elapsed() < PATIENCE && stream.write_all(&[0; 65_536]).is_ok() {}
        };
        for (client, server) in &pairs[..8] {
            scope.spawn(move || flood(client));
            scope.spawn(move || std::io::copy(&mut &*server, &mut std::io::sink()));
        }
        for (_, server) in &pairs[8..16] {
            scope.spawn(move || flood(server));
        }
        daemon.status_until("the load is on", |status| status.number("tcp.active") == 200);
        let begin = Instant::now();
        daemon.stop();
        assert!(begin.elapsed() < SECOND, "it took {:?}", begin.elapsed());
    });
    assert_eq!(state(&lab), before);
}, tproxy Direct V4, redirect Redirect V4);

#[test]
fn killed_with_on_failure_direct_new_connections_work_at_once() {
    let lab = Lab::new();
    let (before, mirrors) = (state(&lab), mirrors(&lab));
    let daemon = Daemon::start(&lab, &direct());
    assert!(mirrors.iter().all(|mirror| relayed(&lab, mirror)));
    daemon.process().signal(Signal::SIGKILL);
    daemon.process().wait_end(PATIENCE);
    let begin = Instant::now();
    assert!(!mirrors.iter().any(|mirror| relayed(&lab, mirror)));
    assert!(begin.elapsed() < SECOND, "it took {:?}", begin.elapsed());
    daemon.process().wait_silence(PATIENCE); // the helper has cleaned up
    assert_eq!(state(&lab), before);
}

#[test]
fn a_daemon_that_a_trap_ends_says_at_which_address() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &direct());
    daemon.process().signal(Signal::SIGILL);
    daemon.process().wait_for_line(&["tproxyd: stopped by a defect at 0x", "please report this line"]);
    assert_eq!(daemon.process().wait_end(PATIENCE).signal(), Some(Signal::SIGILL as i32));
}

over_ways!(killed_with_on_failure_direct_a_udp_client_with_a_fixed_port_is_masqueraded_within_a_second, |way, family| {
    let lab = Lab::new();
    lab.masquerade();
    let mirror = Mirror::start(&lab.server, Family::V4.destination(80));
    let daemon = Daemon::start(&lab, &uci(way, family));
    let wireguard = udp(&lab.client, Family::V4.client(), 51_820);
    let relayed = seen_by_udp(&wireguard, mirror.at, PATIENCE).expect("an answer");
    assert_eq!(relayed.ip(), Family::V4.router_wan());
    daemon.process().signal(Signal::SIGKILL);
    daemon.process().wait_end(PATIENCE);
    let begin = Instant::now();
    loop {
        let seen = seen_by_udp(&wireguard, mirror.at, SECOND / 20);
        if seen.is_ok_and(|seen| seen.ip() == Family::V4.router_wan()) {
            break;
        }
        assert!(begin.elapsed() < SECOND, "the client's datagrams still leave the router with its private address");
    }
}, tproxy Direct V4, redirect Redirect V4);

over_ways!(killed_with_on_failure_block_nothing_passes_until_a_restart, |way, family| {
    let lab = Lab::new();
    let (before, mirror) = (state(&lab), Mirror::start(&lab.server, family.destination(80)));
    let mut daemon = Daemon::start(&lab, &uci(way, family).globals(&[("on_failure", "block")]));
    assert!(relayed(&lab, &mirror));
    let socket = udp(&lab.client, family.client(), 0);
    seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
    daemon.kill();
    let blocked = lab.client.within(|| TcpStream::connect_timeout(&mirror.at, SECOND));
    assert!(blocked.is_err(), "a connection passed");
    seen_by_udp(&socket, mirror.at, SECOND / 4).expect_err("a datagram of an old flow passed");
    let fresh = udp(&lab.client, family.client(), 0);
    seen_by_udp(&fresh, mirror.at, SECOND / 4).expect_err("a datagram of a new flow passed");

    daemon.restart();
    assert!(relayed(&lab, &mirror));
    seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
    daemon.stop();
    assert_eq!(state(&lab), before);
}, v4 Direct V4, v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

#[test]
fn clear_leaves_the_namespace_as_it_was_found_after_any_death_and_may_be_repeated() {
    for config in [direct(), blocking(), uci(Way::Redirect, Family::V4)] {
        let lab = Lab::new();
        lab.masquerade();
        let before = state(&lab);
        let daemon = Daemon::start(&lab, &config);
        assert_ne!(state(&lab), before);
        daemon.kill();
        daemon.command("clear", &[]);
        assert_eq!(state(&lab), before);
        daemon.command("clear", &[]);
        assert_eq!(state(&lab), before);
    }
}

#[test]
fn clear_mends_what_is_half_there() {
    let lab = Lab::new();
    let before = state(&lab);
    let daemon = Daemon::start(&lab, &blocking());
    daemon.kill();
    lab.router.tool("ip", &["-4", "rule", "del", "pref", "533"], "");
    daemon.command("clear", &[]);
    assert_eq!(state(&lab), before);
}

#[test]
fn a_start_that_cannot_listen_installs_nothing_and_names_the_port() {
    let lab = Lab::new();
    let before = state(&lab);
    let _taken = listen(&lab.router, "::".parse().expect("an address"), 2333);
    let daemon = Daemon::launch(&lab, &direct());
    assert_eq!(describe(daemon.end()), "exit 1");
    daemon.process().wait_silence(PATIENCE);
    let said = daemon.process().said();
    assert!(said.contains("2333") && said.contains("Address already in use"), "{said}");
    assert_eq!(state(&lab), before);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let lab = Lab::new();
    let mirrors = mirrors(&lab);
    let first = Daemon::start(&lab, &direct());
    let installed = state(&lab);
    let second = Daemon::launch(&lab, &direct());
    assert_eq!(describe(second.end()), "exit 1");
    second.process().wait_silence(PATIENCE);
    assert_eq!(state(&lab), installed);
    assert!(mirrors.iter().all(|mirror| relayed(&lab, mirror)));
    first.stop();
}

#[test]
fn run_without_rules_leaves_netfilter_and_routes_alone() {
    let lab = Lab::new();
    let before = state(&lab);
    let daemon = Daemon::start_with(&lab, &direct(), &["--no-rules"]);
    assert_eq!(state(&lab), before);
    daemon.stop();
    assert_eq!(state(&lab), before);
}

#[test]
fn run_does_nothing_and_says_so_when_it_is_not_enabled() {
    let lab = Lab::new();
    let before = state(&lab);
    let daemon = Daemon::launch(&lab, &direct().globals(&[("enabled", "0")]));
    assert_eq!(describe(daemon.end()), "exit 0");
    daemon.process().wait_for_line(&["enabled"]);
    assert_eq!(state(&lab), before);
}

#[test]
fn what_is_on_link_or_the_routers_own_is_passed_by() {
    let lab = Lab::new();
    // Another network of the house, on a device without a default route.
    let guest = lab.guest();
    let printer = Mirror::start(&guest, "192.168.2.2".parse().expect("an address"));
    let routers = Family::BOTH.map(|family| Mirror::start(&lab.router, family.router_wan()));
    let _daemon = Daemon::start(&lab, &direct());
    assert_eq!(seen_by_tcp(&lab.client, printer.at).expect("a connection").ip(), Family::V4.client());
    for (own, family) in routers.iter().zip(Family::BOTH) {
        assert_eq!(seen_by_tcp(&lab.client, own.at).expect("a connection").ip(), family.client());
        let socket = udp(&lab.client, family.client(), 0);
        assert_eq!(seen_by_udp(&socket, own.at, PATIENCE).expect("an answer").ip(), family.client());
    }
}

#[test]
fn a_clients_own_connection_to_the_proxy_is_not_proxied_twice_and_its_other_ports_follow_the_rules() {
    let passage = Passage::open(Way::Microsocks, Family::V4);
    let daemon = passage.daemon();
    let proxy = SocketAddr::new(Family::V4.proxy(), 1080);
    let mut stream = connect(&passage.lab.client, proxy);
    stream.write_all(&[5, 1, 0]).expect("send");
    assert_eq!(crate::sock::read_n(&mut stream, 2), [5, 0]);
    assert_eq!(daemon.status().number("tcp.total"), 0);
    let web = Mirror::start(&passage.lab.server, Family::V4.proxy());
    assert_ne!(seen_by_tcp(&passage.lab.client, web.at).expect("a connection").ip(), Family::V4.client());
    assert_eq!(daemon.status().number("tcp.total"), 1);
}

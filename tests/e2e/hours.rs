//! Rules with hours: a boundary changes what new flows get, and what live ones have, in the process and in the kernel.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, ask, seen_by_udp};
use crate::process::until;
use crate::sock::{PATIENCE, connect, refusal, udp};
use crate::socks::{Manners, Socks};

/// East of Greenwich, in seconds: 5:17, which no zone has.
const ZONE: (&str, u64) = ("XXX-5:17", 5 * 3600 + 17 * 60);

/// After this nothing comes any more.
const BRIEF: Duration = Duration::from_millis(300);

/// Time for what must be there before the hour comes.
const AHEAD: u64 = 8;

/// `start_time` or `stop_time`, so many seconds from now, by the clocks of [`ZONE`].
fn clock(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() + ZONE.1;
    let time = (now + seconds) % 86_400;
    format!("{:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

fn straight(verdicts: &str, rules: &str) -> Uci {
    Uci::new("direct").globals(&[("kernel_verdicts", verdicts), ("default", "direct")]).section(rules)
}

fn launch(lab: &Lab, uci: &Uci) -> Daemon {
    let daemon = Daemon::launch_by(lab, uci, &[], |router| {
        let mut command = router.command(PROGRAM);
        command.env("TZ", ZONE.0);
        command
    });
    daemon.process().wait_for_line(&["ready"]);
    daemon
}

/// Flows begin, then their hour comes: both of them end, and new ones are refused, until it is over.
fn a_night(verdicts: &str) {
    let lab = Lab::new();
    lab.track_connections();
    let daemon = launch(&lab, &straight(verdicts, ""));
    let mirrors = Family::BOTH.map(|family| Mirror::start(&lab.server, family.destination(80)));
    let mut streams = mirrors.each_ref().map(|mirror| connect(&lab.client, mirror.at));
    let sockets = Family::BOTH.map(|family| udp(&lab.client, family.client(), 0));
    for ((mirror, stream), socket) in mirrors.iter().zip(&mut streams).zip(&sockets) {
        ask(stream).expect("an answer");
        seen_by_udp(socket, mirror.at, PATIENCE).expect("an answer");
    }
    let night = |start: u64, stop: u64| {
        format!(
            "config rule\n\toption name 'night'\n\toption start_time '{}'\n\toption stop_time '{}'\n\toption outbound 'reject'\n",
            clock(start),
            clock(stop)
        )
    };
    daemon.write_config(&straight(verdicts, &night(AHEAD, 7200)));
    let told = daemon.process().line_count();
    assert!(daemon.reload(&[]).contains("rules"));
    daemon.process().wait_for_line_after(told, &["rule 0 'night' holds from now on"]);
    daemon.process().wait_for_line_after(told, &["rules in the kernel are those of this hour"]);
    for ((mirror, stream), socket) in mirrors.iter().zip(&mut streams).zip(&sockets) {
        let ended = ask(stream).expect_err("its hour has come").kind();
        assert!(
            matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof),
            "{ended:?}"
        );
        assert!(seen_by_udp(socket, mirror.at, BRIEF).is_err(), "UDP of a flow that began before");
        // the process resets after it has accepted, the kernel before
        let refused = refusal(&lab.client, mirror.at);
        assert!(matches!(refused, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{refused:?}");
    }
    let status = daemon.status();
    assert_eq!(status.at("rules.0.holds"), &Json::Bool(true), "{status}");
    let left = status.number("rules.0.changes") - status.number("time");
    assert!((1..=7200).contains(&left), "{status}");
    let said = daemon.command("status", &[]);
    assert!(said.contains("0: holds now, for 1 h"), "{said}");
    // the night ends, and everything is as before
    daemon.write_config(&straight(verdicts, &night(86_400 - 3600, AHEAD)));
    let told = daemon.process().line_count();
    daemon.reload(&[]);
    daemon.process().wait_for_line_after(told, &["rule 0 'night' holds no more"]);
    daemon.process().wait_for_line_after(told, &["rules in the kernel are those of this hour"]);
    for (mirror, family) in mirrors.iter().zip(Family::BOTH) {
        ask(&mut connect(&lab.client, mirror.at)).expect("an answer");
        let socket = udp(&lab.client, family.client(), 0);
        seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer");
    }
    let explained = daemon.command("explain", &["tcp", "192.168.1.2:40000", "203.0.113.80:80"]);
    let depends = "depends on time: if it matches, outbound 'reject' (now it does not hold, for ";
    assert!(explained.contains(depends), "{explained}");
}

#[test]
fn live_flows_that_the_kernel_decided_end_when_their_hour_comes() {
    a_night("1");
}

#[test]
fn live_flows_of_the_process_end_when_their_hour_comes() {
    a_night("0");
}

/// What goes to port 4001 and 4003 goes by a proxy, the rest is direct; at `evening` 4000 turns to the proxy, and 4001 away
/// from it.
fn turning(evening: Option<&str>, further: &str) -> Uci {
    let uci = Uci::new("socks5")
        .globals(&[("kernel_verdicts", "1"), ("reclassify", "1"), ("default", "direct")])
        .outbound(&[("server", "198.51.100.2"), ("port", "1080")])
        .section(further);
    let timed = |(port, outbound): (u16, &str)| {
        let start = evening?;
        Some(format!(
            "config rule\n\toption dest_port '{port}'\n\toption start_time '{start}'\n\toption outbound '{outbound}'\n"
        ))
    };
    let uci = [(4000, "out"), (4001, "direct")].into_iter().filter_map(timed).fold(uci, |uci, rule| uci.section(&rule));
    uci.section("config rule\n\tlist dest_port '4001'\n\tlist dest_port '4003'\n\toption outbound 'out'\n")
}

#[test]
fn a_boundary_turns_live_flows_of_kernel_and_process_and_a_reload_with_reclassify_keeps_to_it() {
    let lab = Lab::new();
    lab.track_connections();
    let _proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let daemon = launch(&lab, &turning(None, ""));
    let mirrors = [0, 1, 2, 3].map(|n| Mirror::start_at(&lab.server, Family::V4.destination(80), 4000 + n));
    let mut streams = mirrors.each_ref().map(|mirror| connect(&lab.client, mirror.at));
    let sockets = [0; 4].map(|_| udp(&lab.client, Family::V4.client(), 0));
    // what the process has taken stays with it, and goes out in the router's name when it is direct
    let by_proxy = |seen: SocketAddr| ![Family::V4.client(), Family::V4.router_wan()].contains(&seen.ip());
    for (n, (stream, (socket, mirror))) in streams.iter_mut().zip(sockets.iter().zip(&mirrors)).enumerate() {
        assert_eq!(by_proxy(ask(stream).expect("an answer")), n % 2 == 1, "TCP {n}");
        assert_eq!(by_proxy(seen_by_udp(socket, mirror.at, PATIENCE).expect("an answer")), n % 2 == 1, "UDP {n}");
    }
    let evening = clock(AHEAD);
    daemon.write_config(&turning(Some(&evening), ""));
    assert!(daemon.reload(&[]).contains("rules"));
    for (n, (stream, (socket, mirror))) in streams.iter_mut().zip(sockets.iter().zip(&mirrors)).enumerate() {
        let (turns, expected) = (n < 2, matches!(n, 0 | 3));
        if turns {
            until("TCP that turns ends", || ask(stream).is_err());
            *stream = connect(&lab.client, mirror.at);
        }
        assert_eq!(by_proxy(ask(stream).expect("an answer")), expected, "TCP {n} in the evening");
        until("UDP goes the new way", || {
            seen_by_udp(socket, mirror.at, BRIEF).is_ok_and(|seen| by_proxy(seen) == expected)
        });
    }
    // the reload turns 4002 and 4003 away, and leaves the others where the hour has sent them
    let refused = "config rule\n\tlist dest_port '4002'\n\tlist dest_port '4003'\n\toption outbound 'reject'\n";
    daemon.write_config(&turning(Some(&evening), refused));
    assert!(daemon.reload(&[]).contains("rules"));
    for (n, (stream, (socket, mirror))) in streams.iter_mut().zip(sockets.iter().zip(&mirrors)).enumerate() {
        if n < 2 {
            ask(stream).expect("it goes where it went");
            seen_by_udp(socket, mirror.at, PATIENCE).expect("an answer");
        } else {
            until("TCP that is refused ends", || ask(stream).is_err());
            until("UDP that is refused is not answered", || seen_by_udp(socket, mirror.at, BRIEF).is_err());
        }
    }
}

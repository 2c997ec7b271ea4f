//! Rules with hours: a boundary changes what new flows get, and what live ones have, in the process and in the kernel.

use std::io::ErrorKind;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, ask, seen_by_udp};
use crate::sock::{PATIENCE, connect, refusal, udp};

/// East of Greenwich, in seconds: 5:17, which no zone has.
const ZONE: (&str, u64) = ("XXX-5:17", 5 * 3600 + 17 * 60);

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

/// Flows begin, then their hour comes: both of them end, and new ones are refused, until it is over.
fn a_night(verdicts: &str) {
    let lab = Lab::new();
    lab.track_connections();
    let daemon = Daemon::launch_by(&lab, &straight(verdicts, ""), &[], |router| {
        let mut command = router.command(env!("CARGO_BIN_EXE_tproxyd"));
        command.env("TZ", ZONE.0);
        command
    });
    daemon.process().wait_for_line(&["ready"]);
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
        let brief = Duration::from_millis(300);
        assert!(seen_by_udp(socket, mirror.at, brief).is_err(), "UDP of a flow that began before");
        // the process resets after it has accepted, the kernel before
        let refused = refusal(&lab.client, mirror.at);
        assert!(matches!(refused, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{refused:?}");
    }
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
    assert!(explained.contains("depends on time: if it matches, outbound 'reject'"), "{explained}");
}

#[test]
fn live_flows_that_the_kernel_decided_end_when_their_hour_comes() {
    a_night("1");
}

#[test]
fn live_flows_of_the_process_end_when_their_hour_comes() {
    a_night("0");
}

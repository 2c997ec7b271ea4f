//! What an owner sees of the running daemon: the state of everything, and why something does not work.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp};
use crate::ns::Namespace;
use crate::passage::socks_uci;
use crate::process::{Process, TempDir, describe};
use crate::sock::{PATIENCE, accept, connect, exchange, listen, refusal};
use crate::socks::{Manners, Socks};

fn listener(status: &Json, what: &str) -> u64 {
    status.number(&format!("listeners.0.{what}"))
}

#[test]
fn the_status_tells_rules_without_traffic_from_traffic() {
    let lab = Lab::new();
    let mirror = Mirror::start(&lab.server, Family::V4.destination(80));
    let daemon = Daemon::start(&lab, &Uci::new("direct"));
    let status = daemon.status();
    assert_eq!((listener(&status, "packets"), listener(&status, "accepted")), (0, 0));
    assert!(daemon.command("status", &[]).contains("Rules are in place, but no packet has come"));

    seen_by_tcp(&lab.client, mirror.at).expect("an answer");
    let status = daemon.status();
    assert_eq!(listener(&status, "accepted"), 1);
    assert!(listener(&status, "packets") >= 3, "{status}");
    assert!(!daemon.command("status", &[]).contains("no packet"));

    lab.router.tool("nft", &["delete", "table", "inet", "tproxyd"], "");
    // not those of before: none to count, or mended already and nothing counted yet
    let packets = daemon.status().at("listeners.0.packets").clone();
    assert!(packets == Json::Null || packets == Json::Number(0.0), "{packets}");
}

#[test]
fn the_status_says_when_an_outbound_failed_last_and_why_and_what_was_in_the_log() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &socks_uci(Family::V4));
    let outbound = |status: &Json| status.list("outbounds").iter().find(|o| o.text("name") == "out").cloned();
    assert_eq!(outbound(&daemon.status()).expect("it is there").at("last_error"), &Json::Null);
    assert_eq!(daemon.status().list("problems").len(), 0);

    // nobody listens at the proxy's address
    refusal(&lab.client, (Family::V4.destination(80), 443).into());
    let status = daemon.status_until("the failure is counted", |status| status.number("problem_count") > 0);
    let out = outbound(&status).expect("it is there");
    assert_eq!((out.text("state"), out.number("errors")), ("down", 1));
    assert_eq!(out.text("last_error.text"), "203.0.113.80:443: connection refused");
    assert!(out.number("last_error.time").abs_diff(status.number("time")) < 60);
    let problem = &status.list("problems")[0];
    assert_eq!(problem.text("level"), "warn");
    assert!(problem.text("text").contains("via 'out' (server 198.51.100.2:1080)"), "{problem}");
    let screen = daemon.command("status", &[]);
    assert!(screen.contains("out: last error") && screen.contains("Problems in the log: 1, the last"), "{screen}");
}

/// Lines of `tproxyd events` of a daemon.
fn follow(daemon: &Daemon, router: &Namespace) -> Process {
    let mut command = router.command(PROGRAM);
    command.args(["events", "--config"]).arg(daemon.config());
    Process::start(command)
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &socks_uci(Family::V4));
    let events = follow(&daemon, &lab.router);
    // the first event may come before it follows
    let begin = Instant::now();
    while events.line_count() == 0 {
        assert!(begin.elapsed() < PATIENCE, "it never follows");
        daemon.reload(&["reloaded"]);
    }
    assert_eq!(Json::parse(&events.wait_for_line(&["reloaded"])).text("detail"), "nothing");
    let at = (Family::V4.destination(80), 443).into();
    refusal(&lab.client, at);
    let down = Json::parse(&events.wait_for_line(&["outbound_down"]));
    assert_eq!((down.text("name"), down.text("detail")), ("out", "203.0.113.80:443: connection refused"));
    assert!(down.number("time") > 1_700_000_000);
    let _proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let mirror = Mirror::start(&lab.server, Family::V4.destination(80));
    seen_by_tcp(&lab.client, mirror.at).expect("an answer");
    assert_eq!(Json::parse(&events.wait_for_line(&["outbound_up"])).text("name"), "out");
    daemon.write_config_text("config globals\n\toption log_levle 'info'\n");
    daemon.reload(&["log_levle"]);
    let failed = Json::parse(&events.wait_for_line(&["reload_failed"]));
    assert!(failed.text("detail").contains("log_levle"), "{failed}");
    daemon.stop();
    events.wait_for_line(&["it has ended"]);
    assert_eq!(describe(events.wait_end(PATIENCE)), "exit 1");
}

#[test]
fn the_script_of_on_event_runs_for_each_event_one_at_a_time_and_holds_up_nobody() {
    let lab = Lab::new();
    let files = TempDir::new();
    let (seen, gate) = (files.path().join("seen"), files.path().join("gate"));
    // the first waits for the gate; whoever comes while another runs would leave a word
    let script = files.write(
        "script",
        &format!(
            "#!/bin/sh\nmkdir {dir}/running || echo overlap >>{seen}\nwhile [ ! -e {gate} ]; do sleep 0.01; done\n\
             echo \"$EVENT $NAME $DETAIL $MISSED\" >>{seen}\nrmdir {dir}/running\n",
            dir = files.path().display(),
            seen = seen.display(),
            gate = gate.display()
        ),
    );
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let uci = socks_uci(Family::V4).globals(&[("on_event", script.to_str().expect("a plain path"))]);
    let daemon = Daemon::start(&lab, &uci);
    let lines = |n: usize| {
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(&seen).unwrap_or_default();
            if text.lines().count() >= n {
                return text;
            }
            assert!(begin.elapsed() < PATIENCE, "{n} lines never come; so far:\n{text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    refusal(&lab.client, (Family::V4.destination(80), 443).into());
    // a script that hangs does not keep the helper from what a reload needs; 40 events are more than are kept
    for _ in 0..40 {
        daemon.reload(&["reloaded"]);
    }
    assert!(!seen.exists());
    std::fs::write(&gate, "").expect("open the gate");
    let text = lines(33);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "outbound_down out 203.0.113.80:443: connection refused 0");
    assert_eq!(lines[1], "reloaded  nothing 8", "what it was too slow for is counted");
    assert!(lines[2..].iter().all(|line| *line == "reloaded  nothing 0"), "{text}");

    // one that cannot be run is said
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let line = daemon.reload(&["cannot run"]);
    assert!(line.contains("chmod +x"), "{line}");
}

/// Rules of several sorts.
const RULES: &str = "
config rule
	option name 'mail'
	list dest_port '25'
	option outbound 'reject'
config rule
	option enabled '0'
	option outbound 'drop'
config rule
	option name 'video'
	list domain 'video.example'
	option outbound 'out'
config rule
	list domain '=other.example'
	option outbound 'drop'
";

#[test]
fn explain_tells_listener_rules_and_outbound_from_the_daemon_or_from_the_file_and_says_which() {
    let lab = Lab::new();
    let uci = socks_uci(Family::V4).globals(&[("default", "direct")]).section(RULES);
    let daemon = Daemon::start(&lab, &uci);
    let asked =
        |args: &[&str]| daemon.command("explain", &[args, &["tcp", "192.168.1.2:40000", "203.0.113.80:443"]].concat());
    let all = asked(&["--domain", "a.video.example", "--mac", "02:00:5e:10:00:02"]);
    for line in [
        "The running daemon says",
        "listener 'lan' takes it by TPROXY, to port 2333",
        "rule 0 'mail': does not match: dest_port",
        "rule 2 'video': matches: outbound 'out' (unknown)",
        "So: outbound 'out' (unknown), by rule 2 'video'",
    ] {
        assert!(all.contains(line), "{line} in\n{all}");
    }
    let some = asked(&[]);
    for line in [
        "rule 2 'video': depends on domain: if it matches, outbound 'out'",
        "rule 3: depends on domain: if it matches, outbound 'drop'",
        "So: it depends on domain: outbound 'out' (unknown) by rule 2 'video', or outbound 'drop' by rule 3; \
         else outbound 'direct' by option default.",
    ] {
        assert!(some.contains(line), "{line} in\n{some}");
    }
    // what it says of the state is what the daemon knows
    refusal(&lab.client, (Family::V4.destination(80), 443).into());
    let proxied = uci.clone().globals(&[("default", "out")]);
    daemon.write_config(&proxied);
    daemon.reload(&["reloaded"]);
    refusal(&lab.client, (Family::V4.destination(80), 443).into());
    daemon.status_until("the outbound is down", |status| status.list("outbounds")[1].text("state") == "down");
    assert!(asked(&["--domain", "video.example"]).contains("outbound 'out' (down)"));
    // its own, and what is connected directly
    for (to, why) in [("192.168.1.1:443", "this machine's own"), ("192.168.1.77:443", "connected directly")] {
        let said = daemon.command("explain", &["tcp", "192.168.1.2:40000", to]);
        assert!(said.contains("it is not intercepted") && said.contains(why), "{said}");
    }
    // a rule that the file has and the daemon has not read
    daemon.write_config(&proxied.section("config rule\n\tlist dest_port '444'\n\toption outbound 'reject'\n"));
    let last = ["tcp", "192.168.1.2:40000", "203.0.113.80:444"];
    assert!(daemon.command("explain", &last).contains("by option default"));
    daemon.stop();
    let of_file = daemon.command("explain", &last);
    assert!(of_file.contains("says (no daemon answers)"), "{of_file}");
    assert!(
        of_file.contains("So: it depends on domain") && of_file.contains("outbound 'reject' by rule 4"),
        "{of_file}"
    );
}

/// Switches of a process away from the processor and back, of its own accord or not.
fn switches(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let counts = status.lines().filter(|line| line.contains("_ctxt_switches:"));
    counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[test]
fn without_traffic_neither_the_daemon_nor_its_helper_wakes_up() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &socks_uci(Family::V4).globals(&[("metrics", "127.0.0.1:9233")]));
    let follower = follow(&daemon, &lab.router);
    // a session that is there, and idle
    let _proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let listener = listen(&lab.server, Family::V4.destination(80), 80);
    let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
    let mut server = accept(&listener);
    exchange(&mut client, &mut server, b"ask", b"answer");
    let pid = daemon.process().pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    let helper: u32 = children.trim().parse().expect("one child, the helper");
    // what the start has left to do may take a while on a busy machine; then a whole second passes without a wake-up
    let begin = Instant::now();
    loop {
        let before = (switches(pid), switches(helper));
        std::thread::sleep(Duration::from_secs(1));
        let after = (switches(pid), switches(helper));
        if before == after {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "it wakes up every second: {before:?} to {after:?}");
    }
    exchange(&mut client, &mut server, b"still", b"there");
    drop(follower);
}

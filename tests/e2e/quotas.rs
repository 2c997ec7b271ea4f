//! `quota` of a rule: bytes for each client in a day or month, and where its flows go after that.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, ask, seen_by_udp};
use crate::ns::Namespace;
use crate::process::{Process, TempDir};
use crate::sock::{PATIENCE, accept, connect, exchange, listen, receive, refusal, udp};

const QUOTA: &str = "config rule\n\toption name 'tv'\n\toption outbound 'direct'\n\toption quota '100K'\n";

fn limited(more: &str) -> Uci {
    Uci::new("direct")
        .globals(&[("log_level", "info")])
        .listener(&[("device", "lan0 lan1")])
        .section(&format!("{QUOTA}{more}"))
}

/// Moves more than the quota to the client, whose connection must not outlive that.
fn use_up(client: &Namespace, server: &std::net::TcpListener) {
    let mut client = connect(client, server.local_addr().expect("bound"));
    let mut server = accept(server);
    server.set_write_timeout(Some(PATIENCE)).expect("timeout");
    // more than any buffers hold
    let ended = thread::scope(|scope| {
        let writer = scope.spawn(move || {
            loop {
                if let Err(e) = server.write_all(&[7; 65_536]) {
                    return e.kind();
                }
            }
        });
        while client.read(&mut [0; 65_536]).is_ok_and(|n| n > 0) {}
        drop(client);
        writer.join().expect("the writer")
    });
    assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended:?}");
}

fn is_over(stream: &mut TcpStream) {
    let end = stream.read(&mut [0; 1]).map_err(|e| e.kind());
    assert!(matches!(end, Err(ErrorKind::ConnectionReset) | Ok(0)), "{end:?}");
}

/// The client's connection is reset after the process has taken it.
fn is_refused(client: &Namespace, server: &std::net::TcpListener) {
    let kind = refusal(client, server.local_addr().expect("bound"));
    assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused), "{kind:?}");
}

#[test]
fn a_quota_that_is_used_up_ends_its_flows_is_told_once_and_outlives_a_restart() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let seen = files.path().join("seen");
    let script = files.write("script", &format!("#!/bin/sh\necho \"$EVENT $NAME $DETAIL\" >>{}\n", seen.display()));
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    let uci = limited("").globals(&[("on_event", script.to_str().expect("a plain path"))]);
    let mut daemon = Daemon::start(&lab, &uci);
    let mut command = lab.router.command(PROGRAM);
    command.args(["events", "--config"]).arg(daemon.config());
    let events = Process::start(command);
    while events.line_count() == 0 {
        daemon.reload(&["reloaded"]);
    }
    let other = lab.second_client();
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let join = |client: &Namespace| {
        let client = connect(client, listener.local_addr().expect("bound"));
        (client, accept(&listener))
    };
    let (mut idle, mut idle_server) = join(&lab.client);
    let (mut mine, mut mine_server) = join(&other);
    exchange(&mut idle, &mut idle_server, b"ask", b"answer");
    use_up(&lab.client, &listener);
    is_over(&mut idle);
    is_over(&mut idle_server);
    is_refused(&lab.client, &listener);
    exchange(&mut mine, &mut mine_server, b"another", b"has its own");

    let told = Json::parse(&events.wait_for_line(&["quota_used_up"]));
    assert_eq!(told.text("name"), "192.168.1.2");
    assert!(told.text("detail").starts_with("rule 0 'tv': "), "{told}");
    daemon.process().wait_for_line(&["client 192.168.1.2 has used up the quota of rule 0 'tv'"]);
    let begun = Instant::now();
    while !fs::read_to_string(&seen).unwrap_or_default().contains("quota_used_up 192.168.1.2 rule 0 'tv': ") {
        assert!(begun.elapsed() < PATIENCE, "the script is not run");
        thread::sleep(Duration::from_millis(10));
    }
    let status = daemon.status();
    assert_eq!(
        ["used", "used_up", "refused"].map(|what| status.number(&format!("quotas.{what}"))),
        [2, 1, 0],
        "{status}"
    );
    let explain = |client: &str| daemon.command("explain", &["tcp", client, "203.0.113.80:80"]);
    assert!(explain("192.168.1.2:40000").contains("reject"), "{}", explain("192.168.1.2:40000"));
    assert!(!explain("192.168.2.2:40000").contains("reject"), "{}", explain("192.168.2.2:40000"));
    assert!(explain("192.168.2.2:40000").contains("The process decides"), "{}", explain("192.168.2.2:40000"));

    daemon.stop();
    daemon.restart();
    is_refused(&lab.client, &listener);
    let (mut client, mut server) = join(&other);
    exchange(&mut client, &mut server, b"what is left", b"is left");
    let status = daemon.status();
    assert_eq!(status.number("quotas.used_up"), 1, "{status}");
    assert!(!daemon.process().said().contains("has used up the quota"), "who was told is not told again");

    // a file that makes no sense: said, and all begin anew
    daemon.stop();
    let file = daemon.config().with_file_name("quotas");
    let text = fs::read_to_string(&file).expect("the file");
    fs::write(&file, text.replace("month", "mouth")).expect("write");
    daemon.restart();
    daemon.process().wait_for_line(&["quotas", "line 2 is no account", "begins anew"]);
    let (mut client, mut server) = join(&lab.client);
    exchange(&mut client, &mut server, b"anew", b"anew");
}

#[test]
fn flows_go_to_quota_outbound_when_the_quota_is_used_up() {
    let lab = Lab::new();
    let after = Mirror::start(&lab.server, Family::V4.proxy());
    let way = format!(
        "\toption quota_outbound 'slow'\n\nconfig outbound 'slow'\n\toption type 'forward'\n\toption server '198.51.100.2'\n\toption port '{}'\n",
        after.at.port()
    );
    let daemon = Daemon::start(&lab, &limited(&way));
    let server = udp(&lab.server, Family::V4.destination(80), 0);
    let at = server.local_addr().expect("bound");
    let client = udp(&lab.client, Family::V4.client(), 0);
    // a live flow: its next datagram after that goes the other way, from which the mirror answers
    let piece = [7; 1024];
    for n in 0..100 {
        client.send_to(&piece, at).expect("send");
        assert_eq!(receive(&server).0.len(), piece.len(), "datagram {n}");
    }
    daemon.process().wait_for_line(&["has used up the quota"]);
    let seen = seen_by_udp(&client, at, PATIENCE).expect("the mirror answers in its place");
    assert_eq!(seen.ip(), Family::V4.router_wan());
    // so does a new connection, to where nobody listens
    let mut stream = connect(&lab.client, (Family::V4.destination(80), 9).into());
    assert_eq!(ask(&mut stream).expect("the mirror answers").ip(), Family::V4.router_wan());
    let sessions = daemon.command("sessions", &["--json"]);
    assert_eq!(sessions.matches("\"outbound\":\"slow\"").count(), 2, "{sessions}");
}

/// As local midnight comes in so many seconds: `TZ`, and so a day that is over soon.
fn zone_with_midnight_in(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let east = (2 * 86_400 - seconds - now % 86_400) % 86_400;
    let (sign, offset) = if east <= 43_200 { ('-', east) } else { ('+', 86_400 - east) };
    format!("XXX{sign}{}:{:02}:{:02}", offset / 3600, offset / 60 % 60, offset % 60)
}

#[test]
fn a_quota_begins_anew_at_midnight() {
    assert!([20, 60, 180].into_iter().any(until_midnight), "it is never used up before midnight");
}

/// False: midnight came before all was in place.
fn until_midnight(seconds: u64) -> bool {
    let midnight = Instant::now() + Duration::from_secs(seconds - 1);
    let lab = Lab::new();
    let daemon = Daemon::launch_by(&lab, &limited("\toption quota_period 'day'\n"), &[], |router| {
        let mut command = router.command(PROGRAM);
        command.env("TZ", zone_with_midnight_in(seconds));
        command
    });
    daemon.process().wait_for_line(&["ready"]);
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let mirror = Mirror::start(&lab.server, Family::V4.destination(81));
    let socket = udp(&lab.client, Family::V4.client(), 0);
    use_up(&lab.client, &listener);
    is_refused(&lab.client, &listener);
    socket.send_to(b"refused", mirror.at).expect("send");
    daemon.status_until("it is refused", |status| status.number("drops.by_rule") >= 2);
    if Instant::now() >= midnight {
        return false;
    }
    while !daemon.process().said().contains("quotas begin anew") {
        assert!(Instant::now() < midnight + PATIENCE, "midnight does not come");
        thread::sleep(Duration::from_millis(100));
    }
    let (mut client, mut server) = {
        let client = connect(&lab.client, listener.local_addr().expect("bound"));
        (client, accept(&listener))
    };
    exchange(&mut client, &mut server, b"another", b"day");
    // the port unreachable of the day before may still be waiting
    let seen = seen_by_udp(&socket, mirror.at, PATIENCE).or_else(|_| seen_by_udp(&socket, mirror.at, PATIENCE));
    seen.expect("an answer");
    true
}

#[test]
fn a_full_table_of_quotas_refuses_who_is_new_and_serves_who_is_there() {
    const PLACES: u8 = 32;
    let lab = Lab::new();
    // behind the client's address, so that the router knows no MAC address of theirs
    lab.client.tool("ip", &["-batch", "-"], "route add local 10.9.0.0/24 dev lo\n");
    lab.router.tool("ip", &["route", "add", "10.9.0.0/24", "via", "192.168.1.2"], "");
    let daemon = Daemon::start(&lab, &limited("").globals(&[("tcp_sessions", "16"), ("udp_sessions", "16")]));
    let mirror = Mirror::start(&lab.server, Family::V4.destination(80));
    let client = |n: u8| udp(&lab.client, IpAddr::from([10, 9, 0, n]), 0);
    for n in 0..PLACES {
        seen_by_udp(&client(n), mirror.at, PATIENCE).unwrap_or_else(|e| panic!("client {n}: {e}"));
    }
    let newcomer = client(PLACES);
    newcomer.send_to(b"one too many", mirror.at).expect("send");
    let status = daemon.status_until("it is refused", |status| status.number("drops.unmeasured") == 1);
    let table = ["used", "limit", "refused"].map(|what| status.number(&format!("quotas.{what}")));
    assert_eq!(table, [u64::from(PLACES), u64::from(PLACES), 1], "{status}");
    daemon.process().wait_for_line(&["rules with quota have 32 clients, and no more fit"]);
    seen_by_udp(&client(0), mirror.at, PATIENCE).expect("who has an account is served");
}

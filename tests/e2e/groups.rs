//! `group`: which member takes a flow, what becomes of flows when members die and come back, health checks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::proxies::tinyproxy;
use crate::sock::{PATIENCE, accept, connect, exchange, listen, receive, refusal, try_connect, udp, until_listening};
use crate::socks::{Asked, Manners, Socks};

const ONE: u16 = 1_080;
const OTHER: u16 = 1_081;

fn member(name: &str, kind: &str, port: u16, more: &str) -> String {
    let server = Family::V4.proxy();
    format!(
        "config outbound '{name}'\n\toption type '{kind}'\n\toption server '{server}'\n\toption port '{port}'\n\
         \toption check_interval '1s'\n\toption check_timeout '5s'\n\toption connect_timeout '2s'\n{more}\n"
    )
}

/// A group `out` of the SOCKS5 servers `one` and `other`.
fn uci(policy: &str, more: &[(&str, &str)]) -> Uci {
    let uci = Uci::new("group").outbound(&[("member", "one other"), ("policy", policy)]).outbound(more);
    uci.section(&member("one", "socks5", ONE, "")).section(&member("other", "socks5", OTHER, ""))
}

fn socks(lab: &Lab, port: u16) -> Socks {
    Socks::start(&lab.server, Family::V4.proxy(), port, Manners::default())
}

fn microsocks(lab: &Lab, port: u16) -> Process {
    let mut command = lab.server.command("microsocks");
    command.args(["-i", "0.0.0.0", "-p", &port.to_string()]);
    let process = Process::start(command);
    until_listening(&lab.server, SocketAddr::new(Family::V4.proxy(), port));
    process
}

fn state(daemon: &Daemon, name: &str, wanted: &str) {
    daemon.status_until(&format!("'{name}' is {wanted}"), |status| {
        let list = status.list("outbounds");
        list.iter().any(|outbound| outbound.text("name") == name && outbound.text("state") == wanted)
    });
}

/// Whether a server was asked to connect anywhere; checks do not ask for that.
fn was_used(socks: &Socks) -> usize {
    socks.asked().iter().filter(|asked| matches!(asked, Asked::Connect(_) | Asked::Associate(_))).count()
}

fn converse(lab: &Lab) {
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
    exchange(&mut client, &mut accept(&listener), b"ask", b"answer");
}

#[test]
fn failover_takes_the_first_and_a_dead_one_is_not_noticed_by_the_client() {
    let lab = Lab::new();
    let (one, other) = (socks(&lab, ONE), socks(&lab, OTHER));
    let daemon = Daemon::start(&lab, &uci("failover", &[]));
    state(&daemon, "one", "up");
    state(&daemon, "out", "up");
    converse(&lab);
    assert_eq!((was_used(&one), was_used(&other)), (1, 0));
    drop(one);
    for _ in 0..5 {
        converse(&lab);
    }
    assert_eq!(was_used(&other), 5);
    daemon.process().wait_for_line(&["outbound 'one' is down", "refused"]);
    let one = socks(&lab, ONE);
    daemon.process().wait_for_line_after(daemon.process().line_count().saturating_sub(1), &["outbound 'one' is up"]);
    converse(&lab);
    assert_eq!(was_used(&one), 1);
}

#[test]
fn a_member_that_dies_in_the_handshake_or_never_answers_is_passed_over() {
    for manners in [
        Manners { dies_at: Some(crate::socks::Stage::Greeting), ..Manners::default() },
        Manners { mute: true, ..Manners::default() },
        Manners { refuses: Some(1), ..Manners::default() },
        Manners { login: Some(("me", "secret")), ..Manners::default() },
    ] {
        let lab = Lab::new();
        let one = Socks::start(&lab.server, Family::V4.proxy(), ONE, manners.clone());
        let _other = socks(&lab, OTHER);
        let daemon = Daemon::start(&lab, &uci("failover", &[]));
        converse(&lab);
        converse(&lab);
        if manners.refuses.is_none() {
            state(&daemon, "one", "down");
        }
        daemon.wait_idle();
        drop(one);
    }
}

#[test]
fn a_destination_that_refuses_is_the_end_of_it() {
    let lab = Lab::new();
    let (_one, other) = (socks(&lab, ONE), socks(&lab, OTHER));
    let daemon = Daemon::start(&lab, &uci("failover", &[]));
    let closed = SocketAddr::new(Family::V4.destination(9), 9);
    assert_eq!(refusal(&lab.client, closed), std::io::ErrorKind::ConnectionReset);
    assert_eq!(was_used(&other), 0, "another proxy would not do better");
    state(&daemon, "one", "up");
}

#[test]
fn without_a_member_that_is_up_flows_are_rejected_or_go_straight_out() {
    for (choice, direct) in [("reject", false), ("direct", true)] {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, &uci("failover", &[("on_all_down", choice)]));
        state(&daemon, "out", "down");
        daemon.process().wait_for_line(&["outbound 'out' is down", "no member is up"]);
        let listener = listen(&lab.server, Family::V4.destination(80), 0);
        let to = listener.local_addr().expect("bound");
        let client = udp(&lab.client, Family::V4.client(), 0);
        let server = udp(&lab.server, Family::V4.destination(1), 4_000);
        client.connect(server.local_addr().expect("bound")).expect("connect");
        client.send(b"hello").expect("send");
        if direct {
            exchange(&mut connect(&lab.client, to), &mut accept(&listener), b"ask", b"answer");
            assert_eq!(receive(&server).0, b"hello");
        } else {
            assert_eq!(refusal(&lab.client, to), std::io::ErrorKind::ConnectionReset);
            let error = client.recv(&mut [0; 1]).expect_err("refused").kind();
            assert_eq!(error, std::io::ErrorKind::ConnectionRefused);
            daemon.process().wait_for_line(&["via 'out'", "no member is up"]);
        }
    }
}

#[test]
fn balance_gives_each_member_its_share() {
    let lab = Lab::new();
    let (one, other) = (socks(&lab, ONE), socks(&lab, OTHER));
    let _daemon = Daemon::start(&lab, &uci("balance", &[]));
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    let open: Vec<_> = (0..20).map(|_| (connect(&lab.client, to), accept(&listener))).collect();
    assert_eq!((was_used(&one), was_used(&other)), (10, 10));
    drop(open);
}

#[test]
fn fastest_takes_the_one_that_answers_sooner_and_status_shows_it() {
    let lab = Lab::new();
    let late = Manners { waits: Duration::from_millis(80), ..Manners::default() };
    let one = Socks::start(&lab.server, Family::V4.proxy(), ONE, late);
    let other = socks(&lab, OTHER);
    let daemon = Daemon::start(&lab, &uci("fastest", &[]));
    let latency = |status: &Json, n: usize| status.number(&format!("outbounds.{n}.latency_ms"));
    let status = daemon.status_until("both are measured", |status| {
        let list = status.list("outbounds");
        let measured =
            |name: &str| list.iter().any(|o| o.text("name") == name && matches!(o.at("latency_ms"), Json::Number(_)));
        measured("one") && measured("other")
    });
    let list = status.list("outbounds");
    let place = |name: &str| list.iter().position(|outbound| outbound.text("name") == name).expect("listed");
    assert!(latency(&status, place("one")) >= 80, "{status}");
    for _ in 0..5 {
        converse(&lab);
    }
    assert_eq!((was_used(&one), was_used(&other)), (0, 5));
}

#[test]
fn groups_nest_and_members_may_be_of_any_type() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let _http = tinyproxy(&lab, &files, Family::V4, OTHER, "");
    let inner = "config outbound 'inner'\n\toption type 'group'\n\tlist member 'dead'\n\tlist member 'web'\n";
    let uci = Uci::new("group")
        .outbound(&[("member", "inner one")])
        .section(inner)
        .section(&member("dead", "socks5", 1_079, ""))
        .section(&member("one", "socks5", ONE, ""))
        .section(&member("web", "http", OTHER, ""));
    let daemon = Daemon::start(&lab, &uci);
    state(&daemon, "web", "up");
    converse(&lab);
    // http carries no datagrams: those go by the member that does
    let one = socks(&lab, ONE);
    state(&daemon, "one", "up");
    let client = udp(&lab.client, Family::V4.client(), 0);
    let server = udp(&lab.server, Family::V4.destination(1), 4_000);
    client.send_to(b"hello", server.local_addr().expect("bound")).expect("send");
    assert_eq!(receive(&server).0, b"hello");
    assert_eq!(was_used(&one), 1);
}

#[test]
fn datagrams_go_by_the_next_member_when_the_first_refuses_the_association() {
    let lab = Lab::new();
    let one = Socks::start(&lab.server, Family::V4.proxy(), ONE, Manners { refuses: Some(7), ..Manners::default() });
    let _other = socks(&lab, OTHER);
    let daemon = Daemon::start(&lab, &uci("failover", &[]));
    state(&daemon, "other", "up");
    let client = udp(&lab.client, Family::V4.client(), 0);
    let server = udp(&lab.server, Family::V4.destination(1), 4_000);
    let to = server.local_addr().expect("bound");
    client.send_to(b"first", to).expect("send");
    assert_eq!(receive(&server).0, b"first", "what waited for the association must not be lost");
    daemon.process().wait_for_line(&["'one' carries no UDP"]);
    drop(one);
}

#[test]
fn a_proxy_that_turns_out_to_carry_no_udp_leaves_it_to_udp_outbound() {
    let lab = Lab::new();
    let _one = Socks::start(&lab.server, Family::V4.proxy(), ONE, Manners { refuses: Some(7), ..Manners::default() });
    let server = Family::V4.proxy().to_string();
    let uci = Uci::new("socks5").outbound(&[("server", &server), ("port", "1080"), ("udp_outbound", "direct")]);
    let daemon = Daemon::start(&lab, &uci);
    let client = udp(&lab.client, Family::V4.client(), 0);
    let server = udp(&lab.server, Family::V4.destination(1), 4_000);
    let to = server.local_addr().expect("bound");
    client.send_to(b"lost", to).expect("send");
    daemon.process().wait_for_line(&["'out' carries no UDP"]);
    daemon.wait_idle();
    client.send_to(b"direct", to).expect("send");
    let (arrived, from) = receive(&server);
    assert_eq!((arrived.as_slice(), from.ip()), (&b"direct"[..], Family::V4.router_wan()));
}

#[test]
fn a_check_with_a_target_goes_through_the_proxy_to_it() {
    let lab = Lab::new();
    let one = socks(&lab, ONE);
    let target = listen(&lab.server, Family::V4.destination(5), 4_433);
    let server = Family::V4.proxy().to_string();
    let options =
        [("server", &*server), ("port", "1080"), ("check_target", "203.0.113.5:4433"), ("check_interval", "1s")];
    let daemon = Daemon::start(&lab, &Uci::new("socks5").outbound(&options));
    state(&daemon, "out", "up");
    let asked = one.find(|asked| if let Asked::Connect(to) = asked { Some(to) } else { None });
    assert_eq!(asked, target.local_addr().expect("bound"));
    drop(target);
    daemon.process().wait_for_line(&["outbound 'out' is down", "check"]);
    let _target = listen(&lab.server, Family::V4.destination(5), 4_433);
    state(&daemon, "out", "up");
}

/// Real servers are killed and revived in turn under load, one of two alive at any moment.
#[test]
fn no_new_connection_fails_while_one_member_lives() {
    let (lab, files) = (Lab::new(), TempDir::new());
    let uci = Uci::new("group")
        .outbound(&[("member", "one web"), ("policy", "balance")])
        .section(&member("one", "socks5", ONE, "\toption fall '4'"))
        .section(&member("web", "http", OTHER, "\toption fall '4'"));
    let mut one = Some(microsocks(&lab, ONE));
    let mut web = Some(tinyproxy(&lab, &files, Family::V4, OTHER, ""));
    let daemon = Daemon::start(&lab, &uci);
    state(&daemon, "one", "up");
    state(&daemon, "web", "up");
    let listener = listen(&lab.server, Family::V4.destination(80), 0);
    let to = listener.local_addr().expect("bound");
    // odd while a server is being killed: what is connected through it then dies with it
    let (stop, done, kills) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let nobody_comes_any_more = AtomicBool::new(false);
    let kill = |server: Option<Process>| {
        kills.fetch_add(1, Ordering::SeqCst);
        drop(server);
        kills.fetch_add(1, Ordering::SeqCst);
    };
    let one_connection = || -> std::io::Result<()> {
        let mut client = try_connect(&lab.client, to)?;
        client.write_all(b"x")?;
        client.read_exact(&mut [0; 1])
    };
    let client = || {
        while !stop.load(Ordering::SeqCst) {
            let before = kills.load(Ordering::SeqCst);
            let result = one_connection();
            let undisturbed = before % 2 == 0 && before == kills.load(Ordering::SeqCst);
            if let Err(e) = result
                && undisturbed
            {
                stop.store(true, Ordering::SeqCst);
                panic!("a new connection failed: {e}");
            }
            done.fetch_add(1, Ordering::SeqCst);
        }
    };
    let more = || {
        let (before, begin) = (done.load(Ordering::SeqCst), Instant::now());
        while done.load(Ordering::SeqCst) < before + 40 && begin.elapsed() < PATIENCE && !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        done.load(Ordering::SeqCst) >= before + 40
    };
    thread::scope(|scope| {
        scope.spawn(|| echo_until(&listener, &nobody_comes_any_more));
        let clients: [_; 4] = std::array::from_fn(|_| scope.spawn(client));
        for _ in 0..3 {
            let well = more() && {
                kill(one.take());
                more()
            };
            one = Some(microsocks(&lab, ONE));
            let well = well && wait_up(&daemon, "one") && {
                kill(web.take());
                more()
            };
            web = Some(tinyproxy(&lab, &files, Family::V4, OTHER, ""));
            if !well || !wait_up(&daemon, "web") {
                break;
            }
        }
        stop.store(true, Ordering::SeqCst);
        // those under way still want their answers
        let ends = clients.map(thread::ScopedJoinHandle::join);
        nobody_comes_any_more.store(true, Ordering::SeqCst);
        drop(try_connect(&lab.server, to));
        assert!(ends.iter().all(Result::is_ok), "a client failed");
    });
    assert!(done.load(Ordering::SeqCst) >= 9 * 40, "the load came to a halt");
    assert_eq!(kills.load(Ordering::SeqCst), 12);
}

/// Answers each octet by itself, until nobody comes any more.
fn echo_until(listener: &TcpListener, stop: &AtomicBool) {
    while let Ok((mut stream, _)) = listener.accept() {
        thread::spawn(move || {
            let mut octet = [0; 1];
            while stream.read(&mut octet).is_ok_and(|n| n == 1) && stream.write_all(&octet).is_ok() {}
        });
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
}

fn wait_up(daemon: &Daemon, name: &str) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let status = daemon.status();
        let is_up = |outbound: &Json| outbound.text("name") == name && outbound.text("state") == "up";
        if status.list("outbounds").iter().any(is_up) {
            return true;
        }
    }
    false
}

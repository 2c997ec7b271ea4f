//! What sessions cost, counted: system calls, memory of the process and of the kernel, descriptors, time to start.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::lab::{Family, Lab};
use crate::passage::{Passage, Way, uci};
use crate::process::{Process, TempDir};
use crate::sock::{PATIENCE, accept, connect, exchange, read_all, read_n};

/// Counts a daemon's system calls while something is done.
struct Counter {
    strace: Process,
    dir: TempDir,
}

impl Counter {
    fn attach(lab: &Lab, daemon: &Daemon) -> Counter {
        let dir = TempDir::new();
        let to = dir.write("calls", "");
        let mut command = lab.router.command("strace");
        command.args(["-c", "-p", &daemon.process().pid().to_string(), "-o"]).arg(&to);
        let strace = Process::start(command);
        strace.wait_for_line(&["attached"]);
        Counter { strace, dir }
    }

    /// How many calls of each name there were.
    fn stop(self) -> BTreeMap<String, u64> {
        self.strace.signal(Signal::SIGINT);
        self.strace.wait_end(PATIENCE);
        let table = std::fs::read_to_string(self.dir.path().join("calls")).expect("strace has written it");
        // % time, seconds, usecs/call, calls, errors (or nothing), syscall. In a program with debug assertions the standard
        // library asks by fcntl before each close whether the descriptor is open.
        let rows = table.lines().skip(2).take_while(|line| !line.starts_with('-'));
        let calls = rows.filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            Some((words.last()?.to_string(), words.get(3)?.parse().ok()?))
        });
        calls.filter(|(name, _)| name != "fcntl" || !cfg!(debug_assertions)).collect()
    }
}

/// Opens and ends `count` connections, at most 50 at a time, 128 bytes each way.
fn short_connections(passage: &Passage, count: usize) {
    const AT_A_TIME: usize = 50;
    let (listener, at) = passage.listen();
    let client = &passage.lab.client;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..count / AT_A_TIME {
                let mut servers: Vec<_> = (0..AT_A_TIME).map(|_| accept(&listener)).collect();
                servers.iter_mut().for_each(|server| {
                    let ask = read_n(server, 128);
                    server.write_all(&ask).expect("answer");
                });
                servers.iter_mut().for_each(|server| assert_eq!(read_all(server), b""));
            }
        });
        for _ in 0..count / AT_A_TIME {
            let mut clients: Vec<_> = (0..AT_A_TIME).map(|_| connect(client, at)).collect();
            clients.iter_mut().for_each(|client| client.write_all(&[7; 128]).expect("send"));
            clients.iter_mut().for_each(|client| assert_eq!(read_n(client, 128), [7; 128]));
        }
    });
    passage.daemon().wait_idle();
}

fn calls_per_short_connection(way: Way) -> f64 {
    const COUNT: usize = 400;
    let passage = Passage::open_with(way, Family::V4, |uci| uci.globals(&[("log_level", "info")]));
    short_connections(&passage, 50);
    let counter = Counter::attach(&passage.lab, passage.daemon());
    short_connections(&passage, COUNT);
    let calls = counter.stop();
    let per_connection = calls.values().sum::<u64>() as f64 / COUNT as f64;
    println!("{way:?}: {per_connection:.1} system calls per short connection: {calls:?}");
    per_connection
}

#[test]
fn a_short_direct_connection_takes_at_most_17_system_calls() {
    let calls = calls_per_short_connection(Way::Direct);
    assert!(calls <= 17.0, "{calls}");
}

#[test]
fn a_short_connection_by_socks5_takes_at_most_28_system_calls() {
    let calls = calls_per_short_connection(Way::Socks);
    assert!(calls <= 28.0, "{calls}");
}

#[test]
fn bulk_goes_by_splice_in_large_pieces() {
    bulk_by_splice::<64>("");
}

#[test]
fn bulk_at_a_rate_goes_by_splice_and_wakes_nobody_in_vain() {
    bulk_by_splice::<16>("config rule\n\toption outbound 'direct'\n\toption rate '80M'\n");
}

fn bulk_by_splice<const MEGABYTES: usize>(rules: &str) {
    let passage =
        Passage::open_with(Way::Direct, Family::V4, |uci| uci.globals(&[("log_level", "info")]).section(rules));
    let (mut client, mut server) = passage.pair();
    let counter = Counter::attach(&passage.lab, passage.daemon());
    thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = vec![7; 1 << 20];
            (0..MEGABYTES).for_each(|_| server.write_all(&chunk).expect("send"));
        });
        let mut chunk = vec![0; 1 << 20];
        (0..MEGABYTES).for_each(|_| client.read_exact(&mut chunk).expect("receive"));
    });
    let calls = counter.stop();
    let of = |names: &[&str]| names.iter().filter_map(|name| calls.get(*name)).sum::<u64>();
    let (spliced, copied, all) = (of(&["splice"]), of(&["recvfrom", "sendto"]), calls.values().sum::<u64>());
    println!("{:.1} system calls per megabyte: {calls:?}", all as f64 / MEGABYTES as f64);
    assert!(spliced > 10 * copied, "{calls:?}");
    // a read and a write for each 16 KB would be 128
    assert!(all <= 100 * MEGABYTES as u64, "{calls:?}");
}

/// As many as 10,000; fewer where the limit on descriptors can't be raised far enough for both ends of each and for the tests
/// that run beside this one.
fn how_many() -> usize {
    const WANTED: u64 = 10_000;
    const OTHERS: u64 = 8_000;
    let enough = 2 * WANTED + OTHERS;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("RLIMIT_NOFILE");
    let most = hard.max(enough);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() || {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit anybody may go");
        hard >= enough
    };
    let count = if raised { WANTED } else { (hard.saturating_sub(OTHERS) / 2).min(WANTED) };
    println!("{count} sessions (hard limit of descriptors: {hard})");
    count as usize
}

#[test]
fn ten_thousand_idle_sessions_cost_three_megabytes_and_two_descriptors_each_and_give_them_back() {
    let count = how_many();
    let table = count.min(16_384).to_string();
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| {
        uci.globals(&[("tcp_sessions", &table), ("log_level", "info")])
    });
    let daemon = passage.daemon();
    short_connections(&passage, 50);
    let (before, descriptors) = (daemon.private_memory(), daemon.descriptors());
    let (listener, at) = passage.listen();
    let open = || -> Vec<(TcpStream, TcpStream)> {
        (0..count)
            .map(|_| {
                let (mut client, mut server) = passage.join(&listener, at);
                exchange(&mut client, &mut server, b"1", b"2");
                (client, server)
            })
            .collect()
    };
    let sessions = open();
    assert_eq!(daemon.status().number("tcp.active"), count as u64);
    let grown = daemon.private_memory().saturating_sub(before);
    println!("{} bytes of memory for each of {count} idle sessions", grown / count as u64);
    assert!(grown <= 3 * 1024 * 1024 * count as u64 / 10_000 + 64 * 1024, "{grown} bytes more");
    assert_eq!(daemon.descriptors(), descriptors + 2 * count);

    drop(sessions);
    daemon.wait_idle();
    daemon.wait_descriptors(descriptors);
    let left = || daemon.private_memory().saturating_sub(before);
    let most = grown / 5;
    let begin = Instant::now();
    while left() > most && begin.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    println!("{} KB more than before when they have gone, {} KB while they were there", left() / 1024, grown / 1024);
    assert!(left() <= most, "{} bytes more when all have gone, {grown} while they were there", left());
}

/// What waits unsent is limited by `TCP_NOTSENT_LOWAT`; what waits unread from the server by `SO_RCVBUF`, on kernels that let
/// that be lifted again (5.15), until the client has shown that it reads.
#[test]
fn a_hundred_clients_that_do_not_read_leave_half_a_megabyte_in_sockets_each() {
    const COUNT: usize = 100;
    let passage = Passage::open_with(Way::Direct, Family::V4, |uci| {
        uci.globals(&[("tcp_sessions", "256"), ("log_level", "info")])
    });
    let (listener, at) = passage.listen();
    let silent: Vec<_> = (0..COUNT).map(|_| passage.join(&listener, at)).collect();
    thread::scope(|scope| {
        for (_, server) in &silent {
            scope.spawn(move || {
                server.set_write_timeout(Some(Duration::from_secs(2))).expect("SO_SNDTIMEO");
                let (mut server, chunk) = (server, vec![7; 1 << 18]);
                let stuck = (0..200).find_map(|_| server.write_all(&chunk).err());
                assert_eq!(stuck.expect("50 MB went to a client that reads nothing").kind(), ErrorKind::WouldBlock);
            });
        }
    });
    let sockets = passage.lab.router.tool("ss", &["-t", "-n", "-m", "-O", "state", "established"], "");
    let client = silent[0].0.local_addr().expect("connected").ip().to_string();
    let held = |near: bool, what: &[&str]| {
        let lines = sockets.lines().filter(|line| line.contains("skmem") && line.contains(&client) == near);
        lines.map(|line| what.iter().map(|name| socket_memory(line, name)).sum::<u64>()).sum::<u64>() / COUNT as u64
    };
    let (unsent, unread) = (held(true, &["w", "f", "bl"]), held(false, &["r", "f", "bl"]));
    println!(
        "{} KB unsent and {} KB unread for each of {COUNT} clients that do not read",
        unsent / 1024,
        unread / 1024
    );
    assert!(unsent + unread > 0, "{sockets}");
    assert!(unsent <= 512 * 1024, "{} KB each", unsent / 1024);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(5), Some(15)) {
        assert!(unsent + unread <= 600 * 1024, "{} KB each", (unsent + unread) / 1024);
    }
}

/// A figure of `skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)`: r received, w to be sent, f set aside, bl in the backlog.
fn socket_memory(line: &str, name: &str) -> u64 {
    let figures = line.split("skmem:(").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
    figures.split(',').find_map(|figure| figure.strip_prefix(name)?.parse().ok()).unwrap_or(0)
}

/// Processor time, since others keep the machine busy, and the best of a few; that of a build without optimization is longer.
#[test]
fn it_listens_at_once() {
    let lab = Lab::new();
    let start_to_listening = |_| {
        let daemon = Daemon::start_with(&lab, &uci(Way::Direct, Family::V4), &["--no-rules"]);
        let path = format!("/proc/{}/schedstat", daemon.process().pid());
        let nanoseconds = std::fs::read_to_string(path).expect("it runs");
        daemon.stop();
        Duration::from_nanos(nanoseconds.split(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
    };
    let best = (0..10).map(start_to_listening).min().expect("ten");
    println!("start to listening: {best:?} of processor time");
    let most = if cfg!(debug_assertions) { 100 } else { 8 };
    assert!(best < Duration::from_millis(most), "{best:?}");
}

/// What the tables may take is reserved, not touched.
#[test]
fn an_idle_daemon_has_little_memory_of_its_own() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, &uci(Way::Direct, Family::V4), &["--no-rules"]);
    let own = daemon.own_memory();
    println!("{} KB of its own, idle", own / 1024);
    let most = if cfg!(debug_assertions) { 1536 } else { 450 };
    assert!(own <= most * 1024, "{} KB", own / 1024);
}

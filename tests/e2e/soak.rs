//! Mixed traffic through every type of outbound, with reloads and faults at random: contents, memory, descriptors and counters
//! are checked all along. A few seconds of it here; `ci/soak` has it go on for minutes or hours.
//!
//! A fault may end a connection or cost a datagram. What it may not do: change a byte, leave anything behind, or keep new
//! traffic from passing once it is over.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::chance::Chance;
use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::faults::Ground;
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::proxies::{HTTP_PORT, tinyproxy};
use crate::sock::{listen, reset, udp, until_listening};
use crate::socks::{Manners, Socks};

/// How long it goes on where nobody says.
const SHORT: Duration = Duration::from_secs(12);

/// Ports of destinations, and the outbound that a rule sends each to.
const WAYS: [(u16, &str); 5] = [(8_001, "out"), (8_002, "socks"), (8_003, "web"), (8_004, "ss"), (8_005, "either")];

/// Pipes that wait for work, at most: a quarter of `relay_memory`, 128 KB each, and not fewer than these.
const PIPES_KEPT: usize = 8;

/// Clients at once.
const WORKERS: usize = 8;

fn uci(reloaded: bool) -> Uci {
    let server = Family::V4.proxy();
    let mut uci = Uci::new("direct")
        .globals(&[
            ("log_level", if reloaded { "warn" } else { "info" }),
            ("tcp_sessions", "256"),
            ("udp_sessions", "128"),
        ])
        .globals(&[("relay_memory", "1M"), ("client_sessions", "200")])
        .outbound(&[("udp_timeout", "2s"), ("idle_timeout", "10s")]);
    let outbound = |name: &str, kind: &str, port: u16, more: &str| {
        format!(
            "config outbound '{name}'\n\toption type '{kind}'\n\toption server '{server}'\n\toption port '{port}'\n\
             \toption udp_timeout '2s'\n\toption idle_timeout '10s'\n{more}\n"
        )
    };
    uci = uci.section(&outbound("socks", "socks5", 1_080, "")).section(&outbound("web", "http", HTTP_PORT, ""));
    if cfg!(feature = "shadowsocks") {
        let more = "\toption method 'chacha20-ietf-poly1305'\n\toption password 'secret'\n";
        uci = uci.section(&outbound("ss", "shadowsocks", 8_388, more));
    } else {
        uci = uci.section(&outbound("ss", "socks5", 1_080, ""));
    }
    uci = uci.section("config outbound 'either'\n\toption type 'group'\n\tlist member 'socks'\n\tlist member 'out'\n");
    for (port, name) in WAYS.iter().skip(1) {
        uci = uci.section(&format!("config rule\n\toption dest_port '{port}'\n\toption outbound '{name}'\n"));
    }
    if reloaded {
        uci = uci.section("config rule\n\toption dest_port '9'\n\toption outbound 'drop'\n");
    }
    uci
}

/// Sends back what comes, until the end that its client sends.
fn echo_streams(listener: &TcpListener, stop: &AtomicBool, tally: &Tally) {
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut stream, from)) = listener.accept() else { continue };
            let passed_by = from.ip() == Family::V4.client();
            scope.spawn(move || {
                let patience = Some(Duration::from_secs(5));
                stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience)).expect("timeouts");
                let mut buffer = vec![0; 65_536];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if passed_by {
                        add(&tally.passed_by, n);
                    }
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("SO_RCVTIMEO");
    while !stop.load(Ordering::Relaxed) {
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}

/// What was done, and what of it a fault has spoilt.
#[derive(Default)]
struct Tally {
    connections: AtomicU64,
    broken: AtomicU64,
    bytes: AtomicU64,
    /// Of connections that the router forwarded while the rules were gone.
    passed_by: AtomicU64,
    datagrams: AtomicU64,
    lost: AtomicU64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// One connection: some octets there and back, compared, and one of several ends.
fn connection(lab: &Lab, to: SocketAddr, chance: &mut Chance, tally: &Tally) -> io::Result<()> {
    let mut stream = lab.client.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    for _ in 0..=chance.below(3) {
        let largest = [200, 3_000, 40_000, 400_000][chance.below(4)];
        let sent = {
            let len = 1 + chance.below(largest);
            chance.octets(len)
        };
        let mut writer = stream.try_clone()?;
        let came = thread::scope(|scope| {
            let writing = scope.spawn(|| writer.write_all(&sent));
            let mut came = vec![0; sent.len()];
            let mut have = 0;
            while have < came.len() {
                match stream.read(&mut came[have..]) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => have += n,
                }
            }
            if have < came.len() {
                // so that the writer does not wait for who has gone
                let _ = stream.shutdown(Shutdown::Both);
            }
            let _ = writing.join();
            came.truncate(have);
            came
        });
        assert!(came == sent[..came.len()], "octets came back that were not sent, to {to}");
        add(&tally.bytes, came.len());
        if came.len() < sent.len() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
    match chance.below(4) {
        0 => reset(stream),
        1 => {
            stream.shutdown(Shutdown::Write)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            assert!(rest.is_empty(), "{} octets after the end, from {to}", rest.len());
        }
        _ => drop(stream),
    }
    Ok(())
}

/// A few datagrams from one port; those that come back are what was sent.
fn flow(lab: &Lab, to: SocketAddr, chance: &mut Chance, tally: &Tally) {
    let socket = udp(&lab.client, Family::V4.client(), 0);
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("SO_RCVTIMEO");
    let mut buffer = vec![0; 65_536];
    for n in 0..4u8 {
        let sent = {
            let len = chance.below(1_200);
            [&[n][..], &chance.octets(len)].concat()
        };
        if socket.send_to(&sent, to).is_err() {
            add(&tally.lost, 1);
            continue;
        }
        add(&tally.datagrams, 1);
        loop {
            match socket.recv_from(&mut buffer) {
                // one that was late for its turn
                Ok((len, _)) if len > 0 && buffer[0] < n => {}
                Ok((len, from)) => {
                    assert!(buffer[..len] == sent && from == to, "datagram {n} came back as another, from {from}");
                    break;
                }
                Err(_) => {
                    add(&tally.lost, 1);
                    break;
                }
            }
        }
    }
}

/// One reload or fault. True: it may have cost connections.
fn disturb(lab: &Lab, daemon: &Daemon, round: usize, chance: &mut Chance) -> &'static str {
    let nft = |text: &str| drop(lab.router.tool("nft", &["-f", "-"], text));
    match chance.below(8) {
        0 | 1 => {
            daemon.write_config(&uci(round.is_multiple_of(2)));
            daemon.process().signal(Signal::SIGHUP);
            "reload"
        }
        2 => {
            nft("flush table inet firewall");
            lab.track_connections();
            "firewall"
        }
        3 => {
            // which fails if there happens to be no session
            let mut kick = lab.router.command(PROGRAM);
            let _ = kick.args(["kick", "--client", "192.168.1.2", "--config"]).arg(daemon.config()).output();
            "kick"
        }
        4 => {
            daemon.process().signal(Signal::SIGSTOP);
            thread::sleep(Duration::from_millis(200));
            daemon.process().signal(Signal::SIGCONT);
            "stop and go"
        }
        5 => {
            Ground::leave_descriptors_of(lab, daemon, chance.below(12));
            thread::sleep(Duration::from_millis(200));
            Ground::give_descriptors_back_to(lab, daemon);
            "no descriptors"
        }
        6 => {
            lab.router.tool("nft", &["flush", "table", "inet", "tproxyd"], "");
            "no rules"
        }
        _ => {
            lab.server.tool(
                "nft",
                &["-f", "-"],
                "table inet gap { chain in { type filter hook input priority 0; policy drop; }; }",
            );
            thread::sleep(Duration::from_millis(300));
            lab.server.tool("nft", &["delete", "table", "inet", "gap"], "");
            "no server"
        }
    }
}

/// What must hold at any time.
fn check(daemon: &Daemon) {
    let status = daemon.status();
    for (what, most) in [("tcp.active", "tcp.limit"), ("udp.active", "udp.limit"), ("pool.lent", "pool.capacity")] {
        assert!(status.number(what) <= status.number(most), "{what} beyond {most}: {status}");
    }
    assert!(status.number("memory.used") <= status.number("memory.bound"), "{status}");
    assert!(daemon.descriptors() < 1_500, "{} descriptors", daemon.descriptors());
}

#[test]
fn mixed_traffic_with_reloads_and_faults_changes_no_byte_and_leaves_nothing_behind() {
    let long = std::env::var("TPROXYD_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let length = long.unwrap_or(SHORT);
    let mut chance = Chance::new();
    let (lab, files) = (Lab::new(), TempDir::new());
    lab.track_connections();
    let _socks = Socks::start(&lab.server, Family::V4.proxy(), 1_080, Manners::default());
    let _web = tinyproxy(&lab, &files, Family::V4, HTTP_PORT, "");
    let _shadowsocks = cfg!(feature = "shadowsocks").then(|| {
        let mut command = lab.server.command("ss-server");
        let server = Family::V4.proxy().to_string();
        command.args(["-s", &server, "-p", "8388", "-k", "secret", "-m", "chacha20-ietf-poly1305", "-u", "-t", "60"]);
        let process = Process::start(command);
        until_listening(&lab.server, SocketAddr::new(Family::V4.proxy(), 8_388));
        process
    });
    let destination = Family::V4.destination(80);
    let servers = WAYS.map(|(port, _)| (listen(&lab.server, destination, port), udp(&lab.server, destination, port)));
    for (listener, _) in &servers {
        crate::ns::set_accept_timeout(listener, Duration::from_secs(1));
    }
    let daemon = Daemon::start(&lab, &uci(false));
    check(&daemon);
    let descriptors = daemon.descriptors();

    let (tally, stop, over) = (Tally::default(), AtomicBool::new(false), AtomicBool::new(false));
    let mut faults: Vec<&str> = Vec::new();
    thread::scope(|scope| {
        // whatever panics: the others are to come to their end
        struct Halt<'a>(&'a AtomicBool, &'a AtomicBool);
        impl Drop for Halt<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
                self.1.store(true, Ordering::Relaxed);
            }
        }
        let _halt = Halt(&stop, &over);
        for (listener, socket) in &servers {
            scope.spawn(|| echo_streams(listener, &over, &tally));
            scope.spawn(|| echo_datagrams(socket, &over));
        }
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let mut chance = chance.fork();
                let (lab, tally, stop) = (&lab, &tally, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let to = SocketAddr::new(destination, WAYS[chance.below(WAYS.len())].0);
                        // HTTP carries no datagrams
                        if chance.below(4) == 0 && to.port() != 8_003 {
                            flow(lab, to, &mut chance, tally);
                        } else {
                            add(&tally.connections, 1);
                            if connection(lab, to, &mut chance, tally).is_err() {
                                add(&tally.broken, 1);
                            }
                        }
                    }
                })
            })
            .collect();
        let begin = Instant::now();
        let mut round = 0;
        while begin.elapsed() < length && workers.iter().all(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(200 + chance.below(800) as u64));
            faults.push(disturb(&lab, &daemon, round, &mut chance));
            check(&daemon);
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("a worker is content");
        }
        // when all is over everything works again: no fault has lasted
        for (port, name) in WAYS {
            let to = SocketAddr::new(destination, port);
            let begin = Instant::now();
            let mut tries = (0..50).take_while(|_| begin.elapsed() < Duration::from_secs(30));
            let works = tries.any(|_| connection(&lab, to, &mut chance, &tally).is_ok());
            assert!(works, "nothing passes by '{name}' after {faults:?}");
        }
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (connections, broken) = (count(&tally.connections), count(&tally.broken));
    println!(
        "{length:?}: {connections} connections ({broken} ended by a fault), {} octets compared, {} datagrams ({} lost), {} \
         reloads and faults",
        count(&tally.bytes),
        count(&tally.datagrams),
        count(&tally.lost),
        faults.len()
    );
    assert!(connections > 20 && broken < connections * 2 / 3, "{broken} of {connections} connections: {faults:?}");

    let status = daemon.wait_idle();
    let begin = Instant::now();
    // a few pipes are kept for the next bulk
    while daemon.descriptors() > descriptors + 2 * PIPES_KEPT {
        assert!(begin.elapsed() < crate::sock::PATIENCE, "{} descriptors, {descriptors} before", daemon.descriptors());
        thread::yield_now();
    }
    let list = status.list("outbounds");
    assert!(list.iter().all(|outbound| outbound.number("sessions") == 0), "{status}");
    let carried: u64 = list.iter().map(|outbound| outbound.number("bytes_down")).sum();
    let (came, passed_by) = (count(&tally.bytes), count(&tally.passed_by));
    assert!(
        carried + passed_by >= came,
        "{came} octets came, {passed_by} past us, and {carried} were counted: {status}"
    );
    daemon.stop();
}

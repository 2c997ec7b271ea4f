//! Reloads under load, and what becomes of sessions whose listener or outbound a reload takes away.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::sock::{accept, connect, exchange, listen, receive, udp};

const TCP: usize = 250;
const UDP: usize = 250;
const RELOADS: usize = 100;

/// Who works through its share of sessions and flows.
const WORKERS: usize = 1;

/// A message that no other is like.
fn message(flow: usize, round: u64, len: usize) -> Vec<u8> {
    let seed = (flow as u64) << 32 | round;
    (0..len as u64).map(|n| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n * 251) >> 24) as u8).collect()
}

struct Flow {
    client: UdpSocket,
    server: UdpSocket,
    at: SocketAddr,
}

impl Flow {
    /// One datagram each way. One that is lost on the way is a failure: this network loses none.
    fn exchange(&self, n: usize, round: u64) {
        let (ask, answer) = (message(n, round, 300), message(n, !round, 500));
        self.client.send_to(&ask, self.at).expect("send");
        let (came, from) = receive(&self.server);
        assert_eq!(came, ask, "flow {n}, round {round}");
        self.server.send_to(&answer, from).expect("answer");
        let (came, from) = receive(&self.client);
        assert_eq!((came, from), (answer, self.at), "flow {n}, round {round}");
    }
}

/// Two files that differ in rules, outbounds, listeners' narrowing and globals.
fn versions() -> [Uci; 2] {
    let base = Uci::new("direct").globals(&[("tcp_sessions", "1000"), ("udp_sessions", "1000"), ("log_level", "info")]);
    let other = base
        .clone()
        .globals(&[("log_level", "warn")])
        .outbound(&[("idle_timeout", "1h")])
        .listener(&[("src_ip", "192.168.0.0/16")])
        .section(
            "config set 'x'\n\tlist entry '192.0.2.0/24'\nconfig outbound 'more'\n\toption type 'direct'\n\
                  config rule\n\tlist dest_ip '@x'\n\toption outbound 'more'\n",
        );
    [base, other]
}

#[test]
fn five_hundred_sessions_and_flows_live_through_a_hundred_reloads() {
    let lab = Lab::new();
    let [first, second] = versions();
    let daemon = Daemon::start(&lab, &first);
    let to = Family::V4.destination(80);
    let listener = listen(&lab.server, to, 0);
    let at = listener.local_addr().expect("bound");
    let mut pairs: Vec<(TcpStream, TcpStream)> =
        (0..TCP).map(|_| (connect(&lab.client, at), accept(&listener))).collect();
    let flows: Vec<Flow> = (0..UDP)
        .map(|_| {
            let server = udp(&lab.server, to, 0);
            let at = server.local_addr().expect("bound");
            Flow { client: udp(&lab.client, Family::V4.client(), 0), server, at }
        })
        .collect();
    flows.iter().enumerate().for_each(|(n, flow)| flow.exchange(n, 0));
    daemon.status_until("all are there", |status| {
        status.number("tcp.active") == TCP as u64 && status.number("udp.active") == UDP as u64
    });
    let descriptors = daemon.descriptors();

    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for (worker, pairs) in pairs.chunks_mut(TCP / WORKERS + 1).enumerate() {
            let (over, rounds) = (&over, &rounds);
            scope.spawn(move || {
                for round in 1.. {
                    for (n, (client, server)) in pairs.iter_mut().enumerate() {
                        let n = worker * TCP + n;
                        exchange(client, server, &message(n, round, 3000), &message(n, !round, 9000));
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for (worker, flows) in flows.chunks(UDP / WORKERS + 1).enumerate() {
            let (over, rounds) = (&over, &rounds);
            scope.spawn(move || {
                for round in 1.. {
                    flows.iter().enumerate().for_each(|(n, flow)| flow.exchange(worker * UDP + n, round));
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        // whoever fails here must not leave the workers waiting for the end
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&over);
        for n in 0..RELOADS {
            daemon.write_config([&second, &first][n % 2]);
            let said = daemon.command("reload", &[]);
            assert!(said.contains("rules") && said.contains("outbounds"), "{said}");
        }
    });
    assert!(rounds.load(Ordering::Relaxed) >= 8, "they worked meanwhile");
    // every byte that was sent has been compared; nothing comes behind, and nobody has ended
    for (client, server) in &mut pairs {
        for stream in [client, server] {
            stream.set_nonblocking(true).expect("O_NONBLOCK");
            assert_eq!(stream.read(&mut [0]).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
        }
    }
    let status = daemon.status();
    assert_eq!((status.number("tcp.active"), status.number("udp.active")), (TCP as u64, UDP as u64));
    assert_eq!((status.number("tcp.total"), status.number("udp.total")), (TCP as u64, UDP as u64));
    daemon.wait_descriptors(descriptors);
    drop(pairs);
    daemon.stop();
}

/// Sessions at two outbounds, of which a reload takes one away; then at two listeners.
#[test]
fn sessions_of_what_a_reload_removed_end_where_that_is_wanted() {
    for drop_stale in [false, true] {
        let lab = Lab::new();
        let other = "config outbound 'other'\n\toption type 'direct'\n\
                     config rule\n\tlist dest_port '81'\n\toption outbound 'other'\n";
        let second = "config listener 'second'\n\toption port '2334'\n\tlist device 'lan0'\n\tlist dest_port '82'\n";
        let base = Uci::new("direct").globals(&[("drop_stale", if drop_stale { "1" } else { "0" })]);
        // the first in the file that matches takes a packet
        let base = base.listener(&[("dest_port", "80-81")]);
        let both = base.clone().section(other).section(second);
        let daemon = Daemon::start(&lab, &both);
        let mut pairs: Vec<_> = [80, 81, 82]
            .map(|port| {
                let listener = listen(&lab.server, Family::V4.destination(80), port);
                let client = connect(&lab.client, listener.local_addr().expect("bound"));
                let server = accept(&listener);
                (client, server)
            })
            .into();
        for (client, server) in &mut pairs {
            exchange(client, server, b"before", b"yes");
        }
        let sessions = daemon.status();
        assert_eq!(sessions.number("tcp.active"), 3);

        let mut ended = |daemon: &Daemon, n: usize, what: &str| {
            let (client, server) = &mut pairs[n];
            if drop_stale {
                let left = if n == 1 { 2 } else { 1 };
                daemon.status_until(what, |status| status.number("tcp.active") == left);
                let end = client.read(&mut [0]).map_err(|e| e.kind());
                assert_eq!(end, Err(ErrorKind::ConnectionReset), "{what}");
            } else {
                exchange(client, server, b"after", b"still");
            }
            // who uses what is still there goes on
            let (client, server) = &mut pairs[0];
            exchange(client, server, b"go", b"on");
        };
        daemon.write_config(&base.clone().section(second));
        let said = daemon.command("reload", &[]);
        assert_eq!(said.contains("1 sessions of what was removed ended"), drop_stale, "{said}");
        ended(&daemon, 1, "the outbound is gone");
        daemon.write_config(&base);
        daemon.command("reload", &[]);
        ended(&daemon, 2, "the listener is gone");
        daemon.stop();
    }
}

/// One that is bad among good ones changes nothing, and says all that is wrong to who asked for it.
#[test]
fn a_bad_file_under_load_changes_nothing_and_the_caller_gets_all_the_errors() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &Uci::new("direct"));
    let listener = listen(&lab.server, Family::V4.destination(80), 80);
    let mut client = connect(&lab.client, listener.local_addr().expect("bound"));
    let mut server = accept(&listener);
    exchange(&mut client, &mut server, b"before", b"yes");
    let before = lab.router.tool("nft", &["-s", "list", "ruleset"], "");
    daemon.write_config(&Uci::new("direct").section("config rule\n\toption outbond 'x'\n\toption dest_port '99999'\n"));
    let mut command = lab.router.command(crate::daemon::PROGRAM);
    command.args(["reload", "--config"]).arg(daemon.config());
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in ["outbond", "99999", "needs option outbound"] {
        assert!(said.contains(word), "{word} in\n{said}");
    }
    assert_eq!(lab.router.tool("nft", &["-s", "list", "ruleset"], ""), before);
    exchange(&mut client, &mut server, b"after", b"still");
    daemon.stop();
}

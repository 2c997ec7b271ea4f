//! Micro-benchmarks of what runs for each packet or connection: `cargo bench`, or `cargo bench -- rules` for some.
//!
//! They compare versions of one part with each other. What counts in the end is `ci/bench`.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on shall say where")]

use divan::{Bencher, black_box};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;
use tproxyd::config::{self, Env, Target};
use tproxyd::policy::{Flow, Policy, Proto};
use tproxyd::proto::packet;
use tproxyd::proto::sniff::sniff;
use tproxyd::proto::socks5::{Command, Handshake, Step};
use tproxyd::proto::socks5_udp::{encode_udp_header, parse_udp};
use tproxyd::session::destinations::{Decision, Destinations};
use tproxyd::store::endpoint::Endpoint;
use tproxyd::store::slab::Slab;
use tproxyd::store::timers::{Tick, Timers};

fn main() {
    divan::main();
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// `rules` that do not match, each by address and port, and a set of `entries` prefixes behind the last.
fn policy(rules: usize, entries: usize) -> Policy {
    let mut text = String::from("config listener 'lan'\n\toption port '2333'\n\tlist device 'lan0'\n");
    for n in 0..rules {
        let _ = write!(text, "config rule\n\tlist dest_ip '198.51.{}.0/24'\n\toption dest_port '443'\n", n % 256);
        text.push_str("\toption outbound 'reject'\n");
    }
    text.push_str("config set 'many'\n");
    text.push_str("\tlist loadfile '/many'\nconfig rule\n\toption dest_ip '@many'\n\toption outbound 'drop'\n");
    text.push_str("config set 'names'\n\toption type 'domain'\n\tlist loadfile '/names'\n");
    text.push_str("config rule\n\toption domain '@names'\n\toption outbound 'drop'\n");
    let env = Env { total_memory: 256 << 20, descriptors: u64::MAX };
    let config = config::parse("bench", text.as_bytes(), &env, &mut |path| {
        let line = |n: usize| match path.to_str() {
            Some("/names") => format!("host-{n}.example\n"),
            _ => format!("{}.{}.{}.0/25\n", 100 + n / 65_536, n / 256 % 256, n % 256),
        };
        Ok(Box::new(std::io::Cursor::new((0..entries).map(line).collect::<String>())))
    })
    .unwrap();
    Policy::new(&config, &[] as &[Target])
}

fn address_of_none() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], 443))
}

mod rules {
    use super::*;

    #[divan::bench(args = [1, 10, 100, 1000])]
    fn none_of(bencher: Bencher<'_, '_>, rules: usize) {
        let policy = policy(rules, 1);
        let flow = Flow::new(Proto::Tcp, address("192.168.1.2:40000"), address("203.0.113.9:443"));
        bencher.bench_local(|| policy.decide(black_box(&flow)));
    }

    /// Addresses all over the set, as flows come: the search finds nothing of the last one in the cache by chance.
    #[divan::bench(args = [10, 1000, 100_000], sample_size = 4096)]
    fn networks(bencher: Bencher<'_, '_>, entries: usize) {
        let policy = policy(0, entries);
        let mut n = 0;
        let flows: Vec<Flow<'_>> = (0..4096)
            .map(|_| {
                n = (n * 1_103_515_245 + 12_345) % 0x8000_0000;
                let net = n / 7 % entries;
                let to = format!("{}.{}.{}.{}:443", 100 + net / 65_536, net / 256 % 256, net % 256, n % 256);
                Flow::new(Proto::Tcp, address("192.168.1.2:40000"), address(&to))
            })
            .collect();
        let mut at = 0;
        bencher.bench_local(|| {
            at = (at + 1) % flows.len();
            policy.decide(black_box(&flows[at]))
        });
    }

    #[divan::bench(args = [10, 1000, 100_000], sample_size = 4096)]
    fn names(bencher: Bencher<'_, '_>, entries: usize) {
        let policy = policy(0, entries);
        let names: Vec<String> = (0..4096).map(|n| format!("www.host-{}.example", n * 31 % (2 * entries))).collect();
        let from = address("192.168.1.2:40000");
        let mut at = 0;
        bencher.bench_local(|| {
            at = (at + 1) % names.len();
            policy
                .decide(black_box(&Flow { domain: Some(&names[at]), ..Flow::new(Proto::Tcp, from, address_of_none()) }))
        });
    }
}

/// What `clients` and the totals of a session cost, when it begins and when it ends.
mod accounting {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};
    use tproxyd::stats::clients::Clients;

    #[divan::bench(args = [1, 50, 256])]
    fn session(bencher: Bencher<'_, '_>, clients: u32) {
        let mut kept = Clients::new();
        let mut n = 0_u32;
        bencher.bench_local(|| {
            n = n.wrapping_add(7);
            let client = IpAddr::from(Ipv4Addr::from_bits(0xc0a8_0100 + n % clients));
            kept.begin(black_box(client), n);
            kept.end(black_box(client), 128, 128, n);
        });
    }
}

mod codecs {
    use super::*;

    #[divan::bench]
    fn socks5_connect() -> Option<usize> {
        let mut handshake = Handshake::new(Command::Connect, address("203.0.113.9:443"), false);
        let mut out = [0; 600];
        let mut used_up = 0;
        let replies: [&[u8]; 3] = [&[], &[5, 0], &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]];
        for reply in replies {
            match handshake.step(None, black_box(reply), &mut out).ok()? {
                Step::Send { n, .. } => used_up += n,
                Step::NeedMore => {}
                Step::Done { used, .. } => used_up += used,
            }
        }
        Some(used_up)
    }

    #[divan::bench]
    fn socks5_datagram() -> bool {
        let mut datagram = [0; 128];
        encode_udp_header(black_box(address("203.0.113.9:443")), &mut datagram);
        parse_udp(black_box(&datagram)).is_ok()
    }

    #[divan::bench]
    fn http_head() {
        let head = b"GET /index.html HTTP/1.1\r\nUser-Agent: something/1.0 (of some kind)\r\nAccept: */*\r\nHost: video.example\r\n\r\n";
        black_box(sniff(black_box(head)));
    }

    #[divan::bench(args = [64, 1200, 65_507])]
    fn udp_header(bencher: Bencher<'_, '_>, len: usize) {
        let (payload, from, to) = (vec![7; len], address("203.0.113.9:443"), address("192.168.1.2:40000"));
        bencher.bench_local(|| packet::udp_header(&from, &to, black_box(&payload)));
    }
}

mod tables {
    use super::*;

    #[divan::bench(args = [16, 4096, 16_384])]
    fn destination(bencher: Bencher<'_, '_>, capacity: usize) {
        let mut table = Destinations::new(capacity, 0x1234_5678_9abc_def0);
        let client = |n: usize| Endpoint::from(SocketAddr::from(([192, 168, 1, 2], n as u16)));
        let to = Endpoint::from(address("203.0.113.9:443"));
        (0..capacity / 2).for_each(|n| table.insert(client(n), to, Decision::Drop, Tick(0)));
        let mut n = 0;
        bencher.bench_local(|| {
            n = (n + 1) % (capacity / 2);
            table.find(client(n), to, Tick(1))
        });
    }

    #[divan::bench(args = [16, 16_384])]
    fn slot(bencher: Bencher<'_, '_>, capacity: u16) {
        let mut slab = Slab::<[u64; 20]>::new(capacity);
        (0..capacity - 1).for_each(|_| assert!(slab.insert([0; 20]).is_ok()));
        bencher.bench_local(|| {
            let key = slab.insert(black_box([1; 20])).unwrap();
            slab.remove(key)
        });
    }

    #[divan::bench(args = [16, 16_384])]
    fn deadline(bencher: Bencher<'_, '_>, capacity: u16) {
        let mut timers = Timers::new(capacity);
        (0..capacity).for_each(|slot| timers.set(slot, Tick(u32::from(slot) * 7 % 1000)));
        let (mut slot, mut now) = (0, Tick(0));
        bencher.bench_local(|| {
            slot = (slot + 1) % capacity;
            now = now.after(Duration::from_millis(10));
            timers.set(slot, now.after(Duration::from_secs(60)));
        });
    }
}

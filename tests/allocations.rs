//! The steady state allocates nothing: 10,000 chunks and datagrams are relayed while an allocator counts.
#![allow(clippy::unwrap_used, reason = "a test that can't go on shall say where")]
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; it only counts and passes on")]

use mio::{Events, Poll};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;
use tproxyd::config::{Env, Target, parse};
use tproxyd::policy::{Flow, Policy, Proto};
use tproxyd::resolve::{Resolver, ServersSource};
use tproxyd::session::associated::Associated;
use tproxyd::session::origin::Origins;
use tproxyd::session::outbound::Outbounds;
use tproxyd::session::pipes::Pipes;
use tproxyd::session::reply::Replies;
use tproxyd::session::spares::Spares;
use tproxyd::session::tcp::Tcp;
use tproxyd::session::udp::Udp;
use tproxyd::session::{Cx, Owner, Readiness};
use tproxyd::stats::Stats;
use tproxyd::store::meters::Meters;
use tproxyd::store::names::Names;
use tproxyd::store::pool::Pool;
use tproxyd::store::quotas::Quotas;
use tproxyd::store::shares::Shares;
use tproxyd::store::timers::Tick;
use tproxyd::sys::dgram::ReceiveBatch;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes on to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything that the loop owns.
struct Lab {
    poll: Poll,
    events: Events,
    tcp: Tcp,
    udp: Udp,
    batch: ReceiveBatch,
    pool: Pool,
    pipes: Pipes,
    outbounds: Outbounds,
    spares: Spares,
    resolver: Resolver,
    policy: Policy,
    replies: Replies,
    stats: Stats,
    names: Names,
    origins: Origins,
    shares: Shares,
    meters: Meters,
    quotas: Quotas,
    associated: Associated,
}

/// All goes out directly and is measured, at a rate that nobody reaches.
fn measuring() -> Policy {
    let text = "config rule\n\toption outbound 'direct'\n\toption rate '100000G'\n\toption quota '100000G'\n";
    let env = Env { total_memory: 0, descriptors: u64::MAX };
    let config = parse("f", text.as_bytes(), &env, &mut |_| Err(ErrorKind::NotFound.into())).unwrap();
    Policy::new(&config, &[])
}

impl Lab {
    fn new() -> Lab {
        let mut shares = Shares::new(128, 7);
        shares.allow(100);
        Lab {
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(64),
            tcp: Tcp::new(64),
            udp: Udp::new(64, 7),
            batch: ReceiveBatch::new(),
            pool: Pool::new(1 << 20),
            pipes: Pipes::new(4),
            outbounds: Outbounds::new(),
            spares: Spares::new(160),
            resolver: Resolver::new(
                ServersSource::Server("127.0.0.1:9".parse().unwrap()),
                0,
                (true, true),
                Owner::Process(256).token(),
            ),
            policy: measuring(),
            replies: Replies::open(true, false, 0).expect("raw sockets need root, or unshare -Urn"),
            stats: Stats::default(),
            names: Names::new(128),
            origins: Origins::new(|| Ok(Vec::new())),
            shares,
            meters: Meters::new(128, 7),
            quotas: Quotas::new(128, 7),
            associated: Associated::new(128),
        }
    }

    fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::from_millis(1))).unwrap();
        let mut cx = Cx {
            registry: self.poll.registry(),
            now: Tick(0),
            pool: &mut self.pool,
            pipes: &mut self.pipes,
            outbounds: &mut self.outbounds,
            spares: &mut self.spares,
            resolver: &mut self.resolver,
            policy: &mut self.policy,
            stats: &mut self.stats,
            names: &mut self.names,
            origins: &mut self.origins,
            shares: &mut self.shares,
            meters: &mut self.meters,
            quotas: &mut self.quotas,
            associated: &mut self.associated,
            sniff_timeout: Duration::from_secs(1),
            self_mark: 0,
            listener: 0,
        };
        for event in self.events.iter() {
            match Owner::of(event.token()) {
                Owner::Tcp(key, side) => {
                    self.tcp.ready(key, side, Readiness::from(event), self.batch.scratch(), &mut cx);
                }
                Owner::Udp(key, side) => {
                    let ready = Readiness::from(event);
                    self.udp.ready(key, side, ready, &mut self.batch, &mut self.replies, &mut cx);
                }
                Owner::Process(_) => {}
            }
        }
        self.tcp.run_queued(self.batch.scratch(), &mut cx);
        self.udp.run_queued(&mut self.batch, &mut self.replies, &mut cx);
        self.tcp.expire(&mut cx);
        self.udp.expire(&mut cx);
    }

    fn open(&mut self, near: TcpStream, flow: (SocketAddr, SocketAddr)) {
        let mut cx = Cx {
            registry: self.poll.registry(),
            now: Tick(0),
            pool: &mut self.pool,
            pipes: &mut self.pipes,
            outbounds: &mut self.outbounds,
            spares: &mut self.spares,
            resolver: &mut self.resolver,
            policy: &mut self.policy,
            stats: &mut self.stats,
            names: &mut self.names,
            origins: &mut self.origins,
            shares: &mut self.shares,
            meters: &mut self.meters,
            quotas: &mut self.quotas,
            associated: &mut self.associated,
            sniff_timeout: Duration::from_secs(1),
            self_mark: 0,
            listener: 0,
        };
        let verdict = cx.policy.decide(&Flow::new(Proto::Tcp, flow.0, flow.1));
        let (target, measure) = cx.measured(&verdict, flow.0).unwrap();
        assert!(target == Target::Direct && measure.rate.is_some() && measure.quota.is_some());
        self.tcp.open(near.into(), flow, (0, measure), verdict.rule, &mut cx);
    }

    /// Takes what waits at `gate` as intercepted on its way to `orig_dst`.
    fn intercept(&mut self, gate: &UdpSocket, orig_dst: SocketAddr) {
        let mut cx = Cx {
            registry: self.poll.registry(),
            now: Tick(0),
            pool: &mut self.pool,
            pipes: &mut self.pipes,
            outbounds: &mut self.outbounds,
            spares: &mut self.spares,
            resolver: &mut self.resolver,
            policy: &mut self.policy,
            stats: &mut self.stats,
            names: &mut self.names,
            origins: &mut self.origins,
            shares: &mut self.shares,
            meters: &mut self.meters,
            quotas: &mut self.quotas,
            associated: &mut self.associated,
            sniff_timeout: Duration::from_secs(1),
            self_mark: 0,
            listener: 0,
        };
        for slot in 0..self.batch.receive(gate.as_fd()).unwrap() {
            let client = self.batch.get(slot).unwrap().from;
            self.udp.datagram(slot, 0, &(client, orig_dst), &self.batch, &mut self.replies, &mut cx);
        }
        self.udp.flush(&self.batch, &mut self.replies, &mut cx);
    }
}

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

/// Writes what fits and reads what is there, without blocking.
fn exchange(writer: &mut TcpStream, reader: &mut TcpStream, chunk: &[u8], sink: &mut [u8]) -> (usize, usize) {
    let count = |result: std::io::Result<usize>| match result {
        Ok(n) => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
        Err(e) => panic!("{e}"),
    };
    (count(writer.write(chunk)), count(reader.read(sink)))
}

#[test]
fn ten_thousand_chunks_are_relayed_without_an_allocation() {
    let mut lab = Lab::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(gate.local_addr().unwrap()).unwrap();
    let (near, from) = gate.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    lab.open(near, (from, server.local_addr().unwrap()));
    let (mut far, _) = server.accept().unwrap();
    for stream in [&client, &far] {
        stream.set_nonblocking(true).unwrap();
    }
    let chunk = vec![7; 3000];
    let mut sink = vec![0; 100_000];
    // the first bytes touch what is taken lazily: the name of a thread local, the first page of a table
    while exchange(&mut client, &mut far, &chunk, &mut sink).1 == 0 {
        lab.turn();
    }
    let mut relayed = [0; 2];
    let count = allocations(|| {
        while relayed.iter().any(|n| *n < 10_000 * chunk.len()) {
            relayed[0] += exchange(&mut client, &mut far, &chunk, &mut sink).1;
            relayed[1] += exchange(&mut far, &mut client, &chunk, &mut sink).1;
            lab.turn();
        }
    });
    assert_eq!(count, 0, "allocations while {relayed:?} bytes were relayed");
}

#[test]
fn ten_thousand_datagrams_are_relayed_without_an_allocation() {
    let mut lab = Lab::new();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let gate = UdpSocket::bind("127.0.0.1:0").unwrap();
    gate.set_nonblocking(true).unwrap();
    let (door, to) = (gate.local_addr().unwrap(), server.local_addr().unwrap());
    let mut buffer = [0; 2000];
    // several at once, so that they leave by one call, and as segments
    let mut round = |lab: &mut Lab, payload: &[u8], count: usize| {
        for _ in 0..count {
            client.send_to(payload, door).unwrap();
        }
        lab.intercept(&gate, to);
        for _ in 0..count {
            let (n, outside) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..n], outside).unwrap();
        }
        lab.turn();
        for _ in 0..count {
            let (n, source) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((n, source), (payload.len(), to));
        }
    };
    let payload = [9; 1200];
    round(&mut lab, &payload, 8);
    let count = allocations(|| (0..2500).for_each(|n| round(&mut lab, &payload[..n % 1200], 1 + n % 8)));
    assert_eq!(count, 0);
}

#[test]
fn a_thousand_connections_come_and_go_without_an_allocation() {
    let mut lab = Lab::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = |lab: &mut Lab| {
        let mut client = TcpStream::connect(gate.local_addr().unwrap()).unwrap();
        let (near, from) = gate.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        lab.open(near, (from, server.local_addr().unwrap()));
        let (mut far, _) = server.accept().unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        while !lab.tcp.is_empty() {
            lab.turn();
        }
        let mut text = [0; 16];
        assert_eq!(far.read(&mut text).unwrap(), 8);
    };
    one(&mut lab);
    let count = allocations(|| (0..1000).for_each(|_| one(&mut lab)));
    assert_eq!(count, 0);
    assert_eq!((lab.pool.lent(), lab.stats.tcp.total), (0, 1001));
}

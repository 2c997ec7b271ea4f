//! Packets by the ten thousand: half-open connections, a scan of all ports, sources that do not exist, and clients that are
//! slow on purpose. Others are served meanwhile.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use super::{Exit, Ground};
use crate::lab::Family;
use crate::ns::Namespace;
use crate::sock::{accept, connect, exchange, receive, refusal, udp};

/// Sends packets with headers of its own making.
struct Forger(std::os::fd::OwnedFd);

impl Forger {
    fn new(ns: &Namespace) -> Forger {
        let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Forger(ns.within(open).expect("a raw socket"))
    }

    fn send(&self, protocol: u8, from: SocketAddrV4, to: SocketAddrV4, body: &[u8]) {
        self.send_part(protocol, from, to, (0, 0), body);
    }

    /// A fragment: (identification, flags and offset) of RFC 791.
    fn send_part(&self, protocol: u8, from: SocketAddrV4, to: SocketAddrV4, part: (u16, u16), body: &[u8]) {
        // the kernel fills in length, checksum, and an identification of 0: raw(7)
        let [[id_high, id_low], [high, low]] = [part.0.to_be_bytes(), part.1.to_be_bytes()];
        let mut packet = vec![0x45, 0, 0, 0, id_high, id_low, high, low, 64, protocol, 0, 0];
        packet.extend(from.ip().octets());
        packet.extend(to.ip().octets());
        packet.extend(body);
        let at = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
        while let Err(e) = sendto(self.0.as_raw_fd(), &packet, &at, MsgFlags::empty()) {
            assert_eq!(e, nix::errno::Errno::ENOBUFS, "send");
            thread::yield_now();
        }
    }

    /// The beginning of a connection.
    fn syn(&self, from: SocketAddrV4, to: SocketAddrV4) {
        let mut tcp = Vec::with_capacity(20);
        tcp.extend(from.port().to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        let sum = checksum(6, from, to, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        self.send(6, from, to, &tcp);
    }

    fn datagram(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        self.send(17, from, to, &Forger::udp(from, to, payload));
    }

    fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let mut udp = Vec::with_capacity(8 + payload.len());
        udp.extend(from.port().to_be_bytes());
        udp.extend(to.port().to_be_bytes());
        udp.extend((8 + payload.len() as u16).to_be_bytes());
        // no checksum: RFC 768 allows it over IPv4
        udp.extend([0, 0]);
        udp.extend(payload);
        udp
    }
}

/// RFC 9293 section 3.1.
fn checksum(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, segment: &[u8]) -> u16 {
    let mut bytes =
        [&from.ip().octets()[..], &to.ip().octets(), &[0, protocol], &(segment.len() as u16).to_be_bytes()].concat();
    bytes.extend(segment);
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// One of 16 million sources that are nobody.
fn nobody(n: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(0x0a00_0000 | (n & 0xff_ffff)), 1024 + (n % 50_000) as u16)
}

fn v4(ip: std::net::IpAddr, port: u16) -> SocketAddrV4 {
    match ip {
        std::net::IpAddr::V4(ip) => SocketAddrV4::new(ip, port),
        std::net::IpAddr::V6(_) => unreachable!("these are v4"),
    }
}

fn ground(more: &[(&str, &str)]) -> Ground {
    let ground = Ground::new(Exit::Direct, |uci| uci.globals(&[("log_level", "info")]).globals(more));
    let loose = [("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/lan0/rp_filter", "0")];
    ground.lab.router.sysctl(&loose);
    ground
}

/// A connection and a flow of another client, which must be served soon whatever goes on.
fn others_are_served(ground: &Ground, what: &str) {
    let begin = Instant::now();
    let (listener, at) = ground.listen();
    let (mut client, mut server) = (connect(&ground.lab.client, at), accept(&listener));
    exchange(&mut client, &mut server, b"ask", b"answer");
    let echo = udp(&ground.lab.server, Family::V4.destination(7), 0);
    let socket = udp(&ground.lab.client, Family::V4.client(), 0);
    let to = echo.local_addr().expect("bound");
    // its datagram may be lost among the many; it asks again, as a client would
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("SO_RCVTIMEO");
    echo.set_read_timeout(Some(Duration::from_millis(500))).expect("SO_RCVTIMEO");
    let answered = (0..30).any(|_| {
        socket.send_to(b"ask", to).expect("send");
        let mut bytes = [0; 8];
        let Ok((_, from)) = echo.recv_from(&mut bytes) else { return false };
        echo.send_to(b"answer", from).is_ok() && socket.recv_from(&mut bytes).is_ok()
    });
    assert!(answered, "{what}: no answer to any of 30 datagrams");
    println!("{what}: others were served within {:?}", begin.elapsed());
    let status = ground.daemon.status();
    assert!(status.number("memory.peak") <= status.number("memory.bound"), "{what}: {status}");
}

/// Fragments that overlap say two things of one octet: whatever came of them would be what a filter has not seen (RFC 5722,
/// RFC 1858). Those of no datagram, or past the end of any, are only waited for.
#[test]
fn overlapping_fragments_come_to_nothing_and_others_are_served() {
    const MORE: u16 = 0x2000;
    // where a fragment ends, a multiple of eight
    const CUT: usize = 1_480;
    let ground = ground(&[]);
    let forger = Forger::new(&ground.lab.client);
    let echo = udp(&ground.lab.server, Family::V4.destination(9), 4_000);
    let (from, to) = (v4(Family::V4.client(), 5_000), v4(Family::V4.destination(9), 4_000));
    let datagram = |octet: u8| Forger::udp(from, to, &[octet; 2_400]);
    let part = |id: u16, bytes: &[u8], at: usize, end: usize| {
        let more = if end < bytes.len() { MORE } else { 0 };
        forger.send_part(17, from, to, (id, more | (at / 8) as u16), &bytes[at..end]);
    };
    let (good, evil) = (datagram(1), datagram(2));
    part(1, &good, CUT, good.len());
    part(1, &good, 0, CUT);
    assert_eq!(receive(&echo).0, [1; 2_400], "what is cut well arrives whole");
    for id in (2..1_000).step_by(4) {
        // over the end of the first, over its beginning, within it, and around it
        part(id, &good, 0, CUT);
        part(id, &evil, CUT - 80, evil.len());
        part(id + 1, &good, 1_000, good.len());
        part(id + 1, &evil, 0, 1_008);
        part(id + 2, &good, 0, CUT);
        part(id + 2, &evil, 400, 800);
        part(id + 2, &good, CUT, good.len());
        part(id + 3, &good, 400, 800);
        part(id + 3, &evil, 0, CUT);
        part(id + 3, &evil, CUT, evil.len());
    }
    for id in 2_000..4_000 {
        forger.send_part(17, from, to, (id, MORE), &good[..CUT]);
        forger.send_part(17, from, to, (id, 8_191), &evil[..CUT]);
    }
    others_are_served(&ground, "overlapping fragments");
    part(5_000, &good, 0, CUT);
    part(5_000, &good, CUT, good.len());
    let arrived = receive(&echo).0;
    assert!(arrived == [1; 2_400], "{} octets, the first is {:?}", arrived.len(), arrived.first());
    ground.daemon.stop();
}

#[test]
fn ten_thousand_half_open_connections_keep_nobody_out() {
    let ground = ground(&[]);
    let forger = Forger::new(&ground.lab.client);
    for n in 0..10_000 {
        forger.syn(nobody(n), v4(Family::V4.destination(80), 80));
    }
    others_are_served(&ground, "10,000 half-open connections");
    // they are the kernel's, and never come to the process
    assert!(ground.daemon.status().number("tcp.active") <= 1);
}

#[test]
fn a_scan_of_all_65535_ports_harms_nobody() {
    let ground = ground(&[]);
    let forger = Forger::new(&ground.lab.client);
    let client = Family::V4.client();
    for port in 1..=u16::MAX {
        // to every SYN-ACK the client's kernel answers by a reset
        forger.syn(v4(client, 30_000), v4(Family::V4.destination(9), port));
    }
    others_are_served(&ground, "a scan by half-open connections");
    for port in 1..=500 {
        refusal(&ground.lab.client, (Family::V4.destination(9), port).into());
    }
    others_are_served(&ground, "a scan by connections");
    ground.daemon.status_until("all connections have ended", |status| status.number("tcp.active") == 0);
}

#[test]
fn a_hundred_thousand_sources_that_do_not_exist_harm_nobody() {
    let ground = ground(&[("udp_sessions", "256")]);
    let descriptors = ground.daemon.descriptors();
    let forger = Forger::new(&ground.lab.client);
    let sink = udp(&ground.lab.server, Family::V4.destination(7), 5_000);
    let to = v4(Family::V4.destination(7), sink.local_addr().expect("bound").port());
    for n in 0..100_000 {
        forger.datagram(nobody(n), to, b"flood");
    }
    others_are_served(&ground, "100,000 sources");
    let status = ground.daemon.status();
    assert!(status.number("udp.active") <= 256 && status.number("udp.evicted") > 0, "{status}");
    assert!(ground.daemon.descriptors() <= descriptors + 256 + 8);
    receive(&sink);
}

#[test]
fn three_hundred_slow_writers_and_readers_keep_nobody_out() {
    let ground = ground(&[("tcp_sessions", "512")]);
    let (listener, at) = ground.listen();
    let mut slow: Vec<_> = (0..300).map(|_| ground.join(&listener, at)).collect();
    for round in 0..3u8 {
        for (n, (client, server)) in slow.iter_mut().enumerate() {
            // half of them send an octet now and then, half are sent more than they read
            let sent = if n % 2 == 0 { client.write(&[round]) } else { server.write(&[round; 4_096]) };
            assert!(sent.expect("the kernel takes it") > 0);
        }
        others_are_served(&ground, "300 slow ones");
    }
    let worked = ground.spun();
    assert!(worked < Duration::from_millis(300), "it worked {worked:?} of a second in which nobody said anything");
    drop(slow);
    ground.daemon.status_until("all connections have ended", |status| status.number("tcp.active") == 0);
}

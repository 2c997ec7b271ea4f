//! Real packets of real clients on two devices, and what becomes of each.

use super::reference::{LAN, client};
use crate::lab::{Lab, Namespace};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tproxyd::netfilter::load::{self, Objects};
use tproxyd::netfilter::{Facts, Installation, Surroundings, look, questions, render};
use tproxyd::sys::socket::{self, Family, Transport};
use tproxyd::sys::sockopt;

/// The router's devices towards clients.
pub(crate) const DEVICES: [&str; 2] = ["lan0", "lan1"];

/// Ports of clients and of destinations.
pub(crate) const PORTS: [u16; 4] = [443, 1000, 1500, 2000];

/// The first packet of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) tcp: bool,
    /// Where among [`DEVICES`] it comes in; its MAC address ends alike.
    pub(crate) device: usize,
    pub(crate) client: SocketAddr,
    pub(crate) orig_dst: SocketAddr,
    /// The name that its flow asks for, if it is looked for.
    pub(crate) name: Option<&'static str>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// It came to the server.
    Direct,
    /// It came to the stub that stands in for the process.
    Process,
    /// The client was told.
    Reject,
    /// Nothing came anywhere.
    Drop,
}

/// A flow as whoever got it saw it: TCP, client, destination.
type Seen = Arc<Mutex<HashMap<(bool, SocketAddr, SocketAddr), Fate>>>;

/// The lab with a second LAN, services that tell what they got, and a process that takes everything.
pub(crate) struct Field<'l> {
    lab: &'l Lab,
    seen: Seen,
}

impl<'l> Field<'l> {
    pub(crate) fn build(lab: &'l Lab) -> Field<'l> {
        lab.client.sh("ip link set eth0 address 02:00:00:00:00:00");
        lab.router.sh(&format!(
            "ip neigh flush dev lan0; ip -6 neigh flush dev lan0
             ip link add lan1 type veth peer name eth1 netns {}
             ip addr add 192.168.2.1/24 dev lan1; ip addr add fd00:2::1/64 dev lan1 nodad; ip link set lan1 up
             nft delete table ip nat
             echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit",
            lab.client.path
        ));
        let mut script = "ip link set eth1 address 02:00:00:00:00:01; ip link set eth1 up\n".to_owned();
        for device in [0, 1] {
            for host in 0..LAN {
                for (v4, bits) in [(true, 24), (false, 64)] {
                    let nodad = if v4 { "" } else { " nodad" };
                    let address = client(v4, device, host);
                    script += &format!("ip addr replace {address}/{bits} dev eth{device}{nodad}\n");
                }
            }
            let table = 100 + device;
            let net = device + 1;
            script += &format!(
                "ip rule add from 192.168.{net}.0/24 lookup {table}; ip -6 rule add from fd00:{net}::/64 lookup {table}
                 ip route add default via 192.168.{net}.1 dev eth{device} table {table}
                 ip -6 route add default via fd00:{net}::1 dev eth{device} table {table}\n"
            );
        }
        lab.client.sh(&script);
        // every destination is the server's
        lab.server.sh("ip route add 192.168.0.0/16 via 203.0.113.1; ip route replace fd00::/16 via 2001:db8::1
             ip route add local 198.51.100.0/24 dev lo; ip route add local 2001:db8:7::/64 dev lo");
        let seen = Seen::default();
        PORTS.iter().for_each(|port| serve(&lab.server, *port, Fate::Direct, &seen));
        serve(&lab.router, 2333, Fate::Process, &seen);
        Field { lab, seen }
    }

    /// Loads the rules of a configuration in place of those before.
    pub(crate) fn install(&self, text: &str, before: Objects) -> Objects {
        let text = text.to_owned();
        self.lab.router.run(move || {
            let cfg = crate::config(&text);
            let (networks, devices) = questions(&cfg);
            // there is no ubus here; what it would say
            let found = Surroundings {
                networks: networks.iter().map(|name| super::reference::device_of(name).map(str::to_owned)).collect(),
                ..look(&[], &devices).unwrap()
            };
            Installation::new(&cfg.globals).routes.install().unwrap();
            load::replace(&render(&cfg, &Facts::new(&cfg, &found, &[])), &before).unwrap()
        })
    }

    /// Sends the packets and waits until each has met the fate that is expected of it, or something else.
    pub(crate) fn send(&self, packets: &[Packet], expected: impl Fn(&Packet) -> Fate) -> Vec<Fate> {
        for side in [&self.lab.router, &self.lab.server] {
            side.sh("conntrack -F 2>/dev/null");
        }
        self.seen.lock().unwrap().clear();
        let flows: Vec<(Packet, OwnedFd)> = packets.iter().map(|packet| (*packet, self.begin(*packet))).collect();
        let begin = Instant::now();
        loop {
            let fates: Vec<Fate> = flows.iter().map(|(packet, fd)| self.fate(packet, fd)).collect();
            let right = flows.iter().zip(&fates).all(|((packet, _), fate)| *fate == expected(packet));
            // what must vanish is looked for once more when everything else has arrived
            if right && begin.elapsed() > Duration::from_millis(20) || begin.elapsed() > Duration::from_secs(3) {
                return fates;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn begin(&self, packet: Packet) -> OwnedFd {
        self.lab.client.run(move || {
            let transport = if packet.tcp { Transport::Tcp } else { Transport::Udp };
            let fd = socket::open(Family::of(packet.client), transport).unwrap();
            sockopt::set_reuse_address(fd.as_fd()).unwrap();
            socket::bind(fd.as_fd(), packet.client).unwrap_or_else(|e| panic!("bind {}: {e}", packet.client));
            match socket::connect(fd.as_fd(), packet.orig_dst) {
                Err(e) if e.kind() != ErrorKind::WouldBlock => panic!("connect {}: {e}", packet.orig_dst),
                _ => {}
            }
            if packet.tcp {
                let _ = sockopt::set_reset_on_close(fd.as_fd());
                return fd;
            }
            let socket = UdpSocket::from(fd);
            // what it says leads to the flow, whatever address the server sees
            let _ = socket.send(packet.orig_dst.to_string().as_bytes());
            socket.into()
        })
    }

    fn fate(&self, packet: &Packet, fd: &OwnedFd) -> Fate {
        let key = (packet.tcp, packet.client, packet.orig_dst);
        if let Some(fate) = self.seen.lock().unwrap().get(&key) {
            return *fate;
        }
        if sockopt::take_error(fd.as_fd()).is_ok() {
            return Fate::Drop;
        }
        // The error is told once. A server that has noted the flow since, and reset it, told of none.
        *self.seen.lock().unwrap().entry(key).or_insert(Fate::Reject)
    }
}

/// Notes whose flows come to `port`.
fn serve(ns: &Namespace, port: u16, fate: Fate, seen: &Seen) {
    for family in [Family::V4, Family::V6] {
        let (listener, datagrams) = ns.run(move || {
            let any: IpAddr =
                if family == Family::V4 { [0, 0, 0, 0].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
            let open = |transport| {
                let fd = socket::open(family, transport).unwrap();
                match family {
                    Family::V4 => sockopt::set_ipv4_transparent(fd.as_fd()).unwrap(),
                    Family::V6 => {
                        sockopt::set_v6_only(fd.as_fd(), true).unwrap();
                        sockopt::set_ipv6_transparent(fd.as_fd()).unwrap();
                    }
                }
                socket::bind(fd.as_fd(), SocketAddr::new(any, port)).unwrap();
                fd
            };
            let (tcp, udp) = (open(Transport::Tcp), open(Transport::Udp));
            socket::listen(tcp.as_fd(), 256).unwrap();
            let (tcp, udp) = (TcpListener::from(tcp), UdpSocket::from(udp));
            tcp.set_nonblocking(false).unwrap();
            udp.set_nonblocking(false).unwrap();
            (tcp, udp)
        });
        let of_tcp = Arc::clone(seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) {
                    of_tcp.lock().unwrap().insert((true, peer, local), fate);
                }
                // the tuple is used again by the next list, and must not wait for its time
                let _ = sockopt::set_reset_on_close(stream.as_fd());
            }
        });
        let of_udp = Arc::clone(seen);
        thread::spawn(move || {
            let mut text = [0; 128];
            while let Ok((n, from)) = datagrams.recv_from(&mut text) {
                let to = std::str::from_utf8(&text[..n]).unwrap().parse().unwrap();
                of_udp.lock().unwrap().insert((false, from, to), fate);
            }
        });
    }
}

//! Datagrams and ICMP errors to the client, from the address that it spoke to.
//!
//! Two ways for datagrams. A raw socket serves every foreign address and port, one datagram at a time. Several of one sender in
//! a row go through a socket bound to that sender's address, where the kernel cuts one large buffer into all of them
//! (`UDP_SEGMENT`); few such sockets are kept, and none for long, since as long as one is bound, a local service that
//! does not share its port can't bind it (kernel: `inet_rcv_saddr_equal`).
//!
//! Flows that were redirected are answered by their listener, and translated back by connection tracking.

use super::redirect::Redirects;
use crate::proto::packet::{self, UDP_HEADER, UDP_PAYLOAD_MAX, UNREACHABLE_MAX};
use crate::proto::socks5_udp;
use crate::stats::{Drop, Stats};
use crate::store::endpoint::Endpoint;
use crate::store::timers::Tick;
use crate::sys::dgram::ReceiveBatch;
use crate::sys::dgram::queue::SendQueue;
use crate::sys::raw;
use crate::sys::socket::{self, Family, Transport};
use crate::sys::sockopt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The raw sockets of one family.
struct Sender {
    udp: OwnedFd,
    icmp: OwnedFd,
}

/// A socket bound to a foreign address; `None`: it could not be bound, and is not tried again for a while.
struct BoundSocket {
    source: Endpoint,
    fd: Option<OwnedFd>,
    used: Tick,
}

/// Sends to clients from foreign addresses.
pub struct Replies {
    v4: Option<Sender>,
    v6: Option<Sender>,
    mark: u32,
    bound: heapless::Vec<BoundSocket, BOUND_MAX>,
    /// Datagrams on their way to `client`, and for each who it is from.
    waiting: heapless::Vec<Waiting, { crate::sys::dgram::SLOTS }>,
    client: SocketAddr,
    queue: SendQueue,
    /// ICMP errors that may be sent at once.
    allowance: u32,
    refilled: Tick,
    /// Flows whose addresses were translated on their way here.
    pub redirects: Redirects,
}

#[derive(Clone, Copy)]
struct Waiting {
    slot: usize,
    start: usize,
    len: usize,
    from: SocketAddr,
}

/// Most bound sockets.
pub const BOUND_MAX: usize = 16;

/// How long a bound socket is kept that is not used.
const BOUND_IDLE: Duration = Duration::from_secs(2);

/// Datagrams of one sender in a row that are worth a bound socket.
const BOUND_FROM: usize = 3;

/// ICMP errors a second that are sent at most, as the kernel limits its own (`net.ipv4.icmp_msgs_per_sec`).
const ICMP_PER_SECOND: u32 = 1000;

impl Replies {
    /// Opens the raw sockets of the families asked for, which send with `mark`.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`; `EAFNOSUPPORT`.
    pub fn open(v4: bool, v6: bool, mark: u32) -> io::Result<Replies> {
        let open =
            |family| io::Result::Ok(Sender { udp: raw::open_udp(family, mark)?, icmp: raw::open_icmp(family, mark)? });
        let v4 = if v4 { Some(open(Family::V4)?) } else { None };
        let v6 = if v6 { Some(open(Family::V6)?) } else { None };
        Ok(Replies {
            v4,
            v6,
            mark,
            bound: heapless::Vec::new(),
            waiting: heapless::Vec::new(),
            client: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            queue: SendQueue::new(true),
            allowance: ICMP_PER_SECOND,
            refilled: Tick(0),
            redirects: Redirects::new(0, 0),
        })
    }

    fn sender(&self, client: &SocketAddr) -> Option<&Sender> {
        if client.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// Puts a datagram for `client` as if it came from `from` in the row for [`Self::flush`]: its slot, where its payload
    /// begins there, and how long it is. All in the row are for one client.
    pub fn push(&mut self, part: (usize, usize, usize), from: SocketAddr, client: Endpoint, stats: &mut Stats) {
        let (slot, start, len) = part;
        if self.waiting.is_empty() {
            self.client = client.address();
        }
        // a proxy may name an address of the other family, from which the client expects nothing
        if self.sender(&self.client).is_none() || from.is_ipv4() != self.client.is_ipv4() {
            return stats.drop(Drop::Malformed);
        }
        if len > UDP_PAYLOAD_MAX {
            return stats.drop(Drop::TooLarge);
        }
        let waiting = Waiting { slot, start, len, from };
        if self.waiting.push(waiting).is_err() {
            // a batch has no more slots than the row has places
            stats.drop(Drop::NoRoom);
        }
    }

    /// Sends the row, whose payloads are in `batch`. Returns how many octets of payload were sent.
    pub fn flush(&mut self, batch: &ReceiveBatch, now: Tick, stats: &mut Stats) -> u64 {
        let mut sent = 0;
        let mut first = 0;
        while let Some(head) = self.waiting.get(first) {
            let (client, from) = (self.client, head.from);
            let run = self.waiting[first..].iter().take_while(|other| other.from == from).count();
            let back = self.redirects.way_back(client, from, now);
            let bound = if run >= BOUND_FROM && back.is_none() { self.bound_to(from, now) } else { None };
            for Waiting { slot, start, len, from } in self.waiting.iter().skip(first).take(run) {
                let Some(outgoing) = self.queue.push(*slot, (*start, *len)) else { break };
                match (&back, bound) {
                    // as the listener sends it that the flow came to
                    (Some(back), _) => {
                        outgoing.send_to(&back.peer).from_source(back.local.ip());
                        if back.with_header {
                            outgoing.put_header(|out| socks5_udp::encode_udp_header(*from, out));
                        }
                    }
                    // as a socket sends it that has the right address
                    (None, Some(_)) => drop(outgoing.send_to(&client)),
                    // as the raw socket sends it: with a UDP header of our own, to a host without a port
                    (None, None) => {
                        let header = packet::udp_header(from, &client, batch.part(*slot, *start, *len));
                        outgoing.send_to_host(client.ip()).from_source(from.ip()).alone().put_header(|out| {
                            out[..UDP_HEADER].copy_from_slice(&header);
                            UDP_HEADER
                        });
                    }
                }
            }
            first += run;
            let raw = if from.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() };
            let fd = match (&back, bound) {
                (Some(back), _) => self.redirects.socket(back.listener),
                (None, Some(n)) => self.bound[n].fd.as_ref().map(AsFd::as_fd),
                (None, None) => raw.map(|sender| sender.udp.as_fd()),
            };
            let Some(fd) = fd else {
                self.queue.clear();
                stats.drop(Drop::Unsendable);
                continue;
            };
            self.queue.flush(fd, batch, |outgoing, result| match result {
                Ok(()) => sent += outgoing.part.1 as u64,
                Err(e) => stats.drop(if e.kind() == ErrorKind::WouldBlock { Drop::NoRoom } else { Drop::Unsendable }),
            });
        }
        self.waiting.clear();
        sent
    }

    /// The place of a socket bound to `source`, opened if there is none and it can be had.
    fn bound_to(&mut self, source: SocketAddr, now: Tick) -> Option<usize> {
        let endpoint = Endpoint::from(source);
        let place = match self.bound.iter().position(|bound| bound.source == endpoint) {
            Some(place) => place,
            None => {
                if self.bound.is_full() {
                    let oldest = (0..self.bound.len()).max_by_key(|n| now.since(self.bound[*n].used))?;
                    self.bound.swap_remove(oldest);
                }
                let fd = open_bound(source, self.mark).ok();
                let _ = self.bound.push(BoundSocket { source: endpoint, fd, used: now });
                self.bound.len() - 1
            }
        };
        self.bound[place].used = now;
        self.bound[place].fd.is_some().then_some(place)
    }

    /// Closes bound sockets that were not used for a while.
    pub fn expire(&mut self, now: Tick) {
        self.bound.retain(|bound| now.since(bound.used) < BOUND_IDLE);
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        let ends = self.bound.iter().map(|bound| bound.used.after(BOUND_IDLE));
        ends.reduce(Tick::earlier)
    }

    /// Tells `client` by an ICMP error of this type and code that its datagram to `orig_dst` went nowhere.
    pub fn unreachable(
        &mut self,
        kind: (u8, u8),
        mtu: u32,
        (client, orig_dst, payload_len): (SocketAddr, SocketAddr, usize),
        now: Tick,
        stats: &mut Stats,
    ) {
        if now.since(self.refilled) >= Duration::from_secs(1) {
            self.allowance = ICMP_PER_SECOND;
            self.refilled = now;
        }
        if self.allowance == 0 {
            stats.drop(Drop::IcmpRate);
            return;
        }
        self.allowance -= 1;
        // what is quoted is the datagram as it arrived: connection tracking translates that, too
        let back = self.redirects.way_back(client, orig_dst, now);
        let (client, orig_dst) = back.map_or((client, orig_dst), |back| (back.peer, back.local));
        let Some(sender) = self.sender(&client) else { return };
        let mut message = [0; UNREACHABLE_MAX];
        let len = packet::unreachable(kind, mtu, client, orig_dst, payload_len, &mut message);
        if raw::send(sender.icmp.as_fd(), None, client.ip(), &message[..len], &[]).is_err() {
            stats.drop(Drop::Unsendable);
        }
    }

    /// [`Self::unreachable`] with "port unreachable", which is what a closed port and a reject rule look like.
    pub fn port_unreachable(&mut self, flow: (SocketAddr, SocketAddr, usize), now: Tick, stats: &mut Stats) {
        self.unreachable(packet::port_unreachable(flow.0), 0, flow, now, stats);
    }
}

/// A UDP socket bound to the foreign address `source`.
fn open_bound(source: SocketAddr, mark: u32) -> io::Result<OwnedFd> {
    let fd = socket::open(Family::of(source), Transport::Udp)?;
    let at = fd.as_fd();
    sockopt::set_reuse_address(at)?;
    sockopt::set_mark(at, mark)?;
    match Family::of(source) {
        Family::V4 => {
            sockopt::set_ipv4_transparent(at)?;
            sockopt::set_ipv4_fragment(at)?;
        }
        Family::V6 => {
            sockopt::set_ipv6_transparent(at)?;
            sockopt::set_ipv6_fragment(at)?;
        }
    }
    socket::bind(at, source)?;
    Ok(fd)
}

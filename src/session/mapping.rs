//! One UDP mapping: its outside socket, datagrams through it both ways, and what it looks like to people.

use super::Cx;
use super::Owner;
use super::dial::bind_in_name_of;
use super::metered::Measure;
use super::outbound::{Outbound, Outbounds, Way};
use super::reply::Replies;
use super::tcp::View;
use crate::proto::proxy_header;
use crate::proto::socks5_udp::{self, UdpSource};
use crate::stats::{Drop, Stats};
use crate::store::endpoint::Endpoint;
use crate::store::names::NameSlot;
use crate::store::pool::Chunk;
use crate::store::slab::Key;
use crate::store::timers::Tick;
use crate::sys::dgram::queue::{HEADER_MAX, Outgoing};
use crate::sys::dgram::{self, ReceiveBatch, SLOTS};
use crate::sys::socket::{Family, Transport};
use crate::sys::{self, errqueue, socket, sockopt};
use mio::Interest;
use mio::unix::SourceFd;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// One client port at one outbound: one outside port for all destinations (RFC 4787 REQ-1).
#[derive(Debug)]
pub struct Mapping {
    pub(super) client: Endpoint,
    /// The first destination, for people to see.
    pub(super) orig_dst: Endpoint,
    /// The outside socket, or the one connected to the proxy's relay.
    pub(super) socket: Option<OwnedFd>,
    /// The connection that keeps an association alive.
    pub(super) control: Option<OwnedFd>,
    pub(super) dial: Key,
    /// Datagrams that came before the association stood.
    pub(super) waiting: Option<Chunk>,
    pub(super) waiting_count: u8,
    pub(super) stage: Stage,
    /// Nothing but port 53 was spoken to.
    pub(super) only_dns: bool,
    pub(super) queued: bool,
    /// What the rules say.
    pub(super) outbound: u16,
    /// The way that it takes: that outbound or, of a group, a member.
    pub(super) via: u16,
    /// It has one destination alone, for answers that name none.
    pub(super) single: bool,
    /// Place of the listener that took its first datagram.
    pub(super) listener: u8,
    pub(super) rule: Option<u16>,
    /// What its rule lets it move.
    pub(super) measure: Measure,
    /// The name that the flow which began it asked for, where it was looked for and found.
    pub(super) name: Option<NameSlot>,
    pub(super) started: Tick,
    pub(super) active: Tick,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

/// Whom the client takes an answer to be from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Who sent it: anyone may (RFC 4787 REQ-8).
    Sender,
    /// The one destination of the mapping, whose answers a fixed server gives.
    OrigDst,
    /// Whom the proxy names in the header.
    Header,
    /// Whom the server names within what it has sealed.
    #[cfg(feature = "shadowsocks")]
    Sealed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The name of the outbound's server has no address yet.
    Resolving,
    /// The association is being made.
    Dialling,
    /// Datagrams flow.
    Ready,
    /// The association could not be made; kept for a moment so that not every datagram dials again.
    Failed,
}

impl Mapping {
    /// Sends one datagram out.
    pub(super) fn send(
        &mut self,
        orig_dst: SocketAddr,
        payload: &[u8],
        replies: &mut Replies,
        (outbounds, stats): (&Outbounds, &mut Stats),
        now: Tick,
    ) {
        let Some(socket) = &self.socket else { return };
        let sent = match outbounds.get(self.via).way {
            Way::Direct => send(socket.as_fd(), Some(orig_dst), &[], payload),
            _ => {
                let mut header = [0; HEADER_MAX];
                let len = self.header(orig_dst, outbounds, &mut header);
                send(socket.as_fd(), None, &header[..len], payload)
            }
        };
        match sent {
            Ok(()) => self.bytes_up += payload.len() as u64,
            Err(e) => unsent(&e, self.client.address(), Some(orig_dst), payload.len(), (replies, stats), now),
        }
    }

    /// Completes what is to leave for `orig_dst`.
    pub(super) fn address(&self, outgoing: &mut Outgoing, orig_dst: &SocketAddr, outbounds: &Outbounds) {
        match outbounds.get(self.via).way {
            Way::Direct => drop(outgoing.send_to(orig_dst)),
            _ => drop(outgoing.put_header(|out| self.header(*orig_dst, outbounds, out))),
        }
    }

    /// Writes what goes before each datagram to `orig_dst`, and returns how long it is.
    fn header(&self, orig_dst: SocketAddr, outbounds: &Outbounds, out: &mut [u8; HEADER_MAX]) -> usize {
        match outbounds.get(self.via).way {
            Way::Forward { send_proxy: Some(version), .. } => {
                let transport = proxy_header::Transport::Datagram;
                proxy_header::encode(version, transport, self.client.address(), orig_dst, out).unwrap_or(0)
            }
            Way::Socks5 { .. } => socks5_udp::encode_udp_header(orig_dst, out),
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { .. } => 0,
            Way::Direct | Way::Forward { .. } | Way::Group { .. } | Way::Http { .. } => 0,
        }
    }

    /// Puts the datagram in `slot` on its way to the client.
    pub(super) fn reply(
        &mut self,
        slot: usize,
        batch: &ReceiveBatch,
        from: Source,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        if batch.is_truncated(slot) {
            return cx.stats.drop(Drop::TooLarge);
        }
        let payload = batch.payload(slot);
        let (from, start) = match from {
            Source::Sender => match batch.from(slot) {
                Some(from) => (from, 0),
                None => return,
            },
            Source::OrigDst => (self.orig_dst(), 0),
            #[cfg(feature = "shadowsocks")]
            Source::Sealed => return,
            Source::Header => match socks5_udp::parse_udp(payload) {
                Ok((UdpSource::Address(from), start)) => (from, start),
                _ => return cx.stats.drop(Drop::Malformed),
            },
        };
        let len = payload.len() - start;
        if cx.admits(&self.measure, false, len) {
            replies.push((slot, start, len), from, self.client, cx.stats);
        }
    }

    /// Tells the client what ICMP said about its datagrams.
    pub(super) fn pass_errors_on(&self, replies: &mut Replies, cx: &mut Cx<'_>) {
        let Some(socket) = &self.socket else { return };
        let forwarded = match cx.outbounds.get(self.via).way {
            Way::Direct => false,
            Way::Forward { .. } => true,
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { .. } => return,
            Way::Group { .. } | Way::Http { .. } | Way::Socks5 { .. } => return,
        };
        // bounded: a flood of errors must not hold up the others
        for _ in 0..SLOTS {
            let Ok(error) = errqueue::take(socket.as_fd()) else { return };
            // destination unreachable (RFC 792 type 3, RFC 4443 type 1), but for "fragmentation needed", since we fragment
            let passed_on =
                if error.destination.is_ipv4() { error.kind == 3 && error.code != 4 } else { error.kind == 1 };
            if passed_on && forwarded {
                // the server may be of the other family, and the client knows of the original destination only
                replies.port_unreachable((self.client.address(), self.orig_dst(), 0), cx.now, cx.stats);
            } else if passed_on {
                let flow = (self.client.address(), error.destination, 0);
                replies.unreachable((error.kind, error.code), 0, flow, cx.now, cx.stats);
            }
        }
    }

    /// Takes it off the count of the member that it went by.
    pub(super) fn leave(&self, cx: &mut Cx<'_>) {
        if self.via != self.outbound {
            cx.outbounds.get_mut(self.via).sessions -= 1;
        }
    }

    /// The first destination of this client port.
    pub(super) fn orig_dst(&self) -> SocketAddr {
        self.orig_dst.address()
    }

    pub(super) fn view(&self, key: Key) -> View {
        View {
            id: u32::from(key.generation) << 16 | 0x8000 | u32::from(key.slot),
            client: self.client.address(),
            orig_dst: self.orig_dst.address(),
            outbound: self.via,
            group: self.outbound,
            listener: self.listener,
            rule: self.rule,
            started: self.started,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            state: match self.stage {
                Stage::Resolving => "resolving",
                Stage::Dialling => "dialling",
                Stage::Ready => "relaying",
                Stage::Failed => "failed",
            },
        }
    }
}

/// Counts a datagram that could not be sent, and tells the client where there is no way to its destination.
pub(super) fn unsent(
    error: &io::Error,
    client: SocketAddr,
    orig_dst: Option<SocketAddr>,
    len: usize,
    (replies, stats): (&mut Replies, &mut Stats),
    now: Tick,
) {
    stats.drop(match error.kind() {
        ErrorKind::WouldBlock => Drop::NoRoom,
        _ if sys::too_large(error) => Drop::TooLarge,
        _ => Drop::Unsendable,
    });
    if let Some(orig_dst) = orig_dst
        && matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable)
    {
        // "net unreachable" and "no route to destination": RFC 792, RFC 4443 section 3.1
        let kind = if orig_dst.is_ipv4() { (3, 0) } else { (1, 0) };
        replies.unreachable(kind, 0, (client, orig_dst, len), now, stats);
    }
}

/// Sends, and again if the call only delivered the error of an earlier datagram.
fn send(fd: BorrowedFd<'_>, to: Option<SocketAddr>, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut last = dgram::send(fd, to, header, payload);
    for _ in 0..2 {
        match &last {
            Err(e) if !sys::too_large(e) && e.kind() != ErrorKind::WouldBlock => {
                last = dgram::send(fd, to, header, payload);
            }
            _ => break,
        }
    }
    last.map(drop)
}

/// The outside socket of a direct mapping: unconnected, so that anyone may answer (RFC 4787 REQ-8).
pub(super) fn open_outside(client: SocketAddr, owner: Owner, outbound: &Outbound, cx: &Cx<'_>) -> io::Result<OwnedFd> {
    let fd = open_udp(Family::of(client), outbound, cx)?;
    receive_errors(fd.as_fd(), Family::of(client))?;
    if outbound.keep_source {
        bind_in_name_of(fd.as_fd(), client)?;
    }
    register(&fd, owner, cx)?;
    Ok(fd)
}

/// The outside socket to a fixed server: connected, so that only the server can answer.
pub(super) fn open_to(
    server: SocketAddr,
    client: SocketAddr,
    owner: Owner,
    outbound: &Outbound,
    cx: &Cx<'_>,
) -> io::Result<OwnedFd> {
    let fd = open_udp(Family::of(server), outbound, cx)?;
    receive_errors(fd.as_fd(), Family::of(server))?;
    if outbound.keeps_source_of(client, server) {
        bind_in_name_of(fd.as_fd(), client)?;
    }
    socket::connect(fd.as_fd(), server)?;
    register(&fd, owner, cx)?;
    Ok(fd)
}

fn receive_errors(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => sockopt::set_ipv4_receive_errors(fd),
        Family::V6 => sockopt::set_ipv6_receive_errors(fd),
    }
}

/// A UDP socket with our mark that fragments what is larger than the path's MTU.
pub(super) fn open_udp(family: Family, outbound: &Outbound, cx: &Cx<'_>) -> io::Result<OwnedFd> {
    let fd = socket::open(family, Transport::Udp)?;
    sockopt::set_mark(fd.as_fd(), cx.self_mark | outbound.fwmark)?;
    if let Some(device) = &outbound.device {
        sockopt::bind_to_device(fd.as_fd(), device)?;
    }
    match family {
        Family::V4 => sockopt::set_ipv4_fragment(fd.as_fd())?,
        Family::V6 => sockopt::set_ipv6_fragment(fd.as_fd())?,
    }
    Ok(fd)
}

pub(super) fn register(fd: &OwnedFd, owner: Owner, cx: &Cx<'_>) -> io::Result<()> {
    cx.registry.register(&mut SourceFd(&fd.as_raw_fd()), owner.token(), Interest::READABLE)
}

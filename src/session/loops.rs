//! The daemon's own packets, caught: somebody has changed the mark by which the rules know them. Relayed, they would be caught
//! again, until every table is full. The first one to come back is refused, and its cause named.

use super::Cx;
use super::outbound::{HeldBack, Limiter};
use super::tcp::Tcp;
use super::udp::Udp;
use crate::stats::Drop;
use crate::store::timers::Tick;
use crate::sys::socket;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Remembers of a few addresses whether they are this machine's, so that it is not asked for every connection.
#[derive(Debug, Default)]
pub struct Loops {
    known: heapless::Vec<(IpAddr, bool, Tick), KNOWN_MAX>,
    next: usize,
    limiter: Limiter,
}

/// Addresses that are remembered.
const KNOWN_MAX: usize = 64;

/// How long: an address that comes or goes makes a difference no later than that.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// What comes back comes back at once.
const RECENT: Duration = Duration::from_secs(3);

impl Loops {
    fn is_local(&mut self, ip: IpAddr, now: Tick) -> bool {
        let fresh = |known: &&(IpAddr, bool, Tick)| known.0 == ip && now.since(known.2) < KNOWN_FOR;
        if let Some(known) = self.known.iter().find(fresh) {
            return known.1;
        }
        let entry = (ip, socket::is_local_address(ip), now);
        if self.known.push(entry).is_err() {
            self.known[self.next] = entry;
            self.next = (self.next + 1) % KNOWN_MAX;
        }
        entry.1
    }

    fn tell(&mut self, proto: &str, (client, orig_dst): (SocketAddr, SocketAddr), cx: &mut Cx<'_>) {
        cx.stats.drop(Drop::Loop);
        if let Some(held_back) = self.limiter.admit(cx.now) {
            let held_back = HeldBack(held_back);
            log::error!(
                "loop: our own {proto} from {client} to {orig_dst} was caught, and is refused: something takes its mark \
                 away (option self_mark), see `nft list ruleset` for what sets marks at output{held_back}"
            );
        }
    }
}

impl Tcp {
    /// True if `client` is one of our own sockets; that is counted and logged.
    pub(super) fn comes_back(&mut self, flow: (SocketAddr, SocketAddr), cx: &mut Cx<'_>) -> bool {
        if !self.loops.is_local(flow.0.ip(), cx.now) {
            return false;
        }
        let recent = self.sessions.iter().filter(|(_, session)| cx.now.since(session.started) < RECENT);
        let ours = recent
            .filter_map(|(_, session)| session.far.borrow())
            .any(|fd| socket::local_address(fd).ok() == Some(flow.0));
        if ours {
            self.loops.tell("connection", flow, cx);
        }
        ours
    }
}

impl Udp {
    /// As [`Tcp::comes_back`]; our sockets are bound to a port alone.
    pub(super) fn comes_back(&mut self, flow: (SocketAddr, SocketAddr), cx: &mut Cx<'_>) -> bool {
        if !self.loops.is_local(flow.0.ip(), cx.now) {
            return false;
        }
        let recent = self.mappings.iter().filter(|(_, mapping)| cx.now.since(mapping.active) < RECENT);
        let ports = recent
            .filter_map(|(_, mapping)| socket::local_address(std::os::fd::AsFd::as_fd(mapping.socket.as_ref()?)).ok());
        let ours = ports.map(|local| local.port()).any(|port| port == flow.0.port());
        if ours {
            self.loops.tell("datagram", flow, cx);
        }
        ours
    }
}

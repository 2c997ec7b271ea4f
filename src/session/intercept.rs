//! Listeners: sockets to which the firewall delivers what it caught, and the original destination of what comes.

use super::Cx;
use super::dial::set_keepalive_or_warn;
use super::relay::limit_unsent_or_warn;
use super::reply::Replies;
use super::tcp::Tcp;
use super::udp::{BATCHES_PER_TURN, Udp};
use crate::config::{self, AddressMatch, Config, Entries, Families, IpRange, Mode, Target};
use crate::error::Error;
use crate::policy::{Flow, Proto};
use crate::proto::proxy_header::{self, Header, Transport as Carrier};
use crate::proto::socks5_udp::{self, UdpSource};
use crate::stats::Drop;
use crate::sys::dgram::{ReceiveBatch, SLOTS};
use crate::sys::socket::{Family, Transport};
use crate::sys::{self, ingress, socket, sockopt};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// One `config listener` with its open sockets.
#[derive(Debug)]
pub struct Listener {
    /// Section name.
    pub name: String,
    /// What its sockets are bound to.
    pub bound: Bound,
    /// Connections accepted and datagrams received.
    pub accepted: u64,
    tcp: Option<OwnedFd>,
    udp: Option<OwnedFd>,
    /// The edge said that connections wait, and no accept since has found none.
    waiting: bool,
    /// Its datagrams were not all read in their turn.
    queued: bool,
    /// Its place among the listeners.
    pub place: u8,
    /// Who may connect to one that does not intercept.
    allowed: Allowed,
    accept_proxy: bool,
}

/// `allow_ip`, with its sets written out.
#[derive(Debug, Default)]
pub struct Allowed {
    plain: Vec<IpRange>,
    not: Vec<IpRange>,
}

impl Allowed {
    /// That of `section` in `config`.
    pub fn of(section: &config::Listener, config: &Config) -> Allowed {
        let written_out = |values: &[AddressMatch]| {
            let mut ranges: Vec<IpRange> = Vec::new();
            for value in values {
                match value {
                    AddressMatch::Range(range) => ranges.push(*range),
                    AddressMatch::Set(index) => {
                        if let Some(Entries::Nets(set)) = config.sets.get(usize::from(*index)).map(|set| &set.entries) {
                            ranges.extend(set.ranges());
                        }
                    }
                }
            }
            ranges
        };
        Allowed { plain: written_out(&section.allow_ip.plain), not: written_out(&section.allow_ip.not) }
    }

    fn contains(&self, client: SocketAddr) -> bool {
        let ip = client.ip();
        let within = |ranges: &[IpRange]| {
            ranges.iter().any(|range| range.first.is_ipv4() == ip.is_ipv4() && range.first <= ip && ip <= range.last)
        };
        within(&self.plain) && !within(&self.not)
    }
}

/// What decides whether a reload can keep a listener's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Where.
    pub address: SocketAddr,
    /// A v6 wildcard that serves v4 too.
    pub dual_stack: bool,
    /// TCP is caught.
    pub tcp: bool,
    /// UDP is caught.
    pub udp: bool,
    /// How packets reach it.
    pub mode: Mode,
}

/// Connections accepted in one turn at most, so that a flood of them does not starve those that live.
const ACCEPTS_PER_TURN: usize = 64;

/// Connections that the kernel keeps for us while we are busy or full.
const BACKLOG: u16 = 1024;

impl Bound {
    /// What `section` asks for on a kernel that has `families`.
    pub fn of(section: &config::Listener, families: Families) -> Bound {
        let v4 = section.families.v4 && families.v4;
        let v6 = section.families.v6 && families.v6;
        let wildcard = section.address.is_none_or(|ip| ip == Ipv6Addr::UNSPECIFIED);
        let address = match section.address.filter(|_| !wildcard) {
            Some(ip) => SocketAddr::new(ip, section.port),
            None if v6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, section.port)),
            None => SocketAddr::from((Ipv4Addr::UNSPECIFIED, section.port)),
        };
        let dual_stack = v4 && v6 && wildcard;
        Bound {
            address,
            dual_stack,
            tcp: section.protos.tcp,
            udp: section.protos.udp && section.mode != Mode::Http,
            mode: section.mode,
        }
    }

    /// `beside_another`: a socket of our own has the port, and lends it.
    fn open(&self, transport: Transport, mark: u32, beside_another: bool) -> io::Result<OwnedFd> {
        let fd = socket::open(Family::of(self.address), transport)?;
        let at = fd.as_fd();
        sockopt::set_reuse_address(at)?;
        if beside_another {
            sockopt::set_reuse_port(at, true)?;
        }
        let (v4, v6) = (self.address.is_ipv4() || self.dual_stack, self.address.is_ipv6());
        if v6 {
            sockopt::set_v6_only(at, !self.dual_stack)?;
        }
        if self.mode == Mode::Tproxy {
            if v6 {
                sockopt::set_ipv6_transparent(at)?;
            }
            if v4 {
                sockopt::set_ipv4_transparent(at)?;
            }
        }
        sockopt::set_mark(at, mark)?;
        match transport {
            Transport::Tcp => {
                // what is accepted inherits these, so they cost no call per connection
                sockopt::set_nodelay(at)?;
                limit_unsent_or_warn(at);
                set_keepalive_or_warn(at);
                socket::bind(at, self.address)?;
                socket::listen(at, BACKLOG)?;
            }
            Transport::Udp => {
                if v6 {
                    sockopt::set_receive_ipv6_orig_dst(at)?;
                }
                if v4 {
                    sockopt::set_receive_ipv4_orig_dst(at)?;
                }
                if self.mode != Mode::Tproxy {
                    // it answers, too: datagrams larger than the path's MTU are fragmented
                    if v6 {
                        sockopt::set_ipv6_fragment(at)?;
                    }
                    if v4 {
                        sockopt::set_ipv4_fragment(at)?;
                    }
                }
                socket::bind(at, self.address)?;
            }
        }
        Ok(fd)
    }
}

impl Listener {
    /// Opens the sockets of `section`, which send with `mark`; those that `old` has already are left to
    /// [`Self::inherit`]. A port that one of `current` has, bound otherwise, is shared until that one is closed.
    ///
    /// # Errors
    /// What could not be bound, and what to do about it.
    pub fn open(
        section: &config::Listener,
        families: Families,
        mark: u32,
        old: Option<&Listener>,
        current: &[Option<Listener>],
        allowed: Allowed,
    ) -> Result<Listener, Error> {
        let bound = Bound::of(section, families);
        let open_beside = |transport: Transport| match bound.open(transport, mark, false) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && lend_port(current, transport, section.port) => {
                bound.open(transport, mark, true)
            }
            opened => opened,
        };
        let open = |wanted: bool, transport: Transport, name: &str| {
            wanted.then(|| open_beside(transport)).transpose().map_err(|e| {
                let error = Error::new(format!("listen on {}/{name} (listener '{}')", bound.address, section.name), &e);
                match e.kind() {
                    ErrorKind::AddrInUse => {
                        error.hint("change `option port`, or stop the other listener (`netstat -lnp` names it)")
                    }
                    ErrorKind::PermissionDenied => error.hint("transparent sockets need root or CAP_NET_ADMIN"),
                    _ => error,
                }
            })
        };
        let missing = |proto| old.is_none_or(|old| old.fd(proto).is_none());
        let tcp = open(bound.tcp && missing(Proto::Tcp), Transport::Tcp, "tcp")?;
        let udp = open(bound.udp && missing(Proto::Udp), Transport::Udp, "udp")?;
        Ok(Listener {
            name: section.name.clone(),
            bound,
            accepted: 0,
            tcp,
            udp,
            waiting: false,
            queued: false,
            place: 0,
            allowed,
            accept_proxy: section.accept_proxy,
        })
    }

    /// True if the sockets of `self` serve `section` as well: they are bound alike.
    pub fn may_become(&self, section: &config::Listener, families: Families) -> bool {
        let wanted = Bound::of(section, families);
        let (a, b) = (wanted, self.bound);
        a.address == b.address && a.dual_stack == b.dual_stack && a.mode == b.mode
    }

    /// Takes over the sockets of `old` that `self` wants and has not opened itself, and what was counted.
    pub fn inherit(&mut self, old: Listener) {
        self.accepted = old.accepted;
        if self.bound.tcp && self.tcp.is_none() {
            (self.tcp, self.waiting) = (old.tcp, old.waiting);
        }
        if self.bound.udp && self.udp.is_none() {
            (self.udp, self.queued) = (old.udp, old.queued);
        }
    }

    /// Nobody else can have its ports from now on: a reload may have had a successor bound beside its predecessor.
    pub fn keep_ports(&self) {
        for fd in [&self.tcp, &self.udp].into_iter().flatten() {
            // it can't fail on a socket, and if it did nothing of ours would change
            let _ = sockopt::set_reuse_port(fd.as_fd(), false);
        }
    }

    /// A second descriptor of the socket for datagrams, if that is to answer redirected flows.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn answering_socket(&self) -> io::Result<Option<OwnedFd>> {
        let socket = self.udp.as_ref().filter(|_| self.bound.mode != Mode::Tproxy);
        socket.map(OwnedFd::try_clone).transpose()
    }

    /// Whether flows shall tell by which device they come in.
    pub fn tell_devices(&self, on: bool) {
        let v6 = self.bound.address.is_ipv6();
        for fd in [&self.tcp, &self.udp].into_iter().flatten() {
            for v4 in [true, false] {
                let serves = if v4 { !v6 || self.bound.dual_stack } else { v6 };
                if let Some(Err(e)) = serves.then(|| ingress::set_tells(fd.as_fd(), v4, on)) {
                    let name = &self.name;
                    log::warn!(
                        "listener '{name}' cannot tell devices: {e}; rules with `device` or `network` never match"
                    );
                }
            }
        }
    }

    /// The descriptor of `proto`, if it is open.
    pub fn fd(&self, proto: Proto) -> Option<RawFd> {
        match proto {
            Proto::Tcp => self.tcp.as_ref(),
            Proto::Udp => self.udp.as_ref(),
        }
        .map(AsRawFd::as_raw_fd)
    }

    /// Notes that the edge said something of `proto`.
    pub fn note(&mut self, proto: Proto) {
        match proto {
            Proto::Tcp => self.waiting = true,
            Proto::Udp => self.queued = true,
        }
    }

    /// True if connections may wait that were not accepted yet.
    pub fn has_waiting(&self) -> bool {
        self.waiting
    }

    /// True if datagrams may wait that were not read yet.
    pub fn has_queued(&self) -> bool {
        self.queued
    }

    /// Accepts what waits, while there is room and up to this turn's share.
    ///
    /// # Errors
    /// Descriptors or kernel memory have run out: connections wait in the kernel until it is tried again.
    pub fn accept(&mut self, tcp: &mut Tcp, cx: &mut Cx<'_>) -> io::Result<()> {
        let Some(fd) = &self.tcp else { return Ok(()) };
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.waiting || tcp.is_full() {
                return Ok(());
            }
            match socket::accept(fd.as_fd()) {
                Ok((connection, client)) => {
                    self.accepted += 1;
                    if self.bound.mode.intercepts() {
                        take_connection(connection, client, &self.bound, tcp, cx);
                    } else {
                        self.greet(connection, client, tcp, cx);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.waiting = false,
                Err(e) if e.kind() == ErrorKind::Interrupted || sys::accept_may_go_on(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes the connection of a client that is told.
    fn greet(&self, connection: OwnedFd, client: SocketAddr, tcp: &mut Tcp, cx: &mut Cx<'_>) {
        let local = socket::local_address(connection.as_fd());
        let Ok(local) = local.and_then(|local| {
            if self.allowed.contains(client) { Ok(local) } else { Err(ErrorKind::PermissionDenied.into()) }
        }) else {
            return refuse(&connection, Drop::NotAllowed, cx);
        };
        tcp.greet(connection, (client, local), (self.bound.mode, self.accept_proxy), cx);
    }

    /// Reads what datagrams wait, up to this turn's share.
    pub fn receive(&mut self, udp: &mut Udp, batch: &mut ReceiveBatch, replies: &mut Replies, cx: &mut Cx<'_>) {
        let Some(fd) = &self.udp else { return };
        for _ in 0..BATCHES_PER_TURN {
            let count = match batch.receive(fd.as_fd()) {
                Ok(count) => count,
                Err(e) => {
                    // anything but "nothing waits" is a pending error, which the call has taken
                    self.queued = e.kind() != ErrorKind::WouldBlock;
                    return;
                }
            };
            self.accepted += count as u64;
            if self.bound.mode == Mode::Redirect {
                replies.redirects.look_up(batch, count, self.place, cx.now);
            }
            for slot in 0..count {
                self.take_datagram(slot, udp, batch, replies, cx);
            }
            udp.flush(batch, replies, cx);
            if count < SLOTS {
                self.queued = false;
                return;
            }
        }
        self.queued = true;
    }

    fn take_datagram(&self, slot: usize, udp: &mut Udp, batch: &ReceiveBatch, replies: &mut Replies, cx: &mut Cx<'_>) {
        let flow = match self.bound.mode {
            Mode::Redirect => match replies.redirects.original(slot, batch, cx.stats, cx.now) {
                Some(flow) => flow,
                None => return,
            },
            Mode::Tproxy => match (batch.from(slot), batch.orig_dst(slot)) {
                (Some(from), Some(orig_dst)) => (from, orig_dst),
                (Some(_), None) => return cx.stats.drop(Drop::NoDestination),
                (None, _) => return,
            },
            Mode::Plain | Mode::Http | Mode::Socks5 => return self.take_told(slot, udp, batch, replies, cx),
        };
        if batch.is_truncated(slot) {
            cx.stats.drop(Drop::TooLarge);
        } else if came_directly(flow.1, self.bound.address.port()) {
            cx.stats.drop(Drop::NotIntercepted);
        } else {
            udp.datagram(slot, 0, &flow, batch, replies, cx);
        }
    }
}

/// Has the sockets of `current` that are bound to `port` share it with another one. False: there is none.
fn lend_port(current: &[Option<Listener>], transport: Transport, port: u16) -> bool {
    let holders = current.iter().flatten().filter(|listener| listener.bound.address.port() == port);
    let sockets = holders.filter_map(|listener| match transport {
        Transport::Tcp => listener.tcp.as_ref(),
        Transport::Udp => listener.udp.as_ref(),
    });
    sockets.map(|fd| sockopt::set_reuse_port(fd.as_fd(), true)).fold(false, |any, lent| any | lent.is_ok())
}

/// Counts a connection that is not taken. The close that follows tells the client at once.
fn refuse(connection: &OwnedFd, reason: Drop, cx: &mut Cx<'_>) {
    cx.stats.drop(reason);
    cx.stats.tcp.refused += 1;
    let _ = sockopt::set_reset_on_close(connection.as_fd());
}

/// Decides where an accepted connection goes, and starts it on its way.
fn take_connection(connection: OwnedFd, client: SocketAddr, bound: &Bound, tcp: &mut Tcp, cx: &mut Cx<'_>) {
    let Ok(orig_dst) = orig_dst_of(connection.as_fd(), client, bound.mode) else {
        return refuse(&connection, Drop::NoDestination, cx);
    };
    if came_directly(orig_dst, bound.address.port()) {
        return refuse(&connection, Drop::NotIntercepted, cx);
    }
    if tcp.comes_back((client, orig_dst), cx) {
        cx.stats.tcp.refused += 1;
        let _ = sockopt::set_reset_on_close(connection.as_fd());
        return;
    }
    let origin = cx.origins.of_connection(connection.as_fd(), client, cx.now);
    let flow = origin.of(Flow::new(Proto::Tcp, client, orig_dst));
    if cx.policy.needs_name(&flow) {
        return tcp.sniff(connection, (client, orig_dst), cx);
    }
    let verdict = cx.policy.decide_and_count(&flow);
    let Some((target, measure)) = cx.measured(&verdict, client) else {
        cx.stats.tcp.refused += 1;
        let _ = sockopt::set_reset_on_close(connection.as_fd());
        return;
    };
    match target {
        Target::Direct => tcp.open(connection, (client, orig_dst), (0, measure), verdict.rule, cx),
        Target::Outbound(index) => tcp.open(connection, (client, orig_dst), (index, measure), verdict.rule, cx),
        Target::Reject => refuse(&connection, Drop::ByRule, cx),
        Target::Drop => {
            cx.stats.drop(Drop::ByRule);
            tcp.silence(connection, (client, orig_dst), verdict.rule, cx);
        }
    }
}

/// Where a connection was going.
fn orig_dst_of(connection: BorrowedFd<'_>, client: SocketAddr, mode: Mode) -> io::Result<SocketAddr> {
    match mode {
        // delivered with its original destination as local address; connection tracking is not asked, since a late segment
        // may have made an entry the wrong way round
        Mode::Redirect => sockopt::original_destination(connection, client.is_ipv4()),
        _ => socket::local_address(connection),
    }
}

impl Listener {
    /// A datagram of a client that is told: to a fixed server, or behind a header that says where to.
    fn take_told(&self, slot: usize, udp: &mut Udp, batch: &ReceiveBatch, replies: &mut Replies, cx: &mut Cx<'_>) {
        let Some(datagram) = batch.get(slot) else { return };
        let Some(local) = datagram.orig_dst else { return cx.stats.drop(Drop::NoDestination) };
        if !self.allowed.contains(datagram.from) {
            return cx.stats.drop(Drop::NotAllowed);
        }
        // the relay stands as long as the connection does that it was asked for by
        if self.bound.mode == Mode::Socks5 && !cx.associated.has(datagram.from.ip(), self.place) {
            return cx.stats.drop(Drop::NotAllowed);
        }
        if datagram.truncated {
            return cx.stats.drop(Drop::TooLarge);
        }
        let read = match (self.bound.mode, self.accept_proxy) {
            (Mode::Socks5, _) => match socks5_udp::parse_udp(datagram.payload) {
                Ok((UdpSource::Address(to), start)) => Some((datagram.from, to, start)),
                _ => None,
            },
            (_, true) => match proxy_header::read(datagram.payload, Carrier::Datagram) {
                Header::Whole { flow: Some((client, to)), used } => Some((client, to, used)),
                _ => None,
            },
            (_, false) => Some((datagram.from, local, 0)),
        };
        let Some((client, orig_dst, start)) = read else { return cx.stats.drop(Drop::NoGreeting) };
        let own = orig_dst.ip().is_loopback() || orig_dst.ip().is_unspecified();
        if own || client.is_ipv4() != orig_dst.is_ipv4() {
            return cx.stats.drop(Drop::NotIntercepted);
        }
        if orig_dst == local && !udp.goes_to_fixed_server((client, orig_dst), cx) {
            // nothing but a fixed server makes sense, and any other way would lead back here
            return cx.stats.drop(Drop::NotIntercepted);
        }
        let with_header = self.bound.mode == Mode::Socks5;
        replies.redirects.remember((datagram.from, local), (client, orig_dst), (self.place, with_header), cx.now);
        udp.datagram(slot, start, &(client, orig_dst), batch, replies, cx);
    }
}

/// True for what somebody sent to the listener's own port: relaying it would lead back to the listener, or make an open
/// proxy. Intercepted traffic never has an address of this host as its destination, since the rules pass that by.
fn came_directly(orig_dst: SocketAddr, port: u16) -> bool {
    orig_dst.port() == port && socket::is_local_address(orig_dst.ip())
}

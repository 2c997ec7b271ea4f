//! UDP through a SOCKS5 proxy: the control connection that keeps an association alive, and datagrams that wait for it.

use super::dial::{self, Ask, Dial, Failure, Progress};
use super::mapping::{Mapping, Stage, open_udp, register};
use super::outbound::{Outbound, Tried};
use super::reply::Replies;
use super::udp::Udp;
use super::{CloseReason, Cx, Owner, Readiness, Side, spares};
use crate::proto::socks5::{Bound, Command};
use crate::resolve::NameId;
use crate::stats::Drop;
use crate::store::endpoint::Endpoint;
use crate::store::slab::Key;
use crate::sys::socket;
use crate::sys::socket::Family;
use mio::Interest;
use mio::unix::SourceFd;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Most datagrams of one mapping that wait for its association; they share one pool buffer. What a game or a tunnel sends at
/// its start would be missed: many wait a second before they send it again.
const WAITING_MAX: u8 = 64;

/// Before each waiting datagram: its length and destination.
pub(super) const WAITING_HEADER: usize = 2 + 18;

/// How long a mapping whose association failed swallows datagrams before the next one dials again.
const PENALTY: Duration = Duration::from_secs(1);

/// Our own address is not known before we send: RFC 1928 section 7 asks for zeros then.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Goes by a connection that was opened in advance, if there is one, else by the first address.
pub(super) fn set_out(udp: &mut Udp, key: Key, cx: &mut Cx<'_>) {
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    let timeout = cx.outbounds.get(mapping.via).connect_timeout / 2;
    match spares::take(mapping.via, Owner::Udp(key, Side::Far), &ask(mapping.client.address()), cx) {
        Some((fd, dial)) => wait_for(udp, key, fd, dial, timeout, cx),
        None => dial(udp, key, 0, cx),
    }
}

/// A connection stands or is under way: what it says decides.
fn wait_for(udp: &mut Udp, key: Key, fd: OwnedFd, dial: Dial, timeout: Duration, cx: &Cx<'_>) {
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    mapping.control = Some(fd);
    mapping.stage = Stage::Dialling;
    let tried = udp.dials.remove(mapping.dial).map_or(Tried::new(), |before| before.tried);
    mapping.dial = udp.dials.insert(dial.after(tried)).unwrap_or(Key::NONE);
    udp.timers.set(key.slot, cx.now.after(timeout));
}

/// Tries the `attempt`th address of the mapping's outbound and, where the call itself fails, those after it.
pub(super) fn dial(udp: &mut Udp, key: Key, mut attempt: u8, cx: &mut Cx<'_>) {
    loop {
        let Some(mapping) = udp.mappings.get_mut(key) else { return };
        let outbound = cx.outbounds.get(mapping.via);
        if let Some(name) = outbound.server().and_then(|server| server.name) {
            cx.resolver.request(name, cx.now);
        }
        let Some(address) = outbound.address(attempt, UNKNOWN, cx.resolver) else {
            mapping.stage = Stage::Resolving;
            udp.timers.set(key.slot, mapping.started.after(outbound.connect_timeout));
            return;
        };
        let more = outbound.address(attempt + 1, UNKNOWN, cx.resolver).is_some();
        let dial = Dial::new(outbound, attempt, address, &ask(mapping.client.address()));
        let timeout = if more { outbound.connect_timeout / 2 } else { outbound.connect_timeout };
        let started = dial::connect(outbound, mapping.client.address(), address, cx.self_mark).and_then(|fd| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            cx.registry
                .register(&mut SourceFd(&fd.as_raw_fd()), Owner::Udp(key, Side::Far).token(), interest)
                .map_err(|e| Failure::Call("epoll_ctl", e))?;
            Ok(fd)
        });
        match started {
            Ok(fd) => return wait_for(udp, key, fd, dial, timeout, cx),
            Err(failure) if failure.is_of_address() && more => {
                refresh(mapping, cx);
                attempt += 1;
            }
            Err(failure) => {
                fail(udp, key, Some(address), &failure, cx);
                return;
            }
        }
    }
}

/// What is asked of the proxy.
fn ask(client: SocketAddr) -> Ask<'static> {
    Ask { command: Command::UdpAssociate, client, target: UNKNOWN, name: None }
}

/// The address of a named server did not answer: ask whether it has moved.
fn refresh(mapping: &Mapping, cx: &mut Cx<'_>) {
    if let Some(name) = cx.outbounds.get(mapping.via).server().and_then(|server| server.name) {
        cx.resolver.refresh(name, cx.now);
    }
}

/// The control connection became ready.
pub(super) fn ready(
    udp: &mut Udp,
    key: Key,
    ready: Readiness,
    scratch: &mut [u8],
    replies: &mut Replies,
    cx: &mut Cx<'_>,
) {
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    let Some(control) = &mapping.control else { return };
    match mapping.stage {
        Stage::Dialling => advance(udp, key, ready, replies, cx),
        Stage::Ready => {
            // RFC 1928 section 7: the association ends with the connection. What else comes over it has no meaning.
            let reason = loop {
                match socket::receive(control.as_fd(), scratch) {
                    Ok(0) => break CloseReason::ServerFailed(ErrorKind::ConnectionAborted.into()),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => break CloseReason::ServerFailed(e),
                }
            };
            udp.close(key, reason, cx);
        }
        Stage::Resolving | Stage::Failed => {}
    }
}

fn advance(udp: &mut Udp, key: Key, ready: Readiness, replies: &mut Replies, cx: &mut Cx<'_>) {
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    let (Some(dial), Some(control)) = (udp.dials.get_mut(mapping.dial), &mapping.control) else { return };
    let outbound = cx.outbounds.get(mapping.via);
    match dial.advance(control.as_fd(), ready, outbound, &ask(mapping.client.address())) {
        Ok(Progress::Waiting) => {}
        Ok(Progress::Done { bound, .. }) => {
            let (attempt, server) = (dial.attempt, dial.address);
            let timeout = outbound.udp_timeout;
            // the association lives as long as this connection, which nothing else uses
            dial::set_keepalive_or_warn(control.as_fd());
            match open_relay(bound, server, Owner::Udp(key, Side::Near), outbound, cx) {
                Ok(socket) => {
                    cx.outbounds.get_mut(mapping.via).worked(attempt, cx.resolver);
                    mapping.socket = Some(socket);
                    mapping.stage = Stage::Ready;
                    udp.dials.remove(mapping.dial);
                    mapping.dial = Key::NONE;
                    udp.timers.set(key.slot, cx.now.after(timeout));
                    send_waiting(mapping, replies, cx);
                }
                Err(failure) => fail(udp, key, Some(server), &failure, cx),
            }
        }
        Err(failure) => retry(udp, key, failure, cx),
    }
}

/// The socket to the proxy's relay, connected, so that only the relay can answer.
fn open_relay(
    bound: Option<Bound>,
    server: SocketAddr,
    owner: Owner,
    outbound: &Outbound,
    cx: &Cx<'_>,
) -> Result<OwnedFd, Failure> {
    let relay = bound.and_then(|bound| bound.relay(server)).ok_or(Failure::NoRelay)?;
    let fd = open_udp(Family::of(relay), outbound, cx).map_err(|e| Failure::Call("socket", e))?;
    socket::connect(fd.as_fd(), relay).map_err(|e| Failure::Call("connect to the UDP relay", e))?;
    register(&fd, owner, cx).map_err(|e| Failure::Call("epoll_ctl", e))?;
    Ok(fd)
}

fn retry(udp: &mut Udp, key: Key, failure: Failure, cx: &mut Cx<'_>) {
    let Some(mapping) = udp.mappings.get(key) else { return };
    let dial = udp.dials.get(mapping.dial);
    let (attempt, address, connected) =
        dial.map_or((0, None, false), |dial| (dial.attempt, Some(dial.address), dial.is_connected()));
    if dial.is_some_and(Dial::is_spare) && !failure.says_no_udp() {
        spares::lost_in_use(mapping.via, cx);
        return self::dial(udp, key, 0, cx);
    }
    let of_address = failure.is_of_address() && !connected;
    let more = cx.outbounds.get(mapping.via).address(attempt + 1, UNKNOWN, cx.resolver).is_some();
    if of_address {
        refresh(mapping, cx);
    }
    if of_address && more {
        self::dial(udp, key, attempt + 1, cx);
    } else {
        fail(udp, key, address, &failure, cx);
    }
}

/// The association can't be made: the client gets no answer, as from a server that is not there.
pub(super) fn fail(udp: &mut Udp, key: Key, address: Option<SocketAddr>, failure: &Failure, cx: &mut Cx<'_>) {
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    let mut tried = udp.dials.remove(mapping.dial).map_or(Tried::new(), |dial| dial.tried);
    mapping.dial = Key::NONE;
    mapping.stage = Stage::Failed;
    mapping.control = None;
    let (via, client, orig_dst) = (mapping.via, mapping.client.address(), mapping.orig_dst());
    let in_group = via != mapping.outbound;
    dial::report(cx, via, client, orig_dst, address, failure);
    let can_not = failure.says_no_udp();
    if can_not {
        cx.outbounds.get_mut(via).found_without_udp(cx.now);
    }
    // what waits goes by the next member
    if in_group && !failure.is_ours() && tried.push(via).is_ok() {
        // kept where the next dial finds it, which may fail within this call
        if let Some(mapping) = udp.mappings.get_mut(key) {
            mapping.dial = udp.dials.insert(Dial::none(tried.clone())).unwrap_or(Key::NONE);
        }
        if udp.choose(key, &tried, cx) {
            return;
        }
    }
    let Some(mapping) = udp.mappings.get_mut(key) else { return };
    udp.dials.remove(mapping.dial);
    mapping.dial = Key::NONE;
    forget_waiting(mapping, cx);
    if can_not {
        // the next datagram is decided anew, and goes to `udp_outbound`
        udp.close(key, CloseReason::DialFailed, cx);
    } else {
        udp.timers.set(key.slot, cx.now.after(PENALTY));
    }
}

/// The mapping's deadline has passed while it was still dialling.
pub(super) fn timed_out(udp: &mut Udp, key: Key, cx: &mut Cx<'_>) {
    let Some(mapping) = udp.mappings.get(key) else { return };
    match mapping.stage {
        Stage::Resolving => fail(udp, key, None, &Failure::NoAddress, cx),
        _ => {
            let timeout = cx.outbounds.get(mapping.via).connect_timeout;
            let awaits = udp.dials.get(mapping.dial).map_or("connect", Dial::awaits);
            retry(udp, key, Failure::TimedOut(timeout, awaits), cx);
        }
    }
}

/// A name was looked up: mappings that waited for it go on.
pub fn resolved(udp: &mut Udp, name: NameId, replies: &mut Replies, cx: &mut Cx<'_>) {
    if cx.resolver.addresses(name).is_empty() {
        return;
    }
    for slot in 0..udp.mappings.touched() {
        let Some(key) = udp.mappings.key_at(slot) else { continue };
        let waits = udp.mappings.get(key).is_some_and(|mapping| {
            let server = cx.outbounds.get(mapping.via).server();
            mapping.stage == Stage::Resolving && server.is_some_and(|server| server.name == Some(name))
        });
        if waits {
            udp.reach(key, cx);
            if let Some(mapping) = udp.mappings.get_mut(key)
                && mapping.stage == Stage::Ready
            {
                #[cfg(feature = "shadowsocks")]
                if cx.outbounds.get(mapping.via).is_sealed() {
                    // each is sealed by itself where it comes in; those that came before have to come again
                    forget_waiting(mapping, cx);
                    continue;
                }
                send_waiting(mapping, replies, cx);
            }
        }
    }
}

/// Keeps a datagram until the association stands, if a buffer is free and not too many wait.
pub(super) fn wait(mapping: &mut Mapping, orig_dst: SocketAddr, payload: &[u8], cx: &mut Cx<'_>) {
    let header = waiting_header(orig_dst, payload);
    if mapping.waiting.is_none() {
        mapping.waiting = cx.pool.take(&[]);
    }
    let kept = mapping.waiting_count < WAITING_MAX
        && mapping.waiting.as_mut().is_some_and(|chunk| cx.pool.append_all(chunk, &[&header, payload]));
    if kept {
        mapping.waiting_count += 1;
    } else {
        cx.stats.drop(Drop::NotReady);
    }
}

/// What stands before a datagram that waits.
pub(super) fn waiting_header(orig_dst: SocketAddr, payload: &[u8]) -> [u8; WAITING_HEADER] {
    let mut header = [0; WAITING_HEADER];
    header[..2].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    header[2..].copy_from_slice(&Endpoint::from(orig_dst).octets());
    header
}

/// The datagrams that wait in `bytes`.
#[cfg(feature = "quic")]
pub(super) fn waiting_in(mut bytes: &[u8]) -> impl Iterator<Item = (SocketAddr, &[u8])> {
    std::iter::from_fn(move || {
        let (orig_dst, len) = read_header(bytes)?;
        let (payload, rest) = bytes.get(WAITING_HEADER..)?.split_at_checked(len)?;
        bytes = rest;
        Some((orig_dst, payload))
    })
}

pub(super) fn send_waiting(mapping: &mut Mapping, replies: &mut Replies, cx: &mut Cx<'_>) {
    let Some(mut chunk) = mapping.waiting.take() else { return };
    while let Some((orig_dst, len)) = read_header(cx.pool.bytes(&chunk)) {
        chunk.advance(WAITING_HEADER);
        let payload = cx.pool.bytes(&chunk).get(..len).unwrap_or_default();
        mapping.send(orig_dst, payload, replies, (cx.outbounds, cx.stats), cx.now);
        chunk.advance(len);
    }
    mapping.waiting_count = 0;
    cx.pool.give_back(chunk);
}

fn read_header(bytes: &[u8]) -> Option<(SocketAddr, usize)> {
    let (header, _) = bytes.split_at_checked(WAITING_HEADER)?;
    let (len, destination) = header.split_at(2);
    let len = u16::from_be_bytes(len.try_into().ok()?);
    Some((Endpoint::from_octets(destination)?.address(), len.into()))
}

/// Gives the buffer of waiting datagrams back, and counts them as dropped.
pub(super) fn forget_waiting(mapping: &mut Mapping, cx: &mut Cx<'_>) {
    if let Some(chunk) = mapping.waiting.take() {
        cx.pool.give_back(chunk);
    }
    for _ in 0..std::mem::take(&mut mapping.waiting_count) {
        cx.stats.drop(Drop::NotReady);
    }
}

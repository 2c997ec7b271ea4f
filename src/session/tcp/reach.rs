//! From a decided session to the bytes that flow: ways are chosen, addresses dialled, proxies talked to.

use super::{KEEPALIVE_AFTER, Stage, Tcp, register};
use crate::policy::Proto;
#[cfg(feature = "shadowsocks")]
use crate::proto::shadowsocks::Target;
use crate::session::dial::{self, Dial, Failure, Progress};
use crate::session::outbound::{Chosen, Tried};
#[cfg(feature = "shadowsocks")]
use crate::session::sealed;
#[cfg(feature = "shadowsocks")]
use crate::session::tcp::Session;
use crate::session::{CloseReason, Cx, Owner, Readiness, Side, spares};
use crate::store::slab::Key;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

impl Tcp {
    /// Sends a session on its way whose outbound has been decided.
    pub(in crate::session) fn dial(&mut self, key: Key, cx: &mut Cx<'_>) {
        if !self.choose(key, Tried::new(), cx)
            && let Some(session) = self.sessions.get(key)
        {
            let (index, client, orig_dst) = (session.outbound, session.client.address(), session.orig_dst.address());
            self.tell_failure(key, false, cx);
            cx.stats.tcp.refused += 1;
            dial::report_nobody(cx, index, client, orig_dst);
            self.close(key, CloseReason::DialFailed, cx);
        }
    }

    /// Chooses the way and dials; false if there is none but for those in `tried`.
    fn choose(&mut self, key: Key, tried: Tried, cx: &mut Cx<'_>) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return true };
        match cx.outbounds.choose(session.outbound, Proto::Tcp, &tried, cx.resolver, cx.now) {
            Chosen::Via(via) => {
                session.leave(cx);
                session.via = via;
                if via != session.outbound {
                    cx.outbounds.get_mut(via).sessions += 1;
                }
                self.set_out(key, tried, cx);
                true
            }
            Chosen::Nobody => false,
        }
    }

    /// Goes by a connection that was opened in advance, if there is one, else by the first address.
    fn set_out(&mut self, key: Key, tried: Tried, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let outbound = cx.outbounds.get(session.via);
        // its server may be gone without a word: there is to be time for a fresh one
        let timeout = outbound.connect_timeout / 2;
        let name = session.name_to_say(outbound.send_domain, cx.names);
        match spares::take(session.via, Owner::Tcp(key, Side::Far), &session.ask(name.as_deref()), cx) {
            Some((fd, dial)) => self.wait_for(key, fd, dial.after(tried), timeout, cx),
            None => self.dial_at(key, 0, tried, cx),
        }
    }

    /// A connection stands or is under way: what it says decides.
    fn wait_for(&mut self, key: Key, fd: OwnedFd, dial: Dial, timeout: Duration, cx: &Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.far.connect(fd);
        session.stage = Stage::Dialling;
        self.dials.remove(session.dial);
        session.dial = self.dials.insert(dial).unwrap_or(Key::NONE);
        self.timers.set(key.slot, cx.now.after(timeout));
    }

    /// Tries the `attempt`th address of the way and, where the call itself fails, those after it.
    pub(super) fn dial_at(&mut self, key: Key, mut attempt: u8, tried: Tried, cx: &mut Cx<'_>) {
        loop {
            let Some(session) = self.sessions.get_mut(key) else { return };
            let outbound = cx.outbounds.get(session.via);
            if let Some(name) = outbound.server().and_then(|server| server.name) {
                // does nothing while the answer is fresh
                cx.resolver.request(name, cx.now);
            }
            let Some(address) = session.address(attempt, cx) else {
                session.stage = Stage::Resolving;
                let timeout = cx.outbounds.get(session.via).connect_timeout;
                self.timers.set(key.slot, session.started.after(timeout));
                return;
            };
            let more = session.address(attempt + 1, cx).is_some();
            let outbound = cx.outbounds.get(session.via);
            let name = session.name_to_say(outbound.send_domain, cx.names);
            let dial = Dial::new(outbound, attempt, address, &session.ask(name.as_deref())).after(tried.clone());
            // with several addresses to try, none may use up the whole time
            let timeout = if more { outbound.connect_timeout / 2 } else { outbound.connect_timeout };
            let started = dial::connect(outbound, session.client.address(), address, cx.self_mark).and_then(|fd| {
                register(cx.registry, fd.as_raw_fd(), Owner::Tcp(key, Side::Far))
                    .map_err(|e| Failure::Call("epoll_ctl", e))?;
                Ok(fd)
            });
            match started {
                Ok(fd) => return self.wait_for(key, fd, dial, timeout, cx),
                Err(failure) if failure.is_of_address() && more => {
                    self.note_dead_address(key, cx);
                    attempt += 1;
                }
                Err(failure) => {
                    self.fail(key, Some(address), &failure, tried, cx);
                    return;
                }
            }
        }
    }

    /// The address of a named server did not answer: ask whether it has moved.
    fn note_dead_address(&self, key: Key, cx: &mut Cx<'_>) {
        let server = self.sessions.get(key).and_then(|session| cx.outbounds.get(session.via).server());
        if let Some(name) = server.and_then(|server| server.name) {
            cx.resolver.refresh(name, cx.now);
        }
    }

    pub(super) fn advance(&mut self, key: Key, ready: Readiness, scratch: &mut [u8], cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (Some(dial), Some(fd)) = (self.dials.get_mut(session.dial), session.far.borrow()) else { return };
        let outbound = cx.outbounds.get_mut(session.via);
        // what the client asked for by name, the proxy looks up
        let name = session.name_to_say(outbound.send_domain, cx.names);
        match dial.advance(fd, ready, outbound, &session.ask(name.as_deref())) {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Done { surplus, .. }) => {
                #[cfg(feature = "shadowsocks")]
                {
                    let Session { near, far, orig_dst, .. } = session;
                    let target = Target { address: orig_dst.address(), name: name.as_deref() };
                    match sealed::begin(&outbound.way, target, near, far, scratch) {
                        Some(Ok(sealed)) => session.sealed = self.sealed.insert(sealed).unwrap_or(Key::NONE),
                        Some(Err(e)) => return self.retry(key, Failure::Call("send", e), cx),
                        None => {}
                    }
                }
                outbound.worked(dial.attempt, cx.resolver);
                if outbound.check.is_none() {
                    outbound.latency = Some(cx.now.since(session.started).as_micros() as u32);
                }
                session.stage = Stage::Relaying;
                session.active = cx.now;
                self.timers.set(key.slot, cx.now.after(outbound.idle_timeout.min(KEEPALIVE_AFTER)));
                if surplus > 0 && !session.near.hold(dial.surplus(surplus), cx.pool) {
                    // at most three octets, and only from a proxy with a name of two letters: see Handshake::wanted
                    cx.stats.pool_empty += 1;
                    self.close(key, CloseReason::ServerFailed(std::io::ErrorKind::OutOfMemory.into()), cx);
                    return;
                }
                // what an encrypted session begins with has been sent
                cx.moved(&session.measure, session.far.sent, 0);
                self.dials.remove(session.dial);
                session.dial = Key::NONE;
                if self.announce(key, cx) {
                    self.relay(key, None, scratch, cx);
                }
            }
            Err(failure) => self.retry(key, failure, cx),
        }
    }

    /// A dial failed: on to the next address where that may help.
    pub(super) fn retry(&mut self, key: Key, failure: Failure, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let dial = self.dials.get(session.dial);
        let (attempt, address, connected) =
            dial.map_or((0, None, false), |dial| (dial.attempt, Some(dial.address), dial.is_connected()));
        let tried = dial.map_or(Tried::new(), |dial| dial.tried.clone());
        if dial.is_some_and(Dial::is_spare) && !failure.is_of_destination() {
            log::debug!("{failure} at {address:?} over a spare connection, trying a fresh one");
            spares::lost_in_use(session.via, cx);
            return self.dial_at(key, 0, tried, cx);
        }
        let of_address = failure.is_of_address() && !connected;
        let more = session.address(attempt + 1, cx).is_some();
        if of_address {
            self.note_dead_address(key, cx);
        }
        if of_address && more {
            log::debug!("{failure} at {address:?}, trying the next address");
            self.dial_at(key, attempt + 1, tried, cx);
        } else {
            self.fail(key, address, &failure, tried, cx);
        }
    }

    /// The destination can't be reached this way: on to the next member of the group, if there is one that has not been
    /// tried. Nothing of the client's has been sent yet, so it does not notice. Else it is reset.
    pub(super) fn fail(
        &mut self,
        key: Key,
        address: Option<SocketAddr>,
        failure: &Failure,
        mut tried: Tried,
        cx: &mut Cx<'_>,
    ) {
        let Some(session) = self.sessions.get(key) else { return };
        let (via, client, orig_dst) = (session.via, session.client.address(), session.orig_dst.address());
        let others = session.outbound != via && !failure.is_of_destination() && !failure.is_ours();
        dial::report(cx, via, client, orig_dst, address, failure);
        if others && tried.push(via).is_ok() && self.choose(key, tried, cx) {
            return;
        }
        self.tell_failure(key, false, cx);
        self.close(key, CloseReason::DialFailed, cx);
    }
}

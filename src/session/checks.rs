//! Health checks: from time to time each outbound that is to be checked is dialled as a session would dial it, up to the
//! greeting and authentication or, with a target, through the proxy to it.

use super::departed::is_bound_to;
use super::dial::{self, Ask, Dial, Failure, Progress};
use super::outbound::Outbound;
#[cfg(feature = "shadowsocks")]
use super::sealed_check;
use super::{Cx, Owner, Readiness};
use crate::config::Host;
use crate::policy::group::smoothed;
#[cfg(feature = "shadowsocks")]
use crate::proto::shadowsocks::stream::Stream;
use crate::proto::socks5::Command;
use crate::store::timers::Tick;
use crate::sys::random;
use mio::Interest;
use mio::unix::SourceFd;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Checks that can be under way at once; further ones wait.
pub const CHECKS_MAX: usize = 16;

/// One that is under way.
struct Check {
    outbound: u16,
    fd: OwnedFd,
    dial: Dial,
    /// The dial is done, and what was asked through it is not answered yet.
    #[cfg(feature = "shadowsocks")]
    sealed: Option<Stream>,
    /// In microseconds.
    started: u64,
    deadline: Tick,
}

/// All that are under way, in fixed memory.
pub struct Checks {
    slots: Vec<Option<Check>>,
    /// Number of the first slot's descriptor among the process's own.
    number: u16,
    /// When something is due; `None`: nothing ever.
    next: Option<Tick>,
}

impl Checks {
    /// Bytes that it takes.
    pub const MEMORY: usize = CHECKS_MAX * size_of::<Option<Check>>();

    /// None under way. `number`: that of the first of [`CHECKS_MAX`] descriptors.
    pub fn new(number: u16) -> Checks {
        let mut slots = Vec::with_capacity(CHECKS_MAX);
        slots.resize_with(CHECKS_MAX, || None);
        Checks { slots, number, next: Some(Tick(0)) }
    }

    /// The configuration has changed: what is under way is given up, and everything looked at anew.
    pub fn restart(&mut self, now: Tick) {
        self.slots.fill_with(|| None);
        self.next = Some(now);
    }

    /// Gives up those that are bound to one of `gone`, and begins them anew.
    pub fn end_bound_to(&mut self, gone: &[IpAddr], cx: &mut Cx<'_>) {
        for slot in &mut self.slots {
            if let Some(check) = slot
                && is_bound_to(check.fd.as_fd(), gone)
            {
                cx.outbounds.get_mut(check.outbound).next_check = Some(cx.now);
                self.next = Some(cx.now);
                *slot = None;
            }
        }
    }

    /// When [`Self::run`] has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        self.next
    }

    /// A session met a failure: a check may be due sooner.
    pub fn hurry(&mut self, cx: &Cx<'_>) {
        let checked = cx.outbounds.iter().filter(|(_, outbound)| outbound.configured && outbound.check.is_some());
        let soon = checked.filter_map(|(_, outbound)| outbound.next_check);
        self.next = soon.chain(self.next).reduce(Tick::earlier);
    }

    /// The descriptor of this number became ready. `micros`: the time.
    pub fn ready(&mut self, number: u16, ready: Readiness, micros: u64, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get_mut(usize::from(number - self.number)) else { return };
        let Some(check) = slot else { return };
        match check.advance(ready, cx.outbounds.get(check.outbound)) {
            Ok(false) => {}
            Ok(true) => {
                let (index, attempt, started) = (check.outbound, check.dial.attempt, check.started);
                *slot = None;
                let took = u32::try_from(micros.saturating_sub(started)).unwrap_or(u32::MAX);
                let outbound = cx.outbounds.get_mut(index);
                outbound.latency = Some(smoothed(outbound.latency, took));
                outbound.worked(attempt, cx.resolver);
                self.finished(index, cx);
            }
            Err(failure) => self.failed(usize::from(number - self.number), &failure, cx),
        }
    }

    fn failed(&mut self, slot: usize, failure: &Failure, cx: &mut Cx<'_>) {
        let Some(check) = self.slots[slot].take() else { return };
        let address = check.dial.address;
        let outbound = cx.outbounds.get_mut(check.outbound);
        log::debug!("check of '{}' (server {address}): {failure}", outbound.name);
        outbound.note_error(format_args!("check, server {address}: {failure}"));
        // the next check or session tries the server's next address
        outbound.preferred = outbound.preferred.wrapping_add(1);
        if !failure.is_ours() {
            outbound.bad(cx.now);
        }
        self.finished(check.outbound, cx);
    }

    /// Says when the next one is: soon while the signs are at odds with the state, else after the interval, more or less.
    fn finished(&mut self, index: u16, cx: &mut Cx<'_>) {
        let now = cx.now;
        let outbound = cx.outbounds.get_mut(index);
        let Some(check) = &outbound.check else { return };
        let interval = if outbound.health.wavers() { check.interval.min(AT_ODDS) } else { check.interval };
        let at = now.after(jittered(interval, random::u16()));
        outbound.next_check = Some(at);
        self.next = Some(self.next.map_or(at, |next| next.earlier(at)));
    }

    /// Ends what has taken too long, and starts what is due.
    pub fn run(&mut self, micros: u64, cx: &mut Cx<'_>) {
        self.next = None;
        for slot in 0..self.slots.len() {
            let Some(check) = &self.slots[slot] else { continue };
            if cx.now.reached(check.deadline) {
                let timeout = cx.outbounds.get(check.outbound).check.as_ref().map_or(Duration::ZERO, |c| c.timeout);
                let failure = Failure::TimedOut(timeout, check.awaits());
                self.failed(slot, &failure, cx);
            } else {
                let deadline = check.deadline;
                self.next = Some(self.next.map_or(deadline, |next| next.earlier(deadline)));
            }
        }
        for index in 0..cx.outbounds.len() {
            let outbound = cx.outbounds.get(index);
            if !outbound.configured || outbound.check.is_none() {
                continue;
            }
            let due = outbound.next_check.unwrap_or(cx.now);
            let busy = self.slots.iter().flatten().any(|check| check.outbound == index);
            if busy && cx.now.reached(due) {
                // looked at again when the one under way has ended
                let later = cx.now.after(AT_ODDS);
                cx.outbounds.get_mut(index).next_check = Some(later);
            } else if cx.now.reached(due) {
                self.start(index, micros, cx);
            } else {
                self.next = Some(self.next.map_or(due, |next| next.earlier(due)));
            }
        }
    }

    fn start(&mut self, index: u16, micros: u64, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.iter().position(Option::is_none) else {
            // as soon as one of those under way has ended
            let soon = cx.now.after(AT_ODDS);
            cx.outbounds.get_mut(index).next_check = Some(soon);
            self.next = Some(self.next.map_or(soon, |next| next.earlier(soon)));
            return;
        };
        let outbound = cx.outbounds.get(index);
        if let Some(name) = outbound.server().and_then(|server| server.name) {
            cx.resolver.request(name, cx.now);
        }
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let timeout = outbound.check.as_ref().map_or(Duration::ZERO, |check| check.timeout);
        let Some(address) = outbound.address(0, nowhere, cx.resolver) else {
            cx.outbounds.get_mut(index).note_error(Failure::NoAddress);
            cx.outbounds.get_mut(index).bad(cx.now);
            return self.finished(index, cx);
        };
        let token = Owner::Process(self.number + slot as u16).token();
        let started = dial::connect(outbound, nowhere, address, cx.self_mark).and_then(|fd| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registered = cx.registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest);
            registered.map_err(|e| Failure::Call("epoll_ctl", e)).map(|()| fd)
        });
        match started {
            Ok(fd) => {
                let dial = Dial::new(outbound, 0, address, &ask(outbound));
                let deadline = cx.now.after(timeout);
                self.slots[slot] = Some(Check {
                    outbound: index,
                    fd,
                    dial,
                    #[cfg(feature = "shadowsocks")]
                    sealed: None,
                    started: micros,
                    deadline,
                });
                self.next = Some(self.next.map_or(deadline, |next| next.earlier(deadline)));
                cx.outbounds.get_mut(index).next_check = Some(deadline.after(AT_ODDS));
            }
            Err(failure) => {
                let outbound = cx.outbounds.get_mut(index);
                outbound.note_error(format_args!("check, server {address}: {failure}"));
                outbound.preferred = outbound.preferred.wrapping_add(1);
                if !failure.is_ours() {
                    outbound.bad(cx.now);
                }
                self.finished(index, cx);
            }
        }
    }
}

impl Check {
    /// Goes on as far as the socket allows; true: all is well.
    fn advance(&mut self, ready: Readiness, outbound: &Outbound) -> Result<bool, Failure> {
        let (fd, ask) = (self.fd.as_fd(), ask(outbound));
        #[cfg(feature = "shadowsocks")]
        if let Some(stream) = &mut self.sealed {
            return sealed_check::has_answered(stream, fd);
        }
        let progress = self.dial.advance(fd, ready, outbound, &ask)?;
        #[cfg(feature = "shadowsocks")]
        if matches!(progress, Progress::Done { .. })
            && ask.command == Command::Connect
            && let Some(begun) = sealed_check::begin(&outbound.way, &ask, fd)
        {
            self.sealed = Some(begun?);
            return Ok(false);
        }
        Ok(matches!(progress, Progress::Done { .. }))
    }

    /// What the server has to answer next, for people.
    fn awaits(&self) -> &'static str {
        #[cfg(feature = "shadowsocks")]
        if self.sealed.is_some() {
            return "request";
        }
        self.dial.awaits()
    }
}

/// What a check asks of the server.
fn ask(outbound: &Outbound) -> Ask<'_> {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    match outbound.check.as_ref().and_then(|check| check.target.as_ref()) {
        None => Ask { command: Command::Greet, client: nowhere, target: nowhere, name: None },
        Some(target) => {
            let (ip, name) = match &target.host {
                Host::Address(ip) => (*ip, None),
                Host::Name(name) => (nowhere.ip(), Some(name.as_str())),
            };
            Ask { command: Command::Connect, client: nowhere, target: SocketAddr::new(ip, target.port), name }
        }
    }
}

/// `interval` more or less an eighth of it, so that not all checks of all routers come at once.
fn jittered(interval: Duration, chance: u16) -> Duration {
    interval * 7 / 8 + interval / 4 * u32::from(chance) / u32::from(u16::MAX)
}

/// Time to the next check while the signs are at odds with the state.
const AT_ODDS: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_keeps_within_an_eighth() {
        let second = Duration::from_secs(1);
        assert_eq!(jittered(second, 0), Duration::from_millis(875));
        assert_eq!(jittered(second, u16::MAX), Duration::from_millis(1125));
    }
}

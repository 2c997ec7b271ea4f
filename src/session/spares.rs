//! Connections to servers that are opened in advance (`option spare`), so that a session saves the round trip of the connect
//! and, at a SOCKS5 proxy, those of greeting and password.
//!
//! Each outbound has its fixed number of them; what is taken, lost or too old is replaced in the same turn. A server that
//! ends them as soon as they stand is left alone for a while.

use super::dial::{self, Ask, Dial, Failure, Progress};
use super::outbound::{Outbound, Way};
use super::tcp::{register, reregister};
use super::{Cx, Owner, Readiness};
use crate::config::SPARES_MAX;
use crate::proto::socks5::Command;
use crate::store::timers::Tick;
use crate::sys::{random, socket};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Age at which one is replaced: Dante and shadowsocks-libev give up a client that asks for nothing within 30 s.
const AGE: Duration = Duration::from_secs(25);

/// A server that ends one sooner than this does not want any.
const BRIEF: Duration = Duration::from_secs(2);

/// How long a server is left alone after the first failure; each further one doubles it, up to eight times.
const PAUSE: Duration = Duration::from_secs(1);

/// One connection.
struct Spare {
    outbound: u16,
    /// [`Outbound::epoch`] of when it was begun.
    epoch: u32,
    fd: OwnedFd,
    dial: Dial,
    /// Since when it waits; `None`: it does not stand yet.
    ready: Option<Tick>,
    /// Until when it has to stand; then, until when it may wait.
    until: Tick,
}

/// All of them, in fixed memory.
pub struct Spares {
    slots: Vec<Option<Spare>>,
    /// Number of the first one's descriptor among the process's own.
    number: u16,
    /// When something is due; `None`: nothing ever.
    next: Option<Tick>,
}

/// What an outbound has of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stock {
    /// `option spare`.
    pub wanted: u8,
    /// Sessions and associations that took one.
    pub used: u64,
    /// Sessions and associations that found none.
    pub missing: u64,
    /// Those that the server ended while they waited, or in the hands of who took one.
    pub lost: u64,
    /// In a row.
    failures: u8,
    /// No further one before.
    pause: Option<Tick>,
}

impl Stock {
    /// One could not be opened, or ended at once.
    fn failed(&mut self, now: Tick) {
        self.pause = Some(now.after(PAUSE * (1 << self.failures.min(3))));
        self.failures = self.failures.saturating_add(1);
    }

    fn may_open(&self, now: Tick) -> bool {
        self.pause.is_none_or(|pause| now.reached(pause))
    }
}

impl Spares {
    /// Bytes that they take at most.
    pub const MEMORY: usize = SPARES_MAX * size_of::<Option<Spare>>();

    /// None yet. `number`: that of the first of [`SPARES_MAX`] descriptors.
    pub fn new(number: u16) -> Spares {
        Spares { slots: Vec::with_capacity(SPARES_MAX), number, next: Some(Tick(0)) }
    }

    /// When [`run`] has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        self.next
    }

    /// The configuration has changed: what no longer belongs to it ends.
    pub fn look_again(&mut self, now: Tick) {
        self.next = Some(now);
    }

    fn due(&mut self, at: Tick) {
        self.next = Some(self.next.map_or(at, |next| if next.reached(at) { at } else { next }));
    }

    /// A place for one more, within the capacity, so without an allocation.
    fn vacant(&mut self) -> Option<usize> {
        match self.slots.iter().position(Option::is_none) {
            None if self.slots.len() < SPARES_MAX => {
                self.slots.push(None);
                Some(self.slots.len() - 1)
            }
            place => place,
        }
    }

    fn of(&self, index: u16) -> impl Iterator<Item = &Spare> {
        self.slots.iter().flatten().filter(move |spare| spare.outbound == index)
    }
}

impl Spare {
    /// Its server has not ended it, nor said what it was not asked for.
    fn is_alive(&self, outbound: &Outbound) -> bool {
        let speaks_first = matches!(outbound.way, Way::Forward { .. });
        match socket::peek(self.fd.as_fd(), &mut [0; 1]) {
            Ok(0) => false,
            Ok(_) => speaks_first,
            Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// It leads to where the outbound leads now.
    fn is_current(&self, cx: &Cx<'_>) -> bool {
        let outbound = cx.outbounds.get(self.outbound);
        let mut addresses = (0..u8::MAX).map_while(|n| outbound.address(n, NOWHERE, cx.resolver));
        outbound.configured && outbound.epoch == self.epoch && addresses.any(|address| address == self.dial.address)
    }
}

/// A connection of the outbound `index` that stands, with the dial that goes on from there to ask for `ask`, and registered
/// for `owner`; `None`: there is none.
pub(super) fn take(index: u16, owner: Owner, ask: &Ask<'_>, cx: &mut Cx<'_>) -> Option<(OwnedFd, Dial)> {
    if cx.outbounds.get(index).spares.wanted == 0 {
        return None;
    }
    // its place is filled within this turn
    cx.spares.next = Some(cx.now);
    loop {
        let stands = |spare: &Spare| spare.outbound == index && spare.ready.is_some();
        let Some(place) = cx.spares.slots.iter().position(|slot| slot.as_ref().is_some_and(stands)) else {
            cx.outbounds.get_mut(index).spares.missing += 1;
            return None;
        };
        let spare = cx.spares.slots[place].take()?;
        if !spare.is_current(cx) {
            continue;
        }
        let outbound = cx.outbounds.get_mut(index);
        if !spare.is_alive(outbound) {
            outbound.spares.lost += 1;
            continue;
        }
        outbound.spares.used += 1;
        outbound.spares.failures = 0;
        // a new registration tells anew that it can be written to
        if reregister(cx.registry, spare.fd.as_raw_fd(), owner).is_ok() {
            return Some((spare.fd, spare.dial.resumed(outbound, ask)));
        }
    }
}

/// One that was taken turned out to be dead.
pub(super) fn lost_in_use(index: u16, cx: &mut Cx<'_>) {
    cx.outbounds.get_mut(index).spares.lost += 1;
}

/// The descriptor of this number became ready.
pub fn ready(number: u16, ready: Readiness, cx: &mut Cx<'_>) {
    let place = usize::from(number - cx.spares.number);
    let Some(mut spare) = cx.spares.slots.get_mut(place).and_then(Option::take) else { return };
    let now = cx.now;
    let outbound = cx.outbounds.get_mut(spare.outbound);
    if spare.ready.is_none() {
        match spare.dial.advance(spare.fd.as_fd(), ready, outbound, &GREETING) {
            Ok(Progress::Waiting) => {
                cx.spares.slots[place] = Some(spare);
                return;
            }
            Ok(Progress::Done { .. }) => {
                outbound.good();
                spare.ready = Some(now);
                // not all at once
                spare.until = now.after(AGE - AGE / 8 * u32::from(random::u16()) / u32::from(u16::MAX));
            }
            Err(failure) => return failed(spare.outbound, spare.dial.address, &failure, cx),
        }
    }
    // its end may have come with the word that it stands
    if !ready.error && !ready.read_closed && spare.is_alive(outbound) {
        cx.spares.due(spare.until);
        cx.spares.slots[place] = Some(spare);
        return;
    }
    outbound.spares.lost += 1;
    log::debug!("the server of '{}' ended a spare connection", outbound.name);
    if spare.ready.is_none_or(|since| now.since(since) < BRIEF) {
        outbound.spares.failed(now);
    }
    cx.spares.due(now);
}

fn failed(index: u16, address: SocketAddr, failure: &Failure, cx: &mut Cx<'_>) {
    let now = cx.now;
    let outbound = cx.outbounds.get_mut(index);
    log::debug!("spare connection of '{}' (server {address}): {failure}", outbound.name);
    outbound.note_error(format_args!("spare connection, server {address}: {failure}"));
    outbound.spares.failed(now);
    if !failure.is_ours() {
        // the next one, and the next session, try the server's next address
        outbound.preferred = outbound.preferred.wrapping_add(1);
        outbound.bad(now);
    }
    cx.spares.due(now);
}

/// Ends what is too old or no longer wanted, and opens what is missing.
pub fn run(cx: &mut Cx<'_>) {
    let now = cx.now;
    if cx.spares.next.is_none_or(|next| !now.reached(next)) {
        return;
    }
    cx.spares.next = None;
    for place in 0..cx.spares.slots.len() {
        let Some(spare) = cx.spares.slots[place].take() else { continue };
        let (index, before) = (spare.outbound, cx.spares.slots[..place].iter().flatten());
        let before = before.filter(|other| other.outbound == index).count();
        let outbound = cx.outbounds.get(index);
        if !spare.is_current(cx) || before >= outbound.spares.wanted.into() {
            continue;
        }
        match (now.reached(spare.until), spare.ready) {
            (false, _) => {
                cx.spares.due(spare.until);
                cx.spares.slots[place] = Some(spare);
            }
            (true, Some(_)) => cx.outbounds.get_mut(index).spares.failures = 0,
            (true, None) => {
                let failure = Failure::TimedOut(outbound.connect_timeout, spare.dial.awaits());
                failed(index, spare.dial.address, &failure, cx);
            }
        }
    }
    for index in 0..cx.outbounds.len() {
        let Stock { wanted, .. } = cx.outbounds.get(index).spares;
        if wanted == 0 || !cx.outbounds.get(index).configured {
            continue;
        }
        for _ in cx.spares.of(index).count()..wanted.into() {
            if !cx.outbounds.get(index).spares.may_open(now) {
                break;
            }
            open(index, cx);
        }
        if let Some(pause) = cx.outbounds.get(index).spares.pause.filter(|pause| !now.reached(*pause)) {
            cx.spares.due(pause);
        }
    }
}

/// Begins one.
fn open(index: u16, cx: &mut Cx<'_>) {
    let outbound = cx.outbounds.get(index);
    if let Some(name) = outbound.server().and_then(|server| server.name) {
        cx.resolver.request(name, cx.now);
    }
    let Some(address) = outbound.address(0, NOWHERE, cx.resolver) else {
        return cx.outbounds.get_mut(index).spares.failed(cx.now);
    };
    // a configuration with more than fit is refused; a reload ends those that go before it opens new ones
    let Some(place) = cx.spares.vacant() else { return cx.outbounds.get_mut(index).spares.failed(cx.now) };
    let owner = Owner::Process(cx.spares.number + place as u16);
    let started = dial::connect(outbound, NOWHERE, address, cx.self_mark).and_then(|fd| {
        let registered = register(cx.registry, fd.as_raw_fd(), owner);
        registered.map_err(|e| Failure::Call("epoll_ctl", e)).map(|()| fd)
    });
    match started {
        Ok(fd) => {
            let dial = Dial::in_advance(outbound, address);
            let until = cx.now.after(outbound.connect_timeout);
            let epoch = outbound.epoch;
            cx.spares.slots[place] = Some(Spare { outbound: index, epoch, fd, dial, ready: None, until });
            cx.spares.due(until);
        }
        Err(failure) => failed(index, address, &failure, cx),
    }
}

/// Ends those that are bound to one of `gone`, and has them replaced.
pub fn end_bound_to(gone: &[IpAddr], cx: &mut Cx<'_>) {
    for slot in &mut cx.spares.slots {
        if slot.as_ref().is_some_and(|spare| super::departed::is_bound_to(spare.fd.as_fd(), gone)) {
            *slot = None;
        }
    }
    cx.spares.look_again(cx.now);
}

/// How many of the outbound `index` stand.
pub fn count(spares: &Spares, index: u16) -> u8 {
    spares.of(index).filter(|spare| spare.ready.is_some()).count() as u8
}

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// No more than to be taken in.
const GREETING: Ask<'static> = Ask { command: Command::Greet, client: NOWHERE, target: NOWHERE, name: None };

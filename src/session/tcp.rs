//! TCP sessions: one slot each, from the accepted connection to the last byte.

use super::dial::{self, Dial};
use super::greet::{Answer, Greeting};
use super::loops::Loops;
use super::metered::Measure;
use super::outbound::Tried;
use super::relay::{End, Pause, TURN, Tools, pump};
#[cfg(feature = "shadowsocks")]
use super::sealed::{self, Sealed};
use super::{CloseReason, Cx, Owner, Readiness, Side};
use crate::resolve::NameId;
use crate::stats::Drop;
use crate::stats::events::Kind;
use crate::store::endpoint::Endpoint;
use crate::store::names::NameSlot;
use crate::store::shares::Share;
use crate::store::slab::{Key, Slab};
use crate::store::timers::{Tick, Timers};
use crate::sys::{memory, sockopt};
use mio::Interest;
use mio::unix::SourceFd;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

pub use session::View;

mod ending;
mod reach;
mod session;

/// One intercepted connection.
#[derive(Debug)]
pub struct Session {
    pub(super) client: Endpoint,
    pub(super) orig_dst: Endpoint,
    /// The client's connection.
    pub(super) near: End,
    /// The connection to the server or proxy.
    pub(super) far: End,
    dial: Key,
    pub(super) started: Tick,
    active: Tick,
    /// What the rules say.
    pub(super) outbound: u16,
    /// The way that it takes: that outbound or, of a group, a member; [`NO_WAY`] before it is dialled.
    pub(super) via: u16,
    pub(super) rule: Option<u16>,
    /// The name that the client asks for, where it was looked for and found, and there was room for it.
    pub(super) name: Option<NameSlot>,
    pub(super) stage: Stage,
    /// Its place among those of its client.
    pub(super) share: Share,
    /// What its rule lets it move.
    pub(super) measure: Measure,
    /// Place of the listener that took it.
    pub(in crate::session) listener: u8,
    pub(super) answer: Answer,
    /// Its keys, if the far side is encrypted.
    #[cfg(feature = "shadowsocks")]
    sealed: Key,
    /// It waits for a buffer, or for what its rule lets it move, until the next deadline.
    starved: bool,
    queued: bool,
    /// Keep-alive is set at the far end.
    kept_alive: bool,
    /// The next deadline asks whether the pipes are still needed.
    pipes_watched: bool,
}

/// No index of an outbound.
const NO_WAY: u16 = u16::MAX;

/// Age at which the far end gets keep-alive probes: connections that end sooner are spared the four calls.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Silence after which a session gives its pipes back to those that move bytes.
const PIPE_IDLE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A client that is told has not said yet what it wants.
    Greeting(Greeting),
    /// The first bytes are looked at for a name, before a rule decides.
    Sniffing,
    /// The name of the outbound's server has no address yet.
    Resolving,
    /// Connecting, or in the handshake.
    Dialling,
    /// Bytes flow.
    Relaying,
    /// A rule says drop: the client hears nothing.
    Silent,
}

/// How long a connection that a rule drops is held in silence. Its handshake was over before the rule was asked, so silence
/// takes a slot; in the end it is reset.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// All TCP sessions, in fixed memory.
pub struct Tcp {
    pub(super) sessions: Slab<Session>,
    dials: Slab<Dial>,
    #[cfg(feature = "shadowsocks")]
    sealed: Slab<Sealed>,
    pub(super) timers: Timers,
    /// Sessions whose share of a turn was used up.
    queue: VecDeque<Key>,
    pub(super) loops: Loops,
    /// One has ended since the last [`Self::trim`].
    ended: bool,
}

/// Memory that an established session takes in the process, timers and queues included; handshakes have a pool of their own.
pub const BYTES_PER_SESSION: usize = Slab::<Session>::SLOT_SIZE + Timers::SLOT_SIZE + size_of::<Key>();

const _: () = assert!(BYTES_PER_SESSION <= 230);

/// Memory that the keys of an encrypted session take, from a pool of their own.
#[cfg(feature = "shadowsocks")]
const BYTES_PER_CIPHER: usize = Slab::<Sealed>::SLOT_SIZE;
#[cfg(not(feature = "shadowsocks"))]
const BYTES_PER_CIPHER: usize = 0;

/// How long a session waits that found no buffer.
const STARVED: Duration = Duration::from_millis(20);

/// Most memory that a table of `capacity` takes, every session in its handshake, in bytes.
pub const fn memory_max(capacity: usize) -> usize {
    capacity * (BYTES_PER_SESSION + Slab::<Dial>::SLOT_SIZE + BYTES_PER_CIPHER)
}

impl Tcp {
    /// Room for `capacity` sessions, at most [`super::TABLE_MAX`].
    pub fn new(capacity: u16) -> Tcp {
        Tcp {
            sessions: Slab::new(capacity),
            dials: Slab::new(capacity),
            #[cfg(feature = "shadowsocks")]
            sealed: Slab::new(capacity),
            timers: Timers::new(capacity),
            queue: VecDeque::with_capacity(capacity.into()),
            loops: Loops::default(),
            ended: false,
        }
    }

    /// True if no further session fits: then nothing is accepted, and the kernel's backlog waits.
    pub fn is_full(&self) -> bool {
        self.sessions.is_full()
    }

    /// Live sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Most sessions.
    pub fn capacity(&self) -> usize {
        self.sessions.capacity()
    }

    /// True if memory is left over from many sessions that have gone since [`Self::trim`].
    pub fn is_slack(&self) -> bool {
        self.ended && self.sessions.is_slack()
    }

    /// Gives the memory of those that have gone back.
    pub fn trim(&mut self) {
        self.ended = false;
        memory::discard(self.sessions.trim());
        memory::discard(self.dials.trim());
        #[cfg(feature = "shadowsocks")]
        memory::discard(self.sealed.trim());
    }

    /// Takes an accepted connection, and starts to reach its destination through `outbound`.
    pub fn open(
        &mut self,
        fd: OwnedFd,
        flow: (SocketAddr, SocketAddr),
        (outbound, measure): (u16, Measure),
        rule: Option<u16>,
        cx: &mut Cx<'_>,
    ) {
        let key = self.insert(fd, flow, outbound, rule, cx);
        match key.and_then(|key| self.sessions.get_mut(key)) {
            Some(session) => session.measure = measure,
            None => cx.give_back(measure),
        }
        if let Some(key) = key {
            self.dial(key, cx);
        }
    }

    /// Takes an accepted connection that a rule drops, and leaves it without an answer.
    pub fn silence(&mut self, fd: OwnedFd, flow: (SocketAddr, SocketAddr), rule: Option<u16>, cx: &mut Cx<'_>) {
        let Some(key) = self.insert(fd, flow, 0, rule, cx) else { return };
        if let Some(session) = self.sessions.get_mut(key) {
            session.stage = Stage::Silent;
        }
        self.timers.set(key.slot, cx.now.after(SILENCE));
    }

    pub(super) fn insert(
        &mut self,
        fd: OwnedFd,
        flow: (SocketAddr, SocketAddr),
        outbound: u16,
        rule: Option<u16>,
        cx: &mut Cx<'_>,
    ) -> Option<Key> {
        let Some(share) = cx.take_share(flow.0) else {
            cx.stats.tcp.refused += 1;
            let _ = sockopt::set_reset_on_close(fd.as_fd());
            return None;
        };
        self.insert_as(share, fd, flow, outbound, rule, cx)
    }

    /// As [`Self::insert`], with the place that its client has taken for it.
    pub(super) fn insert_as(
        &mut self,
        share: Share,
        fd: OwnedFd,
        flow: (SocketAddr, SocketAddr),
        outbound: u16,
        rule: Option<u16>,
        cx: &mut Cx<'_>,
    ) -> Option<Key> {
        let (client, orig_dst) = flow;
        let raw = fd.as_raw_fd();
        let session = Session {
            client: client.into(),
            orig_dst: orig_dst.into(),
            near: End::accepted(fd),
            far: End::default(),
            dial: Key::NONE,
            started: cx.now,
            active: cx.now,
            outbound,
            via: NO_WAY,
            rule,
            name: None,
            stage: Stage::Resolving,
            share,
            measure: Measure::NONE,
            listener: cx.listener,
            answer: Answer::Intercepted,
            #[cfg(feature = "shadowsocks")]
            sealed: Key::NONE,
            starved: false,
            queued: false,
            kept_alive: false,
            pipes_watched: false,
        };
        let key = match self.sessions.insert(session) {
            Ok(key) => key,
            Err(session) => {
                cx.shares.give_back(session.share);
                cx.stats.tcp.refused += 1;
                return None;
            }
        };
        cx.stats.tcp.total += 1;
        cx.stats.clients.begin(client.ip(), cx.now.0);
        if self.sessions.is_full() && cx.stats.events.push_seldom(Kind::TableFull, "tcp", "new connections wait") {
            log::warn!("the table of TCP sessions is full: new connections wait until one of {} ends", self.capacity());
        }
        cx.outbounds.get_mut(outbound).sessions += 1;
        if let Err(e) = register(cx.registry, raw, Owner::Tcp(key, Side::Near)) {
            cx.stats.drop(Drop::NoDescriptor);
            self.close(key, CloseReason::ClientFailed(e), cx);
            return None;
        }
        Some(key)
    }

    /// The socket of `side` became ready. `scratch` is any memory of at least one pool buffer's size.
    pub fn ready(&mut self, key: Key, side: Side, ready: Readiness, scratch: &mut [u8], cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match side {
            Side::Near => session.near.note(ready),
            Side::Far => session.far.note(ready),
        }
        match (session.stage, side) {
            (Stage::Relaying, _) => self.relay(key, ready.error.then_some(side), scratch, cx),
            (Stage::Dialling, Side::Far) => self.advance(key, ready, scratch, cx),
            (Stage::Sniffing, _) => self.look(key, cx),
            (Stage::Greeting(_), _) => self.hear(key, cx),
            (_, Side::Near) => {
                if let Some(Err(e)) = ready.error.then(|| session.near.borrow().map_or(Ok(()), sockopt::take_error)) {
                    self.close(key, CloseReason::ClientFailed(e), cx);
                }
            }
            (Stage::Resolving | Stage::Silent, Side::Far) => {}
        }
    }

    fn relay(&mut self, key: Key, error: Option<Side>, scratch: &mut [u8], cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Session { near, far, measure, .. } = session;
        let before = (far.sent, near.sent);
        let (most_up, most_down) = if measure.is_some() { cx.turns(measure, TURN) } else { (TURN, TURN) };
        let tools = &mut Tools { scratch, pool: cx.pool, pipes: cx.pipes, stats: cx.stats };
        #[cfg(feature = "shadowsocks")]
        let (up, down) = match self.sealed.get_mut(session.sealed) {
            Some(sealed) => (
                sealed::pump_up(near, far, sealed, most_up, tools),
                sealed::pump_down(far, near, sealed, most_down, tools),
            ),
            None => (pump(near, far, most_up, tools), pump(far, near, most_down, tools)),
        };
        #[cfg(not(feature = "shadowsocks"))]
        let (up, down) = (pump(near, far, most_up, tools), pump(far, near, most_down, tools));
        if (far.sent, near.sent) != before {
            session.active = cx.now;
        }
        let mut spent = matches!(up, Pause::Spent) || matches!(down, Pause::Spent);
        let mut held_up = None;
        if session.measure.is_some() {
            cx.moved(&session.measure, session.far.sent - before.0, session.near.sent - before.1);
            let used_up = [&up, &down].map(|pause| matches!(pause, Pause::Spent));
            (spent, held_up) = cx.meters.goes_on(&session.measure.rate, used_up);
        }
        if !session.pipes_watched && (session.near.has_pipe() || session.far.has_pipe()) {
            session.pipes_watched = true;
            self.timers.set(key.slot, cx.now.after(PIPE_IDLE));
        }
        let ended = session.near.is_over() && session.far.is_over();
        let starved = matches!(up, Pause::NoBuffer) || matches!(down, Pause::NoBuffer);
        let failed = match (up, down) {
            (Pause::SourceFailed(e), _) | (_, Pause::SinkFailed(e)) => Some(CloseReason::ClientFailed(e)),
            (_, Pause::SourceFailed(e)) | (Pause::SinkFailed(e), _) => Some(CloseReason::ServerFailed(e)),
            _ => None,
        };
        // an error that neither pump ran into, since nothing was to be read or written there
        let failed = failed.or_else(|| {
            let (side, fd) = match error? {
                Side::Near => (Side::Near, session.near.borrow()?),
                Side::Far => (Side::Far, session.far.borrow()?),
            };
            let e = sockopt::take_error(fd).err()?;
            Some(if side == Side::Near { CloseReason::ClientFailed(e) } else { CloseReason::ServerFailed(e) })
        });
        if let Some(reason) = failed {
            if let CloseReason::ServerFailed(e) = &reason
                && matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
            {
                let (via, client, orig_dst) = (session.via, session.client.address(), session.orig_dst.address());
                dial::report_broken(cx, via, client, orig_dst, e);
            }
            if !ended {
                session.near.reset();
                session.far.reset();
            }
            self.close(key, reason, cx);
        } else if ended {
            self.close(key, CloseReason::Done, cx);
        } else if spent && !session.queued {
            session.queued = true;
            self.queue.push_back(key);
        } else if starved {
            session.starved = true;
            self.timers.set(key.slot, cx.now.after(STARVED));
        } else if let Some(until) = held_up
            && !session.queued
        {
            session.starved = true;
            self.timers.set(key.slot, until);
        }
    }

    /// True if [`Self::run_queued`] has something to do.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Gives each session whose share was used up its next one.
    pub fn run_queued(&mut self, scratch: &mut [u8], cx: &mut Cx<'_>) {
        for _ in 0..self.queue.len() {
            let Some(key) = self.queue.pop_front() else { return };
            if let Some(session) = self.sessions.get_mut(key) {
                session.queued = false;
                self.relay(key, None, scratch, cx);
            }
        }
    }

    /// The next deadline of any session.
    pub fn deadline(&self) -> Option<Tick> {
        self.timers.next()
    }

    /// A name was looked up: sessions that waited for it go on.
    pub fn resolved(&mut self, name: NameId, cx: &mut Cx<'_>) {
        for slot in 0..self.sessions.touched() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let waits = self.sessions.get(key).is_some_and(|session| {
                let server = cx.outbounds.get(session.via).server();
                let awaited = server.map_or(session.is_by_name(), |server| server.name == Some(name));
                session.stage == Stage::Resolving && awaited
            });
            if waits && !cx.resolver.addresses(name).is_empty() {
                // one that waits for another name goes on waiting
                self.dial_at(key, 0, Tried::new(), cx);
            }
        }
    }

    /// All sessions, for `sessions` and `status`.
    pub fn views(&self) -> impl Iterator<Item = View> {
        self.sessions.iter().map(|(key, session)| session.view(key))
    }

    /// The name that the session in `slot` asked for.
    pub fn name_at(&self, slot: u16) -> Option<&NameSlot> {
        self.sessions.get(self.sessions.key_at(slot)?)?.name.as_ref()
    }

    /// What is in `slot`, which is below [`Self::slots`].
    pub fn view_at(&self, slot: u16) -> Option<View> {
        let key = self.sessions.key_at(slot)?;
        self.sessions.get(key).map(|session| session.view(key))
    }

    /// A bound for walks by [`Self::view_at`], so that one can be put down and taken up again.
    pub fn slots(&self) -> u16 {
        self.sessions.touched()
    }
}

/// Registers once for everything that an edge can say; closing the descriptor takes it out again.
pub(super) fn register(registry: &mio::Registry, fd: i32, owner: Owner) -> std::io::Result<()> {
    registry.register(&mut SourceFd(&fd), owner.token(), EVERYTHING)
}

/// What is registered becomes `owner`'s, to whom everything that is the case is told anew.
pub(super) fn reregister(registry: &mio::Registry, fd: i32, owner: Owner) -> std::io::Result<()> {
    registry.reregister(&mut SourceFd(&fd), owner.token(), EVERYTHING)
}

const EVERYTHING: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

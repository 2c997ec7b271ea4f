//! UDP: mappings (client address and port × outbound) in one fixed table, and datagrams through them both ways.

use super::association;
use super::destinations::{Decision, Destinations};
use super::dial::Dial;
use super::loops::Loops;
use super::mapping::{Mapping, Source, Stage, unsent};
use super::outbound::{Chosen, Tried, Way};
#[cfg(feature = "quic")]
use super::quic::{Looked, Sniffs};
use super::reply::Replies;
#[cfg(feature = "shadowsocks")]
use super::sealed_udp::SealedUdp;
use super::tcp::View;
use super::{Cx, Readiness, Side};
use crate::config::Target;
use crate::policy::{Flow, Proto};
#[cfg(feature = "quic")]
use crate::proto::sniff::Name;
use crate::stats::Drop;
use crate::store::endpoint::{Endpoint, keyed_hash};
use crate::store::index::Index;
use crate::store::lru::Lru;
use crate::store::names::NameSlot;
use crate::store::shares::Share;
use crate::store::slab::{Key, Slab};
use crate::store::timers::{Tick, Timers};
use crate::sys::dgram::queue::SendQueue;
use crate::sys::dgram::{ReceiveBatch, SLOTS};
use crate::sys::memory;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

mod ending;
mod reach;

/// A flow that is not decided: client, original destination, number of the device where a rule asks for it.
pub(super) type Unknown = (SocketAddr, SocketAddr, Option<u32>);

/// All UDP mappings and destination entries, in fixed memory.
pub struct Udp {
    pub(super) mappings: Slab<Mapping>,
    pub(super) dials: Slab<Dial>,
    #[cfg(feature = "shadowsocks")]
    pub(super) sealed: SealedUdp,
    pub(super) timers: Timers,
    index: Index,
    lru: Lru,
    /// By slot: its place among those of its client. In the mapping itself it would cost eight bytes.
    shares: Vec<Share>,
    destinations: Destinations,
    /// Mappings whose share of a turn was used up.
    queue: VecDeque<Key>,
    /// Datagrams of one mapping in a row, on their way out.
    outgoing: SendQueue,
    /// Flows of which the first datagrams don't tell enough yet.
    #[cfg(feature = "quic")]
    pub(super) sniffs: Sniffs,
    /// The mapping that `outgoing` belongs to.
    outgoing_of: Key,
    hash_key: u64,
    pub(super) loops: Loops,
    /// One has ended since the last [`Self::trim`].
    ended: bool,
}

/// Memory that an idle flow of one destination takes: its mapping with timer, index and queue, and one destination entry.
pub const BYTES_PER_FLOW: usize = Slab::<Mapping>::SLOT_SIZE
    + Timers::SLOT_SIZE
    + Index::SLOT_SIZE
    + Lru::SLOT_SIZE
    + size_of::<Share>()
    + size_of::<Key>()
    + Destinations::ENTRY_SIZE;

const _: () = assert!(BYTES_PER_FLOW <= 192);

/// Most memory that a table of `capacity` takes, every mapping in its handshake, in bytes.
pub const fn memory_max(capacity: usize) -> usize {
    let mapping = BYTES_PER_FLOW - Destinations::ENTRY_SIZE + Slab::<Dial>::SLOT_SIZE;
    #[cfg(feature = "shadowsocks")]
    let sealed = SealedUdp::memory_max(capacity);
    #[cfg(not(feature = "shadowsocks"))]
    let sealed = 0;
    capacity * mapping + sealed + Destinations::memory(capacity * DESTINATIONS_PER_MAPPING)
}

/// Destination entries for each mapping.
const DESTINATIONS_PER_MAPPING: usize = 4;

/// Silence after which a flow that spoke only to port 53 ends: RFC 4787 REQ-5a allows less for well-known ports.
const DNS_TIMEOUT: Duration = Duration::from_secs(10);

/// Batches that one socket may read in one turn.
pub const BATCHES_PER_TURN: usize = 2;

impl Udp {
    /// Room for `capacity` mappings, at most [`super::TABLE_MAX`]; `hash_key` seeds the tables.
    pub fn new(capacity: u16, hash_key: u64) -> Udp {
        Udp {
            mappings: Slab::new(capacity),
            dials: Slab::new(capacity),
            #[cfg(feature = "shadowsocks")]
            sealed: SealedUdp::new(capacity),
            timers: Timers::new(capacity),
            index: Index::new(capacity),
            lru: Lru::new(capacity),
            shares: Vec::with_capacity(capacity.into()),
            destinations: Destinations::new(usize::from(capacity) * DESTINATIONS_PER_MAPPING, hash_key),
            queue: VecDeque::with_capacity(capacity.into()),
            outgoing: SendQueue::new(true),
            #[cfg(feature = "quic")]
            sniffs: Sniffs::default(),
            outgoing_of: Key::NONE,
            hash_key,
            loops: Loops::default(),
            ended: false,
        }
    }

    /// Live mappings.
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Most mappings.
    pub fn capacity(&self) -> usize {
        self.mappings.capacity()
    }

    /// True if memory is left over from many mappings that have gone since [`Self::trim`].
    pub fn is_slack(&self) -> bool {
        self.ended && self.mappings.is_slack()
    }

    /// Gives the memory of those that have gone back. Decisions are forgotten with the last of them.
    pub fn trim(&mut self) {
        self.ended = false;
        memory::discard(self.mappings.trim());
        memory::discard(self.dials.trim());
        if self.mappings.is_empty() {
            #[cfg(feature = "shadowsocks")]
            self.sealed.trim();
            self.destinations.forget_all();
        }
    }

    /// The destination entries, for `status`.
    pub fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// A reload has changed the rules: cached drops and rejects are decided anew, live mappings stay.
    pub fn forget_verdicts(&mut self) {
        self.destinations.forget_verdicts();
    }

    /// Every flow is decided anew at its next datagram: the rules have changed, and live flows shall get them.
    pub fn forget_all(&mut self) {
        self.destinations.forget_all();
    }

    /// A datagram, in `slot` of `batch` from `start` on, from `client` to `orig_dst`. What is to go out is sent by
    /// [`Self::flush`] at the latest.
    pub fn datagram(
        &mut self,
        slot: usize,
        start: usize,
        flow: &(SocketAddr, SocketAddr),
        batch: &ReceiveBatch,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        let Some(payload) = batch.payload(slot).get(start..) else { return };
        let (client, orig_dst) = flow;
        let cached = self.destinations.find(client.into(), orig_dst.into(), cx.now);
        let decision = match cached {
            Some(Decision::Through(key)) if self.mappings.get(key).is_some() => Decision::Through(key),
            Some(Decision::Through(_)) | None => match self.begin(*flow, (slot, payload), batch, replies, cx) {
                Some(decision) => decision,
                None => return,
            },
            Some(without_mapping) => without_mapping,
        };
        match decision {
            Decision::Through(key) => self.forward(key, (slot, start, orig_dst, payload), batch, replies, cx),
            Decision::Reject => {
                cx.stats.drop(Drop::ByRule);
                replies.port_unreachable((*client, *orig_dst, payload.len()), cx.now, cx.stats);
            }
            Decision::Drop => cx.stats.drop(Drop::ByRule),
        }
    }

    /// What becomes of the first datagram of a flow; `None`: nothing, or nothing yet. Not inlined: every further datagram
    /// would pay for its frame.
    #[inline(never)]
    fn begin(
        &mut self,
        (client, orig_dst): (SocketAddr, SocketAddr),
        (slot, payload): (usize, &[u8]),
        batch: &ReceiveBatch,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) -> Option<Decision> {
        if self.comes_back((client, orig_dst), cx) {
            return None;
        }
        let unknown = (client, orig_dst, cx.origins.device(slot, batch));
        #[cfg(feature = "quic")]
        match self.look_for_name(unknown, payload, cx) {
            Looked::Waits => None,
            Looked::Done(name) => self.decide(unknown, name.as_ref().map(Name::as_str), replies, cx),
        }
        #[cfg(not(feature = "quic"))]
        {
            let _ = payload;
            self.decide(unknown, None, replies, cx)
        }
    }

    /// Whether the rules send this flow to a fixed server.
    pub fn goes_to_fixed_server(&self, (client, orig_dst): (SocketAddr, SocketAddr), cx: &Cx<'_>) -> bool {
        match cx.policy.decide(&Flow::new(Proto::Udp, client, orig_dst)).target {
            Target::Outbound(index) => cx.outbounds.get(index).is_forward(),
            _ => false,
        }
    }

    /// Decides about a flow, and what becomes of its datagrams that wait for that. `None`: its mapping got no socket.
    pub(super) fn decide(
        &mut self,
        (client, orig_dst, device): Unknown,
        name: Option<&str>,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) -> Option<Decision> {
        let origin = cx.origins.of_datagram(device, client, cx.now);
        let flow = Flow { domain: name, ..Flow::new(Proto::Udp, client, orig_dst) };
        let verdict = cx.policy.decide_and_count(&origin.of(flow));
        let Some((target, measure)) = cx.measured(&verdict, client) else {
            cx.stats.udp.refused += 1;
            #[cfg(feature = "quic")]
            self.release((client, orig_dst), None, replies, cx);
            return None;
        };
        let mut remembered = true;
        let through = match cx.outbounds.carrying_udp(target, cx.now) {
            Target::Reject => Err(Decision::Reject),
            Target::Drop => Err(Decision::Drop),
            Target::Direct => Ok(0),
            Target::Outbound(index) => {
                if cx.outbounds.choose(index, Proto::Udp, &Tried::new(), cx.resolver, cx.now) == Chosen::Nobody {
                    let outbound = cx.outbounds.get_mut(index);
                    outbound.note_error(format_args!("{orig_dst}: no member is up"));
                    outbound.errors += 1;
                    // a member may come up at any moment
                    remembered = false;
                    Err(Decision::Reject)
                } else {
                    Ok(index)
                }
            }
        };
        let decision = match through {
            Ok(outbound) => {
                let mapping = self.mapping((client, orig_dst, name), (outbound, measure), verdict.rule, cx);
                mapping.map(Decision::Through)
            }
            Err(without_mapping) => {
                cx.give_back(measure);
                Some(without_mapping)
            }
        };
        #[cfg(feature = "quic")]
        self.release((client, orig_dst), decision, replies, cx);
        #[cfg(not(feature = "quic"))]
        let _ = replies;
        if remembered {
            self.destinations.insert(client.into(), orig_dst.into(), decision?, cx.now);
        }
        decision
    }

    /// Of a mapping: client and outbound and, where each destination has a mapping of its own, the destination.
    fn hash(&self, client: Endpoint, outbound: u16, orig_dst: Option<Endpoint>) -> u64 {
        let [a, b, port] = client.words();
        let [c, d, other_port] = orig_dst.map_or([0; 3], |endpoint| endpoint.words());
        keyed_hash(self.hash_key, &[a ^ c.rotate_left(17), b ^ d, port << 16 | u64::from(outbound) | other_port << 40])
    }

    fn forward(
        &mut self,
        key: Key,
        (slot, start, orig_dst, payload): (usize, usize, &SocketAddr, &[u8]),
        batch: &ReceiveBatch,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        mapping.active = cx.now;
        mapping.only_dns &= orig_dst.port() == 53;
        self.lru.touch(key.slot);
        if !cx.admits(&mapping.measure, true, payload.len()) {
            return;
        }
        match mapping.stage {
            #[cfg(feature = "shadowsocks")]
            Stage::Ready if cx.outbounds.get(mapping.via).is_sealed() => {
                self.flush(batch, replies, cx);
                self.send_sealed(key, *orig_dst, payload, replies, cx);
            }
            Stage::Ready => {
                if self.outgoing_of != key || self.outgoing.is_full() {
                    self.flush(batch, replies, cx);
                    self.outgoing_of = key;
                }
                if let (Some(mapping), Some(outgoing)) =
                    (self.mappings.get(key), self.outgoing.push(slot, (start, payload.len())))
                {
                    mapping.address(outgoing, orig_dst, cx.outbounds);
                }
            }
            Stage::Resolving | Stage::Dialling => association::wait(mapping, *orig_dst, payload, cx),
            Stage::Failed => cx.stats.drop(Drop::NotReady),
        }
    }

    /// Sends what waits to go out, whose payloads are in `batch`.
    pub fn flush(&mut self, batch: &ReceiveBatch, replies: &mut Replies, cx: &mut Cx<'_>) {
        if self.outgoing.is_empty() {
            return;
        }
        let Some(mapping) = self.mappings.get_mut(self.outgoing_of) else {
            // evicted while its datagrams waited
            self.outgoing.clear();
            cx.stats.drop(Drop::NotReady);
            return;
        };
        let Mapping { socket, bytes_up, client, .. } = mapping;
        let Some(socket) = socket else { return self.outgoing.clear() };
        self.outgoing.flush(socket.as_fd(), batch, |outgoing, result| match result {
            Ok(()) => *bytes_up += outgoing.part.1 as u64,
            Err(e) => unsent(e, client.address(), outgoing.to(), outgoing.part.1, (replies, cx.stats), cx.now),
        });
    }

    /// A socket of the mapping became ready.
    pub fn ready(
        &mut self,
        key: Key,
        side: Side,
        ready: Readiness,
        batch: &mut ReceiveBatch,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        match side {
            Side::Near => {
                if ready.error
                    && let Some(mapping) = self.mappings.get(key)
                {
                    mapping.pass_errors_on(replies, cx);
                }
                self.receive(key, batch, replies, cx);
            }
            Side::Far => association::ready(self, key, ready, batch.scratch(), replies, cx),
        }
    }

    /// Passes on what waits at the outside socket.
    fn receive(&mut self, key: Key, batch: &mut ReceiveBatch, replies: &mut Replies, cx: &mut Cx<'_>) {
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        let Some(socket) = mapping.socket.take() else { return };
        let source = match cx.outbounds.get(mapping.via).way {
            Way::Direct => Source::Sender,
            Way::Forward { .. } => Source::OrigDst,
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { .. } => Source::Sealed,
            Way::Http { .. } | Way::Group { .. } | Way::Socks5 { .. } => Source::Header,
        };
        let mut drained = false;
        for _ in 0..BATCHES_PER_TURN {
            match batch.receive(socket.as_fd()) {
                Ok(count) => {
                    for slot in 0..count {
                        #[cfg(feature = "shadowsocks")]
                        if source == Source::Sealed {
                            self.open_sealed(key, slot, batch, replies, cx);
                            continue;
                        }
                        if let Some(mapping) = self.mappings.get_mut(key) {
                            mapping.reply(slot, batch, source, replies, cx);
                        }
                    }
                    let Some(mapping) = self.mappings.get_mut(key) else { return };
                    mapping.bytes_down += replies.flush(batch, cx.now, cx.stats);
                    mapping.active = cx.now;
                    // fewer than asked for: nothing more waits, and what comes raises the edge again
                    drained = count < SLOTS;
                }
                // a pending ICMP error, which the call has taken: what waits behind it is read next
                Err(e) => drained = e.kind() == ErrorKind::WouldBlock,
            }
            if drained {
                break;
            }
        }
        self.lru.touch(key.slot);
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        mapping.socket = Some(socket);
        if !drained && !mapping.queued {
            mapping.queued = true;
            self.queue.push_back(key);
        }
    }

    /// True if [`Self::run_queued`] has something to do.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Gives each mapping whose share was used up its next one.
    pub fn run_queued(&mut self, batch: &mut ReceiveBatch, replies: &mut Replies, cx: &mut Cx<'_>) {
        for _ in 0..self.queue.len() {
            let Some(key) = self.queue.pop_front() else { return };
            if let Some(mapping) = self.mappings.get_mut(key) {
                mapping.queued = false;
                self.receive(key, batch, replies, cx);
            }
        }
    }

    /// The next deadline of any mapping, or of a flow whose name is looked for.
    pub fn deadline(&self) -> Option<Tick> {
        #[cfg(feature = "quic")]
        if let Some(at) = self.sniffs.deadline() {
            return Some(self.timers.next().filter(|timer| at.reached(*timer)).unwrap_or(at));
        }
        self.timers.next()
    }

    /// All mappings, for `sessions` and `status`.
    pub fn views(&self) -> impl Iterator<Item = View> {
        self.mappings.iter().map(|(key, mapping)| mapping.view(key))
    }

    /// The name that the flow which began the mapping in `slot` asked for.
    pub fn name_at(&self, slot: u16) -> Option<&NameSlot> {
        self.mappings.get(self.mappings.key_at(slot)?)?.name.as_ref()
    }

    /// What is in `slot`, which is below [`Self::slots`].
    pub fn view_at(&self, slot: u16) -> Option<View> {
        let key = self.mappings.key_at(slot)?;
        self.mappings.get(key).map(|mapping| mapping.view(key))
    }

    /// A bound for walks by [`Self::view_at`], so that one can be put down and taken up again.
    pub fn slots(&self) -> u16 {
        self.mappings.touched()
    }
}

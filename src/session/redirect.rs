//! UDP flows whose datagrams are not what they look like: who really sent them, where they were going, and the way back.
//!
//! Of those that nat REDIRECT delivers the listener sees what they are after translation: to an address of this router, from a port that is the client's own
//! only while no other flow of that client port lives (the kernel remaps where reply tuples would clash). Connection
//! tracking knows the rest, and is asked once for each new flow, for all of a batch together. An answer is taken for true
//! for `TRUSTED`; then it is asked again, since an entry that someone flushed may make room for another flow of the same
//! look; and at once where it tells that it has forgotten the entry. What it does not know is dropped, never sent to a guessed address. Replies go from the listener to the peer as
//! seen, and are translated back.
//!
//! Those of clients that are told say by a header where they are going: their replies take the same way.

use crate::proto::ctnetlink::{self, Answer, QUESTION_MAX, Tuple};
use crate::session::outbound::{HeldBack, Limiter};
use crate::stats::{Drop, Stats};
use crate::store::endpoint::{Endpoint, keyed_hash};
use crate::store::index::Index;
use crate::store::lru::Lru;
use crate::store::slab::{Key, Slab};
use crate::store::timers::{Tick, Timers};
use crate::sys::dgram::{ReceiveBatch, SLOTS};
use crate::sys::netlink::{Asker, FORGOTTEN_FLOWS, Family};
use crate::sys::out_of_resources;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// One flow, before and after translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// The sender as the listener sees it.
    peer: Endpoint,
    /// Where it arrived.
    local: Endpoint,
    /// The client itself: the peer but for its port or, behind a PROXY header, somebody else.
    client: Endpoint,
    orig_dst: Endpoint,
    listener: u8,
    kind: Kind,
    /// The entry was told to outlive the flow's silence.
    kept: bool,
    trusted: bool,
    active: Tick,
    asked: Tick,
}

/// Where the knowledge comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Connection tracking.
    Translated,
    /// The peer told by a PROXY header, or the flow is for a fixed server.
    Told,
    /// The peer told by SOCKS5.
    Socks5,
}

/// How a reply reaches its client.
#[derive(Debug, Clone, Copy)]
pub struct WayBack {
    /// The place of the listener that sends it.
    pub listener: u8,
    /// Its address, as the flow arrived.
    pub local: SocketAddr,
    /// To whom.
    pub peer: SocketAddr,
    /// It tells by a header who it is from (RFC 1928 section 7).
    pub with_header: bool,
}

/// The flows, in fixed memory. Without a listener of mode redirect it stays empty, and touches none of it.
pub struct Redirects {
    flows: Slab<Flow>,
    by_peer: Index,
    by_client: Index,
    lru: Lru,
    timers: Timers,
    hash_key: u64,
    asker: Option<Asker>,
    /// Hears of entries that were forgotten.
    forgotten: Option<Asker>,
    sequence: u32,
    /// A copy of each listener's socket, for replies.
    listeners: Vec<Option<OwnedFd>>,
    /// What is known of the datagrams of this batch.
    known: [Option<Key>; SLOTS],
    /// The longest `udp_timeout`: so long a flow is kept.
    lifetime: Duration,
    /// Silence after which connection tracking is told to keep a flow's entry.
    kept_after: Duration,
    evicted: u64,
    limiter: Limiter,
}

/// How long an answer is taken for true.
const TRUSTED: Duration = Duration::from_secs(10);

/// Silence after which connection tracking is told to keep a flow's entry: half of the 30 s that it keeps one by itself
/// without a reply, or of what `nf_conntrack_udp_timeout` says.
const KEPT_AFTER: Duration = Duration::from_secs(15);

/// How long an answer from port 53 may take: such entries are not kept for longer.
const DNS_LIFETIME: Duration = Duration::from_secs(20);

/// Orders to keep an entry, given in one turn.
const KEPT_PER_TURN: usize = 16;

/// Questions in one datagram. The answers to more might not fit into the socket's buffer.
const QUESTIONS: usize = 8;

/// Room for flows, for each mapping.
const FLOWS_PER_MAPPING: u16 = 2;

/// ENOENT.
const NO_ENTRY: i32 = 2;

impl Redirects {
    /// Room for the flows of `mappings` mappings.
    pub fn new(mappings: u16, hash_key: u64) -> Redirects {
        let capacity = capacity(mappings);
        Redirects {
            flows: Slab::new(capacity),
            by_peer: Index::new(capacity),
            by_client: Index::new(capacity),
            lru: Lru::new(capacity),
            timers: Timers::new(capacity),
            hash_key,
            asker: None,
            forgotten: None,
            kept_after: KEPT_AFTER,
            sequence: 0,
            listeners: Vec::new(),
            known: [None; SLOTS],
            lifetime: Duration::from_secs(180),
            evicted: 0,
            limiter: Limiter::default(),
        }
    }

    /// Flows kept for the longest `udp_timeout` there is.
    pub fn set_lifetime(&mut self, lifetime: Duration) {
        self.lifetime = lifetime;
    }

    /// The socket from which replies leave that came to the listener in `place`. The first opens the way to connection
    /// tracking.
    ///
    /// # Errors
    /// This kernel has no connection tracking netlink, or `CAP_NET_ADMIN` is missing.
    pub fn add_listener(&mut self, place: usize, socket: OwnedFd, translated: bool) -> io::Result<()> {
        if translated && self.asker.is_none() {
            self.asker = Some(open_asker()?);
            // without: TRUSTED alone
            self.forgotten = Asker::open(Family::Netfilter, FORGOTTEN_FLOWS).ok();
            self.kept_after = kept_after();
        }
        if self.listeners.len() <= place {
            self.listeners.resize_with(place + 1, || None);
        }
        self.listeners[place] = Some(socket);
        Ok(())
    }

    /// No listener by redirect is in `place` any more.
    pub fn remove_listener(&mut self, place: usize) {
        if let Some(socket) = self.listeners.get_mut(place) {
            *socket = None;
        }
    }

    /// Live flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Flows that made room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Finds out about the first `count` datagrams of `batch`, which came to the listener in `place`.
    pub fn look_up(&mut self, batch: &ReceiveBatch, count: usize, place: u8, now: Tick) {
        self.hear_of_forgotten();
        let mut unknown = heapless::Vec::<(usize, Endpoint, Endpoint), SLOTS>::new();
        self.known = [None; SLOTS];
        for slot in 0..count.min(SLOTS) {
            let (Some(from), Some(local)) = (batch.from(slot), batch.orig_dst(slot)) else { continue };
            let (peer, local) = (Endpoint::from(from), Endpoint::from(local));
            let found = self.find_peer(peer, local);
            let fresh =
                |key: &Key| self.flows.get(*key).is_some_and(|flow| flow.trusted && now.since(flow.asked) < TRUSTED);
            if let Some(key) = found.filter(fresh) {
                self.touch(key, now);
                self.known[slot] = Some(key);
            } else {
                // there is room for all of a batch
                let _ = unknown.push((slot, peer, local));
            }
        }
        let mut first = 0;
        while first < unknown.len() {
            // datagrams of one flow ask once
            let mut questions = heapless::Vec::<(Endpoint, Endpoint), QUESTIONS>::new();
            let mut end = first;
            while let Some((_, peer, local)) = unknown.get(end) {
                if !questions.contains(&(*peer, *local)) && questions.push((*peer, *local)).is_err() {
                    break;
                }
                end += 1;
            }
            self.ask(&questions, place, now);
            for (slot, peer, local) in &unknown[first..end] {
                self.known[*slot] = self.find_peer(*peer, *local);
            }
            first = end;
        }
    }

    /// Client and original destination of the datagram in `slot`, as [`Self::look_up`] found out. `None`: connection
    /// tracking does not know it; that is counted and logged here.
    pub fn original(
        &mut self,
        slot: usize,
        batch: &ReceiveBatch,
        stats: &mut Stats,
        now: Tick,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let flow = self.known.get(slot).copied().flatten().and_then(|key| self.flows.get(key));
        if let Some(flow) = flow {
            return Some((flow.client.address(), flow.orig_dst.address()));
        }
        stats.drop(Drop::NoDestination);
        let from = batch.from(slot)?;
        if let Some(held_back) = self.limiter.admit(now) {
            let held_back = HeldBack(held_back);
            log::warn!("where {from} was sending to is not known to connection tracking: datagram dropped{held_back}");
        }
        None
    }

    /// How a datagram of `from` gets to `client`; `None` if that flow was not redirected.
    pub fn way_back(&mut self, client: SocketAddr, from: SocketAddr, now: Tick) -> Option<WayBack> {
        if self.flows.is_empty() {
            return None;
        }
        let key = self.find_client(client.into(), from.into())?;
        self.touch(key, now);
        let flow = self.flows.get(key)?;
        let (local, peer, with_header) = (flow.local.address(), flow.peer.address(), flow.kind == Kind::Socks5);
        Some(WayBack { listener: flow.listener, local, peer, with_header })
    }

    /// The socket of the listener in that place.
    pub fn socket(&self, place: u8) -> Option<BorrowedFd<'_>> {
        self.listeners.get(usize::from(place))?.as_ref().map(AsFd::as_fd)
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        self.timers.next()
    }

    /// Has the entries of silent flows kept, and forgets flows that were silent for as long as a mapping may be.
    pub fn expire(&mut self, now: Tick) {
        for _ in 0..KEPT_PER_TURN {
            let Some(slot) = self.timers.expired(now) else { return };
            let Some(key) = self.flows.key_at(slot) else { continue };
            let Some(flow) = self.flows.get_mut(key) else { continue };
            let lifetime = if flow.orig_dst.port() == 53 { DNS_LIFETIME } else { self.lifetime };
            let end = flow.active.after(lifetime);
            if now.reached(end) {
                self.remove(key);
            } else if flow.kind != Kind::Translated {
                self.timers.set(slot, end);
            } else if !now.reached(flow.active.after(self.kept_after)) {
                flow.kept = false;
                self.timers.set(slot, flow.active.after(self.kept_after));
            } else {
                let first_time = !std::mem::replace(&mut flow.kept, true);
                let reply = Tuple { from: flow.local.address(), to: flow.peer.address() };
                self.timers.set(slot, end);
                if first_time && !self.keep(reply, end.since(now)) {
                    self.remove(key);
                }
            }
        }
    }

    /// True unless the entry has gone.
    fn keep(&mut self, reply: Tuple, time: Duration) -> bool {
        let Some(asker) = &self.asker else { return false };
        self.sequence = self.sequence.wrapping_add(1);
        let mut question = [0; QUESTION_MAX];
        let len = ctnetlink::keep(self.sequence, reply, time.as_secs() as u32 + 5, &mut question);
        let mut gone = false;
        if asker.send(&question[..len]).is_ok() {
            read_answers(asker, |answer| gone |= answer == Answer::Refused(self.sequence, NO_ENTRY));
        }
        !gone
    }

    /// Entries that were forgotten lead nowhere any more: a look that returns belongs to another flow. Events that were lost
    /// may have been of any.
    fn hear_of_forgotten(&mut self) {
        let Some(socket) = self.forgotten.take() else { return };
        let mut buffer = [0; ANSWER_MAX];
        loop {
            match socket.receive(&mut buffer) {
                Ok(datagram) => {
                    for event in ctnetlink::answers(datagram) {
                        if let Answer::Forgotten(Tuple { from, to }) = event
                            && let Some(key) = self.find_peer(to.into(), from.into())
                        {
                            self.remove(key);
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if out_of_resources(&e) => self.distrust_all(),
                Err(_) => {}
            }
        }
        self.forgotten = Some(socket);
    }

    fn distrust_all(&mut self) {
        for slot in 0..self.flows.touched() {
            if let Some(flow) = self.flows.key_at(slot).and_then(|key| self.flows.get_mut(key)) {
                flow.trusted = false;
            }
        }
    }

    fn ask(&mut self, questions: &[(Endpoint, Endpoint)], place: u8, now: Tick) {
        let Some(asker) = self.asker.take() else { return };
        let mut message = [0; QUESTIONS * QUESTION_MAX];
        let mut len = 0;
        let first = self.sequence.wrapping_add(1);
        for (peer, local) in questions {
            self.sequence = self.sequence.wrapping_add(1);
            let reply = Tuple { from: local.address(), to: peer.address() };
            let mut question = [0; QUESTION_MAX];
            let used = ctnetlink::ask(self.sequence, reply, &mut question);
            message[len..len + used].copy_from_slice(&question[..used]);
            len += used;
        }
        if asker.send(&message[..len]).is_ok() {
            read_answers(&asker, |answer| {
                let place_of = |sequence: u32| questions.get(sequence.wrapping_sub(first) as usize).copied();
                match answer {
                    Answer::Original(sequence, original) => {
                        if let Some((peer, local)) = place_of(sequence) {
                            self.learn(peer, local, original, place, now);
                        }
                    }
                    Answer::Refused(sequence, _) => {
                        let known = place_of(sequence).and_then(|(peer, local)| self.find_peer(peer, local));
                        if let Some(key) = known {
                            self.remove(key);
                        }
                    }
                    Answer::Done(_) | Answer::Forgotten(_) => {}
                }
            });
        }
        self.asker = Some(asker);
    }

    fn learn(&mut self, peer: Endpoint, local: Endpoint, original: Tuple, listener: u8, now: Tick) {
        let client = SocketAddr::new(peer.ip(), original.from.port()).into();
        let orig_dst = Endpoint::from(original.to);
        let kind = Kind::Translated;
        let (kept, trusted) = (false, true);
        self.put(Flow { peer, local, client, orig_dst, listener, kind, kept, trusted, active: now, asked: now }, now);
    }

    /// A flow whose client and destination were told, not found out; `with_header`: in the way of SOCKS5, and so are replies.
    pub fn remember(
        &mut self,
        (peer, local): (SocketAddr, SocketAddr),
        (client, orig_dst): (SocketAddr, SocketAddr),
        (listener, with_header): (u8, bool),
        now: Tick,
    ) {
        let kind = if with_header { Kind::Socks5 } else { Kind::Told };
        let (peer, local) = (peer.into(), local.into());
        let (client, orig_dst) = (client.into(), orig_dst.into());
        let (kept, trusted) = (true, true);
        self.put(Flow { peer, local, client, orig_dst, listener, kind, kept, trusted, active: now, asked: now }, now);
    }

    /// Translated flows are told apart by their peers; the others by clients and destinations, as many come from one peer.
    fn put(&mut self, flow: Flow, now: Tick) {
        let known = match flow.kind {
            Kind::Translated => self.find_peer(flow.peer, flow.local),
            Kind::Told | Kind::Socks5 => self.find_client(flow.client, flow.orig_dst),
        };
        if let Some(key) = known {
            match self.flows.get_mut(key) {
                Some(known) if known.is_alike(&flow) => {
                    (known.asked, known.trusted, known.listener) = (now, true, flow.listener);
                    return self.touch(key, now);
                }
                _ => self.remove(key),
            }
        }
        if self.flows.is_full()
            && let Some(oldest) = self.lru.oldest().and_then(|slot| self.flows.key_at(slot))
        {
            self.evicted += 1;
            self.remove(oldest);
        }
        let Ok(key) = self.flows.insert(flow) else { return };
        self.by_peer.insert(self.hash(flow.peer, flow.local), key.slot);
        self.by_client.insert(self.hash(flow.client, flow.orig_dst), key.slot);
        self.lru.touch(key.slot);
        self.timers.set(key.slot, now.after(self.kept_after));
    }

    fn find_client(&self, client: Endpoint, orig_dst: Endpoint) -> Option<Key> {
        let is_it = |slot| {
            let flow = self.flows.key_at(slot).and_then(|key| self.flows.get(key));
            flow.is_some_and(|flow| flow.client == client && flow.orig_dst == orig_dst)
        };
        let slot = self.by_client.find(self.hash(client, orig_dst), is_it)?;
        self.flows.key_at(slot)
    }

    fn find_peer(&self, peer: Endpoint, local: Endpoint) -> Option<Key> {
        let is_it = |slot| {
            let flow = self.flows.key_at(slot).and_then(|key| self.flows.get(key));
            flow.is_some_and(|flow| flow.kind == Kind::Translated && flow.peer == peer && flow.local == local)
        };
        let slot = self.by_peer.find(self.hash(peer, local), is_it)?;
        self.flows.key_at(slot)
    }

    fn touch(&mut self, key: Key, now: Tick) {
        self.lru.touch(key.slot);
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.active = now;
        if flow.kept && flow.kind == Kind::Translated {
            // the packet has cut the entry's time down to the usual
            flow.kept = false;
            self.timers.set(key.slot, now.after(self.kept_after));
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(flow) = self.flows.remove(key) else { return };
        self.by_peer.remove(self.hash(flow.peer, flow.local), key.slot);
        self.by_client.remove(self.hash(flow.client, flow.orig_dst), key.slot);
        self.lru.remove(key.slot);
        self.timers.clear(key.slot);
    }

    fn hash(&self, a: Endpoint, b: Endpoint) -> u64 {
        let ([a, b, c], [d, e, f]) = (a.words(), b.words());
        keyed_hash(self.hash_key, &[a, b, d, e, c << 16 | f])
    }
}

impl Flow {
    fn is_alike(&self, other: &Flow) -> bool {
        let whole = |flow: &Flow| (flow.peer, flow.local, flow.client, flow.orig_dst, flow.kind);
        whole(self) == whole(other)
    }
}

fn capacity(mappings: u16) -> u16 {
    // what an Index can number
    mappings.saturating_mul(FLOWS_PER_MAPPING).min(1 << 15)
}

/// Most memory that the flows of `mappings` mappings take, in bytes.
pub const fn memory_max(mappings: usize) -> usize {
    let flow = Slab::<Flow>::SLOT_SIZE + 2 * Index::SLOT_SIZE + Lru::SLOT_SIZE + Timers::SLOT_SIZE;
    mappings * FLOWS_PER_MAPPING as usize * flow
}

/// Half of the time that connection tracking keeps an entry which saw no reply.
fn kept_after() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").unwrap_or_default();
    text.trim().parse().map_or(KEPT_AFTER, |seconds| Duration::from_secs(seconds) / 2).min(KEPT_AFTER)
}

/// Reads what the kernel has to say, to the end.
fn read_answers(asker: &Asker, mut each: impl FnMut(Answer)) {
    let mut buffer = [0; ANSWER_MAX];
    loop {
        match asker.receive(&mut buffer) {
            Ok(datagram) => ctnetlink::answers(datagram).for_each(&mut each),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // nothing more, or lost answers: whoever waits for one asks again with its next datagram
            Err(_) => return,
        }
    }
}

/// Octets of one answer: an entry with all its attributes.
const ANSWER_MAX: usize = 2048;

/// Opens the socket, and asks something, so that the kernel loads what it needs now, and says now if it can't.
fn open_asker() -> io::Result<Asker> {
    let asker = Asker::open(Family::Netfilter, 0)?;
    let nobody = SocketAddr::new(IpAddr::from([0; 4]), 0);
    let mut question = [0; QUESTION_MAX];
    let len = ctnetlink::ask(0, Tuple { from: nobody, to: nobody }, &mut question);
    asker.send(&question[..len])?;
    let mut refusal = None;
    read_answers(&asker, |answer| {
        if let Answer::Refused(_, errno) = answer {
            refusal = Some(errno);
        }
    });
    match refusal {
        None | Some(NO_ENTRY) => Ok(asker),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests;

//! Names in the first datagrams of a UDP flow (QUIC): a client's first packet may need several, and those wait here.

use super::association;
use super::destinations::Decision;
use super::reply::Replies;
use super::udp::{Udp, Unknown};
use super::{Cx, mapping};
use crate::policy::{Flow, Proto};
use crate::proto::quic_initial;
use crate::proto::sniff::{Name, Sniff};
use crate::stats::Drop;
use crate::store::endpoint::Endpoint;
use crate::store::pool::Chunk;
use crate::store::timers::Tick;
use std::net::SocketAddr;

/// Flows whose names are looked for.
#[derive(Debug, Default)]
pub(super) struct Sniffs(heapless::Vec<Waiting, SNIFFS_MAX>);

/// A flow of which something has come, and not enough.
#[derive(Debug)]
struct Waiting {
    client: Endpoint,
    orig_dst: Endpoint,
    device: Option<u32>,
    /// Its datagrams, in the form in which they wait for an association.
    chunk: Chunk,
    count: u8,
    until: Tick,
}

/// Flows that may wait at once; each has a buffer of the pool. A further one is decided without a name.
const SNIFFS_MAX: usize = 32;

/// Datagrams of one flow that wait.
const DATAGRAMS_MAX: u8 = 4;

/// What came of looking for a name.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it lives for one call, and nothing here allocates")]
pub(super) enum Looked {
    /// The datagram is kept until more is known.
    Waits,
    /// It is time to decide.
    Done(Option<Name>),
}

impl Sniffs {
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.0.iter().map(|waiting| waiting.until).reduce(Tick::earlier)
    }

    fn position(&self, client: Endpoint, orig_dst: Endpoint) -> Option<usize> {
        self.0.iter().position(|waiting| waiting.client == client && waiting.orig_dst == orig_dst)
    }
}

impl Udp {
    /// Looks for a name in the datagrams of a flow that have come, if a rule needs it.
    pub(super) fn look_for_name(&mut self, unknown: Unknown, payload: &[u8], cx: &mut Cx<'_>) -> Looked {
        let (client, orig_dst, device) = unknown;
        if !cx.policy.looks_at(Proto::Udp, orig_dst.port()) {
            return Looked::Done(None);
        }
        let place = self.sniffs.position(client.into(), orig_dst.into());
        if place.is_none() {
            let origin = cx.origins.of_datagram(device, client, cx.now);
            if !cx.policy.needs_name(&origin.of(Flow::new(Proto::Udp, client, orig_dst))) {
                return Looked::Done(None);
            }
        }
        let earlier = place.map(|place| cx.pool.bytes(&self.sniffs.0[place].chunk)).unwrap_or_default();
        match quic_initial::sniff(association::waiting_in(earlier).map(|(_, payload)| payload).chain([payload])) {
            Sniff::Name(name) => return Looked::Done(Some(name)),
            Sniff::Unknown => {}
            Sniff::More if self.keep(place, unknown, payload, cx) => return Looked::Waits,
            Sniff::More => {}
        }
        cx.stats.nameless += 1;
        Looked::Done(None)
    }

    fn keep(&mut self, place: Option<usize>, unknown: Unknown, payload: &[u8], cx: &mut Cx<'_>) -> bool {
        let (client, orig_dst, device) = unknown;
        let header = association::waiting_header(orig_dst, payload);
        if let Some(waiting) = place.and_then(|place| self.sniffs.0.get_mut(place)) {
            let fits = waiting.count < DATAGRAMS_MAX && cx.pool.append_all(&mut waiting.chunk, &[&header, payload]);
            waiting.count += u8::from(fits);
            return fits;
        }
        if self.sniffs.0.is_full() {
            return false;
        }
        let Some(mut chunk) = cx.pool.take(&[]) else { return false };
        if !cx.pool.append_all(&mut chunk, &[&header, payload]) {
            cx.pool.give_back(chunk);
            return false;
        }
        let until = cx.now.after(cx.sniff_timeout);
        let (client, orig_dst) = (client.into(), orig_dst.into());
        // there is room, as was just seen
        self.sniffs.0.push(Waiting { client, orig_dst, device, chunk, count: 1, until }).is_ok()
    }

    /// Sends what has waited for `decision` on its way, before what comes after it.
    pub(super) fn release(
        &mut self,
        (client, orig_dst): (SocketAddr, SocketAddr),
        decision: Option<Decision>,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        let Some(place) = self.sniffs.position(client.into(), orig_dst.into()) else { return };
        let mut waiting = self.sniffs.0.swap_remove(place);
        let mapping = match decision {
            Some(Decision::Through(key)) => self.mappings.get_mut(key),
            _ => None,
        };
        if let Some(mapping) = mapping
            && mapping.waiting.is_none()
        {
            cx.moved(&mapping.measure, cx.pool.bytes(&waiting.chunk).len() as u64, 0);
            mapping.waiting = Some(waiting.chunk);
            mapping.waiting_count = waiting.count;
            mapping.only_dns &= orig_dst.port() == 53;
            if mapping.stage == mapping::Stage::Ready {
                association::send_waiting(mapping, replies, cx);
            }
            return;
        }
        while let Some((_, payload)) = association::waiting_in(cx.pool.bytes(&waiting.chunk)).next() {
            let len = payload.len();
            match decision {
                Some(Decision::Reject) => {
                    cx.stats.drop(Drop::ByRule);
                    replies.port_unreachable((client, orig_dst, len), cx.now, cx.stats);
                }
                Some(Decision::Drop) => cx.stats.drop(Drop::ByRule),
                // others wait for the same association, or there is none
                Some(Decision::Through(_)) | None => cx.stats.drop(Drop::NotReady),
            }
            waiting.chunk.advance(association::WAITING_HEADER + len);
        }
        cx.pool.give_back(waiting.chunk);
    }

    /// Decides about the flows whose names were looked for long enough.
    pub fn give_up_names(&mut self, replies: &mut Replies, cx: &mut Cx<'_>) {
        while let Some(waiting) = self.sniffs.0.iter().find(|waiting| cx.now.reached(waiting.until)) {
            let unknown = (waiting.client.address(), waiting.orig_dst.address(), waiting.device);
            cx.stats.nameless += 1;
            // it takes the flow off the list
            self.decide(unknown, None, replies, cx);
        }
    }
}

//! Datagrams through a Shadowsocks server: sealed one by one on their way out, opened where they lie on their way back.

use super::Cx;
use super::mapping::unsent;
use super::outbound::Way;
use super::reply::Replies;
use super::udp::Udp;
use crate::proto::shadowsocks::datagram::{Lent, Session};
use crate::proto::shadowsocks::{KEY_MAX, MasterKey, Target};
use crate::stats::Drop;
use crate::stats::events::unix_time;
use crate::store::slab::Key;
use crate::sys::dgram::{self, ReceiveBatch, SLOT};
use crate::sys::{memory, random};
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// What mappings keep for it, by their slots, and the memory in which datagrams are sealed.
pub(super) struct SealedUdp {
    /// As many as were ever needed.
    sessions: Vec<Option<Session>>,
    buffer: Vec<u8>,
}

impl SealedUdp {
    /// For so many mappings.
    pub(super) fn new(capacity: u16) -> SealedUdp {
        SealedUdp { sessions: Vec::with_capacity(capacity.into()), buffer: vec![0; SLOT] }
    }

    /// Bytes that it takes at most.
    pub(super) const fn memory_max(capacity: usize) -> usize {
        capacity * size_of::<Option<Session>>() + SLOT
    }

    /// That of the mapping in `slot`, begun if there is none.
    fn session(&mut self, slot: u16) -> (&mut Session, &mut [u8]) {
        let slot = usize::from(slot);
        // within the capacity, so without an allocation
        while self.sessions.len() <= slot {
            self.sessions.push(None);
        }
        (self.sessions[slot].get_or_insert_with(|| Session::new(random::u64())), &mut self.buffer)
    }

    /// Gives memory back, as there are no mappings.
    pub(super) fn trim(&mut self) {
        self.sessions.clear();
        memory::discard(self.sessions.spare_capacity_mut());
    }

    /// The mapping in `slot` ends, or goes another way.
    pub(super) fn end(&mut self, slot: u16) {
        if let Some(session) = self.sessions.get_mut(usize::from(slot)) {
            *session = None;
        }
    }
}

fn master(way: &Way) -> Option<MasterKey> {
    if let Way::Shadowsocks { key, .. } = way { Some(*key) } else { None }
}

impl Udp {
    /// Sends one datagram to `orig_dst`, sealed.
    pub(super) fn send_sealed(
        &mut self,
        key: Key,
        orig_dst: SocketAddr,
        payload: &[u8],
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        let (Some(socket), Some(master)) = (&mapping.socket, master(&cx.outbounds.get(mapping.via).way)) else {
            return;
        };
        let (session, buffer) = self.sealed.session(key.slot);
        let mut lent = Lent { random: [0; KEY_MAX], now: unix_time() };
        random::fill(&mut lent.random);
        let target = Target { address: orig_dst, name: None };
        let Some(len) = session.seal(&master, target, payload, lent, buffer) else {
            return cx.stats.drop(Drop::TooLarge);
        };
        match dgram::send(socket.as_fd(), None, &[], &buffer[..len]) {
            Ok(_) => mapping.bytes_up += payload.len() as u64,
            Err(e) => {
                unsent(&e, mapping.client.address(), Some(orig_dst), payload.len(), (replies, cx.stats), cx.now);
            }
        }
    }

    /// Opens the datagram in `slot`, and puts what it carries on its way to the client.
    pub(super) fn open_sealed(
        &mut self,
        key: Key,
        slot: usize,
        batch: &mut ReceiveBatch,
        replies: &mut Replies,
        cx: &mut Cx<'_>,
    ) {
        let Some(mapping) = self.mappings.get(key) else { return };
        let Some(master) = master(&cx.outbounds.get(mapping.via).way) else { return };
        let (session, _) = self.sealed.session(key.slot);
        let Some(datagram) = batch.payload_mut(slot) else { return cx.stats.drop(Drop::TooLarge) };
        match session.open(&master, datagram, unix_time()) {
            Ok(opened) if !cx.admits(&mapping.measure, false, opened.len) => {}
            Ok(opened) => {
                replies.push((slot, opened.start, opened.len), opened.from, mapping.client, cx.stats);
            }
            Err(refusal) => {
                cx.stats.drop(Drop::Malformed);
                let outbound = cx.outbounds.get_mut(mapping.via);
                outbound.note_error(format_args!("a datagram: {refusal}"));
                log::debug!("a datagram from the server of '{}': {refusal}", outbound.name);
            }
        }
    }
}

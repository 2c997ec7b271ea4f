//! How mappings end: idle for too long, on demand, or to make room.

use super::{DNS_TIMEOUT, Udp};
use crate::policy::By;
use crate::session::mapping::Stage;
use crate::session::metered::Measure;
use crate::session::tcp::View;
use crate::session::{CloseReason, Cx, Seconds, association};
use crate::store::shares::Share;
use crate::store::slab::Key;

impl Udp {
    /// Ends what has passed its deadline.
    pub fn expire(&mut self, cx: &mut Cx<'_>) {
        while let Some(slot) = self.timers.expired(cx.now) {
            let Some(key) = self.mappings.key_at(slot) else { continue };
            let Some(mapping) = self.mappings.get(key) else { continue };
            let timeout = cx.outbounds.get(mapping.via).udp_timeout;
            let timeout = if mapping.only_dns { timeout.min(DNS_TIMEOUT) } else { timeout };
            match mapping.stage {
                Stage::Ready => {
                    let until = mapping.active.after(timeout);
                    if cx.now.reached(until) {
                        self.close(key, CloseReason::Idle, cx);
                    } else {
                        self.timers.set(slot, until);
                    }
                }
                Stage::Failed => self.close(key, CloseReason::DialFailed, cx),
                Stage::Resolving | Stage::Dialling => association::timed_out(self, key, cx),
            }
        }
    }

    /// Ends all mappings.
    pub fn close_all(&mut self, cx: &mut Cx<'_>) {
        self.end(|_| true, || CloseReason::Stopping, cx);
    }

    /// Ends the mappings that `which` picks; returns how many.
    pub fn kick(&mut self, which: impl Fn(&View) -> bool, cx: &mut Cx<'_>) -> usize {
        self.end(which, || CloseReason::Kicked, cx)
    }

    /// Ends the mappings that `which` picks, for this reason; returns how many.
    pub fn end(&mut self, which: impl Fn(&View) -> bool, reason: impl Fn() -> CloseReason, cx: &mut Cx<'_>) -> usize {
        let mut count = 0;
        for slot in 0..self.mappings.touched() {
            let Some(key) = self.mappings.key_at(slot) else { continue };
            if self.mappings.get(key).is_some_and(|mapping| which(&mapping.view(key))) {
                self.close(key, reason(), cx);
                count += 1;
            }
        }
        count
    }

    pub(in crate::session) fn close(&mut self, key: Key, reason: CloseReason, cx: &mut Cx<'_>) {
        let Some(mut mapping) = self.mappings.remove(key) else { return };
        let only = mapping.single.then_some(mapping.orig_dst);
        self.index.remove(self.hash(mapping.client, mapping.outbound, only), key.slot);
        self.ended = true;
        self.lru.remove(key.slot);
        self.timers.clear(key.slot);
        self.dials.remove(mapping.dial);
        #[cfg(feature = "shadowsocks")]
        self.sealed.end(key.slot);
        association::forget_waiting(&mut mapping, cx);
        mapping.leave(cx);
        cx.give_back(std::mem::replace(&mut mapping.measure, Measure::NONE));
        if let Some(share) = self.shares.get_mut(usize::from(key.slot)) {
            cx.shares.give_back(std::mem::replace(share, Share::NONE));
        }
        if mapping.via != mapping.outbound {
            let via = cx.outbounds.get_mut(mapping.via);
            via.bytes_up += mapping.bytes_up;
            via.bytes_down += mapping.bytes_down;
        }
        if let Some(name) = mapping.name.take() {
            cx.names.remove(name);
        }
        let outbound = cx.outbounds.get_mut(mapping.outbound);
        outbound.sessions -= 1;
        outbound.bytes_up += mapping.bytes_up;
        outbound.bytes_down += mapping.bytes_down;
        let client = mapping.client.address().ip();
        cx.stats.clients.end(client, mapping.bytes_up, mapping.bytes_down, cx.now.0);
        log::debug!(
            "udp {} -> {} via '{}' {}: {reason}, up {} bytes, down {} bytes, {} s",
            mapping.client,
            mapping.orig_dst,
            outbound.name,
            By(mapping.rule),
            mapping.bytes_up,
            mapping.bytes_down,
            Seconds(cx.now.since(mapping.started)),
        );
    }
}

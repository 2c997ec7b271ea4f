//! From a decided flow to its mapping's socket: found or made, its way chosen and opened.

use super::{DNS_TIMEOUT, Udp};
use crate::policy::Proto;
use crate::session::dial::Failure;
use crate::session::mapping::{Mapping, Stage, open_outside};
use crate::session::metered::Measure;
use crate::session::outbound::{Chosen, Outbound, Tried, Way};
use crate::session::{CloseReason, Cx, Owner, Side, association, fixed};
use crate::stats::Drop;
use crate::stats::events::Kind;
use crate::store::endpoint::Endpoint;
use crate::store::slab::Key;
use crate::sys;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

impl Udp {
    /// The mapping of `client` at `outbound`, made if there is none; `None` if it got no socket. What is measured otherwise
    /// has a mapping of its own.
    pub(super) fn mapping(
        &mut self,
        (client, orig_dst, name): (SocketAddr, SocketAddr, Option<&str>),
        (outbound, measure): (u16, Measure),
        rule: Option<u16>,
        cx: &mut Cx<'_>,
    ) -> Option<Key> {
        let endpoint = Endpoint::from(client);
        // a fixed server's answers must tell which destination they stand for
        let single = cx.outbounds.is_single(outbound);
        let only = single.then(|| Endpoint::from(orig_dst));
        let hash = self.hash(endpoint, outbound, only);
        let is_it = |slot| {
            let mapping = self.mappings.key_at(slot).and_then(|key| self.mappings.get(key));
            mapping.is_some_and(|mapping| {
                let same = mapping.client == endpoint && mapping.outbound == outbound && mapping.single == single;
                same && mapping.measure == measure && only.is_none_or(|orig_dst| mapping.orig_dst == orig_dst)
            })
        };
        if let Some(key) = self.index.find(hash, is_it).and_then(|slot| self.mappings.key_at(slot)) {
            cx.give_back(measure);
            return Some(key);
        }
        let Some(share) = cx.take_share(client) else {
            cx.give_back(measure);
            cx.stats.udp.refused += 1;
            return None;
        };
        if self.mappings.is_full()
            && let Some(oldest) = self.lru.oldest().and_then(|slot| self.mappings.key_at(slot))
        {
            cx.stats.udp.evicted += 1;
            if cx.stats.events.push_seldom(Kind::TableFull, "udp", "the longest idle mapping makes room") {
                let capacity = self.mappings.capacity();
                log::warn!(
                    "the table of UDP mappings is full: the longest idle of {capacity} makes room for the newest"
                );
            }
            self.close(oldest, CloseReason::Evicted, cx);
        }
        let mapping = Mapping {
            client: endpoint,
            orig_dst: orig_dst.into(),
            socket: None,
            control: None,
            dial: Key::NONE,
            waiting: None,
            waiting_count: 0,
            stage: Stage::Resolving,
            only_dns: true,
            queued: false,
            outbound,
            via: outbound,
            single,
            listener: cx.listener,
            rule,
            measure,
            name: name.and_then(|name| cx.names.insert(name)),
            started: cx.now,
            active: cx.now,
            bytes_up: 0,
            bytes_down: 0,
        };
        let key = match self.mappings.insert(mapping) {
            Ok(key) => key,
            Err(mapping) => {
                cx.give_back(mapping.measure);
                cx.shares.give_back(share);
                return None;
            }
        };
        match self.shares.get_mut(usize::from(key.slot)) {
            Some(vacant) => *vacant = share,
            // slots are taken in order
            None => self.shares.push(share),
        }
        cx.stats.udp.total += 1;
        cx.stats.clients.begin(client.ip(), cx.now.0);
        cx.outbounds.get_mut(outbound).sessions += 1;
        self.index.insert(hash, key.slot);
        self.lru.touch(key.slot);
        self.choose(key, &Tried::new(), cx);
        self.mappings.get(key).map(|_| key)
    }

    /// Chooses the way of a mapping, and starts to open it; false if there is none but for those in `tried`.
    pub(in crate::session) fn choose(&mut self, key: Key, tried: &Tried, cx: &mut Cx<'_>) -> bool {
        let Some(mapping) = self.mappings.get_mut(key) else { return true };
        let chosen = cx.outbounds.choose(mapping.outbound, Proto::Udp, tried, cx.resolver, cx.now);
        let Chosen::Via(via) = chosen else { return false };
        mapping.leave(cx);
        mapping.via = via;
        #[cfg(feature = "shadowsocks")]
        self.sealed.end(key.slot);
        if via != mapping.outbound {
            cx.outbounds.get_mut(via).sessions += 1;
        }
        self.reach(key, cx);
        true
    }

    /// Starts to open the way out of a mapping that has none yet. It may be closed afterwards.
    pub(in crate::session) fn reach(&mut self, key: Key, cx: &mut Cx<'_>) {
        let Some(mapping) = self.mappings.get(key) else { return };
        match cx.outbounds.get(mapping.via).way {
            Way::Direct => self.reach_by(key, cx, |outbound, cx, mapping| {
                open_outside(mapping.client.address(), Owner::Udp(key, Side::Near), outbound, cx)
            }),
            Way::Forward { .. } => fixed::reach(self, key, cx),
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { .. } => fixed::reach(self, key, cx),
            // HTTP never gets here: `udp_outbound` has taken its place when the flow was decided
            Way::Http { .. } | Way::Group { .. } | Way::Socks5 { .. } => association::set_out(self, key, cx),
        }
    }

    /// Makes the mapping ready with the socket that `open` gives. Where descriptors have run out, the longest idle mapping
    /// gives one up.
    pub(in crate::session) fn reach_by(
        &mut self,
        key: Key,
        cx: &mut Cx<'_>,
        open: impl Fn(&Outbound, &Cx<'_>, &Mapping) -> io::Result<OwnedFd>,
    ) {
        let Some(mapping) = self.mappings.get(key) else { return };
        let mut opened = open(cx.outbounds.get(mapping.via), cx, mapping);
        if matches!(&opened, Err(e) if sys::out_of_resources(e))
            && let Some(oldest) = self.lru.oldest().filter(|slot| *slot != key.slot)
            && let Some(oldest) = self.mappings.key_at(oldest)
        {
            cx.stats.udp.evicted += 1;
            self.close(oldest, CloseReason::Evicted, cx);
            let Some(mapping) = self.mappings.get(key) else { return };
            opened = open(cx.outbounds.get(mapping.via), cx, mapping);
        }
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        match opened {
            Ok(fd) => {
                let timeout = cx.outbounds.get(mapping.via).udp_timeout.min(DNS_TIMEOUT);
                self.timers.set(key.slot, cx.now.after(timeout));
                mapping.socket = Some(fd);
                mapping.stage = Stage::Ready;
                self.dials.remove(mapping.dial);
                mapping.dial = Key::NONE;
            }
            Err(e) if cx.outbounds.get(mapping.via).server().is_some() && !sys::out_of_resources(&e) => {
                association::fail(self, key, None, &Failure::Call("connect", e), cx);
            }
            Err(e) => {
                cx.stats.drop(Drop::NoDescriptor);
                cx.stats.udp.refused += 1;
                self.close(key, CloseReason::ServerFailed(e), cx);
            }
        }
    }
}

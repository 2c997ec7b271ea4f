//! The stage before dialling: which name the client asks for, where a rule needs it, and the verdict.
//!
//! Bytes are looked at where they lie, in the socket: nothing is taken, so nothing must be kept and passed on, no buffer
//! can run out, and the relay begins with the first byte as if nobody had looked.

use super::tcp::{SILENCE, Stage, Tcp};
use super::{CloseReason, Cx};
use crate::config::Target;
use crate::policy::{Flow, Proto};
use crate::proto::sniff::{Sniff, sniff};
use crate::stats::Drop;
use crate::store::slab::Key;
use crate::sys::socket;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Bytes of a stream that are looked at.
const SNIFFED_MAX: usize = 4096;

impl Tcp {
    /// Takes an accepted connection whose name decides, and looks for it.
    pub fn sniff(&mut self, fd: OwnedFd, flow: (SocketAddr, SocketAddr), cx: &mut Cx<'_>) {
        if let Some(key) = self.insert(fd, flow, 0, None, cx) {
            self.classify(key, None, cx);
        }
    }

    /// Decides where a session goes that was [inserted](Self::insert) and whose original destination is known, and sends it
    /// on its way; a name that was not told is looked for if a rule needs it.
    ///
    /// For what a client has sent before this and is for the far end, there is [`End::hold`](super::relay::End::hold).
    pub(super) fn classify(&mut self, key: Key, name: Option<&str>, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get(key) else { return };
        let (client, orig_dst) = (session.client.address(), session.orig_dst.address());
        let origin = session.near.borrow().map(|fd| cx.origins.of_connection(fd, client, cx.now)).unwrap_or_default();
        let flow = origin.of(Flow::new(Proto::Tcp, client, orig_dst));
        match name {
            None if cx.policy.needs_name(&flow) => {
                self.look_for_name(key, cx);
                self.look(key, cx);
            }
            name => self.decide(key, name, cx),
        }
    }

    fn look_for_name(&mut self, key: Key, cx: &mut Cx<'_>) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.stage = Stage::Sniffing;
            self.timers.set(key.slot, cx.now.after(cx.sniff_timeout));
        }
    }

    /// Bytes may have come in which a name is looked for.
    pub(super) fn look(&mut self, key: Key, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(fd) = session.near.borrow() else { return };
        let mut bytes = [0; SNIFFED_MAX];
        let seen = match socket::peek(fd, &mut bytes) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Err(e) => return self.close(key, CloseReason::ClientFailed(e), cx),
        };
        match sniff(&bytes[..seen]) {
            Sniff::Name(name) => self.decide(key, Some(name.as_str()), cx),
            Sniff::More if seen > 0 && seen < SNIFFED_MAX && !session.near.is_read_closed() => {}
            Sniff::More | Sniff::Unknown => self.decide_without_name(key, cx),
        }
    }

    /// The name was not found, or not in time.
    pub(super) fn decide_without_name(&mut self, key: Key, cx: &mut Cx<'_>) {
        cx.stats.nameless += 1;
        self.decide(key, None, cx);
    }

    /// Ends the sessions that the rules, which have changed, send elsewhere; returns how many.
    pub fn reclassify(&mut self, cx: &mut Cx<'_>) -> usize {
        let mut ended = 0;
        for slot in 0..self.sessions.touched() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if matches!(session.stage, Stage::Greeting(_) | Stage::Sniffing | Stage::Silent) {
                continue;
            }
            let (client, orig_dst) = (session.client.address(), session.orig_dst.address());
            let origin =
                session.near.borrow().map(|fd| cx.origins.of_connection(fd, client, cx.now)).unwrap_or_default();
            let name = session.name.as_ref().map(|name| cx.names.text(name));
            let flow = Flow { domain: name.as_deref(), ..Flow::new(Proto::Tcp, client, orig_dst) };
            let verdict = cx.policy.decide(&origin.of(flow));
            let Some((target, measure)) = cx.measured(&verdict, client) else { continue };
            cx.give_back(std::mem::replace(&mut session.measure, measure));
            let stays = match target {
                Target::Direct => session.outbound == 0,
                Target::Outbound(index) => session.outbound == index,
                Target::Reject | Target::Drop => false,
            };
            if stays {
                session.rule = verdict.rule;
                continue;
            }
            session.near.reset();
            session.far.reset();
            self.close(key, CloseReason::Reclassified, cx);
            ended += 1;
        }
        ended
    }

    fn decide(&mut self, key: Key, name: Option<&str>, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (client, orig_dst) = (session.client.address(), session.orig_dst.address());
        let origin = session.near.borrow().map(|fd| cx.origins.of_connection(fd, client, cx.now)).unwrap_or_default();
        let flow = origin.of(Flow::new(Proto::Tcp, client, orig_dst));
        let verdict = cx.policy.decide_and_count(&Flow { domain: name, ..flow });
        session.rule = verdict.rule;
        session.name = name.and_then(|name| cx.names.insert(name));
        let Some((target, measure)) = cx.measured(&verdict, client) else {
            cx.stats.tcp.refused += 1;
            self.tell_failure(key, true, cx);
            return self.close(key, CloseReason::Rejected, cx);
        };
        session.measure = measure;
        let target = match target {
            // without its name nobody would know where it was going
            _ if session.is_by_name() && session.name.is_none() => Target::Reject,
            Target::Direct if !session.may_go_itself() => Target::Reject,
            Target::Outbound(index) if !cx.outbounds.get(index).is_forward() && !session.may_go_itself() => {
                Target::Reject
            }
            target => target,
        };
        match target {
            Target::Direct => self.dial(key, cx),
            Target::Outbound(index) => {
                cx.outbounds.get_mut(session.outbound).sessions -= 1;
                cx.outbounds.get_mut(index).sessions += 1;
                session.outbound = index;
                self.dial(key, cx);
            }
            Target::Reject => {
                cx.stats.drop(Drop::ByRule);
                cx.stats.tcp.refused += 1;
                self.tell_failure(key, true, cx);
                self.close(key, CloseReason::Rejected, cx);
            }
            Target::Drop => {
                cx.stats.drop(Drop::ByRule);
                session.stage = Stage::Silent;
                self.timers.set(key.slot, cx.now.after(SILENCE));
            }
        }
    }
}

//! How sessions end: past their deadline, on demand, or because there is no more to say.

use super::{NO_WAY, Stage, Tcp, View};
use crate::policy::By;
use crate::session::dial::{Dial, Failure};
use crate::session::greet::Greeting;
use crate::session::metered::Measure;
use crate::session::outbound::Tried;
use crate::session::{CloseReason, Cx, Seconds};
use crate::store::shares::Share;
use crate::store::slab::Key;

impl Tcp {
    /// Ends what has passed its deadline.
    pub fn expire(&mut self, cx: &mut Cx<'_>) {
        while let Some(slot) = self.timers.expired(cx.now) {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let Some(session) = self.sessions.get(key) else { continue };
            let outbound = cx.outbounds.get(session.via);
            match session.stage {
                Stage::Relaying => {
                    let idle_timeout = outbound.idle_timeout;
                    if cx.now.reached(session.active.after(idle_timeout)) {
                        self.close(key, CloseReason::Idle, cx);
                    } else if let Some(session) = self.sessions.get_mut(key) {
                        if std::mem::take(&mut session.starved) && !session.queued {
                            session.queued = true;
                            self.queue.push_back(key);
                        }
                        self.timers.set(slot, session.look_after(idle_timeout, cx));
                    }
                }
                Stage::Dialling => {
                    let awaits = self.dials.get(session.dial).map_or("connect", Dial::awaits);
                    self.retry(key, Failure::TimedOut(outbound.connect_timeout, awaits), cx);
                }
                Stage::Resolving => self.fail(key, None, &Failure::NoAddress, Tried::new(), cx),
                Stage::Sniffing => self.decide_without_name(key, cx),
                Stage::Greeting(_) => self.refuse_greeting(key, cx),
                Stage::Silent => {
                    session.near.reset();
                    self.close(key, CloseReason::Dropped, cx);
                }
            }
        }
    }

    /// Ends all sessions.
    pub fn close_all(&mut self, cx: &mut Cx<'_>) {
        for slot in 0..self.sessions.touched() {
            if let Some(key) = self.sessions.key_at(slot) {
                self.close(key, CloseReason::Stopping, cx);
            }
        }
    }

    /// Ends the session of this [`View::id`], or all of a client; returns how many.
    pub fn kick(&mut self, which: impl Fn(&View) -> bool, cx: &mut Cx<'_>) -> usize {
        self.end(which, || CloseReason::Kicked, cx)
    }

    /// Ends the sessions that `which` picks, for this reason; returns how many.
    pub fn end(&mut self, which: impl Fn(&View) -> bool, reason: impl Fn() -> CloseReason, cx: &mut Cx<'_>) -> usize {
        let mut count = 0;
        for slot in 0..self.sessions.touched() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let Some(session) = self.sessions.get(key) else { continue };
            if which(&session.view(key)) {
                session.near.reset();
                session.far.reset();
                self.close(key, reason(), cx);
                count += 1;
            }
        }
        count
    }

    pub(in crate::session) fn close(&mut self, key: Key, reason: CloseReason, cx: &mut Cx<'_>) {
        let Some(mut session) = self.sessions.remove(key) else { return };
        self.ended = true;
        if session.stage == Stage::Greeting(Greeting::Socks5Associated) {
            cx.associated.end(session.client.ip(), session.listener);
        }
        self.timers.clear(key.slot);
        self.dials.remove(session.dial);
        #[cfg(feature = "shadowsocks")]
        if let Some(sealed) = self.sealed.remove(session.sealed) {
            sealed.release(cx.pool);
        }
        session.near.release(cx.pool, cx.pipes);
        session.far.release(cx.pool, cx.pipes);
        if let Some(name) = session.name.take() {
            cx.names.remove(name);
        }
        session.leave(cx);
        cx.shares.give_back(std::mem::replace(&mut session.share, Share::NONE));
        cx.give_back(std::mem::replace(&mut session.measure, Measure::NONE));
        if session.via != session.outbound && session.via != NO_WAY {
            let via = cx.outbounds.get_mut(session.via);
            via.bytes_up += session.far.sent;
            via.bytes_down += session.near.sent;
        }
        let outbound = cx.outbounds.get_mut(session.outbound);
        outbound.sessions -= 1;
        outbound.bytes_up += session.far.sent;
        outbound.bytes_down += session.near.sent;
        let client = session.client.address().ip();
        cx.stats.clients.end(client, session.far.sent, session.near.sent, cx.now.0);
        log::debug!(
            "tcp {} -> {} via '{}' {}: {reason}, up {} bytes, down {} bytes, {} s",
            session.client,
            session.orig_dst,
            outbound.name,
            By(session.rule),
            session.far.sent,
            session.near.sent,
            Seconds(cx.now.since(session.started)),
        );
    }
}

//! One session for itself: what it asks of its way out, what is due while it lives, what it looks like to people.

use super::{KEEPALIVE_AFTER, NO_WAY, PIPE_IDLE, Session, Stage};
use crate::proto::socks5::Command;
use crate::session::Cx;
use crate::session::dial::{self, Ask};
use crate::store::slab::Key;
use crate::store::timers::Tick;
use std::net::SocketAddr;
use std::time::Duration;

/// What `sessions` shows of one.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Names it for `kick`.
    pub id: u32,
    /// Who began it.
    pub client: SocketAddr,
    /// Where it was going.
    pub orig_dst: SocketAddr,
    /// Index of the outbound that carries it.
    pub outbound: u16,
    /// Index of the one that the rules say, which may be a group.
    pub group: u16,
    /// Place of the listener that took it.
    pub listener: u8,
    /// Number of the rule that decided.
    pub rule: Option<u16>,
    /// When it began.
    pub started: Tick,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// `resolving`, `dialling`, `relaying`, `dropped`, `failed`.
    pub state: &'static str,
}

impl Session {
    /// Takes it off the count of the member that it went by.
    pub(super) fn leave(&self, cx: &mut Cx<'_>) {
        if self.via != NO_WAY && self.via != self.outbound {
            cx.outbounds.get_mut(self.via).sessions -= 1;
        }
    }

    /// What is asked of its outbound.
    pub(super) fn ask<'n>(&self, name: Option<&'n str>) -> Ask<'n> {
        let (client, target) = (self.client.address(), self.orig_dst.address());
        Ask { command: Command::Connect, client, target, name }
    }

    /// Does what is due for a session that lives on, and says when to look again.
    pub(super) fn look_after(&mut self, idle_timeout: Duration, cx: &mut Cx<'_>) -> Tick {
        let pipes_idle_at = self.active.after(PIPE_IDLE);
        if self.pipes_watched && cx.now.reached(pipes_idle_at) {
            self.near.release_pipe(cx.pipes);
            self.far.release_pipe(cx.pipes);
            self.pipes_watched = false;
        }
        if !self.kept_alive && cx.now.since(self.started) >= KEEPALIVE_AFTER {
            self.kept_alive = true;
            if let Some(fd) = self.far.borrow() {
                dial::set_keepalive_or_warn(fd);
            }
        }
        let idle_at = self.active.after(idle_timeout);
        match (self.pipes_watched, self.kept_alive) {
            (true, _) => idle_at.earlier(cx.now.after(PIPE_IDLE)),
            (false, false) => idle_at.earlier(self.started.after(KEEPALIVE_AFTER)),
            (false, true) => idle_at,
        }
    }

    pub(super) fn view(&self, key: Key) -> View {
        View {
            id: u32::from(key.generation) << 16 | u32::from(key.slot),
            client: self.client.address(),
            orig_dst: self.orig_dst.address(),
            outbound: if self.via == NO_WAY { self.outbound } else { self.via },
            group: self.outbound,
            listener: self.listener,
            rule: self.rule,
            started: self.started,
            bytes_up: self.far.sent,
            bytes_down: self.near.sent,
            state: match self.stage {
                Stage::Greeting(_) => "greeting",
                Stage::Sniffing => "sniffing",
                Stage::Resolving => "resolving",
                Stage::Dialling => "dialling",
                Stage::Relaying => "relaying",
                Stage::Silent => "dropped",
            },
        }
    }
}

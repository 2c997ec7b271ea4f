//! Rules that limit what a client moves: what measures a flow, what it lets pass, and the end of flows whose quota is used up.

use super::tcp::Tcp;
use super::udp::Udp;
use super::{CloseReason, Cx};
use crate::config::{Quota, Target};
use crate::policy::Verdict;
use crate::stats::Drop;
use crate::stats::events::Kind;
use crate::store::meters::{Allowance, Meter};
use crate::store::quotas::{Account, Grant, Taken};
use std::net::{IpAddr, SocketAddr};

/// What measures a flow: its rate, and what its client has used of a quota.
#[derive(Debug, PartialEq, Eq)]
pub struct Measure {
    /// Of `option rate`.
    pub rate: Meter,
    /// Of `option quota`.
    pub quota: Account,
}

impl Measure {
    /// Nothing does.
    pub const NONE: Measure = Measure { rate: Meter::NONE, quota: Account::NONE };

    /// Whether anything does.
    pub fn is_some(&self) -> bool {
        self.rate.is_some() || self.quota.is_some()
    }
}

/// The quota of a rule, as the accounts want it.
pub fn grant(rule: u64, quota: &Quota) -> Grant {
    Grant { rule, bytes: quota.bytes, monthly: quota.monthly }
}

impl Cx<'_> {
    /// Where a flow of `client` goes, and what measures it; `None`: its rule limits it, and there is nothing to measure it
    /// with.
    #[inline]
    pub fn measured(&mut self, verdict: &Verdict, client: SocketAddr) -> Option<(Target, Measure)> {
        match verdict.limits {
            None => Some((verdict.target, Measure::NONE)),
            Some(_) => self.measure(verdict, client),
        }
    }

    #[inline(never)]
    fn measure(&mut self, verdict: &Verdict, client: SocketAddr) -> Option<(Target, Measure)> {
        let limits = verdict.limits?;
        let refuses = |target| matches!(target, Target::Reject | Target::Drop);
        if refuses(verdict.target) {
            return Some((verdict.target, Measure::NONE));
        }
        let ip = client.ip();
        let mac = self.origins.mac_of(ip, self.now);
        let (mut target, mut quota) = (verdict.target, Account::NONE);
        if let Some(of) = limits.quota {
            match self.quotas.take(grant(limits.rule, &of), ip, mac) {
                Taken::Within(account) => quota = account,
                Taken::UsedUp if refuses(of.outbound) => return Some((of.outbound, Measure::NONE)),
                Taken::UsedUp => target = of.outbound,
                Taken::Full => return self.unmeasured(ip, "quota", self.quotas.usage().1),
            }
        }
        let Some(rate) = limits.rate else { return Some((target, Measure { rate: Meter::NONE, quota })) };
        match self.meters.take(Allowance { rule: limits.rule, rate }, ip, mac, self.now) {
            Some(rate) => Some((target, Measure { rate, quota })),
            None => {
                self.quotas.give_back(quota);
                self.unmeasured(ip, "rate", self.meters.usage().1)
            }
        }
    }

    fn unmeasured<T>(&mut self, ip: IpAddr, option: &str, most: usize) -> Option<T> {
        self.stats.drop(Drop::Unmeasured);
        let detail = format_args!("{ip} is one too many for rules with {option}");
        if self.stats.events.push_seldom(Kind::TableFull, option, detail) {
            log::warn!("rules with {option} have {most} clients, and no more fit: new flows of {ip} are refused");
        }
        None
    }

    /// Bytes that a stream may move in its turn, up and down.
    pub(super) fn turns(&mut self, measure: &Measure, most: u64) -> (u64, u64) {
        self.meters.turns(&measure.rate, most, self.now)
    }

    /// A stream has moved so many bytes.
    pub(super) fn moved(&mut self, measure: &Measure, up: u64, down: u64) {
        self.meters.moved(&measure.rate, up, down);
        self.quotas.count(&measure.quota, up + down);
    }

    /// Whether a datagram of so many bytes passes; one that does not is counted.
    #[inline]
    pub(super) fn admits(&mut self, measure: &Measure, is_up: bool, bytes: usize) -> bool {
        !measure.is_some() || self.admits_measured(measure, is_up, bytes)
    }

    #[inline(never)]
    fn admits_measured(&mut self, measure: &Measure, is_up: bool, bytes: usize) -> bool {
        let admitted = self.meters.admits(&measure.rate, is_up, bytes, self.now);
        if admitted {
            self.quotas.count(&measure.quota, bytes as u64);
        } else {
            self.stats.drop(Drop::Rate);
        }
        admitted
    }

    /// A flow that was measured has ended.
    pub(super) fn give_back(&mut self, measure: Measure) {
        self.meters.give_back(measure.rate);
        self.quotas.give_back(measure.quota);
    }

    /// Tells of quotas that are used up, and ends the flows that have used them: what begins from now on goes elsewhere.
    #[inline(never)]
    pub fn end_used_up(&mut self, tcp: &mut Tcp, udp: &mut Udp) {
        while let Some(used_up) = self.quotas.next_used_up() {
            let (ip, used) = (used_up.ip, used_up.used);
            if let Some(rule) = self.policy.limiting(used_up.rule) {
                let (number, name) = (rule.number, rule.name.as_deref().unwrap_or_default());
                self.stats.events.push(Kind::QuotaUsedUp, ip, format_args!("rule {number} '{name}': {used} bytes"));
                log::warn!("client {ip} has used up the quota of rule {number} '{name}': {used} bytes");
            }
            tcp.end_measured(used_up.slot, self);
            udp.end_measured(used_up.slot, self);
        }
    }
}

impl Tcp {
    fn end_measured(&mut self, account: u16, cx: &mut Cx<'_>) {
        for slot in 0..self.sessions.touched() {
            let Some(key) = self.sessions.key_at(slot) else { continue };
            let Some(session) = self.sessions.get(key) else { continue };
            if session.measure.quota.is_in(account) {
                session.near.reset();
                session.far.reset();
                self.close(key, CloseReason::QuotaUsedUp, cx);
            }
        }
    }
}

impl Udp {
    /// The next datagram of such a flow is decided anew.
    fn end_measured(&mut self, account: u16, cx: &mut Cx<'_>) {
        for slot in 0..self.mappings.touched() {
            let Some(key) = self.mappings.key_at(slot) else { continue };
            if self.mappings.get(key).is_some_and(|mapping| mapping.measure.quota.is_in(account)) {
                self.close(key, CloseReason::QuotaUsedUp, cx);
            }
        }
    }
}

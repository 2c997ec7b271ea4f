//! Rules that limit what a client moves: which meter a flow gets, and what it lets pass.

use super::Cx;
use crate::config::Target;
use crate::policy::Verdict;
use crate::stats::Drop;
use crate::stats::events::Kind;
use crate::store::meters::{Allowance, Meter};
use std::net::SocketAddr;

impl Cx<'_> {
    /// Where a flow of `client` goes, and what measures it; `None`: its rule limits it, and there is nothing to measure it
    /// with.
    #[inline]
    pub(super) fn measured(&mut self, verdict: &Verdict, client: SocketAddr) -> Option<(Target, Meter)> {
        match verdict.limits {
            None => Some((verdict.target, Meter::NONE)),
            Some(_) => self.measure(verdict, client),
        }
    }

    #[inline(never)]
    fn measure(&mut self, verdict: &Verdict, client: SocketAddr) -> Option<(Target, Meter)> {
        let limits = verdict.limits?;
        if matches!(verdict.target, Target::Reject | Target::Drop) {
            return Some((verdict.target, Meter::NONE));
        }
        let ip = client.ip();
        let mac = self.origins.mac_of(ip, self.now);
        let allowance = Allowance { rule: limits.rule, rate: limits.rate };
        let meter = self.meters.take(allowance, ip, mac, self.now);
        if meter.is_none() {
            self.stats.drop(Drop::Unmeasured);
            let detail = format_args!("{ip} is one too many for rules with rate");
            if self.stats.events.push_seldom(Kind::TableFull, "meters", detail) {
                let (_, most) = self.meters.usage();
                log::warn!("rules with rate have {most} clients, and no more fit: new flows of {ip} are refused");
            }
        }
        meter.map(|meter| (verdict.target, meter))
    }

    /// Whether a datagram of so many bytes passes; one that does not is counted.
    #[inline]
    pub(super) fn admits(&mut self, meter: &Meter, is_up: bool, bytes: usize) -> bool {
        let admitted = !meter.is_some() || self.meters.admits(meter, is_up, bytes, self.now);
        if !admitted {
            self.stats.drop(Drop::Rate);
        }
        admitted
    }
}

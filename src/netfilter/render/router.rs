//! What this machine itself sends, where a listener says `router '1'`.
//!
//! By tproxy: a chain of type route marks it, the policy route turns it round through the loopback device, and there
//! `prerouting` takes it like any live flow. By redirect: a nat chain at output. Only what begins here is asked for
//! (`ct direction original`): answers of this machine's services are nobody's business.

use super::verdicts::VERDICTS;
use super::{Active, LOOPBACK, Purpose, Script, TABLE, family_match, matches_mark, narrowing, redirecting, sets_mark};
use crate::config::Mode;

impl<'a> Script<'a> {
    /// The listeners of `mode` that take what the router sends. It has no MAC address.
    pub(super) fn of_router(&self, mode: Mode) -> Vec<usize> {
        let wants = |active: &Active<'_>| {
            active.listener.router && active.listener.mode == mode && active.listener.src_mac.plain.is_empty()
        };
        (0..self.active.len()).filter(|index| self.active.get(*index).is_some_and(wants)).collect()
    }

    pub(super) fn declare_router(&mut self) {
        for (mode, chain, base) in [
            (Mode::Tproxy, "routed", "type route hook output priority mangle".to_string()),
            (Mode::Redirect, "rerouted", format!("type nat hook output priority {}", redirecting::PRIORITY)),
        ] {
            let listeners = self.of_router(mode);
            if !listeners.is_empty() {
                self.line(format_args!("add chain inet {TABLE} {chain} {{ {base}; policy accept; }}"));
            }
            for index in listeners {
                let Some(name) = self.active.get(index).map(|active| &active.listener.name) else { continue };
                let line = format!("add chain inet {TABLE} router_{name}");
                self.line(format_args!("{line}"));
            }
        }
    }

    pub(super) fn router(&mut self) {
        let (by_tproxy, by_redirect) = (self.of_router(Mode::Tproxy), self.of_router(Mode::Redirect));
        let own = matches_mark("meta mark", self.cfg.globals.self_mark);
        let mark = self.cfg.globals.mark;
        if !by_tproxy.is_empty() {
            let packets = matches_mark("meta mark", mark);
            if self.purpose == Purpose::Run {
                let back = format!(r#"iifname "{LOOPBACK}" {packets} meta l4proto {{ tcp, udp }} goto live"#);
                self.rule("prerouting", back);
            }
            self.rule("routed", format_args!(r#"{own} return comment "self_mark""#));
            self.rule("routed", "meta l4proto != { tcp, udp } return");
            self.rule("routed", "ct direction reply return");
            if self.by(Mode::Redirect).next().is_some() {
                self.rule("routed", r#"ct status dnat return comment "redirected""#);
            }
            if self.purpose == Purpose::Run {
                let (taken, take) = (matches_mark("ct mark", mark), sets_mark("meta mark", mark));
                self.rule("routed", format_args!(r#"{taken} {take} return comment "flows that we took before""#));
            }
            self.rule("routed", r#"ct state != new return comment "flows that began without us""#);
            self.ask_for_router("routed", &by_tproxy);
        }
        if !by_redirect.is_empty() {
            self.rule("rerouted", format_args!(r#"{own} return comment "self_mark""#));
            self.rule("rerouted", "meta l4proto != { tcp, udp } return");
            self.rule(
                "rerouted",
                format_args!(r#"{} return comment "taken by tproxy""#, matches_mark("meta mark", mark)),
            );
            self.ask_for_router("rerouted", &by_redirect);
        }
    }

    fn ask_for_router(&mut self, chain: &str, listeners: &[usize]) {
        self.exclusions(chain);
        if self.drops() {
            // Once nobody takes them they are dropped, and the router must be able to mend itself.
            self.rule(chain, r#"th dport { 53, 123 } return comment "DNS and NTP""#);
        }
        for index in listeners {
            let Some(active) = self.active.get(*index) else { continue };
            let own = format!("router_{}", active.listener.name);
            let mut rules = narrowing(self.cfg, active.listener, active.families);
            rules.retain(|rule| !rule.contains("ether saddr"));
            if self.decides() {
                rules.push(format!("jump {VERDICTS}"));
            }
            match (self.purpose, active.listener.mode) {
                (Purpose::Block, _) => rules.push(r#"drop comment "on_failure block""#.into()),
                (Purpose::Run, Mode::Tproxy) => {
                    let mark = self.cfg.globals.mark;
                    rules.push(format!("{} {} accept", sets_mark("ct mark", mark), sets_mark("meta mark", mark)));
                }
                (Purpose::Run, _) => {
                    for v4 in [true, false].into_iter().filter(|v4| active.takes(*v4)) {
                        rules.push(format!(
                            "{} meta l4proto {{ tcp, udp }} {}",
                            family_match(v4),
                            self.redirect(active, v4)
                        ));
                    }
                }
            }
            self.rule(chain, format_args!("jump {own}"));
            for rule in rules {
                self.rule(&own, rule);
            }
        }
    }
}

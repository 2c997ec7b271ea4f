//! Flows that the kernel lets pass by itself ask the rules again: at the boundary of a rule with hours, else the game simply
//! goes on, and after a reload with `option reclassify`. Without either there is nothing of this.
//!
//! A flow that the rules let pass gets both bits of our marks in its connection tracking entry (where these leave such a
//! value). So a TCP connection that is for the process now can be told from one that began before us, which lives on: it is
//! reset, and its client comes again. Of UDP the helper deletes the entries, and the next datagram begins a new flow.
//!
//! Rules with hours ask each packet, marked or not, as a daemon that was started anew must end what began before it;
//! `reclassify` asks marked flows only. An offloaded flow does not come by here: the helper has it come (`netfilter::offload`).

use super::narrowing::narrowing;
use super::verdicts::VERDICTS;
use super::{Purpose, Script, TABLE, differs_from_mark, matches_mark, sets_mark};
use crate::config::{Config, Mark};

/// What the entry of such a flow carries; `None` if nothing is asked again, or the marks of the configuration leave no value.
pub fn decided_mark(cfg: &Config) -> Option<Mark> {
    let (mark, own) = (cfg.globals.mark, cfg.globals.self_mark);
    let value = mark.value | own.value;
    let apart = mark.mask == own.mask && value != mark.value && value != own.value;
    let wanted = cfg.globals.kernel_verdicts && (cfg.globals.reclassify || cfg.has_hours());
    (wanted && apart).then_some(Mark { value, mask: mark.mask })
}

impl Script<'_> {
    fn asks_again(&self) -> bool {
        let wanted = self.cfg.has_hours() || self.decided_mark().is_some();
        wanted && self.decides() && self.purpose == Purpose::Run
    }

    fn decided_mark(&self) -> Option<Mark> {
        decided_mark(self.cfg).filter(|_| self.purpose == Purpose::Run && self.decides())
    }

    pub(super) fn declare_again(&mut self) {
        if !self.asks_again() {
            return;
        }
        self.line(format_args!("add chain inet {TABLE} {AGAIN}"));
        for index in 0..self.active.len() {
            self.line(format_args!("add chain inet {TABLE} {}", self.chain_of(index)));
        }
    }

    /// In front of what takes new flows.
    pub(super) fn ask_again(&mut self) {
        if !self.asks_again() {
            return;
        }
        let mut devices: Vec<&str> = Vec::new();
        for name in self.active.iter().flat_map(|active| active.devices.iter().copied()) {
            if !devices.contains(&name) {
                devices.push(name);
            }
        }
        let decided = self.decided_mark().map(|mark| matches_mark("ct mark", mark));
        // the process ends its own
        let not_taken = differs_from_mark("ct mark", self.cfg.globals.mark);
        let asked = match &decided {
            Some(decided) if !self.cfg.has_hours() => decided,
            _ => &not_taken,
        };
        for name in devices {
            let live = format!("meta l4proto {{ tcp, udp }} {asked} ct direction original");
            self.rule("prerouting", format_args!(r#"iifname "{name}" {live} jump {AGAIN}"#));
        }
        let own = matches_mark("meta mark", self.cfg.globals.self_mark);
        for line in [
            &*format!(r#"{own} return comment "self_mark""#),
            r#"ct status dnat return comment "redirected, here or by the firewall""#,
            "ct state new meta l4proto udp return",
            "ct state new tcp flags & (fin | syn | rst | ack) == syn return",
        ] {
            self.rule(AGAIN, line);
        }
        self.places_passed_by(AGAIN);
        for index in 0..self.active.len() {
            let chain = self.chain_of(index);
            let Some(active) = self.active.get(index) else { continue };
            let jumps: Vec<String> =
                active.devices.iter().map(|name| format!(r#"iifname "{name}" jump {chain}"#)).collect();
            let mut rules = narrowing(self.cfg, active.listener, active.families);
            rules.push(format!("jump {VERDICTS}"));
            if let Some(decided) = &decided {
                // the client's own reset goes on to the server
                let closes = "tcp flags & rst != rst";
                let end = if self.facts.early_reject { "reject with tcp reset" } else { "drop" };
                rules.push(format!(r#"{decided} {closes} {end} comment "it is for the process now""#));
            }
            jumps.iter().for_each(|jump| self.rule(AGAIN, jump));
            rules.iter().for_each(|rule| self.rule(&chain, rule));
        }
    }

    /// What follows an accepting verdict's match.
    pub(super) fn accept(&self) -> String {
        self.decided_mark().map_or_else(|| "accept".to_owned(), |mark| format!("{} accept", sets_mark("ct mark", mark)))
    }

    /// In a listener's chain, behind the verdicts: a datagram of a flow that was direct, and is for the process now, goes on
    /// until its entry is deleted.
    pub(super) fn pass_decided_by(&self) -> Option<String> {
        let mark = self.decided_mark()?;
        Some(format!("{} meta l4proto udp return", matches_mark("ct mark", mark)))
    }

    fn chain_of(&self, index: usize) -> String {
        self.active.get(index).map_or_else(String::new, |active| format!("{AGAIN}_{}", active.listener.name))
    }
}

const AGAIN: &str = "again";

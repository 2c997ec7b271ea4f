//! Where the time of day decides: a flow that the kernel lets pass by itself must end when its hour has come, or the game
//! simply goes on. So the packets of live flows ask the rules again, each of them; in a configuration without hours none.

use super::narrowing::narrowing;
use super::verdicts::VERDICTS;
use super::{Purpose, Script, TABLE, matches_mark};

impl Script<'_> {
    fn has_hours(&self) -> bool {
        let timed = self.cfg.rules.iter().any(|rule| rule.active && rule.schedule.is_some());
        timed && self.decides() && self.purpose == Purpose::Run
    }

    pub(super) fn declare_hours(&mut self) {
        if !self.has_hours() {
            return;
        }
        self.line(format_args!("add chain inet {TABLE} {AGAIN}"));
        for index in 0..self.active.len() {
            self.line(format_args!("add chain inet {TABLE} {}", self.again(index)));
        }
    }

    /// In front of what takes new flows. What comes back out of [`VERDICTS`] is for the process, or was before us: it lives on.
    pub(super) fn hours(&mut self) {
        if !self.has_hours() {
            return;
        }
        let mut devices: Vec<&str> = Vec::new();
        for name in self.active.iter().flat_map(|active| active.devices.iter().copied()) {
            if !devices.contains(&name) {
                devices.push(name);
            }
        }
        for name in devices {
            let live = "meta l4proto { tcp, udp } ct direction original";
            self.rule("prerouting", format_args!(r#"iifname "{name}" {live} jump {AGAIN}"#));
        }
        let own = matches_mark("meta mark", self.cfg.globals.self_mark);
        let taken = matches_mark("ct mark", self.cfg.globals.mark);
        for line in [
            &*format!(r#"{own} return comment "self_mark""#),
            &*format!(r#"{taken} return comment "the process ends its own""#),
            r#"ct status dnat return comment "redirected, here or by the firewall""#,
            "ct state new meta l4proto udp return",
            "ct state new tcp flags & (fin | syn | rst | ack) == syn return",
        ] {
            self.rule(AGAIN, line);
        }
        self.places_passed_by(AGAIN);
        for index in 0..self.active.len() {
            let chain = self.again(index);
            let Some(active) = self.active.get(index) else { continue };
            let jumps: Vec<String> =
                active.devices.iter().map(|name| format!(r#"iifname "{name}" jump {chain}"#)).collect();
            let mut rules = narrowing(self.cfg, active.listener, active.families);
            rules.push(format!("jump {VERDICTS}"));
            jumps.iter().for_each(|jump| self.rule(AGAIN, jump));
            rules.iter().for_each(|rule| self.rule(&chain, rule));
        }
    }

    fn again(&self, index: usize) -> String {
        self.active.get(index).map_or_else(String::new, |active| format!("{AGAIN}_{}", active.listener.name))
    }
}

const AGAIN: &str = "again";

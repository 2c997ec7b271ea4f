//! Outbounds that keep the client's own address: the way back of what we send in its name.
//!
//! A socket match at prerouting would do for TCP, and steal other clients' UDP. So the flow is marked in connection tracking
//! when it leaves, and its answers are turned round by that mark, as intercepted packets are, before any other rule.

use super::{Purpose, Script, matches_mark, sets_mark};

impl Script<'_> {
    pub(super) fn keeps_sources(&self) -> bool {
        self.purpose == Purpose::Run && self.cfg.outbounds.iter().any(|outbound| outbound.keep_source)
    }

    pub(super) fn answers_to_kept_sources(&mut self) {
        if self.keeps_sources() {
            let ours = matches_mark("ct mark", self.cfg.globals.self_mark);
            let back = sets_mark("meta mark", self.cfg.globals.mark);
            self.rule("prerouting", format_args!(r#"{ours} ct direction reply {back} accept comment "keep_source""#));
        }
    }

    /// What leaves in a client's name. Towards the clients we speak in the servers' names, which [`Script::output`] sees to.
    pub(super) fn kept_sources(&mut self) -> bool {
        if !self.keeps_sources() {
            return false;
        }
        let own = matches_mark("meta mark", self.cfg.globals.self_mark);
        let (taken, kept) =
            (sets_mark("ct mark", self.cfg.globals.mark), sets_mark("ct mark", self.cfg.globals.self_mark));
        let foreign = "ct state new fib saddr type != local";
        let mut devices: Vec<String> = Vec::new();
        for name in self.active.iter().flat_map(|active| &active.devices) {
            if !devices.iter().any(|known| known == name) {
                devices.push((*name).to_string());
            }
        }
        for name in devices {
            let rule = format!(
                r#"meta l4proto udp {own} oifname "{name}" {foreign} {taken} return comment "in others' names""#
            );
            self.rule("output", rule);
        }
        self.rule(
            "output",
            format_args!(r#"{own} meta l4proto {{ tcp, udp }} {foreign} {kept} comment "keep_source""#),
        );
        true
    }
}

//! A router on one arm: the clients' gateway is this box, and its own way out is by the device that they came in on.
//!
//! What is forwarded there, because it is excluded or by a verdict of the kernel, would be answered past us: connection
//! tracking would see half of it, and a firewall drop the rest as invalid. So it leaves in this router's name. And the kernel
//! would tell the clients of the shorter way, by which nothing would come to us any more.

use super::{ON_LINK4, ON_LINK6, Purpose, Script, TABLE};
use crate::netfilter::links::device_matches;

impl Script<'_> {
    /// Listeners' devices that default routes lead out by.
    pub(super) fn arms(&self) -> Vec<String> {
        let listened = |name: &&String| {
            self.active.iter().flat_map(|active| &active.devices).any(|pattern| device_matches(pattern, name))
        };
        let run = self.purpose == Purpose::Run;
        self.facts.ways_out.iter().filter(|name| run && listened(name)).cloned().collect()
    }

    pub(super) fn declare_one_arm(&mut self) {
        if !self.arms().is_empty() {
            self.line(format_args!(
                "add chain inet {TABLE} srcnat {{ type nat hook postrouting priority srcnat; policy accept; }}"
            ));
        }
    }

    pub(super) fn one_arm(&mut self) {
        for name in self.arms() {
            let there_and_back = format!(r#"iifname "{name}" oifname "{name}""#);
            for (ip, set) in [("ip", ON_LINK4), ("ip6", ON_LINK6)] {
                let rule = format!(r#"{there_and_back} {ip} daddr != @{set} masquerade comment "one arm""#);
                self.rule("srcnat", rule);
            }
            for redirect in ["icmp type redirect", "icmpv6 type nd-redirect"] {
                self.rule("output", format_args!(r#"oifname "{name}" {redirect} drop comment "one arm""#));
            }
        }
    }
}

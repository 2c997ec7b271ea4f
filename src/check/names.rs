//! `option dnsmasq`: whether a dnsmasq runs that can note the addresses of names.

use super::{Finding, Findings};
use crate::config::Config;
use crate::netfilter::dnsmasq;

pub(super) fn check(findings: &mut Findings, cfg: &Config) {
    if !cfg.globals.dnsmasq {
        return;
    }
    let running = dnsmasq::instances();
    let (told, deaf): (Vec<_>, Vec<_>) = running.into_iter().partition(|instance| !instance.folders.is_empty());
    if let Some(unable) = told.iter().find(|instance| !instance.knows_nftset()) {
        let text =
            format!("dnsmasq (process {}) was built without nftset: no rule knows a name by it", unable.process_id);
        let mend = "opkg update; opkg remove dnsmasq; opkg install dnsmasq-full";
        findings.push(Finding::fail("dnsmasq", text, mend));
    } else if !told.is_empty() {
        findings.push(Finding::ok("dnsmasq", "dnsmasq notes the addresses of the rules' names"));
    } else if let Some(instance) = deaf.first() {
        let text = format!("dnsmasq (process {}) has no conf-dir, so it is told of no names", instance.process_id);
        let mend = "add `conf-dir=/etc/dnsmasq.d/,*.conf` to its configuration, and restart it";
        findings.push(Finding::warn("dnsmasq", text, mend));
    } else {
        let text = "no dnsmasq runs here: rules with `domain` match nothing by address";
        findings.push(Finding::warn("dnsmasq", text, "/etc/init.d/dnsmasq start; tproxyd reload"));
    }
    if !cfg.globals.kernel_verdicts {
        let text = "`option dnsmasq` does nothing without kernel_verdicts: names are looked for in what clients send";
        findings.push(Finding::warn("dnsmasq", text, "uci set tproxyd.globals.kernel_verdicts=1"));
    }
}

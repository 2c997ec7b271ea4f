//! Policy rules of others (mwan3, pbr, Tailscale, VPNs) that would take our packets, or whose marks share our bits.

use super::{Finding, Findings};
use crate::config::Config;
use crate::netfilter::Installation;
use crate::netfilter::routes::{self, RuleLine};

pub(super) fn check(findings: &mut Findings, cfg: &Config) {
    let routes = Installation::new(&cfg.globals).routes;
    match routes.clashes() {
        Ok(clashes) if clashes.is_empty() => {
            let text =
                format!("routing table {} and rule priority {} are free, or ours", routes.table, routes.priority);
            findings.push(Finding::ok("routes", text));
        }
        Ok(clashes) => {
            let mend = "set `option table` and `option rule_priority` to what `ip rule` does not show";
            findings.extend(clashes.into_iter().map(|clash| Finding::fail("routes", clash, mend)));
        }
        Err(error) => findings.push(Finding::of("routes", super::Severity::Fail, &error)),
    }
    let ours = |rule: &RuleLine| rule.priority == routes.priority && rule.table == routes.table;
    for rule in routes::rules().unwrap_or_default().iter().filter(|rule| !ours(rule)) {
        look(findings, cfg, rule);
    }
}

fn look(findings: &mut Findings, cfg: &Config, rule: &RuleLine) {
    let globals = &cfg.globals;
    let RuleLine { v4, priority, mark, mask, table, more } = *rule;
    let family = if v4 { "" } else { " -6" };
    let bits = globals.mark.mask | globals.self_mark.mask;
    // the table of local addresses comes first everywhere; main and default are last
    let is_usual = matches!((priority, table), (0, LOCAL) | (32_766, MAIN) | (32_767, DEFAULT));
    if mask & bits != 0 {
        let text = format!(
            "`ip{family} rule` {priority} (fwmark {mark:#x}/{mask:#x}) uses bits that are ours, {:#x}",
            mask & bits
        );
        let mend =
            "give `option mark` and `option self_mark` bits that no `ip rule` shows, or change that program's mask";
        findings.push(Finding::fail("mark_bits", text, mend));
    }
    let takes_marked = mask & bits == 0 && (mask == 0 || globals.mark.value & mask == mark);
    if priority < globals.rule_priority && takes_marked && !is_usual && !more {
        let text = format!(
            "`ip{family} rule` {priority} comes before ours ({}) and takes every packet to table {table}",
            globals.rule_priority
        );
        let mend = format!("set `option rule_priority` below {priority}");
        findings.push(Finding::fail("rule_order", text, mend));
    }
}

const LOCAL: u32 = 255;
const MAIN: u32 = 254;
const DEFAULT: u32 = 253;

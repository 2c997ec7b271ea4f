//! Other people's rules: what keeps packets from the process, what relayed flows pass by, who else intercepts.

use super::ruleset::{self, Chain};
use super::system::Root;
use super::{Finding, Findings};
use crate::config::{Config, Mark};
use crate::netfilter::offload;

pub(super) fn check(findings: &mut Findings, cfg: &Config, devices: &[String], root: &Root) {
    match ruleset::read() {
        Some((chains, flowtable)) => {
            look(findings, cfg, devices, &chains);
            offloaded(findings, cfg, &chains, flowtable, offload::can_age(&root.0));
        }
        None => {
            let mend = "install nftables, and run this as root";
            findings.push(Finding::warn(
                "ruleset",
                "nft does not list the rules of others: they were not looked at",
                mend,
            ));
        }
    }
}

fn look(findings: &mut Findings, cfg: &Config, devices: &[String], chains: &[Chain]) {
    input(findings, cfg.globals.mark, chains);
    forward(findings, chains);
    masquerade(findings, devices, chains);
    foreign_marks(findings, cfg, chains);
    others_intercept(findings, chains);
}

fn offloaded(findings: &mut Findings, cfg: &Config, chains: &[Chain], flowtable: bool, can_age: bool) {
    if !flowtable && !chains.iter().any(|chain| chain.rules.iter().any(|rule| rule.contains("flow add @"))) {
        return;
    }
    let text = "flows are offloaded: those that were before tproxyd started pass by its rules until they end";
    findings.push(Finding::warn("flow_offload", text, "conntrack -F, once, after the start; new flows are caught"));
    if !can_age && cfg.globals.kernel_verdicts && (cfg.has_hours() || cfg.globals.reclassify) {
        let text = "flows are offloaded, and this kernel (before Linux 5.14) does not let them come back to the rules: at the \
                    boundary of a rule with hours, and after a reload with `reclassify`, they go on until they end";
        let mend = "uci set firewall.@defaults[0].flow_offloading=0; uci commit firewall; service firewall reload";
        findings.push(Finding::warn("flow_offload", text, mend));
    }
}

/// What TPROXY gives to the process goes through `input` with its original port: where that drops by default, our mark has
/// to be accepted (kernel.md section 3).
fn input(findings: &mut Findings, mark: Mark, chains: &[Chain]) {
    let accepts = |rule: &String| rule.contains("accept") && mentions(rule, mark);
    for base in chains.iter().filter(|chain| chain.hook == "input") {
        let of_table = |chain: &&Chain| chain.table == base.table;
        let reached: Vec<&Chain> = chains.iter().filter(of_table).collect();
        if reached.iter().any(|chain| chain.rules.iter().any(accepts)) {
            continue;
        }
        let rejects = |chain: &&&Chain| {
            let zone = chain.name == base.name || chain.name.starts_with("input");
            zone && chain
                .rules
                .iter()
                .any(|rule| rule.starts_with("reject") || rule.starts_with("drop") || zone_reject(rule))
        };
        if base.drops || reached.iter().any(|chain| rejects(&chain)) {
            let text = format!(
                "table {}: `{}` lets packets through by their port, and caught ones keep that of their destination",
                base.table, base.name
            );
            let mend = format!(
                "nft insert rule {} {} 'meta mark & {:#010x} == {:#010x} accept'; on OpenWrt: service firewall reload, \
                 which includes the package's rule",
                base.table, base.name, mark.mask, mark.value
            );
            findings.push(Finding::fail("input", text, mend));
        }
    }
}

/// fw4: `jump reject_from_guest`, `jump handle_reject`.
fn zone_reject(rule: &str) -> bool {
    rule.contains("jump reject_from_") || rule.contains("jump drop_from_")
}

/// The rule speaks of the bits of `mark`, in any of nft's ways to write it.
fn mentions(rule: &str, mark: Mark) -> bool {
    let of_mark = rule.split("mark").nth(1).unwrap_or_default();
    of_mark.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| number(word) == Some(mark.value))
}

fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// A relayed flow is one of the router's own: what the firewall refuses to forward does not stop it.
fn forward(findings: &mut Findings, chains: &[Chain]) {
    let refusing = |rule: &&String| {
        let verdict = ["drop", "reject", "jump handle_reject", "jump reject_to_", "jump drop_to_"];
        verdict.iter().any(|verdict| rule.contains(verdict)) && (rule.contains("daddr") || rule.contains("saddr"))
    };
    let of_forward = chains.iter().filter(|chain| chain.hook == "forward" || chain.name.starts_with("forward"));
    let rules: Vec<(&Chain, &String)> =
        of_forward.flat_map(|chain| chain.rules.iter().filter(refusing).map(move |rule| (chain, rule))).collect();
    for (chain, rule) in rules.iter().take(FORWARD_SHOWN) {
        let text = format!("relayed flows pass by a rule of {} {}: {rule}", chain.table, chain.name);
        let mend =
            "say it to tproxyd as well: config rule, option outbound 'reject', with the same addresses and ports";
        findings.push(Finding::warn("forward", text, mend));
    }
    if let Some(more) = rules.len().checked_sub(FORWARD_SHOWN).filter(|more| *more > 0) {
        findings.push(Finding::warn("forward", format!("and {more} more such rules"), "nft list ruleset"));
    }
}

/// A device behind which addresses are translated leads outside: nothing of ours comes in there.
fn masquerade(findings: &mut Findings, devices: &[String], chains: &[Chain]) {
    let translates = |rule: &str| rule.contains("masquerade") || rule.contains("snat ");
    for device in devices {
        let quoted = format!("\"{device}\"");
        let out_by = |rule: &&String| {
            rule.split("oifname")
                .nth(1)
                .or_else(|| rule.split("oif ").nth(1))
                .is_some_and(|rest| rest.contains(&quoted))
        };
        let here = |chain: &Chain| {
            chain.rules.iter().filter(out_by).any(|rule| {
                let target = rule.split("jump ").nth(1).and_then(|rest| rest.split(' ').next());
                let jumps = |other: &Chain| {
                    Some(other.name.as_str()) == target
                        && other.table == chain.table
                        && other.rules.iter().any(|rule| translates(rule))
                };
                translates(rule) || chains.iter().any(jumps)
            })
        };
        if chains.iter().any(here) {
            let text = format!(
                "a listener takes what comes in by {device}, behind which addresses are masqueraded: the internet?"
            );
            let mend = "name the device of the LAN in `list device` or `list network`";
            findings.push(Finding::fail("masqueraded_listener", text, mend));
        }
    }
}

/// Who sets the whole mark takes our bits away.
fn foreign_marks(findings: &mut Findings, cfg: &Config, chains: &[Chain]) {
    let bits = cfg.globals.mark.mask | cfg.globals.self_mark.mask;
    for chain in chains {
        for rule in &chain.rules {
            let Some(rest) = rule.split("meta mark set ").nth(1) else { continue };
            let value = rest.split(' ').next().and_then(number);
            let keeps = rest.starts_with("meta mark &") || rest.starts_with("mark &") || rest.starts_with("ct mark");
            if value.is_some() && !keeps && ["prerouting", "output"].contains(&chain.hook.as_str()) {
                let text = format!(
                    "{} {} sets the whole packet mark, and with it our bits {bits:#010x}: {rule}",
                    chain.table, chain.name
                );
                let mend = "have it set its own bits alone (meta mark set meta mark & ~MASK | VALUE)";
                findings.push(Finding::warn("foreign_marks", text, mend));
            }
        }
    }
}

fn others_intercept(findings: &mut Findings, chains: &[Chain]) {
    for chain in chains {
        if let Some(rule) = chain.rules.iter().find(|rule| rule.contains("tproxy ") && rule.contains("to ")) {
            let text = format!("{} {} intercepts by TPROXY, too: {rule}", chain.table, chain.name);
            let mend = format!("stop that program (nft delete table {}), or part their packets", chain.table);
            findings.push(Finding::warn("others_intercept", text, mend));
        }
    }
}

/// Rules of one kind that are named.
const FORWARD_SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{config, ids, parsed};

    fn found(ruleset: &str) -> Vec<&'static str> {
        let mut findings = Findings::new();
        let (chains, flowtable) = ruleset::parse(ruleset);
        look(&mut findings, &config(), &["br-lan".into(), "wan".into()], &chains);
        offloaded(&mut findings, &config(), &chains, flowtable, true);
        ids(&findings)
    }

    /// As fw4 writes it.
    const FW4: &str = r#"
table inet fw4 {
	chain input {
		type filter hook input priority filter; policy drop;
		RULE
		iif "lo" accept comment "!fw4: Accept traffic from loopback"
		iifname "br-lan" jump input_lan comment "!fw4: Handle lan IPv4/IPv6 input traffic"
	}
	chain input_lan {
		jump accept_from_lan
	}
	chain srcnat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth1" jump srcnat_wan comment "!fw4: Handle wan IPv4/IPv6 srcnat traffic"
	}
	chain srcnat_wan {
		meta nfproto ipv4 masquerade comment "!fw4: Masquerade IPv4 wan traffic"
	}
}
"#;

    #[test]
    fn an_input_that_does_not_accept_our_mark_is_found_and_one_that_does_is_not() {
        assert_eq!(found(FW4), ["input"]);
        for rule in [
            "meta mark & 0x03000000 == 0x01000000 counter accept comment \"tproxyd\"",
            "meta mark and 50331648 eq 16777216 accept",
        ] {
            assert!(found(&FW4.replace("RULE", rule)).is_empty(), "{rule}");
        }
        let open = FW4.replace("policy drop", "policy accept");
        assert!(found(&open).is_empty());
        assert_eq!(found(&open.replace("jump accept_from_lan", "jump reject_from_lan")), ["input"], "a guest zone");
    }

    #[test]
    fn offloaded_flows_are_found() {
        let table = "table inet fw4 {\n\tflowtable ft {\n\t\thook ingress priority filter\n\t}\n}\n";
        assert_eq!(found(table), ["flow_offload"]);
        let rule = "table inet x {\n\tchain forward {\n\t\tmeta l4proto { tcp, udp } flow add @ft\n\t}\n}\n";
        assert_eq!(found(rule), ["flow_offload"]);
        let aged = |rules: &str, can_age: bool| {
            let mut findings = Findings::new();
            offloaded(&mut findings, &parsed(rules), &[], true, can_age);
            findings.len()
        };
        let night = "config rule\n\toption start_time '21:00'\n\toption outbound 'reject'\n";
        assert_eq!((aged(night, false), aged(night, true), aged("", false)), (2, 1, 1));
    }

    #[test]
    fn a_masqueraded_device_as_listener_is_found_through_fw4s_jump() {
        assert!(
            found(&FW4.replace("policy drop", "policy accept").replace("eth1", "wan"))
                .contains(&"masqueraded_listener")
        );
    }
}

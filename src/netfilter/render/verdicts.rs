//! The rule list → chain `verdicts`: what netfilter can decide alone it decides, in the order of the list; what comes back
//! out of the chain is for the process.
//!
//! A listener's chain jumps here with what it wants and does not know yet. Each rule becomes one line for each alternative
//! that it leaves (its kinds are joined by "and" in a line; several operands of a kind, and families, make several lines).
//! A rule that the kernel can't decide, or not whole, becomes "to the process" for everything that might match it, so that
//! what can't match goes on to the next rule.

use super::text::{address_ranges, device, list, macs, merged, port_ranges};
use super::{Script, TABLE, set_name};
use crate::config::{AddressMatch, Backend, Config, IpRange, PortRange, Protos, Rule, Set, Values};
use crate::netfilter::Facts;
use crate::netfilter::names::{KEPT, Named};
use crate::netfilter::verdict::{self, By};

/// What stands in a line, and whether it is only part of what the rule asks: then the process decides.
#[derive(Debug, Clone, Default)]
struct Line {
    matches: Vec<String>,
    partly: bool,
}

/// The alternatives that one kind leaves; none: it can't match.
type Alternatives = Vec<Line>;

impl<'a> Script<'a> {
    /// True if the kernel decides anything, so that there is a chain to ask.
    pub(super) fn decides(&self) -> bool {
        self.facts.backend != Backend::Iptables && verdict::decides(self.cfg, self.facts.early_reject)
    }

    /// What the kernel decides: the rules by number, and the default.
    fn decided(&self) -> Vec<(Option<u32>, [By; 2])> {
        let rules = self.cfg.rules.iter().filter(|rule| rule.active);
        let rules = rules.map(|rule| (Some(rule.number), verdict::of_rule(self.cfg, self.facts.early_reject, rule)));
        rules
            .chain([(None, verdict::of_default(self.cfg, self.facts.early_reject))])
            .filter(|(_, by)| by.iter().any(|by| *by != By::Process))
            .collect()
    }

    pub(super) fn declare_verdicts(&mut self) {
        if !self.decides() {
            return;
        }
        self.line(format_args!("add chain inet {TABLE} {VERDICTS}"));
        for (number, _) in self.decided() {
            let name = name_of(number);
            self.line(format_args!("add chain inet {TABLE} {name}"));
            self.line(format_args!("add counter inet {TABLE} {name}"));
        }
        self.declare_noted();
    }

    /// Sets that dnsmasq fills, each once. An address stays while it is used.
    fn declare_noted(&mut self) {
        let cfg = self.cfg;
        let mut sets: Vec<Named> = cfg.rules.iter().filter_map(|rule| Named::of(cfg, rule)).collect();
        sets.sort_unstable_by_key(|named| named.set(true));
        sets.dedup();
        for named in sets {
            for (v4, kind) in [(true, "ipv4_addr"), (false, "ipv6_addr")] {
                let (set, size) = (named.set(v4), cfg.globals.kernel_set_max.max(LEAST_NOTED));
                let kept = format_args!("flags dynamic,timeout; timeout {KEPT}; size {size};").to_string();
                self.line(format_args!("add set inet {TABLE} {set} {{ type {kind}; {kept} }}"));
            }
        }
    }

    /// Sets that the rules need in the kernel.
    pub(super) fn sets_of_rules(&self) -> Vec<u16> {
        if !self.decides() {
            return Vec::new();
        }
        let kinds = self.cfg.rules.iter().filter(|rule| rule.active).flat_map(|rule| [&rule.src_ip, &rule.dest_ip]);
        let values = kinds.flat_map(|kind| kind.plain.iter().chain(&kind.not));
        let sets = values.filter_map(|value| if let AddressMatch::Set(place) = value { Some(*place) } else { None });
        sets.filter(|place| self.cfg.sets.get(usize::from(*place)).is_some_and(|set| fits(self.cfg, set))).collect()
    }

    pub(super) fn verdicts(&mut self) {
        if !self.decides() {
            return;
        }
        let cfg = self.cfg;
        for rule in cfg.rules.iter().filter(|rule| rule.active && rule.on) {
            let number = rule.number;
            for line in lines(cfg, self.facts, rule) {
                self.rule(VERDICTS, format_args!(r#"{line} comment "rule {number}""#));
            }
        }
        if verdict::of_default(cfg, self.facts.early_reject).iter().any(|by| *by != By::Process) {
            self.rule(VERDICTS, format_args!(r#"goto {} comment "default""#, name_of(None)));
        }
        for (number, by) in self.decided() {
            self.decide(number, by);
        }
    }

    /// The chain that carries out what a rule says. Only the first packet of a flow counts: its connection tracking entry is
    /// confirmed when it has passed through.
    fn decide(&mut self, number: Option<u32>, by: [By; 2]) {
        let chain = name_of(number);
        for (by, proto) in by.into_iter().zip(["tcp", "udp"]) {
            if by == By::Process {
                self.rule(&chain, format_args!("meta l4proto {proto} return"));
            }
        }
        self.rule(&chain, format_args!("ct status & confirmed == 0 counter name {chain}"));
        for (by, proto) in by.into_iter().zip(["tcp", "udp"]) {
            let statement = match by {
                By::Direct => self.accept(),
                By::Drop => "drop".into(),
                By::Reject if proto == "tcp" => "reject with tcp reset".into(),
                By::Reject => "reject with icmpx type port-unreachable".into(),
                By::Process => continue,
            };
            self.rule(&chain, format_args!("meta l4proto {proto} {statement}"));
        }
    }
}

/// Name of the chain and of the counter of a rule: `rule_3`.
fn name_of(number: Option<u32>) -> String {
    number.map_or_else(|| "rule_default".to_owned(), |number| format!("{RULE}{number}"))
}

/// The chain of all rules.
pub(super) const VERDICTS: &str = "verdicts";

/// Begins the names of the rules' counters; the number follows.
pub const RULE: &str = "rule_";

/// Addresses that a set of names has room for, however little memory there is.
const LEAST_NOTED: u32 = 1024;

/// True if the kernel holds this set for the rules.
fn fits(cfg: &Config, set: &Set) -> bool {
    set.entries.nets().len() <= cfg.globals.kernel_set_max as usize
}

/// The lines of a rule, each with its verdict.
fn lines(cfg: &Config, facts: &Facts, rule: &Rule) -> Vec<String> {
    let by = verdict::of_rule(cfg, facts.early_reject, rule);
    let mut all = Vec::new();
    for matched in alternatives(cfg, facts, rule) {
        let matches = matched.matches.join(" ");
        let process = matched.partly || by == [By::Process; 2];
        let by_address = Named::of(cfg, rule).is_some();
        let verdict = if process { "return".to_owned() } else { format!("goto {}", name_of(Some(rule.number))) };
        if rule.domain.is_empty() || by_address {
            all.push(format!("{matches} {verdict}").trim_start().to_owned());
            continue;
        }
        // where a name may be found, the process looks for it
        if let Some(sniffed) = sniffed(cfg, rule.protos) {
            all.push(format!("{matches} {sniffed} return").trim_start().to_owned());
        }
        // elsewhere the flow has none, and only `!` values match what has none
        if rule.domain.plain.is_empty() {
            all.push(format!("{matches} {verdict}").trim_start().to_owned());
        }
    }
    all
}

fn sniffed(cfg: &Config, protos: Protos) -> Option<String> {
    let ports = cfg.globals.sniffed().filter(|at| if at.tcp { protos.tcp } else { protos.udp });
    let mut ports: Vec<_> = ports.map(|at| format!("{} . {}", if at.tcp { "tcp" } else { "udp" }, at.port)).collect();
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then(|| format!("meta l4proto . th dport {}", list(&ports)))
}

/// What a rule asks but for the name, family by family where that matters.
fn alternatives(cfg: &Config, facts: &Facts, rule: &Rule) -> Alternatives {
    let mut common = vec![Line::default()];
    match rule.protos {
        Protos { tcp: true, udp: false } => demand(&mut common, "meta l4proto tcp".into()),
        Protos { tcp: false, udp: true } => demand(&mut common, "meta l4proto udp".into()),
        _ => {}
    }
    common = product(&common, &devices(&rule.device, &|name| Some(name.to_owned())));
    common = product(&common, &devices(&rule.network, &|name| facts.device_of(name)));
    if !rule.src_mac.plain.is_empty() {
        demand(&mut common, format!("ether saddr {}", macs(&rule.src_mac.plain)));
    }
    if !rule.src_mac.not.is_empty() {
        demand(&mut common, format!("ether saddr != {}", macs(&rule.src_mac.not)));
    }
    ports(&mut common, "sport", &rule.src_port);
    ports(&mut common, "dport", &rule.dest_port);
    let one_family = rule.families.v4 != rule.families.v6;
    let named = Named::of(cfg, rule);
    if rule.src_ip.is_empty() && rule.dest_ip.is_empty() && !one_family && named.is_none() {
        return common;
    }
    let mut all = Vec::new();
    for (v4, wanted, there) in
        [(true, rule.families.v4, facts.families.v4), (false, rule.families.v6, facts.families.v6)]
    {
        if wanted && there {
            let mut lines = common.clone();
            demand(&mut lines, super::family_match(v4).into());
            lines = product(&lines, &addresses(cfg, "saddr", v4, &rule.src_ip));
            lines = product(&lines, &addresses(cfg, "daddr", v4, &rule.dest_ip));
            if let Some(named) = named {
                let (ip, set) = (if v4 { "ip" } else { "ip6" }, named.set(v4));
                demand(&mut lines, format!("{ip} daddr @{set} update @{set} {{ {ip} daddr }}"));
            }
            all.append(&mut lines);
        }
    }
    all
}

fn demand(lines: &mut Alternatives, statement: String) {
    lines.iter_mut().for_each(|line| line.matches.push(statement.clone()));
}

fn product(lines: &[Line], kind: &[Line]) -> Alternatives {
    let both = |a: &Line, b: &Line| Line {
        matches: a.matches.iter().chain(&b.matches).cloned().collect(),
        partly: a.partly || b.partly,
    };
    lines.iter().flat_map(|a| kind.iter().map(move |b| both(a, b))).collect()
}

fn ports(lines: &mut Alternatives, field: &str, values: &Values<PortRange>) {
    if !values.plain.is_empty() {
        demand(lines, format!("th {field} {}", list(&port_ranges(&values.plain))));
    }
    if !values.not.is_empty() {
        demand(lines, format!("th {field} != {}", none_of(port_ranges(&values.not), "0")));
    }
}

/// What stands behind `!=`. nft (seen in 1.0.6) joins two comparisons of neighbouring fields with one value each into one
/// comparison of both, even where they say "not", so that "neither" becomes "not both". A second element, which no packet
/// has there, keeps them apart.
fn none_of(mut elements: Vec<String>, nobody: &str) -> String {
    if let [only] = elements.as_slice()
        && only != nobody
        && !only.contains(['-', '/'])
    {
        elements.insert(0, nobody.to_owned());
    }
    list(&elements)
}

/// One line for all names, and one for each wildcard, which older nft can't have in a set.
fn devices(values: &Values<String>, device_of: &dyn Fn(&str) -> Option<String>) -> Alternatives {
    let quoted = |names: &[String]| {
        let names = names.iter().filter_map(|name| device_of(name));
        let (wild, exact): (Vec<_>, Vec<_>) = names
            .filter_map(|name| device(&name).map(|name| format!("\"{name}\"")))
            .partition(|name| name.ends_with("*\""));
        let mut operands = wild;
        if !exact.is_empty() {
            operands.push(list(&exact));
        }
        operands
    };
    let mut lines = vec![Line::default()];
    if !values.plain.is_empty() {
        let one = |operand: String| Line { matches: vec![format!("iifname {operand}")], partly: false };
        lines = quoted(&values.plain).into_iter().map(one).collect();
    }
    for operand in quoted(&values.not) {
        demand(&mut lines, format!("iifname != {operand}"));
    }
    lines
}

/// What one kind of addresses leaves in a family.
fn addresses(cfg: &Config, field: &str, v4: bool, values: &Values<AddressMatch>) -> Alternatives {
    let (ip, family) = if v4 { ("ip", 4) } else { ("ip6", 6) };
    let range = |value: &AddressMatch| if let AddressMatch::Range(range) = value { Some(*range) } else { None };
    let set = |value: &AddressMatch| match value {
        AddressMatch::Set(place) => cfg.sets.get(usize::from(*place)),
        AddressMatch::Range(_) => None,
    };
    // operands, and whether sets were left out because the kernel does not hold them
    let operands = |values: &[AddressMatch], not: bool| {
        let ranges: Vec<IpRange> = values.iter().filter_map(range).collect();
        let inline = address_ranges(&merged(&ranges), v4);
        let nobody = if v4 { "0.0.0.0" } else { "::" };
        let inline = (!inline.is_empty()).then(|| if not { none_of(inline, nobody) } else { list(&inline) });
        let mut operands: Vec<String> = inline.into_iter().collect();
        let mut left_out = false;
        for set in values.iter().filter_map(set) {
            if fits(cfg, set) {
                operands.push(format!("@{}", set_name(family, set)));
            } else {
                left_out = true;
            }
        }
        (operands, left_out)
    };
    let mut lines = vec![Line::default()];
    if !values.plain.is_empty() {
        let (wanted, left_out) = operands(&values.plain, false);
        lines = if left_out {
            vec![Line { matches: Vec::new(), partly: true }]
        } else {
            let one = |operand: String| Line { matches: vec![format!("{ip} {field} {operand}")], partly: false };
            wanted.into_iter().map(one).collect()
        };
    }
    let (excluded, left_out) = operands(&values.not, true);
    for operand in excluded {
        demand(&mut lines, format!("{ip} {field} != {operand}"));
    }
    if left_out {
        lines.iter_mut().for_each(|line| line.partly = true);
    }
    lines
}

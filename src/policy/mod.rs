//! Where a flow goes: the rule list, first match wins.
#![forbid(unsafe_code)]

use crate::config::{
    AddressMatch, Config, DomainMatch, Families, IpRange, PortRange, Protos, SniffPort, Target, Values,
};
use std::net::{IpAddr, SocketAddr};

/// What a rule is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'n> {
    /// TCP or UDP.
    pub proto: Proto,
    /// Who began it.
    pub client: SocketAddr,
    /// Where it was going.
    pub orig_dst: SocketAddr,
    /// The name that the client asks for, in lower case, where it is known.
    pub domain: Option<&'n str>,
}

impl Flow<'_> {
    /// What every flow has; the rest is not known.
    pub fn new(proto: Proto, client: SocketAddr, orig_dst: SocketAddr) -> Flow<'static> {
        Flow { proto, client, orig_dst, domain: None }
    }
}

/// Transport protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Proto {
    /// `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        }
    }
}

/// What was decided, and by which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Where the flow goes.
    pub target: Target,
    /// N of `@rule[N]`; `None`: no rule matched, `option default` decided.
    pub rule: Option<u16>,
}

/// The compiled rule list.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    sets: Vec<Vec<IpRange>>,
    default: Option<Target>,
    sniff_port: Vec<SniffPort>,
    /// Where UDP goes whose outbound carries none; by index of the outbound.
    udp_outbound: Vec<Option<Target>>,
}

/// One rule as the process matches it.
#[derive(Debug)]
pub struct Rule {
    /// N of `@rule[N]`.
    pub number: u32,
    /// `option name`.
    pub name: Option<String>,
    /// Flows that it decided.
    pub hits: u64,
    protos: Protos,
    families: Families,
    src_ip: Values<AddressMatch>,
    src_port: Values<PortRange>,
    dest_ip: Values<AddressMatch>,
    dest_port: Values<PortRange>,
    domain: Values<DomainMatch>,
    target: Target,
}

/// Says in a log line which rule decided: `by rule 3`, `by default`.
pub struct By(pub Option<u16>);

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(number) => write!(f, "by rule {number}"),
            None => f.write_str("by default"),
        }
    }
}

impl Policy {
    /// Compiles the rules of `config`. `targets` says for each of its outbounds what the rules shall name instead: a running
    /// process numbers its outbounds otherwise, and one of type reject or drop needs no number.
    pub fn new(config: &Config, targets: &[Target]) -> Policy {
        let real = |target: Target| match target {
            Target::Outbound(index) => targets.get(usize::from(index)).copied().unwrap_or(Target::Reject),
            built_in => built_in,
        };
        let mut udp_outbound = Vec::new();
        for (section, target) in config.outbounds.iter().zip(targets) {
            if let Target::Outbound(index) = *target
                && !section.udp
            {
                let index = usize::from(index);
                udp_outbound.resize(udp_outbound.len().max(index + 1), None);
                udp_outbound[index] = Some(real(section.udp_outbound));
            }
        }
        let rules = config.rules.iter().filter(|rule| rule.active).map(|rule| Rule {
            number: rule.number,
            name: rule.name.clone(),
            hits: 0,
            protos: rule.protos,
            families: rule.families,
            src_ip: rule.src_ip.clone(),
            src_port: rule.src_port.clone(),
            dest_ip: rule.dest_ip.clone(),
            dest_port: rule.dest_port.clone(),
            domain: rule.domain.clone(),
            target: real(rule.outbound),
        });
        Policy {
            rules: rules.collect(),
            sets: config.sets.iter().map(|set| set.ranges.clone()).collect(),
            default: Some(real(config.globals.default)),
            sniff_port: config.globals.sniff_port.clone(),
            udp_outbound,
        }
    }

    /// The rules, in order, without those that are inactive.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Takes over the hits of rules that were in `old` under the same number and name.
    pub fn adopt_hits(&mut self, old: &Policy) {
        for rule in &mut self.rules {
            if let Some(same) = old.rules.iter().find(|o| o.number == rule.number && o.name == rule.name) {
                rule.hits = same.hits;
            }
        }
    }

    /// Decides where `flow` goes, without counting it.
    pub fn decide(&self, flow: &Flow<'_>) -> Verdict {
        self.find(flow).0
    }

    /// [`Self::decide`], and counts the rule's hit.
    pub fn decide_and_count(&mut self, flow: &Flow<'_>) -> Verdict {
        let (verdict, index) = self.find(flow);
        if let Some(rule) = index.and_then(|index| self.rules.get_mut(index)) {
            rule.hits += 1;
        }
        verdict
    }

    /// True if the name that the client asks for would help to decide, and may be looked for at this port.
    pub fn needs_name(&self, flow: &Flow<'_>) -> bool {
        let tcp = flow.proto == Proto::Tcp;
        let sniffed = SniffPort { tcp, port: flow.orig_dst.port() };
        if flow.domain.is_some() || !self.sniff_port.contains(&sniffed) {
            return false;
        }
        let first = self.rules.iter().find(|rule| rule.matches_but_for_its_name(flow, &self.sets));
        first.is_some_and(|rule| !rule.domain.is_empty())
    }

    fn find(&self, flow: &Flow<'_>) -> (Verdict, Option<usize>) {
        let index = self.rules.iter().position(|rule| rule.matches(flow, &self.sets));
        let rule = index.map(|index| &self.rules[index]);
        let chosen = rule.map(|rule| rule.target).or(self.default).unwrap_or(Target::Direct);
        let target = self.carried(flow.proto, chosen);
        (Verdict { target, rule: rule.map(|rule| rule.number as u16) }, index)
    }

    /// Follows `udp_outbound` while the outbound does not carry the protocol. The configuration has no circles; the bound is
    /// there in case it had.
    fn carried(&self, proto: Proto, mut target: Target) -> Target {
        if proto == Proto::Tcp {
            return target;
        }
        for _ in 0..=self.udp_outbound.len() {
            match target {
                Target::Outbound(index) => match self.udp_outbound.get(usize::from(index)).copied().flatten() {
                    Some(next) => target = next,
                    None => return target,
                },
                built_in => return built_in,
            }
        }
        Target::Reject
    }
}

impl Rule {
    fn matches(&self, flow: &Flow<'_>, sets: &[Vec<IpRange>]) -> bool {
        self.matches_but_for_its_name(flow, sets) && domain_matches(&self.domain, flow.domain)
    }

    fn matches_but_for_its_name(&self, flow: &Flow<'_>, sets: &[Vec<IpRange>]) -> bool {
        let proto = match flow.proto {
            Proto::Tcp => self.protos.tcp,
            Proto::Udp => self.protos.udp,
        };
        let family = if flow.orig_dst.is_ipv4() { self.families.v4 } else { self.families.v6 };
        proto
            && family
            && port_matches(&self.dest_port, flow.orig_dst.port())
            && port_matches(&self.src_port, flow.client.port())
            && address_matches(&self.dest_ip, flow.orig_dst.ip(), sets)
            && address_matches(&self.src_ip, flow.client.ip(), sets)
    }
}

fn kind_matches<T>(values: &Values<T>, one: impl Fn(&T) -> bool) -> bool {
    (values.plain.is_empty() || values.plain.iter().any(&one)) && !values.not.iter().any(&one)
}

fn port_matches(values: &Values<PortRange>, port: u16) -> bool {
    kind_matches(values, |range| (range.first..=range.last).contains(&port))
}

fn address_matches(values: &Values<AddressMatch>, ip: IpAddr, sets: &[Vec<IpRange>]) -> bool {
    kind_matches(values, |value| match value {
        AddressMatch::Range(range) => contains(range, ip),
        AddressMatch::Set(index) => sets.get(usize::from(*index)).is_some_and(|ranges| set_contains(ranges, ip)),
    })
}

/// What has no name is matched by no value, so that only a rule without plain values takes it.
fn domain_matches(values: &Values<DomainMatch>, domain: Option<&str>) -> bool {
    kind_matches(values, |value| match (value, domain) {
        (DomainMatch::Name { name, only_itself }, Some(domain)) => is_or_is_below(domain, name, *only_itself),
        (DomainMatch::Set(_), _) | (_, None) => false,
    })
}

fn is_or_is_below(domain: &str, name: &str, only_itself: bool) -> bool {
    match domain.strip_suffix(name) {
        Some("") => true,
        Some(rest) => !only_itself && rest.ends_with('.'),
        None => false,
    }
}

fn contains(range: &IpRange, ip: IpAddr) -> bool {
    range.first.is_ipv4() == ip.is_ipv4() && range.first <= ip && ip <= range.last
}

/// Looks `ip` up in sorted, disjoint ranges, v4 before v6 (which is how `IpAddr` orders).
fn set_contains(ranges: &[IpRange], ip: IpAddr) -> bool {
    let after = ranges.partition_point(|range| range.first <= ip);
    after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|range| contains(range, ip))
}

#[cfg(test)]
mod tests;

//! Where a flow goes: the rule list, first match wins.
#![forbid(unsafe_code)]

use crate::config::{self, Config, Families, Mac, OutboundKind, Protos, Quota, Set, SniffPort, Target, Values};
use matcher::{Addresses, Devices, Domains, Kind, Macs, Ports};
use std::net::SocketAddr;

pub mod explain;
pub mod group;
mod matcher;

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
    /// The interface that it came in by, where that is known.
    pub device: Option<&'n str>,
    /// The client's MAC address, where that is known.
    pub mac: Option<Mac>,
}

impl Flow<'_> {
    /// What every flow has; the rest is not known.
    pub fn new(proto: Proto, client: SocketAddr, orig_dst: SocketAddr) -> Flow<'static> {
        Flow { proto, client, orig_dst, domain: None, device: None, mac: None }
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
    /// What the rule allows to each client; `None`: as much as it likes.
    pub limits: Option<Limits>,
}

/// What a rule allows to each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tells the rule from the others: by its name or, if it has none, its number, so that others may be put before it.
    pub rule: u64,
    /// Bits per second, each way.
    pub rate: Option<u64>,
    /// Bytes in a day or month.
    pub quota: Option<Quota>,
}

/// The compiled rule list.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    default: Option<Target>,
    sniff_port: Vec<SniffPort>,
    /// Outbounds whose proxy is told names.
    says_names: Vec<u16>,
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
    device: Kind<Devices>,
    network: Kind<Devices>,
    networks: Values<String>,
    src_ip: Kind<Addresses>,
    src_mac: Kind<Macs>,
    src_port: Kind<Ports>,
    dest_ip: Kind<Addresses>,
    dest_port: Kind<Ports>,
    domain: Kind<Domains>,
    /// It has hours.
    timed: bool,
    /// They let it match now.
    on: bool,
    target: Target,
    limits: Option<Limits>,
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
        let named = (0..config.outbounds.len()).filter(|place| says_names(*place, config, MOST_NESTED));
        let says_names = named.filter_map(|place| match targets.get(place) {
            Some(Target::Outbound(index)) => Some(*index),
            _ => None,
        });
        let says_names = says_names.collect();
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
        let rules = config.rules.iter().filter(|rule| rule.active);
        Policy {
            rules: rules.map(|rule| Rule::new(rule, &config.sets, &real)).collect(),
            default: Some(real(config.globals.default)),
            sniff_port: config.globals.sniffed().collect(),
            says_names,
            udp_outbound,
        }
    }

    /// A policy of one rule, which matches what `listener` wants of what comes in by its devices.
    pub fn narrowing(config: &Config, listener: &config::Listener) -> Policy {
        let rule = Rule {
            number: 0,
            name: None,
            hits: 0,
            protos: listener.protos,
            families: listener.families,
            device: Devices::kind(&Values::default()),
            network: Devices::kind(&Values::default()),
            networks: Values::default(),
            src_ip: Addresses::kind(&listener.src_ip, &config.sets),
            src_mac: Macs::kind(&listener.src_mac),
            src_port: Ports::kind(&listener.src_port),
            dest_ip: Addresses::kind(&listener.dest_ip, &config.sets),
            dest_port: Ports::kind(&listener.dest_port),
            domain: Domains::kind(&Values::default(), &[]),
            timed: false,
            on: true,
            target: Target::Direct,
            limits: None,
        };
        Policy { rules: vec![rule], ..Policy::default() }
    }

    /// Tells which device a network is, if it is up.
    pub fn resolve_networks(&mut self, device_of: &dyn Fn(&str) -> Option<String>) {
        for rule in &mut self.rules {
            let devices = |names: &[String]| {
                // a name that no device has stands for a network that is not up
                names.iter().map(|name| device_of(name).unwrap_or_default()).collect()
            };
            let Values { plain, not } = &rule.networks;
            rule.network = Devices::kind(&Values { plain: devices(plain), not: devices(not) });
        }
    }

    /// True if a rule asks by which device a flow came in.
    pub fn asks_for_device(&self) -> bool {
        self.rules.iter().any(|rule| !rule.device.is_empty() || !rule.networks.is_empty())
    }

    /// True if a rule asks for the client's MAC address.
    pub fn asks_for_mac(&self) -> bool {
        self.rules.iter().any(|rule| !rule.src_mac.is_empty())
    }

    /// The rules, in order, without those that are inactive.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that has these [`Limits::rule`].
    pub fn limiting(&self, rule: u64) -> Option<&Rule> {
        self.rules.iter().find(|one| one.limits.is_some_and(|limits| limits.rule == rule))
    }

    /// Takes over the hits of rules that were in `old` under the same number and name.
    pub fn adopt_hits(&mut self, old: &Policy) {
        for rule in &mut self.rules {
            if let Some(same) = old.rules.iter().find(|o| o.number == rule.number && o.name == rule.name) {
                rule.hits = same.hits;
            }
        }
    }

    /// Switches rules on and off, as `config` has it, whose rules these are.
    pub fn keep_hours(&mut self, config: &Config) {
        let active = config.rules.iter().filter(|rule| rule.active);
        for (rule, of) in self.rules.iter_mut().zip(active) {
            rule.on = of.on;
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

    /// True if names are looked for in flows to this port.
    pub fn looks_at(&self, proto: Proto, port: u16) -> bool {
        self.sniff_port.contains(&SniffPort { tcp: proto == Proto::Tcp, port })
    }

    /// True if the name that the client asks for would help to decide, and may be looked for at this port.
    pub fn needs_name(&self, flow: &Flow<'_>) -> bool {
        let tcp = flow.proto == Proto::Tcp;
        if flow.domain.is_some() || !self.looks_at(flow.proto, flow.orig_dst.port()) {
            return false;
        }
        let first = self.rules.iter().find(|rule| rule.matches_but_for_its_name(flow));
        let target = first.map(|rule| rule.target).or(self.default);
        first.is_some_and(|rule| !rule.domain.is_empty())
            || tcp && matches!(target, Some(Target::Outbound(index)) if self.says_names.contains(&index))
    }

    fn find(&self, flow: &Flow<'_>) -> (Verdict, Option<usize>) {
        let index = self.rules.iter().position(|rule| rule.matches(flow));
        let rule = index.map(|index| &self.rules[index]);
        let chosen = rule.map(|rule| rule.target).or(self.default).unwrap_or(Target::Direct);
        let target = self.carried(flow.proto, chosen);
        let mut limits = rule.and_then(|rule| rule.limits);
        if let Some(Limits { quota: Some(quota), .. }) = &mut limits {
            quota.outbound = self.carried(flow.proto, quota.outbound);
        }
        (Verdict { target, rule: rule.map(|rule| rule.number as u16), limits }, index)
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
    fn new(rule: &config::Rule, sets: &[Set], real: &impl Fn(Target) -> Target) -> Rule {
        Rule {
            number: rule.number,
            name: rule.name.clone(),
            hits: 0,
            protos: rule.protos,
            families: rule.families,
            device: Devices::kind(&rule.device),
            network: Devices::kind(&Values {
                // which devices they are is told later; none is there until then
                plain: rule.network.plain.iter().map(|_| String::new()).collect(),
                not: Vec::new(),
            }),
            networks: rule.network.clone(),
            src_ip: Addresses::kind(&rule.src_ip, sets),
            src_mac: Macs::kind(&rule.src_mac),
            src_port: Ports::kind(&rule.src_port),
            dest_ip: Addresses::kind(&rule.dest_ip, sets),
            dest_port: Ports::kind(&rule.dest_port),
            domain: Domains::kind(&rule.domain, sets),
            timed: rule.schedule.is_some(),
            on: rule.on,
            target: real(rule.outbound),
            limits: rule.is_limited().then(|| Limits {
                rule: told_apart(rule),
                rate: rule.rate,
                quota: rule.quota.map(|quota| Quota { outbound: real(quota.outbound), ..quota }),
            }),
        }
    }

    fn matches(&self, flow: &Flow<'_>) -> bool {
        self.matches_but_for_its_name(flow) && self.domain.matches(|domains| domains.contains(flow.domain))
    }

    fn matches_but_for_its_name(&self, flow: &Flow<'_>) -> bool {
        let proto = match flow.proto {
            Proto::Tcp => self.protos.tcp,
            Proto::Udp => self.protos.udp,
        };
        let family = if flow.orig_dst.is_ipv4() { self.families.v4 } else { self.families.v6 };
        self.on
            && proto
            && family
            && self.dest_port.matches(|ports| ports.contains(flow.orig_dst.port()))
            && self.src_port.matches(|ports| ports.contains(flow.client.port()))
            && self.came_by(flow)
            && self.src_ip.matches(|addresses| addresses.contains(flow.client.ip()))
            && self.dest_ip.matches(|addresses| addresses.contains(flow.orig_dst.ip()))
    }

    /// A flow whose device or MAC address is not known came by none, as in nftables.
    fn came_by(&self, flow: &Flow<'_>) -> bool {
        let by_device = |kind: &Kind<Devices>| {
            kind.is_empty() || flow.device.is_some_and(|device| kind.matches(|devices| devices.contains(device)))
        };
        let by_mac =
            self.src_mac.is_empty() || flow.mac.is_some_and(|mac| self.src_mac.matches(|macs| macs.contains(mac)));
        by_mac && by_device(&self.device) && by_device(&self.network)
    }
}

/// FNV-1a over name or number.
fn told_apart(rule: &config::Rule) -> u64 {
    let number = rule.number.to_be_bytes();
    let octets = rule.name.as_deref().map_or(&number[..], str::as_bytes);
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x100_0000_01b3))
}

/// Whether the outbound at `place`, or a member of that group, says names to its proxy.
fn says_names(place: usize, config: &Config, depth: u8) -> bool {
    let Some(outbound) = config.outbounds.get(place) else { return false };
    let members = match &outbound.kind {
        OutboundKind::Group(group) if depth > 0 => &group.members[..],
        _ => &[],
    };
    outbound.send_domain
        || members.iter().any(|member| match member {
            Target::Outbound(member) => says_names(usize::from(*member), config, depth - 1),
            _ => false,
        })
}

/// Groups within groups: the configuration has no more.
const MOST_NESTED: u8 = 9;

#[cfg(test)]
mod tests;

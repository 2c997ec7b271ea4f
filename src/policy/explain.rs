//! Why a flow goes where it goes: each rule with what keeps it from matching. What is not said of the flow (a name, a MAC
//! address, a device) is neither a match nor a mismatch: the answer depends on it.

use super::{Flow, Policy, Proto, Rule};
use crate::config::{Quota, Target};
use std::fmt;

/// What one rule says to a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// N of `@rule[N]`; `None`: `option default`.
    pub rule: Option<u32>,
    /// `option name`.
    pub name: Option<String>,
    /// Where the flow goes if it is this rule that decides.
    pub target: Target,
    /// Whether it is.
    pub outcome: Outcome,
    /// [`super::Limits::rule`] and the quota, after which it goes elsewhere.
    pub quota: Option<(u64, Quota)>,
}

/// Whether a rule matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It does.
    Matches,
    /// It does not, because of this kind of value.
    No(Kind),
    /// It does if these kinds do, of which nothing was said.
    Depends(Vec<Kind>),
}

/// What a rule can ask for, by the option's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the options")]
pub enum Kind {
    Proto,
    Family,
    Device,
    Network,
    SrcIp,
    SrcMac,
    SrcPort,
    DestIp,
    DestPort,
    Domain,
    Time,
}

impl Kind {
    /// The option.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Proto => "proto",
            Kind::Family => "family",
            Kind::Device => "device",
            Kind::Network => "network",
            Kind::SrcIp => "src_ip",
            Kind::SrcMac => "src_mac",
            Kind::SrcPort => "src_port",
            Kind::DestIp => "dest_ip",
            Kind::DestPort => "dest_port",
            Kind::Domain => "domain",
            Kind::Time => "time",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Policy {
    /// What the rules say to `flow`, in order, up to the first that matches for certain; if none does, `option default` is
    /// the last.
    pub fn explain(&self, flow: &Flow<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        for rule in &self.rules {
            let outcome = rule.explain(flow);
            let certain = outcome == Outcome::Matches;
            let target = self.carried(flow.proto, rule.target);
            let quota = rule.limits.and_then(|limits| Some((limits.rule, limits.quota?)));
            let quota = quota.map(|(rule, of)| (rule, Quota { outbound: self.carried(flow.proto, of.outbound), ..of }));
            steps.push(Step { rule: Some(rule.number), name: rule.name.clone(), target, outcome, quota });
            if certain {
                return steps;
            }
        }
        let target = self.carried(flow.proto, self.default.unwrap_or(Target::Direct));
        steps.push(Step { rule: None, name: None, target, outcome: Outcome::Matches, quota: None });
        steps
    }
}

impl Rule {
    fn explain(&self, flow: &Flow<'_>) -> Outcome {
        let proto = match flow.proto {
            Proto::Tcp => self.protos.tcp,
            Proto::Udp => self.protos.udp,
        };
        let family = if flow.orig_dst.is_ipv4() { self.families.v4 } else { self.families.v6 };
        let by = |kind: &super::Kind<super::Devices>| {
            kind.is_empty() || flow.device.is_some_and(|device| kind.matches(|devices| devices.contains(device)))
        };
        let mac =
            self.src_mac.is_empty() || flow.mac.is_some_and(|mac| self.src_mac.matches(|macs| macs.contains(mac)));
        let domain = self.domain.matches(|domains| domains.contains(flow.domain));
        // what is known, whether it matches
        let kinds = [
            (Kind::Proto, true, proto),
            (Kind::Family, true, family),
            (Kind::DestPort, true, self.dest_port.matches(|ports| ports.contains(flow.orig_dst.port()))),
            (Kind::SrcPort, true, self.src_port.matches(|ports| ports.contains(flow.client.port()))),
            (Kind::DestIp, true, self.dest_ip.matches(|addresses| addresses.contains(flow.orig_dst.ip()))),
            (Kind::SrcIp, true, self.src_ip.matches(|addresses| addresses.contains(flow.client.ip()))),
            (Kind::SrcMac, flow.mac.is_some() || self.src_mac.is_empty(), mac),
            (Kind::Device, flow.device.is_some() || self.device.is_empty(), by(&self.device)),
            (Kind::Network, flow.device.is_some() || self.network.is_empty(), by(&self.network)),
            (Kind::Domain, flow.domain.is_some() || self.domain.is_empty(), domain),
            // what holds now is no answer to whoever wonders about tonight
            (Kind::Time, !self.timed, true),
        ];
        if let Some((kind, ..)) = kinds.iter().find(|(_, known, matches)| *known && !matches) {
            return Outcome::No(*kind);
        }
        let unknown: Vec<Kind> = kinds.iter().filter(|(_, known, _)| !known).map(|(kind, ..)| *kind).collect();
        if unknown.is_empty() { Outcome::Matches } else { Outcome::Depends(unknown) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, Mac, Values, parse};
    use crate::policy::matcher::Macs;
    use proptest::prelude::*;

    fn policy(rules: &str) -> Policy {
        let text = format!(
            "config outbound 'hk'\n\toption type 'socks5'\n\toption server '192.0.2.1'\n\toption port '1'\n{rules}"
        );
        let env = Env { total_memory: 1 << 28, descriptors: 1 << 20 };
        let config = parse("f", text.as_bytes(), &env, &mut |_| Err(std::io::ErrorKind::NotFound.into())).unwrap();
        let mut policy = Policy::new(&config, &[Target::Outbound(1)]);
        if let Some(rule) = policy.rules.get_mut(1) {
            rule.src_mac = Macs::kind(&Values { plain: vec![Mac([2, 0, 0, 0, 0, 1])], not: Vec::new() });
        }
        policy
    }

    fn flow(dst: &str) -> Flow<'static> {
        Flow::new(Proto::Tcp, "192.168.1.2:40000".parse().unwrap(), dst.parse().unwrap())
    }

    fn outcomes(policy: &Policy, flow: &Flow<'_>) -> Vec<(Option<u32>, Outcome)> {
        policy.explain(flow).into_iter().map(|step| (step.rule, step.outcome)).collect()
    }

    const RULES: &str = "
config rule
	list dest_port '443'
	option outbound 'hk'
config rule
	list domain 'video.example'
	option outbound 'hk'
config rule
	list src_ip '192.168.1.0/24'
	option outbound 'reject'
";

    #[test]
    fn each_rule_above_the_one_that_decides_says_why_it_does_not() {
        let policy = policy(RULES);
        let mut flow = flow("203.0.113.1:80");
        let depends = Outcome::Depends(vec![Kind::SrcMac, Kind::Domain]);
        let first = (Some(0), Outcome::No(Kind::DestPort));
        assert_eq!(outcomes(&policy, &flow), [first.clone(), (Some(1), depends), (Some(2), Outcome::Matches)]);
        flow.domain = Some("other.example");
        let no = (Some(1), Outcome::No(Kind::Domain));
        assert_eq!(outcomes(&policy, &flow), [first.clone(), no, (Some(2), Outcome::Matches)]);
        flow.domain = Some("a.video.example");
        flow.mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(outcomes(&policy, &flow), [first, (Some(1), Outcome::Matches)]);
    }

    #[test]
    fn where_no_rule_matches_the_default_is_the_last_word() {
        let steps = policy("").explain(&flow("203.0.113.1:80"));
        assert_eq!((steps.len(), steps[0].rule, &steps[0].outcome), (1, None, &Outcome::Matches));
        assert_eq!(steps[0].target, Target::Direct);
    }

    proptest! {
        /// With all of it said, the explanation and the decision are the same.
        #[test]
        fn the_explanation_ends_where_the_decision_does(
            port in prop_oneof![Just(443_u16), Just(80)],
            host in 0_u8..4,
            name in prop_oneof![Just("video.example"), Just("x.example")],
            mac in 0_u8..3,
            udp in any::<bool>(),
        ) {
            let policy = policy(RULES);
            let flow = Flow {
                proto: if udp { Proto::Udp } else { Proto::Tcp },
                client: ([192, 168, host, 2], 40_000).into(),
                domain: Some(name),
                device: Some("lan0"),
                mac: Some(Mac([2, 0, 0, 0, 0, mac])),
                ..flow(&format!("203.0.113.1:{port}"))
            };
            let steps = policy.explain(&flow);
            let last = steps.last().unwrap();
            let verdict = policy.decide(&flow);
            prop_assert_eq!((last.target, last.rule.map(|n| n as u16)), (verdict.target, verdict.rule));
            prop_assert_eq!(&last.outcome, &Outcome::Matches);
        }
    }
}

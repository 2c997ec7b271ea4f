//! For `explain`: whether the kernel decides about a flow by itself, as `netfilter::render` has it compiled.

use crate::config::{AddressMatch, Backend, Config, Rule, SniffPort, Target, Values};
use crate::netfilter::names::Named;
use crate::netfilter::verdict::{self, By};
use crate::netfilter::{backend, kernel_rejects_early, networks};
use crate::policy::explain::Outcome;
use crate::policy::{Flow, Policy, Proto};

/// Who decides about `flow`, in words.
pub(super) fn decides(cfg: &Config, flow: &Flow<'_>) -> &'static str {
    let tcp = flow.proto == Proto::Tcp;
    if backend::in_force(cfg.globals.backend) == Backend::Iptables {
        return "The process decides, when the flow begins: the kernel decides by itself with nft only.";
    }
    let early_reject = kernel_rejects_early();
    let of = |by: [By; 2]| match if tcp { by[0] } else { by[1] } {
        By::Process => "The process decides, when the flow begins.",
        By::Direct | By::Reject | By::Drop => "The kernel decides by itself: the flow does not come to the process.",
    };
    let sniffed = cfg.globals.sniffed().any(|at| at == SniffPort { tcp, port: flow.orig_dst.port() });
    for rule in cfg.rules.iter().filter(|rule| rule.active && cfg.globals.kernel_verdicts) {
        let (seen, partly) = as_the_kernel_sees_it(cfg, rule);
        match outcome(cfg, seen, flow) {
            Some(Outcome::Matches) if Named::of(cfg, rule).is_some() => {
                return "That depends on the addresses that dnsmasq has noted for the names of its rules: by them the kernel decides.";
            }
            Some(Outcome::Matches) if sniffed && !rule.domain.is_empty() => {
                return "The process decides, when the flow begins: a rule asks for the name, and it may be found at this port.";
            }
            Some(Outcome::Matches) if !rule.domain.plain.is_empty() => {}
            Some(Outcome::Matches) if partly => {
                return "The process decides, when the flow begins: a set is larger than kernel_set_max.";
            }
            Some(Outcome::Matches) if rule.is_limited() => {
                return "The process decides, when the flow begins: the rule limits what a client moves.";
            }
            Some(Outcome::Matches) => return of(verdict::of_rule(cfg, early_reject, rule)),
            Some(Outcome::Depends(_)) => return "Whether the kernel decides by itself depends on that, too.",
            Some(Outcome::No(_)) | None => {}
        }
    }
    of(verdict::of_default(cfg, early_reject))
}

/// A rule without its names, and without the sets that are too large; true if there are such.
fn as_the_kernel_sees_it(cfg: &Config, rule: &Rule) -> (Rule, bool) {
    let mut seen = rule.clone();
    seen.domain = Values::default();
    let too_large = |value: &AddressMatch| match value {
        AddressMatch::Set(place) => cfg
            .sets
            .get(usize::from(*place))
            .is_some_and(|set| set.entries.nets().len() > cfg.globals.kernel_set_max as usize),
        AddressMatch::Range(_) => false,
    };
    let mut partly = false;
    for kind in [&mut seen.src_ip, &mut seen.dest_ip] {
        if kind.plain.iter().any(too_large) {
            kind.plain.clear();
            partly = true;
        }
        let before = kind.not.len();
        kind.not.retain(|value| !too_large(value));
        partly |= kind.not.len() != before;
    }
    (seen, partly)
}

fn outcome(cfg: &Config, rule: Rule, flow: &Flow<'_>) -> Option<Outcome> {
    let targets: Vec<Target> = (0..cfg.outbounds.len()).map(|index| Target::Outbound(index as u16)).collect();
    let mut policy = Policy::new(&Config { rules: vec![rule], ..cfg.clone() }, &targets);
    policy.resolve_networks(&|name| networks::resolve(&[name.to_owned()]).ok()?.into_iter().next().flatten());
    policy.explain(flow).into_iter().next().filter(|step| step.rule.is_some()).map(|step| step.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, parse};

    const LIST: &str = "
config globals\n\toption kernel_set_max '1'\n\toption default 'proxy'
config outbound 'proxy'\n\toption type 'socks5'\n\toption server '192.0.2.1'\n\toption port '1080'
config set 'large'\n\tlist entry '198.51.100.1'\n\tlist entry '198.51.100.3'
config rule\n\tlist domain 'video.example'\n\toption outbound 'proxy'
config rule\n\tlist dest_ip '@large'\n\tlist dest_port '80'\n\toption outbound 'direct'
config rule\n\tlist dest_ip '203.0.113.0/24'\n\toption outbound 'direct'
config rule\n\tlist src_mac '02:00:00:00:00:01'\n\tlist dest_port '99'\n\toption outbound 'drop'\n";

    #[test]
    fn it_is_said_who_decides_and_why_the_process_must() {
        let env = Env { total_memory: 0, descriptors: u64::MAX };
        let cfg = parse("f", LIST.as_bytes(), &env, &mut |_| Err(std::io::ErrorKind::NotFound.into())).unwrap();
        let mut off = cfg.clone();
        off.globals.kernel_verdicts = false;
        for (to, words) in [
            ("203.0.113.9:443", "may be found at this port"),
            ("203.0.113.9:25", "The kernel decides by itself"),
            ("198.51.100.9:25", "The process decides, when the flow begins."),
            ("192.0.2.99:99", "depends on that"),
        ] {
            let flow = Flow::new(Proto::Tcp, "192.168.1.2:40000".parse().unwrap(), to.parse().unwrap());
            assert!(decides(&cfg, &flow).contains(words), "{to}: {}", decides(&cfg, &flow));
            assert_eq!(decides(&off, &flow), "The process decides, when the flow begins.", "{to}");
        }
        let udp = Flow::new(Proto::Udp, "192.168.1.2:40000".parse().unwrap(), "198.51.100.9:80".parse().unwrap());
        assert!(decides(&cfg, &udp).contains("larger than kernel_set_max"), "{}", decides(&cfg, &udp));
    }
}

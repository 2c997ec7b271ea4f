use super::*;
use crate::config::{AddressMatch, DomainMatch, Entries, IpRange, PortRange, Source};
use std::sync::Arc;

fn range(text: &str) -> IpRange {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    IpRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
}

fn any_rule(number: u32, outbound: Target) -> config::Rule {
    config::Rule {
        number,
        name: None,
        line: 1,
        active: true,
        protos: Protos { tcp: true, udp: true },
        families: Families { v4: true, v6: true },
        device: Values::default(),
        network: Values::default(),
        src_ip: Values::default(),
        src_mac: Values::default(),
        src_port: Values::default(),
        dest_ip: Values::default(),
        dest_port: Values::default(),
        domain: Values::default(),
        schedule: None,
        rate: None,
        quota: None,
        on: true,
        outbound,
    }
}

/// `rules`, then `default`.
fn policy_with_sets(rules: Vec<config::Rule>, sets: &[Set], default: Target) -> Policy {
    let rules = rules.iter().map(|rule| Rule::new(rule, sets, &|target| target)).collect();
    Policy { rules, default: Some(default), ..Policy::default() }
}

fn policy(rules: Vec<config::Rule>, default: Target) -> Policy {
    policy_with_sets(rules, &[], default)
}

fn flow(proto: Proto, client: &str, orig_dst: &str) -> Flow<'static> {
    Flow::new(proto, client.parse().unwrap(), orig_dst.parse().unwrap())
}

fn tcp_to(orig_dst: &str) -> Flow<'static> {
    let client = if orig_dst.starts_with('[') { "[2001:db8::2]:40000" } else { "192.168.1.2:40000" };
    flow(Proto::Tcp, client, orig_dst)
}

#[test]
fn the_first_rule_that_matches_wins_and_is_counted() {
    let mut video = any_rule(0, Target::Outbound(3));
    video.dest_port.plain.push(PortRange { first: 443, last: 443 });
    let rest = any_rule(2, Target::Reject);
    let mut policy = policy(vec![video, rest], Target::Direct);
    assert_eq!(
        policy.decide_and_count(&tcp_to("203.0.113.9:443")),
        Verdict { target: Target::Outbound(3), rule: Some(0), limits: None }
    );
    assert_eq!(
        policy.decide_and_count(&tcp_to("203.0.113.9:80")),
        Verdict { target: Target::Reject, rule: Some(2), limits: None }
    );
    assert_eq!(policy.rules().iter().map(|rule| rule.hits).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn without_a_match_the_default_decides() {
    let policy = policy(Vec::new(), Target::Drop);
    assert_eq!(policy.decide(&tcp_to("203.0.113.9:443")), Verdict { target: Target::Drop, rule: None, limits: None });
}

#[test]
fn a_negated_value_excludes_even_what_a_plain_one_includes() {
    let mut rule = any_rule(0, Target::Drop);
    rule.dest_ip.plain.push(AddressMatch::Range(range("10.0.0.0-10.255.255.255")));
    rule.dest_ip.not.push(AddressMatch::Range(range("10.1.0.0-10.1.255.255")));
    let policy = policy(vec![rule], Target::Direct);
    assert_eq!(policy.decide(&tcp_to("10.2.0.1:1")).target, Target::Drop);
    assert_eq!(policy.decide(&tcp_to("10.1.0.1:1")).target, Target::Direct);
    assert_eq!(policy.decide(&tcp_to("11.0.0.1:1")).target, Target::Direct);
}

#[test]
fn a_kind_with_only_negated_values_matches_the_rest_of_both_families() {
    let mut rule = any_rule(0, Target::Drop);
    rule.dest_ip.not.push(AddressMatch::Set(0));
    let nets = [range("10.0.0.0-10.255.255.255"), range("2001:db8::-2001:db8::ffff")].into_iter().collect();
    let entries = Entries::Nets(Arc::new(nets));
    let set = Set { name: "s".into(), label: None, line: 1, entries, incomplete: false, source: Source::default() };
    let policy = policy_with_sets(vec![rule], &[set], Target::Direct);
    assert_eq!(policy.decide(&tcp_to("10.2.0.1:1")).target, Target::Direct);
    assert_eq!(policy.decide(&tcp_to("[2001:db8::5]:1")).target, Target::Direct);
    assert_eq!(policy.decide(&tcp_to("9.255.255.255:1")).target, Target::Drop);
    assert_eq!(policy.decide(&tcp_to("[2001:db8::1:0]:1")).target, Target::Drop);
}

#[test]
fn protocol_and_family_narrow_a_rule() {
    let mut rule = any_rule(0, Target::Drop);
    rule.protos = Protos { tcp: false, udp: true };
    rule.families = Families { v4: true, v6: false };
    let policy = policy(vec![rule], Target::Direct);
    assert_eq!(policy.decide(&flow(Proto::Udp, "192.168.1.2:4", "203.0.113.9:4")).target, Target::Drop);
    assert_eq!(policy.decide(&flow(Proto::Tcp, "192.168.1.2:4", "203.0.113.9:4")).target, Target::Direct);
    assert_eq!(policy.decide(&flow(Proto::Udp, "[2001:db8::2]:4", "[2001:db8::9]:4")).target, Target::Direct);
}

fn names(texts: &[&str]) -> Vec<DomainMatch> {
    let name = |text: &str| text.trim_start_matches('=').to_owned();
    texts.iter().map(|text| DomainMatch::Name { name: name(text), only_itself: text.starts_with('=') }).collect()
}

#[test]
fn a_domain_matches_itself_and_what_is_below_it() {
    let mut rule = any_rule(0, Target::Drop);
    rule.domain.plain = names(&["video.example", "=only.example"]);
    rule.domain.not = names(&["free.video.example"]);
    let policy = policy(vec![rule], Target::Direct);
    for (domain, expected) in [
        (Some("video.example"), Target::Drop),
        (Some("a.b.video.example"), Target::Drop),
        (Some("myvideo.example"), Target::Direct),
        (Some("example"), Target::Direct),
        (Some("x.free.video.example"), Target::Direct),
        (Some("only.example"), Target::Drop),
        (Some("not.only.example"), Target::Direct),
        (None, Target::Direct),
    ] {
        assert_eq!(policy.decide(&Flow { domain, ..tcp_to("203.0.113.9:443") }).target, expected, "{domain:?}");
    }
}

#[test]
fn a_name_is_needed_only_where_it_may_decide_and_be_found() {
    let mut ports = any_rule(0, Target::Drop);
    ports.dest_port.plain.push(PortRange { first: 80, last: 80 });
    let mut named = any_rule(1, Target::Reject);
    named.domain.plain = names(&["video.example"]);
    let sniff_port = [80, 443].map(|port| SniffPort { tcp: true, port }).to_vec();
    let rules = vec![ports, named, any_rule(2, Target::Direct)];
    let policy = Policy { sniff_port, ..policy(rules, Target::Direct) };
    let https = tcp_to("203.0.113.9:443");
    assert!(policy.needs_name(&https));
    assert!(!policy.needs_name(&Flow { domain: Some("a.example"), ..https }), "it is known");
    assert!(!policy.needs_name(&tcp_to("203.0.113.9:80")), "rule 0 decides");
    assert!(!policy.needs_name(&tcp_to("203.0.113.9:22")), "the server speaks first there");
    assert!(!policy.needs_name(&flow(Proto::Udp, "192.168.1.2:4", "203.0.113.9:443")), "tcp:443 is not udp:443");
}

#[test]
fn udp_follows_udp_outbound_until_something_carries_it() {
    let policy = Policy {
        default: Some(Target::Outbound(0)),
        udp_outbound: vec![Some(Target::Outbound(1)), Some(Target::Outbound(2)), None],
        ..Policy::default()
    };
    assert_eq!(policy.decide(&flow(Proto::Udp, "1.1.1.1:1", "2.2.2.2:2")).target, Target::Outbound(2));
    assert_eq!(policy.decide(&flow(Proto::Tcp, "1.1.1.1:1", "2.2.2.2:2")).target, Target::Outbound(0));
}

#[test]
fn hits_survive_a_reload_of_the_same_rule() {
    let mut old = policy(vec![any_rule(0, Target::Drop)], Target::Direct);
    old.rules[0].hits = 7;
    let mut new = policy(vec![any_rule(0, Target::Reject), any_rule(1, Target::Direct)], Target::Direct);
    new.adopt_hits(&old);
    assert_eq!(new.rules().iter().map(|rule| rule.hits).collect::<Vec<_>>(), [7, 0]);
}

#[test]
fn a_flow_whose_device_or_mac_is_not_known_came_by_none() {
    let mut by_device = any_rule(0, Target::Drop);
    by_device.device.not.push("lan0".into());
    let mut by_mac = any_rule(1, Target::Reject);
    by_mac.src_mac.plain.push(Mac([2, 0, 0, 0, 0, 1]));
    let mut by_network = any_rule(2, Target::Outbound(1));
    by_network.network.plain.push("guest".into());
    let mut policy = policy(vec![by_device, by_mac, by_network], Target::Direct);
    assert!(policy.asks_for_device() && policy.asks_for_mac());
    let flow = tcp_to("203.0.113.9:443");
    let target = |policy: &Policy, device, mac| policy.decide(&Flow { device, mac, ..flow }).target;
    assert_eq!(target(&policy, None, None), Target::Direct);
    assert_eq!(target(&policy, Some("wlan0"), None), Target::Drop);
    assert_eq!(target(&policy, Some("lan0"), Some(Mac([2, 0, 0, 0, 0, 1]))), Target::Reject);
    assert_eq!(target(&policy, Some("lan0"), Some(Mac([2, 0, 0, 0, 0, 2]))), Target::Direct);
    policy.resolve_networks(&|name| (name == "guest").then(|| "lan0".into()));
    assert_eq!(target(&policy, Some("lan0"), None), Target::Outbound(1));
    policy.resolve_networks(&|_| None);
    assert_eq!(target(&policy, Some("lan0"), None), Target::Direct);
}

/// `cargo test --release --lib -- --ignored --nocapture match_cost` prints what a look-up costs.
#[test]
#[ignore = "figures for people"]
fn match_cost_does_not_grow_with_the_set() {
    for count in [10u32, 1_000, 100_000] {
        let nets = (0..count).map(|n| {
            let first = std::net::Ipv4Addr::from_bits(0x0100_0000 + n * 512);
            IpRange { first: first.into(), last: std::net::Ipv4Addr::from_bits(first.to_bits() + 255).into() }
        });
        let names: Vec<String> = (0..count).map(|n| format!("host-{n}.example")).collect();
        let domains = names.iter().map(|name| (name.as_str(), false)).collect();
        let set = |entries| Set {
            name: "s".into(),
            label: None,
            line: 1,
            entries,
            incomplete: false,
            source: Source::default(),
        };
        let sets = [set(Entries::Nets(Arc::new(nets.collect()))), set(Entries::Domains(Arc::new(domains)))];
        let (mut by_net, mut by_name) = (any_rule(0, Target::Drop), any_rule(0, Target::Drop));
        by_net.dest_ip.plain.push(AddressMatch::Set(0));
        by_name.domain.plain.push(DomainMatch::Set(1));
        let cost = |rule: config::Rule| {
            let policy = policy_with_sets(vec![rule], &sets, Target::Direct);
            let begin = std::time::SystemTime::now();
            const ROUNDS: u32 = 1_000_000;
            for n in 0..ROUNDS {
                let ip = std::net::Ipv4Addr::from_bits(0x0100_0000 + n.wrapping_mul(2_654_435_761) % (count * 512));
                let flow = Flow::new(Proto::Tcp, "192.168.1.2:4".parse().unwrap(), (ip, 443).into());
                std::hint::black_box(policy.decide(&Flow { domain: Some("a.host-7.example"), ..flow }));
            }
            begin.elapsed().unwrap() / ROUNDS
        };
        println!("{count:>7} entries: a network {:?}, a domain {:?}", cost(by_net), cost(by_name));
    }
}

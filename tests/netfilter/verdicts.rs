//! Three implementations of one rule list held against each other: a plain reference ([`reference`]), the process's
//! [`Policy`], and the kernel's, by real packets whose fate is observed.

mod flows;
mod reference;

use crate::lab::lab;
use flows::{Field, Packet};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use reference::{DESTINATIONS, LAN, NAMES, PORTS, Rule, VALUES, domain_value};
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use tproxyd::config::{Mac, Target};
use tproxyd::netfilter::load::Objects;
use tproxyd::policy::{Flow, Policy, Proto};

fn any_values(count: usize) -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec((prop::bool::weighted(0.3), 0..count), 1..4),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let protos = prop_oneof![3 => Just("any"), 1 => Just("tcp"), 1 => Just("udp")];
    let families = prop_oneof![4 => Just("any"), 1 => Just("ipv4"), 1 => Just("ipv6")];
    let values = VALUES.len();
    let domains =
        prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec((prop::bool::weighted(0.3), 0..4usize), 1..3)];
    (
        (protos, families, any_values(2), any_values(2), any_values(values), any_values(2)),
        (any_values(PORTS.len()), any_values(values), any_values(PORTS.len()), domains),
        (prop::option::weighted(0.3, 0..reference::HOURS.len()), 0..reference::OUTBOUNDS.len()),
    )
        .prop_map(
            |(
                (proto, family, device, network, src_ip, src_mac),
                (src_port, dest_ip, dest_port, domain),
                (hours, outbound),
            )| {
                Rule {
                    proto,
                    family,
                    device,
                    // "and" with a device of its own would match next to nothing
                    network: if network.len() > 1 { network } else { Vec::new() },
                    src_ip,
                    src_mac,
                    src_port,
                    dest_ip,
                    dest_port,
                    domain,
                    hours,
                    outbound,
                }
            },
        )
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let ports = || prop::sample::select(&flows::PORTS[..]);
    (any::<bool>(), any::<bool>(), 0..2usize, 0..LAN, 0..DESTINATIONS, ports(), ports(), 0..NAMES.len()).prop_map(
        |(tcp, v4, device, client, destination, from, to, name)| Packet {
            tcp,
            device,
            client: SocketAddr::new(reference::client(v4, device, client), from),
            orig_dst: SocketAddr::new(reference::destination(v4, destination), to),
            name: NAMES[name],
        },
    )
}

/// A list of rules, a default, and packets of which no two are of one flow.
fn any_case() -> impl Strategy<Value = (Vec<Rule>, usize, Vec<Packet>)> {
    let rules = prop::collection::vec(any_rule(), 0..6);
    (rules, 0..reference::OUTBOUNDS.len(), prop::collection::vec(any_packet(), 1..60)).prop_map(
        |(rules, default, mut packets)| {
            packets.sort_by_key(|packet| (packet.tcp, packet.client, packet.orig_dst));
            packets.dedup_by_key(|packet| (packet.tcp, packet.client, packet.orig_dst));
            (rules, default, packets)
        },
    )
}

/// What the process does with a flow of this name.
fn by_process(policy: &Policy, packet: &Packet, name: Option<&str>) -> Target {
    let proto = if packet.tcp { Proto::Tcp } else { Proto::Udp };
    let flow = Flow::new(proto, packet.client, packet.orig_dst);
    let mac = Mac([2, 0, 0, 0, 0, packet.device as u8]);
    policy.decide(&Flow { domain: name, device: Some(flows::DEVICES[packet.device]), mac: Some(mac), ..flow }).target
}

#[test]
fn reference_process_and_kernel_agree_on_every_rule_list_and_packet() {
    lab(|lab| {
        let field = Field::build(&lab);
        let mut runner = TestRunner::new(Config {
            cases: std::env::var("CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(150),
            failure_persistence: None,
            max_shrink_iters: 300,
            ..Config::default()
        });
        let objects = RefCell::new(Objects::default());
        let seen = Cell::new(0);
        let result = runner.run(&any_case(), |(rules, default, packets)| {
            let text = reference::uci(&rules, default);
            let cfg = crate::config(&text);
            let targets: Vec<Target> = (0..cfg.outbounds.len()).map(|n| Target::Outbound(n as u16)).collect();
            let mut policy = Policy::new(&cfg, &targets);
            policy.resolve_networks(&|name| reference::device_of(name).map(str::to_owned));
            for packet in &packets {
                for name in [packet.name, None] {
                    let found = name.filter(|_| reference::is_sniffed(packet));
                    let expected = reference::decide(&rules, default, packet, found);
                    let got = reference::outcome(by_process(&policy, packet, found));
                    prop_assert_eq!(got, expected, "process, {:?}, {:?}\n{}", packet, found, &text);
                }
            }
            let before = objects.take();
            objects.replace(field.install(&text, before));
            let fates = field.send(&packets, |packet| reference::fate(&rules, default, packet));
            seen.set(seen.get() + packets.len());
            for (packet, fate) in packets.iter().zip(fates) {
                let expected = reference::fate(&rules, default, packet);
                if fate != expected {
                    let why = format!("kernel: {fate:?}, not {expected:?}: {packet:?}\n{text}");
                    return Err(TestCaseError::fail(why));
                }
            }
            Ok(())
        });
        if let Err(why) = result {
            panic!("after {} packets: {why}", seen.get());
        }
        assert!(seen.get() > 1000, "only {} packets", seen.get());
        println!("{} packets", seen.get());
    });
}

#[test]
fn the_reference_itself_knows_ranges_sets_and_names() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(reference::value_matches(0, ip("198.51.100.3")) && !reference::value_matches(0, ip("198.51.100.7")));
    assert!(domain_value(0, Some("x.b.example")) && !domain_value(1, Some("x.a.example")));
    assert!(domain_value(2, Some("x.b.example")) && !domain_value(0, None));
}

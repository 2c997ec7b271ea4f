//! What a listener's chain returns, because its `src_ip`, `dest_port` and so on don't want it.

use super::set_name;
use super::text::{self, address_ranges, list, merged, port_ranges};
use crate::config::{AddressMatch, Config, Families, IpRange, Listener, Mac, PortRange, Values};

/// Rules that return what `listener` doesn't want.
pub(super) fn narrowing(cfg: &Config, listener: &Listener, families: Families) -> Vec<String> {
    let mut rules = Vec::new();
    if !families.v4 || !families.v6 {
        rules.push(format!("meta nfproto != {} return", if families.v4 { "ipv4" } else { "ipv6" }));
    }
    match (listener.protos.tcp, listener.protos.udp) {
        (true, false) => rules.push("meta l4proto != tcp return".to_string()),
        (false, true) => rules.push("meta l4proto != udp return".to_string()),
        _ => {}
    }
    addresses(&mut rules, cfg, "saddr", &listener.src_ip);
    macs(&mut rules, &listener.src_mac);
    ports(&mut rules, "sport", &listener.src_port);
    addresses(&mut rules, cfg, "daddr", &listener.dest_ip);
    ports(&mut rules, "dport", &listener.dest_port);
    rules
}

fn addresses(rules: &mut Vec<String>, cfg: &Config, field: &str, values: &Values<AddressMatch>) {
    for (v4, ip, family, nfproto) in [(true, "ip", 4, "ipv4"), (false, "ip6", 6, "ipv6")] {
        let sides = |values: &[AddressMatch]| {
            let ranges: Vec<_> = values.iter().filter_map(range_of).collect();
            let mut operands = Vec::new();
            let inline = address_ranges(&merged(&ranges), v4);
            if !inline.is_empty() {
                operands.push(list(&inline));
            }
            let sets = values.iter().filter_map(set_of).filter_map(|index| cfg.sets.get(usize::from(index)));
            operands.extend(sets.map(|set| format!("@{}", set_name(family, set))));
            operands
        };
        for operand in sides(&values.not) {
            rules.push(format!("{ip} {field} {operand} return"));
        }
        let wanted = sides(&values.plain);
        if !wanted.is_empty() {
            // In none of them: joined by "and" in one rule.
            let none: Vec<_> = wanted.iter().map(|operand| format!("{ip} {field} != {operand}")).collect();
            rules.push(format!("{} return", none.join(" ")));
        } else if !values.plain.is_empty() {
            rules.push(format!("meta nfproto {nfproto} return"));
        }
    }
}

pub(super) fn range_of(value: &AddressMatch) -> Option<IpRange> {
    if let AddressMatch::Range(range) = value { Some(*range) } else { None }
}

pub(super) fn set_of(value: &AddressMatch) -> Option<u16> {
    if let AddressMatch::Set(index) = value { Some(*index) } else { None }
}

fn macs(rules: &mut Vec<String>, values: &Values<Mac>) {
    if !values.not.is_empty() {
        rules.push(format!("ether saddr {} return", text::macs(&values.not)));
    }
    if !values.plain.is_empty() {
        // `ether saddr` itself demands Ethernet: on another device "!=" would not match either.
        rules.push("meta iiftype != ether return".to_string());
        rules.push(format!("ether saddr != {} return", text::macs(&values.plain)));
    }
}

fn ports(rules: &mut Vec<String>, field: &str, values: &Values<PortRange>) {
    if !values.not.is_empty() {
        rules.push(format!("th {field} {} return", list(&port_ranges(&values.not))));
    }
    if !values.plain.is_empty() {
        rules.push(format!("th {field} != {} return", list(&port_ranges(&values.plain))));
    }
}

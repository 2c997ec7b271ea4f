//! A plain reading of a rule list: no sets, no compilation, one value after the other.

use super::flows::{DEVICES, Fate, Packet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tproxyd::config::Target;

/// Values of each kind: whether `!` is before it, and which of the values below.
pub(crate) type Values = Vec<(bool, usize)>;

/// A rule as it is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) proto: &'static str,
    pub(crate) family: &'static str,
    pub(crate) device: Values,
    pub(crate) network: Values,
    pub(crate) src_ip: Values,
    pub(crate) src_mac: Values,
    pub(crate) src_port: Values,
    pub(crate) dest_ip: Values,
    pub(crate) dest_port: Values,
    pub(crate) domain: Values,
    /// One of [`HOURS`].
    pub(crate) hours: Option<usize>,
    pub(crate) outbound: usize,
}

/// Addresses of clients on each device, and of destinations.
pub(crate) const LAN: usize = 3;
pub(crate) const DESTINATIONS: usize = 6;

pub(crate) fn client(v4: bool, device: usize, n: usize) -> IpAddr {
    let (net, host) = (device as u8 + 1, n as u8 + 2);
    if v4 { [192, 168, net, host].into() } else { Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, host.into()).into() }
}

pub(crate) fn destination(v4: bool, n: usize) -> IpAddr {
    let host = n as u8 + 2;
    if v4 { [198, 51, 100, host].into() } else { Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, host.into()).into() }
}

/// Values of src_ip and dest_ip as they are written, and the ranges that they stand for.
pub(crate) const VALUES: [(&str, &[(&str, &str)]); 9] = [
    ("198.51.100.2/31", &[("198.51.100.2", "198.51.100.3")]),
    ("198.51.100.4-198.51.100.6", &[("198.51.100.4", "198.51.100.6")]),
    ("2001:db8:7::2/127", &[("2001:db8:7::2", "2001:db8:7::3")]),
    ("2001:db8:7::6", &[("2001:db8:7::6", "2001:db8:7::6")]),
    ("192.168.1.0/24", &[("192.168.1.0", "192.168.1.255")]),
    ("192.168.2.3", &[("192.168.2.3", "192.168.2.3")]),
    ("fd00:1::/32", &[("fd00:1::", "fd00:1:ffff:ffff:ffff:ffff:ffff:ffff")]),
    ("@few", &[("198.51.100.5", "198.51.100.5"), ("192.168.1.2", "192.168.1.3"), ("2001:db8:7::4", "2001:db8:7::5")]),
    // more intervals than `kernel_set_max`
    (
        "@large",
        &[
            ("198.51.100.2", "198.51.100.2"),
            ("198.51.100.4", "198.51.100.4"),
            ("192.168.2.2", "192.168.2.2"),
            ("2001:db8:7::3", "2001:db8:7::3"),
            ("fd00:2::2", "fd00:2::2"),
        ],
    ),
];

const KERNEL_SET_MAX: usize = 3;

pub(crate) const PORTS: [(&str, u16, u16); 4] =
    [("443", 443, 443), ("1000-1499", 1000, 1499), ("1500-2000", 1500, 2000), ("2000", 2000, 2000)];

/// Names that flows ask for.
pub(crate) const NAMES: [Option<&str>; 4] = [None, Some("a.example"), Some("x.b.example"), Some("c.test")];

const DOMAINS: [&str; 4] = ["example", "=a.example", "@names", "test"];

pub(crate) fn domain_value(value: usize, name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    let below = |domain: &str| name == domain || name.ends_with(&format!(".{domain}"));
    match value {
        0 => below("example"),
        1 => name == "a.example",
        2 => below("b.example"),
        _ => below("test"),
    }
}

/// From, until, and whether noon is between, which is when it is tried.
pub(crate) const HOURS: [(&str, &str, bool); 4] =
    [("11:00", "12:00:01", true), ("12:00", "11:00", true), ("13:00", "12:00", false), ("22:00", "06:00", false)];

const MACS: [&str; 2] = ["02:00:00:00:00:00", "02:00:00:00:00:01"];
const NETWORKS: [&str; 2] = ["zero", "one"];

pub(crate) fn device_of(network: &str) -> Option<&'static str> {
    NETWORKS.iter().position(|name| *name == network).map(|n| DEVICES[n])
}

/// What an outbound comes to for TCP and UDP.
pub(crate) const OUTBOUNDS: [(&str, Outcome, Outcome); 6] = [
    ("direct", Outcome::Direct, Outcome::Direct),
    ("reject", Outcome::Reject, Outcome::Reject),
    ("drop", Outcome::Drop, Outcome::Drop),
    ("proxy", Outcome::Relay, Outcome::Relay),
    ("tcponly", Outcome::Relay, Outcome::Drop),
    ("open", Outcome::Direct, Outcome::Relay),
];

/// What becomes of a flow in the end; `Relay`: by a way that only the process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Direct,
    Reject,
    Drop,
    Relay,
}

/// What the process's target comes to.
pub(crate) fn outcome(target: Target) -> Outcome {
    match target {
        Target::Direct => Outcome::Direct,
        Target::Reject => Outcome::Reject,
        Target::Drop => Outcome::Drop,
        Target::Outbound(_) => Outcome::Relay,
    }
}

fn kind(values: &Values, known: bool, one: impl Fn(usize) -> bool) -> bool {
    let mut plain = values.iter().filter(|(not, _)| !not).peekable();
    let wanted = plain.peek().is_none() || plain.any(|(_, n)| one(*n));
    values.is_empty() || known && wanted && !values.iter().any(|(not, n)| *not && one(*n))
}

pub(crate) fn value_matches(value: usize, ip: IpAddr) -> bool {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(Ipv4Addr::to_bits(ip)),
        IpAddr::V6(ip) => Ipv6Addr::to_bits(ip),
    };
    VALUES[value].1.iter().any(|(first, last)| {
        let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
        first.is_ipv4() == ip.is_ipv4() && (number(first)..=number(last)).contains(&number(ip))
    })
}

fn is_large(value: usize) -> bool {
    VALUES[value].1.len() > KERNEL_SET_MAX
}

/// How the conditions of a rule but for its names stand to a packet: `None`: the kernel can't tell, as it lacks a set.
fn matches(rule: &Rule, packet: &Packet, in_kernel: bool) -> Option<bool> {
    let proto = rule.proto == "any" || (rule.proto == "tcp") == packet.tcp;
    let family = rule.family == "any" || (rule.family == "ipv4") == packet.orig_dst.is_ipv4();
    let port = |values: &Values, port: u16| kind(values, true, |n| (PORTS[n].1..=PORTS[n].2).contains(&port));
    let rest = rule.hours.is_none_or(|n| HOURS[n].2)
        && proto
        && family
        && kind(&rule.device, true, |n| n == packet.device)
        && kind(&rule.network, true, |n| n == packet.device)
        && kind(&rule.src_mac, true, |n| n == packet.device)
        && port(&rule.src_port, packet.client.port())
        && port(&rule.dest_port, packet.orig_dst.port());
    let mut unsure = false;
    let mut addresses = |values: &Values, ip: IpAddr| {
        let without = |keep_not: bool| -> Values {
            values
                .iter()
                .copied()
                .filter(|(not, n)| !(in_kernel && is_large(*n)) || *not == keep_not && !is_large(*n))
                .collect()
        };
        let lacks_plain = in_kernel && values.iter().any(|(not, n)| !not && is_large(*n));
        let lacks_not = in_kernel && values.iter().any(|(not, n)| *not && is_large(*n));
        unsure |= lacks_plain || lacks_not;
        let known = without(true);
        let plain_ok = lacks_plain || {
            let plain: Values = values.iter().copied().filter(|(not, _)| !not).collect();
            kind(&plain, true, |n| value_matches(n, ip))
        };
        plain_ok && !known.iter().any(|(not, n)| *not && value_matches(*n, ip))
    };
    let (src, dst) = (addresses(&rule.src_ip, packet.client.ip()), addresses(&rule.dest_ip, packet.orig_dst.ip()));
    if !(rest && src && dst) {
        return Some(false);
    }
    if unsure { None } else { Some(true) }
}

fn outcome_of(outbound: usize, tcp: bool) -> Outcome {
    let (_, by_tcp, by_udp) = OUTBOUNDS[outbound];
    if tcp { by_tcp } else { by_udp }
}

/// What the process decides. `open` is an outbound of its own there, whatever the protocol.
pub(crate) fn decide(rules: &[Rule], default: usize, packet: &Packet, name: Option<&str>) -> Outcome {
    let found = rules
        .iter()
        .find(|rule| matches(rule, packet, false) == Some(true) && kind(&rule.domain, true, |n| domain_value(n, name)));
    let outbound = found.map_or(default, |rule| rule.outbound);
    if OUTBOUNDS[outbound].0 == "open" { Outcome::Relay } else { outcome_of(outbound, packet.tcp) }
}

pub(crate) fn is_sniffed(packet: &Packet) -> bool {
    packet.orig_dst.port() == 443
}

/// What the kernel does with a packet.
pub(crate) fn fate(rules: &[Rule], default: usize, packet: &Packet) -> Fate {
    for rule in rules {
        match matches(rule, packet, true) {
            Some(false) => {}
            Some(true) if rule.domain.is_empty() => return fate_of(rule.outbound, packet.tcp),
            _ if is_sniffed(packet) && !rule.domain.is_empty() => return Fate::Process,
            // no name will be found there, and only `!` values match what has none
            _ if rule.domain.iter().any(|(not, _)| !not) => {}
            Some(true) => return fate_of(rule.outbound, packet.tcp),
            None => return Fate::Process,
        }
    }
    fate_of(default, packet.tcp)
}

fn fate_of(outbound: usize, tcp: bool) -> Fate {
    match outcome_of(outbound, tcp) {
        Outcome::Direct => Fate::Direct,
        Outcome::Reject => Fate::Reject,
        Outcome::Drop => Fate::Drop,
        Outcome::Relay => Fate::Process,
    }
}

/// The configuration of a list.
pub(crate) fn uci(rules: &[Rule], default: usize) -> String {
    let mut text = format!(
        "config globals\n\toption default '{}'\n\toption kernel_set_max '{KERNEL_SET_MAX}'\n\toption sniff_port 'tcp:443 udp:443'
config listener 'lan'\n\toption port '2333'\n\toption device '{}'
config outbound 'proxy'\n\toption type 'socks5'\n\toption server '192.0.2.1'\n\toption port '1080'
config outbound 'tcponly'\n\toption type 'socks5'\n\toption server '192.0.2.1'\n\toption port '1080'\n\toption udp '0'\n\toption udp_outbound 'drop'
config outbound 'open'\n\toption type 'direct'\n\toption full_cone '1'
config set 'names'\n\toption type 'domain'\n\toption entry 'b.example'\n",
        OUTBOUNDS[default].0,
        DEVICES.join(" "),
    );
    for (name, ranges) in VALUES.iter().filter_map(|(value, ranges)| Some((value.strip_prefix('@')?, ranges))) {
        let _ = writeln!(text, "config set '{name}'");
        for (first, last) in *ranges {
            let _ = writeln!(text, "\tlist entry '{first}-{last}'");
        }
    }
    for rule in rules {
        let _ = writeln!(text, "config rule\n\toption outbound '{}'", OUTBOUNDS[rule.outbound].0);
        let _ = writeln!(text, "\toption proto '{}'\n\toption family '{}'", rule.proto, rule.family);
        let mut kind = |name: &str, values: &Values, written: &dyn Fn(usize) -> &'static str| {
            for (not, n) in values {
                let _ = writeln!(text, "\tlist {name} '{}{}'", if *not { "!" } else { "" }, written(*n));
            }
        };
        kind("device", &rule.device, &|n| DEVICES[n]);
        kind("network", &rule.network, &|n| NETWORKS[n]);
        kind("src_ip", &rule.src_ip, &|n| VALUES[n].0);
        kind("src_mac", &rule.src_mac, &|n| MACS[n]);
        kind("src_port", &rule.src_port, &|n| PORTS[n].0);
        kind("dest_ip", &rule.dest_ip, &|n| VALUES[n].0);
        kind("dest_port", &rule.dest_port, &|n| PORTS[n].0);
        kind("domain", &rule.domain, &|n| DOMAINS[n]);
        if let Some((start, stop, _)) = rule.hours.map(|n| HOURS[n]) {
            let _ = writeln!(text, "\toption utc_time '1'\n\toption start_time '{start}'\n\toption stop_time '{stop}'");
        }
    }
    text
}

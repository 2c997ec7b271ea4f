//! The same rules for `iptables-restore --noflush` and `ip6tables-restore --noflush`, one text for both: what starts with `-4`
//! or `-6` is for one of them, and the other skips it. Pure.
//!
//! What differs from nft: every verdict is the process's. TPROXY drops a packet where no socket listens, so that only the
//! helper opens the way after a crash. nat tables can't drop, so a block stands in mangle whatever the listener's mode.
//! Sets of the configuration are ipsets (lines `#ipset …`, which the restoring tools take for comments); servers and connected
//! prefixes are few, and are rules.
//!
//! A kind of narrowing with several values is a chain: what matches goes to the next, the rest falls out at its end.

use std::fmt::{Display, Write};
use std::net::IpAddr;

use super::narrowing::{range_of, set_of};
use super::{Active, LOOPBACK, Purpose, Script, merged, set_name, text};
use crate::config::{AddressMatch, IpRange, Mac, Mark, Mode, PortRange, Values};

mod redirecting;
mod router;

/// Begins the name of each chain and set of ours.
pub(in crate::netfilter) const PREFIX: &str = "tproxyd_";
/// Begins a line for `ipset restore`.
pub(in crate::netfilter) const IPSET: &str = "#ipset ";
/// The tables that have something of ours, in the order in which they are loaded: what lets packets in before what takes them.
pub(in crate::netfilter) const TABLES: [&str; 4] = ["filter", "raw", "nat", "mangle"];

const FILTER: usize = 0;
const RAW: usize = 1;
const NAT: usize = 2;
const MANGLE: usize = 3;

/// The whole text.
pub(super) fn render(script: &Script<'_>) -> String {
    let mut tables = Tables { script, of: Default::default() };
    tables.kept_sources();
    tables.prerouting();
    tables.caught();
    tables.live();
    tables.redirecting();
    for index in 0..script.active.len() {
        tables.listener(index);
    }
    tables.router();
    tables.one_arm();
    tables.input();
    tables.finish()
}

#[derive(Debug, Default)]
struct Table {
    /// `PREROUTING -j tproxyd_pre`: how packets come here.
    hooks: Vec<String>,
    chains: Vec<String>,
    rules: Vec<String>,
}

struct Tables<'a, 'b> {
    script: &'b Script<'a>,
    of: [Table; 4],
}

/// For which family a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Both,
    V4,
    V6,
}

impl For {
    fn is(v4: bool) -> For {
        if v4 { For::V4 } else { For::V6 }
    }
}

impl<'a> Tables<'a, '_> {
    fn finish(self) -> String {
        let mut out = String::new();
        for index in self.script.used_sets() {
            let Some(set) = self.script.cfg.sets.get(usize::from(index)) else { continue };
            for v4 in [true, false] {
                let name = ipset_name(v4, set);
                let ranges: Vec<_> = set.entries.nets().ranges().filter(|r| r.first.is_ipv4() == v4).collect();
                let elements: Vec<_> = ranges.iter().flat_map(|range| halves(prefixes(range))).collect();
                let (family, most) = (if v4 { "inet" } else { "inet6" }, elements.len().max(1));
                let _ = writeln!(out, "{IPSET}create {name} hash:net family {family} maxelem {most}");
                for element in elements {
                    let _ = writeln!(out, "{IPSET}add {name} {element}");
                }
            }
        }
        for (table, name) in self.of.iter().zip(TABLES).filter(|(table, _)| !table.hooks.is_empty()) {
            let _ = writeln!(out, "*{name}");
            for chain in &table.chains {
                let _ = writeln!(out, ":{chain} - [0:0]");
            }
            for hook in &table.hooks {
                let _ = writeln!(out, "-I {hook}");
            }
            for rule in &table.rules {
                let _ = writeln!(out, "{rule}");
            }
            out += "COMMIT\n";
        }
        out
    }

    /// The chain that packets of `hook` go through first.
    fn hook(&mut self, table: usize, hook: &str, chain: &str) {
        self.of[table].hooks.push(format!("{hook} -j {PREFIX}{chain}"));
        self.chain(table, chain);
    }

    fn chain(&mut self, table: usize, chain: &str) {
        self.of[table].chains.push(format!("{PREFIX}{chain}"));
    }

    fn rule(&mut self, table: usize, chain: &str, family: For, rule: impl Display) {
        let family = match family {
            For::Both => "",
            For::V4 => "-4 ",
            For::V6 => "-6 ",
        };
        self.of[table].rules.push(format!("{family}-A {PREFIX}{chain} {rule}"));
    }

    /// Once for TCP and once for UDP.
    fn of_each_proto(&mut self, table: usize, chain: &str, rule: impl Display) {
        for proto in ["tcp", "udp"] {
            self.rule(table, chain, For::Both, format_args!("-p {proto} {rule}"));
        }
    }

    fn mark(&self) -> Mark {
        self.script.cfg.globals.mark
    }

    fn own(&self) -> String {
        matches("mark", self.script.cfg.globals.self_mark)
    }

    /// True if mangle is where this listener's packets are asked for.
    fn is_in_mangle(&self, active: &Active<'_>) -> bool {
        active.listener.mode == Mode::Tproxy || self.script.purpose == Purpose::Block
    }

    fn prerouting(&mut self) {
        let script = self.script;
        if script.active.is_empty() {
            return;
        }
        self.hook(MANGLE, "PREROUTING", "pre");
        if script.keeps_sources() {
            let answers = format!("{} -m conntrack --ctdir REPLY", matches("connmark", script.cfg.globals.self_mark));
            self.rule(MANGLE, "pre", For::Both, format_args!("{answers} {}", sets("MARK", self.mark())));
            self.rule(MANGLE, "pre", For::Both, format_args!("{answers} -j ACCEPT"));
        }
        // Who speaks to the port itself was not intercepted: its flow would loop, or use the proxy from outside.
        for active in &script.active {
            for proto in ["tcp", "udp"].into_iter().filter(|proto| active.wants(proto)) {
                let port = active.listener.port;
                let to_it = format!("-p {proto} -m {proto} --dport {port} ! -i {LOOPBACK}");
                let stranger = "-m conntrack --ctstate NEW -m addrtype --dst-type LOCAL -j DROP";
                self.rule(MANGLE, "pre", For::Both, format_args!("{to_it} {stranger}"));
            }
        }
        if script.purpose == Purpose::Run && !script.of_router(Mode::Tproxy).is_empty() {
            let back = format!("-i {LOOPBACK} {} -g {PREFIX}live", matches("mark", self.mark()));
            self.of_each_proto(MANGLE, "pre", back);
        }
        let mut devices = script.all_devices();
        for active in script.active.iter().filter(|active| self.is_in_mangle(active)) {
            devices.extend(active.devices.iter().map(|name| (*name).to_string()));
        }
        let mut known: Vec<String> = Vec::new();
        for name in devices {
            if !known.contains(&name) {
                self.of_each_proto(MANGLE, "pre", format_args!("-i {} -g {PREFIX}caught", device(&name)));
                known.push(name);
            }
        }
    }

    fn caught(&mut self) {
        if self.script.active.is_empty() {
            return;
        }
        self.chain(MANGLE, "caught");
        self.rule(MANGLE, "caught", For::Both, format_args!("{} -j RETURN", self.own()));
        if self.script.by(Mode::Redirect).next().is_some() {
            self.rule(MANGLE, "caught", For::Both, "-m conntrack --ctstate DNAT -j RETURN");
        }
        let taken = matches("connmark", self.mark());
        self.rule(MANGLE, "caught", For::Both, format_args!("{taken} -g {PREFIX}live"));
        self.rule(MANGLE, "caught", For::Both, "-m conntrack ! --ctstate NEW -j RETURN");
        self.exclusions(MANGLE, "caught");
        self.ask_listeners("caught");
    }

    /// What is never taken, whatever the listeners say.
    fn exclusions(&mut self, table: usize, chain: &str) {
        let both = [
            // where conntrack did not see the beginning, a segment from the middle counts as new
            "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN",
            "-m addrtype --dst-type LOCAL",
            "-m addrtype --dst-type MULTICAST",
            "-m addrtype --dst-type ANYCAST",
            "-p udp -m udp --dport 67:68",
            "-p udp -m udp --dport 546:547",
        ];
        for what in both {
            self.rule(table, chain, For::Both, format_args!("{what} -j RETURN"));
        }
        self.rule(table, chain, For::V4, "-m addrtype --dst-type BROADCAST -j RETURN");
        for net in ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255"] {
            self.rule(table, chain, For::V4, format_args!("-d {net} -j RETURN"));
        }
        for net in ["::1", "fe80::/10", "ff00::/8"] {
            self.rule(table, chain, For::V6, format_args!("-d {net} -j RETURN"));
        }
        let mut servers: Vec<_> = self
            .script
            .facts
            .servers
            .iter()
            .map(|server| {
                let (proto, at) = (if server.tcp { "tcp" } else { "udp" }, server.address);
                (at.is_ipv4(), format!("-d {} -p {proto} -m {proto} --dport {}", at.ip(), at.port()))
            })
            .collect();
        servers.sort_unstable();
        servers.dedup();
        let on_link = merged(&self.script.facts.on_link);
        let on_link = on_link.iter().flat_map(|range| {
            prefixes(range).into_iter().map(|prefix| (range.first.is_ipv4(), format!("-d {prefix}")))
        });
        for (v4, what) in servers.into_iter().chain(on_link) {
            self.rule(table, chain, For::is(v4), format_args!("{what} -j RETURN"));
        }
    }

    /// Jumps to every listener's chain, in file order.
    fn ask_listeners(&mut self, chain: &str) {
        let script = self.script;
        for (index, active) in script.active.iter().enumerate() {
            let to = match active.listener.mode {
                _ if self.is_in_mangle(active) => 'l',
                Mode::Redirect if chain == "caught" && script.left_alone().contains(&index) => 'x',
                _ => continue,
            };
            let own = (chain == "live" && active.listener.router).then_some(LOOPBACK);
            for name in active.devices.iter().copied().chain(own) {
                self.rule(MANGLE, chain, For::Both, format_args!("-i {} -j {PREFIX}{to}{index}", device(name)));
            }
        }
    }

    fn live(&mut self) {
        let script = self.script;
        if script.active.is_empty() {
            return;
        }
        self.chain(MANGLE, "live");
        if script.purpose == Purpose::Run {
            self.live_streams();
            self.ask_listeners("live");
            self.live_rest();
        }
        if script.drops() {
            self.rule(MANGLE, "live", For::Both, "-j DROP");
        }
    }

    /// See `Script::live_streams`.
    fn live_streams(&mut self) {
        let script = self.script;
        for v4 in [true, false] {
            let streams: Vec<_> = script.by(Mode::Tproxy).filter(|a| a.wants("tcp") && a.takes(v4)).collect();
            if let [only] = streams[..] {
                let take = self.take(only);
                let no_first = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN";
                self.rule(MANGLE, "live", For::is(v4), format_args!("{no_first} {take}"));
            }
        }
    }

    /// See `Script::live_rest`.
    fn live_rest(&mut self) {
        let script = self.script;
        for v4 in [true, false] {
            for proto in ["tcp", "udp"] {
                let mut takers = script.by(Mode::Tproxy).filter(|a| a.takes(v4) && a.wants(proto)).peekable();
                let Some(first) = takers.peek().copied() else { continue };
                let mut served: Vec<&str> = first.live_devices().collect();
                for active in takers {
                    for name in active.live_devices().filter(|name| !served.contains(name)).collect::<Vec<_>>() {
                        served.push(name);
                        let take = self.take(active);
                        let rule = format!("-i {} -p {proto} {take}", device(name));
                        self.rule(MANGLE, "live", For::is(v4), rule);
                    }
                }
                let take = self.take(first);
                self.rule(MANGLE, "live", For::is(v4), format_args!("-p {proto} {take}"));
            }
        }
    }

    fn take(&self, active: &Active<'_>) -> String {
        let at = active.listener.address.filter(|address| !address.is_unspecified());
        let at = at.map(|address| format!(" --on-ip {address}")).unwrap_or_default();
        let Mark { value, mask } = self.mark();
        format!("-j TPROXY --on-port {}{at} --tproxy-mark {value:#x}/{mask:#x}", active.listener.port)
    }

    fn listener(&mut self, index: usize) {
        let script = self.script;
        let active = &script.active[index];
        let in_mangle = self.is_in_mangle(active);
        let table = if in_mangle { MANGLE } else { NAT };
        if !in_mangle && active.devices.is_empty() {
            return;
        }
        let chain = self.narrowing(table, &format!("l{index}"), active, true);
        if script.purpose == Purpose::Run && in_mangle {
            self.rule(table, &chain, For::Both, sets("CONNMARK", self.mark()));
            for v4 in [true, false].into_iter().filter(|v4| active.takes(*v4)) {
                for proto in ["tcp", "udp"].into_iter().filter(|proto| active.wants(proto)) {
                    let take = self.take(active);
                    self.rule(table, &chain, For::is(v4), format_args!("-p {proto} {take}"));
                }
            }
        } else if script.purpose == Purpose::Run {
            self.redirect(&chain, active);
        }
        if script.drops() && in_mangle {
            self.rule(table, &chain, For::Both, "-j DROP");
        }
    }

    /// Makes `chain`, which returns what `active` does not want. The name of the chain that what it wants comes to in the end.
    fn narrowing(&mut self, table: usize, chain: &str, active: &Active<'_>, with_mac: bool) -> String {
        self.chain(table, chain);
        let listener = active.listener;
        for v4 in [true, false].into_iter().filter(|v4| !active.takes(*v4)) {
            self.rule(table, chain, For::is(v4), "-j RETURN");
        }
        for proto in ["tcp", "udp"].into_iter().filter(|proto| !active.wants(proto)) {
            self.rule(table, chain, For::Both, format_args!("-p {proto} -j RETURN"));
        }
        let macs = if with_mac { self.macs(&listener.src_mac) } else { Kind::default() };
        let kinds = [
            self.addresses("-s", "src", &listener.src_ip),
            macs,
            ports("--sport", &listener.src_port),
            self.addresses("-d", "dst", &listener.dest_ip),
            ports("--dport", &listener.dest_port),
        ];
        let mut at = chain.to_string();
        for (number, kind) in kinds.into_iter().enumerate() {
            for (family, what) in kind.not {
                self.rule(table, &at, family, format_args!("{what} -j RETURN"));
            }
            if kind.is_narrow {
                let next = format!("{chain}_{number}");
                for (family, what) in kind.plain {
                    self.rule(table, &at, family, format_args!("{what} -g {PREFIX}{next}"));
                }
                self.chain(table, &next);
                at = next;
            }
        }
        at
    }

    fn addresses(&self, field: &str, side: &str, values: &Values<AddressMatch>) -> Kind {
        let operands = |values: &[AddressMatch]| {
            let ranges: Vec<_> = values.iter().filter_map(range_of).collect();
            let ranges = merged(&ranges);
            let mut all: Vec<_> = ranges
                .iter()
                .flat_map(|range| prefixes(range).into_iter().map(|p| (For::is(range.first.is_ipv4()), p)))
                .map(|(family, prefix)| (family, format!("{field} {prefix}")))
                .collect();
            for set in values.iter().filter_map(set_of).filter_map(|at| self.script.cfg.sets.get(usize::from(at))) {
                for v4 in [true, false] {
                    all.push((For::is(v4), format!("-m set --match-set {} {side}", ipset_name(v4, set))));
                }
            }
            all
        };
        Kind { is_narrow: !values.plain.is_empty(), plain: operands(&values.plain), not: operands(&values.not) }
    }

    fn macs(&self, values: &Values<Mac>) -> Kind {
        let operands = |macs: &[Mac]| {
            let text = |Mac([a, b, c, d, e, f]): &Mac| format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            macs.iter().map(|mac| (For::Both, format!("-m mac --mac-source {}", text(mac)))).collect()
        };
        Kind { is_narrow: !values.plain.is_empty(), plain: operands(&values.plain), not: operands(&values.not) }
    }

    /// Intercepted packets keep their destination, so a zone whose input is closed would reject them.
    fn input(&mut self) {
        if self.script.purpose == Purpose::Run && !self.script.active.is_empty() {
            self.hook(FILTER, "INPUT", "in");
            self.rule(FILTER, "in", For::Both, format_args!("{} -j ACCEPT", matches("mark", self.mark())));
        }
    }
}

/// What one kind of narrowing asks.
#[derive(Default)]
struct Kind {
    /// Only what is in `plain` is wanted.
    is_narrow: bool,
    plain: Vec<(For, String)>,
    not: Vec<(For, String)>,
}

fn ports(field: &str, values: &Values<PortRange>) -> Kind {
    let operands = |ranges: &[PortRange]| {
        let ranges = text::port_ranges(ranges);
        let both = ["tcp", "udp"].into_iter().flat_map(|proto| {
            ranges.iter().map(move |range| format!("-p {proto} -m {proto} {field} {}", range.replace('-', ":")))
        });
        both.map(|what| (For::Both, what)).collect()
    };
    Kind { is_narrow: !values.plain.is_empty(), plain: operands(&values.plain), not: operands(&values.not) }
}

/// The prefixes that make up a range.
fn prefixes(range: &IpRange) -> Vec<String> {
    let width = if range.first.is_ipv4() { 32 } else { 128 };
    let (mut low, high) = (text::bits(range.first), text::bits(range.last));
    let mut found = Vec::new();
    loop {
        // as many host bits as the alignment of `low` and the rest of the range allow
        let mut host = low.trailing_zeros().min(width);
        while host > 0 && low.checked_add(ones(host)).is_none_or(|last| last > high) {
            host -= 1;
        }
        let address = match range.first {
            IpAddr::V4(_) => IpAddr::V4((low as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(low.into()),
        };
        found.push(format!("{address}/{}", width - host));
        match low.checked_add(ones(host)).filter(|last| *last < high) {
            Some(last) => low = last + 1,
            None => return found,
        }
    }
}

fn ones(bits: u32) -> u128 {
    if bits == 0 { 0 } else { u128::MAX >> (128 - bits) }
}

/// hash:net can't hold everything as one element.
fn halves(prefixes: Vec<String>) -> Vec<String> {
    match prefixes.as_slice() {
        [all] if all == "0.0.0.0/0" => vec!["0.0.0.0/1".into(), "128.0.0.0/1".into()],
        [all] if all == "::/0" => vec!["::/1".into(), "8000::/1".into()],
        _ => prefixes,
    }
}

/// As with nft the name stands for the content; ipset's names are short.
fn ipset_name(v4: bool, set: &crate::config::Set) -> String {
    let family = if v4 { 4 } else { 6 };
    let name = set_name(family, set);
    let hash = name.rsplit('_').next().unwrap_or_default();
    format!("{PREFIX}{family}_{hash}")
}

/// `wlan*` is `wlan+` here.
fn device(name: &str) -> String {
    name.strip_suffix('*').map_or_else(|| name.to_string(), |start| format!("{start}+"))
}

fn matches(kind: &str, Mark { value, mask }: Mark) -> String {
    format!("-m {kind} --mark {value:#x}/{mask:#x}")
}

/// Touches the bits of the mask only: the others belong to others.
fn sets(target: &str, Mark { value, mask }: Mark) -> String {
    format!("-j {target} --set-xmark {value:#x}/{mask:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_becomes_the_fewest_prefixes_that_make_it_up() {
        let of =
            |first: &str, last: &str| prefixes(&IpRange { first: first.parse().unwrap(), last: last.parse().unwrap() });
        assert_eq!(of("10.0.0.1", "10.0.0.6"), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]);
        assert_eq!(of("192.168.1.0", "192.168.1.255"), ["192.168.1.0/24"]);
        assert_eq!(of("255.255.255.255", "255.255.255.255"), ["255.255.255.255/32"]);
        assert_eq!(halves(of("0.0.0.0", "255.255.255.255")), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(halves(of("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")), ["::/1", "8000::/1"]);
        assert_eq!(of("fd00::1", "fd00::2"), ["fd00::1/128", "fd00::2/128"]);
    }
}

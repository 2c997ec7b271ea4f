//! Configuration and facts → the text that `nft -f -` loads in one transaction (`iptables`: the other backend). Pure.
//!
//! How a packet goes through `prerouting`:
//!
//! 1. Strangers who speak to a listener's own port are dropped.
//! 2. Devices of no listener: on as usual. Others: chain `caught`.
//! 3. `caught`: own packets pass. A conntrack mark of ours: chain `live`. What began before us, or is no first packet,
//!    passes; so do the exclusions. The rest asks the listeners in file order.
//! 4. A listener's chain returns what its narrowing doesn't want, and takes the rest: `tproxy` first, the marks after, so
//!    that without a socket the rule ends before them and the packet goes on (fail-open); `on_failure block` adds a drop.
//!    What it does not know yet it gives to the rule list first: `verdicts`. Live flows ask that again, where time or a
//!    reload changes it: `again`.
//! 5. `live` keeps flows with the process when narrowing or rules change. A TCP segment finds its established socket, as
//!    `tproxy` looks for that before it looks at the port. A first SYN once more, or a datagram, goes to the listener
//!    that wants it, and if none does any more, to the first of its device: all of them end in the same process, whose
//!    tables know the flow.

use std::fmt::{Arguments, Display, Write};

use super::{Facts, ServerAddress, TABLE};
use crate::config::domains::{FNV_BASIS, fnv1a};
use crate::config::{AddressMatch, Backend, Config, Families, IpRange, Listener, Mark, Mode, OnFailure, Set};

mod again;
pub(super) mod iptables;
mod keep_source;
mod narrowing;
mod one_arm;
mod redirecting;
mod router;
mod text;
mod verdicts;
pub use again::decided_mark;
use narrowing::narrowing;
use text::{address_ranges, device, host, list, merged};
pub use verdicts::RULE;

/// The whole rule set while the daemon runs.
pub fn render(cfg: &Config, facts: &Facts) -> String {
    Script::new(cfg, facts, Purpose::Run).of_backend()
}

/// Only what `on_failure block` needs while the daemon does not run: what listeners would catch is dropped.
pub fn render_block(cfg: &Config, facts: &Facts) -> String {
    Script::new(cfg, facts, Purpose::Block).of_backend()
}

/// Fills the outbounds' servers anew, and nothing else. With iptables they are rules, all of which are loaded again.
pub fn render_servers(cfg: &Config, facts: &Facts) -> String {
    if facts.backend == Backend::Iptables { render(cfg, facts) } else { fill_servers(&facts.servers) }
}

fn fill_servers(servers: &[ServerAddress]) -> String {
    let mut out = String::new();
    for (set, v4) in [(SERVERS4, true), (SERVERS6, false)] {
        put(&mut out, format_args!("flush set inet {TABLE} {set}"));
        let of_family = servers.iter().filter(|server| server.address.is_ipv4() == v4);
        let mut elements: Vec<_> = of_family
            .map(|server| {
                let proto = if server.tcp { "tcp" } else { "udp" };
                format!("{} . {proto} . {}", server.address.ip(), server.address.port())
            })
            .collect();
        elements.sort_unstable();
        elements.dedup();
        fill(&mut out, set, &elements);
    }
    out
}

/// Fills the on-link prefixes anew, and nothing else.
pub fn render_on_link(on_link: &[IpRange]) -> String {
    let mut out = String::new();
    for (set, v4) in [(ON_LINK4, true), (ON_LINK6, false)] {
        put(&mut out, format_args!("flush set inet {TABLE} {set}"));
        fill(&mut out, set, &address_ranges(&merged(on_link), v4));
    }
    out
}

/// A range as nft and iptables write it.
pub(super) fn prefix_text(range: &IpRange) -> String {
    text::address_range(range)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Run,
    Block,
}

/// A listener that can be reached in this namespace.
struct Active<'a> {
    listener: &'a Listener,
    devices: Vec<&'a str>,
    families: Families,
}

struct Script<'a> {
    cfg: &'a Config,
    facts: &'a Facts,
    purpose: Purpose,
    active: Vec<Active<'a>>,
    out: String,
}

impl<'a> Script<'a> {
    fn new(cfg: &'a Config, facts: &'a Facts, purpose: Purpose) -> Self {
        let listeners = cfg.listeners.iter().enumerate().filter_map(|(i, listener)| {
            let devices = facts.devices.get(i)?.iter().filter_map(|name| device(name)).collect::<Vec<_>>();
            let families = usable_families(listener, facts.families);
            let reachable = (!devices.is_empty() || listener.router) && (families.v4 || families.v6);
            let reachable = reachable && listener.mode.intercepts();
            reachable.then_some(Active { listener, devices, families })
        });
        Script { cfg, facts, purpose, active: listeners.collect(), out: String::new() }
    }

    fn of_backend(self) -> String {
        if self.facts.backend == Backend::Iptables { iptables::render(&self) } else { self.finish() }
    }

    fn finish(mut self) -> String {
        self.declare();
        self.fill_sets();
        self.prerouting();
        self.redirecting();
        self.router();
        self.caught();
        self.live();
        for index in 0..self.active.len() {
            self.listener(index);
        }
        self.verdicts();
        self.output();
        self.one_arm();
        self.out
    }

    fn line(&mut self, line: Arguments<'_>) {
        put(&mut self.out, line);
    }

    fn rule(&mut self, chain: &str, rule: impl Display) {
        self.line(format_args!("add rule inet {TABLE} {chain} {rule}"));
    }

    /// Chains, counters and sets first, so that rules can name them. `flush table` takes the rules of all chains away
    /// and leaves sets and counters as they are.
    fn declare(&mut self) {
        self.line(format_args!("add table inet {TABLE}"));
        self.line(format_args!("flush table inet {TABLE}"));
        for chain in ["caught", "live"] {
            self.line(format_args!("add chain inet {TABLE} {chain}"));
        }
        for name in self.active.iter().map(|a| a.listener.name.clone()).collect::<Vec<_>>() {
            self.line(format_args!("add counter inet {TABLE} listener_{name}"));
            self.line(format_args!("add chain inet {TABLE} listener_{name}"));
        }
        for (chain, hook) in [("prerouting", "prerouting"), ("output", "output")] {
            let base = format!("{{ type filter hook {hook} priority mangle; policy accept; }}");
            self.line(format_args!("add chain inet {TABLE} {chain} {base}"));
        }
        self.declare_redirecting();
        self.declare_router();
        self.declare_verdicts();
        self.declare_again();
        self.declare_one_arm();
        for (set, kind) in [(SERVERS4, "ipv4_addr"), (SERVERS6, "ipv6_addr")] {
            self.line(format_args!("add set inet {TABLE} {set} {{ type {kind} . inet_proto . inet_service; }}"));
        }
        for (set, kind) in [(ON_LINK4, "ipv4_addr"), (ON_LINK6, "ipv6_addr")] {
            self.line(format_args!("add set inet {TABLE} {set} {{ type {kind}; flags interval; }}"));
        }
    }

    fn fill_sets(&mut self) {
        self.out += &fill_servers(&self.facts.servers);
        self.out += &render_on_link(&self.facts.on_link);
        for index in self.used_sets() {
            let Some(set) = self.cfg.sets.get(usize::from(index)) else { continue };
            for (v4, family, kind) in [(true, 4, "ipv4_addr"), (false, 6, "ipv6_addr")] {
                let name = set_name(family, set);
                self.line(format_args!("add set inet {TABLE} {name} {{ type {kind}; flags interval; }}"));
                let ranges: Vec<_> = set.entries.nets().ranges().collect();
                fill(&mut self.out, &name, &address_ranges(&ranges, v4));
            }
        }
    }

    fn used_sets(&self) -> Vec<u16> {
        let kinds = self.active.iter().flat_map(|a| [&a.listener.src_ip, &a.listener.dest_ip]);
        let values = kinds.flat_map(|kind| kind.plain.iter().chain(&kind.not));
        let mut used: Vec<u16> =
            values.filter_map(|value| if let AddressMatch::Set(index) = value { Some(*index) } else { None }).collect();
        used.extend(self.sets_of_rules());
        used.sort_unstable();
        used.dedup();
        used
    }

    fn prerouting(&mut self) {
        let ports: Vec<_> = self
            .active
            .iter()
            .flat_map(|a| {
                let protos = [(a.listener.protos.tcp, "tcp"), (a.listener.protos.udp, "udp")];
                protos.into_iter().filter(|p| p.0).map(|p| format!("{} . {}", p.1, a.listener.port))
            })
            .collect();
        if ports.is_empty() {
            return;
        }
        self.answers_to_kept_sources();
        // Who speaks to the port itself was not intercepted: its flow would loop, or use the proxy from outside.
        self.rule(
            "prerouting",
            format_args!(
                r#"ct state new iifname != "lo" meta l4proto . th dport {} fib daddr type local drop comment "own ports""#,
                list(&ports)
            ),
        );
        self.ask_again();
        for name in self.all_devices() {
            self.rule("prerouting", format_args!(r#"iifname "{name}" meta l4proto {{ tcp, udp }} goto caught"#));
        }
    }

    /// The devices of all listeners by TPROXY, and those on which flows of earlier ones live on; each once.
    fn all_devices(&self) -> Vec<String> {
        let former = self.facts.former_devices.iter().filter_map(|name| device(name));
        let mut devices = Vec::new();
        for name in self.by(Mode::Tproxy).flat_map(|a| a.devices.iter().copied()).chain(former) {
            if !devices.iter().any(|known| known == name) {
                devices.push(name.to_string());
            }
        }
        devices
    }

    fn caught(&mut self) {
        let own = matches_mark("meta mark", self.cfg.globals.self_mark);
        let taken = matches_mark("ct mark", self.cfg.globals.mark);
        self.rule("caught", format_args!(r#"{own} return comment "self_mark""#));
        self.pass_redirected_by();
        self.rule("caught", format_args!(r#"{taken} goto live comment "flows that we took before""#));
        self.rule("caught", r#"ct state != new return comment "flows that began without us""#);
        self.exclusions("caught");
        self.ask_listeners("caught");
    }

    /// What is never taken, whatever the listeners say.
    fn exclusions(&mut self, chain: &str) {
        // Where conntrack did not see the beginning, a segment from the middle counts as new (kernel.md section 5).
        let begun = r#"tcp flags & (fin | syn | rst | ack) != syn return comment "not the beginning of a connection""#;
        self.rule(chain, begun);
        self.places_passed_by(chain);
    }

    fn places_passed_by(&mut self, chain: &str) {
        let lines: &[&dyn Display] = &[
            // loopback is local, too
            &r#"fib daddr type { local, broadcast, multicast, anycast } return comment "the router, and everybody""#,
            &r#"ip daddr 169.254.0.0/16 return comment "link-local""#,
            &r#"ip6 daddr fe80::/10 return comment "link-local""#,
            &r#"udp dport { 67, 68, 546, 547 } return comment "DHCP""#,
            &format_args!(r#"ip daddr . meta l4proto . th dport @{SERVERS4} return comment "outbounds' servers""#),
            &format_args!(r#"ip6 daddr . meta l4proto . th dport @{SERVERS6} return comment "outbounds' servers""#),
            &format_args!(r#"ip daddr @{ON_LINK4} return comment "connected prefixes""#),
            &format_args!(r#"ip6 daddr @{ON_LINK6} return comment "connected prefixes""#),
        ];
        for line in lines {
            self.rule(chain, line);
        }
    }

    /// Jumps to every listener's chain, in file order.
    fn ask_listeners(&mut self, chain: &str) {
        let mut rules = Vec::new();
        for (index, Active { listener, devices, .. }) in self.active.iter().enumerate() {
            let to = match listener.mode {
                Mode::Tproxy => "listener",
                Mode::Redirect if chain == "caught" && self.left_alone().contains(&index) => "left",
                _ => continue,
            };
            let own = (chain == "live" && listener.router).then_some(LOOPBACK);
            let devices = devices.iter().copied().chain(own);
            rules.extend(devices.map(|name| format!(r#"iifname "{name}" jump {to}_{}"#, listener.name)));
        }
        for rule in rules {
            self.rule(chain, rule);
        }
    }

    fn live(&mut self) {
        if self.purpose == Purpose::Run {
            self.live_streams();
            self.ask_listeners("live");
            self.live_rest();
        }
        if self.drops() {
            self.rule("live", r#"drop comment "on_failure block""#);
        }
    }

    /// The way of nearly all packets, short: with one listener per family and protocol there is nothing to choose. With
    /// several, a segment without a socket (the last step of a handshake under SYN cookies) must reach its own listener, so
    /// it goes through their narrowing like a first packet.
    fn live_streams(&mut self) {
        for (proto, packets) in [("tcp", "tcp flags & (fin | syn | rst | ack) != syn"), ("udp", "meta l4proto udp")] {
            for v4 in [true, false] {
                let streams: Vec<_> = self.by(Mode::Tproxy).filter(|a| a.wants(proto) && a.takes(v4)).collect();
                if let [only] = streams[..] {
                    let (family, take) = (family_match(v4), self.take_again(only, v4));
                    self.rule("live", format_args!("{packets} {family} {take}"));
                }
            }
        }
    }

    /// Flows whose listener does not want them any more: the first listener of their device, else (its device has none
    /// any more) the first of all.
    fn live_rest(&mut self) {
        let mut rules = Vec::new();
        for v4 in [true, false] {
            for proto in ["tcp", "udp"] {
                let mut takers = self.by(Mode::Tproxy).filter(|a| a.takes(v4) && a.wants(proto)).peekable();
                let Some(first) = takers.peek().copied() else { continue };
                let packet = format!("{} meta l4proto {proto}", family_match(v4));
                let mut served: Vec<&str> = first.live_devices().collect();
                for active in takers {
                    for name in active.live_devices() {
                        if !served.contains(&name) {
                            served.push(name);
                            rules.push(format!(r#"iifname "{name}" {packet} {}"#, self.take_again(active, v4)));
                        }
                    }
                }
                rules.push(format!("{packet} {}", self.take_again(first, v4)));
            }
        }
        for rule in rules {
            self.rule("live", rule);
        }
    }

    /// `tproxy` first: without a socket the rule ends there, and nothing is marked.
    fn take(&self, active: &Active<'_>, v4: bool) -> String {
        let mark = self.cfg.globals.mark;
        match active.listener.mode {
            Mode::Tproxy => self.deliver(active, v4, &format!("{} ", sets_mark("ct mark", mark))),
            // marked for those who let what is ours through their `input`
            _ => format!("{} {}", sets_mark("meta mark", mark), self.redirect(active, v4)),
        }
    }

    /// The same for packets of a flow that has its mark.
    fn take_again(&self, active: &Active<'_>, v4: bool) -> String {
        self.deliver(active, v4, "")
    }

    fn deliver(&self, active: &Active<'_>, v4: bool, ct_mark: &str) -> String {
        let Listener { name, port, address, .. } = active.listener;
        let family = if v4 { "ip" } else { "ip6" };
        let to = address.map(host).unwrap_or_default();
        let packet_mark = sets_mark("meta mark", self.cfg.globals.mark);
        format!("tproxy {family} to {to}:{port} {ct_mark}{packet_mark} counter name listener_{name} accept")
    }

    fn listener(&mut self, index: usize) {
        let Some(active) = self.active.get(index) else { return };
        let listener = active.listener;
        let mut rules = narrowing(self.cfg, listener, active.families);
        if self.decides() {
            let known = differs_from_mark("ct mark", self.cfg.globals.mark);
            rules.push(format!("{known} jump {}", verdicts::VERDICTS));
        }
        rules.extend(self.pass_decided_by());
        if self.purpose == Purpose::Run {
            let proto = match (listener.protos.tcp, listener.protos.udp) {
                (true, false) => "tcp",
                (false, true) => "udp",
                _ => "{ tcp, udp }",
            };
            for v4 in [true, false].into_iter().filter(|v4| active.takes(*v4)) {
                rules.push(format!("{} meta l4proto {proto} {}", family_match(v4), self.take(active, v4)));
            }
        }
        if self.drops() {
            rules.push(r#"drop comment "on_failure block""#.to_string());
        }
        let chain = format!("listener_{}", listener.name);
        for rule in rules {
            self.rule(&chain, rule);
        }
    }

    fn drops(&self) -> bool {
        self.purpose == Purpose::Block || self.cfg.globals.on_failure == OnFailure::Block
    }

    /// A datagram that we send to a client in the name of somebody the client never spoke to begins a flow; the client's
    /// answer is a reply to it, and must come to us as well.
    fn output(&mut self) {
        if !self.kept_sources() && self.purpose == Purpose::Run {
            let own = matches_mark("meta mark", self.cfg.globals.self_mark);
            let mark = sets_mark("ct mark", self.cfg.globals.mark);
            self.rule(
                "output",
                format_args!(
                    r#"meta l4proto udp {own} ct state new fib saddr type != local {mark} comment "in others' names""#
                ),
            );
        }
    }
}

impl<'a> Active<'a> {
    /// Where packets of its live flows come in.
    fn live_devices(&self) -> impl Iterator<Item = &'a str> {
        self.devices.iter().copied().chain(self.listener.router.then_some(LOOPBACK))
    }

    fn wants(&self, proto: &str) -> bool {
        if proto == "tcp" { self.listener.protos.tcp } else { self.listener.protos.udp }
    }

    fn takes(&self, v4: bool) -> bool {
        if v4 { self.families.v4 } else { self.families.v6 }
    }
}

/// The families in which packets can reach `listener`.
fn usable_families(listener: &Listener, kernel: Families) -> Families {
    let bound = |v4| listener.address.is_none_or(|address| address.is_ipv4() == v4);
    Families {
        v4: listener.families.v4 && kernel.v4 && bound(true),
        v6: listener.families.v6 && kernel.v6 && bound(false),
    }
}

/// The name says what is in it: a set that changes becomes another set, which can be filled step by step while the rules
/// still use the old one, and one that doesn't change need not be filled again. FNV-1a, 32 bits.
fn set_name(family: u8, set: &Set) -> String {
    let ranges: Vec<_> = set.entries.nets().ranges().collect();
    let text = address_ranges(&ranges, family == 4).join(" ");
    format!("{FILLED_ONCE}{family}_{}_{:08x}", set.name, fnv1a(FNV_BASIS, text.as_bytes()))
}

fn matches_mark(field: &str, Mark { value, mask }: Mark) -> String {
    format!("{field} & {mask:#010x} == {value:#010x}")
}

fn differs_from_mark(field: &str, Mark { value, mask }: Mark) -> String {
    format!("{field} & {mask:#010x} != {value:#010x}")
}

/// Touches the bits of the mask only: the others belong to others.
fn sets_mark(field: &str, Mark { value, mask }: Mark) -> String {
    format!("{field} set {field} & {:#010x} | {value:#010x}", !mask)
}

fn family_match(v4: bool) -> &'static str {
    if v4 { "meta nfproto ipv4" } else { "meta nfproto ipv6" }
}

fn put(out: &mut String, line: Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{line}");
}

/// Adds `elements` to `set`, some hundred to a line.
fn fill(out: &mut String, set: &str, elements: &[String]) {
    for part in elements.chunks(ELEMENTS_PER_LINE) {
        put(out, format_args!("add element inet {TABLE} {set} {}", list(part)));
    }
}

/// How the names of sets begin whose content never changes.
pub(super) const FILLED_ONCE: &str = "net";
/// Where packets of this machine come in again that the policy route has turned round.
const LOOPBACK: &str = "lo";
const SERVERS4: &str = "servers4";
const SERVERS6: &str = "servers6";
const ON_LINK4: &str = "onlink4";
const ON_LINK6: &str = "onlink6";
const ELEMENTS_PER_LINE: usize = 256;

#[cfg(test)]
mod tests;

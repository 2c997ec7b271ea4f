//! Checked sections → [`Config`]: what has to be given, names looked up, and what must agree between sections.

use std::collections::BTreeMap;

use super::check::Checked;
use super::cross;
use super::model::*;
use super::report::{Report, nearest};
use super::schema;
use super::sets::{self, Open};
use super::uci::shown;
use super::value::{Addresses, Domains, Value};
use super::{Env, auto};

mod groups;
mod outbounds;
mod schedule;
use schedule::schedule;

/// Builds all of it. What is wrong is reported, and the configuration then not to be used.
pub(super) fn build(sections: &[Checked<'_>], env: &Env, open: &mut Open<'_>, report: &mut Report<'_>) -> Config {
    let (sets, set_places) = sets::build(sections, env, open, report);
    let set_types = sets.iter().map(|set| matches!(set.entries, Entries::Domains(_))).collect();
    let names = Names { outbounds: outbound_places(sections, report), sets: set_places, set_types };
    let enabled =
        |kind: &'static str| sections.iter().filter(move |section| section.of.name == kind && section.enabled);

    let globals = globals(sections, &names, env, report);
    let mut outbounds: Vec<Outbound> =
        enabled("outbound").map(|section| outbounds::build(section, &names, &globals, report)).collect();
    groups::complete(&mut outbounds, sections, report);
    let listeners: Vec<Listener> =
        enabled("listener").take(MOST_LISTENERS).map(|section| listener(section, &names, report)).collect();
    if let Some(section) = enabled("listener").nth(MOST_LISTENERS) {
        report.error(section.line, format!("more than {MOST_LISTENERS} listeners"));
    }
    let rules: Vec<Rule> = enabled("rule").map(|section| rule(section, &names, &sets, report)).collect();

    cross::no_circle_of_udp_outbounds(&outbounds, sections, report);
    cross::room_for_spares(&outbounds, sections, report);
    cross::no_port_twice(&listeners, report);
    cross::overlapping_listeners(&listeners, report);
    cross::listeners_without_their_set(&listeners, &sets, report);
    cross::rules_never_reached(&rules, report);
    cross::sets_too_large_for_the_kernel(&globals, &rules, &sets, report);
    cross::sets_too_large_for_dnsmasq(&globals, &rules, &sets, report);
    if listeners.is_empty() {
        report.warn(0, "no listener is enabled: nothing is intercepted");
    }
    Config { globals, listeners, outbounds, sets, rules, warnings: Vec::new() }
}

/// Where the names of outbounds and sets lead.
struct Names {
    outbounds: BTreeMap<String, OutboundPlace>,
    sets: BTreeMap<String, u16>,
    /// For each set whether it has domains, not networks.
    set_types: Vec<bool>,
}

enum OutboundPlace {
    Enabled(u16),
    /// Line of its section.
    Disabled(u32),
}

fn outbound_places(sections: &[Checked<'_>], report: &mut Report<'_>) -> BTreeMap<String, OutboundPlace> {
    let mut places = BTreeMap::new();
    let mut next = 0u16;
    for section in sections.iter().filter(|section| section.of.name == "outbound") {
        let place = if section.enabled { OutboundPlace::Enabled(next) } else { OutboundPlace::Disabled(section.line) };
        places.insert(section.name().to_owned(), place);
        if section.enabled {
            match next.checked_add(1) {
                Some(more) => next = more,
                None => {
                    report.error(section.line, format!("more than {} outbounds", u16::MAX));
                    break;
                }
            }
        }
    }
    places
}

impl Names {
    /// The outbound that `option` names. A default or a mistake, which is reported, is `otherwise`.
    fn target(&self, section: &Checked<'_>, option: &str, otherwise: Target, report: &mut Report<'_>) -> Target {
        let Some(name) = section.text(option) else { return otherwise };
        self.named(section, option, (section.line_of(option), &name), report).unwrap_or(otherwise)
    }

    /// The outbound of this name, which `option` has on this line; that there is none is reported.
    fn named(
        &self,
        section: &Checked<'_>,
        option: &str,
        (line, name): (u32, &str),
        report: &mut Report<'_>,
    ) -> Option<Target> {
        let title = &section.title;
        match name {
            "direct" => return Some(Target::Direct),
            "reject" => return Some(Target::Reject),
            "drop" => return Some(Target::Drop),
            _ => {}
        }
        match self.outbounds.get(name) {
            Some(OutboundPlace::Enabled(place)) => return Some(Target::Outbound(*place)),
            Some(OutboundPlace::Disabled(at)) => {
                report.error(line, format!("{title}: {option} '{name}' is disabled (line {at})"));
            }
            None => {
                let known = self.outbounds.keys().map(String::as_str).chain(["direct", "reject", "drop"]);
                let hint = near(name, known, "direct, reject or drop, or config outbound");
                report.error(line, format!("{title}: {option} '{}' is no outbound; {hint}", shown(name)));
            }
        }
        None
    }

    fn addresses(&self, section: &Checked<'_>, option: &str, report: &mut Report<'_>) -> Values<AddressMatch> {
        let mut matches = Values::default();
        for (line, value) in section.values(option) {
            let Value::Addresses { not, what } = value else { continue };
            let what = match what {
                Addresses::Range { range, .. } => AddressMatch::Range(range),
                Addresses::Set(name) => match self.set(section, (option, false), &name, line, report) {
                    Some(place) => AddressMatch::Set(place),
                    None => continue,
                },
            };
            if not { matches.not.push(what) } else { matches.plain.push(what) }
        }
        matches
    }
}

impl Names {
    fn domains(&self, section: &Checked<'_>, option: &str, report: &mut Report<'_>) -> Values<DomainMatch> {
        let mut matches = Values::default();
        for (line, value) in section.values(option) {
            let Value::Domain { not, what } = value else { continue };
            let what = match what {
                Domains::Name { name, only_itself } => DomainMatch::Name { name, only_itself },
                Domains::Set(name) => match self.set(section, (option, true), &name, line, report) {
                    Some(place) => DomainMatch::Set(place),
                    None => continue,
                },
            };
            if not { matches.not.push(what) } else { matches.plain.push(what) }
        }
        matches
    }

    /// The place of a set, of domains or not; that there is none is reported.
    fn set(
        &self,
        section: &Checked<'_>,
        (option, of_domains): (&str, bool),
        name: &str,
        line: u32,
        report: &mut Report<'_>,
    ) -> Option<u16> {
        let title = &section.title;
        let Some(place) = self.sets.get(name).copied() else {
            let hint = near(name, self.sets.keys().map(String::as_str), "config set");
            report.error(line, format!("{title}: {option} '@{}' is no set; {hint}", shown(name)));
            return None;
        };
        if self.set_types.get(usize::from(place)) != Some(&of_domains) {
            let (is, wanted) = if of_domains { ("networks", "domain") } else { ("domains", "net") };
            report.error(line, format!("{title}: {option} '@{name}' has {is}; expected a set of type {wanted}"));
            return None;
        }
        Some(place)
    }
}

fn near<'n>(name: &str, known: impl IntoIterator<Item = &'n str>, otherwise: &str) -> String {
    match nearest(name, known) {
        Some(near) => format!("nearest is '{near}'"),
        None => format!("expected {otherwise} '{}'", shown(name)),
    }
}

fn globals(sections: &[Checked<'_>], names: &Names, env: &Env, report: &mut Report<'_>) -> Globals {
    let mut all = sections.iter().filter(|section| section.of.name == "globals");
    let none = Checked::absent(&schema::GLOBALS_SECTION);
    let section = all.next().unwrap_or(&none);
    for second in all {
        report.error(second.line, format!("globals a second time: the first is on line {}", section.line));
    }
    let mark = |option| section.mark(option).unwrap_or(Mark { value: 0, mask: 0 });
    let globals = Globals {
        enabled: section.flag("enabled"),
        log_level: section.word("log_level").and_then(|level| level.parse().ok()).unwrap_or(log::LevelFilter::Info),
        default: names.target(section, "default", Target::Direct, report),
        kernel_verdicts: section.flag("kernel_verdicts"),
        on_failure: if section.word("on_failure") == Some("block") { OnFailure::Block } else { OnFailure::Direct },
        mark: mark("mark"),
        self_mark: mark("self_mark"),
        table: number(section, "table"),
        rule_priority: number(section, "rule_priority"),
        backend: match section.word("backend") {
            Some("nft") => Backend::Nft,
            Some("iptables") => Backend::Iptables,
            _ => Backend::Auto,
        },
        tcp_sessions: section
            .number("tcp_sessions")
            .map_or(auto::sessions_within(env.total_memory, env.descriptors), saturated),
        udp_sessions: section
            .number("udp_sessions")
            .map_or(auto::sessions_within(env.total_memory, env.descriptors), saturated),
        relay_memory: section.number("relay_memory").unwrap_or(auto::relay_memory(env.total_memory)),
        client_sessions: number(section, "client_sessions"),
        control: section.path("control"),
        kernel_set_max: section.number("kernel_set_max").map_or(auto::kernel_set_max(env.total_memory), saturated),
        sniff_port: section.sniff_ports("sniff_port"),
        sniff_timeout: section.time("sniff_timeout").unwrap_or_default(),
        metrics: section.text("metrics").and_then(|text| text.parse().ok()),
        drop_stale: section.flag("drop_stale"),
        reclassify: section.flag("reclassify"),
        dnsmasq: section.flag("dnsmasq"),
        on_event: section.has("on_event").then(|| section.path("on_event")),
        resolver: section.resolver("resolver").unwrap_or(Resolver::File("/etc/resolv.conf".into())),
        sandbox: section.flag("sandbox"),
    };
    cross::globals(section, &globals, report);
    globals
}

fn number(section: &Checked<'_>, option: &str) -> u32 {
    section.number(option).map_or(0, saturated)
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Reports an option that the section can't do without.
fn required(section: &Checked<'_>, option: &str, why: &str, report: &mut Report<'_>) {
    if !section.has(option) {
        report.error(section.line, format!("{} needs option {option}{why}", section.title));
    }
}

fn listener(section: &Checked<'_>, names: &Names, report: &mut Report<'_>) -> Listener {
    let title = &section.title;
    required(section, "port", "", report);
    let intercepts = matches!(section.word("mode"), Some("tproxy" | "redirect"));
    if intercepts && !section.has("device") && !section.has("network") {
        let message = format!("{title} needs list device or list network: it never catches everything");
        report.error(section.line, message);
    }
    if !intercepts && !section.has("allow_ip") {
        report.warn(section.line, format!("{title} has no list allow_ip: nobody may connect"));
    }
    let address = section.address("address");
    let families = match (section.families(), address) {
        (given, None) => given,
        (given, Some(address)) => {
            // The unspecified IPv6 address is the dual-stack wildcard; any other address has one family.
            let own = Families { v4: address.is_ipv4(), v6: address.is_ipv6() };
            let both = address.is_ipv6() && address.is_unspecified();
            let left = Families { v4: given.v4 && (own.v4 || both), v6: given.v6 && own.v6 };
            if !left.v4 && !left.v6 {
                report.error(section.line_of("address"), format!("{title}: address {address} is not of its family"));
            }
            left
        }
    };
    Listener {
        name: section.name().to_owned(),
        label: section.text("label"),
        line: section.line,
        mode: match section.word("mode") {
            Some("redirect") => Mode::Redirect,
            Some("plain") => Mode::Plain,
            Some("http") => Mode::Http,
            Some("socks5") => Mode::Socks5,
            _ => Mode::Tproxy,
        },
        port: section.number("port").and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        address,
        device: section.texts("device").into_iter().map(|(_, name)| name).collect(),
        network: section.texts("network").into_iter().map(|(_, name)| name).collect(),
        protos: section.protos(),
        families,
        src_ip: names.addresses(section, "src_ip", report),
        src_mac: section.macs("src_mac"),
        src_port: section.ports("src_port"),
        dest_ip: names.addresses(section, "dest_ip", report),
        dest_port: section.ports("dest_port"),
        router: section.flag("router"),
        allow_ip: names.addresses(section, "allow_ip", report),
        accept_proxy: section.flag("accept_proxy"),
    }
}

fn rule(section: &Checked<'_>, names: &Names, sets: &[Set], report: &mut Report<'_>) -> Rule {
    required(section, "outbound", ": any outbound's name, or direct, reject, drop", report);
    let rule = Rule {
        number: section.number,
        name: section.text("name"),
        line: section.line,
        active: true,
        protos: section.protos(),
        families: section.families(),
        device: section.names("device"),
        network: section.names("network"),
        src_ip: names.addresses(section, "src_ip", report),
        src_mac: section.macs("src_mac"),
        src_port: section.ports("src_port"),
        dest_ip: names.addresses(section, "dest_ip", report),
        dest_port: section.ports("dest_port"),
        domain: names.domains(section, "domain", report),
        schedule: schedule(section, report),
        on: true,
        rate: section.number("rate"),
        quota: quota(section, names, report),
        outbound: names.target(section, "outbound", Target::Reject, report),
    };
    cross::families_that_meet(section, "src_ip", rule.families, &rule.src_ip, report);
    cross::families_that_meet(section, "dest_ip", rule.families, &rule.dest_ip, report);
    let missing = cross::incomplete_exclusion([&rule.src_ip, &rule.dest_ip], sets)
        .or_else(|| cross::incomplete_domains(&rule.domain, sets));
    if let Some(set) = missing {
        let message = format!("{} is inactive: it excludes set '{}', which is not complete", section.title, set.name);
        report.warn(section.line, message);
    }
    Rule { active: missing.is_none(), ..rule }
}

fn quota(section: &Checked<'_>, names: &Names, report: &mut Report<'_>) -> Option<Quota> {
    let outbound = names.target(section, "quota_outbound", Target::Reject, report);
    for option in ["quota_period", "quota_outbound"] {
        if section.has(option) && !section.has("quota") {
            report.warn(section.line_of(option), format!("{}: {option} does nothing without quota", section.title));
        }
    }
    let monthly = section.word("quota_period") != Some("day");
    section.number("quota").map(|bytes| Quota { bytes, monthly, outbound })
}

/// Each takes descriptors, and rules of its own in the kernel.
const MOST_LISTENERS: usize = 256;

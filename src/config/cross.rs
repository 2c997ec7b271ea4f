//! What must agree between the values of a section, and between sections.

use std::net::IpAddr;

use super::check::Checked;
use super::model::*;
use super::report::Report;

/// Marks that can be told apart, a table that is nobody else's, a control socket that fits.
pub(super) fn globals(section: &Checked<'_>, globals: &Globals, report: &mut Report<'_>) {
    for (option, mark) in [("mark", globals.mark), ("self_mark", globals.self_mark)] {
        if mark.value == 0 {
            report.error(section.line_of(option), format!("globals: {option} is 0, as on packets of everybody else"));
        }
    }
    let (mark, own) = (globals.mark, globals.self_mark);
    if (mark.value ^ own.value) & mark.mask & own.mask == 0 && mark.value != 0 && own.value != 0 {
        let line = section.line_of("mark").max(section.line_of("self_mark"));
        let message = "globals: mark and self_mark can't be told apart: they must differ in a bit that both masks have";
        report.error(line, message);
    }
    if RESERVED_TABLES.contains(&globals.table) {
        let message =
            format!("globals: table {} is the kernel's own; any from 1 to 252 is free to choose", globals.table);
        report.error(section.line_of("table"), message);
    }
    let length = globals.control.as_os_str().len();
    if length > LONGEST_SOCKET_PATH {
        let message = format!("globals: control has {length} bytes; a socket's path has {LONGEST_SOCKET_PATH} at most");
        report.error(section.line_of("control"), message);
    }
}

/// `udp_outbound` of one leads to the next; none may come round to itself.
pub(super) fn no_circle_of_udp_outbounds(outbounds: &[Outbound], sections: &[Checked<'_>], report: &mut Report<'_>) {
    let next = |place: usize| match outbounds.get(place).map(|outbound| outbound.udp_outbound) {
        Some(Target::Outbound(next)) => Some(usize::from(next)),
        _ => None,
    };
    // 0: not seen; otherwise the number of the walk that has seen it.
    let mut seen = vec![0; outbounds.len()];
    for start in 0..outbounds.len() {
        let mut at = start;
        while seen[at] == 0 {
            seen[at] = start + 1;
            match next(at) {
                Some(place) if seen[place] == start + 1 => {
                    let outbound = &outbounds[place];
                    let section = sections
                        .iter()
                        .find(|section| section.of.name == "outbound" && section.name() == outbound.name);
                    let line = section.map_or(outbound.line, |section| section.line_of("udp_outbound"));
                    let message = format!("outbound '{}': udp_outbound leads back to itself", outbound.name);
                    report.error(line, message);
                }
                Some(place) if seen[place] == 0 => at = place,
                _ => {}
            }
        }
    }
}

/// Connections kept open in advance have one table.
pub(super) fn room_for_spares(outbounds: &[Outbound], sections: &[Checked<'_>], report: &mut Report<'_>) {
    let mut sum = 0;
    for outbound in outbounds {
        sum += usize::from(outbound.spare);
        if sum > SPARES_MAX {
            let section =
                sections.iter().find(|section| section.of.name == "outbound" && section.name() == outbound.name);
            let line = section.map_or(outbound.line, |section| section.line_of("spare"));
            let message = format!(
                "outbound '{}': spare: with those before it that makes {sum} connections; expected {SPARES_MAX} at most",
                outbound.name
            );
            return report.error(line, message);
        }
    }
}

/// The same port, family and protocol can be listened on once.
pub(super) fn no_port_twice(listeners: &[Listener], report: &mut Report<'_>) {
    for (place, later) in listeners.iter().enumerate().filter(|(_, listener)| listener.port != 0) {
        let clash = |earlier: &&Listener| earlier.port == later.port && same_kind_of_packet(earlier, later);
        if let Some(earlier) = listeners.iter().take(place).find(clash) {
            let message = format!(
                "listener '{}' has the same port {}, family and protocol as '{}' on line {}",
                later.name, later.port, earlier.name, earlier.line
            );
            report.error(later.line, message);
        }
    }
}

/// The first listener in the file that matches takes the packet; where two may match, it is said.
pub(super) fn overlapping_listeners(listeners: &[Listener], report: &mut Report<'_>) {
    for (place, later) in listeners.iter().enumerate() {
        let both =
            |earlier: &&Listener| earlier.mode.intercepts() && later.mode.intercepts() && overlap(earlier, later);
        if let Some(earlier) = listeners.iter().take(place).find(both) {
            let message = format!(
                "listener '{}' overlaps '{}' on line {}, which takes what both match",
                later.name, earlier.name, earlier.line
            );
            report.warn(later.line, message);
        }
    }
}

/// A listener that excludes a set which could not be read catches more than was meant.
pub(super) fn listeners_without_their_set(listeners: &[Listener], sets: &[Set], report: &mut Report<'_>) {
    for listener in listeners {
        if let Some(set) = incomplete_exclusion([&listener.src_ip, &listener.dest_ip], sets) {
            let message = format!(
                "listener '{}' excludes set '{}', which is not complete: it catches more than was meant",
                listener.name, set.name
            );
            report.warn(listener.line, message);
        }
    }
}

/// The first `!@set` that is incomplete.
pub(super) fn incomplete_exclusion<'s>(kinds: [&Values<AddressMatch>; 2], sets: &'s [Set]) -> Option<&'s Set> {
    let excluded = kinds.into_iter().flat_map(|kind| &kind.not);
    let set = |what: &AddressMatch| match what {
        AddressMatch::Set(place) => sets.get(usize::from(*place)),
        AddressMatch::Range(_) => None,
    };
    excluded.filter_map(set).find(|set| set.incomplete)
}

/// The first `!@set` of domains that is incomplete.
pub(super) fn incomplete_domains<'s>(domains: &Values<DomainMatch>, sets: &'s [Set]) -> Option<&'s Set> {
    let set = |what: &DomainMatch| match what {
        DomainMatch::Set(place) => sets.get(usize::from(*place)),
        DomainMatch::Name { .. } => None,
    };
    domains.not.iter().filter_map(set).find(|set| set.incomplete)
}

/// Warns of a rule whose addresses are all of a family that it doesn't have.
pub(super) fn families_that_meet(
    section: &Checked<'_>,
    option: &str,
    families: Families,
    values: &Values<AddressMatch>,
    report: &mut Report<'_>,
) {
    let never = |what: &AddressMatch| match what {
        AddressMatch::Range(range) => !if range.first.is_ipv4() { families.v4 } else { families.v6 },
        AddressMatch::Set(_) => false,
    };
    if !values.plain.is_empty() && values.plain.iter().all(never) {
        report.warn(section.line_of(option), format!("{} never matches: no {option} is of its family", section.title));
    }
}

/// Rules after one that matches everything do nothing.
pub(super) fn rules_never_reached(rules: &[Rule], report: &mut Report<'_>) {
    let everything = |rule: &Rule| {
        let all = Protos { tcp: true, udp: true } == rule.protos && Families { v4: true, v6: true } == rule.families;
        let client = rule.device.is_empty() && rule.network.is_empty() && rule.src_mac.is_empty();
        let addresses = rule.src_ip.is_empty() && rule.dest_ip.is_empty() && rule.domain.is_empty();
        let always = rule.schedule.is_none();
        always && all && client && addresses && rule.src_port.is_empty() && rule.dest_port.is_empty()
    };
    let mut active = rules.iter().filter(|rule| rule.active);
    if let (Some(first), Some(next)) = (active.by_ref().find(|rule| everything(rule)), active.next()) {
        let message = format!("rule {} is never reached: rule {} matches everything", next.number, first.number);
        report.warn(next.line, message);
    }
}

/// The flows of a rule whose set the kernel does not hold go through the process, whatever the rule says.
pub(super) fn sets_too_large_for_the_kernel(globals: &Globals, rules: &[Rule], sets: &[Set], report: &mut Report<'_>) {
    for (place, set) in sets.iter().enumerate().filter(|_| globals.kernel_verdicts) {
        let intervals = set.entries.nets().len();
        let names_it = |rule: &&Rule| {
            let values = [&rule.src_ip, &rule.dest_ip].into_iter().flat_map(|kind| kind.plain.iter().chain(&kind.not));
            rule.active && values.into_iter().any(|value| *value == AddressMatch::Set(place as u16))
        };
        if intervals > globals.kernel_set_max as usize
            && let Some(rule) = rules.iter().find(names_it)
        {
            let most = globals.kernel_set_max;
            let (name, number) = (&set.name, rule.number);
            let message = format!(
                "set '{name}' has {intervals} intervals, more than kernel_set_max {most}: flows that rule {number} may \
                 match go through the process"
            );
            report.warn(set.line, message);
        }
    }
}

/// Sets of more names than dnsmasq is told of: what their rules mean is looked for in what clients send.
pub(super) fn sets_too_large_for_dnsmasq(globals: &Globals, rules: &[Rule], sets: &[Set], report: &mut Report<'_>) {
    for (place, set) in sets.iter().enumerate().filter(|_| globals.dnsmasq) {
        let names_it = |rule: &&Rule| rule.active && rule.domain.plain.contains(&DomainMatch::Set(place as u16));
        let (names, most) = (set.entries.domains().len(), globals.kernel_set_max);
        if names > most as usize
            && let Some(rule) = rules.iter().find(names_it)
        {
            let (name, number) = (&set.name, rule.number);
            let message = format!(
                "set '{name}' has {names} names, more than kernel_set_max {most}: those of rule {number} are not told to \
                 dnsmasq, but looked for at sniff_port"
            );
            report.warn(set.line, message);
        }
    }
}

fn same_kind_of_packet(a: &Listener, b: &Listener) -> bool {
    let protos = (a.protos.tcp && b.protos.tcp) || (a.protos.udp && b.protos.udp);
    protos && ((a.families.v4 && b.families.v4) || (a.families.v6 && b.families.v6))
}

/// True unless the two are seen to be apart. A network may be any device, so only equal kinds are compared.
fn overlap(a: &Listener, b: &Listener) -> bool {
    let device = a.device.iter().any(|one| b.device.iter().any(|other| devices_meet(one, other)));
    let network = a.network.iter().any(|name| b.network.contains(name));
    let ports = |one: &Values<PortRange>, other: &Values<PortRange>| {
        may_meet(one, other, |a, b| a.first <= b.last && b.first <= a.last)
    };
    let addresses = |one: &Values<AddressMatch>, other: &Values<AddressMatch>| {
        may_meet(one, other, |a, b| match (a, b) {
            (AddressMatch::Range(a), AddressMatch::Range(b)) => ranges_meet(*a, *b),
            _ => true,
        })
    };
    (device || network)
        && same_kind_of_packet(a, b)
        && ports(&a.src_port, &b.src_port)
        && ports(&a.dest_port, &b.dest_port)
        && addresses(&a.src_ip, &b.src_ip)
        && addresses(&a.dest_ip, &b.dest_ip)
        && may_meet(&a.src_mac, &b.src_mac, |a, b| a == b)
}

fn may_meet<T>(a: &Values<T>, b: &Values<T>, meet: impl Fn(&T, &T) -> bool) -> bool {
    a.plain.is_empty() || b.plain.is_empty() || a.plain.iter().any(|one| b.plain.iter().any(|other| meet(one, other)))
}

fn ranges_meet(a: IpRange, b: IpRange) -> bool {
    let family = |address: IpAddr| address.is_ipv4();
    family(a.first) == family(b.first) && a.first <= b.last && b.first <= a.last
}

fn devices_meet(a: &str, b: &str) -> bool {
    match (a.strip_suffix('*'), b.strip_suffix('*')) {
        (None, None) => a == b,
        (Some(a), None) => b.starts_with(a),
        (None, Some(b)) => a.starts_with(b),
        (Some(a), Some(b)) => a.starts_with(b) || b.starts_with(a),
    }
}

/// unspec, default, main and local (rt_class_t in linux/rtnetlink.h).
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// `sun_path` less its NUL (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;

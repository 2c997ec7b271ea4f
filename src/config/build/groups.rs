//! What can be told of groups only when all outbounds are known: circles, members that lead nowhere, UDP, health checks.

use super::super::check::Checked;
use super::super::model::*;
use super::super::report::Report;
use super::outbounds::check;

/// Groups within groups.
const DEEPEST: usize = 8;

/// Reports circles, and then tells every group what its members can do, and every member that it is to be checked.
pub(super) fn complete(outbounds: &mut [Outbound], sections: &[Checked<'_>], report: &mut Report<'_>) {
    let mistakes: Vec<_> = (0..outbounds.len()).filter_map(|place| Some((place, mistake(place, outbounds)?))).collect();
    for (place, message) in mistakes {
        report.error(member_line(&outbounds[place], sections), message);
        // what follows must not go round in circles
        outbounds[place].kind = OutboundKind::Reject;
    }
    let carry: Vec<bool> = (0..outbounds.len()).map(|place| carries_udp(place, outbounds)).collect();
    let members: Vec<usize> = outbounds.iter().flat_map(member_places).collect();
    for (outbound, carries) in outbounds.iter_mut().zip(carry) {
        outbound.udp = carries;
    }
    for place in members {
        let outbound = &mut outbounds[place];
        let section = sections.iter().find(|section| section.of.name == "outbound" && section.name() == outbound.name);
        if outbound.kind.server().is_some() && outbound.check.is_none() {
            outbound.check = section.map(check);
        }
    }
}

/// Why the group at `place` can't be, if so.
fn mistake(place: usize, outbounds: &[Outbound]) -> Option<String> {
    let OutboundKind::Group(group) = &outbounds[place].kind else { return None };
    let name = &outbounds[place].name;
    let leads_nowhere = group.members.iter().find_map(|member| match member {
        Target::Outbound(member) => {
            let member = outbounds.get(usize::from(*member))?;
            matches!(member.kind, OutboundKind::Reject | OutboundKind::Drop).then_some(&member.name)
        }
        _ => None,
    });
    if let Some(member) = leads_nowhere {
        return Some(format!("outbound '{name}': member '{member}' leads nowhere; see option on_all_down"));
    }
    let mut within = vec![place];
    for _ in 0..DEEPEST {
        within = within.iter().flat_map(|place| member_places(&outbounds[*place])).collect();
        within.sort_unstable();
        within.dedup();
        if within.contains(&place) {
            return Some(format!("outbound '{name}': member leads back to it"));
        }
        if within.is_empty() {
            return None;
        }
    }
    Some(format!("outbound '{name}': groups within groups, deeper than {DEEPEST}"))
}

fn member_places(outbound: &Outbound) -> Vec<usize> {
    let OutboundKind::Group(group) = &outbound.kind else { return Vec::new() };
    let places = group.members.iter().filter_map(|member| match member {
        Target::Outbound(place) => Some(usize::from(*place)),
        _ => None,
    });
    places.collect()
}

/// A group carries UDP if it may and a member does.
fn carries_udp(place: usize, outbounds: &[Outbound]) -> bool {
    let outbound = &outbounds[place];
    match &outbound.kind {
        OutboundKind::Group(group) => {
            let by_direct = group.members.contains(&Target::Direct);
            outbound.udp
                && (by_direct || member_places(outbound).into_iter().any(|member| carries_udp(member, outbounds)))
        }
        _ => outbound.udp,
    }
}

fn member_line(outbound: &Outbound, sections: &[Checked<'_>]) -> u32 {
    let section = sections.iter().find(|section| section.of.name == "outbound" && section.name() == outbound.name);
    section.map_or(outbound.line, |section| section.line_of("member"))
}

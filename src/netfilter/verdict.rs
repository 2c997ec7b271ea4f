//! Who carries out what a rule says: netfilter alone, or the process. Pure.

use super::names::Named;
use crate::config::{Config, Outbound, OutboundKind, Rule, Target};

/// Who decides about a flow, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The kernel leaves it alone.
    Direct,
    /// The kernel resets it, or answers with ICMP port unreachable.
    Reject,
    /// The kernel drops it.
    Drop,
    /// It is given to the process.
    Process,
}

/// What a rule comes to for TCP and UDP, for flows of which its other conditions leave no doubt.
/// With plain values of `domain` only the process can tell, unless dnsmasq notes the addresses of just those names. Only the
/// process measures what a client moves.
pub fn of_rule(cfg: &Config, early_reject: bool, rule: &Rule) -> [By; 2] {
    if rule.is_limited() {
        return [By::Process; 2];
    }
    if !rule.domain.plain.is_empty() && !Named::of(cfg, rule).is_some_and(|named| named.certain) {
        return [By::Process; 2];
    }
    [true, false].map(|tcp| of_target(cfg, early_reject, rule.outbound, tcp))
}

/// True if the kernel decides anything.
pub fn decides(cfg: &Config, early_reject: bool) -> bool {
    let rules = cfg.rules.iter().filter(|rule| rule.active).map(|rule| of_rule(cfg, early_reject, rule));
    rules.chain([of_default(cfg, early_reject)]).flatten().any(|by| by != By::Process)
}

/// What `option default` comes to for TCP and UDP.
pub fn of_default(cfg: &Config, early_reject: bool) -> [By; 2] {
    [true, false].map(|tcp| of_target(cfg, early_reject, cfg.globals.default, tcp))
}

/// `early_reject`: see [`super::Facts::early_reject`].
fn of_target(cfg: &Config, early_reject: bool, mut target: Target, tcp: bool) -> By {
    if !cfg.globals.kernel_verdicts {
        return By::Process;
    }
    // the configuration has no circles of udp_outbound; the bound is there in case it had
    for _ in 0..=cfg.outbounds.len() {
        let outbound = match target {
            Target::Direct => return By::Direct,
            Target::Reject => return if early_reject { By::Reject } else { By::Process },
            Target::Drop => return By::Drop,
            Target::Outbound(place) => cfg.outbounds.get(usize::from(place)),
        };
        let Some(outbound) = outbound else { return By::Process };
        target = match outbound.kind {
            OutboundKind::Reject => Target::Reject,
            OutboundKind::Drop => Target::Drop,
            _ if !tcp && !outbound.udp => outbound.udp_outbound,
            OutboundKind::Direct if is_the_kernels(outbound, tcp) => Target::Direct,
            _ => return By::Process,
        };
    }
    By::Process
}

/// True if an outbound of type direct asks for nothing that only a relay can do.
fn is_the_kernels(outbound: &Outbound, tcp: bool) -> bool {
    let Outbound { device, fwmark, keep_source, full_cone, .. } = outbound;
    device.is_none() && *fwmark == 0 && !keep_source && (tcp || !full_cone)
}

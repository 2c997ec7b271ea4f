//! Counters. Plain `u64`: one thread counts, and mips32 has no 64-bit atomics.

pub mod clients;
pub mod events;

use clients::Clients;
use events::Events;

/// Why something was dropped or refused, as `status` and `metrics` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Drop {
    /// A connection or datagram that came to the listener's port without having been intercepted.
    NotIntercepted,
    /// A datagram whose original destination the kernel did not tell.
    NoDestination,
    /// A datagram longer than 65,507 bytes, or than the way out can carry.
    TooLarge,
    /// A datagram for which the way out had no room.
    NoRoom,
    /// A datagram that came while four others waited for the outbound, or while no buffer was free.
    NotReady,
    /// A datagram that could not be sent: no route, refused by the firewall.
    Unsendable,
    /// A datagram from a proxy that makes no sense.
    Malformed,
    /// A rule or outbound says drop or reject.
    ByRule,
    /// An ICMP error that was not sent because there were too many.
    IcmpRate,
    /// A session that got no socket because descriptors or kernel memory ran out.
    NoDescriptor,
    /// A connection or datagram of somebody whom `allow_ip` does not name.
    NotAllowed,
    /// A connection or datagram that did not begin with what its listener's mode wants: a request, a PROXY header.
    NoGreeting,
    /// A connection or datagram of the daemon's own, caught because something had changed its mark.
    Loop,
    /// A connection or datagram of a client that has as many sessions and flows as one client may have.
    ClientSessions,
    /// A datagram beyond the `rate` of its rule.
    Rate,
    /// A connection or datagram of a client whose `rate` nobody could watch: the table of clients was full.
    Unmeasured,
}

impl Drop {
    /// All, in order of their numbers.
    pub const ALL: [Drop; 16] = [
        Drop::NotIntercepted,
        Drop::NoDestination,
        Drop::TooLarge,
        Drop::NoRoom,
        Drop::NotReady,
        Drop::Unsendable,
        Drop::Malformed,
        Drop::ByRule,
        Drop::IcmpRate,
        Drop::NoDescriptor,
        Drop::NotAllowed,
        Drop::NoGreeting,
        Drop::Loop,
        Drop::ClientSessions,
        Drop::Rate,
        Drop::Unmeasured,
    ];

    /// The name in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Drop::NotIntercepted => "not_intercepted",
            Drop::NoDestination => "no_destination",
            Drop::TooLarge => "too_large",
            Drop::NoRoom => "no_room",
            Drop::NotReady => "not_ready",
            Drop::Unsendable => "unsendable",
            Drop::Malformed => "malformed",
            Drop::ByRule => "by_rule",
            Drop::IcmpRate => "icmp_rate",
            Drop::NoDescriptor => "no_descriptor",
            Drop::NotAllowed => "not_allowed",
            Drop::NoGreeting => "no_greeting",
            Drop::Loop => "loop",
            Drop::ClientSessions => "client_sessions",
            Drop::Rate => "rate",
            Drop::Unmeasured => "unmeasured",
        }
    }
}

/// Counters of one table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Table {
    /// Sessions or mappings that were opened.
    pub total: u64,
    /// Those that could not be opened.
    pub refused: u64,
    /// Those that made room for others.
    pub evicted: u64,
}

/// Everything that is counted but does not belong to an outbound or a rule.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// TCP sessions.
    pub tcp: Table,
    /// UDP mappings.
    pub udp: Table,
    /// How often accepting paused because the TCP table was full or resources had run out.
    pub accept_paused: u64,
    /// How often a TCP read went on without a buffer because the pool was empty.
    pub pool_empty: u64,
    /// What has happened lately.
    pub events: Events,
    /// What each client has moved.
    pub clients: Clients,
    /// Flows that were decided without a name although a rule asked for one: none was told, or not in time.
    pub nameless: u64,
    drops: [u64; Drop::ALL.len()],
}

impl Stats {
    /// Most bytes beside the counters themselves.
    pub const MEMORY_MAX: usize = Clients::MEMORY_MAX + Events::MEMORY_MAX;

    /// Nothing counted; room for all events and clients that are kept.
    pub fn new() -> Stats {
        Stats { events: Events::new(), clients: Clients::new(), ..Stats::default() }
    }

    /// Counts a drop.
    pub fn drop(&mut self, reason: Drop) {
        self.drops[reason as usize] += 1;
    }

    /// How often `reason` was counted.
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_for_itself() {
        let mut stats = Stats::default();
        for (n, reason) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n, "{} stands at its number", reason.name());
            for _ in 0..=n {
                stats.drop(reason);
            }
        }
        assert!(Drop::ALL.into_iter().enumerate().all(|(n, reason)| stats.dropped(reason) == n as u64 + 1));
    }
}

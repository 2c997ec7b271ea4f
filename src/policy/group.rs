//! Which member of a group takes a flow. Pure: what is known of the members is given.

use crate::config::GroupPolicy;

/// What is known of a member that may take the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the outbound: of the member, or of the one that a member which is a group itself would choose.
    pub outbound: u16,
    /// It failed just now, or is down and due for a trial: others go first.
    pub doubtful: bool,
    /// Time of its health checks in microseconds, smoothed.
    pub latency: Option<u32>,
    /// Live sessions and mappings.
    pub sessions: u32,
}

/// The member that takes the next flow. `last`: which took the one before.
pub fn pick(policy: GroupPolicy, last: Option<u16>, candidates: &[Candidate]) -> Option<u16> {
    let sound = candidates.iter().any(|candidate| !candidate.doubtful);
    let mut able = candidates.iter().filter(|candidate| candidate.doubtful != sound);
    let chosen = match policy {
        GroupPolicy::Failover => able.next(),
        GroupPolicy::Fastest => {
            let latency = |candidate: &Candidate| candidate.latency.unwrap_or(u32::MAX);
            let best = able.clone().min_by_key(|candidate| latency(candidate))?;
            let before = able.find(|candidate| Some(candidate.outbound) == last);
            // flows do not move to and fro for a little noise
            Some(before.filter(|before| latency(before) <= with_margin(latency(best))).unwrap_or(best))
        }
        GroupPolicy::Balance => {
            let fewest = able.clone().map(|candidate| candidate.sessions).min()?;
            let mut least = able.filter(|candidate| candidate.sessions == fewest);
            let first = least.clone().next();
            // of several the one behind the last
            let after = last.and_then(|last| {
                let place = candidates.iter().position(|candidate| candidate.outbound == last)?;
                least.find(|one| candidates[place + 1..].iter().any(|later| later.outbound == one.outbound))
            });
            after.or(first)
        }
    };
    chosen.map(|candidate| candidate.outbound)
}

/// A quarter more, and at least two milliseconds.
fn with_margin(latency: u32) -> u32 {
    latency.saturating_add((latency / 4).max(2_000))
}

/// Smooths a new measurement into the old value: an exponentially weighted moving average of weight 1/4.
pub fn smoothed(old: Option<u32>, new: u32) -> u32 {
    match old {
        None => new,
        Some(old) => (u64::from(old) * 3 / 4 + u64::from(new) / 4) as u32,
    }
}

/// Whether a way out works, with hysteresis: so many good or bad signs in a row against the present state change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The present state.
    pub state: State,
    /// Signs in a row against it.
    against: u8,
}

/// Whether an outbound works, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing has told yet.
    Unknown,
    /// It works, or the proxy said that the destination is to blame.
    Up,
    /// It fails, and the way out is to blame.
    Down,
}

impl Health {
    /// Nothing is known.
    pub const UNKNOWN: Health = Health { state: State::Unknown, against: 0 };

    /// A sign that it works; `rise` of them in a row bring it up again.
    pub fn good(&mut self, rise: u8) {
        match self.state {
            State::Down => self.count(rise, State::Up),
            State::Unknown | State::Up => *self = Health { state: State::Up, against: 0 },
        }
    }

    /// A sign that it fails; `fall` of them in a row bring it down.
    pub fn bad(&mut self, fall: u8) {
        match self.state {
            State::Down => self.against = 0,
            State::Unknown | State::Up => self.count(fall, State::Down),
        }
    }

    /// True if the last sign spoke against the state, without changing it yet.
    pub fn wavers(&self) -> bool {
        self.against > 0
    }

    fn count(&mut self, enough: u8, other: State) {
        self.against = self.against.saturating_add(1);
        if self.against >= enough {
            *self = Health { state: other, against: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(outbound: u16) -> Candidate {
        Candidate { outbound, doubtful: false, latency: None, sessions: 0 }
    }

    #[test]
    fn failover_takes_the_first_that_is_not_in_doubt() {
        let mut members = [candidate(3), candidate(4), candidate(5)];
        assert_eq!(pick(GroupPolicy::Failover, None, &members), Some(3));
        members[0].doubtful = true;
        assert_eq!(pick(GroupPolicy::Failover, Some(3), &members), Some(4));
        members.iter_mut().for_each(|member| member.doubtful = true);
        assert_eq!(pick(GroupPolicy::Failover, None, &members), Some(3));
        assert_eq!(pick(GroupPolicy::Failover, None, &[]), None);
    }

    #[test]
    fn fastest_stays_where_it_is_for_a_little_noise() {
        let timed = |outbound, latency| Candidate { latency: Some(latency), ..candidate(outbound) };
        let members = [timed(3, 40_000), timed(4, 35_000), candidate(5)];
        assert_eq!(pick(GroupPolicy::Fastest, None, &members), Some(4));
        assert_eq!(pick(GroupPolicy::Fastest, Some(3), &members), Some(3));
        assert_eq!(pick(GroupPolicy::Fastest, Some(3), &[timed(3, 50_000), timed(4, 35_000)]), Some(4));
        assert_eq!(pick(GroupPolicy::Fastest, Some(5), &members), Some(4), "one that was never measured is left");
    }

    #[test]
    fn balance_takes_the_one_with_the_fewest_sessions_in_turn() {
        let busy = |outbound, sessions| Candidate { sessions, ..candidate(outbound) };
        let members = [busy(3, 2), busy(4, 1), busy(5, 1)];
        assert_eq!(pick(GroupPolicy::Balance, None, &members), Some(4));
        assert_eq!(pick(GroupPolicy::Balance, Some(4), &members), Some(5));
        assert_eq!(pick(GroupPolicy::Balance, Some(5), &members), Some(4));
        let doubtful = [Candidate { doubtful: true, ..busy(3, 0) }, busy(4, 9)];
        assert_eq!(pick(GroupPolicy::Balance, None, &doubtful), Some(4));
    }

    #[test]
    fn a_state_changes_after_enough_signs_in_a_row() {
        let mut health = Health::UNKNOWN;
        health.good(2);
        assert_eq!(health.state, State::Up);
        health.bad(2);
        health.good(2);
        health.bad(2);
        assert_eq!((health.state, health.wavers()), (State::Up, true));
        health.bad(2);
        assert_eq!(health.state, State::Down);
        health.good(2);
        health.bad(2);
        health.good(2);
        assert_eq!(health.state, State::Down);
        health.good(2);
        assert_eq!(health.state, State::Up);
        let mut health = Health::UNKNOWN;
        health.bad(1);
        assert_eq!(health.state, State::Down);
    }

    #[test]
    fn a_measurement_moves_the_average_by_a_quarter() {
        assert_eq!(smoothed(None, 8), 8);
        assert_eq!(smoothed(Some(100), 20), 80);
        assert_eq!(smoothed(Some(u32::MAX), u32::MAX), u32::MAX - 1);
    }
}

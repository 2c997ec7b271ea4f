//! When a rule holds: `start_time`, `stop_time`, `weekdays`, `utc_time`. Pure: it is told what time it is.

use super::model::{Config, OutboundKind, Rule, Target};
use super::zone::{DAY, Zone, weekday_of};

/// A moment, and the zone in which it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Seconds since 1970.
    pub utc: i64,
    /// Where the router is.
    pub zone: Zone,
}

impl Moment {
    /// False from the boot of a router, which has no clock of its own, until it has been told the time.
    pub fn is_known(&self) -> bool {
        self.utc >= LONG_AGO
    }

    /// Seconds since 1970 on a clock on the wall.
    pub fn local(&self) -> i64 {
        self.utc + self.zone.offset(self.utc)
    }
}

/// When a rule holds. Time of day and weekday are looked at one by one, as the firewall does: with `21:00` to `06:00` on
/// Saturday that is Saturday before six and Saturday from nine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Seconds after midnight.
    pub start: i64,
    /// Seconds after midnight, not included; below `start`: past midnight.
    pub stop: i64,
    /// A bit for each day, Sunday the lowest.
    pub weekdays: u8,
    /// By UTC.
    pub utc: bool,
}

impl Schedule {
    /// Whether it holds at `moment`.
    pub fn holds(&self, moment: &Moment) -> bool {
        let seconds = if self.utc { moment.utc } else { moment.local() };
        let time = seconds.rem_euclid(DAY);
        let within = if self.start < self.stop {
            self.start <= time && time < self.stop
        } else {
            self.start <= time || time < self.stop
        };
        within && self.weekdays >> weekday_of(seconds.div_euclid(DAY)) & 1 == 1
    }

    /// The next second at which [`Self::holds`] changes, if it does within a week.
    pub fn next_change(&self, now: &Moment) -> Option<i64> {
        let zone = if self.utc { Zone::default() } else { now.zone };
        let holds = self.holds(now);
        let (offsets, changes) = zone.offsets(now.utc);
        let today = now.utc.div_euclid(DAY);
        // every second at which the clock on the wall may show one of the three, and those at which it is changed
        let days = (-2..=9).flat_map(|day| [0, self.start, self.stop].map(|time| (today + day) * DAY + time));
        let shown = days.flat_map(|local| offsets.map(|offset| local - offset));
        let candidates = shown.chain(changes).filter(|utc| *utc > now.utc && *utc <= now.utc + 8 * DAY);
        candidates.filter(|utc| self.holds(&Moment { utc: *utc, ..*now }) != holds).min()
    }
}

impl Config {
    /// Switches rules on and off as `moment` wants it. True: there was something to switch.
    pub fn keep_hours(&mut self, moment: &Moment) -> bool {
        let Config { rules, outbounds, .. } = self;
        let refuses = |rule: &Rule| match rule.outbound {
            Target::Reject | Target::Drop => true,
            Target::Direct => false,
            Target::Outbound(place) => outbounds
                .get(usize::from(place))
                .is_some_and(|outbound| matches!(outbound.kind, OutboundKind::Reject | OutboundKind::Drop)),
        };
        let mut changed = false;
        for rule in rules {
            let Some(schedule) = rule.schedule else { continue };
            // whoever pulls the plug has gained nothing
            let on = if moment.is_known() { schedule.holds(moment) } else { refuses(rule) };
            changed |= on != rule.on;
            rule.on = on;
        }
        changed
    }

    /// True if the time decides about a rule that is in force.
    pub fn has_hours(&self) -> bool {
        self.rules.iter().any(|rule| rule.active && rule.schedule.is_some())
    }

    /// When rules are to be switched next, or quotas begin anew; `None`: no rule has hours, or a quota.
    pub fn next_hour(&self, now: &Moment) -> Option<i64> {
        let midnight = self.rules.iter().any(|rule| rule.quota.is_some()).then_some(MIDNIGHT);
        let schedules = self.rules.iter().filter_map(|rule| rule.schedule).chain(midnight);
        // one that never changes still wants to know of a clock that is set
        schedules.map(|schedule| schedule.next_change(now).unwrap_or(now.utc + 7 * DAY)).min()
    }

    /// True if a rule of both holds in one and not in the other.
    pub fn is_at_another_hour_than(&self, other: &Config) -> bool {
        let mut timed = self.rules.iter().filter(|rule| rule.schedule.is_some());
        let as_there = |rule: &Rule, there: &Rule| Rule { on: there.on, line: there.line, ..rule.clone() } == *there;
        timed.any(|rule| other.rules.iter().any(|there| there.on != rule.on && as_there(rule, there)))
    }

    /// Which rules hold, in order.
    pub fn hours(&self) -> Vec<bool> {
        self.rules.iter().map(|rule| rule.on).collect()
    }
}

/// Changes at midnight, when quotas begin anew (and at noon).
const MIDNIGHT: Schedule = Schedule { start: 0, stop: DAY / 2, weekdays: 0x7f, utc: false };

/// 2025: no build of this program is older.
const LONG_AGO: i64 = 1_735_689_600;

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    fn at(utc: i64) -> Moment {
        Moment { utc, zone: Zone::parse(BERLIN).unwrap() }
    }

    fn clock(hours: i64, minutes: i64) -> i64 {
        hours * 3600 + minutes * 60
    }

    /// Walks from boundary to boundary, and looks at every minute between them.
    fn walk(schedule: Schedule, from: i64, until: i64) -> Vec<(i64, bool)> {
        let (mut now, mut seen) = (from, Vec::new());
        while let Some(next) = schedule.next_change(&at(now)).filter(|next| *next < until) {
            let held = schedule.holds(&at(now));
            assert!((now..next).step_by(60).chain([next - 1]).all(|utc| schedule.holds(&at(utc)) == held), "{now}");
            assert_ne!(schedule.holds(&at(next)), held, "{next}");
            seen.push((next, !held));
            now = next;
        }
        seen
    }

    // Monday 2026-03-23 00:00 in Berlin is 2026-03-22T23:00Z.
    const MONDAY: i64 = 1_774_220_400;

    #[test]
    fn a_week_of_nights_with_the_change_to_summer_time() {
        let night = Schedule { start: clock(21, 30), stop: clock(6, 0), weekdays: 0x7f, utc: false };
        let seen = walk(night, MONDAY + clock(12, 0), MONDAY + 7 * DAY + clock(12, 0));
        assert_eq!(seen.len(), 14);
        for (day, pair) in seen.chunks(2).enumerate() {
            let begins = MONDAY + day as i64 * DAY + clock(21, 30);
            // from Sunday, the 29th, on everything is an hour earlier by UTC
            let sundays = if day >= 6 { 3600 } else { 0 };
            let mornings = if day >= 5 { 3600 } else { 0 };
            let ends = MONDAY + (day as i64 + 1) * DAY + clock(6, 0) - mornings;
            assert_eq!(pair, [(begins - sundays, true), (ends, false)], "day {day}");
        }
    }

    #[test]
    fn a_time_that_the_clock_skips_or_shows_twice() {
        let early = Schedule { start: clock(2, 15), stop: clock(2, 45), weekdays: 0x7f, utc: false };
        // 2026-03-29: there is no 02:15; the 28th and the 30th have one
        let seen = walk(early, MONDAY + 5 * DAY, MONDAY + 8 * DAY);
        let saturday = MONDAY + 5 * DAY + clock(2, 15);
        let monday = MONDAY + 7 * DAY + clock(1, 15);
        assert_eq!(seen, [(saturday, true), (saturday + 1800, false), (monday, true), (monday + 1800, false)]);
        // 2026-10-25: it is 02:15 at 00:15Z and again at 01:15Z
        let autumn = 1_792_886_400;
        let seen = walk(early, autumn, autumn + DAY);
        let twice = [900, 2700, 4500, 6300].map(|second| autumn + second);
        assert_eq!(seen.iter().map(|(utc, _)| *utc).collect::<Vec<_>>()[..4], twice);
    }

    #[test]
    fn weekdays_and_the_time_of_day_are_looked_at_one_by_one() {
        let saturday = Schedule { start: clock(21, 0), stop: clock(6, 0), weekdays: 1 << 6, utc: true };
        // 2026-01-03 is a Saturday
        let day = 20_456 * DAY;
        let holds = |time: i64| saturday.holds(&at(day + time));
        assert!(holds(clock(5, 59)) && !holds(clock(6, 0)) && !holds(clock(20, 59)) && holds(clock(21, 0)));
        assert!(!holds(DAY) && !holds(-1));
        let all_day = Schedule { start: 0, stop: 0, weekdays: 1 << 6, utc: true };
        assert!(all_day.holds(&at(day)) && all_day.holds(&at(day + DAY - 1)) && !all_day.holds(&at(day + DAY)));
        assert_eq!(all_day.next_change(&at(day)), Some(day + DAY));
        let ever = Schedule { start: 0, stop: 0, weekdays: 0x7f, utc: true };
        assert_eq!(ever.next_change(&at(day)), None);
    }

    #[test]
    fn until_the_clock_is_set_what_refuses_holds() {
        let text = "
config rule; option outbound reject; option start_time 21:00; option stop_time 21:01
config rule; option outbound no; option start_time 21:00
config rule; option outbound direct; option stop_time 21:00
config rule; option outbound direct
config outbound no; option type drop";
        let mut config = super::super::tests::fine(text);
        let hours = |config: &mut Config, utc| {
            config.keep_hours(&at(utc));
            config.hours()
        };
        assert_eq!(hours(&mut config, 40), [true, true, false, true]);
        assert_eq!(hours(&mut config, MONDAY), [false, false, true, true]);
        assert!(!config.keep_hours(&at(MONDAY + 1)));
        assert_eq!(config.next_hour(&at(MONDAY)), Some(MONDAY + clock(21, 0)));
    }
}

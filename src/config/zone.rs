//! A time zone as POSIX writes it in `TZ`, and OpenWrt in `/etc/TZ`: `CET-1CEST,M3.5.0,M10.5.0/3`. Pure.
//!
//! An own reader of a page: the crates that read this bring the whole of the TZif format and allocate.

/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// How far local time is from UTC, and when that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Zone {
    /// Seconds east of Greenwich.
    standard: i64,
    summer: Option<Summer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summer {
    offset: i64,
    begins: Change,
    ends: Change,
}

/// When the clocks are changed: on a day of the year, seconds after its local midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    day: Day,
    at: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Day {
    /// `Jn`: from 1, 29 February never counted.
    Julian(i64),
    /// `n`: from 0, 29 February counted.
    Ordinal(i64),
    /// `Mm.w.d`: week 5 is the last, day 0 is Sunday.
    Week { month: i64, week: i64, weekday: i64 },
}

impl Zone {
    /// Reads the form of POSIX.1-2017 section 8.3, with hours of change up to 167 either way (RFC 8536 section 3.3.1).
    pub fn parse(text: &str) -> Option<Zone> {
        let mut rest = Rest(text.trim());
        rest.name()?;
        let standard = -rest.time()?;
        if rest.0.is_empty() {
            return Some(Zone { standard, summer: None });
        }
        rest.name()?;
        let offset = if rest.0.is_empty() || rest.0.starts_with(',') { standard + 3600 } else { -rest.time()? };
        if rest.0.is_empty() {
            // what the C libraries take
            rest.0 = ",M3.2.0,M11.1.0";
        }
        let begins = rest.change()?;
        let ends = rest.change()?;
        rest.0.is_empty().then_some(Zone { standard, summer: Some(Summer { offset, begins, ends }) })
    }

    /// Seconds to be added to `utc`, seconds since 1970, for local time.
    pub fn offset(&self, utc: i64) -> i64 {
        let Some(summer) = self.summer else { return self.standard };
        let [begins, ends] = self.changes(year_of((utc + self.standard).div_euclid(DAY)), &summer);
        // south of the equator summer passes the turn of the year
        let is_summer = if begins < ends { begins <= utc && utc < ends } else { utc < ends || begins <= utc };
        if is_summer { summer.offset } else { self.standard }
    }

    /// The offsets that there are, and moments near `utc` at which one takes the other's place.
    pub(super) fn offsets(&self, utc: i64) -> ([i64; 2], [i64; 6]) {
        let Some(summer) = self.summer else { return ([self.standard; 2], [i64::MIN; 6]) };
        let year = year_of(utc.div_euclid(DAY));
        let years = [year - 1, year, year + 1].map(|year| self.changes(year, &summer));
        let [[a, b], [c, d], [e, f]] = years;
        ([self.standard, summer.offset], [a, b, c, d, e, f])
    }

    fn changes(&self, year: i64, summer: &Summer) -> [i64; 2] {
        let utc = |change: &Change, offset: i64| change.day.of(year) * DAY + change.at - offset;
        [utc(&summer.begins, self.standard), utc(&summer.ends, summer.offset)]
    }
}

impl Day {
    /// Days since 1970.
    fn of(self, year: i64) -> i64 {
        match self {
            Day::Julian(day) => first_day(year) + day - 1 + i64::from(is_leap(year) && day >= 60),
            Day::Ordinal(day) => first_day(year) + day,
            Day::Week { month, week, weekday } => {
                let begin = |month: i64| {
                    let before = MONTHS[..(month - 1) as usize].iter().sum::<i64>();
                    first_day(year) + before + i64::from(is_leap(year) && month > 2)
                };
                let first = begin(month);
                let day = first + (weekday - weekday_of(first)).rem_euclid(7) + 7 * (week - 1);
                let next = if month == 12 { first_day(year + 1) } else { begin(month + 1) };
                if day < next { day } else { day - 7 }
            }
        }
    }
}

/// 0 is Sunday; 1970 began on a Thursday.
pub fn weekday_of(day: i64) -> i64 {
    (day + 4).rem_euclid(7)
}

/// The year and month (from 0) of a day since 1970, as one number that grows by one each month.
pub fn month_of(day: i64) -> i64 {
    let year = year_of(day);
    let mut left = day - first_day(year);
    let mut month = 0;
    for (place, days) in MONTHS.iter().enumerate() {
        let days = days + i64::from(place == 1 && is_leap(year));
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    year * 12 + month
}

/// Days from 1970 to the first of January.
fn first_day(year: i64) -> i64 {
    let before = year - 1;
    let leaps = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    (year - 1970) * 365 + leaps(before) - leaps(1969)
}

fn year_of(day: i64) -> i64 {
    let mut year = 1970 + day.div_euclid(366);
    while first_day(year + 1) <= day {
        year += 1;
    }
    while first_day(year) > day {
        year -= 1;
    }
    year
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const MONTHS: [i64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// What is still to be read.
struct Rest<'t>(&'t str);

impl Rest<'_> {
    /// Three letters or more, or anything between `<` and `>`.
    fn name(&mut self) -> Option<()> {
        if let Some(quoted) = self.0.strip_prefix('<') {
            self.0 = quoted.split_once('>')?.1;
            return Some(());
        }
        let length = self.0.bytes().take_while(u8::is_ascii_alphabetic).count();
        self.0 = &self.0[length..];
        (length >= 3).then_some(())
    }

    fn number(&mut self, most: i64) -> Option<i64> {
        let length = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.0.split_at(length.min(4));
        self.0 = rest;
        digits.parse().ok().filter(|number| *number <= most)
    }

    fn takes(&mut self, sign: char) -> bool {
        let rest = self.0.strip_prefix(sign);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// `[+-]hh[:mm[:ss]]` in seconds.
    fn time(&mut self) -> Option<i64> {
        let back = self.takes('-');
        let _ = !back && self.takes('+');
        let mut seconds = self.number(167)? * 3600;
        for unit in [60, 1] {
            if self.takes(':') {
                seconds += self.number(59)? * unit;
            } else {
                break;
            }
        }
        Some(if back { -seconds } else { seconds })
    }

    fn change(&mut self) -> Option<Change> {
        if !self.takes(',') {
            return None;
        }
        let day = if self.takes('J') {
            Day::Julian(self.number(365)?)
        } else if self.takes('M') {
            let month = self.number(12)?;
            let week = self.takes('.').then(|| self.number(5)).flatten()?;
            let weekday = self.takes('.').then(|| self.number(6)).flatten()?;
            if month == 0 || week == 0 {
                return None;
            }
            Day::Week { month, week, weekday }
        } else {
            Day::Ordinal(self.number(365)?)
        };
        let at = if self.takes('/') { self.time()? } else { 2 * 3600 };
        Some(Change { day, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    #[test]
    fn summer_begins_and_ends_in_the_second_that_the_zone_says() {
        let zone = Zone::parse(BERLIN).unwrap();
        // `date -u -d '2026-03-29 01:00' +%s` and of 2026-10-25
        for (change, before, after) in [(1_774_746_000, 3600, 7200), (1_792_890_000, 7200, 3600)] {
            assert_eq!((zone.offset(change - 1), zone.offset(change)), (before, after));
        }
        let sydney = Zone::parse("AEST-10AEDT,M10.1.0,M4.1.0/3").unwrap();
        // 2026-01-15 and 2026-07-15
        assert_eq!((sydney.offset(1_768_435_200), sydney.offset(1_784_073_600)), (11 * 3600, 10 * 3600));
    }

    #[test]
    fn what_openwrt_writes_is_read_and_what_is_none_is_not() {
        for (text, winter) in [
            ("UTC", None),
            ("UTC0", Some(0)),
            ("GMT0BST,M3.5.0/1,M10.5.0", Some(0)),
            ("EST5EDT,M3.2.0,M11.1.0", Some(-18_000)),
            ("EST5EDT", Some(-18_000)),
            ("<+0330>-3:30", Some(12_600)),
            ("<-02>2<-01>,M3.5.0/-1,M10.5.0/0", Some(-7200)),
            ("IST-1GMT0,M10.5.0,M3.5.0/1", Some(0)),
            ("XXX3YYY,J60/0,J300", Some(-10_800)),
            ("XXX3YYY,59/0,300", Some(-10_800)),
            ("", None),
            ("CET-1CEST,M3.5.0", None),
            ("CET-1CEST,M13.5.0,M10.5.0", None),
            ("CET-1CEST,M3.5.0,M10.5.0 and more", None),
            ("Europe/Berlin", None),
        ] {
            // 2026-01-15
            assert_eq!(Zone::parse(text).map(|zone| zone.offset(1_768_435_200)), winter, "{text}");
        }
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        assert_eq!(
            [1970, 1971, 2000, 2001, 2026, 2100, 2101].map(first_day),
            [0, 365, 10957, 11323, 20454, 47482, 47847]
        );
        assert!((0..60_000).all(|day| {
            let year = year_of(day);
            first_day(year) <= day && day < first_day(year + 1)
        }));
        assert_eq!([0, 30, 31, 11016, 11017].map(month_of), [23640, 23640, 23641, 24001, 24002]);
        assert_eq!(weekday_of(20454), 4, "2026 begins on a Thursday");
    }
}

//! `start_time`, `stop_time`, `weekdays`, `utc_time` of a rule.

use super::super::check::Checked;
use super::super::report::Report;
use super::super::schedule::Schedule;

/// `None`: the rule holds at any time.
pub(super) fn schedule(section: &Checked<'_>, report: &mut Report<'_>) -> Option<Schedule> {
    let (from, until) = (section.text("start_time"), section.text("stop_time"));
    let days = section.names("weekdays");
    if from.is_none() && until.is_none() && days.is_empty() {
        return None;
    }
    let (start, stop) = (from.map_or(0, |text| seconds(&text)), until.map_or(0, |text| seconds(&text)));
    if start == stop && section.has("start_time") && section.has("stop_time") {
        let line = section.line_of("start_time");
        let message =
            format!("{}: start_time and stop_time are the same; leave both out for the whole day", section.title);
        report.error(line, message);
    }
    let bits = |names: &[String]| names.iter().fold(0, |bits, name| bits | bit(name));
    let plain = if days.plain.is_empty() { ALL } else { bits(&days.plain) };
    let weekdays = plain & !bits(&days.not);
    if weekdays == 0 {
        report.warn(section.line_of("weekdays"), format!("{} never matches: weekdays leaves no day", section.title));
    }
    Some(Schedule { start, stop, weekdays, utc: section.flag("utc_time") })
}

/// HH:MM or HH:MM:SS, which has been checked.
fn seconds(text: &str) -> i64 {
    let parts = text.split(':').chain(["0"]).take(3);
    parts.fold(0, |seconds, part| seconds * 60 + part.parse::<i64>().unwrap_or(0))
}

fn bit(name: &str) -> u8 {
    let name = name.trim().to_ascii_lowercase();
    let days = ["su", "mo", "tu", "we", "th", "fr", "sa"];
    days.iter().position(|day| name.starts_with(day)).map_or(0, |place| 1 << place)
}

const ALL: u8 = 0x7f;

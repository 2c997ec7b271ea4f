//! Sets of networks: entries and list files → merged ranges. Files are read line by line, never as a whole.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use std::net::IpAddr;
use std::path::Path;

use super::Env;
use super::address::ip_range;
use super::check::Checked;
use super::model::{IpRange, Set};
use super::report::Report;

/// Opens a list file.
pub(super) type Open<'o> = dyn FnMut(&Path) -> io::Result<Box<dyn BufRead>> + 'o;

/// Every set in file order, and its place by name.
pub(super) fn build(
    checked: &[Checked<'_>],
    env: &Env,
    open: &mut Open<'_>,
    report: &mut Report<'_>,
) -> (Vec<Set>, BTreeMap<String, u16>) {
    let mut sets = Vec::new();
    let mut places = BTreeMap::new();
    let mut budget = Budget { left: most_ranges(env.total_memory), most: most_ranges(env.total_memory) };
    for section in checked.iter().filter(|section| section.of.name == "set") {
        let Ok(place) = u16::try_from(sets.len()) else {
            report.error(section.line, format!("more than {} sets", u16::MAX));
            break;
        };
        places.insert(section.name().to_owned(), place);
        sets.push(build_one(section, &mut budget, open, report));
    }
    (sets, places)
}

/// Ranges that all sets together may have; a set that is too large must not take the router's memory.
struct Budget {
    left: usize,
    most: usize,
}

/// One range for each KiB of memory: at 34 bytes a range and two copies during a reload, that is 7 %.
fn most_ranges(total_memory: u64) -> usize {
    usize::try_from(total_memory / 1024).unwrap_or(usize::MAX).clamp(16_384, 4_194_304)
}

fn build_one(section: &Checked<'_>, budget: &mut Budget, open: &mut Open<'_>, report: &mut Report<'_>) -> Set {
    let mut set = Set {
        name: section.name().to_owned(),
        label: section.text("label"),
        line: section.line,
        ranges: Vec::new(),
        incomplete: false,
    };
    let strict = section.flag("strict");
    if section.word("type") != Some("net") {
        return set;
    }
    for (line, entry) in section.texts("entry") {
        match ip_range(&entry) {
            Ok((range, stray_bits)) => {
                if stray_bits {
                    report
                        .warn(line, format!("{}: entry '{entry}' is taken to begin at {}", section.title, range.first));
                }
                set.ranges.push(range);
            }
            Err(wrong) if strict => report.error(line, format!("{}: entry {wrong}", section.title)),
            Err(wrong) => report.warn(line, format!("{}: entry {wrong}; skipped", section.title)),
        }
    }
    for (line, path) in section.texts("loadfile") {
        let mut file = ListFile { path: &path, at: line, strict, bad: 0, entries: 0 };
        let fits = open(Path::new(&path)).and_then(|mut lines| file.read(&mut *lines, &mut set.ranges, budget, report));
        match fits {
            Err(why) => {
                report.warn(line, format!("{}: cannot read {path}: {why}; it counts as empty", section.title));
                set.incomplete = true;
            }
            Ok(false) => {
                let most = budget.most;
                let message =
                    format!("{}: more than {most} ranges in all sets: too many for this memory", section.title);
                report.error(line, message);
                break;
            }
            Ok(true) if file.entries == 0 => {
                report.warn(line, format!("{}: {path} has no entry", section.title));
                set.incomplete = true;
            }
            Ok(true) => {}
        }
    }
    set.ranges = merged(set.ranges);
    if set.ranges.is_empty() && !set.incomplete {
        report.warn(section.line, format!("{} is empty", section.title));
        set.incomplete = true;
    }
    budget.left = budget.left.saturating_sub(set.ranges.len());
    set
}

struct ListFile<'p> {
    path: &'p str,
    /// Line of `loadfile` in the configuration.
    at: u32,
    strict: bool,
    bad: u32,
    entries: u32,
}

impl ListFile<'_> {
    /// Adds the file's ranges. False if there are more than the budget has left.
    fn read(
        &mut self,
        lines: &mut dyn BufRead,
        ranges: &mut Vec<IpRange>,
        budget: &Budget,
        report: &mut Report<'_>,
    ) -> io::Result<bool> {
        let mut buffer = Vec::new();
        let mut number = 0;
        while read_line(lines, &mut buffer)? {
            number += 1;
            let text = String::from_utf8_lossy(&buffer);
            let entry = text.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            match ip_range(entry) {
                Ok((range, _)) => {
                    self.entries += 1;
                    ranges.push(range);
                }
                Err(wrong) => self.bad_line(number, wrong, report),
            }
            if ranges.len() > budget.left {
                *ranges = merged(std::mem::take(ranges));
                if ranges.len() > budget.left {
                    return Ok(false);
                }
            }
        }
        if self.bad > MOST_BAD_LINES {
            self.tell(number, format!("{} bad lines in all", self.bad), report);
        }
        Ok(true)
    }

    fn bad_line(&mut self, number: u32, wrong: String, report: &mut Report<'_>) {
        self.bad += 1;
        if self.bad <= MOST_BAD_LINES {
            self.tell(number, wrong, report);
        }
    }

    fn tell(&self, number: u32, message: String, report: &mut Report<'_>) {
        if self.strict {
            report.error_in(self.at, self.path, number, message);
        } else {
            report.warn_in(self.at, self.path, number, format!("{message}; skipped"));
        }
    }
}

/// Reads one line without its end into `buffer`, at most [`LONGEST_LINE`] bytes of it; the rest of a longer one is passed
/// over. False at the end of the file.
fn read_line(lines: &mut dyn BufRead, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    let read = (&mut *lines).take(LONGEST_LINE).read_until(b'\n', buffer)?;
    if buffer.last() != Some(&b'\n') && read as u64 == LONGEST_LINE {
        lines.skip_until(b'\n')?;
    }
    Ok(read > 0)
}

/// Ascending, disjoint and not touching; IPv4 first.
pub(super) fn merged(mut ranges: Vec<IpRange>) -> Vec<IpRange> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let touches = before.last >= next.first || successor(before.last) == Some(next.first);
        if touches && before.last.is_ipv4() == next.first.is_ipv4() {
            before.last = before.last.max(next.last);
            return true;
        }
        false
    });
    ranges.shrink_to_fit();
    ranges
}

/// The next address of the family.
fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

/// Bytes of a line in a list file that are looked at; a comment may be longer.
const LONGEST_LINE: u64 = 1024;

/// Bad lines of one list file that are shown one by one.
const MOST_BAD_LINES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(texts: &[&str]) -> Vec<IpRange> {
        texts.iter().map(|text| ip_range(text).unwrap().0).collect()
    }

    #[test]
    fn overlapping_and_touching_ranges_become_one() {
        let mixed = ["192.0.2.0/25", "2001:db8::/64", "192.0.2.128/25", "192.0.2.7", "10.0.0.0/8", "2001:db8:0:1::/64"];
        assert_eq!(merged(ranges(&mixed)), ranges(&["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/63"]));
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_run_over() {
        let all = ["0.0.0.0/0", "255.255.255.255", "::/0", "ffff::/16", "::"];
        assert_eq!(merged(ranges(&all)), ranges(&["0.0.0.0/0", "::/0"]));
    }

    #[test]
    fn a_line_of_any_length_is_one_line() {
        let text = [b"x".repeat(5000), b"\n".to_vec(), b"short\n".to_vec(), b"y".repeat(1024)].concat();
        let mut lines = io::BufReader::with_capacity(16, text.as_slice());
        let mut buffer = Vec::new();
        assert!(read_line(&mut lines, &mut buffer).unwrap());
        assert_eq!(buffer.len(), 1024);
        assert!(read_line(&mut lines, &mut buffer).unwrap());
        assert_eq!(buffer, b"short\n");
        assert!(read_line(&mut lines, &mut buffer).unwrap());
        assert_eq!(buffer.len(), 1024);
        assert!(!read_line(&mut lines, &mut buffer).unwrap());
    }

    proptest! {
        #[test]
        fn merging_keeps_exactly_the_same_addresses(pairs in prop::collection::vec((0u8..64, 0u8..64), 0..20)) {
            let address = |n: u8| IpAddr::from([192, 0, 2, n]);
            let given: Vec<IpRange> = pairs
                .iter()
                .map(|(a, b)| IpRange { first: address(*a.min(b)), last: address(*a.max(b)) })
                .collect();
            let merged = merged(given.clone());
            for n in 0..=65 {
                let inside = |ranges: &[IpRange]| ranges.iter().any(|r| (r.first..=r.last).contains(&address(n)));
                prop_assert_eq!(inside(&given), inside(&merged));
            }
            for pair in merged.windows(2) {
                prop_assert!(successor(pair[0].last).unwrap() < pair[1].first);
            }
        }
    }
}

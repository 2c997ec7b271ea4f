//! Sets: entries and list files → what can be looked up in. Files are read line by line, never held.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use super::Env;
use super::address::ip_range;
use super::check::Checked;
use super::domains::{Collected, DomainSet};
use super::model::{Entries, Set, Source};
use super::nets::NetSet;
use super::report::Report;
use super::set_line::domains as domains_of;

/// Opens a list file.
pub type Open<'o> = dyn FnMut(&Path) -> io::Result<Box<dyn BufRead>> + 'o;

/// Every set in file order, and its place by name.
pub(super) fn build(
    checked: &[Checked<'_>],
    env: &Env,
    open: &mut Open<'_>,
    report: &mut Report<'_>,
) -> (Vec<Set>, BTreeMap<String, u16>) {
    let mut sets = Vec::new();
    let mut places = BTreeMap::new();
    let most = most_memory(env.total_memory);
    let mut budget = Budget { left: most, most };
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

/// Bytes that all sets together may take; a set that is too large must not take the router's memory.
struct Budget {
    left: usize,
    most: usize,
}

/// With two copies during a reload that is 7 % of the memory, or 557 KiB of a machine with very little.
fn most_memory(total_memory: u64) -> usize {
    usize::try_from(total_memory / 28).unwrap_or(usize::MAX).clamp(557 << 10, 142 << 20)
}

/// What is being read.
enum Reading {
    Nets(NetSet),
    Domains(Collected),
}

impl Reading {
    /// Adds the entries of one line, and says whether there were some.
    fn line(&mut self, line: &str) -> Result<bool, String> {
        match self {
            Reading::Nets(nets) => {
                let entry = line.split('#').next().unwrap_or_default().trim();
                if entry.is_empty() {
                    return Ok(false);
                }
                nets.push(ip_range(entry)?.0);
                Ok(true)
            }
            Reading::Domains(domains) => {
                let before = domains.len();
                domains_of(line, &mut |name, only_itself| domains.push(name, only_itself))?;
                Ok(domains.len() > before)
            }
        }
    }

    fn memory(&self) -> usize {
        match self {
            Reading::Nets(nets) => nets.memory(),
            Reading::Domains(domains) => DomainSet::memory_for(domains.len()),
        }
    }

    /// False if there is more than `most` bytes, even without what is there twice.
    fn fits(&mut self, most: usize) -> bool {
        if self.memory() > most {
            match self {
                Reading::Nets(nets) => nets.finish(),
                Reading::Domains(domains) => domains.merge(),
            }
        }
        self.memory() <= most
    }

    fn finish(self) -> Entries {
        match self {
            Reading::Nets(mut nets) => {
                nets.finish();
                nets.seal();
                Entries::Nets(Arc::new(nets))
            }
            Reading::Domains(domains) => Entries::Domains(Arc::new(domains.finish())),
        }
    }
}

fn build_one(section: &Checked<'_>, budget: &mut Budget, open: &mut Open<'_>, report: &mut Report<'_>) -> Set {
    let strict = section.flag("strict");
    let mut incomplete = false;
    let mut reading = match section.word("type") {
        Some("domain") => Reading::Domains(Collected::default()),
        _ => Reading::Nets(NetSet::default()),
    };
    for (line, entry) in section.texts("entry") {
        if matches!(reading, Reading::Nets(_))
            && let Ok((range, true)) = ip_range(&entry)
        {
            report.warn(line, format!("{}: entry '{entry}' is taken to begin at {}", section.title, range.first));
        }
        match reading.line(&entry) {
            Ok(_) => {}
            Err(wrong) if strict => report.error(line, format!("{}: entry {wrong}", section.title)),
            Err(wrong) => report.warn(line, format!("{}: entry {wrong}; skipped", section.title)),
        }
    }
    let mut files: Vec<(u32, String)> = section.texts("loadfile");
    let url = section.text("url");
    if files.is_empty() && url.is_some() {
        files.push((section.line_of("url"), format!("{LISTS}/{}.list", section.name())));
    }
    for (line, path) in &files {
        let (line, path) = (*line, path.as_str());
        let mut file = ListFile { path, at: line, strict, bad: 0, entries: 0 };
        let fits = open(Path::new(path)).and_then(|mut lines| file.read(&mut *lines, &mut reading, budget, report));
        match fits {
            Err(why) => {
                let fetch = if url.is_some() { "; update-sets fetches it" } else { "" };
                report.warn(line, format!("{}: cannot read {path}: {why}; it counts as empty{fetch}", section.title));
                incomplete = true;
            }
            Ok(false) => {
                let most = budget.most >> 10;
                let message = format!("{}: more than {most} KiB in all sets: too many for this memory", section.title);
                report.error(line, message);
                break;
            }
            Ok(true) if file.entries == 0 => {
                report.warn(line, format!("{}: {path} has no entry", section.title));
                incomplete = true;
            }
            Ok(true) => {}
        }
    }
    let entries = reading.finish();
    if entries.is_empty() && !incomplete {
        report.warn(section.line, format!("{} is empty", section.title));
        incomplete = true;
    }
    budget.left = budget.left.saturating_sub(entries.memory());
    let (name, label) = (section.name().to_owned(), section.text("label"));
    let files = files.into_iter().map(|(_, path)| path.into()).collect();
    let is_domains = matches!(entries, Entries::Domains(_));
    let names = section.texts("entry").into_iter().map(|(_, entry)| entry).filter(|_| is_domains).collect();
    let source = Source { names, files, url, update_interval: section.time("update_interval").unwrap_or_default() };
    Set { name, label, line: section.line, entries, incomplete, source }
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
    /// Adds the file's entries. False if there are more than the budget has left.
    fn read(
        &mut self,
        lines: &mut dyn BufRead,
        reading: &mut Reading,
        budget: &Budget,
        report: &mut Report<'_>,
    ) -> io::Result<bool> {
        let mut buffer = Vec::new();
        let mut number = 0;
        while read_line(lines, &mut buffer)? {
            number += 1;
            match reading.line(&String::from_utf8_lossy(&buffer)) {
                Ok(some) => self.entries += u32::from(some),
                Err(wrong) => self.bad_line(number, wrong, report),
            }
            if !reading.fits(budget.left) {
                return Ok(false);
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

/// Calls `found` with each name of a set of domains, read once more, and whether only the name itself is meant. What can't be
/// read was told of before.
pub fn each_name(source: &Source, open: &mut Open<'_>, found: &mut dyn FnMut(&str, bool)) {
    for entry in &source.names {
        let _ = domains_of(entry, found);
    }
    for path in &source.files {
        let Ok(mut lines) = open(path) else { continue };
        let mut buffer = Vec::new();
        while read_line(&mut *lines, &mut buffer).unwrap_or(false) {
            let _ = domains_of(&String::from_utf8_lossy(&buffer), found);
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

/// Where the lists lie that `update-sets` fetches, if no `loadfile` says otherwise. A system upgrade keeps what is there.
const LISTS: &str = "/etc/tproxyd";

/// Bytes of a line in a list file that are looked at; a comment may be longer.
const LONGEST_LINE: u64 = 1024;

/// Bad lines of one list file that are shown one by one.
const MOST_BAD_LINES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

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
}

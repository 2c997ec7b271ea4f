//! The lists that `update-sets` fetches: how old each is, what came of the last attempt, and whether it is time for the next.
//! The script does the work; what it notes lies beside the control socket. The clock is the caller's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// What `update-sets` has noted of its last attempt at a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Seconds since 1970.
    pub time: u64,
    /// Why it failed; `None`: it did not.
    pub error: Option<String>,
}

impl Note {
    /// What lies at `path`, if that is one.
    pub fn read(path: &Path) -> Option<Note> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(LONGEST_NOTE).read_to_end(&mut bytes).ok()?;
        Note::parse(&String::from_utf8_lossy(&bytes))
    }

    /// `TIME` or `TIME WHY IT FAILED`, in one line.
    fn parse(text: &str) -> Option<Note> {
        let line = text.lines().next()?;
        let (time, error) = line.split_once(' ').unwrap_or((line, ""));
        let error = Some(error.trim()).filter(|error| !error.is_empty()).map(str::to_owned);
        Some(Note { time: time.parse().ok()?, error })
    }
}

/// Where the note of a set lies if the control socket is at `control`.
pub fn note_path(control: &Path, set: &str) -> PathBuf {
    control.with_file_name("updates").join(set)
}

/// When the file at `path` changed, in seconds since 1970; `None` if there is none.
pub fn modified(path: &Path) -> Option<u64> {
    let time = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Whether a list that changed at `modified`, and was asked for as `note` says, is to be fetched at `now`.
///
/// One from the future was fetched when the clock was wrong. After a failure it is asked for again in an hour, or earlier
/// if it always is.
pub fn is_due(now: u64, modified: Option<u64>, note: Option<&Note>, interval: Duration) -> bool {
    let passed = |time: u64, interval: Duration| now.checked_sub(time).is_none_or(|age| age >= interval.as_secs());
    let failed = note.filter(|note| note.error.is_some());
    modified.is_none_or(|time| passed(time, interval))
        && failed.is_none_or(|note| passed(note.time, interval.min(AFTER_FAILURE)))
}

const AFTER_FAILURE: Duration = Duration::from_secs(3600);
/// Bytes of a note that are read.
const LONGEST_NOTE: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_list_is_due_when_it_is_as_old_as_its_interval_or_from_the_future() {
        for (modified, due) in [(None, true), (Some(99_999), false), (Some(13_600), true), (Some(200_000), true)] {
            assert_eq!(is_due(100_000, modified, None, DAY), due, "{modified:?}");
        }
    }

    #[test]
    fn what_failed_is_tried_again_in_an_hour_or_as_often_as_it_always_is() {
        let failed = |time| Note { time, error: Some("404".into()) };
        for (ago, interval, due) in [(60, DAY, false), (3600, DAY, true), (60, Duration::from_secs(60), true)] {
            assert_eq!(is_due(100_000, None, Some(&failed(100_000 - ago)), interval), due, "{ago}");
        }
        assert!(is_due(100_000, None, Some(&Note { time: 99_999, error: None }), DAY), "its file has gone since");
    }

    #[test]
    fn a_note_is_a_time_and_a_reason() {
        assert_eq!(Note::parse("17\n"), Some(Note { time: 17, error: None }));
        assert_eq!(Note::parse("17 no answer\nx"), Some(Note { time: 17, error: Some("no answer".into()) }));
        assert_eq!((Note::parse(""), Note::parse("x y")), (None, None));
        assert_eq!(note_path(Path::new("/var/run/a/control.sock"), "cn"), Path::new("/var/run/a/updates/cn"));
    }
}

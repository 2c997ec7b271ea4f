//! What has happened lately, in a ring of fixed size: for `tproxyd events` and for the script of `option on_event`.
//!
//! Whoever reads keeps the number of the next event that it wants; what it was too slow for is gone, and is counted.

use std::fmt::{self, Display, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Events that are kept.
pub const KEPT: usize = 32;

/// Seconds for which a state that comes and goes is told once.
pub const SELDOM: u64 = 60;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An outbound works; it did not, or nobody knew.
    OutboundUp,
    /// An outbound has stopped working.
    OutboundDown,
    /// A table was full: connections wait, or the longest idle makes room.
    TableFull,
    /// Rules that somebody had taken away are in place again.
    RulesRepaired,
    /// A client has used up the quota of a rule.
    QuotaUsedUp,
    /// A new configuration is in force.
    Reloaded,
    /// A new configuration was not taken.
    ReloadFailed,
}

impl Kind {
    /// All, in the order of the README.
    pub const ALL: [Kind; 7] = [
        Kind::OutboundUp,
        Kind::OutboundDown,
        Kind::TableFull,
        Kind::RulesRepaired,
        Kind::QuotaUsedUp,
        Kind::Reloaded,
        Kind::ReloadFailed,
    ];

    /// As `tproxyd events` and the script are told.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OutboundUp => "outbound_up",
            Kind::OutboundDown => "outbound_down",
            Kind::TableFull => "table_full",
            Kind::RulesRepaired => "rules_repaired",
            Kind::QuotaUsedUp => "quota_used_up",
            Kind::Reloaded => "reloaded",
            Kind::ReloadFailed => "reload_failed",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Seconds since 1970.
    pub at: u64,
    /// What happened.
    pub kind: Kind,
    /// To what: an outbound, a table (`tcp`, `udp`, `names` …), a client.
    pub name: Bounded<64>,
    /// In words; may be empty.
    pub detail: Bounded<160>,
}

/// The last events, each with its number.
#[derive(Debug, Clone, Default)]
pub struct Events {
    kept: Vec<Event>,
    /// Number of the next event; the first has 0.
    next: u64,
}

impl Events {
    /// Bytes that the ring takes.
    pub const MEMORY_MAX: usize = KEPT * size_of::<Event>();

    /// None yet; room for all that are kept.
    pub fn new() -> Events {
        Events { kept: Vec::with_capacity(KEPT), next: 0 }
    }

    /// Adds one. What is too long of `name` and `detail` is cut.
    pub fn push(&mut self, kind: Kind, name: impl Display, detail: impl Display) {
        let event = Event { at: unix_time(), kind, name: Bounded::of(name), detail: Bounded::of(detail) };
        let place = (self.next % KEPT as u64) as usize;
        match self.kept.get_mut(place) {
            Some(old) => *old = event,
            None => self.kept.push(event),
        }
        self.next += 1;
    }

    /// As [`Self::push`], unless there was one of this kind and name within [`SELDOM`] seconds. True: there was none.
    pub fn push_seldom(&mut self, kind: Kind, name: &str, detail: impl Display) -> bool {
        let now = unix_time();
        let told =
            |event: &Event| event.kind == kind && event.name.as_str() == name && now.saturating_sub(event.at) < SELDOM;
        if self.kept.iter().any(told) {
            return false;
        }
        self.push(kind, name, detail);
        true
    }

    /// The number that the next event will have.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The number of the oldest event that is still here, or of the next if there is none.
    pub fn oldest(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    /// Event `number`; `None` if it has not come yet, or is gone.
    pub fn get(&self, number: u64) -> Option<&Event> {
        if !(self.oldest()..self.next).contains(&number) {
            return None;
        }
        self.kept.get((number % KEPT as u64) as usize)
    }
}

/// Text of at most `N` bytes, without memory of its own; what is longer is cut, and ends in `…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounded<const N: usize> {
    bytes: [u8; N],
    len: u16,
}

impl<const N: usize> Bounded<N> {
    /// No text.
    pub const EMPTY: Bounded<N> = Bounded { bytes: [0; N], len: 0 };

    /// What `text` displays as.
    pub fn of(text: impl Display) -> Bounded<N> {
        let mut bounded = Bounded::EMPTY;
        if write!(bounded, "{text}").is_err() {
            let cut = bounded.as_str().char_indices().map(|(at, _)| at).rfind(|at| at + '…'.len_utf8() <= N);
            bounded.len = cut.unwrap_or(0) as u16;
            // there is room for it now
            let _ = bounded.write_char('…');
        }
        bounded
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len.into()).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl<const N: usize> Default for Bounded<N> {
    fn default() -> Self {
        Bounded::EMPTY
    }
}

impl<const N: usize> Write for Bounded<N> {
    /// Takes as many whole characters as fit.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = usize::from(self.len);
        let fits = (0..=text.len().min(N - len)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        if let (Some(room), Some(part)) = (self.bytes.get_mut(len..len + fits), text.as_bytes().get(..fits)) {
            room.copy_from_slice(part);
        }
        self.len += fits as u16;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl<const N: usize> Display for Bounded<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Seconds since 1970; 0 on a machine that does not know the time yet.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_misses_the_oldest_and_can_tell_how_many() {
        let mut events = Events::new();
        assert_eq!((events.oldest(), events.next(), events.get(0)), (0, 0, None));
        for n in 0..KEPT as u64 + 5 {
            events.push(Kind::TableFull, n, "");
        }
        assert_eq!((events.oldest(), events.next()), (5, KEPT as u64 + 5));
        assert_eq!(events.get(4), None);
        assert_eq!(events.get(5).unwrap().name.as_str(), "5");
        assert_eq!(events.get(KEPT as u64 + 4).unwrap().name.as_str(), format!("{}", KEPT + 4));
        assert_eq!(events.get(events.next()), None);
    }

    #[test]
    fn what_comes_and_goes_is_told_once_in_a_while_for_each_name() {
        let mut events = Events::new();
        assert!(events.push_seldom(Kind::TableFull, "tcp", ""));
        assert!(!events.push_seldom(Kind::TableFull, "tcp", ""));
        assert!(events.push_seldom(Kind::TableFull, "udp", ""));
        assert!(events.push_seldom(Kind::QuotaUsedUp, "tcp", ""));
        assert_eq!(events.next(), 3);
    }

    #[test]
    fn what_is_too_long_is_cut_at_a_character() {
        assert_eq!(Bounded::<8>::of("12345678").as_str(), "12345678");
        assert_eq!(Bounded::<8>::of("123456789").as_str(), "12345…");
        assert_eq!(Bounded::<8>::of("äöüßé").as_str(), "äö…");
        assert_eq!(Bounded::<8>::of(format_args!("{}{}", "1234567", "ß")).as_str(), "12345…");
        assert_eq!(Bounded::<2>::of("abc").as_str(), "");
    }

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}

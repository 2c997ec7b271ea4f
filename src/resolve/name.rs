//! What is known of one name: its addresses, what they are worth, and how far the round of questions has come.

use std::net::IpAddr;
use std::time::Duration;

use crate::proto::dns::{self, Answer, QType};
use crate::store::timers::Tick;
use crate::sys::random;

use super::attempt::Failure;
use super::{BACK_OFF, REFRESH_INTERVAL};

/// The two questions of a round. v6 comes first, here and among the addresses (RFC 6724 section 10.3).
pub(super) const QTYPES: [QType; 2] = [QType::Aaaa, QType::A];

pub(super) struct Name {
    pub(super) text: Box<str>,
    /// v6 before v4. Only ever replaced by newer ones.
    pub(super) addresses: Addresses,
    /// When the addresses are to be asked for again; `None` if that moment has come, or none were found yet.
    pub(super) fresh_until: Option<Tick>,
    /// Why the last round failed, if it did.
    pub(super) failure: Option<Failure>,
    /// By index of [`QTYPES`].
    pub(super) halves: [Half; 2],
    /// When the round that someone wants may begin.
    pub(super) start: Option<Tick>,
    /// The last round failed, and no other begins before this.
    pub(super) back_off: Option<Tick>,
    /// When the last round began; forgotten when it is over and [`REFRESH_INTERVAL`] has passed.
    began: Option<Tick>,
    /// Rounds that have failed since the last good one.
    failures: u8,
}

type Addresses = heapless::Vec<IpAddr, { 2 * dns::ADDRESSES_MAX }>;

/// How far one question of a round has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// Not part of this round.
    Idle,
    /// For a free place.
    Waiting,
    Asking,
    Resolved,
    Failed(Failure),
}

impl Half {
    fn is_open(self) -> bool {
        matches!(self, Half::Waiting | Half::Asking)
    }
}

/// News of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There are addresses, confirmed just now. News of the other family may follow in a second call.
    Resolved {
        /// They are others than before; their order does not count.
        changed: bool,
    },
    /// The round is over without any; the last good ones, if there are any, stay.
    Failed(Failure),
}

/// What the addresses of a name are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// There are none yet.
    Never,
    /// Their TTL has not passed.
    Fresh,
    /// Their TTL has passed, or they have stopped working; they are the last good ones.
    Stale,
}

/// What is known of a name, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status<'a> {
    /// The name.
    pub name: &'a str,
    /// v6 before v4.
    pub addresses: &'a [IpAddr],
    /// What they are worth.
    pub freshness: Freshness,
    /// Why the last round failed, if it did.
    pub failure: Option<Failure>,
    /// A round is under way.
    pub asking: bool,
}

impl Name {
    pub(super) fn new(text: &str) -> Name {
        Name {
            text: text.into(),
            addresses: Addresses::new(),
            fresh_until: None,
            failure: None,
            halves: [Half::Idle; 2],
            start: None,
            back_off: None,
            began: None,
            failures: 0,
        }
    }

    pub(super) fn status(&self) -> Status<'_> {
        let freshness = match self.fresh_until {
            Some(_) => Freshness::Fresh,
            None if self.addresses.is_empty() => Freshness::Never,
            None => Freshness::Stale,
        };
        Status {
            name: &self.text,
            addresses: &self.addresses,
            freshness,
            failure: self.failure,
            asking: self.is_asking(),
        }
    }

    pub(super) fn is_asking(&self) -> bool {
        self.halves.iter().any(|half| half.is_open())
    }

    /// Wants a round unless the addresses are fresh. True if that changes when something is due.
    pub(super) fn request(&mut self, now: Tick) -> bool {
        let fresh = self.fresh_until.is_some_and(|until| !now.reached(until));
        if self.is_asking() || fresh || self.start.is_some() {
            return false;
        }
        self.want(now);
        true
    }

    /// Wants a round although the addresses may be fresh. False if one began a moment ago.
    pub(super) fn refresh(&mut self, now: Tick) -> bool {
        let recent = self.began.is_some_and(|began| !now.reached(began.after(REFRESH_INTERVAL)));
        if self.is_asking() || recent {
            return false;
        }
        self.fresh_until = None;
        self.want(now);
        true
    }

    fn want(&mut self, now: Tick) {
        self.start = Some(self.back_off.filter(|end| !now.reached(*end)).unwrap_or(now));
    }

    /// Drops the moments that have passed, so that none is taken for one to come when [`Tick`] has wrapped. True if a
    /// round is to begin.
    pub(super) fn pass(&mut self, now: Tick) -> bool {
        let passed = |moment: &mut Tick| now.reached(*moment);
        self.fresh_until.take_if(passed);
        self.back_off.take_if(passed);
        let asking = self.is_asking();
        self.began.take_if(|began| !asking && now.reached(began.after(REFRESH_INTERVAL)));
        self.start.take_if(passed).is_some()
    }

    /// When something is due: with `places` free, a question that waits for one has been since its round began.
    pub(super) fn deadlines(&self, places: bool) -> impl Iterator<Item = Tick> {
        let waiting = self.began.filter(|_| places && self.halves.contains(&Half::Waiting));
        [waiting, self.start, self.fresh_until, self.back_off].into_iter().flatten()
    }

    /// Begins a round with the questions that `asked` names, by index of [`QTYPES`].
    pub(super) fn begin(&mut self, asked: [bool; 2], now: Tick) {
        self.began = Some(now);
        self.halves = asked.map(|asked| if asked { Half::Waiting } else { Half::Idle });
    }

    /// Ends a question of the round, and with the last one the round.
    pub(super) fn settle(&mut self, half: usize, result: Result<Answer, Failure>, now: Tick) -> Option<Outcome> {
        let first = !self.halves.contains(&Half::Resolved);
        let mut changed = false;
        self.halves[half] = match result {
            Ok(answer) => {
                changed = self.replace(QTYPES[half], &answer.addresses);
                self.keep_until(now.after(answer.ttl), first);
                Half::Resolved
            }
            Err(failure) => Half::Failed(failure),
        };
        let resolved = self.halves.contains(&Half::Resolved);
        if !self.is_asking() {
            if !resolved {
                return self.finish_without(now);
            }
            changed |= self.finish_with(now);
        }
        let news = self.halves[half] == Half::Resolved && first;
        (news || changed).then_some(Outcome::Resolved { changed })
    }

    /// A family that the name has no more, or that is of no use any more, goes; one that could not be asked for stays, and
    /// is asked for again soon.
    /// True if an address went.
    fn finish_with(&mut self, now: Tick) -> bool {
        (self.failure, self.back_off, self.failures) = (None, None, 0);
        let mut changed = false;
        for (half, qtype) in self.halves.into_iter().zip(QTYPES) {
            match half {
                Half::Failed(failure) if !failure.is_about_the_name() => self.keep_until(now.after(BACK_OFF.1), false),
                Half::Failed(_) | Half::Idle => changed |= self.replace(qtype, &[]),
                Half::Resolved | Half::Waiting | Half::Asking => {}
            }
        }
        changed
    }

    fn finish_without(&mut self, now: Tick) -> Option<Outcome> {
        let failures = self.halves.iter().filter_map(|half| match half {
            Half::Failed(failure) => Some(*failure),
            _ => None,
        });
        // That a server is down matters more than that the name has no address of the other family.
        let failure = failures.min_by_key(Failure::is_about_the_name)?;
        self.failures = self.failures.saturating_add(1);
        self.back_off = Some(now.after(pause(self.failures)));
        self.fresh_until = None;
        self.failure = Some(failure);
        Some(Outcome::Failed(failure))
    }

    /// Keeps the addresses fresh until `end`, or less if they already hold for less.
    fn keep_until(&mut self, end: Tick, anew: bool) {
        let sooner = self.fresh_until.filter(|until| !anew && end.reached(*until));
        self.fresh_until = Some(sooner.unwrap_or(end));
    }

    /// Puts `new` in place of the addresses of their family. If they are the same in another order (servers rotate them),
    /// the old order stays, so that a client keeps its outside address. True if they are others.
    fn replace(&mut self, qtype: QType, new: &[IpAddr]) -> bool {
        let is_one = |address: &&IpAddr| address.is_ipv6() == (qtype == QType::Aaaa);
        let old: Addresses = self.addresses.iter().filter(is_one).copied().collect();
        if old.len() == new.len() && new.iter().all(|address| old.contains(address)) {
            return false;
        }
        let others: Addresses = self.addresses.iter().filter(|address| !is_one(address)).copied().collect();
        let (v6, v4) = if qtype == QType::Aaaa { (new, &others[..]) } else { (&others[..], new) };
        // Each family has at most ADDRESSES_MAX.
        self.addresses = v6.iter().chain(v4).copied().collect();
        true
    }
}

/// How long no round begins after `failures` that failed: doubled each time, and up to a quarter less by chance, so that
/// routers that lost their server at the same moment don't ask it at the same moment.
fn pause(failures: u8) -> Duration {
    let doubled = BACK_OFF.0.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let longest = doubled.min(BACK_OFF.1);
    longest - longest / 4 * u32::from(random::u16()) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::dns::AnswerError;

    const NOW: Tick = Tick(1000);
    const BOTH: [bool; 2] = [true, true];
    const SECOND: u32 = 100;

    fn answer(addresses: &[&str], ttl: u64) -> Result<Answer, Failure> {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Ok(Answer { addresses, ttl: Duration::from_secs(ttl) })
    }

    fn failure(error: AnswerError) -> Failure {
        Failure::Answer { server: "192.0.2.53:53".parse().unwrap(), error }
    }

    fn nothing() -> Result<Answer, Failure> {
        Err(failure(AnswerError::NoAddress))
    }

    fn down() -> Result<Answer, Failure> {
        Err(Failure::NoAnswer { server: "192.0.2.53:53".parse().unwrap() })
    }

    fn texts(name: &Name) -> Vec<String> {
        name.addresses.iter().map(IpAddr::to_string).collect()
    }

    /// A round with these answers for v6 and v4.
    fn round(name: &mut Name, v6: Result<Answer, Failure>, v4: Result<Answer, Failure>) -> [Option<Outcome>; 2] {
        name.begin(BOTH, NOW);
        [name.settle(0, v6, NOW), name.settle(1, v4, NOW)]
    }

    const NEW: Option<Outcome> = Some(Outcome::Resolved { changed: true });
    const CONFIRMED: Option<Outcome> = Some(Outcome::Resolved { changed: false });

    #[test]
    fn v6_stands_before_v4_whichever_comes_first() {
        let mut name = Name::new("proxy.example");
        name.begin(BOTH, NOW);
        assert_eq!(name.settle(1, answer(&["192.0.2.1"], 60), NOW), NEW);
        assert_eq!(name.settle(0, answer(&["2001:db8::1"], 60), NOW), NEW);
        assert_eq!(texts(&name), ["2001:db8::1", "192.0.2.1"]);
    }

    #[test]
    fn the_same_addresses_in_another_order_change_nothing() {
        let mut name = Name::new("proxy.example");
        round(&mut name, nothing(), answer(&["192.0.2.1", "192.0.2.2"], 60));
        let again = round(&mut name, nothing(), answer(&["192.0.2.2", "192.0.2.1"], 60));
        assert_eq!(again, [None, CONFIRMED]);
        assert_eq!(texts(&name), ["192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn a_family_that_the_name_has_no_more_goes() {
        let mut name = Name::new("proxy.example");
        round(&mut name, answer(&["2001:db8::1"], 60), answer(&["192.0.2.1"], 60));
        assert_eq!(round(&mut name, nothing(), answer(&["192.0.2.1"], 60)), [None, NEW]);
        assert_eq!(texts(&name), ["192.0.2.1"]);
    }

    #[test]
    fn a_family_that_is_of_no_use_any_more_goes() {
        let mut name = Name::new("proxy.example");
        round(&mut name, answer(&["2001:db8::1"], 60), answer(&["192.0.2.1"], 60));
        name.begin([false, true], NOW);
        assert_eq!(name.settle(1, answer(&["192.0.2.1"], 60), NOW), NEW);
        assert_eq!(texts(&name), ["192.0.2.1"]);
    }

    #[test]
    fn a_family_that_could_not_be_asked_for_stays_and_is_asked_for_again_soon() {
        let mut name = Name::new("proxy.example");
        round(&mut name, answer(&["2001:db8::1"], 9000), answer(&["192.0.2.1"], 9000));
        assert_eq!(round(&mut name, down(), answer(&["192.0.2.1"], 9000)), [None, CONFIRMED]);
        assert_eq!(texts(&name), ["2001:db8::1", "192.0.2.1"]);
        assert_eq!(name.fresh_until, Some(NOW.after(BACK_OFF.1)));
    }

    #[test]
    fn the_shorter_ttl_of_the_two_families_counts() {
        for (v6, v4) in [(60, 30), (30, 60)] {
            let mut name = Name::new("proxy.example");
            round(&mut name, answer(&["2001:db8::1"], v6), answer(&["192.0.2.1"], v4));
            assert_eq!(name.fresh_until, Some(Tick(NOW.0 + 30 * SECOND)));
        }
    }

    #[test]
    fn a_new_round_counts_its_own_ttl() {
        let mut name = Name::new("proxy.example");
        round(&mut name, nothing(), answer(&["192.0.2.1"], 30));
        round(&mut name, nothing(), answer(&["192.0.2.1"], 60));
        assert_eq!(name.fresh_until, Some(Tick(NOW.0 + 60 * SECOND)));
    }

    #[test]
    fn a_failed_round_keeps_the_last_good_addresses() {
        for bad in [nothing(), down(), Err(failure(AnswerError::NoSuchName))] {
            let mut name = Name::new("proxy.example");
            round(&mut name, nothing(), answer(&["192.0.2.1"], 60));
            let expected = Outcome::Failed(*bad.as_ref().unwrap_err());
            assert_eq!(round(&mut name, bad.clone(), bad), [None, Some(expected)]);
            assert_eq!(texts(&name), ["192.0.2.1"]);
            assert_eq!(name.status().freshness, Freshness::Stale);
        }
    }

    #[test]
    fn a_server_that_is_down_is_told_before_a_family_that_is_missing() {
        for (v6, v4) in [(nothing(), down()), (down(), nothing())] {
            let outcomes = round(&mut Name::new("proxy.example"), v6, v4);
            assert_eq!(outcomes, [None, Some(Outcome::Failed(down().unwrap_err()))]);
        }
    }

    #[test]
    fn the_pause_doubles_up_to_its_limit_and_ends_with_a_good_round() {
        let mut name = Name::new("proxy.example");
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            round(&mut name, down(), down());
            let pause = name.back_off.unwrap().since(NOW);
            let longest = Duration::from_secs(seconds);
            assert!(pause <= longest && pause >= longest * 3 / 4, "{pause:?}, not about {longest:?}");
        }
        round(&mut name, nothing(), answer(&["192.0.2.1"], 60));
        assert_eq!((name.back_off, name.failures), (None, 0));
    }

    #[test]
    fn a_request_in_the_pause_waits_for_its_end() {
        let mut name = Name::new("proxy.example");
        round(&mut name, down(), down());
        let end = name.back_off.unwrap();
        assert!(name.request(NOW.after(Duration::from_millis(100))));
        assert_eq!(name.start, Some(end));
        assert!(!name.pass(Tick(end.0 - 1)));
        assert!(name.pass(end));
    }

    #[test]
    fn a_refresh_soon_after_a_round_does_nothing() {
        let mut name = Name::new("proxy.example");
        round(&mut name, nothing(), answer(&["192.0.2.1"], 3600));
        assert!(!name.refresh(NOW.after(REFRESH_INTERVAL - Tick::STEP)));
        assert_eq!(name.status().freshness, Freshness::Fresh);
        assert!(name.refresh(NOW.after(REFRESH_INTERVAL)));
        assert_eq!((name.status().freshness, name.start), (Freshness::Stale, Some(NOW.after(REFRESH_INTERVAL))));
    }

    #[test]
    fn eight_addresses_of_each_family_fit() {
        let v6: Vec<String> = (1..9).map(|n| format!("2001:db8::{n}")).collect();
        let v4: Vec<String> = (1..9).map(|n| format!("192.0.2.{n}")).collect();
        let of = |texts: &[String]| answer(&texts.iter().map(String::as_str).collect::<Vec<_>>(), 60);
        let mut name = Name::new("proxy.example");
        round(&mut name, of(&v6), of(&v4));
        assert_eq!(texts(&name), [v6, v4].concat());
    }
}

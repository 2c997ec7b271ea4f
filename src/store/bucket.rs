//! A token bucket: how much may pass at a given rate. It is told what time it is.
//!
//! It may be overdrawn by what cannot be divided (a datagram, what one call has read), and makes up for that by being empty
//! for longer, so that over time no more passes than the rate says.

use super::timers::Tick;

/// What has come in and not been taken. The rate stands with the owner, who has two of them.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    /// In [`BYTE`]s; below zero if overdrawn.
    level: i64,
    /// As of then.
    at: Tick,
    /// Streams get nothing before, so that they move much at a time.
    shut: Option<Tick>,
}

/// A byte in units of the level, which are bits per second times steps of the clock: so what comes in is a product.
const BYTE: i64 = 8 * 100;

/// What passes at once after a pause: so much of a second, in steps.
const DEPTH: i64 = 10;

/// But so many bytes at least, else the handshake of a QUIC connection would not fit, if that is no more than a second's.
const DEPTH_MIN: i64 = 16 * 1024;

/// Steps of one second.
const SECOND: i64 = 100;

/// The longest that a stream waits before it asks again.
const WAIT_MAX: i64 = SECOND;

/// No rate is higher: 2^50 bits a second are beyond all links, and let no product overflow.
const RATE_MAX: u64 = 1 << 50;

fn per_step(rate: u64) -> i64 {
    rate.min(RATE_MAX) as i64
}

fn depth(rate: u64) -> i64 {
    let rate = per_step(rate);
    (rate * DEPTH).max((DEPTH_MIN * BYTE).min(rate * SECOND))
}

impl Bucket {
    /// A full one.
    pub fn new(rate: u64, now: Tick) -> Bucket {
        Bucket { level: depth(rate), at: now, shut: None }
    }

    fn fill(&mut self, rate: u64, now: Tick) {
        if now == self.at {
            return;
        }
        let steps = i64::from(now.steps_since(self.at).min(1000));
        self.at = now;
        self.level = self.level.saturating_add(per_step(rate) * steps).min(depth(rate));
    }

    /// Bytes that a stream may move now; 0: not before [`Self::opens`].
    pub fn room(&mut self, rate: u64, now: Tick) -> u64 {
        self.fill(rate, now);
        if self.shut.is_some_and(|until| !now.reached(until)) {
            return 0;
        }
        self.shut = None;
        self.shut_if_empty(rate);
        (self.level.max(0) / BYTE) as u64
    }

    /// When a stream may move more; `None`: now.
    pub fn opens(&self) -> Option<Tick> {
        self.shut
    }

    /// A stream has moved so many bytes.
    pub fn take(&mut self, rate: u64, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.level = self.level.saturating_sub(bytes.saturating_mul(BYTE));
        self.shut_if_empty(rate);
    }

    /// Whether a datagram of so many bytes passes; if so, they are taken.
    pub fn admits(&mut self, rate: u64, bytes: usize, now: Tick) -> bool {
        self.fill(rate, now);
        let admitted = self.level > 0;
        if admitted {
            self.level -= bytes as i64 * BYTE;
        }
        admitted
    }

    /// Waits for half of what fits, so that a stream need not be woken for each step.
    fn shut_if_empty(&mut self, rate: u64) {
        if self.level < BYTE && self.shut.is_none() {
            let missing = (depth(rate) / 2).max(BYTE).saturating_sub(self.level);
            let steps = (missing / per_step(rate).max(1) + 1).min(WAIT_MAX) as u32;
            self.shut = Some(self.at.after(Tick::STEP * steps));
        }
    }
}

const _: () = assert!(Tick::STEP.as_millis() * SECOND as u128 == 1000);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const MINUTE: u32 = 6000;

    /// How many bytes streams move in a minute that ask when they are told to, but late by up to `late` steps, and move no
    /// less than `piece` at a time.
    fn streamed(rate: u64, piece: u64, mut late: impl FnMut() -> u32) -> u64 {
        let (start, mut now) = (Tick(u32::MAX - 1000), Tick(u32::MAX - 1000));
        let mut bucket = Bucket::new(rate, start);
        let mut moved = 0;
        while now.since(start) < Duration::from_secs(60) {
            let mut room = bucket.room(rate, now);
            while room > 0 {
                let n = piece.min(room.max(1024));
                bucket.take(rate, n);
                moved += n;
                room = bucket.room(rate, now);
            }
            let opens = bucket.opens().expect("it is empty");
            assert!(!now.reached(opens), "nobody is woken for nothing");
            now = Tick(opens.0.wrapping_add(late()));
        }
        moved
    }

    /// How many bytes pass in a minute of datagrams of `len` bytes that come with `offered` bits a second.
    fn passed(rate: u64, offered: u64, len: usize) -> u64 {
        let mut bucket = Bucket::new(rate, Tick(0));
        let (mut passed, mut due) = (0, 0);
        for step in 0..MINUTE {
            due += offered / 800;
            while due >= len as u64 {
                due -= len as u64;
                passed += if bucket.admits(rate, len, Tick(step)) { len as u64 } else { 0 };
            }
        }
        passed
    }

    fn within_5_percent(bytes: u64, rate: u64) -> bool {
        let expected = rate * 60 / 8;
        (expected * 95 / 100..=expected * 105 / 100).contains(&bytes)
    }

    #[test]
    fn eight_megabits_hold_within_five_percent_over_a_minute() {
        for piece in [1024, 65_536, 131_072] {
            let bytes = streamed(8_000_000, piece, || 0);
            assert!(within_5_percent(bytes, 8_000_000), "streams by {piece}: {bytes}");
        }
        for len in [64, 1200, 65_507] {
            let bytes = passed(8_000_000, 12_000_000, len);
            assert!(within_5_percent(bytes, 8_000_000), "datagrams of {len}: {bytes}");
        }
        assert_eq!(
            passed(8_000_000, 7_900_000, 1250),
            7_900_000 / 8 * 60 / 1250 * 1250,
            "what is below the rate passes"
        );
    }

    #[test]
    fn a_stream_is_not_woken_for_each_step() {
        let mut wakings = 0;
        streamed(8_000_000, 65_536, || {
            wakings += 1;
            0
        });
        assert!(wakings < MINUTE / 5, "{wakings}");
    }

    #[test]
    fn a_pause_saves_no_more_than_the_depth() {
        let mut bucket = Bucket::new(8_000_000, Tick(0));
        bucket.take(8_000_000, 100_000);
        assert_eq!(bucket.room(8_000_000, Tick(0)), 0);
        assert_eq!(bucket.room(8_000_000, Tick(100_000)), 100_000, "a tenth of a second");
    }

    proptest! {
        #[test]
        fn every_rate_holds_whatever_is_moved_at_once(
            rate in 256_000u64..50_000_000,
            piece in 4096u64..131_072,
            late in proptest::collection::vec(0u32..4, 1..50),
        ) {
            let mut at = 0;
            let bytes = streamed(rate, piece, || {
                at = (at + 1) % late.len();
                late[at]
            });
            // what was saved at the start comes on top, and what is overdrawn at the end
            let most = rate * 60 / 8 + rate / 80 + 16 * 1024 + 131_072;
            prop_assert!(bytes <= most, "{} of {}", bytes, most);
            prop_assert!(bytes >= rate * 60 / 8 * 95 / 100, "{}", bytes);
        }

        #[test]
        fn no_number_is_too_large(rate in any::<u64>(), bytes in any::<u64>(), steps in any::<u32>()) {
            let mut bucket = Bucket::new(rate, Tick(0));
            bucket.room(rate, Tick(steps));
            bucket.take(rate, bytes);
            bucket.admits(rate, 65_507, Tick(steps.wrapping_add(1)));
            bucket.room(rate, Tick(steps.wrapping_add(2)));
        }
    }
}

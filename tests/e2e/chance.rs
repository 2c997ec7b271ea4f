//! Repeatable randomness: a failing run prints its seed, and `TPROXYD_TEST_SEED=…` runs it again.

use std::time::{SystemTime, UNIX_EPOCH};

/// Marsaglia's xorshift64* generator.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    /// A seed from the clock or the environment, printed (the test runner shows it if the test fails).
    pub fn new() -> Chance {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64 | 1);
        let given = std::env::var("TPROXYD_TEST_SEED").ok();
        let seed = given.map_or_else(clock, |seed| seed.parse().expect("TPROXYD_TEST_SEED is a number other than 0"));
        println!("TPROXYD_TEST_SEED={seed}");
        Chance(seed)
    }

    /// An independent sequence, for another thread.
    pub fn fork(&mut self) -> Chance {
        Chance(self.next() | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 33) as usize) % limit
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n + 1));
        }
    }

    pub fn octets(&mut self, len: usize) -> Vec<u8> {
        let mut octets = Vec::with_capacity(len + 8);
        while octets.len() < len {
            octets.extend(self.next().to_le_bytes());
        }
        octets.truncate(len);
        octets
    }
}

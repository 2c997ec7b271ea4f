//! Destination entries: what was decided for a client's datagrams to one address, so that it is not decided again for each.
//!
//! A fixed table, four places for each hash. A new entry takes the place of the one unused longest among its four: losing an
//! entry costs one decision, never a mapping.

use crate::store::endpoint::{Endpoint, keyed_hash};
use crate::store::slab::Key;
use crate::store::timers::Tick;
use crate::sys::memory;

/// What was decided for one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It goes through this mapping, if that still lives.
    Through(Key),
    /// The client is told by ICMP.
    Reject,
    /// Nobody is told.
    Drop,
}

/// Addresses of client and destination (4 words), ports and mapping (1), activity (1). Words, because a table of zero words
/// is given by the kernel page by page as it is used.
type Entry = [u64; 6];

/// Places under one hash.
const WAYS: usize = 4;

/// Keys that stand for a decision without a mapping.
const REJECT: Key = Key { slot: 0, generation: Key::NO_GENERATION };
const DROP: Key = Key { slot: 1, generation: Key::NO_GENERATION };

/// Set in the last word of an entry that is in use.
const IN_USE: u64 = 1 << 63;

const PORTS: u64 = 0xffff_ffff;

fn encode(client: Endpoint, destination: Endpoint, mapping: Key, now: Tick) -> Entry {
    let ([a, b, c], [d, e, f]) = (client.words(), destination.words());
    let mapping = u64::from(mapping.slot) << 32 | u64::from(mapping.generation) << 48;
    [a, b, d, e, c << 16 | f | mapping, IN_USE | u64::from(now.0)]
}

fn is_for(entry: &Entry, wanted: &Entry) -> bool {
    // word by word: a comparison of slices is a call, and goes octet by octet where a program is built for size
    let same_ports = (entry[4] as u32) == (wanted[4] as u32);
    same_ports && in_use(entry) && entry.iter().zip(wanted).take(4).all(|(one, other)| one == other)
}

fn in_use(entry: &Entry) -> bool {
    entry[5] & IN_USE != 0
}

fn mapping(entry: &Entry) -> Key {
    Key { slot: (entry[4] >> 32) as u16, generation: (entry[4] >> 48) as u16 }
}

fn active(entry: &Entry) -> Tick {
    Tick(entry[5] as u32)
}

const fn sets(entries: usize) -> usize {
    entries.div_ceil(WAYS).next_power_of_two()
}

/// The table.
pub struct Destinations {
    sets: Vec<[Entry; WAYS]>,
    key: u64,
    used: usize,
    evicted: u64,
}

impl Destinations {
    /// Bytes of one entry.
    pub const ENTRY_SIZE: usize = size_of::<Entry>();

    /// Bytes that a table takes with room for at least `entries`.
    pub const fn memory(entries: usize) -> usize {
        sets(entries) * size_of::<[Entry; WAYS]>()
    }

    /// Room for at least `entries`; `key` seeds the hash.
    pub fn new(entries: usize, key: u64) -> Destinations {
        let sets = sets(entries);
        Destinations { sets: vec![[[0; 6]; WAYS]; sets], key, used: 0, evicted: 0 }
    }

    /// What was decided for datagrams of `client` to `destination`.
    pub fn find(&mut self, client: Endpoint, destination: Endpoint, now: Tick) -> Option<Decision> {
        let wanted = encode(client, destination, Key::NONE, now);
        let set = self.set(&wanted);
        let entry = self.sets.get_mut(set)?.iter_mut().find(|entry| is_for(entry, &wanted))?;
        entry[5] = wanted[5];
        Some(match mapping(entry) {
            REJECT => Decision::Reject,
            DROP => Decision::Drop,
            mapping => Decision::Through(mapping),
        })
    }

    /// Remembers a decision.
    pub fn insert(&mut self, client: Endpoint, destination: Endpoint, decision: Decision, now: Tick) {
        let mapping = match decision {
            Decision::Reject => REJECT,
            Decision::Drop => DROP,
            Decision::Through(mapping) => mapping,
        };
        let new = encode(client, destination, mapping, now);
        let set = self.set(&new);
        let ways = &mut self.sets[set];
        let same = ways.iter().position(|entry| is_for(entry, &new));
        let free = || ways.iter().position(|entry| !in_use(entry));
        let longest_idle = || (0..WAYS).max_by_key(|way| now.since(active(&ways[*way]))).unwrap_or(0);
        let way = same.or_else(free).unwrap_or_else(longest_idle);
        match in_use(&ways[way]) {
            false => self.used += 1,
            true if same.is_none() => self.evicted += 1,
            true => {}
        }
        ways[way] = new;
    }

    /// Forgets everything that does not lead to a mapping: a reload has changed the rules.
    pub fn forget_verdicts(&mut self) {
        for entry in self.sets.iter_mut().flatten() {
            if in_use(entry) && matches!(mapping(entry), REJECT | DROP) {
                *entry = [0; 6];
                self.used -= 1;
            }
        }
    }

    /// Forgets everything, and gives its memory back.
    pub fn forget_all(&mut self) {
        memory::clear(self.sets.as_flattened_mut().as_flattened_mut());
        self.used = 0;
    }

    /// Entries in use, those included whose mapping has gone.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Entries that made room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn set(&self, entry: &Entry) -> usize {
        let [a, b, d, e, ports, _] = *entry;
        keyed_hash(self.key, &[a, b, d, e, ports & PORTS]) as usize & (self.sets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn endpoint(n: u16) -> Endpoint {
        SocketAddr::from(([10, 0, 0, 1], n)).into()
    }

    const MAPPING: Key = Key { slot: 3, generation: 9 };

    #[test]
    fn a_decision_is_found_again_and_replaced() {
        let mut table = Destinations::new(16, 1);
        assert_eq!(table.find(endpoint(1), endpoint(2), Tick(0)), None);
        for decision in [Decision::Reject, Decision::Drop, Decision::Through(MAPPING)] {
            table.insert(endpoint(1), endpoint(2), decision, Tick(0));
            assert_eq!(table.find(endpoint(1), endpoint(2), Tick(0)), Some(decision));
        }
        assert_eq!((table.used(), table.evicted()), (1, 0));
        assert_eq!(table.find(endpoint(2), endpoint(1), Tick(0)), None);
    }

    #[test]
    fn a_full_table_forgets_what_was_unused_longest_and_counts_it() {
        let mut table = Destinations::new(4, 1);
        for n in 0..4 {
            table.insert(endpoint(n), endpoint(9), Decision::Drop, Tick(n.into()));
        }
        table.find(endpoint(0), endpoint(9), Tick(10));
        table.insert(endpoint(4), endpoint(9), Decision::Drop, Tick(11));
        assert_eq!((table.used(), table.evicted()), (4, 1));
        assert!(table.find(endpoint(0), endpoint(9), Tick(12)).is_some());
        assert_eq!(table.find(endpoint(1), endpoint(9), Tick(12)), None);
    }

    #[test]
    fn a_reload_keeps_what_leads_to_a_mapping() {
        let mut table = Destinations::new(16, 1);
        table.insert(endpoint(1), endpoint(9), Decision::Reject, Tick(0));
        table.insert(endpoint(2), endpoint(9), Decision::Through(MAPPING), Tick(0));
        table.forget_verdicts();
        assert_eq!(table.find(endpoint(1), endpoint(9), Tick(0)), None);
        assert_eq!(table.find(endpoint(2), endpoint(9), Tick(0)), Some(Decision::Through(MAPPING)));
    }
}

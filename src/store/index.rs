//! Finds slots by a hash of what is in them.

/// The end of a chain. Links hold a slot plus one, so that empty memory is all zeroes and the kernel gives it as it is used.
const NONE: u16 = 0;

/// Chains of slots by hash, in fixed memory: two bytes a slot, and two to four for its bucket. What is hashed and compared stays
/// with the caller.
pub struct Index {
    buckets: Vec<u16>,
    next: Vec<u16>,
}

impl Index {
    /// Most bytes that one slot takes, its share of the buckets included.
    pub const SLOT_SIZE: usize = 6;

    /// Room for `capacity` slots, at most 32,768.
    pub fn new(capacity: u16) -> Index {
        let buckets = usize::from(capacity.max(1)).next_power_of_two();
        Index { buckets: vec![NONE; buckets], next: vec![NONE; capacity.into()] }
    }

    /// The first slot under `hash` that `is_it` says yes to.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u16) -> bool) -> Option<u16> {
        let mut link = self.buckets[self.bucket(hash)];
        while let Some(slot) = link.checked_sub(1) {
            if is_it(slot) {
                return Some(slot);
            }
            link = self.next[usize::from(slot)];
        }
        None
    }

    /// Adds `slot`, which is in no chain, under `hash`.
    pub fn insert(&mut self, hash: u64, slot: u16) {
        let bucket = self.bucket(hash);
        self.next[usize::from(slot)] = self.buckets[bucket];
        self.buckets[bucket] = slot + 1;
    }

    /// Takes `slot` out, which was added under `hash`.
    pub fn remove(&mut self, hash: u64, slot: u16) {
        let bucket = self.bucket(hash);
        let after = std::mem::replace(&mut self.next[usize::from(slot)], NONE);
        let link = slot + 1;
        let mut at = &mut self.buckets[bucket];
        while *at != link {
            match at.checked_sub(1) {
                Some(other) => at = &mut self.next[usize::from(other)],
                None => return,
            }
        }
        *at = after;
    }

    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_map(steps in proptest::collection::vec((0u16..8, 0u64..5), 0..200)) {
            // few hashes for many slots, so that chains grow long
            let mut index = Index::new(8);
            let mut model = std::collections::HashMap::new();
            for (slot, hash) in steps {
                match model.remove(&slot) {
                    Some(old) => index.remove(old, slot),
                    None => { index.insert(hash, slot); model.insert(slot, hash); }
                }
                for slot in 0..8 {
                    for hash in 0..5 {
                        let expected = (model.get(&slot) == Some(&hash)).then_some(slot);
                        // hashes that share a bucket share a chain, which is why the caller compares
                        let found = index.find(hash, |s| s == slot && model.get(&s) == Some(&hash));
                        prop_assert_eq!(found, expected);
                    }
                }
            }
        }
    }
}

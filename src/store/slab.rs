//! A fixed number of slots, and keys that tell a slot's tenant from its successor.

use std::mem::MaybeUninit;

/// Names one tenant of a slot. A key whose tenant has gone finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Index of the slot.
    pub slot: u16,
    /// Which tenant of the slot, counted round; never [`Key::NO_GENERATION`].
    pub generation: u16,
}

impl Key {
    /// A generation that no tenant has.
    pub const NO_GENERATION: u16 = u16::MAX;

    /// A key that finds nothing.
    pub const NONE: Key = Key { slot: u16::MAX, generation: Self::NO_GENERATION };
}

/// Slots of fixed number. All memory is reserved at the start, and touched as tenants come; the slot given back last is taken
/// first, so a small load touches little.
pub struct Slab<T> {
    values: Vec<Option<T>>,
    /// Of the slots touched so far; those beyond `values` keep theirs, so that no key ever finds a successor.
    generations: Vec<u16>,
    /// Slots that are free among `values`, the next to take last.
    free: Vec<u16>,
    capacity: usize,
    occupied: usize,
}

impl<T> Slab<T> {
    /// Bytes that one slot takes, whether occupied or not.
    pub const SLOT_SIZE: usize = size_of::<Option<T>>() + 2 * size_of::<u16>();

    /// Room for `capacity` tenants, at most 65,535.
    pub fn new(capacity: u16) -> Slab<T> {
        let capacity = usize::from(capacity);
        let (generations, free) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        Slab { values: Vec::with_capacity(capacity), generations, free, capacity, occupied: 0 }
    }

    /// How many slots there are.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many are occupied.
    pub fn len(&self) -> usize {
        self.occupied
    }

    /// True if none is occupied.
    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// True if [`Self::insert`] would give `value` back.
    pub fn is_full(&self) -> bool {
        self.occupied == self.capacity
    }

    /// Moves `value` in.
    ///
    /// # Errors
    /// Gives `value` back if all slots are occupied.
    pub fn insert(&mut self, value: T) -> Result<Key, T> {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.values[usize::from(slot)] = Some(value);
                slot
            }
            None if self.values.len() < self.capacity => {
                self.values.push(Some(value));
                if self.generations.len() < self.values.len() {
                    self.generations.push(0);
                }
                (self.values.len() - 1) as u16
            }
            None => return Err(value),
        };
        self.occupied += 1;
        Ok(Key { slot, generation: self.generations[usize::from(slot)] })
    }

    /// Moves the tenant out and frees the slot; `None` if it has gone already.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        if !self.is_current(key) {
            return None;
        }
        let value = self.values.get_mut(usize::from(key.slot))?.take()?;
        self.generations[usize::from(key.slot)] = match key.generation + 1 {
            Key::NO_GENERATION => 0,
            next => next,
        };
        self.free.push(key.slot);
        self.occupied -= 1;
        Some(value)
    }

    fn is_current(&self, key: Key) -> bool {
        self.generations.get(usize::from(key.slot)) == Some(&key.generation)
    }

    /// The tenant, if it is still there.
    pub fn get(&self, key: Key) -> Option<&T> {
        if self.is_current(key) { self.values.get(usize::from(key.slot))?.as_ref() } else { None }
    }

    /// The tenant, if it is still there, to change.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        if self.is_current(key) { self.values.get_mut(usize::from(key.slot))?.as_mut() } else { None }
    }

    /// The key of whoever is in `slot` now.
    pub fn key_at(&self, slot: u16) -> Option<Key> {
        self.values.get(usize::from(slot)).filter(|value| value.is_some())?;
        Some(Key { slot, generation: self.generations[usize::from(slot)] })
    }

    /// All tenants.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.values.iter().zip(&self.generations).enumerate().filter_map(|(slot, (value, generation))| {
            let key = Key { slot: slot as u16, generation: *generation };
            value.as_ref().map(|value| (key, value))
        })
    }

    /// One more than the highest slot in use: a bound for walks by [`Self::key_at`].
    pub fn touched(&self) -> u16 {
        self.values.len() as u16
    }

    /// True if few of the slots in use are occupied, so that [`Self::trim`] may find something.
    pub fn is_slack(&self) -> bool {
        self.values.len() > SLACK_FROM && self.occupied < self.values.len() / 4
    }

    /// Gives up the slots behind the last that is occupied, and returns the memory where nothing is now. The lowest slots
    /// are taken first from then on.
    pub fn trim(&mut self) -> &mut [MaybeUninit<Option<T>>] {
        let used = self.values.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.values.truncate(used);
        self.free.clear();
        for (slot, _) in self.values.iter().enumerate().rev().filter(|(_, value)| value.is_none()) {
            self.free.push(slot as u16);
        }
        self.values.spare_capacity_mut()
    }
}

/// Slots that are not worth looking at.
const SLACK_FROM: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_slab_gives_the_value_back_and_takes_the_next_after_a_removal() {
        let mut slab = Slab::new(2);
        let first = slab.insert("a").unwrap();
        slab.insert("b").unwrap();
        assert!(slab.is_full());
        assert_eq!(slab.insert("c"), Err("c"));
        assert_eq!(slab.remove(first), Some("a"));
        assert!(slab.insert("c").is_ok());
    }

    #[test]
    fn a_key_does_not_find_its_successor() {
        let mut slab = Slab::new(1);
        let first = slab.insert(1).unwrap();
        slab.remove(first);
        let second = slab.insert(2).unwrap();
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&2));
        assert_eq!(slab.get(Key::NONE), None);
    }

    #[test]
    fn a_trimmed_slab_keeps_who_is_there_and_finds_nobody_who_has_gone() {
        let mut slab = Slab::new(1000);
        let mut keys: Vec<Key> = (0..1000).map(|n| slab.insert(n).unwrap()).collect();
        assert_eq!((slab.is_slack(), slab.trim().len()), (false, 0));
        let stays = keys.swap_remove(99);
        assert!(keys.iter().all(|key| slab.remove(*key).is_some()));
        assert!(slab.is_slack());
        assert_eq!((slab.trim().len(), slab.touched(), slab.len()), (900, 100, 1));
        assert_eq!(slab.get(stays), Some(&99));
        for n in 0..999 {
            let key = slab.insert(n).unwrap();
            assert!(!keys.contains(&key) && slab.get(key) == Some(&n), "{n}");
        }
        assert!(slab.is_full() && keys.iter().all(|key| slab.get(*key).is_none()));
    }

    #[test]
    fn generations_go_round_and_never_take_the_reserved_one() {
        let mut slab = Slab::new(1);
        for _ in 0..70_000 {
            let key = slab.insert(()).unwrap();
            assert_ne!(key.generation, Key::NO_GENERATION);
            slab.remove(key).unwrap();
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would_hold(steps in proptest::collection::vec((any::<bool>(), 0usize..8), 0..200)) {
            let mut slab = Slab::new(5);
            let mut model: Vec<(Key, usize)> = Vec::new();
            for (n, (insert, pick)) in steps.into_iter().enumerate() {
                if insert {
                    match slab.insert(n) {
                        Ok(key) => model.push((key, n)),
                        Err(_) => prop_assert_eq!(model.len(), 5),
                    }
                } else if pick < model.len() {
                    let (key, value) = model.swap_remove(pick);
                    prop_assert_eq!(slab.remove(key), Some(value));
                    prop_assert_eq!(slab.remove(key), None);
                }
                prop_assert_eq!(slab.len(), model.len());
                for (key, value) in &model {
                    prop_assert_eq!(slab.get(*key), Some(value));
                }
            }
        }
    }
}

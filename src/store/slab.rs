//! A fixed number of slots, and keys that tell a slot's tenant from its successor.

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
    entries: Vec<Entry<T>>,
    /// Slots that are free among `entries`, the next to take last.
    free: Vec<u16>,
    capacity: usize,
    occupied: usize,
}

struct Entry<T> {
    generation: u16,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// Bytes that one slot takes, whether occupied or not.
    pub const SLOT_SIZE: usize = size_of::<Entry<T>>() + size_of::<u16>();

    /// Room for `capacity` tenants, at most 65,535.
    pub fn new(capacity: u16) -> Slab<T> {
        let capacity = usize::from(capacity);
        Slab { entries: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity), capacity, occupied: 0 }
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
            Some(slot) => slot,
            None if self.entries.len() < self.capacity => {
                self.entries.push(Entry { generation: 0, value: None });
                (self.entries.len() - 1) as u16
            }
            None => return Err(value),
        };
        let entry = &mut self.entries[usize::from(slot)];
        entry.value = Some(value);
        self.occupied += 1;
        Ok(Key { slot, generation: entry.generation })
    }

    /// Moves the tenant out and frees the slot; `None` if it has gone already.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(usize::from(key.slot)).filter(|entry| entry.generation == key.generation)?;
        let value = entry.value.take()?;
        entry.generation = match entry.generation + 1 {
            Key::NO_GENERATION => 0,
            next => next,
        };
        self.free.push(key.slot);
        self.occupied -= 1;
        Some(value)
    }

    /// The tenant, if it is still there.
    pub fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(usize::from(key.slot)).filter(|entry| entry.generation == key.generation)?;
        entry.value.as_ref()
    }

    /// The tenant, if it is still there, to change.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(usize::from(key.slot)).filter(|entry| entry.generation == key.generation)?;
        entry.value.as_mut()
    }

    /// The key of whoever is in `slot` now.
    pub fn key_at(&self, slot: u16) -> Option<Key> {
        let entry = self.entries.get(usize::from(slot)).filter(|entry| entry.value.is_some())?;
        Some(Key { slot, generation: entry.generation })
    }

    /// All tenants.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            let key = Key { slot: slot as u16, generation: entry.generation };
            entry.value.as_ref().map(|value| (key, value))
        })
    }

    /// One more than the highest slot ever occupied: a bound for walks by [`Self::key_at`].
    pub fn touched(&self) -> u16 {
        self.entries.len() as u16
    }
}

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

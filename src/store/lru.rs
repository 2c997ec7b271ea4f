//! The order in which slots were last used, so that the longest idle one can make room.

const NONE: u16 = u16::MAX;

/// A list of slots from the longest idle to the latest used; every step O(1), four bytes a slot.
pub struct Lru {
    links: Vec<Link>,
    oldest: u16,
    latest: u16,
}

#[derive(Clone, Copy)]
struct Link {
    older: u16,
    newer: u16,
}

/// Not in the list. A slot that is alone in it links to `NONE` on both sides, so it is told by `oldest`.
const OUT: Link = Link { older: NONE, newer: NONE };

impl Lru {
    /// Bytes that one slot takes.
    pub const SLOT_SIZE: usize = size_of::<Link>();

    /// Room for `capacity` slots, at most 65,535.
    pub fn new(capacity: u16) -> Lru {
        Lru { links: Vec::with_capacity(capacity.into()), oldest: NONE, latest: NONE }
    }

    /// Makes `slot` the latest used. Ignored for a slot outside the capacity.
    pub fn touch(&mut self, slot: u16) {
        if slot == self.latest {
            return;
        }
        let index = usize::from(slot);
        if index >= self.links.capacity() {
            debug_assert!(false, "slot {slot} has no room in the list");
            return;
        }
        if index >= self.links.len() {
            self.links.resize(index + 1, OUT);
        }
        self.remove(slot);
        let links = self.links.as_mut_slice();
        links[index] = Link { older: self.latest, newer: NONE };
        match links.get_mut(usize::from(self.latest)) {
            Some(previous) => previous.newer = slot,
            None => self.oldest = slot,
        }
        self.latest = slot;
    }

    /// Takes `slot` out, if it is in the list.
    pub fn remove(&mut self, slot: u16) {
        let links = self.links.as_mut_slice();
        let Some(link) = links.get(usize::from(slot)).copied() else { return };
        let is_in = self.oldest == slot || link.older != NONE;
        if !is_in {
            return;
        }
        match links.get_mut(usize::from(link.older)) {
            Some(older) => older.newer = link.newer,
            None => self.oldest = link.newer,
        }
        match links.get_mut(usize::from(link.newer)) {
            Some(newer) => newer.older = link.older,
            None => self.latest = link.older,
        }
        links[usize::from(slot)] = OUT;
    }

    /// The slot that has been idle longest.
    pub fn oldest(&self) -> Option<u16> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_list(steps in proptest::collection::vec((0u16..6, any::<bool>()), 0..200)) {
            let mut lru = Lru::new(6);
            let mut model: Vec<u16> = Vec::new();
            for (slot, touch) in steps {
                model.retain(|s| *s != slot);
                if touch {
                    model.push(slot);
                    lru.touch(slot);
                } else {
                    lru.remove(slot);
                }
                prop_assert_eq!(lru.oldest(), model.first().copied());
            }
            for slot in model {
                prop_assert_eq!(lru.oldest(), Some(slot));
                lru.remove(slot);
            }
            prop_assert_eq!(lru.oldest(), None);
        }
    }
}

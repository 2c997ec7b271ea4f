//! Names of flows, in fixed memory: blocks of one size, chained, since most names are short and none may be cut.

use std::mem::MaybeUninit;
use std::num::NonZeroU16;

/// Longest name, as DNS has it.
pub const NAME_MAX: usize = 253;

/// Where a name lies in [`Names`]. To be given back by [`Names::remove`].
#[derive(Debug, PartialEq, Eq)]
pub struct NameSlot(NonZeroU16);

/// A name copied out of the pool, for whoever hands it on.
pub type NameText = heapless::String<NAME_MAX>;

/// Bytes of a name in one block.
const TEXT: usize = 30;

/// A part of a name.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Ends with a zero octet, if the name ends in this block and leaves room for one.
    text: [u8; TEXT],
    /// Number of the next block, or of the next free one; 0: none.
    next: u16,
}

/// A fixed number of blocks. Pages are touched as names come; the block given back last is taken first.
pub struct Names {
    blocks: Vec<Block>,
    capacity: u16,
    /// Number of the first free block among those touched; numbers count from 1.
    free: u16,
    lent: u16,
    refused: u64,
}

impl Names {
    /// Room for the names of `holders` sessions and mappings, at two blocks each.
    pub const fn capacity_for(holders: usize) -> usize {
        if holders * 2 > u16::MAX as usize - 1 { u16::MAX as usize - 1 } else { holders * 2 }
    }

    /// Bytes that a pool for `holders` takes at most.
    pub const fn memory_max(holders: usize) -> usize {
        Names::capacity_for(holders) * size_of::<Block>()
    }

    /// A pool for the names of `holders` sessions and mappings.
    pub fn new(holders: usize) -> Names {
        let capacity = Names::capacity_for(holders);
        Names { blocks: Vec::with_capacity(capacity), capacity: capacity as u16, free: 0, lent: 0, refused: 0 }
    }

    /// Keeps `name`, which has no zero octet and at most [`NAME_MAX`] others. `None`: no room, which is counted.
    pub fn insert(&mut self, name: &str) -> Option<NameSlot> {
        let wanted = name.len().div_ceil(TEXT);
        let touchable = usize::from(self.capacity - self.lent);
        if wanted == 0 || name.len() > NAME_MAX || name.bytes().any(|c| c == 0) || wanted > touchable {
            self.refused += 1;
            return None;
        }
        let mut next = 0;
        // from the last to the first, so that each knows the one behind it
        for part in name.as_bytes().chunks(TEXT).rev() {
            let mut block = Block { text: [0; TEXT], next };
            block.text[..part.len()].copy_from_slice(part);
            next = self.take(block);
        }
        NonZeroU16::new(next).map(NameSlot)
    }

    /// The memory where nothing is, if there are no names now.
    pub fn trim(&mut self) -> Option<&mut [MaybeUninit<Block>]> {
        if self.lent > 0 {
            return None;
        }
        self.blocks.clear();
        self.free = 0;
        Some(self.blocks.spare_capacity_mut())
    }

    fn take(&mut self, block: Block) -> u16 {
        self.lent += 1;
        match self.blocks.get_mut(usize::from(self.free).wrapping_sub(1)) {
            Some(free) => {
                let number = self.free;
                self.free = free.next;
                *free = block;
                number
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u16
            }
        }
    }

    /// The name.
    pub fn text(&self, id: &NameSlot) -> NameText {
        let mut text = heapless::Vec::<u8, NAME_MAX>::new();
        let mut number = id.0.get();
        while let Some(block) = self.blocks.get(usize::from(number).wrapping_sub(1)) {
            let end = block.text.iter().position(|c| *c == 0).unwrap_or(TEXT);
            if text.extend_from_slice(&block.text[..end]).is_err() {
                break;
            }
            number = block.next;
        }
        // what went in was a text
        NameText::from_utf8(text).unwrap_or_default()
    }

    /// Takes a name back.
    pub fn remove(&mut self, id: NameSlot) {
        let first = id.0.get();
        let mut number = first;
        while let Some(block) = self.blocks.get_mut(usize::from(number).wrapping_sub(1)) {
            self.lent -= 1;
            if block.next == 0 {
                block.next = self.free;
                break;
            }
            number = block.next;
        }
        self.free = first;
    }

    /// Blocks: lent, and all.
    pub fn usage(&self) -> (usize, usize) {
        (self.lent.into(), self.capacity.into())
    }

    /// Names for which there was no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_pool_answers_counts_and_recovers() {
        let mut names = Names::new(2);
        assert_eq!(names.usage(), (0, 4));
        let long = names.insert(&"a".repeat(TEXT * 3)).unwrap();
        assert_eq!(names.insert(&"b".repeat(TEXT + 1)), None, "two blocks are wanted and one is free");
        let short = names.insert("b").unwrap();
        assert_eq!(names.insert("c"), None);
        assert_eq!((names.usage(), names.refused()), ((4, 4), 2));
        names.remove(long);
        assert_eq!((names.usage().0, names.text(&short).as_str()), (1, "b"));
        assert_eq!(names.insert(&"c".repeat(TEXT * 3)).map(|id| names.text(&id).len()), Some(TEXT * 3));
        assert_eq!(names.blocks.capacity(), 4);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let mut names = Names::new(100);
        assert_eq!(names.insert(""), None);
        assert_eq!(names.insert("a\0b"), None);
        assert_eq!(names.insert(&"x".repeat(NAME_MAX + 1)), None);
        assert!(names.insert(&"x".repeat(NAME_MAX)).is_some());
    }

    proptest! {
        #[test]
        fn each_holder_finds_its_own_name(steps in prop::collection::vec((any::<bool>(), 1usize..=NAME_MAX), 1..200)) {
            let mut names = Names::new(40);
            let mut held: Vec<(NameSlot, String)> = Vec::new();
            for (n, (comes, len)) in steps.into_iter().enumerate() {
                if comes {
                    let text: String = ('a'..='z').cycle().skip(n % 26).take(len).collect();
                    held.extend(names.insert(&text).map(|id| (id, text)));
                } else if !held.is_empty() {
                    let (id, text) = held.swap_remove(n % held.len());
                    prop_assert_eq!(names.text(&id), text.as_str());
                    names.remove(id);
                }
                let blocks: usize = held.iter().map(|(_, text)| text.len().div_ceil(TEXT)).sum();
                prop_assert_eq!(names.usage().0, blocks);
            }
            for (id, text) in &held {
                prop_assert_eq!(names.text(id), text.as_str());
            }
        }
    }
}

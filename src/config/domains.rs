//! Domains in little memory: a table of 63-bit keyed hashes and a bit that says "only itself", 8 bytes a place and three
//! quarters of the places in use: 10.7 bytes for each domain, however long.
//!
//! That two names fall together takes 2^63 tries for whoever doesn't know the key, which is drawn when the process starts.
//! A look-up costs one probe for each label of the name, whatever the set's size.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// A set of domains, each with or without what is below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainSet {
    /// 0: nobody's.
    places: Box<[u64]>,
    len: usize,
    content: Content,
}

/// What can be said of the names themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Content {
    digest: u32,
    only_itself: bool,
}

/// Collects what a [`DomainSet`] will hold.
#[derive(Debug, Default)]
pub(super) struct Collected(Vec<u64>, Content);

/// The set that has nothing.
pub(super) static NOTHING: OnceLock<DomainSet> = OnceLock::new();

/// The bit of a hash that says that only the name itself is meant.
const ONLY_ITSELF: u64 = 1;

fn hash(name: &str) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let hash = KEY.get_or_init(RandomState::new).hash_one(name) & !ONLY_ITSELF;
    if hash == 0 { 2 } else { hash }
}

/// FNV-1a, 32 bits, from [`FNV_BASIS`] on.
pub fn fnv1a(basis: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(basis, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Where [`fnv1a`] begins.
pub const FNV_BASIS: u32 = 0x811c_9dc5;

impl Collected {
    /// Adds a name in lower case, without a trailing dot.
    pub(super) fn push(&mut self, name: &str, only_itself: bool) {
        self.0.push(hash(name) | if only_itself { ONLY_ITSELF } else { 0 });
        // a sum does not depend on their order
        self.1.digest = self.1.digest.wrapping_add(fnv1a(FNV_BASIS ^ u32::from(only_itself), name.as_bytes()));
        self.1.only_itself |= only_itself;
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes out what is there several times.
    pub(super) fn merge(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }

    pub(super) fn finish(mut self) -> DomainSet {
        self.merge();
        let len = self.0.len();
        let mut set = DomainSet { places: vec![0; DomainSet::places(len)].into(), len, content: self.1 };
        for hash in self.0 {
            let mut at = set.place(hash);
            while set.places[at] != 0 {
                at = (at + 1) % set.places.len();
            }
            set.places[at] = hash;
        }
        set
    }
}

impl DomainSet {
    const fn places(len: usize) -> usize {
        len + len.div_ceil(3)
    }

    /// Bytes that a set of `len` domains takes.
    pub(super) const fn memory_for(len: usize) -> usize {
        DomainSet::places(len) * size_of::<u64>()
    }

    fn place(&self, hash: u64) -> usize {
        // the high bits of the product: as good as a remainder, and no division
        ((u128::from(hash) * self.places.len() as u128) >> 64) as usize
    }

    fn has(&self, hash: u64) -> bool {
        let mut at = self.place(hash);
        loop {
            match self.places[at] {
                0 => return false,
                found if found == hash => return true,
                _ => at = (at + 1) % self.places.len(),
            }
        }
    }

    /// True if `name`, in lower case, is in the set, or is below one that is.
    pub fn contains(&self, name: &str) -> bool {
        if self.len == 0 {
            return false;
        }
        let full = hash(name);
        if self.has(full | ONLY_ITSELF) || self.has(full) {
            return true;
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if self.has(hash(parent)) {
                return true;
            }
            rest = parent;
        }
        false
    }

    /// True if `name`, in lower case, is in the set itself.
    pub fn has_name(&self, name: &str) -> bool {
        let hash = hash(name);
        self.len > 0 && (self.has(hash | ONLY_ITSELF) || self.has(hash))
    }

    /// How many domains there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same for the same list, in every process; for different ones almost surely different.
    pub fn digest(&self) -> u32 {
        self.content.digest
    }

    /// True if some domains are there without what is below them.
    pub fn has_only_itself(&self) -> bool {
        self.content.only_itself
    }

    /// Bytes that the domains take.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.places)
    }
}

impl<'n> FromIterator<(&'n str, bool)> for DomainSet {
    fn from_iter<I: IntoIterator<Item = (&'n str, bool)>>(names: I) -> DomainSet {
        let mut all = Collected::default();
        names.into_iter().for_each(|(name, only_itself)| all.push(name, only_itself));
        all.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_domain_holds_what_is_below_it_unless_only_itself_is_meant() {
        let set: DomainSet =
            [("video.example", false), ("only.example", true), ("cn", false), ("video.example", false)]
                .into_iter()
                .collect();
        assert_eq!(set.len(), 3);
        for name in ["video.example", "a.b.video.example", "only.example", "cn", "x.cn"] {
            assert!(set.contains(name), "{name}");
        }
        for name in ["myvideo.example", "example", "not.only.example", "", ".", "cnn", "c"] {
            assert!(!set.contains(name), "{name}");
        }
        assert!(!DomainSet::default().contains("a.example"));
    }

    #[test]
    fn a_domain_takes_less_than_11_bytes() {
        let names: Vec<String> = (0..200_000).map(|n| format!("host-{n}.some-long-name.example")).collect();
        let set: DomainSet = names.iter().map(|name| (name.as_str(), false)).collect();
        assert_eq!(set.len(), 200_000);
        assert!(set.memory() < 11 * set.len(), "{}", set.memory());
        assert!(names.iter().all(|name| set.contains(name)));
    }

    proptest! {
        #[test]
        fn a_set_answers_as_a_plain_list_does(
            held in prop::collection::vec(("[ab](\\.[ab]){0,3}", any::<bool>()), 0..20),
            asked in prop::collection::vec("[ab](\\.[ab]){0,4}", 1..20),
        ) {
            let set: DomainSet = held.iter().map(|(name, only)| (name.as_str(), *only)).collect();
            for name in asked {
                let below = |other: &str| name.strip_suffix(other).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                let expected = held.iter().any(|(other, only)| if *only { *other == name } else { below(other) });
                prop_assert_eq!(set.contains(&name), expected, "{}", name);
            }
        }
    }
}

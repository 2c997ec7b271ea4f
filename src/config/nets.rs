//! Networks in little memory: sorted ranges, 8 bytes each for IPv4 and 32 for IPv6; prefixes that touch become one. A large
//! set of IPv4 is kept by blocks of 65,536 addresses: a range takes 4 bytes then, and a look-up searches one block alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::IpRange;

/// A set of addresses: disjoint ranges, not even touching, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    /// In place of `v4` where that takes less.
    blocks: Option<Blocks>,
}

/// The set that has nothing.
pub(super) static NOTHING: NetSet = NetSet { v4: Vec::new(), v6: Vec::new(), blocks: None };

/// Ranges of IPv4, cut where a block of 65,536 addresses ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blocks {
    /// Where the parts of each block begin, and behind the last block the end; with [`WHOLE`] all of it is in the set.
    begins: Box<[u32]>,
    /// First and last address within the block.
    parts: Box<[(u16, u16)]>,
    /// Ranges before they were cut.
    len: usize,
}

/// The bit that says so.
const WHOLE: u32 = 1 << 31;
const BLOCKS: usize = 1 << 16;

impl Blocks {
    /// `None` if the ranges, disjoint and ascending, take less as they are.
    fn of(ranges: &[(u32, u32)]) -> Option<Blocks> {
        if size_of_val(ranges) <= BLOCKS * size_of::<u32>() {
            return None;
        }
        let (mut begins, mut parts) = (vec![0; BLOCKS + 1], Vec::with_capacity(ranges.len()));
        let mut open = 0;
        for (first, last) in ranges {
            let (from, to) = ((first >> 16) as usize, (last >> 16) as usize);
            for block in from..=to {
                begins[open..=block].fill(parts.len() as u32);
                open = block + 1;
                let low = if block == from { *first as u16 } else { 0 };
                let high = if block == to { *last as u16 } else { u16::MAX };
                if (low, high) == (0, u16::MAX) {
                    begins[block] |= WHOLE;
                } else {
                    parts.push((low, high));
                }
            }
        }
        begins[open..].fill(parts.len() as u32);
        let blocks = Blocks { begins: begins.into(), parts: parts.into(), len: ranges.len() };
        (blocks.memory() < size_of_val(ranges)).then_some(blocks)
    }

    /// The parts of a block; `None`: all of it is in the set.
    fn block(&self, block: usize) -> Option<&[(u16, u16)]> {
        let (begin, end) = (self.begins[block], self.begins[block + 1] & !WHOLE);
        (begin & WHOLE == 0).then(|| &self.parts[begin as usize..end as usize])
    }

    fn contains(&self, ip: u32) -> bool {
        self.block((ip >> 16) as usize).is_none_or(|parts| is_in(parts, ip as u16))
    }

    /// The ranges as they were.
    fn ranges(&self) -> impl Iterator<Item = (u32, u32)> {
        const ALL: &[(u16, u16)] = &[(0, u16::MAX)];
        let parts = (0..BLOCKS).flat_map(|block| {
            let at = (block as u32) << 16;
            self.block(block)
                .unwrap_or(ALL)
                .iter()
                .map(move |(low, high)| (at | u32::from(*low), at | u32::from(*high)))
        });
        let mut parts = parts.peekable();
        std::iter::from_fn(move || {
            let (first, mut last) = parts.next()?;
            while let Some((_, further)) = parts.next_if(|(next, _)| last.checked_add(1) == Some(*next)) {
                last = further;
            }
            Some((first, last))
        })
    }

    fn memory(&self) -> usize {
        size_of_val(&*self.begins) + size_of_val(&*self.parts)
    }
}

impl NetSet {
    /// Adds a range. The set is not one before [`Self::finish`].
    pub(super) fn push(&mut self, range: IpRange) {
        match (range.first, range.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => self.v4.push((first.into(), last.into())),
            (IpAddr::V6(first), IpAddr::V6(last)) => self.v6.push((first.into(), last.into())),
            _ => debug_assert!(false, "a range is of one family"),
        }
    }

    /// Sorts and merges what was added.
    pub(super) fn finish(&mut self) {
        merge(&mut self.v4, |a, b| a.checked_add(1).is_none_or(|next| next >= b));
        merge(&mut self.v6, |a, b| a.checked_add(1).is_none_or(|next| next >= b));
    }

    /// Nothing is added any more: takes the form that is quick to search.
    pub(super) fn seal(&mut self) {
        self.blocks = Blocks::of(&self.v4);
        if self.blocks.is_some() {
            self.v4 = Vec::new();
        }
    }

    /// True if `ip` is in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (ip, &self.blocks) {
            (IpAddr::V4(ip), Some(blocks)) => blocks.contains(ip.into()),
            (IpAddr::V4(ip), None) => is_in(&self.v4, ip.into()),
            (IpAddr::V6(ip), _) => is_in(&self.v6, ip.into()),
        }
    }

    /// The ranges, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = IpRange> {
        let v4 = self.v4.iter().copied().chain(self.blocks.iter().flat_map(Blocks::ranges));
        let v4 =
            v4.map(|(first, last)| IpRange { first: Ipv4Addr::from(first).into(), last: Ipv4Addr::from(last).into() });
        let v6 = self
            .v6
            .iter()
            .map(|(first, last)| IpRange { first: Ipv6Addr::from(*first).into(), last: Ipv6Addr::from(*last).into() });
        v4.chain(v6)
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len() + self.blocks.as_ref().map_or(0, |blocks| blocks.len)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the ranges take.
    pub fn memory(&self) -> usize {
        let blocks = self.blocks.as_ref().map_or(0, Blocks::memory);
        size_of_val(self.v4.as_slice()) + size_of_val(self.v6.as_slice()) + blocks
    }
}

impl FromIterator<IpRange> for NetSet {
    fn from_iter<I: IntoIterator<Item = IpRange>>(ranges: I) -> NetSet {
        let mut set = NetSet::default();
        ranges.into_iter().for_each(|range| set.push(range));
        set.finish();
        set.seal();
        set
    }
}

fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, reaches: impl Fn(T, T) -> bool) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let one = reaches(before.1, next.0);
        if one {
            before.1 = before.1.max(next.1);
        }
        one
    });
    ranges.shrink_to_fit();
}

fn is_in<T: Copy + Ord>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|range| range.0 <= ip);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|range| ip <= range.1)
}

#[cfg(test)]
mod tests {
    use super::super::address::ip_range;
    use super::*;
    use proptest::prelude::*;

    fn set(texts: &[&str]) -> NetSet {
        texts.iter().map(|text| ip_range(text).unwrap().0).collect()
    }

    #[test]
    fn overlapping_and_touching_ranges_become_one() {
        let mixed = ["192.0.2.0/25", "2001:db8::/64", "192.0.2.128/25", "192.0.2.7", "10.0.0.0/8", "2001:db8:0:1::/64"];
        assert_eq!(set(&mixed), set(&["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/63"]));
        assert_eq!(set(&mixed).len(), 3);
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_run_over() {
        let all = set(&["0.0.0.0/0", "255.255.255.255", "::/0", "ffff::/16", "::"]);
        assert_eq!(all, set(&["0.0.0.0/0", "::/0"]));
        for ip in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(all.contains(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn a_v4_network_takes_8_bytes_at_most() {
        let many = (0..250_000u32).map(|n| (n << 8, (n << 8) + 7));
        let many: NetSet =
            many.map(|(a, b)| IpRange { first: Ipv4Addr::from(a).into(), last: Ipv4Addr::from(b).into() }).collect();
        assert_eq!((many.len(), many.memory(), many.v4.capacity()), (250_000, 1_262_148, 0));
        let some = (0..60_000u32).map(|n| (n << 12, (n << 12) + 7));
        let mut some: NetSet =
            some.map(|(a, b)| IpRange { first: Ipv4Addr::from(a).into(), last: Ipv4Addr::from(b).into() }).collect();
        some.seal();
        assert_eq!((some.len(), some.memory()), (60_000, 480_000));
    }

    #[test]
    fn blocks_hold_exactly_what_their_ranges_hold() {
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed
        };
        // dense and sparse, over the ends of blocks, whole blocks, and both ends of the address space
        let mut ranges: Vec<(u32, u32)> =
            (0..150_000).map(|_| (random(), random() >> 19)).map(|(at, more)| (at, at | more)).collect();
        ranges.extend([(0, 9), (10 << 24, 11 << 24), (u32::MAX - 3, u32::MAX), (5 << 16, (5 << 16) | 0xffff)]);
        merge(&mut ranges, |a, b| a.checked_add(1).is_none_or(|next| next >= b));
        let blocks = Blocks::of(&ranges).expect("that many take less");
        assert!(blocks.ranges().eq(ranges.iter().copied()));
        let ends = ranges.iter().flat_map(|(a, b)| [a.wrapping_sub(1), *a, *b, b.wrapping_add(1)]);
        for ip in ends.chain((0..100_000).map(|n| n * 42_949)) {
            assert_eq!(blocks.contains(ip), is_in(&ranges, ip), "{}", Ipv4Addr::from(ip));
        }
    }

    proptest! {
        #[test]
        fn a_set_holds_exactly_what_its_ranges_hold(pairs in prop::collection::vec((0u8..64, 0u8..64), 0..20)) {
            let v4 = |n: u8| IpAddr::from([192, 0, 2, n]);
            let v6 = |n: u8| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)]);
            for address in [&v4 as &dyn Fn(u8) -> IpAddr, &v6] {
                let given: Vec<IpRange> = pairs
                    .iter()
                    .map(|(a, b)| IpRange { first: address(*a.min(b)), last: address(*a.max(b)) })
                    .collect();
                let set: NetSet = given.iter().copied().collect();
                for n in 0..=65 {
                    let inside = given.iter().any(|range| (range.first..=range.last).contains(&address(n)));
                    prop_assert_eq!(set.contains(address(n)), inside);
                }
                let ranges: Vec<IpRange> = set.ranges().collect();
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].last < pair[1].first);
                }
            }
        }
    }
}

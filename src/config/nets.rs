//! Networks in little memory: sorted ranges, 8 bytes each for IPv4 and 32 for IPv6; prefixes that touch become one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::IpRange;

/// A set of addresses: disjoint ranges, not even touching, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetSet {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// The set that has nothing.
pub(super) static NOTHING: NetSet = NetSet { v4: Vec::new(), v6: Vec::new() };

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

    /// True if `ip` is in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => is_in(&self.v4, ip.into()),
            IpAddr::V6(ip) => is_in(&self.v6, ip.into()),
        }
    }

    /// The ranges, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = IpRange> {
        let v4 = self
            .v4
            .iter()
            .map(|(first, last)| IpRange { first: Ipv4Addr::from(*first).into(), last: Ipv4Addr::from(*last).into() });
        let v6 = self
            .v6
            .iter()
            .map(|(first, last)| IpRange { first: Ipv6Addr::from(*first).into(), last: Ipv6Addr::from(*last).into() });
        v4.chain(v6)
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the ranges take.
    pub fn memory(&self) -> usize {
        size_of_val(self.v4.as_slice()) + size_of_val(self.v6.as_slice())
    }
}

impl FromIterator<IpRange> for NetSet {
    fn from_iter<I: IntoIterator<Item = IpRange>>(ranges: I) -> NetSet {
        let mut set = NetSet::default();
        ranges.into_iter().for_each(|range| set.push(range));
        set.finish();
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
    fn a_v4_network_takes_8_bytes() {
        let many = (0..250_000u32).map(|n| (n << 8, (n << 8) + 7));
        let many: NetSet =
            many.map(|(a, b)| IpRange { first: Ipv4Addr::from(a).into(), last: Ipv4Addr::from(b).into() }).collect();
        assert_eq!((many.len(), many.memory(), many.v4.capacity()), (250_000, 2_000_000, 250_000));
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

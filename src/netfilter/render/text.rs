//! Values as nft writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{IpRange, Mac, PortRange};

/// `{ a, b, c }`.
pub(super) fn list(elements: &[String]) -> String {
    format!("{{ {} }}", elements.join(", "))
}

/// A list of MAC addresses, each once.
pub(super) fn macs(macs: &[Mac]) -> String {
    let text = |Mac([a, b, c, d, e, f]): &Mac| format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let mut all: Vec<_> = macs.iter().map(text).collect();
    all.sort_unstable();
    all.dedup();
    list(&all)
}

/// The name, if nft can be told it in quotes.
pub(super) fn device(name: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'/');
    (!name.is_empty() && name != "*" && name.bytes().all(plain)).then_some(name)
}

/// An address where a port follows.
pub(super) fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The ranges of one family, as prefixes where they are some.
pub(super) fn address_ranges(ranges: &[IpRange], v4: bool) -> Vec<String> {
    ranges.iter().filter(|range| range.first.is_ipv4() == v4).map(address_range).collect()
}

pub(super) fn address_range(range: &IpRange) -> String {
    let IpRange { first, last } = range;
    if first == last {
        return first.to_string();
    }
    let (low, high, width) = (bits(*first), bits(*last), if first.is_ipv4() { 32 } else { 128 });
    let host = low ^ high;
    // A prefix's host bits run from all zeros to all ones.
    if host & host.wrapping_add(1) == 0 && low & host == 0 {
        return format!("{first}/{}", width - host.count_ones());
    }
    format!("{first}-{last}")
}

/// Sorted, and joined where they overlap or touch: nft refuses intervals that overlap.
pub(super) fn merged(ranges: &[IpRange]) -> Vec<IpRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<IpRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(before)
                if before.last.is_ipv4() == range.first.is_ipv4()
                    && bits(range.first) <= bits(before.last).saturating_add(1) =>
            {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

pub(super) fn port_ranges(ranges: &[PortRange]) -> Vec<String> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| (range.first, range.last));
    let mut merged: Vec<PortRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => before.last = before.last.max(range.last),
            _ => merged.push(range),
        }
    }
    let text = |PortRange { first, last }: PortRange| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    merged.into_iter().map(text).collect()
}

pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => Ipv4Addr::to_bits(address).into(),
        IpAddr::V6(address) => Ipv6Addr::to_bits(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> IpRange {
        IpRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
    }

    #[test]
    fn ranges_that_are_prefixes_are_written_as_such() {
        let text = |first, last| address_range(&range(first, last));
        assert_eq!(text("10.0.0.0", "10.255.255.255"), "10.0.0.0/8");
        assert_eq!(text("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
        assert_eq!(text("10.0.0.1", "10.0.0.2"), "10.0.0.1-10.0.0.2");
        assert_eq!(text("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/0");
        assert_eq!(text("fd00::", "fd00::ffff"), "fd00::/112");
    }

    #[test]
    fn what_overlaps_or_touches_becomes_one_and_families_stay_apart() {
        let ranges = [
            range("255.255.255.255", "255.255.255.255"),
            range("10.0.0.5", "10.0.0.9"),
            range("::", "::5"),
            range("10.0.0.0", "10.0.0.4"),
        ];
        let text: Vec<_> = merged(&ranges).iter().map(address_range).collect();
        assert_eq!(text, ["10.0.0.0-10.0.0.9", "255.255.255.255", "::-::5"]);
        let ports = [PortRange { first: 80, last: 90 }, PortRange { first: 91, last: 91 }];
        assert_eq!(port_ranges(&ports), ["80-91"]);
        let all = [PortRange { first: 0, last: 65535 }, PortRange { first: 65535, last: 65535 }];
        assert_eq!(port_ranges(&all), ["0-65535"]);
    }

    #[test]
    fn a_device_name_cannot_close_its_quotes() {
        assert_eq!(device("br-lan"), Some("br-lan"));
        for bad in ["", "*", "a\"b", "a b", "a\\", "a\nb"] {
            assert_eq!(device(bad), None, "{bad:?}");
        }
    }
}

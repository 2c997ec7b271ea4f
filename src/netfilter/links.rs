//! The prefixes that are connected directly, as far as traffic to them stays with the firewall: those of a listener's
//! device, and those of any device that has no default route (traffic between LAN and guest).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{AF_INET, AF_INET6, Message, attributes, u16_at, u32_at};
use super::routes::{RTM_F_CLONED, RTM_GETROUTE, Route};
use crate::config::IpRange;
use crate::error::Error;
use crate::sys::netlink::{Family, Netlink};

/// The on-link prefixes, given the listeners' devices (names, a trailing `*` is a wildcard).
///
/// # Errors
/// The kernel's refusal to list links, addresses or routes.
pub fn on_link(listener_devices: &[String]) -> Result<Vec<IpRange>, Error> {
    let explain = |what: &'static str| move |error: std::io::Error| Error::new(format!("list the {what}"), error);
    let mut socket = Netlink::open(Family::Route).map_err(explain("devices"))?;

    let mut names = BTreeMap::new();
    Message::new(RTM_GETLINK, 0, &[0; 16])
        .dump(&mut socket, |_, body| {
            let name = attributes(body.get(16..).unwrap_or_default()).find(|a| a.0 == IFLA_IFNAME);
            if let Some((_, name)) = name {
                let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_string();
                names.insert(u32_at(body, 4), name);
            }
        })
        .map_err(explain("devices"))?;

    let mut ways_out = BTreeSet::new();
    let mut connected: Vec<(u32, IpRange)> = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut fixed = [0; 12];
        fixed[0] = family;
        let listed = Message::new(RTM_GETROUTE, 0, &fixed).dump(&mut socket, |_, body| {
            let route = Route::read(body);
            if route.kind != RTN_UNICAST || route.flags & RTM_F_CLONED != 0 {
                return;
            }
            // A VPN often covers everything by two halves, or by 2000::/3.
            if route.prefix_len <= if family == AF_INET { 1 } else { 3 } {
                ways_out.extend(route.device);
                ways_out.extend(route.hops.into_iter().flat_map(hop_devices));
            } else if route.table == RT_TABLE_MAIN
                && !route.has_gateway
                && matches!(route.origin, RTPROT_KERNEL | RTPROT_RA)
                && let (Some(device), Some(address)) = (route.device, route.destination.and_then(address))
            {
                connected.extend(prefix(address, route.prefix_len).map(|range| (device, range)));
            }
        });
        // A kernel without IPv6 has no such routes.
        if family == AF_INET {
            listed.map_err(explain("routes"))?;
        }
    }
    // netifd and NetworkManager add addresses without the kernel's own prefix route (IFA_F_NOPREFIXROUTE).
    Message::new(RTM_GETADDR, 0, &[0; 8])
        .dump(&mut socket, |_, body| {
            let length = body.get(1).copied().unwrap_or(0);
            // IFA_ADDRESS is the peer on a point-to-point device, else the own address: the prefix either way.
            let own = attributes(body.get(8..).unwrap_or_default()).find(|a| a.0 == IFA_ADDRESS);
            if let Some(range) = own.and_then(|a| address(a.1)).and_then(|a| prefix(a, length)) {
                connected.push((u32_at(body, 4), range));
            }
        })
        .map_err(explain("addresses"))?;

    connected.retain(|(device, range)| {
        let name = names.get(device).map_or("", String::as_str);
        name != "lo"
            && !is_link_local(range.first)
            && (!ways_out.contains(device) || listener_devices.iter().any(|pattern| device_matches(pattern, name)))
    });
    let mut ranges: Vec<_> = connected.into_iter().map(|c| c.1).collect();
    ranges.sort_unstable();
    ranges.dedup();
    Ok(ranges)
}

/// The MAC address of the device `name`, if it is on an Ethernet.
pub fn mac_of(name: &str) -> Option<String> {
    let index = crate::sys::interface::index(name).ok()?;
    let mut socket = Netlink::open(Family::Route).ok()?;
    let mut found = None;
    Message::new(RTM_GETLINK, 0, &[0; 16])
        .dump(&mut socket, |_, body| {
            let of = attributes(body.get(16..).unwrap_or_default()).find(|a| a.0 == IFLA_ADDRESS);
            if u32_at(body, 4) == index
                && let Some([a, b, c, d, e, f]) = of.map(|a| a.1)
            {
                found = Some(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
            }
        })
        .ok()?;
    found.filter(|mac| mac != "00:00:00:00:00:00")
}

/// Addresses of the device `name` that others can reach it by.
///
/// # Errors
/// There is no such device, or the kernel refuses to list addresses.
pub fn addresses_of(name: &str) -> Result<Vec<IpAddr>, Error> {
    let failed = |error: std::io::Error| Error::new(format!("list the addresses of {name}"), error);
    let index = crate::sys::interface::index(name).map_err(failed)?;
    let mut socket = Netlink::open(Family::Route).map_err(failed)?;
    let mut found = Vec::new();
    Message::new(RTM_GETADDR, 0, &[0; 8])
        .dump(&mut socket, |_, body| {
            let of = |wanted| {
                attributes(body.get(8..).unwrap_or_default()).find(|a| a.0 == wanted).and_then(|a| address(a.1))
            };
            if u32_at(body, 4) == index {
                found.extend(of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS)).filter(|address| !is_link_local(*address)));
            }
        })
        .map_err(failed)?;
    Ok(found)
}

/// True if the device `name` is meant by `pattern`, which may end in `*`.
pub fn device_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// The device indices in the `struct rtnexthop`s of `RTA_MULTIPATH`.
pub(super) fn hop_devices(mut hops: &[u8]) -> Vec<u32> {
    let mut devices = Vec::new();
    while hops.len() >= 8 {
        devices.push(u32_at(hops, 4));
        let length = usize::from(u16_at(hops, 0)).max(8).next_multiple_of(4);
        hops = hops.get(length..).unwrap_or_default();
    }
    devices
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The addresses of `address`/`length`.
fn prefix(address: IpAddr, length: u8) -> Option<IpRange> {
    match address {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let bits = address.to_bits();
            (length <= 32).then(|| IpRange {
                first: Ipv4Addr::from_bits(bits & !host).into(),
                last: Ipv4Addr::from_bits(bits | host).into(),
            })
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let bits = address.to_bits();
            (length <= 128).then(|| IpRange {
                first: Ipv6Addr::from_bits(bits & !host).into(),
                last: Ipv6Addr::from_bits(bits | host).into(),
            })
        }
    }
}

/// Passed by for itself already.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback() || address.is_multicast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback() || address.is_multicast(),
    }
}

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u32 = 254;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_RA: u8 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_its_addresses_from_first_to_last() {
        let range = prefix("192.168.1.77".parse().unwrap(), 24).unwrap();
        assert_eq!((range.first.to_string(), range.last.to_string()), ("192.168.1.0".into(), "192.168.1.255".into()));
        let range = prefix("10.0.0.1".parse().unwrap(), 32).unwrap();
        assert_eq!(range.first, range.last);
        let range = prefix("fd00:1::5".parse().unwrap(), 64).unwrap();
        assert_eq!(range.last.to_string(), "fd00:1::ffff:ffff:ffff:ffff");
        assert_eq!(prefix("10.0.0.1".parse().unwrap(), 0).unwrap().last.to_string(), "255.255.255.255");
        assert!(prefix("10.0.0.1".parse().unwrap(), 33).is_none());
    }

    #[test]
    fn a_trailing_star_matches_every_name_that_begins_so() {
        assert!(device_matches("br-lan", "br-lan") && !device_matches("br-lan", "br-lan2"));
        assert!(device_matches("br-*", "br-guest") && !device_matches("br-*", "eth0"));
    }

    #[test]
    fn a_cut_multipath_attribute_ends_and_does_not_loop() {
        assert_eq!(hop_devices(&[0; 8]), [0]);
        assert!(hop_devices(&[0; 7]).is_empty());
    }
}

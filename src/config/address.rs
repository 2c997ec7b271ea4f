//! Addresses, prefixes, ranges, ports and MACs as users write them → typed values.
//!
//! An error is the second half of a sentence: what the text is not, and what was expected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::model::{Host, IpRange, Mac, PortRange};
use super::uci::shown;

/// One address. An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is the IPv4 address that it stands for.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => Err(format!("'{}' is not an address: expected 192.0.2.1 or 2001:db8::1", shown(text))),
    }
}

/// An address, `address/length`, `address/netmask` (IPv4) or `first-last`. True if the address of a prefix had bits
/// beyond its length; they are taken off, as `firewall` does.
pub(super) fn ip_range(text: &str) -> Result<(IpRange, bool), String> {
    let (first, last, stray_bits) = if let Some((address, length)) = text.split_once('/') {
        prefix(text, address, length)?
    } else if let Some((first, last)) = text.split_once('-') {
        (ip(first.trim_end())?, ip(last.trim_start())?, false)
    } else {
        let address = ip(text)?;
        (address, address, false)
    };
    let (first, last) = (first.to_canonical(), last.to_canonical());
    if first.is_ipv4() != last.is_ipv4() {
        return Err(format!("'{}' mixes IPv4 and IPv6", shown(text)));
    }
    if first > last {
        return Err(format!("'{}' ends before it begins", shown(text)));
    }
    Ok((IpRange { first, last }, stray_bits))
}

fn prefix(text: &str, address: &str, length: &str) -> Result<(IpAddr, IpAddr, bool), String> {
    let address = match address.parse() {
        // Not canonical yet: the length of a mapped prefix counts from the left of the IPv6 address.
        Ok(address) => address,
        Err(_) => ip(address)?,
    };
    match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            let length = match length.parse::<Ipv4Addr>() {
                Ok(mask) if u32::from(mask).leading_ones() == u32::from(mask).count_ones() => {
                    u32::from(mask).leading_ones()
                }
                Ok(_) => return Err(format!("'{}' has a netmask with holes", shown(text))),
                Err(_) => prefix_length(text, length, 32)?,
            };
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            Ok((Ipv4Addr::from(bits & !host).into(), Ipv4Addr::from(bits | host).into(), bits & host != 0))
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let host = u128::MAX.checked_shr(prefix_length(text, length, 128)?).unwrap_or(0);
            Ok((Ipv6Addr::from(bits & !host).into(), Ipv6Addr::from(bits | host).into(), bits & host != 0))
        }
    }
}

fn prefix_length(text: &str, length: &str, most: u32) -> Result<u32, String> {
    decimal(length)
        .and_then(|length| u32::try_from(length).ok())
        .filter(|length| *length <= most)
        .ok_or_else(|| format!("'{}' has no prefix length of 0 to {most}", shown(text)))
}

/// Digits and nothing else: no sign, no blanks.
pub(super) fn decimal(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// 1 to 65535.
pub(super) fn port(text: &str) -> Result<u16, String> {
    decimal(text)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("'{}' is not a port: expected 1 to 65535", shown(text)))
}

/// A port, `first-last` or `first:last`.
pub(super) fn port_range(text: &str) -> Result<PortRange, String> {
    let Some((first, last)) = text.split_once(['-', ':']) else {
        let port = port(text)?;
        return Ok(PortRange { first: port, last: port });
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("'{}' ends before it begins", shown(text)));
    }
    Ok(PortRange { first, last })
}

/// Six pairs of hexadecimal digits with `:` or `-` between them.
pub(super) fn mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("'{}' is not a MAC address: expected 02:00:5e:10:00:01", shown(text));
    let mut octets = [0; 6];
    let mut parts = text.split([':', '-']);
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()));
        *octet = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    Ok(Mac(octets))
}

/// A server: an address that one can connect to, or a name.
pub(super) fn host(text: &str) -> Result<Host, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(format!("'{address}' is not an address of one server"));
        }
        return Ok(Host::Address(address));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    // A last label of digits alone is a mistyped address: no such top-level domain exists (RFC 3696 section 2).
    let last_is_number = name.rsplit('.').next().is_some_and(|label| decimal(label).is_some());
    if name.len() > 253 || last_is_number || !name.split('.').all(label_is_good) {
        return Err(format!("'{}' is neither an address nor a host name", shown(text)));
    }
    Ok(Host::Name(name.to_ascii_lowercase()))
}

/// `192.0.2.1:53`, `[2001:db8::1]:53`; without a port too, where there is a usual one.
pub(super) fn endpoint(text: &str, usual: Option<u16>) -> Result<SocketAddr, String> {
    if let (Some(port), Ok(address)) = (usual, text.parse::<IpAddr>()) {
        return Ok(SocketAddr::new(address.to_canonical(), port));
    }
    text.parse::<SocketAddr>()
        .ok()
        .filter(|at| at.port() != 0)
        .map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()))
        .ok_or_else(|| format!("'{}' is not address:port", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> String {
        match ip_range(text) {
            Ok((range, false)) => format!("{}-{}", range.first, range.last),
            Ok((range, true)) => format!("{}-{} masked", range.first, range.last),
            Err(message) => message,
        }
    }

    #[test]
    fn addresses_prefixes_netmasks_and_ranges_are_ranges() {
        assert_eq!(range("192.0.2.7"), "192.0.2.7-192.0.2.7");
        assert_eq!(range("192.0.2.0/24"), "192.0.2.0-192.0.2.255");
        assert_eq!(range("192.0.2.7/24"), "192.0.2.0-192.0.2.255 masked");
        assert_eq!(range("192.168.0.0/255.255.0.0"), "192.168.0.0-192.168.255.255");
        assert_eq!(range("0.0.0.0/0"), "0.0.0.0-255.255.255.255");
        assert_eq!(range("192.0.2.1/32"), "192.0.2.1-192.0.2.1");
        assert_eq!(range("192.0.2.5-192.0.2.9"), "192.0.2.5-192.0.2.9");
        assert_eq!(range("2001:db8::/32"), "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(range("::/0"), "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(range("2001:db8::1/128"), "2001:db8::1-2001:db8::1");
        assert_eq!(range("2001:db8::1-2001:db8::5"), "2001:db8::1-2001:db8::5");
    }

    #[test]
    fn a_mapped_address_is_the_v4_address_that_traffic_shows() {
        assert_eq!(range("::ffff:192.0.2.7"), "192.0.2.7-192.0.2.7");
        assert_eq!(range("::ffff:192.0.2.0/120"), "192.0.2.0-192.0.2.255");
    }

    #[test]
    fn a_wrong_range_says_what_it_is_not() {
        assert_eq!(range("192.0.2"), "'192.0.2' is not an address: expected 192.0.2.1 or 2001:db8::1");
        assert_eq!(range("192.0.2.0/33"), "'192.0.2.0/33' has no prefix length of 0 to 32");
        assert_eq!(range("192.0.2.0/+8"), "'192.0.2.0/+8' has no prefix length of 0 to 32");
        assert_eq!(range("192.0.2.0/255.0.255.0"), "'192.0.2.0/255.0.255.0' has a netmask with holes");
        assert_eq!(range("2001:db8::/129"), "'2001:db8::/129' has no prefix length of 0 to 128");
        assert_eq!(range("192.0.2.9-192.0.2.5"), "'192.0.2.9-192.0.2.5' ends before it begins");
        assert_eq!(range("192.0.2.9-::1"), "'192.0.2.9-::1' mixes IPv4 and IPv6");
        assert_eq!(range("::/64-"), "'::/64-' has no prefix length of 0 to 128");
    }

    #[test]
    fn ports_go_from_1_to_65535_with_either_sign_between() {
        assert_eq!(port_range("80"), Ok(PortRange { first: 80, last: 80 }));
        assert_eq!(port_range("1000-2000"), port_range("1000:2000"));
        for wrong in ["0", "65536", "-1", "+1", "", "80-", "2000-1000", "1-2-3", "99999999999999999999"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mac_has_six_octets() {
        assert_eq!(mac("02:00:5E:10:00:ff"), Ok(Mac([2, 0, 0x5e, 0x10, 0, 0xff])));
        assert_eq!(mac("02-00-5e-10-00-ff"), mac("02:00:5e:10:00:ff"));
        for wrong in
            ["02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "0g:00:5e:10:00:01", "+2:00:5e:10:00:01"]
        {
            assert!(mac(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_server_is_an_address_or_a_name() {
        assert_eq!(host("192.0.2.1"), Ok(Host::Address("192.0.2.1".parse().unwrap())));
        assert_eq!(host("[2001:db8::1]"), Ok(Host::Address("2001:db8::1".parse().unwrap())));
        assert_eq!(host("Proxy.Example."), Ok(Host::Name("proxy.example".to_owned())));
        for wrong in ["", ".", "a..b", "192.0.2.400", "1.2", "0.0.0.0", "::", "224.0.0.1", "a b", "a/b", "fe80::1%eth0"]
        {
            assert!(host(wrong).is_err(), "{wrong}");
        }
        assert!(host(&format!("{}.example", "a".repeat(64))).is_err());
    }

    #[test]
    fn an_endpoint_takes_the_usual_port_where_there_is_one() {
        assert_eq!(endpoint("192.0.2.1", Some(53)), Ok("192.0.2.1:53".parse().unwrap()));
        assert_eq!(endpoint("[::1]:5353", Some(53)), Ok("[::1]:5353".parse().unwrap()));
        assert!(endpoint("192.0.2.1", None).is_err());
        assert!(endpoint("192.0.2.1:0", None).is_err());
    }
}

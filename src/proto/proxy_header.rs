//! The PROXY protocol's header, versions 1 and 2: who the client is and where it wanted to go, told to the next server
//! (HAProxy's specification of the PROXY protocol, sections 2.1 and 2.2).

pub use reader::{Header, read};

use super::Writer;
use std::net::{IpAddr, SocketAddr};

mod reader;

/// Which form a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One line of text, TCP only.
    V1,
    /// Octets, TCP and UDP.
    V2,
}

/// What the header's addresses belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A connection: the header stands once, before its first byte.
    Stream,
    /// A datagram: the header stands before each.
    Datagram,
}

/// Octets that the longest header which [`encode`] writes has: a line of version 1 with two v6 addresses (section 2.1).
pub const ENCODED_MAX: usize = 107;

/// Octets of a version 2 header with v6 addresses: the longest that stands before a datagram.
pub const DATAGRAM_MAX: usize = 16 + 36;

/// Twelve octets that no other protocol begins with (section 2.2).
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Writes the header for a flow from `client` to `orig_dst`; `None` if it does not fit into `out`, or version 1 is to stand
/// before a datagram, for which it has no words.
///
/// Addresses of two families are of no use to a receiver: then the header says that nothing is known, which the
/// specification provides for.
pub fn encode(
    version: Version,
    transport: Transport,
    client: SocketAddr,
    orig_dst: SocketAddr,
    out: &mut [u8],
) -> Option<usize> {
    let mut out = Writer::new(out);
    let addresses = (client.ip().to_canonical(), orig_dst.ip().to_canonical());
    match (version, transport) {
        (Version::V1, Transport::Stream) => put_line(&mut out, addresses, (client.port(), orig_dst.port()))?,
        (Version::V1, Transport::Datagram) => return None,
        (Version::V2, _) => put_octets(&mut out, transport, addresses, (client.port(), orig_dst.port()))?,
    }
    Some(out.written())
}

/// `PROXY TCP4 192.0.2.1 203.0.113.1 40000 443` (section 2.1).
fn put_line(out: &mut Writer<'_>, (from, to): (IpAddr, IpAddr), ports: (u16, u16)) -> Option<()> {
    let family: &[u8] = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => b"TCP4",
        (IpAddr::V6(_), IpAddr::V6(_)) => b"TCP6",
        _ => return out.put(b"PROXY UNKNOWN\r\n"),
    };
    out.put(b"PROXY ")?;
    out.put(family)?;
    for ip in [from, to] {
        out.put_text(format_args!(" {ip}"))?;
    }
    out.put_text(format_args!(" {} {}\r\n", ports.0, ports.1))
}

/// Signature, version and command, family and transport, length, addresses, ports (section 2.2).
fn put_octets(
    out: &mut Writer<'_>,
    transport: Transport,
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
) -> Option<()> {
    let transport = match transport {
        Transport::Stream => STREAM,
        Transport::Datagram => DATAGRAM,
    };
    out.put(&SIGNATURE)?;
    match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.put(&[V2_PROXY, INET | transport, 0, 12])?;
            out.put(&from.octets())?;
            out.put(&to.octets())?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.put(&[V2_PROXY, INET6 | transport, 0, 36])?;
            out.put(&from.octets())?;
            out.put(&to.octets())?;
        }
        _ => return out.put(&[V2_PROXY, 0, 0, 0]),
    }
    out.put(&ports.0.to_be_bytes())?;
    out.put(&ports.1.to_be_bytes())
}

/// Version 2, command PROXY.
const V2_PROXY: u8 = 0x21;
/// AF_INET.
const INET: u8 = 0x10;
/// AF_INET6.
const INET6: u8 = 0x20;
/// SOCK_STREAM.
const STREAM: u8 = 0x01;
/// SOCK_DGRAM.
const DATAGRAM: u8 = 0x02;

#[cfg(test)]
mod tests {
    use super::*;

    const V4: (&str, &str) = ("192.0.2.1:40000", "203.0.113.1:443");
    const V6: (&str, &str) = ("[2001:db8::1]:40000", "[2001:db8:77::1]:443");

    fn encoded(version: Version, transport: Transport, (client, orig_dst): (&str, &str)) -> Vec<u8> {
        let mut out = [0; ENCODED_MAX];
        let (client, orig_dst) = (client.parse().unwrap(), orig_dst.parse().unwrap());
        let len = encode(version, transport, client, orig_dst, &mut out).unwrap();
        out[..len].to_vec()
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        assert_eq!(encoded(Version::V1, Transport::Stream, V4), b"PROXY TCP4 192.0.2.1 203.0.113.1 40000 443\r\n");
        let line = encoded(Version::V1, Transport::Stream, V6);
        assert_eq!(line, b"PROXY TCP6 2001:db8::1 2001:db8:77::1 40000 443\r\n");
    }

    #[test]
    fn version_2_has_the_octets_of_the_specification() {
        let header = encoded(Version::V2, Transport::Stream, V4);
        assert_eq!(header[..12], [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(header[16..], [192, 0, 2, 1, 203, 0, 113, 1, 0x9c, 0x40, 0x01, 0xbb]);
        let header = encoded(Version::V2, Transport::Datagram, V6);
        assert_eq!((header.len(), &header[12..16]), (DATAGRAM_MAX, &[0x21, 0x22, 0, 36][..]));
    }

    #[test]
    fn a_mapped_address_is_told_as_v4() {
        let mapped = ("[::ffff:192.0.2.1]:40000", "203.0.113.1:443");
        assert_eq!(encoded(Version::V2, Transport::Stream, mapped), encoded(Version::V2, Transport::Stream, V4));
    }

    #[test]
    fn addresses_of_two_families_are_not_told() {
        let mixed = (V4.0, V6.1);
        assert_eq!(encoded(Version::V1, Transport::Stream, mixed), b"PROXY UNKNOWN\r\n");
        assert_eq!(encoded(Version::V2, Transport::Stream, mixed)[12..], [0x21, 0, 0, 0]);
    }

    #[test]
    fn the_longest_line_fits_and_nothing_is_written_past_the_end() {
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert_eq!(encoded(Version::V1, Transport::Stream, (longest, longest)).len(), 104);
        let address = longest.parse().unwrap();
        for room in 0..104 {
            let mut out = vec![0; room];
            assert_eq!(encode(Version::V1, Transport::Stream, address, address, &mut out), None);
        }
        let mut out = [0; ENCODED_MAX];
        assert_eq!(encode(Version::V1, Transport::Datagram, address, address, &mut out), None);
    }
}

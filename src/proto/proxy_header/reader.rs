//! The receiver's side: a header that came before a connection's first byte, or before a datagram.

use super::{DATAGRAM, INET, INET6, SIGNATURE, STREAM, Transport};
use crate::proto::{Reader, up_to};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the beginning of some bytes says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Too few to tell.
    More,
    /// A whole header.
    Whole {
        /// Client and original destination; `None`: the sender speaks for itself (LOCAL), or knows of none.
        flow: Option<(SocketAddr, SocketAddr)>,
        /// Octets of header.
        used: usize,
    },
    /// No header, or one that breaks the rules: the specification wants the connection ended.
    Bad,
}

/// Reads the header at the beginning of `bytes`, of either version; before a datagram only version 2.
pub fn read(bytes: &[u8], transport: Transport) -> Header {
    if begins_like(bytes, &SIGNATURE) {
        let whole = bytes.len() >= SIGNATURE.len();
        return if whole { octets(bytes, transport).unwrap_or(Header::More) } else { Header::More };
    }
    if transport == Transport::Datagram {
        return Header::Bad;
    }
    if !begins_like(bytes, LINE) {
        return Header::Bad;
    }
    let searched = up_to(bytes, LONGEST_LINE);
    match searched.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => line(searched.get(LINE.len()..end).unwrap_or_default(), end + 2),
        None if searched.len() < LONGEST_LINE => Header::More,
        None => Header::Bad,
    }
}

/// True if the octets that both have are the same.
fn begins_like(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.iter().zip(pattern).all(|(one, other)| one == other)
}

/// What stands between `PROXY ` and the end of the line (section 2.1).
fn line(text: &[u8], used: usize) -> Header {
    let Ok(text) = std::str::from_utf8(text) else { return Header::Bad };
    let mut words = text.split(' ');
    let v4 = match words.next() {
        Some("TCP4") => true,
        Some("TCP6") => false,
        Some("UNKNOWN") => return Header::Whole { flow: None, used },
        _ => return Header::Bad,
    };
    let mut next = || words.next().unwrap_or_default();
    let (from, to, from_port, to_port) = (next(), next(), next(), next());
    let address = |ip: &str, port: &str| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?));
    match (address(from, from_port), address(to, to_port), words.next()) {
        (Some(from), Some(to), None) if from.is_ipv4() == v4 && to.is_ipv4() == v4 => {
            one_family(from, to).map_or(Header::Bad, |flow| Header::Whole { flow: Some(flow), used })
        }
        _ => Header::Bad,
    }
}

/// Both as v4 where they are v4-mapped, as rules and sockets want them. No flow has ends of two families.
fn one_family(from: SocketAddr, to: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (from, to) = (canonical(from), canonical(to));
    (from.is_ipv4() == to.is_ipv4()).then_some((from, to))
}

/// What follows the signature (section 2.2); `None`: too few.
fn octets(bytes: &[u8], transport: Transport) -> Option<Header> {
    let mut input = Reader::new(bytes);
    input.take(SIGNATURE.len())?;
    let (command, kind, len) = (input.u8()?, input.u8()?, usize::from(input.u16()?));
    if !matches!(command, 0x20 | 0x21) || len > LONGEST_REST {
        return Some(Header::Bad);
    }
    let mut rest = Reader::new(input.take(len)?);
    let used = input.used();
    let wanted = if transport == Transport::Stream { STREAM } else { DATAGRAM };
    let flow = match kind {
        // LOCAL, or a family that we don't have: the addresses are to be left out of account
        _ if command == 0x20 || kind & 0x0f == 0 || kind & 0xf0 == 0 => None,
        _ if kind & 0x0f != wanted => return Some(Header::Bad),
        _ if kind & 0xf0 == INET => addresses::<4>(&mut rest, |ip| Ipv4Addr::from(ip).into()),
        _ if kind & 0xf0 == INET6 => addresses::<16>(&mut rest, |ip| Ipv6Addr::from(ip).into()),
        _ => return Some(Header::Bad),
    };
    let wants_addresses = command == 0x21 && kind & 0x0f != 0 && kind & 0xf0 != 0;
    Some(if wants_addresses && flow.is_none() { Header::Bad } else { Header::Whole { flow, used } })
}

fn addresses<const N: usize>(rest: &mut Reader<'_>, ip: fn([u8; N]) -> IpAddr) -> Option<(SocketAddr, SocketAddr)> {
    let (from, to) = (ip(rest.array()?), ip(rest.array()?));
    let (from_port, to_port) = (rest.u16()?, rest.u16()?);
    one_family(SocketAddr::new(from, from_port), SocketAddr::new(to, to_port))
}

const LINE: &[u8] = b"PROXY ";
/// Octets of a version 1 line, its end included (section 2.1).
const LONGEST_LINE: usize = 107;
/// Octets after the fixed part of version 2: addresses, and what HAProxy adds about TLS.
const LONGEST_REST: usize = 2048;

#[cfg(test)]
mod tests {
    use super::super::{ENCODED_MAX, Version, encode};
    use super::*;

    fn flow(from: &str, to: &str) -> (SocketAddr, SocketAddr) {
        (from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn what_is_written_is_read_again_and_every_prefix_needs_more() {
        let flows = [flow("192.0.2.1:40000", "203.0.113.1:443"), flow("[2001:db8::1]:40000", "[2001:db8:77::1]:443")];
        for (version, transport) in
            [(Version::V1, Transport::Stream), (Version::V2, Transport::Stream), (Version::V2, Transport::Datagram)]
        {
            for (from, to) in flows {
                let mut out = [0; ENCODED_MAX + 5];
                let used = encode(version, transport, from, to, &mut out).unwrap();
                out[used..].fill(b'x');
                assert_eq!(read(&out, transport), Header::Whole { flow: Some((from, to)), used });
                for cut in 0..used {
                    assert_eq!(read(&out[..cut], transport), Header::More, "{version:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn who_speaks_for_itself_names_no_flow() {
        assert_eq!(read(b"PROXY UNKNOWN whatever\r\nx", Transport::Stream), Header::Whole { flow: None, used: 24 });
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(read(&local, Transport::Stream), Header::Whole { flow: None, used: 16 });
    }

    #[test]
    fn anything_else_is_no_header() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.1 2001:db8::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 70000\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
            &[b'P'; 1],
        ] {
            let read = read(bad, Transport::Stream);
            assert_eq!(read, if bad.len() == 1 { Header::More } else { Header::Bad }, "{bad:?}");
        }
        assert_eq!(read(&[&b"PROXY TCP4 "[..], &[b'1'; 120]].concat(), Transport::Stream), Header::Bad);
        let short = [&SIGNATURE[..], &[0x21, INET | STREAM, 0, 4, 1, 2, 3, 4]].concat();
        assert_eq!(read(&short, Transport::Stream), Header::Bad, "addresses that do not fit into their length");
        let datagram = [&SIGNATURE[..], &[0x21, INET | DATAGRAM, 0, 12], &[0; 12]].concat();
        assert_eq!(read(&datagram, Transport::Stream), Header::Bad);
        assert_eq!(read(b"PROXY UNKNOWN\r\n", Transport::Datagram), Header::Bad);
        assert_eq!(read(b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n", Transport::Stream), Header::Bad);
        let mixed =
            [&SIGNATURE[..], &[0x21, INET6 | STREAM, 0, 36], &[0; 10], &[0xff; 2], &[1; 4], &[0x20; 20]].concat();
        assert_eq!(read(&mixed, Transport::Stream), Header::Bad);
    }

    #[test]
    fn a_mapped_address_is_the_v4_address_that_rules_know() {
        let line = b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:203.0.113.9 1 2\r\n";
        let whole = Header::Whole { flow: Some(flow("192.0.2.1:1", "203.0.113.9:2")), used: line.len() };
        assert_eq!(read(line, Transport::Stream), whole);
    }

    proptest::proptest! {
        #[test]
        fn no_octets_panic_and_what_is_used_was_there(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            for start in [&b""[..], b"PROXY ", &SIGNATURE] {
                let bytes = [start, &bytes].concat();
                for transport in [Transport::Stream, Transport::Datagram] {
                    if let Header::Whole { used, .. } = read(&bytes, transport) {
                        proptest::prop_assert!(used <= bytes.len());
                    }
                }
            }
        }
    }
}

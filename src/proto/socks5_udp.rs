//! The header in front of each datagram to and from a SOCKS5 UDP relay (RFC 1928 section 7).

use std::fmt;
use std::net::SocketAddr;

use super::socks5::{Endpoint, put_address, read_address};
use super::{Reader, Writer};

/// Length of the header of an IPv4 destination.
pub const HEADER_V4: usize = 3 + 1 + 4 + 2;

/// Length of the header of an IPv6 destination.
pub const HEADER_V6: usize = 3 + 1 + 16 + 2;

/// Whom the relay says a datagram is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpSource<'a> {
    /// An address, v4 where it was v4-mapped.
    Address(SocketAddr),
    /// A name. We never ask by name, so no flow can be found by it.
    Name {
        /// 0 to 255 octets as they came.
        name: &'a [u8],
        /// Its port.
        port: u16,
    },
}

/// Why a datagram from the relay cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpRefusal {
    /// It ends within the header.
    Short {
        /// Bytes that it has.
        len: usize,
    },
    /// A fragment: FRAG is not 0. Reassembly is optional (RFC 1928 section 7), and no known relay sends fragments.
    Fragment {
        /// FRAG.
        frag: u8,
    },
    /// ATYP is none of 1, 3, 4.
    BadAddressType {
        /// ATYP.
        got: u8,
    },
}

/// Writes the header that goes in front of a datagram to `dst`: [`HEADER_V4`] or [`HEADER_V6`] bytes of `out`, which has at
/// least the latter.
pub fn encode_udp_header(dst: SocketAddr, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    // RSV, RSV, FRAG. HEADER_V6 octets hold every header, so no `put` fails.
    let _ = writer.put(&[0x00, 0x00, 0x00]).and_then(|()| put_address(&mut writer, dst));
    writer.written()
}

/// Reads the header of a datagram from the relay: whom it is from, and where in `datagram` the payload begins.
///
/// # Errors
///
/// A datagram that must be dropped; RSV is not looked at.
pub fn parse_udp(datagram: &[u8]) -> Result<(UdpSource<'_>, usize), UdpRefusal> {
    let short = UdpRefusal::Short { len: datagram.len() };
    let mut reader = Reader::new(datagram);
    let [_, _, frag] = reader.array().ok_or(short)?;
    if frag != 0 {
        return Err(UdpRefusal::Fragment { frag });
    }
    let source = match read_address(&mut reader) {
        Ok(Some(Endpoint::Address(address))) => UdpSource::Address(address),
        Ok(Some(Endpoint::Name { name, port })) => UdpSource::Name { name, port },
        Ok(None) => return Err(short),
        Err(got) => return Err(UdpRefusal::BadAddressType { got }),
    };
    Ok((source, reader.used()))
}

impl fmt::Display for UdpRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UdpRefusal::Short { len } => {
                write!(f, "SOCKS5 relay sent a datagram of {len} bytes, which ends in its header")
            }
            UdpRefusal::Fragment { frag } => write!(f, "SOCKS5 relay sent a fragment (FRAG {frag:#04x})"),
            UdpRefusal::BadAddressType { got } => {
                write!(f, "SOCKS5 relay sent address type {got:#04x}, not 0x01, 0x03 or 0x04")
            }
        }
    }
}

impl std::error::Error for UdpRefusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1928 section 7: RSV, FRAG, ATYP, DST.ADDR, DST.PORT, DATA.
    const FROM_V4: &[u8] = &[0x00, 0x00, 0x00, 0x01, 192, 0, 2, 7, 0x00, 0x35, b'o', b'k'];
    const FROM_V6: &[u8] = &[
        0x00, 0x00, 0x00, 0x04, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x01, 0xbb, b'o', b'k',
    ];
    const FROM_NAME: &[u8] = &[0x00, 0x00, 0x00, 0x03, 0x03, b'd', b'n', b's', 0x00, 0x35, b'o', b'k'];

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_type_tells_source_and_payload() {
        assert_eq!(parse_udp(FROM_V4), Ok((UdpSource::Address(address("192.0.2.7:53")), 10)));
        assert_eq!(parse_udp(FROM_V6), Ok((UdpSource::Address(address("[2001:db8::1]:443")), 22)));
        assert_eq!(parse_udp(FROM_NAME), Ok((UdpSource::Name { name: b"dns", port: 53 }, 10)));
    }

    #[test]
    fn an_empty_payload_begins_at_the_end() {
        assert_eq!(parse_udp(&FROM_V4[..10]), Ok((UdpSource::Address(address("192.0.2.7:53")), 10)));
    }

    #[test]
    fn an_empty_name_is_a_name() {
        let datagram = [0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x35];
        assert_eq!(parse_udp(&datagram), Ok((UdpSource::Name { name: b"", port: 53 }, 7)));
    }

    #[test]
    fn a_datagram_that_ends_in_its_header_is_short() {
        for (datagram, header) in [(FROM_V4, 10), (FROM_V6, 22), (FROM_NAME, 10)] {
            for cut in 0..header {
                assert_eq!(parse_udp(&datagram[..cut]), Err(UdpRefusal::Short { len: cut }), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_fragment_is_refused() {
        for frag in 1..=255 {
            let mut datagram = FROM_V4.to_vec();
            datagram[2] = frag;
            assert_eq!(parse_udp(&datagram), Err(UdpRefusal::Fragment { frag }));
        }
    }

    #[test]
    fn an_unknown_address_type_is_refused() {
        for got in [0x00, 0x02, 0x05, 0xff] {
            let mut datagram = FROM_V4.to_vec();
            datagram[3] = got;
            assert_eq!(parse_udp(&datagram), Err(UdpRefusal::BadAddressType { got }));
        }
    }

    #[test]
    fn reserved_octets_are_not_looked_at() {
        let mut datagram = FROM_V4.to_vec();
        datagram[..2].copy_from_slice(&[0xde, 0xad]);
        assert_eq!(parse_udp(&datagram), parse_udp(FROM_V4));
    }

    #[test]
    fn a_mapped_destination_goes_out_as_v4() {
        let mut out = [0xee; HEADER_V6];
        let n = encode_udp_header(address("[::ffff:192.0.2.7]:53"), &mut out);
        assert_eq!(&out[..n], &FROM_V4[..10]);
    }

    #[test]
    fn a_mapped_source_is_told_as_v4() {
        let mut datagram = vec![0x00, 0x00, 0x00, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        datagram.extend([192, 0, 2, 7, 0x00, 0x35]);
        assert_eq!(parse_udp(&datagram), Ok((UdpSource::Address(address("192.0.2.7:53")), 22)));
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_yield_a_payload_within_them(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((_, payload)) = parse_udp(&datagram) {
                prop_assert!(payload <= datagram.len());
            }
        }

        #[test]
        fn what_was_encoded_is_read_back(ip in any::<std::net::IpAddr>(), port in any::<u16>(),
                                         payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let dst = SocketAddr::new(ip.to_canonical(), port);
            let mut out = [0; HEADER_V6];
            let n = encode_udp_header(dst, &mut out);
            prop_assert_eq!(n, if dst.is_ipv4() { HEADER_V4 } else { HEADER_V6 });
            let mut datagram = out[..n].to_vec();
            datagram.extend(&payload);
            prop_assert_eq!(parse_udp(&datagram), Ok((UdpSource::Address(dst), n)));
        }
    }
}

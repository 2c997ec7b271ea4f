//! The headers that the daemon writes itself: UDP (RFC 768), ICMP (RFC 792) and ICMPv6 (RFC 4443) errors.

use std::net::{IpAddr, SocketAddr};

/// Length of a UDP header.
pub const UDP_HEADER: usize = 8;

/// Most octets of payload that a UDP datagram over IPv4 carries: 65,535 less two headers.
pub const UDP_PAYLOAD_MAX: usize = 65_507;

/// A UDP header for `payload`, at most [`UDP_PAYLOAD_MAX`] octets, from `from` to `to`.
///
/// Over v4 with its checksum; over v6 with none, which the kernel fills in (`IPV6_CHECKSUM`).
pub fn udp_header(from: &SocketAddr, to: &SocketAddr, payload: &[u8]) -> [u8; UDP_HEADER] {
    let [len_high, len_low] = ((UDP_HEADER + payload.len()) as u16).to_be_bytes();
    let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    let mut checksum = [0; 2];
    if let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) {
        let word = |octets| u64::from(u32::from_ne_bytes(octets));
        let pseudo = word(from.ip().octets()) + word(to.ip().octets()) + word([0, 17, len_high, len_low]);
        let sum = pseudo + word([a, b, c, d]) + word([len_high, len_low, 0, 0]) + sum(payload);
        // RFC 768: a checksum that comes out as zero is sent as all ones, since zero means none
        checksum = match !fold(sum) {
            0 => [0xff; 2],
            checksum => checksum.to_ne_bytes(),
        };
    }
    [a, b, c, d, len_high, len_low, checksum[0], checksum[1]]
}

/// The sum of `octets` as 16-bit words in the machine's own order, not yet folded. RFC 1071 section 2: the order does not
/// matter as long as the result is stored in the same one. At most 64 KB, so that it can't overflow.
#[allow(clippy::indexing_slicing, reason = "places within sixteen octets, and a rest that is shorter")]
fn sum(octets: &[u8]) -> u64 {
    // by 16, since a program that is built for size keeps every loop as it is written
    let (blocks, rest) = octets.as_chunks::<16>();
    let word = |block: &[u8; 16], at: usize| {
        u64::from(u32::from_ne_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
    };
    let mut sum = 0;
    for block in blocks {
        sum += word(block, 0) + word(block, 4) + word(block, 8) + word(block, 12);
    }
    if !rest.is_empty() {
        let mut last = [0; 16];
        last[..rest.len()].copy_from_slice(rest);
        sum += word(&last, 0) + word(&last, 4) + word(&last, 8) + word(&last, 12);
    }
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Longest message that [`unreachable()`] writes: ICMPv6 header, embedded IPv6 and UDP headers.
pub const UNREACHABLE_MAX: usize = 8 + 40 + 8;

/// An ICMP or ICMPv6 error that tells `client` about its datagram of `payload_len` octets to `orig_dst`, of the message type
/// and code `kind`, with `mtu` where the type has one. Written into `out`; returns its length.
///
/// It embeds the IP and UDP header of that datagram, by which the client's kernel finds the socket (RFC 792; RFC 4443
/// section 3.1). The checksum of an ICMPv6 message is left to the kernel (RFC 3542 section 3.1).
#[allow(clippy::indexing_slicing, reason = "constant places in a buffer of constant size")]
pub fn unreachable(
    kind: (u8, u8),
    mtu: u32,
    client: SocketAddr,
    orig_dst: SocketAddr,
    payload_len: usize,
    out: &mut [u8; UNREACHABLE_MAX],
) -> usize {
    let udp_len = (UDP_HEADER + payload_len.min(UDP_PAYLOAD_MAX)) as u16;
    out.fill(0);
    (out[0], out[1]) = kind;
    let at = match (client.ip(), orig_dst.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // RFC 1191 section 4: the next hop's MTU stands in the low half of the second word
            out[6..8].copy_from_slice(&(mtu.min(0xffff) as u16).to_be_bytes());
            let ip = &mut out[8..28];
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&(20 + udp_len.min(u16::MAX - 20)).to_be_bytes());
            (ip[8], ip[9]) = (64, 17);
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&destination.octets());
            let checksum = !fold(sum(ip));
            ip[10..12].copy_from_slice(&checksum.to_ne_bytes());
            28
        }
        (source, destination) => {
            out[4..8].copy_from_slice(&mtu.to_be_bytes());
            let ip = &mut out[8..48];
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
            (ip[6], ip[7]) = (17, 64);
            ip[8..24].copy_from_slice(&v6_octets(source));
            ip[24..40].copy_from_slice(&v6_octets(destination));
            48
        }
    };
    out[at..at + 2].copy_from_slice(&client.port().to_be_bytes());
    out[at + 2..at + 4].copy_from_slice(&orig_dst.port().to_be_bytes());
    out[at + 4..at + 6].copy_from_slice(&udp_len.to_be_bytes());
    let len = at + UDP_HEADER;
    if client.is_ipv4() {
        let checksum = !fold(sum(&out[..len]));
        out[2..4].copy_from_slice(&checksum.to_ne_bytes());
    }
    len
}

/// Type and code of "port unreachable" in the family of `address` (RFC 792; RFC 4443 section 3.1).
pub fn port_unreachable(address: SocketAddr) -> (u8, u8) {
    if address.is_ipv4() { (3, 3) } else { (1, 4) }
}

fn v6_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_udp_checksum_over_header_and_pseudo_header_comes_out_as_all_ones() {
        for payload in [&b""[..], b"a", b"ab", b"abc", b"abcd", b"odd length payload"] {
            let (from, to) = (address("203.0.113.9:443"), address("192.168.1.2:40000"));
            let header = udp_header(&from, &to, payload);
            let mut all = vec![203, 0, 113, 9, 192, 168, 1, 2, 0, 17, header[4], header[5]];
            all.extend_from_slice(&header);
            all.extend_from_slice(payload);
            assert_eq!(fold(sum(&all)), 0xffff, "{payload:?}");
        }
    }

    #[test]
    fn a_known_datagram_has_the_known_checksum() {
        // computed by hand after RFC 1071: 10.0.0.1:1 → 10.0.0.2:2, payload "hi"
        let header = udp_header(&address("10.0.0.1:1"), &address("10.0.0.2:2"), b"hi");
        let words: u32 = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 0x0011 + 10 + 1 + 2 + 10 + 0x6869;
        assert_eq!(u16::from_be_bytes([header[6], header[7]]), !((words & 0xffff) + (words >> 16)) as u16);
    }

    #[test]
    fn an_icmp_error_embeds_what_the_client_sent() {
        let mut out = [0; UNREACHABLE_MAX];
        let (client, orig_dst) = (address("192.168.1.2:40000"), address("203.0.113.9:443"));
        let len = unreachable((3, 3), 0, client, orig_dst, 4, &mut out);
        assert_eq!(len, 36);
        assert_eq!(fold(sum(&out[..len])), 0xffff, "checksum of the message");
        assert_eq!(fold(sum(&out[8..28])), 0xffff, "checksum of the embedded header");
        assert_eq!(&out[20..24], &[192, 168, 1, 2]);
        assert_eq!(&out[28..36], &[0x9c, 0x40, 0x01, 0xbb, 0, 12, 0, 0]);
    }

    #[test]
    fn an_icmpv6_error_embeds_what_the_client_sent() {
        let mut out = [0; UNREACHABLE_MAX];
        let (client, orig_dst) = (address("[2001:db8::2]:40000"), address("[2001:db8:9::9]:443"));
        let len = unreachable((2, 0), 1280, client, orig_dst, 4, &mut out);
        assert_eq!((len, &out[..8]), (56, &[2, 0, 0, 0, 0, 0, 5, 0][..]));
        assert_eq!(&out[48..56], &[0x9c, 0x40, 0x01, 0xbb, 0, 12, 0, 0]);
    }
}

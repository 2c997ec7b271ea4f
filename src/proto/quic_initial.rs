//! The server's name in a client's first QUIC packets (RFC 9000, RFC 9001, RFC 9369): Initial packets, their CRYPTO frames
//! in any order and over several datagrams, and in these the ClientHello.

use super::client_hello::{Hello, in_message};
use super::quic_keys::{InitialKeys, SAMPLE, TAG, Version};
use super::sniff::Sniff;
use super::{Reader, fill, up_to};

/// Octets of the ClientHello that are looked at.
const CRYPTO_MAX: usize = 4096;

/// Longest datagram that is looked at.
const DATAGRAM_MAX: usize = 2048;

/// Longest connection id of these versions (RFC 9000 section 17.2).
const CONNECTION_ID_MAX: usize = 20;

/// Looks for a name in the datagrams that a client has sent first, in the order in which they came.
pub fn sniff<'d>(datagrams: impl IntoIterator<Item = &'d [u8]>) -> Sniff {
    let mut crypto = Crypto { octets: [0; CRYPTO_MAX], have: heapless::Vec::new() };
    let mut keys: Option<InitialKeys> = None;
    let mut any = false;
    for datagram in datagrams {
        match read_datagram(datagram, &mut keys, &mut crypto) {
            Read::Initial => any = true,
            // a packet of another kind that came before its time, or again
            Read::Other if any => {}
            Read::Other => return Sniff::Unknown,
        }
    }
    match in_message(crypto.contiguous()) {
        Hello::Name { name, .. } => Sniff::Name(name),
        Hello::NoName { .. } | Hello::NotHello => Sniff::Unknown,
        Hello::More if crypto.contiguous().len() < CRYPTO_MAX => Sniff::More,
        Hello::More => Sniff::Unknown,
    }
}

/// What holds for any frames of a packet that could be opened, for tests and fuzzers: what has come without a hole stands
/// where its first frames put it, and no part of it is counted twice.
///
/// # Panics
/// If it does not hold.
pub fn check_frames(payload: &[u8]) {
    let mut crypto = Crypto { octets: [0; CRYPTO_MAX], have: heapless::Vec::new() };
    let _ = frames(payload, &mut crypto);
    assert!(crypto.contiguous().len() <= CRYPTO_MAX);
    assert!(crypto.have.iter().all(|(first, last)| first < last), "empty parts: {:?}", crypto.have);
    assert!(
        crypto.have.windows(2).all(|pair| matches!(pair, [one, next] if one.1 < next.0)),
        "parts that touch: {:?}",
        crypto.have
    );
    let _ = in_message(crypto.contiguous());
}

enum Read {
    /// At least one Initial packet could be opened.
    Initial,
    Other,
}

/// Reads all packets of a datagram.
fn read_datagram(datagram: &[u8], keys: &mut Option<InitialKeys>, crypto: &mut Crypto) -> Read {
    let mut rest = datagram;
    let mut read = Read::Other;
    while let Some(packet) = Packet::parse(rest) {
        let Some((whole, others)) = packet.end.and_then(|end| rest.split_at_checked(end)) else { break };
        if let Some(version) = packet.initial {
            if keys.is_none() {
                *keys = InitialKeys::new(version, packet.connection_id);
            }
            if let Some(keys) = keys
                && open(whole, packet.number_at, keys, crypto).is_some()
            {
                read = Read::Initial;
            }
        }
        rest = others;
    }
    read
}

/// A packet with a long header.
struct Packet<'d> {
    /// The version, if it is an Initial packet.
    initial: Option<Version>,
    connection_id: &'d [u8],
    /// Where its packet number begins.
    number_at: usize,
    /// Where it ends, if it tells.
    end: Option<usize>,
}

impl<'d> Packet<'d> {
    fn parse(bytes: &'d [u8]) -> Option<Packet<'d>> {
        let mut input = Reader::new(bytes);
        let first = input.u8()?;
        // long header, fixed bit
        if first & 0xc0 != 0xc0 {
            return None;
        }
        let kind = first >> 4 & 3;
        let (version, initial) = match u32::from_be_bytes(input.array()?) {
            0x0000_0001 => (Version::One, kind == 0),
            0x6b33_43cf => (Version::Two, kind == 1),
            _ => return None,
        };
        let len = usize::from(input.u8()?);
        let connection_id = input.take(len).filter(|_| len <= CONNECTION_ID_MAX)?;
        let len = usize::from(input.u8()?);
        input.take(len).filter(|_| len <= CONNECTION_ID_MAX)?;
        if initial {
            let token = variable(&mut input)?;
            input.take(usize::try_from(token).ok()?)?;
        }
        let len = variable(&mut input)?;
        let number_at = input.used();
        let end = usize::try_from(len).ok().and_then(|len| number_at.checked_add(len));
        Some(Packet { initial: initial.then_some(version), connection_id, number_at, end })
    }
}

/// Takes off the protection of an Initial packet, and notes its CRYPTO frames. `None`: it is none of this client.
fn open(packet: &[u8], number_at: usize, keys: &InitialKeys, crypto: &mut Crypto) -> Option<()> {
    let mut bytes = [0; DATAGRAM_MAX];
    let bytes = bytes.get_mut(..packet.len())?;
    bytes.copy_from_slice(packet);
    // the sample is taken as if the packet number had 4 octets (RFC 9001 section 5.4.2)
    let sample: [u8; SAMPLE] = bytes.get(number_at + 4..number_at + 4 + SAMPLE)?.try_into().ok()?;
    let [mask_of_first, mask @ ..] = keys.mask(sample);
    let first = bytes.first_mut()?;
    *first ^= mask_of_first & 0x0f;
    let number_len = usize::from(*first & 3) + 1;
    let mut number = 0;
    for (octet, mask) in bytes.get_mut(number_at..number_at + number_len)?.iter_mut().zip(&mask) {
        *octet ^= mask;
        number = number << 8 | u32::from(*octet);
    }
    let (header, sealed) = bytes.split_at_mut(number_at + number_len);
    let (payload, tag) = sealed.split_at_mut(sealed.len().checked_sub(TAG)?);
    let tag: [u8; TAG] = (&*tag).try_into().ok()?;
    keys.open(number, header, payload, tag).then_some(())?;
    frames(payload, crypto)
}

/// Notes the CRYPTO frames; the others that an Initial packet may have are passed over (RFC 9000 section 17.2.2).
fn frames(payload: &[u8], crypto: &mut Crypto) -> Option<()> {
    let mut input = Reader::new(payload);
    while let Some(kind) = input.u8() {
        match kind {
            // PADDING, PING
            0 | 1 => {}
            // ACK, with and without ECN counts
            2 | 3 => {
                variable(&mut input)?;
                variable(&mut input)?;
                let ranges = variable(&mut input)?;
                variable(&mut input)?;
                for _ in 0..ranges.checked_mul(2)? {
                    variable(&mut input)?;
                }
                for _ in 0..if kind == 3 { 3 } else { 0 } {
                    variable(&mut input)?;
                }
            }
            // CRYPTO
            6 => {
                let offset = usize::try_from(variable(&mut input)?).ok()?;
                let len = usize::try_from(variable(&mut input)?).ok()?;
                crypto.put(offset, input.take(len)?);
            }
            // CONNECTION_CLOSE, or what does not belong here: nothing of use follows
            _ => return Some(()),
        }
    }
    Some(())
}

/// A variable-length integer (RFC 9000 section 16).
fn variable(input: &mut Reader<'_>) -> Option<u64> {
    let first = input.u8()?;
    let mut value = u64::from(first & 0x3f);
    for octet in input.take((1 << (first >> 6)) - 1)? {
        value = value << 8 | u64::from(*octet);
    }
    Some(value)
}

/// The beginning of the CRYPTO stream, in parts that may come in any order.
struct Crypto {
    octets: [u8; CRYPTO_MAX],
    /// Parts that have come, sorted, disjoint and not touching.
    have: heapless::Vec<(u16, u16), PARTS_MAX>,
}

/// Parts with holes between them; Chromium makes about ten.
const PARTS_MAX: usize = 32;

impl Crypto {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let filled = fill(self.octets.get_mut(offset..).unwrap_or_default(), bytes);
        if filled == 0 {
            return;
        }
        let (mut first, mut last) = (offset as u16, (offset + filled) as u16);
        self.have.retain(|(a, b)| {
            let apart = *b < first || last < *a;
            if !apart {
                (first, last) = (first.min(*a), last.max(*b));
            }
            apart
        });
        let at = self.have.partition_point(|(a, _)| *a < first);
        // too many holes: what does not fit is as if it had not come
        let _ = self.have.insert(at, (first, last));
    }

    /// What has come without a hole.
    fn contiguous(&self) -> &[u8] {
        match self.have.first() {
            Some((0, end)) => up_to(&self.octets, usize::from(*end)),
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client_hello::tests::{message, sni};
    use crate::proto::sniff::Name;
    use proptest::prelude::*;

    /// A client's Initial packet with these frames, padded to `len` octets of datagram.
    fn initial(version: Version, number: u32, frames: &[u8], len: usize) -> Vec<u8> {
        let id = [7, 6, 5, 4, 3, 2, 1, 0];
        let keys = InitialKeys::new(version, &id).unwrap();
        let (first, code) = match version {
            Version::One => (0xc3, [0, 0, 0, 1]),
            Version::Two => (0xd3, [0x6b, 0x33, 0x43, 0xcf]),
        };
        let mut header = [&[first][..], &code, &[8], &id, &[0, 2, 9, 9]].concat();
        header[14] = 0;
        // no connection id of its own, a token of two octets; the length has two octets, the packet number four
        let sealed = len.saturating_sub(header.len() + 2).max(frames.len() + 4 + TAG);
        header.extend((sealed as u16 | 0x4000).to_be_bytes());
        let number_at = header.len();
        header.extend(number.to_be_bytes());
        let mut payload = frames.to_vec();
        payload.resize(sealed - 4 - TAG, 0);
        let tag = keys.seal(number, &header, &mut payload);
        let mut packet = [&header[..], &payload, &tag].concat();
        let mask = keys.mask(packet[number_at + 4..number_at + 4 + SAMPLE].try_into().unwrap());
        packet[0] ^= mask[0] & 0x0f;
        packet[number_at..number_at + 4].iter_mut().zip(&mask[1..]).for_each(|(octet, mask)| *octet ^= mask);
        packet
    }

    fn crypto_frame(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let number = |n: usize| (n as u16 | 0x4000).to_be_bytes();
        [&[6][..], &number(offset), &number(bytes.len()), bytes].concat()
    }

    fn hello() -> Vec<u8> {
        message(&[(0, &sni("Video.Example")), (51, &[9; 1200]), (43, &[2, 3, 4])])
    }

    fn found() -> Sniff {
        Sniff::Name(Name::parse(b"video.example").unwrap())
    }

    #[test]
    fn frames_in_any_order_over_several_datagrams_make_the_hello() {
        let hello = hello();
        for version in [Version::One, Version::Two] {
            for cuts in [[1, 2], [4, 500], [700, 1100], [100, 1200]] {
                let parts = [(0, cuts[0]), (cuts[0], cuts[1]), (cuts[1], hello.len())]
                    .map(|(from, to)| crypto_frame(from, &hello[from..to]));
                for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
                    let datagrams: Vec<Vec<u8>> = order
                        .iter()
                        .enumerate()
                        .map(|(n, part)| initial(version, n as u32, &[&[1, 0][..], &parts[*part]].concat(), 1250))
                        .collect();
                    let some = |n: usize| sniff(datagrams[..n].iter().map(Vec::as_slice));
                    assert_eq!((some(1), some(2)), (Sniff::More, Sniff::More), "{cuts:?} {order:?}");
                    assert_eq!(some(3), found(), "{cuts:?} {order:?}");
                }
            }
        }
    }

    fn octets(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// RFC 9001 appendix A.2: the client's Initial packet, from its plain frames to the octets on the wire.
    #[test]
    fn the_packet_of_the_rfc_asks_for_example_com() {
        let header = octets("c300000001088394c8f03e5157080000449e00000002");
        let mut payload = octets(
            "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c\
             00000413011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018\
             0010000700050461\
             6c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43\
             e994ec74d748002b0003020304000d0010000e0403050306030203080408050806002d00020101001c00024001003900\
             320408ffffffffffffffff05048000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806048000ffff",
        );
        payload.resize(1162, 0);
        let keys = InitialKeys::new(Version::One, &header[6..14]).unwrap();
        let tag = keys.seal(2, &header, &mut payload);
        let mut packet = [&header[..], &payload, &tag].concat();
        let mask = keys.mask(packet[22..38].try_into().unwrap());
        packet[0] ^= mask[0] & 0x0f;
        packet[18..22].iter_mut().zip(&mask[1..]).for_each(|(octet, mask)| *octet ^= mask);
        let wire = "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9b";
        assert_eq!((packet.len(), &packet[..38]), (1200, &octets(wire)[..]));
        assert_eq!(sniff([packet.as_slice()]), Sniff::Name(Name::parse(b"example.com").unwrap()));
    }

    /// Two datagrams as Chromium 156 and Firefox 153 sent them: the hello is cut into frames in no order, and does not fit
    /// into one.
    #[test]
    fn what_browsers_send_asks_for_www_video_example() {
        for hex in [
            include_str!("../../tests/fixtures/chromium-156-quic.hex"),
            include_str!("../../tests/fixtures/firefox-153-quic.hex"),
        ] {
            let datagrams: Vec<_> = hex.lines().map(octets).collect();
            let of = |picked: &[usize]| sniff(picked.iter().map(|n| datagrams[*n].as_slice()));
            let name = Sniff::Name(Name::parse(b"www.video.example").unwrap());
            for either in [[0, 1], [1, 0]] {
                assert_eq!(of(&either), name, "{either:?}");
                assert!([Sniff::More, name].contains(&of(&either[..1])), "{either:?}");
            }
        }
    }

    #[test]
    fn packets_behind_each_other_in_one_datagram_are_read() {
        let hello = message(&[(0, &sni("video.example"))]);
        let two = [
            initial(Version::One, 0, &crypto_frame(40, &hello[40..]), 0),
            initial(Version::One, 1, &[&[2, 5, 0, 0, 3][..], &crypto_frame(0, &hello[..40])].concat(), 0),
        ];
        assert_eq!(sniff([two.concat().as_slice()]), found());
    }

    #[test]
    fn what_is_not_an_initial_of_these_versions_is_given_up() {
        let good = initial(Version::One, 0, &crypto_frame(0, &hello()), 1250);
        let mut forged = good.clone();
        forged[600] ^= 1;
        let mut version = good.clone();
        version[4] = 9;
        for other in [&b""[..], b"\x40short header", b"\xc0", &forged, &version, &good[..100], b"SIP/2.0 200 OK\r\n"] {
            assert_eq!(sniff([other]), Sniff::Unknown);
        }
        let other = initial(Version::One, 0, &crypto_frame(0, &[2; 100]), 1250);
        assert_eq!(sniff([other.as_slice()]), Sniff::Unknown, "a ServerHello");
        assert_eq!(sniff([initial(Version::One, 0, &[1], 1250).as_slice()]), Sniff::More, "a PING alone");
    }

    #[test]
    fn more_holes_than_are_remembered_do_no_harm() {
        let hello = hello();
        let pieces = |step: usize| -> Vec<u8> {
            (0..hello.len()).step_by(step).rev().flat_map(|at| crypto_frame(at, &hello[at..at + 1])).collect()
        };
        let datagram = initial(Version::One, 0, &pieces(7), 2000);
        assert_eq!(sniff([datagram.as_slice()]), Sniff::More);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), at in 0usize..1250) {
            sniff([bytes.as_slice()]);
            let mut datagram = initial(Version::Two, 0, &bytes, 1250);
            sniff([datagram.as_slice()]);
            datagram[at] ^= 0x55;
            sniff([datagram.as_slice()]);
        }
    }
}

//! An address and port in 18 bytes, where `std`'s take 32: tables hold tens of thousands of them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Address and port; v4 in its v4-mapped form. Loses a v6 scope id, which only link-local addresses have, and those are never
/// intercepted.
#[derive(Clone, Copy)]
pub struct Endpoint {
    ip: [u8; 16],
    port: [u8; 2],
}

impl Endpoint {
    /// No address and port 0.
    pub const NONE: Endpoint = Endpoint { ip: [0; 16], port: [0; 2] };

    /// The address.
    pub fn ip(self) -> IpAddr {
        // by words: `to_ipv4_mapped` compares octet by octet where a program is built for size
        let (words, _) = self.ip.as_chunks::<4>();
        match *words {
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0xff, 0xff], v4] => IpAddr::V4(v4.into()),
            _ => IpAddr::V6(Ipv6Addr::from(self.ip)),
        }
    }

    /// The port.
    pub fn port(self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// Both, as `std` and the system calls want them.
    pub fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port())
    }

    /// Its 18 octets: address, port in network order.
    pub fn octets(self) -> [u8; 18] {
        let mut octets = [0; 18];
        octets[..16].copy_from_slice(&self.ip);
        octets[16..].copy_from_slice(&self.port);
        octets
    }

    /// The endpoint of which [`Self::octets`] gave these; `None` if there are fewer.
    pub fn from_octets(octets: &[u8]) -> Option<Endpoint> {
        let (ip, port) = octets.split_at_checked(16)?;
        Some(Endpoint { ip: ip.try_into().ok()?, port: port.get(..2)?.try_into().ok()? })
    }

    /// Three words that differ whenever two endpoints do, for hashing.
    pub fn words(self) -> [u64; 3] {
        let (halves, _) = self.ip.as_chunks::<8>();
        [u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1]), u64::from(self.port())]
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Endpoint) -> bool {
        // by words, not by calls of a function that compares octets
        self.words() == other.words()
    }
}

impl Eq for Endpoint {}

impl From<&SocketAddr> for Endpoint {
    fn from(address: &SocketAddr) -> Endpoint {
        match address {
            SocketAddr::V4(v4) => {
                let [a, b, c, d] = v4.ip().octets();
                let ip = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
                Endpoint { ip, port: v4.port().to_be_bytes() }
            }
            SocketAddr::V6(v6) => Endpoint { ip: v6.ip().octets(), port: v6.port().to_be_bytes() },
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Endpoint {
        Endpoint::from(&address)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address().fmt(f)
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address().fmt(f)
    }
}

/// A keyed hash of a few words: whoever does not know `key` can't choose addresses that collide. One multiplication of 64 by
/// 64 bits for each word, folded (the scheme of wyhash).
pub fn keyed_hash(key: u64, words: &[u64]) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    words.iter().fold(key, |hash, word| {
        let product = u128::from(hash ^ word) * u128::from(key.rotate_left(32) ^ PRIME | 1);
        (product as u64) ^ (product >> 64) as u64 ^ hash.rotate_left(23)
    })
}

const _: () = assert!(size_of::<Endpoint>() == 18);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_come_back_as_they_went_in() {
        for text in ["203.0.113.9:443", "[2001:db8::9]:53", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Endpoint::from(address).address(), address);
            assert_eq!(Endpoint::from(address).to_string(), text);
            let octets = Endpoint::from(address).octets();
            assert_eq!(Endpoint::from_octets(&octets).map(Endpoint::address), Some(address));
            assert_eq!(Endpoint::from_octets(&octets[1..]), None);
        }
    }

    #[test]
    fn the_hash_spreads_neighbours_and_depends_on_the_key() {
        let mut buckets = [[0u32; 64]; 2];
        for port in 0..6400u16 {
            let words = Endpoint::from(SocketAddr::from(([192, 168, 1, 2], port))).words();
            for (key, buckets) in [0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210].into_iter().zip(&mut buckets) {
                buckets[(keyed_hash(key, &words) % 64) as usize] += 1;
            }
        }
        for buckets in &buckets {
            assert!(buckets.iter().all(|n| (50..200).contains(n)), "{buckets:?}");
        }
        assert_ne!(buckets[0], buckets[1]);
    }
}

//! Keys of QUIC's Initial packets (RFC 9001 section 5, RFC 9369 section 3.3): they hide nothing, since whoever sees the first
//! packet can derive them.

use hkdf::Hkdf;
use sha2::Sha256;
use tproxyd_ciphers::{Cipher, encrypt_block_128};

/// Versions whose Initial packets can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// RFC 9000.
    One,
    /// RFC 9369.
    Two,
}

/// What opens the Initial packets of a client.
pub(super) struct InitialKeys {
    packet: Cipher,
    iv: [u8; 12],
    header: [u8; 16],
}

/// Octets of the tag behind a packet.
pub(super) const TAG: usize = 16;

/// Octets that header protection is made of.
pub(super) const SAMPLE: usize = 16;

impl Version {
    fn salt(self) -> [u8; 20] {
        match self {
            Version::One => [
                0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc,
                0xbb, 0x7f, 0x0a,
            ],
            Version::Two => [
                0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9,
                0xbd, 0x2e, 0xd9,
            ],
        }
    }

    fn labels(self) -> [&'static str; 3] {
        match self {
            Version::One => ["quic key", "quic iv", "quic hp"],
            Version::Two => ["quicv2 key", "quicv2 iv", "quicv2 hp"],
        }
    }
}

impl InitialKeys {
    /// Those of a client that gave its first packet this destination connection id.
    pub(super) fn new(version: Version, connection_id: &[u8]) -> Option<InitialKeys> {
        let (_, initial) = Hkdf::<Sha256>::extract(Some(&version.salt()), connection_id);
        let mut secret = [0; 32];
        expand(&initial, "client in", &mut secret)?;
        let client = Hkdf::<Sha256>::from_prk(&secret).ok()?;
        let [key, iv, header] = version.labels();
        let (mut packet_key, mut packet_iv, mut header_key) = ([0; 16], [0; 12], [0; 16]);
        expand(&client, key, &mut packet_key)?;
        expand(&client, iv, &mut packet_iv)?;
        expand(&client, header, &mut header_key)?;
        Some(InitialKeys { packet: Cipher::aes128(&packet_key), iv: packet_iv, header: header_key })
    }

    /// The mask of header protection.
    pub(super) fn mask(&self, sample: [u8; SAMPLE]) -> [u8; 5] {
        let mut block = sample;
        encrypt_block_128(&self.header, &mut block);
        let [a, b, c, d, e, ..] = block;
        [a, b, c, d, e]
    }

    /// Decrypts `payload`, whose tag stands apart, in place. False if it was made with other keys.
    pub(super) fn open(&self, number: u32, header: &[u8], payload: &mut [u8], tag: [u8; TAG]) -> bool {
        let mut nonce = self.iv;
        for (octet, part) in nonce[8..].iter_mut().zip(number.to_be_bytes()) {
            *octet ^= part;
        }
        self.packet.open(nonce, header, payload, tag)
    }

    /// The other way round, for tests.
    #[cfg(test)]
    pub(super) fn seal(&self, number: u32, header: &[u8], payload: &mut [u8]) -> [u8; TAG] {
        let mut nonce = self.iv;
        for (octet, part) in nonce[8..].iter_mut().zip(number.to_be_bytes()) {
            *octet ^= part;
        }
        self.packet.seal(nonce, header, payload).unwrap()
    }
}

/// HKDF-Expand-Label (RFC 8446 section 7.1) without a context.
fn expand(secret: &Hkdf<Sha256>, label: &str, out: &mut [u8]) -> Option<()> {
    let len = (out.len() as u16).to_be_bytes();
    let label_len = [(TLS13.len() + label.len()) as u8];
    secret.expand_multi_info(&[&len, &label_len, TLS13, label.as_bytes(), &[0]], out).ok()
}

const TLS13: &[u8] = b"tls13 ";

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9001 appendix A and RFC 9369 appendix A.
    const CONNECTION_ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

    #[test]
    fn the_mask_of_the_rfc_is_made_of_its_sample() {
        let keys = InitialKeys::new(Version::One, &CONNECTION_ID).unwrap();
        // RFC 9001 appendix A.2
        let sample = [0xd1, 0xb1, 0xc9, 0x8d, 0xd7, 0x68, 0x9f, 0xb8, 0xec, 0x11, 0xd2, 0x42, 0xb1, 0x23, 0xdc, 0x9b];
        assert_eq!(keys.mask(sample), [0x43, 0x7b, 0x9a, 0xec, 0x36]);
        // RFC 9369 appendix A.2
        let keys = InitialKeys::new(Version::Two, &CONNECTION_ID).unwrap();
        let sample = [0xff, 0xe6, 0x7b, 0x6a, 0xbc, 0xdb, 0x42, 0x98, 0xb4, 0x85, 0xdd, 0x04, 0xde, 0x80, 0x60, 0x71];
        assert_eq!(keys.mask(sample), [0x94, 0xa0, 0xc9, 0x5e, 0x80]);
    }

    #[test]
    fn the_iv_of_the_rfc_comes_out() {
        let iv = [0xfa, 0x04, 0x4b, 0x2f, 0x42, 0xa3, 0xfd, 0x3b, 0x46, 0xfb, 0x25, 0x5c];
        assert_eq!(InitialKeys::new(Version::One, &CONNECTION_ID).unwrap().iv, iv);
        let iv = [0x91, 0xf7, 0x3e, 0x23, 0x51, 0xd8, 0xfa, 0x91, 0x66, 0x0e, 0x90, 0x9f];
        assert_eq!(InitialKeys::new(Version::Two, &CONNECTION_ID).unwrap().iv, iv);
    }
}

//! Shadowsocks: keys, ciphers and the meaning of their bytes (SIP004 AEAD, SIP022 "2022"). The ciphers are those of the
//! RustCrypto project; nothing here reads a clock or makes a random number: the caller lends both.
#![allow(clippy::indexing_slicing, reason = "lengths are the method's own, within buffers of the longest")]

use super::Writer;
use super::socks5::{put_address, put_name};
use std::fmt;
use std::net::SocketAddr;
use tproxyd_ciphers::{Cipher, decrypt_block_128, decrypt_block_256, encrypt_block_128, encrypt_block_256};

pub mod datagram;
pub mod stream;

/// Octets of the longest key and salt.
pub const KEY_MAX: usize = 32;

pub use tproxyd_ciphers::TAG;

/// The ways to encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `aes-128-gcm`.
    Aes128Gcm,
    /// `aes-256-gcm`.
    Aes256Gcm,
    /// `chacha20-ietf-poly1305`.
    ChaCha20Poly1305,
    /// `2022-blake3-aes-128-gcm`.
    Blake3Aes128Gcm,
    /// `2022-blake3-aes-256-gcm`.
    Blake3Aes256Gcm,
    /// `2022-blake3-chacha20-poly1305`.
    Blake3ChaCha20Poly1305,
}

impl Method {
    /// All of them, by name.
    pub const ALL: [(&'static str, Method); 6] = [
        ("aes-128-gcm", Method::Aes128Gcm),
        ("aes-256-gcm", Method::Aes256Gcm),
        ("chacha20-ietf-poly1305", Method::ChaCha20Poly1305),
        ("2022-blake3-aes-128-gcm", Method::Blake3Aes128Gcm),
        ("2022-blake3-aes-256-gcm", Method::Blake3Aes256Gcm),
        ("2022-blake3-chacha20-poly1305", Method::Blake3ChaCha20Poly1305),
    ];

    /// The method of this name.
    pub fn of(name: &str) -> Option<Method> {
        Method::ALL.iter().find(|(known, _)| *known == name).map(|(_, method)| *method)
    }

    /// Octets of a key, and of a salt.
    pub fn key_len(self) -> usize {
        match self {
            Method::Aes128Gcm | Method::Blake3Aes128Gcm => 16,
            _ => 32,
        }
    }

    /// One of SIP022.
    pub fn is_2022(self) -> bool {
        matches!(self, Method::Blake3Aes128Gcm | Method::Blake3Aes256Gcm | Method::Blake3ChaCha20Poly1305)
    }
}

/// What both sides share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MasterKey {
    /// How it is used.
    pub method: Method,
    key: [u8; KEY_MAX],
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("method", &self.method).finish_non_exhaustive()
    }
}

impl MasterKey {
    /// The key that `password` stands for: of SIP022 it is the key itself in base64, else it is hashed as OpenSSL's
    /// EVP_BytesToKey does with MD5 (SIP004).
    ///
    /// # Errors
    /// What the password has to be.
    pub fn new(method: Method, password: &str) -> Result<MasterKey, BadKey> {
        let len = method.key_len();
        let mut key = [0; KEY_MAX];
        if method.is_2022() {
            let mut writer = Writer::new(&mut key);
            let whole = read_base64(password.as_bytes(), &mut writer);
            let got = writer.written();
            if whole.is_none() || got != len {
                return Err(BadKey { expected: len });
            }
        } else {
            use md5::Digest;
            let first = md5::Md5::new().chain_update(password).finalize();
            let second = md5::Md5::new().chain_update(first).chain_update(password).finalize();
            key[..16].copy_from_slice(&first);
            if len > 16 {
                key[16..].copy_from_slice(&second);
            }
        }
        Ok(MasterKey { method, key })
    }

    fn octets(&self) -> &[u8] {
        &self.key[..self.method.key_len()]
    }

    /// The key of one session, which `salt` tells from others.
    fn subkey(&self, salt: &[u8]) -> Subkey {
        let mut key = [0; KEY_MAX];
        if self.method.is_2022() {
            let mut hasher = blake3::Hasher::new_derive_key("shadowsocks 2022 session subkey");
            hasher.update(self.octets()).update(salt);
            key.copy_from_slice(hasher.finalize().as_bytes());
        } else {
            let len = self.method.key_len();
            // fails for more than 255 hashes of output only
            let _ = hkdf::Hkdf::<sha1::Sha1>::new(Some(salt), self.octets()).expand(b"ss-subkey", &mut key[..len]);
        }
        Subkey { method: self.method, key }
    }

    /// AES of one block with the key itself: the separate header of SIP022's datagrams.
    fn block(&self, block: &mut [u8; 16], encrypt: bool) {
        match (self.octets().try_into(), encrypt) {
            (Ok(key), true) => encrypt_block_128(key, block),
            (Ok(key), false) => decrypt_block_128(key, block),
            (Err(_), true) => encrypt_block_256(&self.key, block),
            (Err(_), false) => decrypt_block_256(&self.key, block),
        }
    }
}

/// A password that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadKey {
    /// Octets that it has to stand for.
    pub expected: usize,
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.expected;
        write!(f, "is not base64 of {n} octets, as this method wants (`openssl rand -base64 {n}` makes one)")
    }
}

/// The key of one direction of one session.
#[derive(Clone, Copy)]
struct Subkey {
    method: Method,
    key: [u8; KEY_MAX],
}

impl Subkey {
    /// Set up: made anew in each turn, since it is larger than all else that a session keeps.
    fn cipher(&self) -> Cipher {
        match (self.method, self.key.first_chunk()) {
            (Method::Aes128Gcm | Method::Blake3Aes128Gcm, Some(key)) => Cipher::aes128(key),
            (Method::ChaCha20Poly1305 | Method::Blake3ChaCha20Poly1305, _) => Cipher::chacha20(&self.key),
            _ => Cipher::aes256(&self.key),
        }
    }
}

/// Encrypts the text before the last [`TAG`] octets of `buffer`, and writes the tag there.
fn seal(cipher: &Cipher, nonce: [u8; 12], buffer: &mut [u8]) {
    let Some((text, tag)) = buffer.split_last_chunk_mut::<TAG>() else { return };
    // `None` for texts of gigabytes only
    if let Some(sealed) = cipher.seal(nonce, &[], text) {
        *tag = sealed;
    }
}

/// Decrypts in place the text before the tag that ends `buffer`, and returns it; `None`: it is not authentic.
fn open<'a>(cipher: &Cipher, nonce: [u8; 12], buffer: &'a mut [u8]) -> Option<&'a mut [u8]> {
    let (text, tag) = buffer.split_last_chunk_mut::<TAG>()?;
    cipher.open(nonce, &[], text, *tag).then_some(text)
}

/// Where a flow goes: an address, or a name for the server to look up, at the address's port.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The address, and the port.
    pub address: SocketAddr,
    /// The name, if it is to be said.
    pub name: Option<&'a str>,
}

impl Target<'_> {
    fn put(&self, out: &mut Writer<'_>) -> Option<()> {
        match self.name {
            Some(name) => put_name(out, name, self.address.port()),
            None => put_address(out, self.address),
        }
    }
}

/// Why what the server sent is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was not encrypted with our key, or changed on its way.
    NotAuthentic,
    /// SIP022: its header is of another type than an answer's.
    WrongType,
    /// SIP022: it was made more than 30 seconds ago or ahead.
    WrongTime,
    /// SIP022: it answers another request: somebody plays back what he has recorded.
    Replayed,
    /// SIP004: a chunk of more than 16,383 octets.
    TooLong,
    /// It ended in the middle of a chunk.
    Cut,
    /// It has no meaning.
    Malformed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NotAuthentic => "not encrypted with our password and method",
            Refusal::WrongType => "not an answer",
            Refusal::WrongTime => "its clock and ours are more than 30 s apart",
            Refusal::Replayed => "an answer to somebody else's request",
            Refusal::TooLong => "a chunk of more than 16383 octets",
            Refusal::Cut => "it ends in the middle of a chunk",
            Refusal::Malformed => "malformed",
        })
    }
}

impl std::error::Error for Refusal {}

/// SIP022 section 3.1.5: how far the clocks may be apart, in seconds.
const CLOCKS_APART: u64 = 30;

fn in_time(stamp: u64, now: u64) -> bool {
    stamp.abs_diff(now) <= CLOCKS_APART
}

/// RFC 4648 section 4, with its padding.
fn read_base64(text: &[u8], out: &mut Writer<'_>) -> Option<()> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for group in text.chunks(4) {
        let padding = group.iter().rev().take_while(|c| **c == b'=').count();
        let mut bits = 0u32;
        for c in &group[..4usize.checked_sub(padding)?] {
            let value = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let octets = match padding {
            0 => 3,
            1 => 2,
            2 => 1,
            _ => return None,
        };
        let bits = bits << (6 * padding);
        out.put(&bits.to_be_bytes()[1..1 + octets])?;
    }
    Some(())
}

#[cfg(test)]
mod tests;

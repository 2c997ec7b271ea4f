//! The ciphers of the RustCrypto project, as functions that are compiled here.
//!
//! Their code is generic: whichever crate uses it compiles it, by its own settings. tproxyd is compiled to be small, which
//! makes ciphers twice as slow; so what calls them is a crate of its own, which is compiled to be fast. Nothing that is
//! public here may be generic or inlined, or it would be compiled elsewhere again.

use aes_gcm::aead::AeadInPlace;
use aes_gcm::aes::Aes128;
use aes_gcm::aes::cipher::{BlockEncrypt, KeyInit};
use aes_gcm::{Aes128Gcm, Nonce};

#[cfg(feature = "shadowsocks")]
mod chacha;

/// Octets of an authentication tag.
pub const TAG: usize = 16;

/// An AEAD cipher with its key set up.
pub struct Cipher(Keyed);

#[cfg_attr(feature = "shadowsocks", expect(clippy::large_enum_variant, reason = "it lives on the stack of one call"))]
enum Keyed {
    Aes128(Aes128Gcm),
    #[cfg(feature = "shadowsocks")]
    Aes256(aes_gcm::Aes256Gcm),
    #[cfg(feature = "shadowsocks")]
    ChaCha20(chacha::ChaCha20Poly1305),
}

impl Cipher {
    /// AES-128-GCM.
    #[inline(never)]
    pub fn aes128(key: &[u8; 16]) -> Cipher {
        Cipher(Keyed::Aes128(Aes128Gcm::new(key.into())))
    }

    /// AES-256-GCM.
    #[cfg(feature = "shadowsocks")]
    #[inline(never)]
    pub fn aes256(key: &[u8; 32]) -> Cipher {
        Cipher(Keyed::Aes256(aes_gcm::Aes256Gcm::new(key.into())))
    }

    /// ChaCha20-Poly1305 (RFC 8439).
    #[cfg(feature = "shadowsocks")]
    #[inline(never)]
    pub fn chacha20(key: &[u8; 32]) -> Cipher {
        Cipher(Keyed::ChaCha20(chacha::ChaCha20Poly1305::new(key.into())))
    }

    /// XChaCha20-Poly1305, whose nonce is longer (draft-irtf-cfrg-xchacha-03): the cipher and the nonce that are left once
    /// its first part has gone into the key.
    #[cfg(feature = "shadowsocks")]
    #[inline(never)]
    pub fn xchacha20(key: &[u8; 32], nonce: &[u8; 24]) -> (Cipher, [u8; 12]) {
        let (first, rest) = nonce.split_at(16);
        let key = chacha20::hchacha::<chacha20::cipher::consts::U10>(key.into(), first.into());
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(rest);
        (Cipher(Keyed::ChaCha20(chacha::ChaCha20Poly1305::new(&key))), nonce)
    }

    /// Encrypts `text` in place, and returns the tag that authenticates it and `header`. `None` for texts of gigabytes.
    #[inline(never)]
    pub fn seal(&self, nonce: [u8; 12], header: &[u8], text: &mut [u8]) -> Option<[u8; TAG]> {
        let nonce = Nonce::from_slice(&nonce);
        let sealed = match &self.0 {
            Keyed::Aes128(cipher) => cipher.encrypt_in_place_detached(nonce, header, text),
            #[cfg(feature = "shadowsocks")]
            Keyed::Aes256(cipher) => cipher.encrypt_in_place_detached(nonce, header, text),
            #[cfg(feature = "shadowsocks")]
            Keyed::ChaCha20(cipher) => cipher.encrypt_in_place_detached(nonce, header, text),
        };
        sealed.ok().map(Into::into)
    }

    /// Decrypts `text` in place; false if `tag` was not made of it and `header` with this key and nonce.
    #[inline(never)]
    pub fn open(&self, nonce: [u8; 12], header: &[u8], text: &mut [u8], tag: [u8; TAG]) -> bool {
        let (nonce, tag) = (Nonce::from_slice(&nonce), &tag.into());
        let opened = match &self.0 {
            Keyed::Aes128(cipher) => cipher.decrypt_in_place_detached(nonce, header, text, tag),
            #[cfg(feature = "shadowsocks")]
            Keyed::Aes256(cipher) => cipher.decrypt_in_place_detached(nonce, header, text, tag),
            #[cfg(feature = "shadowsocks")]
            Keyed::ChaCha20(cipher) => cipher.decrypt_in_place_detached(nonce, header, text, tag),
        };
        opened.is_ok()
    }
}

/// One block by AES with a key of 16 octets.
#[inline(never)]
pub fn encrypt_block_128(key: &[u8; 16], block: &mut [u8; 16]) {
    Aes128::new(key.into()).encrypt_block(block.into());
}

/// The other way.
#[cfg(feature = "shadowsocks")]
#[inline(never)]
pub fn decrypt_block_128(key: &[u8; 16], block: &mut [u8; 16]) {
    use aes_gcm::aes::cipher::BlockDecrypt;
    Aes128::new(key.into()).decrypt_block(block.into());
}

/// One block by AES with a key of 32 octets.
#[cfg(feature = "shadowsocks")]
#[inline(never)]
pub fn encrypt_block_256(key: &[u8; 32], block: &mut [u8; 16]) {
    aes_gcm::aes::Aes256::new(key.into()).encrypt_block(block.into());
}

/// The other way.
#[cfg(feature = "shadowsocks")]
#[inline(never)]
pub fn decrypt_block_256(key: &[u8; 32], block: &mut [u8; 16]) {
    use aes_gcm::aes::cipher::BlockDecrypt;
    aes_gcm::aes::Aes256::new(key.into()).decrypt_block(block.into());
}

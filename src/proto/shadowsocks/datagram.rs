//! UDP: each datagram by itself (SIP004 "UDP", SIP022 section 3.2).
#![allow(clippy::indexing_slicing, reason = "lengths are the method's own, within buffers of the longest")]

use super::{KEY_MAX, MasterKey, Method, Refusal, TAG, Target, in_time, open, seal};
use crate::proto::socks5::{Endpoint, read_address};
use crate::proto::{Reader, Writer};
use std::net::SocketAddr;
use tproxyd_ciphers::Cipher;

/// Octets that a datagram takes at most beside its payload.
pub const OVERHEAD_MAX: usize = KEY_MAX + 16 + 1 + 8 + 2 + (2 + 255 + 2) + TAG;

/// What one client port keeps of its talks with a server of SIP022; SIP004 needs nothing.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    id: [u8; 8],
    sent: u64,
    theirs: Option<Window>,
    /// The server's session before: one that it began anew may be on its way still.
    before: Option<Window>,
}

/// Which datagrams of one of the server's sessions have come: a sliding window of 64 (SIP022 section 3.2.4).
#[derive(Debug, Clone, Copy)]
struct Window {
    id: [u8; 8],
    /// Number of the newest.
    newest: u64,
    /// Bit n: the one n before the newest has come.
    seen: u64,
    /// When one has come last, in seconds since 1970.
    heard: u64,
}

/// How long the server's session before is remembered after its last datagram, and no third one is believed, in seconds
/// (SIP022 section 3.2.4): what is played back of a forgotten one would look new.
const REMEMBERED: u64 = 60;

impl Window {
    /// Whether the datagram of this number is new; then it is not any more.
    fn admit(&mut self, number: u64) -> bool {
        if number > self.newest {
            let ahead = number - self.newest;
            self.seen = if ahead < 64 { self.seen << ahead | 1 } else { 1 };
            self.newest = number;
            return true;
        }
        let bit = self.newest - number;
        let fresh = bit < 64 && self.seen & 1 << bit == 0;
        if fresh {
            self.seen |= 1 << bit;
        }
        fresh
    }
}

/// Where a datagram's payload lies, and whom it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Whom the server says it is from.
    pub from: SocketAddr,
    /// Where the payload begins.
    pub start: usize,
    /// How long it is.
    pub len: usize,
}

/// What the caller lends for one datagram.
#[derive(Debug, Clone, Copy)]
pub struct Lent {
    /// Any octets.
    pub random: [u8; KEY_MAX],
    /// Seconds since 1970.
    pub now: u64,
}

impl Session {
    /// One that has not sent anything; `id` is any number.
    pub fn new(id: u64) -> Session {
        Session { id: id.to_be_bytes(), sent: 0, theirs: None, before: None }
    }

    /// Writes `payload` for `target` as a datagram to the server, and returns its length; `None` if it does not fit.
    pub fn seal(
        &mut self,
        key: &MasterKey,
        target: Target<'_>,
        payload: &[u8],
        lent: Lent,
        out: &mut [u8],
    ) -> Option<usize> {
        let head = match key.method {
            Method::Blake3ChaCha20Poly1305 => 24,
            method if method.is_2022() => 16,
            method => method.key_len(),
        };
        let mut writer = Writer::new(out);
        writer.put(&[0; KEY_MAX][..head])?;
        if key.method.is_2022() {
            if key.method == Method::Blake3ChaCha20Poly1305 {
                writer.put(&self.id)?;
                writer.put(&self.sent.to_be_bytes())?;
            }
            writer.put(&[0])?;
            writer.put(&lent.now.to_be_bytes())?;
            writer.put(&[0; 2])?;
        }
        target.put(&mut writer)?;
        writer.put(payload)?;
        writer.put(&[0; TAG])?;
        let end = writer.written();
        let (head, body) = out[..end].split_at_mut(head);
        match key.method {
            Method::Blake3ChaCha20Poly1305 => {
                let random = lent.random.first_chunk()?;
                head.copy_from_slice(random);
                let (cipher, nonce) = Cipher::xchacha20(&key.key, random);
                seal(&cipher, nonce, body);
            }
            method if method.is_2022() => {
                let mut header = [0; 16];
                header[..8].copy_from_slice(&self.id);
                header[8..].copy_from_slice(&self.sent.to_be_bytes());
                let nonce = header[4..].try_into().ok()?;
                seal(&key.subkey(&self.id).cipher(), nonce, body);
                key.block(&mut header, true);
                head.copy_from_slice(&header);
            }
            _ => {
                head.copy_from_slice(&lent.random[..head.len()]);
                seal(&key.subkey(head).cipher(), [0; 12], body);
            }
        }
        self.sent += 1;
        Some(end)
    }

    /// Decrypts a datagram from the server in place. `now` are seconds since 1970.
    ///
    /// # Errors
    /// Why it is to be dropped.
    pub fn open(&mut self, key: &MasterKey, datagram: &mut [u8], now: u64) -> Result<Opened, Refusal> {
        let len = datagram.len();
        // the server's session and the datagram's number in it, of SIP022
        let mut number = [0; 16];
        let (text, start) = match key.method {
            Method::Blake3ChaCha20Poly1305 => {
                let (nonce, body) = datagram.split_first_chunk_mut().ok_or(Refusal::Malformed)?;
                let (cipher, nonce) = Cipher::xchacha20(&key.key, nonce);
                let text = open(&cipher, nonce, body).ok_or(Refusal::NotAuthentic)?;
                let (header, text) = text.split_at_checked(16).ok_or(Refusal::Malformed)?;
                number = header.try_into().map_err(|_| Refusal::Malformed)?;
                (text, 24 + 16)
            }
            method if method.is_2022() => {
                let (head, body) = datagram.split_at_mut_checked(16).ok_or(Refusal::Malformed)?;
                let mut header: [u8; 16] = (&*head).try_into().map_err(|_| Refusal::Malformed)?;
                key.block(&mut header, false);
                let nonce = header[4..].try_into().map_err(|_| Refusal::Malformed)?;
                let text = open(&key.subkey(&header[..8]).cipher(), nonce, body).ok_or(Refusal::NotAuthentic)?;
                number = header;
                (&*text, 16)
            }
            method => {
                let (salt, body) = datagram.split_at_mut_checked(method.key_len()).ok_or(Refusal::Malformed)?;
                let text = open(&key.subkey(salt).cipher(), [0; 12], body).ok_or(Refusal::NotAuthentic)?;
                (&*text, method.key_len())
            }
        };
        let mut reader = Reader::new(text);
        if key.method.is_2022() {
            let (Some(kind), Some(stamp), Some(id), Some(padding)) =
                (reader.u8(), reader.array().map(u64::from_be_bytes), reader.array::<8>(), reader.u16())
            else {
                return Err(Refusal::Malformed);
            };
            match kind {
                1 if !in_time(stamp, now) => return Err(Refusal::WrongTime),
                1 if id != self.id => return Err(Refusal::Replayed),
                1 => {}
                _ => return Err(Refusal::WrongType),
            }
            reader.take(padding.into()).ok_or(Refusal::Malformed)?;
            // last: what is not for us, or too old, must not push the server's sessions out
            self.check_number(number, now)?;
        }
        let Ok(Some(Endpoint::Address(from))) = read_address(&mut reader) else { return Err(Refusal::Malformed) };
        let start = start + reader.used();
        Ok(Opened { from, start, len: len - TAG - start })
    }

    /// Whether the datagram of this number is new; only what is authentic and for us is asked about.
    fn check_number(&mut self, header: [u8; 16], now: u64) -> Result<(), Refusal> {
        let (id, number) = header.split_at(8);
        let id: [u8; 8] = id.try_into().map_err(|_| Refusal::Malformed)?;
        let number = u64::from_be_bytes(number.try_into().map_err(|_| Refusal::Malformed)?);
        let is_remembered = self.before.is_some_and(|before| now.saturating_sub(before.heard) < REMEMBERED);
        let known = [&mut self.theirs, &mut self.before].into_iter().flatten().find(|window| window.id == id);
        let fresh = match known {
            Some(window) => {
                let fresh = window.admit(number);
                if fresh {
                    window.heard = now;
                }
                fresh
            }
            None if is_remembered => false,
            None => {
                self.before = self.theirs.replace(Window { id, newest: number, seen: 1, heard: now });
                true
            }
        };
        if fresh { Ok(()) } else { Err(Refusal::Replayed) }
    }
}

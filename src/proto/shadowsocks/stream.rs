//! TCP: one direction of chunks each way (SIP004 "TCP", SIP022 section 3.1).
//!
//! ```text
//! up    salt │ [2022: sealed type, time, length │] sealed target (and padding, and first bytes) │ chunks
//! down  salt │ [2022: sealed type, time, our salt, length │ sealed first bytes │] chunks
//! chunk sealed length │ sealed bytes
//! ```
//!
//! What has come before is remembered by servers alone: a client's salt is in the answer, where nobody else's will do, so it
//! need not remember the server's (SIP022 section 3.1.5).
#![allow(clippy::indexing_slicing, reason = "lengths are the method's own, within buffers of the longest")]

use super::{KEY_MAX, MasterKey, Refusal, Subkey, TAG, Target, in_time, open, seal};
use crate::proto::Writer;

/// Most octets of one chunk that we send (SIP004; SIP022 allows more).
pub const CHUNK_MAX: usize = 0x3fff;

/// Octets that a chunk takes beside what it carries.
pub const OVERHEAD: usize = 2 + TAG + TAG;

/// Octets of the beginning beside the first bytes: salt, header, target with a name, padding.
pub const BEGIN_MAX: usize = KEY_MAX + 11 + TAG + (2 + 255 + 2) + 2 + PADDING_MAX + OVERHEAD;

/// Most octets that [`Stream::proof_len`] gives.
pub const PROOF_MAX: usize = KEY_MAX + 11 + KEY_MAX + TAG;

/// Most octets of one unit that the server sends: a chunk of SIP022.
pub const UNIT_MAX: usize = 0xffff + TAG;

const PADDING_MAX: usize = 255;

/// The keys of one session, and how far it has come.
pub struct Stream {
    master: MasterKey,
    /// Ours, which an answer of SIP022 must repeat.
    salt: [u8; KEY_MAX],
    up: Half,
    down: Half,
    awaits: Unit,
}

/// One direction.
#[derive(Clone, Copy)]
struct Half {
    key: Subkey,
    nonce: u64,
}

impl Half {
    /// A little-endian counter (SIP004).
    fn next_nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce += 1;
        nonce
    }
}

/// What comes next from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Salt,
    /// SIP022.
    Header,
    Length,
    /// So many octets, and the tag.
    Payload(u16),
}

/// What was made of the server's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// How many of them are done with.
    pub used: usize,
    /// How many octets of text lie at the beginning of the buffer now.
    pub text: usize,
    /// How many bytes the next unit takes.
    pub wanted: usize,
}

impl Stream {
    /// A session that has not begun; `random` becomes its salt.
    pub fn new(master: MasterKey, random: [u8; KEY_MAX]) -> Stream {
        let up = master.subkey(&random[..master.method.key_len()]);
        let half = Half { key: up, nonce: 0 };
        Stream { master, salt: random, up: half, down: half, awaits: Unit::Salt }
    }

    /// Writes the beginning with the client's first bytes, at most [`CHUNK_MAX`] less 600, and returns its length. `now` are
    /// seconds since 1970; `padding` is any number. `None` if it does not fit.
    pub fn begin(&mut self, target: Target<'_>, first: &[u8], now: u64, padding: u8, out: &mut [u8]) -> Option<usize> {
        let salt_len = self.master.method.key_len();
        let cipher = self.up.key.cipher();
        let mut writer = Writer::new(out);
        writer.put(&self.salt[..salt_len])?;
        let head = writer.written();
        if self.master.method.is_2022() {
            // type, time, length of what follows: filled in below
            writer.put(&[0; 11])?;
        } else {
            writer.put(&[0; 2])?;
        }
        writer.put(&[0; TAG])?;
        let begin = writer.written();
        target.put(&mut writer)?;
        if self.master.method.is_2022() {
            // SIP022 section 3.1.3: padding where there are no first bytes
            let padding = if first.is_empty() { u16::from(padding).max(1) } else { 0 };
            writer.put(&padding.to_be_bytes())?;
            writer.put(&[0; PADDING_MAX][..usize::from(padding).min(PADDING_MAX)])?;
        }
        writer.put(first)?;
        let len = u16::try_from(writer.written() - begin).ok().filter(|len| usize::from(*len) <= CHUNK_MAX)?;
        writer.put(&[0; TAG])?;
        let end = writer.written();
        if self.master.method.is_2022() {
            out[head + 1..head + 9].copy_from_slice(&now.to_be_bytes());
            out[head + 9..head + 11].copy_from_slice(&len.to_be_bytes());
        } else {
            out[head..head + 2].copy_from_slice(&len.to_be_bytes());
        }
        seal(&cipher, self.up.next_nonce(), &mut out[head..begin]);
        seal(&cipher, self.up.next_nonce(), &mut out[begin..end]);
        Some(end)
    }

    /// Writes `text` as chunks, and returns how many octets they take; `None`, and the session is lost, if `out` is smaller
    /// than [`sealed_len`].
    pub fn seal(&mut self, text: &[u8], out: &mut [u8]) -> Option<usize> {
        let cipher = self.up.key.cipher();
        let mut at = 0;
        for part in text.chunks(CHUNK_MAX) {
            let chunk = out.get_mut(at..at + part.len() + OVERHEAD)?;
            let (length, payload) = chunk.split_at_mut(2 + TAG);
            length[..2].copy_from_slice(&(part.len() as u16).to_be_bytes());
            seal(&cipher, self.up.next_nonce(), length);
            payload[..part.len()].copy_from_slice(part);
            seal(&cipher, self.up.next_nonce(), payload);
            at += part.len() + OVERHEAD;
        }
        Some(at)
    }

    /// Decrypts what is whole in `buffer`, in place, and moves the texts to its beginning. `now` are seconds since 1970.
    ///
    /// # Errors
    /// What the server sent is of no use; the session is lost.
    pub fn open(&mut self, buffer: &mut [u8], now: u64) -> Result<Opened, Refusal> {
        let (mut used, mut text) = (0, 0);
        // of the key that the salt gives, once that has come
        let mut cipher = (self.awaits != Unit::Salt).then(|| self.down.key.cipher());
        loop {
            let wanted = self.wanted();
            let Some(unit) = buffer.get_mut(used..used + wanted) else {
                return Ok(Opened { used, text, wanted });
            };
            used += wanted;
            let Some(with) = &cipher else {
                let key = self.master.subkey(unit);
                self.down = Half { key, nonce: 0 };
                cipher = Some(key.cipher());
                self.awaits = if self.master.method.is_2022() { Unit::Header } else { Unit::Length };
                continue;
            };
            let opened = open(with, self.down.next_nonce(), unit).ok_or(Refusal::NotAuthentic)?;
            self.awaits = match self.awaits {
                Unit::Salt | Unit::Length => Unit::Payload(self.read_length(opened)?),
                Unit::Header => Unit::Payload(self.read_header(self.salt, opened, now)?),
                Unit::Payload(len) => {
                    let start = used - wanted;
                    buffer.copy_within(start..start + usize::from(len), text);
                    text += usize::from(len);
                    Unit::Length
                }
            };
        }
    }

    /// Octets of an answer by which one can tell that it comes from our server: the salt, and what is sealed first.
    pub fn proof_len(&self) -> usize {
        let salt = self.master.method.key_len();
        salt + if self.master.method.is_2022() { 11 + salt + TAG } else { 2 + TAG }
    }

    /// True if the server's end, coming now, cuts nothing off.
    pub fn is_between_chunks(&self) -> bool {
        matches!(self.awaits, Unit::Length | Unit::Salt)
    }

    fn wanted(&self) -> usize {
        match self.awaits {
            Unit::Salt => self.master.method.key_len(),
            Unit::Header => 11 + self.master.method.key_len() + TAG,
            Unit::Length => 2 + TAG,
            Unit::Payload(len) => usize::from(len) + TAG,
        }
    }

    /// SIP004 keeps the two upper bits for itself; SIP022 has given them free.
    fn read_length(&self, octets: &[u8]) -> Result<u16, Refusal> {
        let len = read_u16(octets)?;
        if self.master.method.is_2022() || usize::from(len) <= CHUNK_MAX { Ok(len) } else { Err(Refusal::TooLong) }
    }

    /// Type, time, our salt, length (SIP022 section 3.1.4).
    fn read_header(&self, salt: [u8; KEY_MAX], header: &[u8], now: u64) -> Result<u16, Refusal> {
        let salt = &salt[..self.master.method.key_len()];
        let (start, rest) = header.split_at_checked(9).ok_or(Refusal::Malformed)?;
        let (echo, len) = rest.split_at_checked(salt.len()).ok_or(Refusal::Malformed)?;
        let stamp = u64::from_be_bytes(start[1..].try_into().map_err(|_| Refusal::Malformed)?);
        match start[0] {
            1 if !in_time(stamp, now) => Err(Refusal::WrongTime),
            1 if echo != salt => Err(Refusal::Replayed),
            1 => read_u16(len),
            _ => Err(Refusal::WrongType),
        }
    }
}

/// Octets that `len` octets of text take as chunks.
pub const fn sealed_len(len: usize) -> usize {
    len + len.div_ceil(CHUNK_MAX) * OVERHEAD
}

fn read_u16(octets: &[u8]) -> Result<u16, Refusal> {
    Ok(u16::from_be_bytes(octets.try_into().map_err(|_| Refusal::Malformed)?))
}

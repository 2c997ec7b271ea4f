//! The meaning of bytes on a wire: codecs and handshakes as state machines. No descriptor, clock, log, allocation.
//!
//! A step function takes the bytes that have come and not been used yet, writes what is to be sent into the caller's
//! buffer, and says how many bytes it used of the one and wrote to the other. Buffers, sockets and deadlines are the
//! caller's. Nothing here trusts a length that came from outside.
#![forbid(unsafe_code)]

pub mod client_hello;
pub mod ctnetlink;
pub mod dns;
pub mod http;
pub mod http_head;
pub mod http_server;
pub mod json;
pub mod packet;
pub mod proxy_header;
#[cfg(feature = "quic")]
pub mod quic_initial;
#[cfg(feature = "quic")]
mod quic_keys;
#[cfg(feature = "shadowsocks")]
pub mod shadowsocks;
pub mod sniff;
pub mod socks5;
pub mod socks5_server;
pub mod socks5_udp;

/// A cursor over received bytes. Every read is checked; one that would pass the end is `None` and moves nothing.
#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Bytes read so far.
    fn used(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[octet]| octet)
    }

    /// Network byte order.
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
}

/// The first `n` of `bytes`, or all if there are fewer.
fn up_to(bytes: &[u8], n: usize) -> &[u8] {
    bytes.get(..n).unwrap_or(bytes)
}

/// Copies as much of `bytes` as there is room for, and returns how much that is.
fn fill(room: &mut [u8], bytes: &[u8]) -> usize {
    let n = room.len().min(bytes.len());
    if let (Some(room), Some(bytes)) = (room.get_mut(..n), bytes.get(..n)) {
        room.copy_from_slice(bytes);
    }
    n
}

/// A cursor over the buffer that the caller lent. A write that does not fit is `None` and writes nothing.
#[derive(Debug)]
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Writer { out, at: 0 }
    }

    /// Bytes written so far.
    fn written(&self) -> usize {
        self.at
    }

    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at.checked_add(bytes.len())?;
        self.out.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    /// Writes text; what does not fit whole is not counted as written.
    fn put_text(&mut self, text: std::fmt::Arguments<'_>) -> Option<()> {
        let mut rest = Writer::new(self.out.get_mut(self.at..)?);
        std::fmt::Write::write_fmt(&mut rest, text).ok()?;
        self.at += rest.written();
        Some(())
    }
}

impl std::fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes()).ok_or(std::fmt::Error)
    }
}

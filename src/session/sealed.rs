//! Pumps whose far side is encrypted: what the client sends is sealed on its way, what the server sends is opened.
//!
//! Going up, bytes are read into one part of the scratch memory and sealed into another. Coming down they are opened where
//! they were read to; a part of a chunk waits in a buffer of the pool. (It could not wait in the socket: the rest may find no
//! room beside it.) Since what is sealed can't be taken back, a pump works only while the pool has a buffer for what the sink
//! does not take.

use super::outbound::Way;
use super::relay::{End, Pause, Tools, drain, end, write};
use crate::proto::shadowsocks::stream::{BEGIN_MAX, CHUNK_MAX, OVERHEAD, Stream, UNIT_MAX};
use crate::proto::shadowsocks::{KEY_MAX, Refusal, TAG, Target};
use crate::stats::events::unix_time;
use crate::store::pool::{CHUNK, Chunk, Pool};
use crate::sys::{random, socket};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

/// Most octets of text that are sealed at once: then all of it fits one buffer of the pool.
const TEXT: usize = 3 * CHUNK_MAX;

/// Most octets that are looked at at once: the length and the whole of the longest chunk. Their text fits one buffer of the
/// pool.
const LOOK: usize = UNIT_MAX + 2 + TAG;

/// First bytes of the client that go along with the beginning: all of it fits the buffer of a fresh socket.
const FIRST: usize = 4096;

/// Most octets that one direction moves in one turn.
const TURN: u64 = 4 * TEXT as u64;

/// What a session keeps for it.
pub(super) struct Sealed {
    stream: Stream,
    /// The beginning of a chunk that has not come whole.
    part: Option<Chunk>,
}

impl Sealed {
    /// Gives back what an ending session still held.
    pub(super) fn release(self, pool: &mut Pool) {
        if let Some(chunk) = self.part {
            pool.give_back(chunk);
        }
    }

    /// Puts the beginning of a chunk to the beginning of `buffer`, and returns how long it is.
    fn take_part(&mut self, buffer: &mut [u8], pool: &mut Pool) -> usize {
        let Some(chunk) = self.part.take() else { return 0 };
        let len = chunk.len();
        buffer[..len].copy_from_slice(pool.bytes(&chunk));
        pool.give_back(chunk);
        len
    }

    /// Keeps the beginning of a chunk. There is room: [`pump_down`] has seen to it.
    fn keep_part(&mut self, part: &[u8], pool: &mut Pool) {
        if !part.is_empty() {
            self.part = pool.take(part);
            debug_assert!(self.part.is_some(), "two buffers were free");
        }
    }
}

/// A session with the server of `way`, its beginning sent; `None`: `way` is of another type.
///
/// # Errors
/// The server takes nothing, or the client has failed.
pub(super) fn begin(
    way: &Way,
    target: Target<'_>,
    near: &mut End,
    far: &mut End,
    scratch: &mut [u8],
) -> Option<io::Result<Sealed>> {
    let Way::Shadowsocks { key, .. } = way else { return None };
    let mut salt = [0; KEY_MAX];
    random::fill(&mut salt);
    let mut stream = Stream::new(*key, salt);
    let sent = send_beginning(&mut stream, target, near, far, scratch);
    Some(sent.map(|()| Sealed { stream, part: None }))
}

fn send_beginning(
    stream: &mut Stream,
    target: Target<'_>,
    near: &mut End,
    far: &mut End,
    scratch: &mut [u8],
) -> io::Result<()> {
    let (text, out) = scratch.split_at_mut(FIRST);
    let (Some(from), Some(to)) = (near.borrow(), far.borrow()) else { return Ok(()) };
    // what the client has said already; its end is left for the pump to find
    let first = match socket::receive(from, text) {
        Ok(n) => n,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
        Err(e) => return Err(e),
    };
    let padding = random::u16() as u8;
    let len = stream.begin(target, &text[..first], unix_time(), padding, &mut out[..BEGIN_MAX + FIRST]);
    let len = len.ok_or(ErrorKind::InvalidInput)?;
    if socket::send(to, &out[..len])? < len {
        return Err(ErrorKind::WouldBlock.into());
    }
    far.sent += first as u64;
    Ok(())
}

/// Moves what the client sends.
pub(super) fn pump_up(near: &mut End, far: &mut End, sealed: &mut Sealed, most: u64, tools: &mut Tools<'_>) -> Pause {
    let (Some(from), Some(to)) = (near.fd.take(), far.fd.take()) else { return Pause::WouldBlock };
    let before = far.sent;
    let pause = loop {
        // what waits was counted when it was sealed
        let sent = far.sent;
        let waits = drain(far, to.as_fd(), tools.pool);
        far.sent = sent;
        if let Some(pause) = waits {
            break pause;
        }
        if near.is_ended() {
            break end(near, far, to.as_fd());
        }
        if !near.readable || !far.writable {
            break Pause::WouldBlock;
        }
        if far.sent - before >= TURN.min(most) {
            break Pause::Spent;
        }
        if tools.pool.is_empty() {
            tools.stats.pool_empty += 1;
            break Pause::NoBuffer;
        }
        let (text, out) = tools.scratch.split_at_mut(TEXT);
        match socket::receive(from.as_fd(), text) {
            Ok(0) => near.note_end(),
            Ok(n) => {
                near.note_read(n, TEXT);
                let Some(len) = sealed.stream.seal(&text[..n], &mut out[..TEXT + 3 * OVERHEAD]) else {
                    break Pause::SinkFailed(ErrorKind::InvalidInput.into());
                };
                match write(far, to.as_fd(), &out[..len]) {
                    Ok(written) if written < len => {
                        let held = far.hold(&out[written..len], tools.pool);
                        debug_assert!(held, "the pool was not empty");
                    }
                    Ok(_) => {}
                    Err(e) => break Pause::SinkFailed(e),
                }
                far.sent = sent + n as u64;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => near.readable = false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => break Pause::SourceFailed(e),
        }
    };
    (near.fd, far.fd) = (Some(from), Some(to));
    pause
}

/// Moves what the server sends.
pub(super) fn pump_down(far: &mut End, near: &mut End, sealed: &mut Sealed, most: u64, tools: &mut Tools<'_>) -> Pause {
    let (Some(from), Some(to)) = (far.fd.take(), near.fd.take()) else { return Pause::WouldBlock };
    let before = near.sent;
    let pause = loop {
        if let Some(pause) = drain(near, to.as_fd(), tools.pool) {
            break pause;
        }
        if far.is_ended() {
            break end(far, near, to.as_fd());
        }
        if !far.readable || !near.writable {
            break Pause::WouldBlock;
        }
        if near.sent - before >= TURN.min(most) {
            break Pause::Spent;
        }
        // one for a part of a chunk, which may be lent already, and one for what the client does not take
        let free = tools.pool.capacity() - tools.pool.lent() + usize::from(sealed.part.is_some());
        if free < 2 {
            tools.stats.pool_empty += 1;
            break Pause::NoBuffer;
        }
        if let Err(pause) = take_chunks(far, near, (from.as_fd(), to.as_fd()), sealed, tools) {
            break pause;
        }
    };
    (far.fd, near.fd) = (Some(from), Some(to));
    pause
}

/// Reads once, and writes what is whole of it.
fn take_chunks(
    far: &mut End,
    near: &mut End,
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    sealed: &mut Sealed,
    tools: &mut Tools<'_>,
) -> Result<(), Pause> {
    let buffer = &mut tools.scratch[..LOOK];
    let had = sealed.take_part(buffer, tools.pool);
    // a part must fit a buffer of the pool, but the longest chunk is a little longer: its last octets are looked at only
    let by_peek = had == CHUNK;
    let read = match by_peek {
        true => socket::peek(from, &mut buffer[had..]),
        false => socket::receive(from, &mut buffer[had..CHUNK]),
    };
    let n = match read {
        Ok(n) if n > 0 => n,
        other => {
            let whole = had == 0 && sealed.stream.is_between_chunks();
            sealed.keep_part(&buffer[..had], tools.pool);
            return match other {
                Ok(_) if whole => {
                    far.note_end();
                    Ok(())
                }
                Ok(_) => Err(Pause::SourceFailed(io::Error::new(ErrorKind::UnexpectedEof, Refusal::Cut))),
                Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    far.readable = false;
                    Ok(())
                }
                Err(e) => Err(Pause::SourceFailed(e)),
            };
        }
    };
    let refused = |refusal| Pause::SourceFailed(io::Error::new(ErrorKind::InvalidData, refusal));
    let opened = sealed.stream.open(&mut buffer[..had + n], unix_time()).map_err(refused)?;
    if by_peek {
        let taken = opened.used.saturating_sub(had);
        if taken > 0 {
            socket::discard(from, taken).map_err(Pause::SourceFailed)?;
        } else {
            // fewer octets wait than the chunk lacks: the next ones raise the edge
            far.readable = false;
            sealed.keep_part(&buffer[..had], tools.pool);
        }
    } else {
        far.note_read(n, CHUNK - had);
        sealed.keep_part(&buffer[opened.used..had + n], tools.pool);
    }
    let text = &buffer[..opened.text];
    let written = if text.is_empty() { 0 } else { write(near, to, text).map_err(Pause::SinkFailed)? };
    if written < text.len() {
        let held = near.hold(&text[written..], tools.pool);
        debug_assert!(held, "two buffers were free");
    }
    Ok(())
}

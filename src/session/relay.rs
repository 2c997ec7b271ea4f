//! Two half-duplex pumps: bytes from one end to the other, half-close each way, backpressure by not reading.
//!
//! A direction that fills the scratch buffer again and again is *bulk*: its bytes go through a pooled pipe by splice(2) and
//! never enter the process, until it turns small or idle.
//!
//! Nothing is copied twice in the common case: what is read into the scratch buffer that all sessions share is written at
//! once. Only what the other side did not take waits in a pooled buffer. When the pool is empty nothing is lost and nothing
//! waits: bytes are peeked at, written, and only as many are taken as were written.

use super::Readiness;
use super::pipes::{PIPE, Pipes};
use crate::stats::Stats;
use crate::store::pool::{CHUNK, Chunk, Pool};
use crate::sys::splice::Pipe;
use crate::sys::{socket, sockopt};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One end of a session: the client's connection, or the one to the server.
#[derive(Debug, Default)]
pub struct End {
    /// The connection; `None` while there is none to the server yet.
    pub fd: Option<OwnedFd>,
    /// The edge said that bytes, an end or an error wait, and no read since has found nothing.
    pub readable: bool,
    /// The edge said that there is room, and no write since has found none.
    pub writable: bool,
    /// The peer has sent its FIN, so only a read of nothing is the end of its bytes.
    read_closed: bool,
    /// Urgent data has come: short reads prove nothing from now on.
    urgent: bool,
    /// All its bytes have been read.
    ended: bool,
    /// We have sent our FIN to it.
    shut: bool,
    /// `TCP_NODELAY` is set.
    nodelay: bool,
    /// What may wait unsent in it.
    unsent: Unsent,
    /// What may wait in it of bytes that have not been read.
    unread: Unread,
    /// Bytes that it did not take yet.
    held: Option<Chunk>,
    /// Its bytes come through this pipe.
    pipe: Option<Pipe>,
    /// How many of them are in it.
    piped: u32,
    /// Reads in a row that argue for changing between copying and splicing what goes to it.
    turning: u8,
    /// Bytes that were written to it.
    pub sent: u64,
}

/// What an end's socket may hold of bytes that have not been sent once.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Unsent {
    /// As much as the kernel lets it, until it has much to send.
    #[default]
    Free,
    /// [`UNSENT_MAX`].
    Limited,
    /// As much as the kernel lets it: the peer has taken [`FLOWING`] bytes.
    Lifted,
}

/// What an end's socket may hold of bytes that nobody has read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Unread {
    /// As much as the kernel lets it, until much has come at once.
    #[default]
    Free,
    /// [`UNREAD_MAX`].
    Limited,
    /// As much as the kernel lets it.
    Lifted,
}

/// Why a pump stopped.
#[derive(Debug)]
pub enum Pause {
    /// One side or the other must become ready first.
    WouldBlock,
    /// Its share of this turn is used up; the edge will not come again, so it must be called again.
    Spent,
    /// Encrypted directions alone: no buffer is free, and without one they do not work. To be called again in a moment.
    NoBuffer,
    /// The end was reached and passed on.
    Ended,
    /// Reading from the source failed: it has reset the connection, or was lost.
    SourceFailed(io::Error),
    /// Writing to the sink failed.
    SinkFailed(io::Error),
}

/// Most bytes that one direction moves in one turn, so that a greedy stream starves no one.
pub const TURN: u64 = 4 * CHUNK as u64;

/// But never fewer at once.
const LEAST: u64 = 1024;

impl End {
    /// An end that was accepted, and inherited its options from the listener.
    pub fn accepted(fd: OwnedFd) -> End {
        // What a client sends waits as the kernel likes: limited, an upload of 16 MB cost half as much again (ARM).
        let unread = Unread::Lifted;
        End { fd: Some(fd), nodelay: true, unsent: Unsent::Limited, unread, ..End::default() }
    }

    /// Becomes one that is being connected, with no options set yet. What it was to get before everything else, it still is.
    pub fn connect(&mut self, fd: OwnedFd) {
        *self = End { fd: Some(fd), held: self.held.take(), ..End::default() };
    }

    /// Notes what the edge said.
    pub fn note(&mut self, ready: Readiness) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.read_closed |= ready.read_closed;
        self.urgent |= ready.urgent;
    }

    /// The peer has sent its FIN: what has come is all.
    pub fn is_read_closed(&self) -> bool {
        self.read_closed
    }

    /// The descriptor, if there is one.
    pub fn borrow(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// All its bytes have been read.
    #[cfg(feature = "shadowsocks")]
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// A read has found its end.
    #[cfg(feature = "shadowsocks")]
    pub(super) fn note_end(&mut self) {
        self.ended = true;
    }

    /// `n` bytes were read where `most` had room: if fewer, what comes later raises the edge again.
    #[cfg(feature = "shadowsocks")]
    pub(super) fn note_read(&mut self, n: usize, most: usize) {
        if n < most && !self.read_closed && !self.urgent {
            self.readable = false;
        }
    }

    /// Our FIN has gone to this end and its own has come: nothing more will pass.
    pub fn is_over(&self) -> bool {
        self.ended && self.shut
    }

    /// Puts `bytes` before everything that this end will get; false if no buffer was free.
    pub fn hold(&mut self, bytes: &[u8], pool: &mut Pool) -> bool {
        debug_assert!(self.held.is_none());
        self.held = pool.take(bytes);
        self.held.is_some()
    }

    /// Gives back what an ending session still held.
    pub fn release(&mut self, pool: &mut Pool, pipes: &mut Pipes) {
        if let Some(chunk) = self.held.take() {
            pool.give_back(chunk);
        }
        self.release_pipe(pipes);
        if let Some(pipe) = self.pipe.take() {
            pipes.give_back(pipe, true);
        }
    }

    /// Gives the pipe back if it is empty.
    pub fn release_pipe(&mut self, pipes: &mut Pipes) {
        if self.piped == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipes.give_back(pipe, false);
            self.turning = 0;
        }
    }

    /// Whether a pipe is lent to this end.
    pub fn has_pipe(&self) -> bool {
        self.pipe.is_some()
    }

    /// The close that follows will be a reset.
    pub fn reset(&self) {
        if let Some(fd) = self.borrow() {
            // on a socket that is reset already this has nothing to do
            let _ = sockopt::set_reset_on_close(fd);
        }
    }
}

/// What all sessions share for moving bytes.
pub struct Tools<'a> {
    /// Any memory of at least [`CHUNK`] bytes.
    pub scratch: &'a mut [u8],
    /// Buffers for what a sink did not take.
    pub pool: &'a mut Pool,
    /// Pipes for bulk.
    pub pipes: &'a mut Pipes,
    /// Counters.
    pub stats: &'a mut Stats,
}

/// A read of at least this much is a sign of bulk: half of what one read can bring.
const LARGE: usize = CHUNK / 2;

/// Reads in a row that are large before a direction gets a pipe.
const LARGE_READS: u8 = 3;

/// A splice of less than this much is not worth its second system call.
const SMALL: usize = 8 * 1024;

/// Splices in a row that are small before a direction gives its pipe back.
const SMALL_SPLICES: u8 = 8;

/// Moves what can be moved from `source` to `sink`, and `most` bytes at most or little more.
pub fn pump(source: &mut End, sink: &mut End, most: u64, tools: &mut Tools<'_>) -> Pause {
    let (Some(from), Some(to)) = (source.fd.take(), sink.fd.take()) else {
        return Pause::WouldBlock;
    };
    let pause = pump_between(source, sink, (from.as_fd(), to.as_fd()), most, tools);
    (source.fd, sink.fd) = (Some(from), Some(to));
    pause
}

fn pump_between(
    source: &mut End,
    sink: &mut End,
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    most: u64,
    tools: &mut Tools<'_>,
) -> Pause {
    let before = sink.sent;
    loop {
        if let Some(pause) = drain(sink, to, tools.pool).or_else(|| drain_pipe(sink, to)) {
            return pause;
        }
        if source.ended {
            return end(source, sink, to);
        }
        if !source.readable || !sink.writable {
            return Pause::WouldBlock;
        }
        let left = most.saturating_sub(sink.sent - before);
        if left == 0 {
            return Pause::Spent;
        }
        // of a call for less than this its cost would be the larger part
        let left = left.max(LEAST) as usize;
        if source.unread == Unread::Limited && sink.sent >= TAKEN && most == TURN {
            source.unread = Unread::Lifted;
            lift_unread_limit(from);
        }
        let moved = match splice(source, sink, from, left, tools.pipes) {
            Some(pause) => pause,
            None => copy(source, sink, (from, to), left, tools),
        };
        if let Err(pause) = moved {
            return pause;
        }
    }
}

/// Fills the sink's pipe. `None`: it has none, or only a read can tell what waits.
fn splice(
    source: &mut End,
    sink: &mut End,
    from: BorrowedFd<'_>,
    most: usize,
    pipes: &mut Pipes,
) -> Option<Result<(), Pause>> {
    let pipe = sink.pipe.as_ref()?;
    match pipe.fill(from, PIPE.min(most)) {
        // the end, or urgent data: a read tells them apart
        Ok(0) => None,
        Ok(n) => {
            sink.piped = n as u32;
            sink.turning = if n < SMALL { sink.turning.saturating_add(1) } else { 0 };
            Some(Ok(()))
        }
        // the pipe was empty, so it is the socket that has nothing, unless urgent data stands first
        Err(e) if e.kind() == ErrorKind::WouldBlock && source.urgent => None,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            source.readable = false;
            if sink.turning >= SMALL_SPLICES {
                sink.release_pipe(pipes);
            }
            Some(Err(Pause::WouldBlock))
        }
        Err(e) if e.kind() == ErrorKind::Interrupted => Some(Ok(())),
        Err(e) if e.kind() == ErrorKind::InvalidInput => {
            pipes.refuse();
            sink.release_pipe(pipes);
            None
        }
        Err(e) => Some(Err(Pause::SourceFailed(e))),
    }
}

/// Reads once and writes once.
fn copy(
    source: &mut End,
    sink: &mut End,
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    most: usize,
    tools: &mut Tools<'_>,
) -> Result<(), Pause> {
    let scratch = &mut tools.scratch[..CHUNK.min(most)];
    let by_peek = tools.pool.is_empty();
    let read = if by_peek { socket::peek(from, scratch) } else { socket::receive(from, scratch) };
    let n = match read {
        Ok(0) => {
            source.ended = true;
            return Ok(());
        }
        Ok(n) => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            source.readable = false;
            return Err(Pause::WouldBlock);
        }
        Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
        Err(e) => return Err(Pause::SourceFailed(e)),
    };
    let written = write(sink, to, &scratch[..n]).map_err(Pause::SinkFailed)?;
    if by_peek {
        tools.stats.pool_empty += 1;
        if written > 0 {
            socket::discard(from, written).map_err(Pause::SourceFailed)?;
        }
        return Ok(());
    }
    if written < n {
        // the pool was not empty before the read, and nobody has taken from it since
        sink.held = tools.pool.take(&scratch[written..n]);
    }
    if n >= LARGE && source.unread == Unread::Free {
        source.unread = limit_unread(from);
    }
    if n < scratch.len() && !source.read_closed && !source.urgent {
        // all that had come was read; what comes later raises the edge again
        source.readable = false;
    }
    if sink.pipe.is_none() {
        sink.turning = if n >= LARGE { sink.turning.saturating_add(1) } else { 0 };
        if sink.turning >= LARGE_READS {
            sink.turning = 0;
            limit_unsent(sink, to);
            sink.pipe = tools.pipes.take();
        }
    }
    Ok(())
}

/// Writes what is in the sink's pipe; `None` if nothing is left.
fn drain_pipe(sink: &mut End, to: BorrowedFd<'_>) -> Option<Pause> {
    let pipe = sink.pipe.as_ref()?;
    while sink.piped > 0 {
        if !sink.writable {
            return Some(Pause::WouldBlock);
        }
        match pipe.drain(to, sink.piped as usize) {
            Ok(n) => {
                sink.piped -= (n as u32).min(sink.piped);
                sink.sent += n as u64;
                if sink.unsent == Unsent::Limited && sink.sent >= FLOWING {
                    sink.unsent = Unsent::Lifted;
                    lift_unsent_limit(to);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => sink.writable = false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Some(Pause::SinkFailed(e)),
        }
    }
    None
}

/// Writes what is held for `sink`; `None` if nothing is left.
pub(super) fn drain(sink: &mut End, to: BorrowedFd<'_>, pool: &mut Pool) -> Option<Pause> {
    while let Some(mut chunk) = sink.held.take() {
        if !sink.writable {
            sink.held = Some(chunk);
            return Some(Pause::WouldBlock);
        }
        match write(sink, to, pool.bytes(&chunk)) {
            Ok(n) => {
                chunk.advance(n);
                if chunk.is_empty() {
                    pool.give_back(chunk);
                } else {
                    sink.held = Some(chunk);
                }
            }
            Err(e) => {
                pool.give_back(chunk);
                return Some(Pause::SinkFailed(e));
            }
        }
    }
    None
}

/// Writes once; 0 if the sink has no room. A short write means that it is full.
pub(super) fn write(sink: &mut End, to: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    if !sink.nodelay && sink.sent > 0 {
        // only a second small write can be held back by the first (RFC 896), so most short connections never pay this call
        sink.nodelay = true;
        if let Err(e) = sockopt::set_nodelay(to) {
            log::debug!("cannot set TCP_NODELAY: {e}");
        }
    }
    loop {
        match socket::send(to, bytes) {
            Ok(n) => {
                sink.writable = n == bytes.len();
                sink.sent += n as u64;
                if !sink.writable {
                    limit_unsent(sink, to);
                }
                return Ok(n);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                sink.writable = false;
                return Ok(0);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Most bytes that wait unsent in a socket to a peer that takes them slowly or not at all: two reads' worth.
const UNSENT_MAX: u32 = PIPE as u32;

/// [`sockopt::set_unsent_limit`]; without it a peer that does not read costs megabytes of kernel memory.
pub fn limit_unsent_or_warn(fd: BorrowedFd<'_>) {
    if let Err(e) = sockopt::set_unsent_limit(fd, UNSENT_MAX) {
        log::debug!("cannot set TCP_NOTSENT_LOWAT: {e}");
    }
}

/// The same for a connection of ours once it has much to send: those that end sooner are spared the call.
fn limit_unsent(sink: &mut End, to: BorrowedFd<'_>) {
    if sink.unsent == Unsent::Free {
        sink.unsent = Unsent::Limited;
        limit_unsent_or_warn(to);
    }
}

/// Bytes that a peer must have taken before it may have as much waiting as the kernel lets it: bulk at full speed costs
/// nearly twice the processor time while a limit makes it stop and start. More than what a peer's own kernel buffers for it
/// (`tcp_rmem`, 6 MB by default), so whoever has taken this much does read.
const FLOWING: u64 = 16 * 1024 * 1024;

fn lift_unsent_limit(fd: BorrowedFd<'_>) {
    if let Err(e) = sockopt::set_unsent_limit(fd, 0) {
        log::debug!("cannot lift TCP_NOTSENT_LOWAT: {e}");
    }
}

/// Bytes that wait unread in a socket whose peer has sent much, before the other side has shown that it reads; the kernel
/// allows twice that for its own needs.
const UNREAD_MAX: u32 = 160 * 1024;

/// Bytes that the other side must have taken to show that it reads: more than go into its window as it is at first, and
/// into our socket to it.
const TAKEN: u64 = 384 * 1024;

/// Limits what waits unread, if that can be lifted again: for a flow, the kernel tunes its window best.
fn limit_unread(fd: BorrowedFd<'_>) -> Unread {
    // does nothing yet but tell whether this kernel knows it
    match sockopt::lift_unread_limit(fd).and_then(|()| sockopt::set_unread_limit(fd, UNREAD_MAX)) {
        Ok(()) => Unread::Limited,
        Err(e) => {
            log::debug!("what waits unread is not limited: {e}");
            Unread::Lifted
        }
    }
}

fn lift_unread_limit(fd: BorrowedFd<'_>) {
    if let Err(e) = sockopt::lift_unread_limit(fd) {
        log::debug!("cannot lift SO_RCVBUF: {e}");
    }
}

/// Passes the source's FIN on. Where the other direction is over already, the close that follows does that by itself.
pub(super) fn end(source: &End, sink: &mut End, to: BorrowedFd<'_>) -> Pause {
    if !sink.shut {
        sink.shut = true;
        let close_follows = sink.ended && source.shut;
        if !close_follows && let Err(e) = socket::shutdown_write(to) {
            return Pause::SinkFailed(e);
        }
    }
    Pause::Ended
}

#[cfg(test)]
mod tests;

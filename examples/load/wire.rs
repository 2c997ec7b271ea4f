//! What client and server say to each other, and the sockets for it.

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt};
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Length of what a client asks and of what is answered to it.
pub(crate) const MESSAGE: usize = 128;

/// Bytes that are read and written at a time.
pub(crate) const BUFFER: usize = 65_536;

/// What a client wants of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// One message back.
    Answer,
    /// So many bytes come, and then a message back.
    Upload(u64),
    /// So many bytes back, at this many a second, if not 0.
    Download(u64, u64),
}

impl Wish {
    /// As a message.
    pub(crate) fn message(self) -> [u8; MESSAGE] {
        let (op, bytes, rate) = match self {
            Wish::Answer => (b'a', 0, 0),
            Wish::Upload(bytes) => (b'u', bytes, 0),
            Wish::Download(bytes, rate) => (b'd', bytes, rate),
        };
        let mut message = [0; MESSAGE];
        message[0] = op;
        message[8..16].copy_from_slice(&bytes.to_be_bytes());
        message[16..24].copy_from_slice(&rate.to_be_bytes());
        message
    }

    /// From a message.
    pub(crate) fn read(message: &[u8; MESSAGE]) -> Option<Wish> {
        let number = |at: usize| message[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        match message[0] {
            b'a' => Some(Wish::Answer),
            b'u' => Some(Wish::Upload(number(8)?)),
            b'd' => Some(Wish::Download(number(8)?, number(16)?)),
            _ => None,
        }
    }
}

/// Bytes that are still to be written, at a rate.
pub(crate) struct Stream {
    left: u64,
    rate: u64,
    began: Instant,
    sent: u64,
}

/// Why [`Stream::push`] stopped.
pub(crate) enum Stop {
    /// The socket is full.
    Full,
    /// It would be too fast; try again in a millisecond.
    TooFast,
    /// All is written.
    Done,
}

impl Stream {
    /// `bytes` at `rate` bytes a second, 0: as fast as can be.
    pub(crate) fn new(bytes: u64, rate: u64) -> Stream {
        Stream { left: bytes, rate, began: Instant::now(), sent: 0 }
    }

    /// Writes what may be written.
    pub(crate) fn push(&mut self, to: &mut TcpStream, bytes: &[u8]) -> io::Result<Stop> {
        while self.left > 0 {
            let mut most = self.left.min(bytes.len() as u64);
            if self.rate > 0 {
                let due = (self.began.elapsed().as_micros() as u64).saturating_mul(self.rate) / 1_000_000;
                most = most.min(due.saturating_sub(self.sent));
                if most == 0 {
                    return Ok(Stop::TooFast);
                }
            }
            match to.write(&bytes[..most as usize]) {
                Ok(n) => {
                    self.left -= n as u64;
                    self.sent += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Stop::Full),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Stop::Done)
    }
}

/// How often paced streams are looked after.
pub(crate) const PACE: Duration = Duration::from_millis(1);

/// Starts to connect.
pub(crate) fn begin(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(fd.into()),
        Err(e) => Err(e.into()),
    }
}

/// Watches `fd` for everything, by its edges.
pub(crate) fn watch(poll: &Poll, fd: &impl AsRawFd, token: usize) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), Token(token), Interest::READABLE | Interest::WRITABLE)
}

/// Things by number, so that an event names one.
pub(crate) struct Table<T> {
    things: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Table<T> {
    pub(crate) fn new() -> Table<T> {
        Table { things: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, thing: T) -> usize {
        let place = self.free.pop().unwrap_or(self.things.len());
        if place == self.things.len() {
            self.things.push(None);
        }
        self.things[place] = Some(thing);
        place
    }

    pub(crate) fn get(&mut self, place: usize) -> Option<&mut T> {
        self.things.get_mut(place)?.as_mut()
    }

    pub(crate) fn remove(&mut self, place: usize) -> Option<T> {
        let thing = self.things.get_mut(place)?.take();
        if thing.is_some() {
            self.free.push(place);
        }
        thing
    }
}

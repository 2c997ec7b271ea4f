//! Non-blocking sockets: open, bind, listen, accept, connect, and moving bytes.

use super::sockaddr::{CAPACITY, RawAddr};
use super::{cvt, cvt_len};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: SocketAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub(crate) fn raw(self) -> libc::c_int {
        match self {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        }
    }
}

/// Transport of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `SOCK_STREAM`.
    Tcp,
    /// `SOCK_DGRAM`.
    Udp,
}

/// Opens a non-blocking, close-on-exec socket.
///
/// # Errors
/// `EAFNOSUPPORT` on a kernel without the family; `EMFILE`, `ENFILE`, `ENOBUFS` when resources run out.
pub fn open(family: Family, transport: Transport) -> io::Result<OwnedFd> {
    let kind = match transport {
        Transport::Tcp => libc::SOCK_STREAM,
        Transport::Udp => libc::SOCK_DGRAM,
    };
    open_protocol(family, kind, 0)
}

pub(crate) fn open_protocol(family: Family, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(family.raw(), kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds `fd` to `address`.
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL` (not ours and the socket not transparent), `EACCES` (port below 1024).
pub fn bind(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddr::new(address);
    // SAFETY: `fd` is open, and the kernel reads `len` bytes of an address that lives through the call.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr(), raw.len()) }).map(drop)
}

/// Makes `fd` a listener with room for `backlog` connections (the kernel caps it at `net.core.somaxconn`).
///
/// # Errors
/// `EADDRINUSE` if another socket listens on the same address.
pub fn listen(fd: BorrowedFd<'_>, backlog: u16) -> io::Result<()> {
    // SAFETY: no pointers; `fd` is open.
    cvt(unsafe { libc::listen(fd.as_raw_fd(), backlog.into()) }).map(drop)
}

/// Takes one connection off a listener's queue, non-blocking and close-on-exec, with its peer.
///
/// # Errors
/// `EAGAIN` when none waits; see [`super::accept_may_go_on`] and [`super::out_of_resources`].
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut peer = RawAddr::empty();
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let (address, len) = (peer.as_mut_ptr(), &raw mut *peer.len_mut());
    // SAFETY: `fd` is open; the kernel writes at most `len` bytes into `peer`, which lives through the call.
    let new = cvt(unsafe { libc::accept4(fd.as_raw_fd(), address, len, flags) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else owns it.
    let new = unsafe { OwnedFd::from_raw_fd(new) };
    let peer = peer.get().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    Ok((new, peer))
}

/// The address that a socket is bound to. For a connection that TPROXY delivered this is its original destination.
///
/// # Errors
/// Only what the kernel says of a broken descriptor.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut local = RawAddr::empty();
    let (address, len) = (local.as_mut_ptr(), &raw mut *local.len_mut());
    // SAFETY: `fd` is open; the kernel writes at most `len` bytes into `local`, which lives through the call.
    cvt(unsafe { libc::getsockname(fd.as_raw_fd(), address, len) })?;
    local.get().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// Starts to connect. True: connected at once; false: under way, and the socket becomes writable when it is decided.
///
/// # Errors
/// `ENETUNREACH`, `EACCES` (a `prohibit` route) and the like, at once; later ones by [`super::sockopt::take_error`].
pub fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<bool> {
    let raw = RawAddr::new(to);
    // SAFETY: `fd` is open, and the kernel reads `len` bytes of an address that lives through the call.
    match cvt(unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr(), raw.len()) }) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Reads what has arrived; 0 is the end of the stream.
///
/// # Errors
/// `EAGAIN` when nothing waits; `ECONNRESET`.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_flags(fd, buffer, 0)
}

/// Reads without taking: the bytes stay in the socket.
///
/// # Errors
/// As [`receive`].
pub fn peek(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_flags(fd, buffer, libc::MSG_PEEK)
}

fn receive_flags(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: `fd` is open; the kernel writes at most buffer.len() bytes into a buffer that is ours alone for the call.
    cvt_len(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// Takes `len` bytes of a TCP stream that [`peek`] has shown, and throws them away in the kernel (`MSG_TRUNC`, tcp(7)).
///
/// # Errors
/// As [`receive`].
pub fn discard(fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    // SAFETY: `fd` is open; with MSG_TRUNC on a TCP socket the kernel writes nothing, so a null buffer is allowed.
    cvt_len(unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), len, libc::MSG_TRUNC) })
}

/// Writes as much as the socket takes. Never raises SIGPIPE.
///
/// # Errors
/// `EAGAIN` when it takes nothing; `EPIPE`, `ECONNRESET`.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `fd` is open; the kernel reads bytes.len() bytes of a live slice.
    cvt_len(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

/// Sends FIN and keeps the other direction open.
///
/// # Errors
/// `ENOTCONN` if the peer has reset the connection.
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers; `fd` is open.
    cvt(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Whether `ip` is an address of this host, asked by binding a socket of no use to it.
pub fn is_local_address(ip: std::net::IpAddr) -> bool {
    let address = SocketAddr::new(ip, 0);
    open(Family::of(address), Transport::Udp).and_then(|fd| bind(std::os::fd::AsFd::as_fd(&fd), address)).is_ok()
}

const _: () = assert!(CAPACITY == 28);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let a = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (b, _) = listener.accept().unwrap();
        (a.into(), b.into())
    }

    #[test]
    fn peeked_bytes_stay_until_they_are_discarded() {
        let (a, b) = pair();
        assert_eq!(send(a.as_fd(), b"hello").unwrap(), 5);
        let mut buffer = [0; 8];
        assert_eq!(peek(b.as_fd(), &mut buffer).unwrap(), 5);
        assert_eq!(discard(b.as_fd(), 2).unwrap(), 2);
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..3], b"llo");
    }

    #[test]
    fn a_reset_on_close_reaches_the_peer_as_a_reset() {
        let (a, b) = pair();
        super::super::sockopt::set_reset_on_close(a.as_fd()).unwrap();
        drop(a);
        let mut buffer = [0; 8];
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_local_address_is_told_from_a_foreign_one() {
        assert!(is_local_address("127.0.0.1".parse().unwrap()));
        assert!(!is_local_address("203.0.113.9".parse().unwrap()));
    }
}

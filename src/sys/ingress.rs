//! Which interface a flow came in by: `IP_PKTINFO` (ip(7)) and `IPV6_RECVPKTINFO` (RFC 3542 section 6).

use super::cvt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `IP_PKTOPTIONS`, linux/in.h.
const IP_PKTOPTIONS: libc::c_int = 9;

/// `IPV6_2292PKTOPTIONS`, linux/in6.h.
const IPV6_2292PKTOPTIONS: libc::c_int = 6;

/// Whether datagrams of this socket, and connections of this listener, tell by which interface they came in.
///
/// # Errors
/// `ENOPROTOOPT` for the family that the socket does not serve.
pub fn set_tells(fd: BorrowedFd<'_>, v4: bool, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    let (level, name) = if v4 { (libc::SOL_IP, libc::IP_PKTINFO) } else { (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO) };
    // SAFETY: `fd` is borrowed, so open; the kernel reads size_of_val(&on) bytes and keeps no pointer.
    cvt(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const on).cast(), size_of_val(&on) as libc::socklen_t)
    })
    .map(drop)
}

/// The number of the interface by which an accepted connection came in; its listener was told to tell.
///
/// # Errors
/// `ENOPROTOOPT`; `NotFound` if the kernel does not say.
pub fn of_connection(fd: BorrowedFd<'_>, v4: bool) -> io::Result<u32> {
    #[repr(C, align(8))]
    struct Buffer([u8; 128]);
    let mut buffer = Buffer([0; 128]);
    let mut len = size_of_val(&buffer) as libc::socklen_t;
    let (level, name) = if v4 { (libc::SOL_IP, IP_PKTOPTIONS) } else { (libc::SOL_IPV6, IPV6_2292PKTOPTIONS) };
    // SAFETY: `fd` is open; the kernel writes at most `len` bytes into `buffer`, and their number into `len`.
    cvt(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut buffer).cast(), &raw mut len) })?;
    // SAFETY: msghdr is plain integers and pointers, for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = (&raw mut buffer).cast();
    header.msg_controllen = len as _;
    // SAFETY: the control messages that the kernel wrote lie within `len` bytes of `buffer`, which lives through the call.
    unsafe { among(&header) }.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The interface among the control messages of `header`.
///
/// # Safety
/// `header` was filled by the kernel, and what its `msg_control` leads to lives.
pub(in crate::sys) unsafe fn among(header: &libc::msghdr) -> Option<u32> {
    // SAFETY: the caller's promise; CMSG_FIRSTHDR and CMSG_NXTHDR stay within msg_controllen (cmsg(3)).
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let at = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_IP, libc::IP_PKTINFO) => {
                    return Some(at.cast::<libc::in_pktinfo>().read_unaligned().ipi_ifindex as u32);
                }
                (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    return Some(at.cast::<libc::in6_pktinfo>().read_unaligned().ipi6_ifindex as u32);
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn a_connection_over_loopback_came_in_by_loopback() {
        for (address, v4) in [("127.0.0.1:0", true), ("[::1]:0", false)] {
            let listener = TcpListener::bind(address).unwrap();
            set_tells(listener.as_fd(), v4, true).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(of_connection(accepted.as_fd(), v4).unwrap(), 1, "{address}");
        }
    }

    #[test]
    fn who_was_not_told_to_tell_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(of_connection(accepted.as_fd(), true).is_err());
    }
}

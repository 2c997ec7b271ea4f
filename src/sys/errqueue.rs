//! The error queue of a UDP socket: which destination answered with which ICMP error (`IP_RECVERR`, ip(7)).

use super::cvt_len;
use super::sockaddr::RawAddr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One ICMP error about a datagram that this socket has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram was going.
    pub destination: SocketAddr,
    /// Type and code of the message, in the numbers of the destination's family.
    pub kind: u8,
    /// See `kind`.
    pub code: u8,
    /// The next hop's MTU of a "fragmentation needed" or "packet too big", else 0.
    pub mtu: u32,
}

/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6`, linux/errqueue.h.
const FROM_ICMP: [u8; 2] = [2, 3];

/// Takes the next error that an ICMP message caused; those that the host itself raised are passed over.
///
/// # Errors
/// `EAGAIN` when the queue is empty.
pub fn take(fd: BorrowedFd<'_>) -> io::Result<IcmpError> {
    #[repr(C, align(8))]
    struct Control([u8; 256]);
    // bounded, should a kernel ever return the same entry again
    for _ in 0..MOST_PASSED_OVER {
        let mut control = Control([0; 256]);
        let mut name = RawAddr::empty();
        // SAFETY: msghdr is plain integers and pointers, for which all zeroes is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = name.len();
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: every pointer in `message` leads to something that lives through the call, with its true length; no data
        // buffer is given, so the returned part of the datagram is cut to nothing.
        cvt_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) })?;
        name.set_len(message.msg_namelen);
        // SAFETY: recvmsg has filled `message`; CMSG_FIRSTHDR and CMSG_NXTHDR stay within its control buffer (cmsg(3)).
        let found = unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const message);
            loop {
                if at.is_null() {
                    break None;
                }
                if matches!(
                    ((*at).cmsg_level, (*at).cmsg_type),
                    (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
                ) {
                    break Some(libc::CMSG_DATA(at).cast::<libc::sock_extended_err>().read_unaligned());
                }
                at = libc::CMSG_NXTHDR(&raw const message, at);
            }
        };
        if let (Some(error), Some(destination)) = (found, name.get())
            && FROM_ICMP.contains(&error.ee_origin)
        {
            return Ok(IcmpError { destination, kind: error.ee_type, code: error.ee_code, mtu: error.ee_info });
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Errors that are no ICMP messages, passed over in one call.
const MOST_PASSED_OVER: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Family, Transport, open};
    use crate::sys::{dgram, sockopt};
    use std::os::fd::AsFd;

    #[test]
    fn a_closed_port_is_named_by_the_error_queue() {
        for (family, destination) in [(Family::V4, "127.0.0.1:9"), (Family::V6, "[::1]:9")] {
            let destination: SocketAddr = destination.parse().unwrap();
            let fd = open(family, Transport::Udp).unwrap();
            match family {
                Family::V4 => sockopt::set_ipv4_receive_errors(fd.as_fd()).unwrap(),
                Family::V6 => sockopt::set_ipv6_receive_errors(fd.as_fd()).unwrap(),
            }
            dgram::send(fd.as_fd(), Some(destination), b"", b"x").unwrap();
            let error = take(fd.as_fd()).unwrap();
            assert_eq!(error.destination, destination);
            let port_unreachable = if family == Family::V4 { (3, 3) } else { (1, 4) };
            assert_eq!((error.kind, error.code), port_unreachable);
            assert_eq!(take(fd.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

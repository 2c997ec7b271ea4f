//! Raw sockets that only send: UDP from any source address and port, and ICMP errors.
//!
//! One such socket per family serves every foreign address and port, where bound sockets would need a descriptor each and
//! clash with local services. The kernel still writes the IP header and fragments (no `IP_HDRINCL`), so no MTU limits it.

use super::dgram::control::write_source;
use super::dgram::io_vector;
use super::sockaddr::RawAddr;
use super::socket::{Family, bind, open_protocol};
use super::{cvt_len, sockopt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Opens a raw UDP socket that can send from foreign addresses, marked with `mark`.
///
/// It is bound to an address to which nothing is ever sent, else the kernel would queue it a copy of every UDP packet of the
/// host: to one of 127/8 (always local, which kernels before 5.17 ask for), and to one of the discard prefix of RFC 6666.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`; `EAFNOSUPPORT`.
pub fn open_udp(family: Family, mark: u32) -> io::Result<OwnedFd> {
    let fd = open_protocol(family, libc::SOCK_RAW, libc::IPPROTO_UDP)?;
    sockopt::set_mark(fd.as_fd(), mark)?;
    match family {
        Family::V4 => {
            sockopt::set_ipv4_transparent(fd.as_fd())?;
            sockopt::set_ipv4_fragment(fd.as_fd())?;
            bind(fd.as_fd(), SocketAddr::from(([127, 84, 80, 88], 0)))?;
        }
        Family::V6 => {
            sockopt::set_ipv6_transparent(fd.as_fd())?;
            sockopt::set_ipv6_fragment(fd.as_fd())?;
            // the UDP checksum stands at octet 6 of its header (RFC 768)
            sockopt::set_ipv6_checksum(fd.as_fd(), 6)?;
            bind(fd.as_fd(), SocketAddr::from(([0x100, 0, 0, 0, 0, 0, 0x5450, 0x5258], 0)))?;
        }
    }
    Ok(fd)
}

/// Opens a raw ICMP or ICMPv6 socket that receives nothing, marked with `mark`.
///
/// # Errors
/// As [`open_udp`].
pub fn open_icmp(family: Family, mark: u32) -> io::Result<OwnedFd> {
    let protocol = match family {
        Family::V4 => libc::IPPROTO_ICMP,
        Family::V6 => libc::IPPROTO_ICMPV6,
    };
    let fd = open_protocol(family, libc::SOCK_RAW, protocol)?;
    sockopt::set_mark(fd.as_fd(), mark)?;
    match family {
        Family::V4 => sockopt::set_icmp_receive_nothing(fd.as_fd())?,
        Family::V6 => sockopt::set_icmpv6_receive_nothing(fd.as_fd())?,
    }
    Ok(fd)
}

#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends `header` and `payload` as one packet to the host `to`; `from`, if given, is its source address, whether ours or not
/// (`IP_PKTINFO`'s `ipi_spec_dst`, ip(7); `IPV6_PKTINFO`, RFC 3542 section 6).
///
/// # Errors
/// `EAGAIN` when the socket's buffer is full; `EMSGSIZE`; `ENETUNREACH` and what else routing says.
pub fn send(fd: BorrowedFd<'_>, from: Option<IpAddr>, to: IpAddr, header: &[u8], payload: &[u8]) -> io::Result<usize> {
    // a raw socket's address has no port
    let mut address = RawAddr::new(SocketAddr::new(to, 0));
    let mut vectors = [io_vector(header), io_vector(payload)];
    let mut control = Control([0; 64]);
    // SAFETY: msghdr is plain integers and pointers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_mut_ptr().cast();
    message.msg_namelen = address.len();
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    if let Some(from) = from {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of_val(&control) as _;
        message.msg_controllen = write_source(&message, 0, from) as _;
    }
    // SAFETY: every pointer in `message` leads to something that lives through the call, and the kernel only reads.
    cvt_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

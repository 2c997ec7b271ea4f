//! Socket options, one function each, named after what they do.

use super::cvt;
use super::sockaddr::RawAddr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

fn set<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `fd` is borrowed, so open for the whole call; the kernel reads size_of::<T>() bytes of a live value and keeps
    // no pointer to it.
    cvt(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), size_of::<T>() as libc::socklen_t)
    })
    .map(drop)
}

fn set_int(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set(fd, level, name, &value)
}

/// Lets a v4 socket bind to, and send from, addresses that this host does not own, and makes it a target of `tproxy`.
/// Set before bind. `IP_TRANSPARENT`, ip(7).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` or `CAP_NET_RAW`.
pub fn set_ipv4_transparent(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IP, libc::IP_TRANSPARENT, 1)
}

/// The twin of [`set_ipv4_transparent`] for v6 sockets (`IPV6_TRANSPARENT`, linux/in6.h). A dual-stack socket needs both.
///
/// # Errors
/// `EPERM` as there; `ENOPROTOOPT` on a v4 socket.
pub fn set_ipv6_transparent(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)
}

/// A bind to port 0 leaves the choice to connect, which knows the destination: one source address then has its ports once for
/// each destination. `IP_BIND_ADDRESS_NO_PORT`, ip(7); it serves v6 sockets as well.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 4.2.
pub fn set_bind_address_no_port(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// The fwmark of all packets that this socket sends: `SO_MARK`, socket(7).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` (from Linux 5.17 `CAP_NET_RAW` serves too).
pub fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// Packets leave by this interface alone, whatever the routes say: `SO_BINDTODEVICE`, socket(7).
///
/// # Errors
/// `ENODEV`: there is none of that name; `EPERM` without `CAP_NET_RAW` (before Linux 5.7, or if it is bound already).
pub fn bind_to_device(fd: BorrowedFd<'_>, device: &str) -> io::Result<()> {
    let len = device.len() as libc::socklen_t;
    // SAFETY: `fd` is borrowed, so open for the whole call; the kernel reads `len` bytes of `device`, which need not end in
    // NUL, and keeps no pointer to them.
    cvt(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_ptr().cast(), len)
    })
    .map(drop)
}

/// `SO_REUSEADDR`: a listener can be bound again while connections of its predecessor linger.
pub fn set_reuse_address(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

/// `SO_REUSEPORT`: while both have it set, this process can bind a second socket to the port of this one. It may be set
/// after the bind.
pub fn set_reuse_port(fd: BorrowedFd<'_>, reuse: bool) -> io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, reuse.into())
}

/// `IPV6_V6ONLY`: false makes a v6 wildcard socket serve v4 as well.
pub fn set_v6_only(fd: BorrowedFd<'_>, only: bool) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_V6ONLY, only.into())
}

/// Each v4 datagram comes with its original destination: `IP_RECVORIGDSTADDR`, ip(7). Works on dual-stack sockets.
pub fn set_receive_ipv4_orig_dst(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)
}

/// Each v6 datagram comes with its original destination: `IPV6_RECVORIGDSTADDR`, linux/in6.h.
pub fn set_receive_ipv6_orig_dst(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)
}

/// Where a connection that nat REDIRECT or DNAT delivered was going, by connection tracking: `SO_ORIGINAL_DST`
/// (linux/netfilter_ipv4.h), and `IP6T_SO_ORIGINAL_DST` for v6. A v4 connection of a dual-stack listener is asked by the first.
///
/// # Errors
/// `ENOENT` if connection tracking doesn't know the connection (any more); `ENOPROTOOPT` without nf_conntrack.
pub fn original_destination(fd: BorrowedFd<'_>, v4: bool) -> io::Result<SocketAddr> {
    const SO_ORIGINAL_DST: libc::c_int = 80;
    let level = if v4 { libc::SOL_IP } else { libc::SOL_IPV6 };
    let mut address = RawAddr::empty();
    let (at, len) = (address.as_mut_ptr(), &raw mut *address.len_mut());
    // SAFETY: `fd` is borrowed, so open; the kernel writes at most `len` bytes into `address`, which lives through the call.
    cvt(unsafe { libc::getsockopt(fd.as_raw_fd(), level, SO_ORIGINAL_DST, at.cast(), len) })?;
    address.get().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// ICMP errors are queued with the address that they concern: `IP_RECVERR`, ip(7). For unconnected v4 sockets.
pub fn set_ipv4_receive_errors(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IP, libc::IP_RECVERR, 1)
}

/// `IPV6_RECVERR`, ipv6(7).
pub fn set_ipv6_receive_errors(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVERR, 1)
}

/// Datagrams larger than the path's MTU are fragmented, never refused: `IP_PMTUDISC_DONT`, ip(7).
pub fn set_ipv4_fragment(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
}

/// `IPV6_PMTUDISC_DONT`, ipv6(7).
pub fn set_ipv6_fragment(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
}

/// The kernel writes the checksum at `offset` of what a raw v6 socket sends: `IPV6_CHECKSUM`, RFC 3542 section 3.1.
pub fn set_ipv6_checksum(fd: BorrowedFd<'_>, offset: libc::c_int) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_CHECKSUM, offset)
}

/// Small writes go out at once: `TCP_NODELAY`, tcp(7). What one side sent in two segments must not wait for an answer.
pub fn set_nodelay(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// The socket takes no more while `bytes` wait in it that have not been sent once: `TCP_NOTSENT_LOWAT`, tcp(7). What is under
/// way to the peer does not count, so a long way is filled as ever, while a peer that does not read costs little memory.
/// 0: what `net.ipv4.tcp_notsent_lowat` says, by default no limit.
pub fn set_unsent_limit(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_TCP, TCP_NOTSENT_LOWAT, bytes as libc::c_int)
}

/// What [`set_unsent_limit`] has set, 0 where nothing has.
#[cfg(test)]
pub fn unsent_limit(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    let mut len = size_of_val(&bytes) as libc::socklen_t;
    let (to, name) = (libc::IPPROTO_TCP, TCP_NOTSENT_LOWAT);
    // SAFETY: `fd` is borrowed, so open; the kernel writes at most `len` bytes into `bytes`, which lives through the call.
    cvt(unsafe { libc::getsockopt(fd.as_raw_fd(), to, name, (&raw mut bytes).cast(), &raw mut len) })?;
    Ok(bytes as u32)
}

/// No more than twice `bytes` are kept unread: `SO_RCVBUF`, socket(7), which ends the kernel's own tuning of the window until
/// [`lift_unread_limit`].
pub fn set_unread_limit(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes as libc::c_int)
}

/// The kernel tunes the window again: `SO_BUF_LOCK`, asm-generic/socket.h.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.15.
pub fn lift_unread_limit(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK, 0)
}

/// The same value everywhere but on PA-RISC and SPARC.
const SO_BUF_LOCK: libc::c_int = 72;

/// linux/tcp.h; libc does not have it for every target.
const TCP_NOTSENT_LOWAT: libc::c_int = 25;

/// Finds a peer that vanished: first probe after `idle`, then every `interval`, gone after `count` without an answer.
/// `SO_KEEPALIVE` and its `TCP_KEEP*`, tcp(7). Whole seconds.
pub fn set_keepalive(fd: BorrowedFd<'_>, idle: Duration, interval: Duration, count: u8) -> io::Result<()> {
    let seconds = |span: Duration| libc::c_int::try_from(span.as_secs()).unwrap_or(libc::c_int::MAX);
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle))?;
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(interval))?;
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, count.into())?;
    set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// The next close sends RST instead of FIN: `SO_LINGER` of zero, socket(7).
pub fn set_reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

/// Blocks every message type that a raw ICMP socket would otherwise receive a copy of: `ICMP_FILTER` (linux/icmp.h), each
/// bit a type. The socket only sends.
pub fn set_icmp_receive_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    const ICMP_FILTER: libc::c_int = 1;
    set(fd, libc::SOL_RAW, ICMP_FILTER, &u32::MAX)
}

/// The same for ICMPv6: `ICMP6_FILTER` (RFC 3542 section 3.2), 256 bits, set means blocked.
pub fn set_icmpv6_receive_nothing(fd: BorrowedFd<'_>) -> io::Result<()> {
    const ICMPV6_FILTER: libc::c_int = 1;
    set(fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &[u32::MAX; 8])
}

/// Takes the pending error of a socket (`SO_ERROR`, socket(7)): why a non-blocking connect failed.
///
/// # Errors
/// The pending error itself.
pub fn take_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut len = size_of_val(&error) as libc::socklen_t;
    // SAFETY: `fd` is borrowed, so open; the kernel writes at most `len` bytes into `error`, which lives through the call.
    cvt(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut len)
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

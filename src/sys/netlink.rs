//! A netlink socket: open, send, receive. What the messages mean is said by whoever sends them (`netfilter`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// Which part of the kernel answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Addresses, links, routes, rules: rtnetlink(7).
    Route,
    /// Connection tracking.
    Netfilter,
}

impl Family {
    fn protocol(self) -> SockProtocol {
        match self {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        }
    }
}

/// A blocking netlink socket. For use once in a while, by the helper and by commands; never on the event loop.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket to `family` in this process's network namespace.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel was built without that family.
    pub fn open(family: Family) -> io::Result<Netlink> {
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family.protocol())?;
        socket::setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
        Ok(Netlink { fd, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends `message`, which begins with a `struct nlmsghdr`; length and sequence number are filled in here. Returns the
    /// sequence number that the answers carry.
    ///
    /// # Errors
    /// Those of send(2); `EINVAL` for a message shorter than its header.
    pub fn send(&mut self, message: &mut [u8]) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        message.get_mut(0..4).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&length.to_ne_bytes());
        message.get_mut(8..12).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&self.sequence.to_ne_bytes());
        socket::send(self.fd.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// One datagram, which holds one or more messages.
    ///
    /// # Errors
    /// Those of recv(2); `TimedOut` if the kernel says nothing for 5 s, `ENOBUFS` if answers were lost.
    pub fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(n) => return Ok(self.buffer.get(..n).unwrap_or_default()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// What the kernel tells of its own accord about this machine's addresses. Non-blocking, for the event loop.
#[derive(Debug)]
pub struct AddressNews {
    fd: OwnedFd,
    buffer: [u8; NEWS_BYTES],
}

impl AddressNews {
    /// Hears of every address, v4 or v6, that is added or removed in this process's network namespace from now on.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn open() -> io::Result<AddressNews> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))?;
        Ok(AddressNews { fd, buffer: [0; NEWS_BYTES] })
    }

    /// The next messages, one datagram of them.
    ///
    /// # Errors
    /// `WouldBlock` if there is no news; `ENOBUFS` if some was lost.
    pub fn receive(&mut self) -> io::Result<&[u8]> {
        let length = socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        Ok(self.buffer.get(..length).unwrap_or_default())
    }
}

impl AsRawFd for AddressNews {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// An address's message takes about 80 bytes, and the kernel puts one into each datagram.
const NEWS_BYTES: usize = 2048;

/// Bits for bind, from linux/rtnetlink.h.
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

/// A netlink socket for the event loop: nothing waits, nothing is allocated. The kernel answers within the call that asks,
/// so what it has to say can be read at once.
#[derive(Debug)]
pub struct Asker {
    fd: OwnedFd,
}

impl Asker {
    /// Opens it in this process's network namespace. `groups`: what it is told without asking, a bit for each group.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel was built without that family; `EPERM` for a group without `CAP_NET_ADMIN`.
    pub fn open(family: Family, groups: u32) -> io::Result<Asker> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, family.protocol())?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Asker { fd })
    }

    /// Sends whole messages, one after the other.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        socket::send(self.fd.as_raw_fd(), messages, MsgFlags::empty())?;
        Ok(())
    }

    /// One datagram, which holds one or more messages.
    ///
    /// # Errors
    /// `WouldBlock`: there is none (any more). `ENOBUFS`: answers were lost.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let n = socket::recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty())?;
        Ok(buffer.get(..n).unwrap_or_default())
    }
}

impl AsRawFd for Asker {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Links, addresses and policy rules of both families that come, go or change: `RTNLGRP_LINK`, `_IPV4_IFADDR`,
/// `_IPV6_IFADDR`, `_IPV4_RULE`, `_IPV6_RULE` (linux/rtnetlink.h).
pub const CHANGED_LINKS: u32 = 1 | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | 1 << 7 | 1 << 18;

/// Everything that changes in nftables: `NFNLGRP_NFTABLES`.
pub const CHANGED_TABLES: u32 = 1 << 6;

/// Connection tracking tells of every entry that it forgets: `NFNLGRP_CONNTRACK_DESTROY` (linux/netfilter/nfnetlink.h).
pub const FORGOTTEN_FLOWS: u32 = 1 << 2;

/// Longest wait for an answer. The kernel answers at once or not at all.
const ANSWER_SECONDS: i64 = 5;

/// The kernel makes dump datagrams no longer than the longest receive it has seen, 32 KB at most (`af_netlink.c`).
const BUFFER_BYTES: usize = 32 * 1024;

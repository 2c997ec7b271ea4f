//! Datagrams in batches (`recvmmsg`) with their original destination, and single ones out.
//!
//! Every header is restored before each call: the kernel writes the lengths it used into them, and a control buffer that has
//! once carried a v4 address would otherwise be too short for a v6 one for ever.

pub(super) mod control;
pub mod queue;

use super::cvt_len;
use super::sockaddr::{self, CAPACITY, RawAddr, from_in, from_in6};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes between the starts of two slots: the largest datagram (65,507 bytes over v4) fits with room to see that it does.
pub const SLOT: usize = 65_536;

/// Most datagrams that one call takes.
pub const SLOTS: usize = 32;

/// Room for the control messages of one datagram: an original destination, an interface and a receive-offload size.
const CONTROL: usize = 128;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Fixed memory into which datagrams are received, [`SLOTS`] at a time. A slot's pages stay untouched until a datagram is
/// large enough to reach them.
pub struct ReceiveBatch {
    area: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_in6>,
    controls: Vec<Control>,
    /// Headers that the last call may have written to.
    used: usize,
}

/// One received datagram.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was going, if the socket asks for that and the kernel told.
    pub orig_dst: Option<SocketAddr>,
    /// What it carries.
    pub payload: &'a [u8],
    /// It was longer than a slot, so it is not whole.
    pub truncated: bool,
}

impl ReceiveBatch {
    /// Bytes that it takes once every slot has held a large datagram.
    pub const MEMORY_MAX: usize = SLOTS
        * (SLOT
            + size_of::<libc::mmsghdr>()
            + size_of::<libc::iovec>()
            + size_of::<libc::sockaddr_in6>()
            + size_of::<Control>());

    /// Takes all its memory at once; the kernel gives the pages when they are first touched.
    pub fn new() -> ReceiveBatch {
        // SAFETY: all three are plain integers and pointers, for which all zeroes is a value.
        let (header, name, vector) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let mut batch = ReceiveBatch {
            area: vec![0; SLOT * SLOTS],
            headers: vec![header; SLOTS],
            vectors: vec![vector; SLOTS],
            names: vec![name; SLOTS],
            controls: vec![Control([0; CONTROL]); SLOTS],
            used: SLOTS,
        };
        batch.restore();
        batch
    }

    /// What the datagram in `slot` carries, to be changed in place; `None` if it is not whole.
    pub fn payload_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        let header = self.headers.get(slot)?;
        let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        let len = (header.msg_len as usize).min(SLOT);
        whole.then(|| &mut self.area[slot * SLOT..][..len])
    }

    /// `len` octets of what `slot` holds, from `start` on; nothing, if it does not hold so much.
    pub fn part(&self, slot: usize, start: usize, len: usize) -> &[u8] {
        let at = slot * SLOT + start;
        let part = if start + len <= SLOT { self.area.get(at..at + len) } else { None };
        part.unwrap_or_default()
    }

    /// The memory of all slots as one buffer, for whoever reads a stream between two calls of [`Self::receive`].
    pub fn scratch(&mut self) -> &mut [u8] {
        &mut self.area
    }

    fn restore(&mut self) {
        let (vectors, names) = (self.vectors.as_mut_slice(), self.names.as_mut_slice());
        let (headers, controls) = (self.headers.as_mut_slice(), self.controls.as_mut_slice());
        for (slot, memory) in self.area.chunks_exact_mut(SLOT).take(self.used).enumerate() {
            vectors[slot] = io_vector(memory);
            let header = &mut headers[slot].msg_hdr;
            header.msg_name = (&raw mut names[slot]).cast();
            header.msg_namelen = CAPACITY;
            header.msg_iov = &raw mut vectors[slot];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[slot]).cast();
            header.msg_controllen = CONTROL as _;
            header.msg_flags = 0;
        }
        self.used = 0;
    }

    /// Receives what waits, at most [`SLOTS`] datagrams; read them by [`Self::get`].
    ///
    /// # Errors
    /// `EAGAIN` when none waits; a pending socket error (`ECONNREFUSED` and the like), which the call takes.
    pub fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.restore();
        // SAFETY: the pointers in the headers lead into vectors of `self` that are never resized, so they are live and
        // large enough, and `self` is borrowed exclusively; a null timeout is allowed.
        let count = cvt_len(unsafe {
            libc::recvmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), SLOTS as _, 0, std::ptr::null_mut()) as isize
        });
        // on an error the kernel may have written to the first header
        self.used = *count.as_ref().unwrap_or(&1).max(&1);
        count
    }

    /// The datagram in `slot`, below the count that the last [`Self::receive`] returned; `None` if the kernel gave it no
    /// sender. For whoever wants all of it; what each datagram passes asks for what it needs.
    pub fn get(&self, slot: usize) -> Option<Datagram<'_>> {
        Some(Datagram {
            from: self.from(slot)?,
            orig_dst: self.orig_dst(slot),
            payload: self.payload(slot),
            truncated: self.is_truncated(slot),
        })
    }

    /// Who sent the datagram in `slot`.
    pub fn from(&self, slot: usize) -> Option<SocketAddr> {
        sockaddr::read(self.names.get(slot)?, self.headers.get(slot)?.msg_hdr.msg_namelen)
    }

    /// Where it was going, if the socket asks for that and the kernel told.
    pub fn orig_dst(&self, slot: usize) -> Option<SocketAddr> {
        orig_dst(&self.headers.get(slot)?.msg_hdr)
    }

    /// What it carries.
    pub fn payload(&self, slot: usize) -> &[u8] {
        let len = self.headers.get(slot).map_or(0, |header| header.msg_len as usize).min(SLOT);
        self.part(slot, 0, len)
    }

    /// It was longer than a slot, so it is not whole.
    pub fn is_truncated(&self, slot: usize) -> bool {
        self.headers.get(slot).is_some_and(|header| header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0)
    }
}

impl ReceiveBatch {
    /// The number of the interface by which the datagram in `slot` came in, if the socket [tells](super::ingress::set_tells).
    pub fn device(&self, slot: usize) -> Option<u32> {
        let header = &self.headers.get(slot)?.msg_hdr;
        // SAFETY: `header` was filled by recvmmsg, and its control messages lie in `self.controls`.
        unsafe { super::ingress::among(header) }
    }
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// The original destination among the control messages of `header`.
fn orig_dst(header: &libc::msghdr) -> Option<SocketAddr> {
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return None;
    }
    // SAFETY: `header` was filled by recvmmsg, whose control messages lie within msg_controllen; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay in there, and are the documented way to walk them (cmsg(3)).
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let at = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) => {
                    return Some(from_in(&at.cast::<libc::sockaddr_in>().read_unaligned()));
                }
                (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    return Some(from_in6(&at.cast::<libc::sockaddr_in6>().read_unaligned()));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

/// Sends `header` and `payload` as one datagram, to `to` or, on a connected socket, to its peer.
///
/// # Errors
/// `EAGAIN` when the socket's buffer is full; `EMSGSIZE`; a pending socket error of an earlier datagram, which the call takes.
pub fn send(fd: BorrowedFd<'_>, to: Option<SocketAddr>, header: &[u8], payload: &[u8]) -> io::Result<usize> {
    let mut address = to.map(RawAddr::new);
    let mut vectors = [io_vector(header), io_vector(payload)];
    // SAFETY: msghdr is plain integers and pointers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(address) = &mut address {
        message.msg_name = address.as_mut_ptr().cast();
        message.msg_namelen = address.len();
    }
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    // SAFETY: every pointer in `message` leads to something that lives through the call, and the kernel only reads.
    cvt_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

pub(crate) fn io_vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Family, Transport, bind, local_address, open};
    use crate::sys::sockopt;
    use std::os::fd::{AsFd, OwnedFd};

    /// A dual-stack UDP socket that asks for original destinations (which, without TPROXY, are its own address).
    fn dual_stack() -> (OwnedFd, u16) {
        let fd = open(Family::V6, Transport::Udp).unwrap();
        sockopt::set_v6_only(fd.as_fd(), false).unwrap();
        sockopt::set_receive_ipv4_orig_dst(fd.as_fd()).unwrap();
        sockopt::set_receive_ipv6_orig_dst(fd.as_fd()).unwrap();
        bind(fd.as_fd(), "[::]:0".parse().unwrap()).unwrap();
        let port = local_address(fd.as_fd()).unwrap().port();
        (fd, port)
    }

    fn receive_one(batch: &mut ReceiveBatch, fd: &OwnedFd) -> (SocketAddr, Option<SocketAddr>, Vec<u8>) {
        // loopback delivers within the sender's own call, so the datagram is there
        assert_eq!(batch.receive(fd.as_fd()).unwrap(), 1);
        let datagram = batch.get(0).unwrap();
        assert!(!datagram.truncated);
        (datagram.from, datagram.orig_dst, datagram.payload.to_vec())
    }

    #[test]
    fn ipv6_after_ipv4_keeps_its_destination() {
        let (fd, port) = dual_stack();
        let v4 = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let v6 = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let mut batch = ReceiveBatch::new();
        for round in 0..3 {
            v4.send_to(b"four", ("127.0.0.1", port)).unwrap();
            let got = receive_one(&mut batch, &fd);
            assert_eq!(
                got,
                (v4.local_addr().unwrap(), Some(SocketAddr::from(([127, 0, 0, 1], port))), b"four".to_vec())
            );
            v6.send_to(b"six", ("::1", port)).unwrap();
            let got = receive_one(&mut batch, &fd);
            let here = SocketAddr::new("::1".parse().unwrap(), port);
            assert_eq!(got, (v6.local_addr().unwrap(), Some(here), b"six".to_vec()), "round {round}");
        }
    }

    #[test]
    fn the_largest_datagram_and_the_empty_one_arrive_whole() {
        let (fd, port) = dual_stack();
        let sender = open(Family::V4, Transport::Udp).unwrap();
        let to = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut batch = ReceiveBatch::new();
        let large: Vec<u8> = (0..65_507usize).map(|i| (i * 7) as u8).collect();
        for payload in [&large[..], b"", &large[..1]] {
            assert_eq!(send(sender.as_fd(), to, b"", payload).unwrap(), payload.len());
            assert_eq!(receive_one(&mut batch, &fd).2, payload);
        }
    }

    #[test]
    fn header_and_payload_leave_as_one_datagram() {
        let (fd, port) = dual_stack();
        let sender = open(Family::V4, Transport::Udp).unwrap();
        send(sender.as_fd(), Some(SocketAddr::from(([127, 0, 0, 1], port))), b"head", b"body").unwrap();
        assert_eq!(receive_one(&mut ReceiveBatch::new(), &fd).2, b"headbody");
    }

    #[test]
    fn nothing_waiting_is_would_block() {
        let (fd, _) = dual_stack();
        assert_eq!(ReceiveBatch::new().receive(fd.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

//! Datagrams out in batches (`sendmmsg`), straight from the slots into which they were received, with segmentation offload
//! (`UDP_SEGMENT`, udp(7)) where several of one size go the same way.

use super::{Control, ReceiveBatch, SLOTS, io_vector};
use crate::sys::cvt_len;
use crate::sys::sockaddr::RawAddr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

/// Longest header before a payload: one of the PROXY protocol with v6 addresses. (One of SOCKS5 has 22 octets.)
pub const HEADER_MAX: usize = 52;

/// One datagram to send: a header of its own and what a slot holds. Written where it waits, since it is large.
pub struct Outgoing {
    /// The slot of the [`ReceiveBatch`] that holds the payload.
    pub slot: usize,
    /// Where in the slot the payload begins, and how long it is.
    pub part: (usize, usize),
    /// To whom; cleared on a connected socket.
    to: RawAddr,
    /// From which address, if not that of the socket.
    source: Option<IpAddr>,
    header: [u8; HEADER_MAX],
    header_len: u8,
    /// Never a segment of a larger message.
    alone: bool,
}

impl Outgoing {
    fn empty() -> Outgoing {
        let (to, header) = (RawAddr::empty(), [0; HEADER_MAX]);
        Outgoing { slot: 0, part: (0, 0), to, source: None, header, header_len: 0, alone: false }
    }

    /// It goes to `to`; else, to whom the socket is connected.
    pub fn send_to(&mut self, to: &SocketAddr) -> &mut Outgoing {
        self.to.set(to);
        self
    }

    /// It goes to the host `to`, which on a raw socket is all that an address says.
    pub fn send_to_host(&mut self, to: IpAddr) -> &mut Outgoing {
        self.send_to(&SocketAddr::new(to, 0))
    }

    /// With the header before it that `write` puts into the memory for it, whose length it returns.
    pub fn put_header(&mut self, write: impl FnOnce(&mut [u8; HEADER_MAX]) -> usize) -> &mut Outgoing {
        self.header_len = write(&mut self.header).min(HEADER_MAX) as u8;
        self
    }

    /// From `source`, whether ours or not: for raw and transparent sockets.
    pub fn from_source(&mut self, source: IpAddr) -> &mut Outgoing {
        self.source = Some(source);
        self
    }

    /// Never as a segment: on raw sockets, which have no segmentation.
    pub fn alone(&mut self) -> &mut Outgoing {
        self.alone = true;
        self
    }

    /// To whom, if the socket is not connected.
    pub fn to(&self) -> Option<SocketAddr> {
        self.to.get()
    }

    fn len(&self) -> usize {
        usize::from(self.header_len) + self.part.1
    }

    fn goes_with(&self, first: &Outgoing) -> bool {
        self.source == first.source && self.to() == first.to()
    }
}

/// A queue of at most [`SLOTS`] datagrams for one socket, in fixed memory.
pub struct SendQueue {
    /// The memory of those that wait, and of those that once did.
    outgoing: Vec<Outgoing>,
    /// How many wait.
    len: usize,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
    /// How many of `outgoing` each message carries.
    counts: Vec<u8>,
    /// This kernel segments (Linux 4.18 and up).
    segments: bool,
}

/// Most octets of one message with segments: what a datagram may carry.
const MESSAGE_MAX: usize = 65_000;

/// Longest segment that is asked for: larger ones may not fit the MTU of the way, and then the kernel refuses them all.
const SEGMENT_MAX: usize = 1400;

impl SendQueue {
    /// Takes all its memory at once. `segments`: use segmentation offload.
    pub fn new(segments: bool) -> SendQueue {
        // SAFETY: both are plain integers and pointers, for which all zeroes is a value.
        let (header, vector) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        SendQueue {
            outgoing: Vec::with_capacity(SLOTS),
            len: 0,
            headers: vec![header; SLOTS],
            vectors: vec![vector; 2 * SLOTS],
            controls: vec![Control([0; super::CONTROL]); SLOTS],
            counts: Vec::with_capacity(SLOTS),
            segments,
        }
    }

    /// True if [`Self::push`] has no room.
    pub fn is_full(&self) -> bool {
        self.len >= SLOTS
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the `part` (begin and length) of what `slot` holds, to be told the rest of what it needs; `None` when full.
    pub fn push(&mut self, slot: usize, part: (usize, usize)) -> Option<&mut Outgoing> {
        debug_assert!(!self.is_full());
        if self.is_full() {
            return None;
        }
        if self.len == self.outgoing.len() {
            // within the capacity
            self.outgoing.push(Outgoing::empty());
        }
        let outgoing = self.outgoing.get_mut(self.len)?;
        self.len += 1;
        (outgoing.slot, outgoing.part, outgoing.header_len, outgoing.alone) = (slot, part, 0, false);
        outgoing.source = None;
        outgoing.to.clear();
        Some(outgoing)
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Sends all on `fd`, whose payloads are in `batch`, and reports for each how it went. Afterwards the queue is empty.
    pub fn flush(
        &mut self,
        fd: BorrowedFd<'_>,
        batch: &ReceiveBatch,
        mut report: impl FnMut(&Outgoing, Result<(), &io::Error>),
    ) {
        let mut next = 0;
        let mut segments = self.segments;
        let mut tries = 0;
        while next < self.len {
            let messages = self.build(next, batch, segments);
            // SAFETY: the headers point into vectors of `self` and into the area of `batch`, all of them live and never resized
            // while they are borrowed here; the kernel only reads, but for msg_len.
            let sent = cvt_len(unsafe {
                libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), messages as _, libc::MSG_NOSIGNAL as _)
                    as isize
            });
            match sent {
                Ok(sent) => {
                    let datagrams: usize = self.counts.iter().take(sent).map(|n| usize::from(*n)).sum();
                    self.outgoing.iter().skip(next).take(datagrams).for_each(|outgoing| report(outgoing, Ok(())));
                    next += datagrams;
                    tries = 0;
                }
                Err(_) if self.counts[0] > 1 => {
                    // too large for this way, or no segmentation on it: each for itself
                    segments = false;
                }
                // the pending error of an earlier datagram, which the call has taken: this one was not tried
                Err(e) if tries < 2 && is_pending(&e) => tries += 1,
                Err(e) => {
                    report(&self.outgoing[next], Err(&e));
                    next += 1;
                    tries = 0;
                }
            }
        }
        self.len = 0;
    }

    /// Builds the messages for everything from `first` on, and returns how many there are.
    fn build(&mut self, first: usize, batch: &ReceiveBatch, segments: bool) -> usize {
        self.counts.clear();
        let mut vector = 0;
        let mut at = first;
        while at < self.len {
            let message = self.counts.len();
            let count = if segments { self.run_length(at) } else { 1 };
            // slices, whose indices a program built for size does not ask a function for
            let (waiting, vectors) = (self.outgoing.as_mut_slice(), self.vectors.as_mut_slice());
            let begin = vector;
            for outgoing in &waiting[at..at + count] {
                if outgoing.header_len > 0 {
                    vectors[vector] = io_vector(&outgoing.header);
                    vectors[vector].iov_len = outgoing.header_len.into();
                    vector += 1;
                }
                vectors[vector] = io_vector(batch.part(outgoing.slot, outgoing.part.0, outgoing.part.1));
                vector += 1;
            }
            let outgoing = &mut waiting[at];
            let header = &mut self.headers.as_mut_slice()[message].msg_hdr;
            header.msg_namelen = outgoing.to.len();
            header.msg_name = if header.msg_namelen > 0 { outgoing.to.as_mut_ptr().cast() } else { null_mut() };
            header.msg_iov = &raw mut vectors[begin];
            header.msg_iovlen = (vector - begin) as _;
            header.msg_control = (&raw mut self.controls.as_mut_slice()[message]).cast();
            header.msg_controllen = super::CONTROL as _;
            let mut used = 0;
            if let Some(source) = outgoing.source {
                used += super::control::write_source(header, used, source);
            }
            if count > 1 {
                used += super::control::write_segment(header, used, outgoing.len() as u16);
            }
            header.msg_controllen = used as _;
            if used == 0 {
                header.msg_control = null_mut();
            }
            self.counts.push(count as u8);
            at += count;
        }
        self.counts.len()
    }

    /// How many datagrams from `first` on can leave as segments of one message: all of one size but for a shorter last one.
    fn run_length(&self, first: usize) -> usize {
        let head = &self.outgoing[first];
        let size = head.len();
        if size == 0 || size > SEGMENT_MAX || head.alone {
            return 1;
        }
        let mut total = size;
        let mut count = 1;
        for next in &self.outgoing[first + 1..self.len] {
            total += next.len();
            if next.len() > size || next.len() == 0 || total > MESSAGE_MAX || !next.goes_with(head) {
                break;
            }
            count += 1;
            if next.len() < size {
                break;
            }
        }
        count
    }
}

/// An error that an ICMP message may have left at the socket, rather than the verdict on this datagram.
fn is_pending(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Family, Transport, open};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// Receives what `payloads` says into a batch, forwards all of it to a second socket, and returns what arrives there.
    fn forward(payloads: &[Vec<u8>], segments: bool, header: &[u8]) -> (Vec<Vec<u8>>, usize) {
        let inside = UdpSocket::bind("127.0.0.1:0").unwrap();
        inside.set_nonblocking(true).unwrap();
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for payload in payloads {
            client.send_to(payload, inside.local_addr().unwrap()).unwrap();
        }
        let mut batch = ReceiveBatch::new();
        assert_eq!(batch.receive(inside.as_fd()).unwrap(), payloads.len());
        let mut queue = SendQueue::new(segments);
        for slot in 0..payloads.len() {
            let len = batch.get(slot).unwrap().payload.len();
            let outgoing = queue.push(slot, (0, len)).unwrap().send_to(&target.local_addr().unwrap());
            outgoing.put_header(|out| {
                out[..header.len()].copy_from_slice(header);
                header.len()
            });
        }
        let out = open(Family::V4, Transport::Udp).unwrap();
        let mut sent = 0;
        queue.flush(out.as_fd(), &batch, |_, result| sent += usize::from(result.is_ok()));
        assert!(queue.is_empty());
        let mut buffer = vec![0; 70_000];
        let arrived = (0..sent).map(|_| {
            let n = target.recv(&mut buffer).unwrap();
            buffer[..n].to_vec()
        });
        (arrived.collect(), sent)
    }

    fn payload(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + seed) as u8).collect()
    }

    #[test]
    fn datagrams_of_all_sizes_arrive_whole_and_in_order_with_and_without_segmentation() {
        let sizes = [100, 100, 100, 40, 100, 0, 0, 9000, 9000, 1400, 1400, 1, 1200, 1200, 1300, 1472, 1473];
        let payloads: Vec<_> = sizes.iter().enumerate().map(|(n, len)| payload(*len, n)).collect();
        for segments in [false, true] {
            let (arrived, sent) = forward(&payloads, segments, b"");
            assert_eq!(sent, payloads.len());
            assert!(arrived == payloads, "segments {segments}");
        }
    }

    #[test]
    fn each_segment_has_its_own_header() {
        let payloads: Vec<_> = (0..10).map(|n| payload(500, n)).collect();
        let (arrived, _) = forward(&payloads, true, b"header");
        let expected: Vec<_> = payloads.iter().map(|p| [b"header", &p[..]].concat()).collect();
        assert!(arrived == expected);
    }

    #[test]
    fn one_that_cannot_be_sent_does_not_hold_up_the_others() {
        let mut payloads = vec![payload(700, 0), payload(65_507, 1), payload(700, 2), payload(700, 3)];
        let (arrived, sent) = forward(&payloads, true, b"x");
        payloads.remove(1);
        assert_eq!(sent, 3);
        assert!(arrived.iter().zip(&payloads).all(|(got, sent)| got[1..] == sent[..]));
    }
}

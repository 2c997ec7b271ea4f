//! Datagrams out in batches (`sendmmsg`), straight from the slots into which they were received, with segmentation offload
//! (`UDP_SEGMENT`, udp(7)) where several of one size go the same way.

use super::{Control, ReceiveBatch, SLOTS, io_vector};
use crate::sys::cvt_len;
use crate::sys::sockaddr::RawAddr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Longest header before a payload: one of the PROXY protocol with v6 addresses. (One of SOCKS5 has 22 octets.)
pub const HEADER_MAX: usize = 52;

/// One datagram to send: a header of its own and what a slot holds.
#[derive(Clone, Copy)]
pub struct Outgoing {
    /// The slot of the [`ReceiveBatch`] that holds the payload.
    pub slot: usize,
    /// Where in the slot the payload begins, and how long it is.
    pub part: (usize, usize),
    /// To whom; `None` on a connected socket.
    to: Option<RawAddr>,
    /// From which address, if not that of the socket.
    source: Option<IpAddr>,
    header: [u8; HEADER_MAX],
    header_len: u8,
    /// Never a segment of a larger message.
    alone: bool,
}

impl Outgoing {
    /// The `part` (begin and length) of what `slot` holds, to `to`.
    pub fn new(slot: usize, part: (usize, usize), to: Option<SocketAddr>) -> Outgoing {
        let to = to.map(RawAddr::new);
        Outgoing { slot, part, to, source: None, header: [0; HEADER_MAX], header_len: 0, alone: false }
    }

    /// With `header` before it, at most [`HEADER_MAX`] octets.
    #[must_use]
    pub fn with_header(mut self, header: &[u8]) -> Outgoing {
        let len = header.len().min(HEADER_MAX);
        self.header[..len].copy_from_slice(&header[..len]);
        self.header_len = len as u8;
        self
    }

    /// From `source`, whether ours or not: for raw and transparent sockets.
    #[must_use]
    pub fn from_source(mut self, source: IpAddr) -> Outgoing {
        self.source = Some(source);
        self
    }

    /// Never as a segment: on raw sockets, which have no segmentation.
    #[must_use]
    pub fn alone(mut self) -> Outgoing {
        self.alone = true;
        self
    }

    /// To whom, if the socket is not connected.
    pub fn to(&self) -> Option<SocketAddr> {
        self.to.and_then(|to| to.get())
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
    outgoing: Vec<Outgoing>,
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
            headers: vec![header; SLOTS],
            vectors: vec![vector; 2 * SLOTS],
            controls: vec![Control([0; super::CONTROL]); SLOTS],
            counts: Vec::with_capacity(SLOTS),
            segments,
        }
    }

    /// True if [`Self::push`] has no room.
    pub fn is_full(&self) -> bool {
        self.outgoing.len() >= SLOTS
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Adds a datagram. Ignored when full.
    pub fn push(&mut self, outgoing: Outgoing) {
        debug_assert!(!self.is_full());
        if !self.is_full() {
            self.outgoing.push(outgoing);
        }
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.outgoing.clear();
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
        while next < self.outgoing.len() {
            let messages = self.build(next, batch, segments);
            // SAFETY: the headers point into vectors of `self` and into the area of `batch`, all of them live and never resized
            // while they are borrowed here; the kernel only reads, but for msg_len.
            let sent = cvt_len(unsafe {
                libc::sendmmsg(fd.as_raw_fd(), self.headers.as_mut_ptr(), messages as _, libc::MSG_NOSIGNAL as _)
                    as isize
            });
            match sent {
                Ok(sent) => {
                    let datagrams: usize = self.counts[..sent].iter().map(|n| usize::from(*n)).sum();
                    for outgoing in &self.outgoing[next..next + datagrams] {
                        report(outgoing, Ok(()));
                    }
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
        self.outgoing.clear();
    }

    /// Builds the messages for everything from `first` on, and returns how many there are.
    fn build(&mut self, first: usize, batch: &ReceiveBatch, segments: bool) -> usize {
        self.counts.clear();
        let mut vector = 0;
        let mut at = first;
        while at < self.outgoing.len() {
            let message = self.counts.len();
            let count = if segments { self.run_length(at) } else { 1 };
            let begin = vector;
            for outgoing in &self.outgoing[at..at + count] {
                if outgoing.header_len > 0 {
                    self.vectors[vector] = io_vector(&outgoing.header[..outgoing.header_len.into()]);
                    vector += 1;
                }
                let (start, len) = outgoing.part;
                self.vectors[vector] = io_vector(&batch.slot(outgoing.slot)[start..start + len]);
                vector += 1;
            }
            let outgoing = &mut self.outgoing[at];
            // SAFETY: msghdr is plain integers and pointers, for which all zeroes is a value.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            if let Some(to) = &mut outgoing.to {
                header.msg_name = to.as_mut_ptr().cast();
                header.msg_namelen = to.len();
            }
            header.msg_iov = &raw mut self.vectors[begin];
            header.msg_iovlen = (vector - begin) as _;
            header.msg_control = (&raw mut self.controls[message]).cast();
            header.msg_controllen = super::CONTROL as _;
            let mut used = 0;
            if let Some(source) = outgoing.source {
                used += super::control::write_source(&header, used, source);
            }
            if count > 1 {
                used += super::control::write_segment(&header, used, outgoing.len() as u16);
            }
            header.msg_controllen = used as _;
            if used == 0 {
                header.msg_control = std::ptr::null_mut();
            }
            self.headers[message].msg_hdr = header;
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
        for next in &self.outgoing[first + 1..] {
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
            queue.push(Outgoing::new(slot, (0, len), Some(target.local_addr().unwrap())).with_header(header));
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

//! Netlink messages: header, fixed part, attributes. Numbers are in the machine's own byte order, as netlink(7) wants;
//! what netfilter keeps in network order is put and read as big endian by name.

use std::io;

use crate::sys::netlink::Netlink;

/// A request being put together: `struct nlmsghdr`, the family's fixed part, attributes.
#[derive(Debug, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A request of type `kind` with `flags` beside NLM_F_REQUEST, and the family's fixed part.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        // the length, the sequence number and the port are filled in when it is sent
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(fixed);
        Message(bytes)
    }

    /// Adds an attribute.
    #[must_use]
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Message {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// Adds an attribute that holds one number in the machine's byte order.
    #[must_use]
    pub(crate) fn with_u32(self, kind: u16, value: u32) -> Message {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Sends it and waits for the kernel's word on it.
    ///
    /// # Errors
    /// The kernel's answer: `EEXIST`, `ENOENT`, `EPERM` …
    pub(crate) fn ask(mut self, socket: &mut Netlink) -> io::Result<()> {
        set_flag(&mut self.0, NLM_F_ACK);
        exchange(socket, &mut self.0, |_, _| {})
    }

    /// Sends it and shows the one answer, before the kernel's word on it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(crate) fn inquire(mut self, socket: &mut Netlink, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        set_flag(&mut self.0, NLM_F_ACK);
        exchange(socket, &mut self.0, each)
    }

    /// Sends it as a dump and shows every answer's type and what follows its header.
    ///
    /// # Errors
    /// The kernel's answer; `Interrupted` if what was dumped changed meanwhile.
    pub(crate) fn dump(mut self, socket: &mut Netlink, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        set_flag(&mut self.0, NLM_F_DUMP);
        exchange(socket, &mut self.0, each)
    }
}

fn set_flag(bytes: &mut [u8], flag: u16) {
    let flags = u16_at(bytes, 6) | flag;
    if let Some(place) = bytes.get_mut(6..8) {
        place.copy_from_slice(&flags.to_ne_bytes());
    }
}

fn exchange(socket: &mut Netlink, request: &mut [u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let sequence = socket.send(request)?;
    let mut changed = false;
    while !take_answers(socket.receive()?, sequence, &mut changed, &mut each)? {}
    Ok(())
}

/// Reads one datagram of answers to the request of this number. True: there are no more. `changed`: what was dumped changed
/// meanwhile.
///
/// # Errors
/// The kernel's answer, or one that makes no sense.
pub(super) fn take_answers(
    mut rest: &[u8],
    sequence: u32,
    changed: &mut bool,
    each: &mut dyn FnMut(u16, &[u8]),
) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let length = u32_at(rest, 0) as usize;
        let (kind, flags) = (u16_at(rest, 4), u16_at(rest, 6));
        let Some(body) = rest.get(HEADER..length) else { return Err(io::ErrorKind::InvalidData.into()) };
        let ours = u32_at(rest, 8) == sequence;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        if !ours {
            continue;
        }
        *changed |= flags & NLM_F_DUMP_INTR != 0;
        match kind {
            NLMSG_ERROR => match u32_at(body, 0) as i32 {
                0 => return Ok(true),
                negative => return Err(io::Error::from_raw_os_error(negative.wrapping_neg())),
            },
            NLMSG_DONE if *changed => return Err(io::ErrorKind::Interrupted.into()),
            // The body is the dump's own result, for instance -ENOENT.
            NLMSG_DONE => match u32_at(body, 0) as i32 {
                negative if negative < 0 => return Err(io::Error::from_raw_os_error(negative.wrapping_neg())),
                _ => return Ok(true),
            },
            _ => each(kind, body),
        }
    }
    Ok(false)
}

/// The messages in one datagram, without their headers: (type, body). Ends at the first that does not fit.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes.get(..HEADER)?, 0) as usize;
        let kind = u16_at(bytes, 4);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes in `bytes`: (type without its flag bits, value). Ends at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes.get(..ATTRIBUTE_HEADER)?, 0));
        let kind = u16_at(bytes, 2) & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number at `at` in the machine's byte order; 0 past the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// The number at `at` in the machine's byte order; 0 past the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// An address family as the kernel numbers it, `AF_INET`.
pub(crate) const AF_INET: u8 = 2;
/// `AF_INET6` on Linux.
pub(crate) const AF_INET6: u8 = 10;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const ALIGN: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put_and_stop_at_a_cut() {
        let message = Message::new(1, 0, &[9; 4]).with(3, b"abc").with_u32(5, 7);
        let body = &message.0[HEADER + 4..];
        let read: Vec<_> = attributes(body).collect();
        assert_eq!(read, [(3, &b"abc"[..]), (5, &7u32.to_ne_bytes()[..])]);
        assert_eq!(attributes(&body[..body.len() - 1]).count(), 1);
        assert_eq!(attributes(&[]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 1, 1]).count(), 0, "a length of 0 must not loop");
    }
}

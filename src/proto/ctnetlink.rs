//! Questions to connection tracking about UDP flows, and its answers (linux/netfilter/nfnetlink_conntrack.h).
//!
//! Headers are in the machine's own byte order, addresses and ports in network order; every attribute is padded to four
//! octets.

use super::Writer;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// Octets of the longest question.
pub const QUESTION_MAX: usize = 104;

/// Writes the question for the flow of whose replies `reply` is the direction. The answer repeats `sequence`.
pub fn ask(sequence: u32, reply: Tuple, out: &mut [u8; QUESTION_MAX]) -> usize {
    message(CT_GET, NLM_F_REQUEST, sequence, reply, None, out)
}

/// Writes the order that the entry of that flow be kept for `seconds` from now on, packets or not.
pub fn keep(sequence: u32, reply: Tuple, seconds: u32, out: &mut [u8; QUESTION_MAX]) -> usize {
    message(CT_NEW, NLM_F_REQUEST | NLM_F_ACK, sequence, reply, Some(seconds), out)
}

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    reply: Tuple,
    timeout: Option<u32>,
    out: &mut [u8; QUESTION_MAX],
) -> usize {
    let written = write(kind, flags, sequence, reply, timeout, out);
    // both families fit: see QUESTION_MAX and the test
    written.unwrap_or(0)
}

fn write(
    kind: u16,
    flags: u16,
    sequence: u32,
    reply: Tuple,
    timeout: Option<u32>,
    out: &mut [u8; QUESTION_MAX],
) -> Option<usize> {
    let v4 = reply.from.is_ipv4();
    let mut to = Writer::new(out);
    to.put(&0u32.to_ne_bytes())?; // the length, known at the end
    to.put(&kind.to_ne_bytes())?;
    to.put(&flags.to_ne_bytes())?;
    to.put(&sequence.to_ne_bytes())?;
    to.put(&0u32.to_ne_bytes())?;
    to.put(&[if v4 { AF_INET } else { AF_INET6 }, 0, 0, 0])?;

    let address = ATTRIBUTE + if v4 { 4 } else { 16 };
    let (ip, protocol) = (ATTRIBUTE + 2 * address, ATTRIBUTE + 3 * (ATTRIBUTE + 4));
    header(&mut to, CTA_TUPLE_REPLY | NESTED, ATTRIBUTE + ip + protocol)?;
    header(&mut to, CTA_TUPLE_IP | NESTED, ip)?;
    let numbers = if v4 { [CTA_IP_V4_SRC, CTA_IP_V4_DST] } else { [CTA_IP_V6_SRC, CTA_IP_V6_DST] };
    for (number, ip) in numbers.into_iter().zip([reply.from.ip(), reply.to.ip()]) {
        header(&mut to, number, address)?;
        match ip {
            IpAddr::V4(ip) => to.put(&ip.octets())?,
            IpAddr::V6(ip) => to.put(&ip.octets())?,
        }
    }
    header(&mut to, CTA_TUPLE_PROTO | NESTED, protocol)?;
    header(&mut to, CTA_PROTO_NUM, ATTRIBUTE + 1)?;
    to.put(&[IPPROTO_UDP, 0, 0, 0])?;
    for (number, port) in [(CTA_PROTO_SRC_PORT, reply.from.port()), (CTA_PROTO_DST_PORT, reply.to.port())] {
        header(&mut to, number, ATTRIBUTE + 2)?;
        to.put(&port.to_be_bytes())?;
        to.put(&[0, 0])?;
    }
    if let Some(seconds) = timeout {
        header(&mut to, CTA_TIMEOUT, ATTRIBUTE + 4)?;
        to.put(&seconds.to_be_bytes())?;
    }
    let len = to.written();
    out.get_mut(..4)?.copy_from_slice(&(len as u32).to_ne_bytes());
    Some(len)
}

fn header(to: &mut Writer<'_>, kind: u16, len: usize) -> Option<()> {
    to.put(&(len as u16).to_ne_bytes())?;
    to.put(&kind.to_ne_bytes())
}

/// What connection tracking says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The flow's first direction, to the question of that number.
    Original(u32, Tuple),
    /// It was done, as was ordered by that number.
    Done(u32),
    /// There is no such flow, or another errno.
    Refused(u32, i32),
    /// Unasked: an entry was forgotten, whose replies went this way.
    Forgotten(Tuple),
}

/// The answers in one datagram from the kernel.
pub fn answers(mut rest: &[u8]) -> impl Iterator<Item = Answer> {
    std::iter::from_fn(move || {
        while rest.len() >= MESSAGE {
            let len = u32::from_ne_bytes(field(rest, 0)?) as usize;
            let message = rest.get(..len).filter(|message| message.len() >= MESSAGE)?;
            rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
            if let Some(answer) = answer(message) {
                return Some(answer);
            }
        }
        None
    })
}

fn answer(message: &[u8]) -> Option<Answer> {
    let kind = u16::from_ne_bytes(field(message, 4)?);
    let sequence = u32::from_ne_bytes(field(message, 8)?);
    match kind {
        NLMSG_ERROR => match i32::from_ne_bytes(field(message, MESSAGE)?) {
            0 => Some(Answer::Done(sequence)),
            negative => Some(Answer::Refused(sequence, negative.wrapping_neg())),
        },
        CT_DELETE => {
            let reply = attribute(message.get(MESSAGE + NFGENMSG..)?, CTA_TUPLE_REPLY)?;
            Some(Answer::Forgotten(tuple(reply)?))
        }
        CT_NEW => {
            let original = attribute(message.get(MESSAGE + NFGENMSG..)?, CTA_TUPLE_ORIG)?;
            Some(Answer::Original(sequence, tuple(original)?))
        }
        _ => None,
    }
}

fn tuple(nested: &[u8]) -> Option<Tuple> {
    let (ip, protocol) = (attribute(nested, CTA_TUPLE_IP)?, attribute(nested, CTA_TUPLE_PROTO)?);
    let address = |v4, v6| match attribute(ip, v4) {
        Some(octets) => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?))),
        None => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?))),
    };
    let port = |number| Some(u16::from_be_bytes(attribute(protocol, number)?.try_into().ok()?));
    (attribute(protocol, CTA_PROTO_NUM)? == [IPPROTO_UDP]).then_some(())?;
    Some(Tuple {
        from: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        to: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    })
}

/// The value of the first attribute of that number.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(field(rest, 0)?));
        let kind = u16::from_ne_bytes(field(rest, 2)?) & !FLAGS;
        let value = rest.get(ATTRIBUTE..len)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(ALIGN)..)?;
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

const ALIGN: usize = 4;
/// `struct nlmsghdr`, `struct nfgenmsg` and `struct nlattr`.
const MESSAGE: usize = 16;
const NFGENMSG: usize = 4;
const ATTRIBUTE: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_NEW`, `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const CT_NEW: u16 = 0x0100;
const CT_GET: u16 = 0x0101;
const CT_DELETE: u16 = 0x0102;
const NESTED: u16 = 0x8000;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const FLAGS: u16 = 0xc000;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_UDP: u8 = 17;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple_of(from: &str, to: &str) -> Tuple {
        Tuple { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    /// A question turned into the answer that the kernel would give: the same attributes, under another name.
    fn answered(reply: Tuple) -> Vec<u8> {
        let mut out = [0; QUESTION_MAX];
        let len = ask(7, reply, &mut out);
        let mut bytes = out[..len].to_vec();
        bytes[4..6].copy_from_slice(&CT_NEW.to_ne_bytes());
        bytes[22..24].copy_from_slice(&(CTA_TUPLE_ORIG | NESTED).to_ne_bytes());
        bytes
    }

    #[test]
    fn a_tuple_comes_back_as_it_was_put_in_both_families() {
        for tuple in [tuple_of("192.168.1.2:4000", "203.0.113.9:53"), tuple_of("[fd00::2]:4000", "[2001:db8::9]:53")] {
            let bytes = answered(tuple);
            assert_eq!(answers(&bytes).collect::<Vec<_>>(), [Answer::Original(7, tuple)]);
            for cut in 0..bytes.len() {
                assert_eq!(answers(&bytes[..cut]).count(), 0, "cut at {cut}");
            }
        }
    }

    #[test]
    fn the_longest_message_fits() {
        let mut out = [0; QUESTION_MAX];
        assert_eq!(keep(1, tuple_of("[fd00::2]:1", "[fd00::3]:2"), 200, &mut out), QUESTION_MAX);
    }

    /// The octets that Linux 6.18 took for the flow 192.168.1.1:2333 → 192.168.1.2:40000 (little endian).
    #[cfg(target_endian = "little")]
    #[test]
    fn a_question_has_the_kernels_form() {
        let mut out = [0; QUESTION_MAX];
        let len = ask(1, tuple_of("192.168.1.1:2333", "192.168.1.2:40000"), &mut out);
        let expected = b"\x48\0\0\0\x01\x01\x01\0\x01\0\0\0\0\0\0\0\x02\0\0\0\
            \x34\0\x02\x80\x14\0\x01\x80\x08\0\x01\0\xc0\xa8\x01\x01\x08\0\x02\0\xc0\xa8\x01\x02\
            \x1c\0\x02\x80\x05\0\x01\0\x11\0\0\0\x06\0\x02\0\x09\x1d\0\0\x06\0\x03\0\x9c\x40\0\0";
        assert_eq!(&out[..len], expected);
    }

    #[test]
    fn errors_name_their_question_and_several_answers_come_in_one_datagram() {
        let error = |sequence: u32, code: i32| {
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&36u32.to_ne_bytes());
            bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&sequence.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&[0; 16]);
            bytes
        };
        let tuple = tuple_of("10.0.0.1:1", "10.0.0.2:2");
        let bytes = [error(3, -2), answered(tuple), error(4, 0)].concat();
        let all: Vec<_> = answers(&bytes).collect();
        assert_eq!(all, [Answer::Refused(3, 2), Answer::Original(7, tuple), Answer::Done(4)]);
    }

    #[test]
    fn an_attribute_of_length_zero_ends_the_search_and_does_not_loop() {
        assert_eq!(attribute(&[0; 64], 9), None);
    }

    proptest::proptest! {
        #[test]
        fn no_octets_from_the_kernel_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            answers(&bytes).for_each(drop);
        }
    }
}

//! A and AAAA questions of a DNS stub, and their answers (RFC 1035, RFC 3596). No sockets, no cache, no retries.
//!
//! Questions carry no EDNS: an answer of 512 octets holds the few addresses of a proxy server, fragments (which are easy to
//! forge) cannot occur, and no forwarder of an old modem stumbles over it. What does not fit is asked again by TCP.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{Reader, Writer};

/// Bytes of the longest question: header, a name of 255 octets, QTYPE, QCLASS.
pub const QUERY_MAX: usize = HEADER + 255 + 4;

/// Most addresses that are kept of an answer; the rest is for balancing servers larger than a proxy.
pub const ADDRESSES_MAX: usize = 8;

/// Bounds of what a TTL counts for: a name whose TTL is 0 is not asked at every connection, and one from a mistyped zone
/// is asked again the next day.
///
/// A TTL with its highest bit set counts as large (RFC 8767 section 4, against RFC 2181 section 8, where it was 0).
pub const TTL_BOUNDS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(86_400));

/// What is asked for: QTYPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum QType {
    /// IPv4 addresses (RFC 1035 section 3.4.1).
    A = 1,
    /// IPv6 addresses (RFC 3596 section 2.1).
    Aaaa = 28,
}

/// Why a question cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryError {
    /// The name is empty, longer than 253 characters, or has a label that is empty or longer than 63 (RFC 1035 section 2.3.4).
    BadName,
    /// The output buffer is smaller than the question; [`QUERY_MAX`] is always enough.
    OutputTooSmall,
}

/// The addresses of a name, and for how long they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// At least one, in the server's order, all of the family that was asked for.
    pub addresses: heapless::Vec<IpAddr, ADDRESSES_MAX>,
    /// The least TTL on the way from the name to the addresses, within [`TTL_BOUNDS`].
    pub ttl: Duration,
}

/// Why a message yields no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerError {
    /// It does not answer this question, so it may be forged or late: go on waiting.
    Unrelated,
    /// It did not fit (TC): ask the same by TCP (RFC 7766 section 5).
    Truncated,
    /// The name does not exist (RCODE 3).
    NoSuchName,
    /// The name exists, or is an alias of one, but has no address of this family.
    NoAddress,
    /// The server cannot or will not answer.
    Refused {
        /// RCODE, neither 0 nor 3.
        rcode: u8,
    },
    /// It answers this question, but breaks off or contradicts itself.
    Malformed,
}

/// Writes a recursive question for `name` (no trailing dot, taken as absolute) and returns its length.
///
/// # Errors
///
/// Nothing was written that could be sent.
pub fn encode_query(id: u16, name: &str, qtype: QType, out: &mut [u8]) -> Result<usize, QueryError> {
    if name.len() > NAME_MAX {
        return Err(QueryError::BadName);
    }
    let mut writer = Writer::new(out);
    let mut put = |bytes: &[u8]| writer.put(bytes).ok_or(QueryError::OutputTooSmall);
    put(&id.to_be_bytes())?;
    // Flags: RD alone. QDCOUNT 1, ANCOUNT 0, NSCOUNT 0, ARCOUNT 0 (RFC 1035 section 4.1.1).
    put(&[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0])?;
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=LABEL_MAX).contains(length));
        put(&[length.ok_or(QueryError::BadName)?])?;
        put(label.as_bytes())?;
    }
    put(&[0])?;
    put(&(qtype as u16).to_be_bytes())?;
    put(&CLASS_IN.to_be_bytes())?;
    Ok(writer.written())
}

/// Reads the answer to the question that [`encode_query`] wrote for the same `id`, `name` and `qtype`.
///
/// # Errors
///
/// [`AnswerError::Unrelated`] unless the header says response and the question is echoed, in upper or lower case.
pub fn parse_answer(message: &[u8], id: u16, name: &str, qtype: QType) -> Result<Answer, AnswerError> {
    let mut reader = Reader::new(message);
    let (flags, records) =
        read_header_and_question(&mut reader, id, name, qtype).filter(is_answer).ok_or(AnswerError::Unrelated)?;
    match (flags & RCODE) as u8 {
        0 if flags & TC != 0 => Err(AnswerError::Truncated),
        0 => follow(Records { reader, left: records.min(RECORDS_MAX) }, qtype),
        3 => Err(AnswerError::NoSuchName),
        rcode => Err(AnswerError::Refused { rcode }),
    }
}

/// Flags and ANCOUNT, with `reader` left at the answer section; `None` if the id or the question is another.
fn read_header_and_question(reader: &mut Reader<'_>, id: u16, name: &str, qtype: QType) -> Option<(u16, u16)> {
    let (got_id, flags, questions) = (reader.u16()?, reader.u16()?, reader.u16()?);
    let (records, _authorities, _additional) = (reader.u16()?, reader.u16()?, reader.u16()?);
    let mut labels = Labels::at(reader.bytes, reader.used());
    for expected in name.split('.') {
        labels.next().ok()?.filter(|label| label.eq_ignore_ascii_case(expected.as_bytes()))?;
    }
    let ended = labels.next().ok()?.is_none();
    skip_name(reader)?;
    let same = got_id == id && questions == 1 && ended;
    (same && reader.u16()? == qtype as u16 && reader.u16()? == CLASS_IN).then_some((flags, records))
}

/// A response (QR) to a standard query (OPCODE 0).
fn is_answer((flags, _): &(u16, u16)) -> bool {
    flags & (QR | OPCODE) == QR
}

/// Follows aliases from the question's name to addresses, wherever in the answer section the records stand.
fn follow(records: Records<'_>, qtype: QType) -> Result<Answer, AnswerError> {
    let message = records.reader.bytes;
    let mut addresses = heapless::Vec::new();
    let mut ttl = u32::MAX;
    let mut owner = HEADER;
    for _ in 0..CHAIN_MAX {
        let mut alias = None;
        let mut rest = records.clone();
        while let Some(record) = rest.next()? {
            if record.class != CLASS_IN || !same_name(message, record.owner, owner)? {
                continue;
            }
            if record.kind == qtype as u16 {
                // Those beyond ADDRESSES_MAX are left out.
                let _ = addresses.push(address(record.data, qtype).ok_or(AnswerError::Malformed)?);
                ttl = ttl.min(record.ttl);
            } else if record.kind == TYPE_CNAME {
                alias = Some(record);
            }
        }
        match alias {
            Some(alias) if addresses.is_empty() => {
                owner = alias.data_at;
                ttl = ttl.min(alias.ttl);
            }
            _ => break,
        }
    }
    if addresses.is_empty() {
        return Err(AnswerError::NoAddress);
    }
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl.into()).clamp(TTL_BOUNDS.0, TTL_BOUNDS.1) })
}

fn address(data: &[u8], qtype: QType) -> Option<IpAddr> {
    match qtype {
        QType::A => <[u8; 4]>::try_from(data).ok().map(|octets| Ipv4Addr::from(octets).into()),
        QType::Aaaa => <[u8; 16]>::try_from(data).ok().map(|octets| Ipv6Addr::from(octets).into()),
    }
}

/// The records of one section (RFC 1035 section 4.1.3).
#[derive(Clone)]
struct Records<'a> {
    reader: Reader<'a>,
    left: u16,
}

struct Record<'a> {
    /// Where in the message its name begins.
    owner: usize,
    kind: u16,
    class: u16,
    ttl: u32,
    /// Where in the message `data` begins: a name in it may point back into the message.
    data_at: usize,
    data: &'a [u8],
}

impl<'a> Records<'a> {
    fn next(&mut self) -> Result<Option<Record<'a>>, AnswerError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.read().map(Some).ok_or(AnswerError::Malformed)
    }

    fn read(&mut self) -> Option<Record<'a>> {
        let reader = &mut self.reader;
        let owner = reader.used();
        skip_name(reader)?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        let ttl = u32::from_be_bytes(reader.array()?);
        let length = reader.u16()?;
        let data_at = reader.used();
        Some(Record { owner, kind, class, ttl, data_at, data: reader.take(usize::from(length))? })
    }
}

/// Moves past a name, without following its pointer (RFC 1035 section 4.1.4).
fn skip_name(reader: &mut Reader<'_>) -> Option<()> {
    loop {
        match reader.u8()? {
            0 => return Some(()),
            length @ 1..=LABEL_MAX => drop(reader.take(length.into())?),
            POINTER.. => return reader.u8().map(drop),
            _ => return None,
        }
    }
}

/// Whether the names at two places of a message are the same, in upper or lower case.
fn same_name(message: &[u8], one: usize, other: usize) -> Result<bool, AnswerError> {
    let (mut one, mut other) = (Labels::at(message, one), Labels::at(message, other));
    loop {
        match (one.next()?, other.next()?) {
            (None, None) => return Ok(true),
            (Some(one), Some(other)) if one.eq_ignore_ascii_case(other) => {}
            _ => return Ok(false),
        }
    }
}

/// The labels of a name, pointers followed.
///
/// A pointer must lead to before everything read so far, so no name is read in a circle; and the steps are counted, so
/// that a chain of pointers to pointers stays cheap.
struct Labels<'a> {
    reader: Reader<'a>,
    /// Where the part being read began.
    began: usize,
    steps: u8,
}

impl<'a> Labels<'a> {
    fn at(message: &'a [u8], at: usize) -> Self {
        Labels { reader: Reader { bytes: message, at }, began: at, steps: 0 }
    }

    /// The next label; `None` at the root.
    fn next(&mut self) -> Result<Option<&'a [u8]>, AnswerError> {
        self.read().ok_or(AnswerError::Malformed)
    }

    fn read(&mut self) -> Option<Option<&'a [u8]>> {
        while self.steps < STEPS_MAX {
            self.steps += 1;
            match self.reader.u8()? {
                0 => return Some(None),
                length @ 1..=LABEL_MAX => return self.reader.take(length.into()).map(Some),
                high @ POINTER.. => {
                    let target = usize::from(u16::from_be_bytes([high & !POINTER, self.reader.u8()?]));
                    if target >= self.began {
                        return None;
                    }
                    (self.reader.at, self.began) = (target, target);
                }
                _ => return None,
            }
        }
        None
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueryError::BadName => "not a name that DNS can carry (labels of 1 to 63 characters, 253 in all)",
            QueryError::OutputTooSmall => "the buffer for the DNS question is too small",
        })
    }
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AnswerError::Unrelated => f.write_str("no answer to the question"),
            AnswerError::Truncated => f.write_str("the answer is truncated"),
            AnswerError::NoSuchName => f.write_str("the name does not exist (NXDOMAIN)"),
            AnswerError::NoAddress => f.write_str("the name has no address"),
            AnswerError::Refused { rcode } => match rcode_name(rcode) {
                Some(name) => write!(f, "the server answers {name} (rcode {rcode})"),
                None => write!(f, "the server answers rcode {rcode}"),
            },
            AnswerError::Malformed => f.write_str("the answer is malformed"),
        }
    }
}

impl std::error::Error for QueryError {}
impl std::error::Error for AnswerError {}

/// RFC 1035 section 4.1.1.
fn rcode_name(rcode: u8) -> Option<&'static str> {
    match rcode {
        1 => Some("FORMERR"),
        2 => Some("SERVFAIL"),
        4 => Some("NOTIMP"),
        5 => Some("REFUSED"),
        _ => None,
    }
}

const HEADER: usize = 12;
const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TC: u16 = 0x0200;
const RCODE: u16 = 0x000f;
const CLASS_IN: u16 = 1;
const TYPE_CNAME: u16 = 5;
/// Characters of the longest name as text: 255 octets less the first length and the root (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 253;
const LABEL_MAX: u8 = 63;
/// Both high bits set: not a label but a pointer (RFC 1035 section 4.1.4).
const POINTER: u8 = 0xc0;
/// A name has at most 127 labels and a root; pointers count too.
const STEPS_MAX: u8 = 160;
/// Names from the question to the addresses, aliases included.
const CHAIN_MAX: u8 = 9;
/// Records of an answer that are looked at.
const RECORDS_MAX: u16 = 64;

#[cfg(test)]
mod tests;

//! HTTP CONNECT client (RFC 9110 section 9.3.6, RFC 9112): the request, and a scanner for the head of what comes back.
//! No timeouts, no bodies.

use super::Writer;
use std::fmt;
use std::net::SocketAddr;

pub use super::socks5::Fault;

/// Octets of the longest request: a name of 255 octets twice, and Basic credentials of 255 octets each.
pub const OUTPUT_MAX: usize = 2 * (255 + 6) + BASIC_MAX + 96;

/// Base64 of `username:password`.
const BASIC_MAX: usize = (255 + 1 + 255usize).div_ceil(3) * 4;

/// Octets that the heads of an answer may have together, interim responses (1xx) included.
pub const HEAD_MAX: u32 = 16 * 1024;

/// What is asked of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// CONNECT to an address.
    Address(SocketAddr),
    /// CONNECT to a name, which the proxy looks up.
    Name(&'a str, u16),
    /// OPTIONS for the proxy itself (RFC 9110 section 9.3.7): any well-formed answer shows that it lives and, unless the
    /// answer says otherwise, that it takes our credentials.
    Options,
}

/// Writes the request. `credentials` are username and password for Basic authentication (RFC 7617). `None` if it does not
/// fit; [`OUTPUT_MAX`] is enough for what the configuration lets through.
pub fn encode(request: Request<'_>, credentials: Option<(&[u8], &[u8])>, out: &mut [u8]) -> Option<usize> {
    let mut out = Writer::new(out);
    match request {
        Request::Address(address) => {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            out.put_text(format_args!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n"))?;
        }
        Request::Name(name, port) => {
            out.put_text(format_args!("CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n"))?;
        }
        Request::Options => {
            out.put(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nMax-Forwards: 0\r\nConnection: close\r\n")?;
        }
    }
    if let Some((username, password)) = credentials {
        out.put(b"Proxy-Authorization: Basic ")?;
        put_base64(&mut out, username.iter().chain(b":").chain(password).copied())?;
        out.put(b"\r\n")?;
    }
    out.put(b"\r\n")?;
    Some(out.written())
}

/// RFC 4648 section 4.
fn put_base64(out: &mut Writer<'_>, mut octets: impl Iterator<Item = u8>) -> Option<()> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    while let Some(first) = octets.next() {
        let (second, third) = (octets.next(), octets.next());
        let group = u32::from(first) << 16 | u32::from(second.unwrap_or(0)) << 8 | u32::from(third.unwrap_or(0));
        let letter = |shift: u32| ALPHABET.get((group >> shift) as usize & 63).copied().unwrap_or(b'=');
        let third_letter = if second.is_some() { letter(6) } else { b'=' };
        let fourth_letter = if third.is_some() { letter(0) } else { b'=' };
        out.put(&[letter(18), letter(12), third_letter, fourth_letter])?;
    }
    Some(())
}

/// Scans the head of the answer octet by octet, so that it may come in any pieces and needs no buffer.
///
/// A reason phrase and header fields are passed over: nothing in them has a meaning for a tunnel (RFC 9110 section 9.3.6
/// even forbids to heed `Content-Length` and `Transfer-Encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanner {
    place: Place,
    status: u16,
    /// Octets of heads so far.
    seen: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the status line, this many octets of it seen.
    Status(u8),
    /// Behind the status code.
    Reason,
    /// At the first octet of a line.
    LineStart,
    /// In a header field.
    Field,
    /// Behind a CR at the start of a line: an LF ends the head.
    LastCr,
}

/// How far the scanner came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All octets belonged to the head, and it goes on.
    NeedMore,
    /// The head is over.
    Done {
        /// How many octets belonged to it; the rest is the tunnel's.
        used: usize,
        /// The final status, 200 to 999.
        status: u16,
    },
}

/// Why an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not begin with `HTTP/1.` and a status code.
    NotHttp {
        /// The octet that does not belong there.
        got: u8,
    },
    /// It is HTTP of another version.
    Version {
        /// The digit behind `HTTP/`.
        got: u8,
    },
    /// The head does not end within [`HEAD_MAX`] octets.
    TooLong,
    /// The final status is not 2xx.
    Status {
        /// It.
        status: u16,
        /// Whether credentials were sent.
        with_auth: bool,
    },
    /// The request does not fit into the output buffer.
    OutputTooSmall,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// Before the first octet.
    pub const fn new() -> Scanner {
        Scanner { place: Place::Status(0), status: 0, seen: 0 }
    }

    /// Takes the next octets.
    ///
    /// # Errors
    /// As soon as it is certain that this is no answer.
    pub fn scan(&mut self, input: &[u8]) -> Result<Progress, Refusal> {
        for (at, &octet) in input.iter().enumerate() {
            self.seen += 1;
            if self.seen > HEAD_MAX {
                return Err(Refusal::TooLong);
            }
            let ends = self.take(octet)?;
            if ends && self.status < 200 {
                // an interim response (RFC 9110 section 15.2): the next one follows
                (self.place, self.status) = (Place::Status(0), 0);
            } else if ends {
                return Ok(Progress::Done { used: at + 1, status: self.status });
            }
        }
        Ok(Progress::NeedMore)
    }

    /// Takes one octet; true if the head ends with it. A lone LF ends a line too (RFC 9112 section 2.2).
    fn take(&mut self, octet: u8) -> Result<bool, Refusal> {
        self.place = match self.place {
            Place::Status(at) => self.take_status(at, octet)?,
            Place::Reason | Place::Field if octet == b'\n' => Place::LineStart,
            Place::Reason => Place::Reason,
            Place::Field => Place::Field,
            Place::LineStart | Place::LastCr if octet == b'\n' => return Ok(true),
            Place::LineStart if octet == b'\r' => Place::LastCr,
            Place::LineStart | Place::LastCr => Place::Field,
        };
        Ok(false)
    }

    /// `HTTP/1.1 200` and what must follow it.
    fn take_status(&mut self, at: u8, octet: u8) -> Result<Place, Refusal> {
        const BEGIN: &[u8] = b"HTTP/1.";
        let wrong = Err(Refusal::NotHttp { got: octet });
        match at {
            // empty lines before an answer are passed over, as servers do before a request (RFC 9112 section 2.2)
            0 if matches!(octet, b'\r' | b'\n') => return Ok(Place::Status(0)),
            5 if octet.is_ascii_digit() && octet != b'1' => return Err(Refusal::Version { got: octet }),
            0..=6 if BEGIN.get(usize::from(at)) != Some(&octet) => return wrong,
            7 if !octet.is_ascii_digit() => return wrong,
            8 if octet != b' ' => return wrong,
            9 if !(b'1'..=b'9').contains(&octet) => return wrong,
            10 | 11 if !octet.is_ascii_digit() => return wrong,
            9..=11 => self.status = self.status * 10 + u16::from(octet - b'0'),
            12 => {
                return match octet {
                    b'\n' => Ok(Place::LineStart),
                    b' ' | b'\r' => Ok(Place::Reason),
                    _ => wrong,
                };
            }
            _ => {}
        }
        Ok(Place::Status(at + 1))
    }
}

/// Whether a final status opens the tunnel.
///
/// # Errors
/// Why it does not. `with_auth`: credentials were sent.
pub fn accept(status: u16, with_auth: bool) -> Result<(), Refusal> {
    if (200..300).contains(&status) { Ok(()) } else { Err(Refusal::Status { status, with_auth }) }
}

impl Refusal {
    /// Whose fault it is. RFC 9110 section 15.6 leaves it open for most codes whether the proxy or what lies behind it is
    /// to blame.
    pub fn fault(&self) -> Fault {
        match self {
            Refusal::Status { status: 407 | 401 | 405 | 501, .. } => Fault::Proxy,
            // what proxies say when the destination refuses, does not answer, has no address, or is not allowed
            Refusal::Status { status: 403 | 404 | 502 | 504, .. } => Fault::Destination,
            Refusal::Status { .. } => Fault::Unclear,
            Refusal::NotHttp { .. } | Refusal::Version { .. } | Refusal::TooLong => Fault::Proxy,
            Refusal::OutputTooSmall => Fault::Caller,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotHttp { got } => write!(f, "no HTTP proxy there: octet 0x{got:02x} in its status line"),
            Refusal::Version { got } => write!(f, "it answers with HTTP/{}, not HTTP/1", char::from(*got)),
            Refusal::TooLong => write!(f, "the head of its answer has more than {HEAD_MAX} bytes"),
            // tinyproxy says 401 where 407 is meant
            Refusal::Status { status: 401 | 407, with_auth: true } => {
                f.write_str("it does not take username and password")
            }
            Refusal::Status { status: 401 | 407, .. } => f.write_str("it demands username and password"),
            Refusal::Status { status, .. } => write!(f, "it answers with status {status}{}", meaning(*status)),
            Refusal::OutputTooSmall => f.write_str("the request is longer than its buffer"),
        }
    }
}

/// What the code says, of those that proxies use (RFC 9110 section 15).
fn meaning(status: u16) -> &'static str {
    match status {
        400 => " (bad request)",
        403 => " (forbidden)",
        404 => " (not found)",
        405 => " (method not allowed)",
        500 => " (internal error)",
        501 => " (not implemented)",
        502 => " (bad gateway)",
        503 => " (service unavailable)",
        504 => " (gateway timeout)",
        _ => "",
    }
}

#[cfg(test)]
mod tests;

//! Why a SOCKS5 handshake fails, in words, and whose fault that is.

use std::fmt;

use super::OUTPUT_MAX;

/// Why a handshake ended without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The first octet of an answer was not 5.
    NotSocks5 {
        /// The octet instead.
        got: u8,
    },
    /// METHOD 0xFF: none of the offered methods is acceptable (RFC 1928 section 3).
    NoMethod {
        /// Whether username and password were among the offered.
        with_auth: bool,
    },
    /// A method was chosen that was not offered.
    UnexpectedMethod {
        /// METHOD.
        got: u8,
    },
    /// The answer to username and password has another version than 1 (RFC 1929 section 2).
    AuthVersion {
        /// VER.
        got: u8,
    },
    /// Username or password is wrong.
    AuthFailed {
        /// STATUS, not 0.
        status: u8,
    },
    /// The request was refused (RFC 1928 section 6).
    Reply {
        /// REP, not 0.
        rep: u8,
    },
    /// ATYP of a reply is none of 1, 3, 4 (RFC 1928 section 5).
    BadAddressType {
        /// ATYP.
        got: u8,
    },
    /// Username or password is missing, empty or longer than 255 octets.
    BadCredentials,
    /// The output buffer is smaller than what is to be sent; [`OUTPUT_MAX`] is always enough.
    OutputTooSmall,
    /// The handshake was stepped after its end.
    Over,
}

/// Whose fault a refusal is: what a health check may conclude from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The proxy works, and speaks of the destination that the client asked for.
    Destination,
    /// No session will do better with this proxy as it is configured, here or there.
    Proxy,
    /// Servers send this both for trouble of their own and for a destination's.
    Unclear,
    /// The handshake was driven wrongly.
    Caller,
}

impl Refusal {
    /// Whose fault it is.
    ///
    /// RFC 1928 section 6 calls reply 1 a failure of the server, but many send it for any error of `connect(2)`.
    pub fn fault(&self) -> Fault {
        match self {
            Refusal::Reply { rep: 0x02..=0x06 } => Fault::Destination,
            Refusal::Reply { rep: 0x07 | 0x08 } => Fault::Proxy,
            Refusal::Reply { .. } => Fault::Unclear,
            Refusal::NotSocks5 { .. }
            | Refusal::NoMethod { .. }
            | Refusal::UnexpectedMethod { .. }
            | Refusal::AuthVersion { .. }
            | Refusal::AuthFailed { .. }
            | Refusal::BadAddressType { .. } => Fault::Proxy,
            Refusal::BadCredentials | Refusal::OutputTooSmall | Refusal::Over => Fault::Caller,
        }
    }

    /// True if the destination itself refused the connection, as by a TCP reset.
    pub fn destination_refused(&self) -> bool {
        matches!(self, Refusal::Reply { rep: 0x05 })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Refusal::NotSocks5 { got: b'H' } => {
                f.write_str("not a SOCKS5 server: it answers like an HTTP server (octet 0x48, not 0x05)")
            }
            Refusal::NotSocks5 { got } => write!(f, "not a SOCKS5 server: it answers with octet {got:#04x}, not 0x05"),
            Refusal::NoMethod { with_auth: true } => {
                f.write_str("SOCKS5 server accepts neither username and password nor a client without them")
            }
            Refusal::NoMethod { with_auth: false } => {
                f.write_str("SOCKS5 server demands authentication, and no username is configured")
            }
            Refusal::UnexpectedMethod { got } => {
                write!(f, "SOCKS5 server chose authentication method {got:#04x}, which was not offered")
            }
            Refusal::AuthVersion { got } => {
                write!(f, "SOCKS5 server answers the password with version {got:#04x}, not 0x01")
            }
            Refusal::AuthFailed { status } => {
                write!(f, "SOCKS5 server does not accept username and password (status {status})")
            }
            Refusal::Reply { rep } => write!(f, "SOCKS5 server refused: {} (reply {rep})", reply_words(rep)),
            Refusal::BadAddressType { got } => {
                write!(f, "SOCKS5 server replies with address type {got:#04x}, not 0x01, 0x03 or 0x04")
            }
            Refusal::BadCredentials => f.write_str("username and password must have 1 to 255 octets each"),
            Refusal::OutputTooSmall => write!(f, "SOCKS5 output buffer has less than {OUTPUT_MAX} bytes"),
            Refusal::Over => f.write_str("SOCKS5 handshake is over already"),
        }
    }
}

impl std::error::Error for Refusal {}

/// RFC 1928 section 6, REP.
fn reply_words(rep: u8) -> &'static str {
    match rep {
        0x01 => "general server failure",
        0x02 => "not allowed by its rules",
        0x03 => "network unreachable",
        0x04 => "host unreachable",
        0x05 => "connection refused",
        0x06 => "TTL expired",
        0x07 => "command not supported",
        0x08 => "address type not supported",
        _ => "a code that RFC 1928 does not assign",
    }
}

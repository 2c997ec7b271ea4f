//! SOCKS5 server: what a client that is told asks for, and what it is answered (RFC 1928). No authentication: who may
//! connect is said by address.

use super::sniff::Name;
use super::socks5::{Endpoint, put_address, read_address};
use super::{Reader, Writer};
use std::net::SocketAddr;

/// What has been understood of the bytes that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<T> {
    /// Too few to tell.
    More,
    /// A whole message of that many octets.
    Whole(T, usize),
    /// Nothing that this protocol knows.
    Bad,
}

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "on the stack for a moment; a box would be an allocation for each connection"
)]
pub enum Target {
    /// An address.
    Address(SocketAddr),
    /// A name, which is looked up on this side.
    Name(Name, u16),
}

/// What a client asks.
#[allow(clippy::large_enum_variant, reason = "as for Target")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A connection.
    Connect(Target),
    /// A relay for datagrams.
    Associate,
    /// Something else: it is answered by [`COMMAND_NOT_SUPPORTED`].
    Other,
    /// An address of another kind: [`ADDRESS_NOT_SUPPORTED`].
    BadAddress,
}

/// Octets of the longest reply.
pub const REPLY_MAX: usize = 3 + 1 + 16 + 2;

/// REP of RFC 1928 section 6.
pub const SUCCEEDED: u8 = 0x00;
/// The rules don't let it through.
pub const NOT_ALLOWED: u8 = 0x02;
/// Host unreachable: whatever became of a dial that failed.
pub const UNREACHABLE: u8 = 0x04;
/// No such command.
pub const COMMAND_NOT_SUPPORTED: u8 = 0x07;
/// No such kind of address.
pub const ADDRESS_NOT_SUPPORTED: u8 = 0x08;

/// The answer to a greeting that offers "no authentication required", and to one that doesn't (section 3).
pub const METHODS: [[u8; 2]; 2] = [[5, 0], [5, 0xff]];

/// Reads the greeting: whether "no authentication required" is among its methods.
pub fn greeting(bytes: &[u8]) -> Heard<bool> {
    let mut input = Reader::new(bytes);
    match input.u8() {
        None => return Heard::More,
        Some(5) => {}
        Some(_) => return Heard::Bad,
    }
    let methods = input.u8().and_then(|count| input.take(count.into()));
    methods.map_or(Heard::More, |methods| Heard::Whole(methods.contains(&0), input.used()))
}

/// Reads the request (section 4).
pub fn request(bytes: &[u8]) -> Heard<Request> {
    let mut input = Reader::new(bytes);
    match input.u8() {
        None => return Heard::More,
        Some(5) => {}
        Some(_) => return Heard::Bad,
    }
    let (Some(command), Some(_)) = (input.u8(), input.u8()) else { return Heard::More };
    let target = match read_address(&mut input) {
        Ok(None) => return Heard::More,
        Err(_) => return Heard::Whole(Request::BadAddress, bytes.len()),
        Ok(Some(Endpoint::Address(address))) => Target::Address(address),
        Ok(Some(Endpoint::Name { name, port })) => match target(name, port) {
            Some(target) => target,
            None => return Heard::Whole(Request::BadAddress, input.used()),
        },
    };
    let request = match command {
        1 => Request::Connect(target),
        3 => Request::Associate,
        _ => Request::Other,
    };
    Heard::Whole(request, input.used())
}

/// A host as it was written: an address, with or without brackets, or a name.
pub(super) fn target(host: &[u8], port: u16) -> Option<Target> {
    let bare = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host);
    match std::str::from_utf8(bare).ok()?.parse() {
        Ok(ip) => Some(Target::Address(SocketAddr::new(ip, port))),
        Err(_) => Some(Target::Name(Name::parse(host)?, port)),
    }
}

/// Writes a reply with BND.ADDR and BND.PORT; returns its length.
pub fn reply(code: u8, bound: SocketAddr, out: &mut [u8; REPLY_MAX]) -> usize {
    let mut out = Writer::new(out);
    // REPLY_MAX octets hold every reply, so no `put` fails.
    let _ = out.put(&[5, code, 0]).and_then(|()| put_address(&mut out, bound));
    out.written()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_tells_whether_it_can_do_without_a_password() {
        assert_eq!(greeting(b"\x05\x02\x00\x02rest"), Heard::Whole(true, 4));
        assert_eq!(greeting(b"\x05\x01\x02"), Heard::Whole(false, 3));
        assert_eq!(greeting(b"\x04\x01"), Heard::Bad);
        for cut in 0..4 {
            assert_eq!(greeting(&b"\x05\x02\x00\x02"[..cut]), Heard::More);
        }
    }

    #[test]
    fn requests_name_addresses_of_both_families_and_names_and_every_prefix_needs_more() {
        let v4 = b"\x05\x01\x00\x01\xcb\x00\x71\x09\x01\xbb";
        let v6 = b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x01\xbb";
        let name = b"\x05\x01\x00\x03\x0cExample.test\x00\x50";
        let literal = b"\x05\x01\x00\x03\x0b203.0.113.9\x01\xbb";
        let at = |text: &str| Request::Connect(Target::Address(text.parse().unwrap()));
        let by_name = Request::Connect(Target::Name(Name::parse(b"example.test").unwrap(), 80));
        for (bytes, expected) in [
            (&v4[..], at("203.0.113.9:443")),
            (v6, at("[2001:db8::9]:443")),
            (name, by_name),
            (literal, at("203.0.113.9:443")),
        ] {
            assert_eq!(request(bytes), Heard::Whole(expected, bytes.len()));
            for cut in 0..bytes.len() {
                assert_eq!(request(&bytes[..cut]), Heard::More, "cut at {cut}");
            }
        }
        assert_eq!(request(b"\x05\x03\x00\x01\0\0\0\0\0\0x"), Heard::Whole(Request::Associate, 10));
        assert_eq!(request(b"\x05\x02\x00\x01\0\0\0\0\0\0"), Heard::Whole(Request::Other, 10));
        assert_eq!(request(b"\x05\x01\x00\x07"), Heard::Whole(Request::BadAddress, 4));
    }

    #[test]
    fn replies_have_the_form_of_rfc_1928_section_6() {
        let mut out = [0; REPLY_MAX];
        let n = reply(SUCCEEDED, "192.0.2.1:1080".parse().unwrap(), &mut out);
        assert_eq!(out[..n], [5, 0, 0, 1, 192, 0, 2, 1, 4, 0x38]);
        assert_eq!(reply(UNREACHABLE, "[::1]:1".parse().unwrap(), &mut out), REPLY_MAX);
    }

    proptest::proptest! {
        #[test]
        fn no_octets_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = (greeting(&bytes), request(&bytes));
        }
    }
}

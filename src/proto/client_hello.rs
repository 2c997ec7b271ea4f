//! The server's name in a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3), wherever its records are cut.
//!
//! QUIC carries the same message without records, in its CRYPTO frames: [`in_message`].

use super::sniff::Name;
use super::{Reader, fill, up_to};

/// Content type of a record with handshake messages; the first octet that a TLS client sends.
pub const HANDSHAKE_RECORD: u8 = 22;

/// What a ClientHello tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "it lives for one call, and nothing here allocates")]
pub enum Hello {
    /// It is not complete.
    More,
    /// It asks for this server.
    Name {
        /// The server's name; with ECH the outer one, which is that of the provider.
        name: Name,
        /// The name that the client means is encrypted (ECH); a client that only pretends (GREASE) looks the same.
        ech: bool,
    },
    /// It asks for no server by name.
    NoName {
        /// As above.
        ech: bool,
    },
    /// It is something else.
    NotHello,
}

/// Octets of the message that are looked at. Those with two post-quantum key shares have about 1,900.
const MESSAGE_MAX: usize = 4096;

/// Reads the ClientHello that begins a TLS stream.
pub fn in_records(stream: &[u8]) -> Hello {
    let mut message = [0; MESSAGE_MAX];
    let mut have = 0;
    let mut input = Reader::new(stream);
    while let Some([kind, major, _]) = input.array() {
        // the version is 3.1 or 3.3 (RFC 8446 section 5.1), but clients are to be judged by what follows
        if kind != HANDSHAKE_RECORD || major != 3 {
            return Hello::NotHello;
        }
        let Some(len) = input.u16() else { break };
        if len == 0 || len > 1 << 14 {
            return Hello::NotHello;
        }
        let part = up_to(input.rest(), len.into());
        have += fill(message.get_mut(have..).unwrap_or_default(), part);
        match in_message(up_to(&message, have)) {
            Hello::More if have < MESSAGE_MAX => {}
            Hello::More => return Hello::NotHello,
            told => return told,
        }
        if input.take(len.into()).is_none() {
            break;
        }
    }
    match stream {
        // three octets are not there yet, or the length after them
        [kind, major, ..] if *kind != HANDSHAKE_RECORD || *major != 3 => Hello::NotHello,
        [kind] if *kind != HANDSHAKE_RECORD => Hello::NotHello,
        _ => Hello::More,
    }
}

/// Reads a ClientHello of which `message` is the beginning: 4 octets of header, then the body.
pub fn in_message(message: &[u8]) -> Hello {
    let mut header = Reader::new(message);
    match header.u8() {
        None => return Hello::More,
        Some(1) => {}
        Some(_) => return Hello::NotHello,
    }
    let Some([high, a, b]) = header.array() else { return Hello::More };
    let len = usize::from(u16::from_be_bytes([a, b]));
    if high != 0 || len < 2 + 32 + 1 + 2 + 1 {
        return Hello::NotHello;
    }
    let body = up_to(header.rest(), len);
    match extensions(&mut Reader::new(body), len) {
        Ok(told) => told,
        Err(Short) if body.len() == len => Hello::NotHello,
        Err(Short) => Hello::More,
    }
}

/// The bytes end before the message does, or the message before what it announces.
struct Short;

fn extensions(body: &mut Reader<'_>, len: usize) -> Result<Hello, Short> {
    let version = body.u16().ok_or(Short)?;
    if version >> 8 != 3 {
        return Ok(Hello::NotHello);
    }
    body.take(32).ok_or(Short)?;
    let session_id = body.u8().ok_or(Short)?;
    body.take(session_id.into()).ok_or(Short)?;
    let suites = body.u16().ok_or(Short)?;
    body.take(suites.into()).ok_or(Short)?;
    let compressions = body.u8().ok_or(Short)?;
    body.take(compressions.into()).ok_or(Short)?;
    if body.used() == len {
        // before TLS 1.2 a hello could end here
        return Ok(Hello::NoName { ech: false });
    }
    let all = usize::from(body.u16().ok_or(Short)?);
    let end = body.used() + all;
    if end != len {
        return Ok(Hello::NotHello);
    }
    let (mut name, mut ech) = (None, false);
    while body.used() < end {
        let kind = body.u16().ok_or(Short)?;
        let size = body.u16().ok_or(Short)?;
        let value = body.take(size.into()).ok_or(Short)?;
        match kind {
            SERVER_NAME if name.is_none() => name = Some(server_name(value)),
            ENCRYPTED_CLIENT_HELLO => ech = true,
            _ => {}
        }
    }
    Ok(match name.flatten() {
        Some(name) => Hello::Name { name, ech },
        None => Hello::NoName { ech },
    })
}

/// The host name in a server_name extension.
fn server_name(value: &[u8]) -> Option<Name> {
    let mut list = Reader::new(value);
    let len = list.u16()?;
    let mut list = Reader::new(list.take(len.into())?);
    loop {
        let kind = list.u8()?;
        let len = list.u16()?;
        let text = list.take(len.into())?;
        if kind == HOST_NAME {
            return Name::parse(text);
        }
    }
}

const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// RFC 9849 section 5.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A ClientHello message with these extensions.
    pub(in crate::proto) fn message(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([32]);
        body.extend([8; 32]);
        body.extend([0, 4, 0x13, 0x01, 0x13, 0x02, 1, 0]);
        let values: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, value)| [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat())
            .collect();
        body.extend((values.len() as u16).to_be_bytes());
        body.extend(values);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    /// The value of a server_name extension.
    pub(in crate::proto) fn sni(name: &str) -> Vec<u8> {
        let len = name.len() as u16;
        [&(len + 3).to_be_bytes()[..], &[0], &len.to_be_bytes(), name.as_bytes()].concat()
    }

    /// `message` in records of `size` octets.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|part| [&[22, 3, 1, (part.len() >> 8) as u8, part.len() as u8], part].concat())
            .collect()
    }

    fn hello(name: &str) -> Vec<u8> {
        message(&[(0x0a0a, &[]), (SERVER_NAME, &sni(name)), (43, &[2, 3, 4])])
    }

    fn name(text: &str) -> Hello {
        Hello::Name { name: Name::parse(text.as_bytes()).unwrap(), ech: false }
    }

    #[test]
    fn the_name_is_found_wherever_records_are_cut() {
        let message = hello("Video.Example");
        for size in 1..=message.len() {
            assert_eq!(in_records(&records(&message, size)), name("video.example"), "records of {size}");
        }
    }

    #[test]
    fn every_prefix_of_a_hello_needs_more() {
        let message = hello("video.example");
        for size in [message.len(), 60, 7] {
            let stream = records(&message, size);
            for cut in 0..stream.len() {
                assert_eq!(in_records(&stream[..cut]), Hello::More, "cut at {cut}");
            }
        }
        for cut in 0..message.len() {
            assert_eq!(in_message(&message[..cut]), Hello::More, "cut at {cut}");
        }
    }

    #[test]
    fn a_hello_without_a_name_says_so() {
        assert_eq!(in_message(&message(&[(43, &[2, 3, 4])])), Hello::NoName { ech: false });
        assert_eq!(in_message(&message(&[(SERVER_NAME, &sni("192.0.2.1"))])), Hello::NoName { ech: false });
        assert_eq!(in_message(&message(&[(SERVER_NAME, &[0, 9, 0])])), Hello::NoName { ech: false });
    }

    #[test]
    fn an_encrypted_hello_is_recognised() {
        let both = message(&[(ENCRYPTED_CLIENT_HELLO, &[0; 20]), (SERVER_NAME, &sni("provider.example"))]);
        let outer = Name::parse(b"provider.example").unwrap();
        assert_eq!(in_message(&both), Hello::Name { name: outer, ech: true });
        assert_eq!(in_message(&message(&[(ENCRYPTED_CLIENT_HELLO, &[0; 20])])), Hello::NoName { ech: true });
    }

    #[test]
    fn lengths_that_lie_are_no_hello() {
        let good = hello("video.example");
        for at in [2, 38, 71, 77, 79, 83] {
            let mut bad = good.clone();
            bad[at] = 0xff;
            assert_ne!(in_records(&records(&bad, bad.len())), name("video.example"), "octet {at}");
        }
        assert_eq!(in_records(b"\x16\x03\x01\x00\x00"), Hello::NotHello, "an empty record");
        assert_eq!(in_records(b"\x16\x03\x01\xff\xff"), Hello::NotHello, "a record that is too long");
        assert_eq!(in_records(b"\x16\x02"), Hello::NotHello);
        assert_eq!(in_records(b"\x16\x03\x01\x00\x05\x02"), Hello::NotHello, "a ServerHello");
    }

    #[test]
    fn a_hello_that_never_ends_is_given_up() {
        let mut endless = hello("video.example");
        endless.truncate(85);
        endless[2..4].copy_from_slice(&[0xf0, 0]);
        endless[79..81].copy_from_slice(&[0xef, 0xb3]);
        endless.resize(MESSAGE_MAX + 100, 0);
        assert_eq!(in_records(&records(&endless, 1000)), Hello::NotHello);
    }
}

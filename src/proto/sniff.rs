//! The name that a client asks for, out of the first bytes that it sends: TLS ClientHello or HTTP/1 head.

use super::client_hello::{self, Hello};
use super::http_head;
use super::up_to;

/// What the first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "it lives for one call, and nothing here allocates")]
pub enum Sniff {
    /// Too few to tell.
    More,
    /// The client asks for this name, in lower case.
    Name(Name),
    /// They hold no name.
    Unknown,
}

/// A name that can be looked up, in lower case without a trailing dot; an address is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    text: [u8; NAME_MAX],
    len: u8,
}

/// Longest name, as DNS has it.
const NAME_MAX: usize = 253;

/// Longest part between two dots.
const LABEL_MAX: usize = 63;

impl Name {
    /// Reads a host name as it stands in a ClientHello or a `Host:` field, without a port. `None`: it is an address, or
    /// something that no server has as its name.
    pub fn parse(text: &[u8]) -> Option<Name> {
        let text = text.strip_suffix(b".").unwrap_or(text);
        if text.is_empty() || text.len() > NAME_MAX {
            return None;
        }
        let mut name = Name { text: [0; NAME_MAX], len: text.len() as u8 };
        for (to, from) in name.text.iter_mut().zip(text) {
            *to = from.to_ascii_lowercase();
        }
        let good = |label: &[u8]| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-' || *c == b'_')
        };
        // a last label of digits alone is an address, or part of one
        let last_is_number = text.rsplit(|c| *c == b'.').next().is_some_and(|last| last.iter().all(u8::is_ascii_digit));
        (!last_is_number && text.split(|c| *c == b'.').all(good)).then_some(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // only ASCII got in
        std::str::from_utf8(up_to(&self.text, self.len.into())).unwrap_or_default()
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Looks for a name in the first `bytes` of a TCP stream. Protocols in which the server speaks first are told by the first
/// octet that the client sends, if it sends any.
pub fn sniff(bytes: &[u8]) -> Sniff {
    match bytes.first() {
        None => Sniff::More,
        Some(&client_hello::HANDSHAKE_RECORD) => match client_hello::in_records(bytes) {
            Hello::More => Sniff::More,
            Hello::Name { name, .. } => Sniff::Name(name),
            Hello::NoName { .. } | Hello::NotHello => Sniff::Unknown,
        },
        Some(_) => http_head::sniff(bytes),
    }
}

/// What holds for any bytes, for tests and fuzzers: an answer is never taken back when more bytes come.
///
/// # Panics
/// If it does not hold.
pub fn check_prefix_law(bytes: &[u8]) {
    let mut decided = None;
    for end in 0..=bytes.len() {
        let now = sniff(up_to(bytes, end));
        match decided {
            None if now != Sniff::More => decided = Some(now),
            None => {}
            Some(before) => assert_eq!(before, now, "decided before octet {end}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_what_dns_would_take() {
        let name = |text: &str| Name::parse(text.as_bytes()).map(|name| name.as_str().to_owned());
        assert_eq!(name("WWW.Example.COM."), Some("www.example.com".to_owned()));
        assert_eq!(name("_dmarc.xn--bcher-kva.example"), Some("_dmarc.xn--bcher-kva.example".to_owned()));
        for wrong in ["", ".", "a..b", "192.0.2.1", "a b", "a/b", "[::1]", "::1", "a\0b", "b\u{fc}cher.example"] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
        assert_eq!(name(&format!("{}.example", "a".repeat(64))), None);
        assert_eq!(name(&vec!["a".repeat(63); 4].join(".")), None, "255 octets");
    }

    /// A ClientHello as Chromium 156 and Firefox 153 sent it, with its values that mean nothing and its encrypted hello.
    #[test]
    fn what_browsers_send_asks_for_www_video_example_as_soon_as_the_name_has_come() {
        for hex in [
            include_str!("../../tests/fixtures/chromium-156-tls.hex"),
            include_str!("../../tests/fixtures/firefox-153-tls.hex"),
        ] {
            let hex = hex.trim();
            let hello: Vec<u8> =
                (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
            let name = Sniff::Name(Name::parse(b"www.video.example").unwrap());
            assert_eq!(sniff(&hello), name);
            for cut in 0..hello.len() {
                assert!([Sniff::More, name].contains(&sniff(&hello[..cut])), "cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_never_taken_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check_prefix_law(&bytes);
        }

        #[test]
        fn an_answer_is_never_taken_back_in_a_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check_prefix_law(&[&[22, 3, 1, 0, 190, 1, 0, 0, 186, 3, 3], bytes.as_slice()].concat());
        }

        #[test]
        fn an_answer_is_never_taken_back_in_a_head(bytes in "[ -~\r\n]{0,150}") {
            check_prefix_law(format!("GET / HTTP/1.1\r\n{bytes}").as_bytes());
        }
    }
}

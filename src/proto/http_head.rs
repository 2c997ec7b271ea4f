//! The head of an HTTP/1 message (RFC 9112): where it ends, its first line and its fields, without allocation.

use super::sniff::{Name, Sniff};

/// How far a head has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head<'a> {
    /// The empty line has not come.
    More,
    /// All of it, without the empty line.
    Complete {
        /// The first line.
        first: &'a [u8],
        /// The lines of fields.
        fields: Fields<'a>,
        /// Octets of head, the empty line included: what follows is something else.
        used: usize,
    },
}

/// Reads the head at the beginning of `bytes`. A bare LF ends a line as well (RFC 9112 section 2.2).
pub fn read(bytes: &[u8]) -> Head<'_> {
    let Some((first, end)) = line(bytes, 0) else { return Head::More };
    let mut at = end;
    while let Some((text, next)) = line(bytes, at) {
        if text.is_empty() {
            let lines = bytes.get(end..at).unwrap_or_default();
            return Head::Complete { first, fields: Fields { lines }, used: next };
        }
        at = next;
    }
    Head::More
}

/// The line that begins at `at`, without its end, and where the next one begins.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let len = rest.iter().position(|c| *c == b'\n')? + 1;
    Some((without_end(rest.get(..len)?), at + len))
}

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The fields of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields<'a> {
    lines: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The value of the first field of this name, without blanks around it.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.lines.split(|c| *c == b'\n').find_map(|line| field(without_end(line), name))
    }
}

fn field<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut parts = line.splitn(2, |c| *c == b':');
    let (known, value) = (parts.next()?, parts.next()?);
    known.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
}

/// The three parts of a request line: method, target, version.
pub fn request_line(line: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = line.split(|c| *c == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let is_method = !method.is_empty() && method.len() <= METHOD_MAX && method.iter().all(|c| is_method_byte(*c));
    (is_method && !target.is_empty() && version.starts_with(b"HTTP/1.") && parts.next().is_none())
        .then_some((method, target, version))
}

/// The host of `host`, `host:port`, `[address]:port`.
pub fn host_of(authority: &[u8]) -> &[u8] {
    if authority.first() == Some(&b'[') {
        return authority;
    }
    authority.split(|c| *c == b':').next().unwrap_or(authority)
}

/// Longest method that is known: `UPDATEREDIRECTREF`, and some room.
const METHOD_MAX: usize = 20;

fn is_method_byte(c: u8) -> bool {
    c.is_ascii_uppercase() || c == b'-' || c == b'_'
}

/// Looks for the name that a request asks for: the authority of CONNECT, else `Host:`, as soon as that line is complete.
pub(super) fn sniff(bytes: &[u8]) -> Sniff {
    let method = bytes.iter().take_while(|c| is_method_byte(**c)).count();
    match bytes.get(method) {
        None if method <= METHOD_MAX => return Sniff::More,
        Some(b' ') if (1..=METHOD_MAX).contains(&method) => {}
        _ => return Sniff::Unknown,
    }
    let first = line(bytes, 0);
    // no text: nor will it be when its line ends
    if first.map_or(bytes, |(text, _)| text).contains(&0) {
        return Sniff::Unknown;
    }
    let Some((first, end)) = first else { return Sniff::More };
    let Some((method, target, _)) = request_line(first) else { return Sniff::Unknown };
    let told = |authority: &[u8]| Name::parse(host_of(authority)).map_or(Sniff::Unknown, Sniff::Name);
    if method == b"CONNECT" {
        return told(target);
    }
    let mut at = end;
    while let Some((text, next)) = line(bytes, at) {
        if text.is_empty() {
            return Sniff::Unknown;
        }
        if let Some(host) = field(text, "Host") {
            return told(host);
        }
        at = next;
    }
    Sniff::More
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Sniff {
        Sniff::Name(Name::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn the_host_is_told_as_soon_as_its_line_is_complete() {
        let request = b"GET /x HTTP/1.1\r\nAccept: */*\r\nhost:  Video.Example:8080 \r\n";
        for cut in 0..request.len() {
            assert_eq!(sniff(&request[..cut]), Sniff::More, "cut at {cut}");
        }
        assert_eq!(sniff(request), name("video.example"));
        assert_eq!(sniff(b"GET / HTTP/1.0\nHost: a.example\n"), name("a.example"));
        assert_eq!(sniff(b"CONNECT a.example:443 HTTP/1.1\r\n"), name("a.example"));
    }

    #[test]
    fn what_is_no_request_is_given_up_at_once() {
        for other in [
            &b"SSH-2.0-OpenSSH"[..],
            b"get / HTTP/1.1\r\n",
            b"\x13BitTorrent",
            b"GET /\r\n",
            b"GET / HTTP/1.1 x\r\n",
            b"GET / HTTP/2\r\n",
            b"GET \0",
            b" ",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n",
            b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n",
            b"ABCDEFGHIJKLMNOPQRSTU",
        ] {
            assert_eq!(sniff(other), Sniff::Unknown, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_head_ends_at_the_empty_line() {
        let bytes = b"HTTP/1.1 200 OK\r\nA: 1\r\nVia:  x y \r\n\r\npayload";
        for cut in 0..bytes.len() - 7 {
            assert_eq!(read(&bytes[..cut]), Head::More, "cut at {cut}");
        }
        let Head::Complete { first, fields, used } = read(bytes) else { panic!() };
        assert_eq!((first, &bytes[used..]), (&b"HTTP/1.1 200 OK"[..], &b"payload"[..]));
        assert_eq!((fields.get("via"), fields.get("B")), (Some(&b"x y"[..]), None));
    }
}

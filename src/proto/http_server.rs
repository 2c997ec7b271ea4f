//! HTTP proxy: what a client that is told asks for (RFC 9110 section 9.3.6 CONNECT, RFC 9112 section 3.2.2 absolute form), and
//! what it is answered.

use super::Writer;
use super::socks5_server::{Heard, Target, target};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A connection.
    Connect(Target),
    /// One request, to be passed on to this host by [`origin_form`].
    Forward(Target),
}

/// Octets that a head may have.
pub const HEAD_MAX: usize = 16 * 1024;

/// The connection stands.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// What was asked makes no sense to a proxy.
pub const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/// The rules don't let it through.
pub const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/// The destination can't be reached.
pub const BAD_GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Reads a request's head.
pub fn request(bytes: &[u8]) -> Heard<Request> {
    let Some(end) = head_end(bytes) else {
        return if bytes.len() < HEAD_MAX { Heard::More } else { Heard::Bad };
    };
    match first_line(bytes) {
        Some((b"CONNECT", authority, _)) => match split(authority, None) {
            Some(target) => Heard::Whole(Request::Connect(target), end),
            None => Heard::Bad,
        },
        Some((_, uri, _)) => match absolute(uri).and_then(|(authority, _)| split(authority, Some(80))) {
            Some(target) => Heard::Whole(Request::Forward(target), end),
            None => Heard::Bad,
        },
        None => Heard::Bad,
    }
}

/// Writes a head of [`Request::Forward`] as the server wants it: origin form, nothing that was for the proxy, and an end of
/// the connection after the answer, since the client's next request may be for another host. `None` if it does not fit.
pub fn origin_form(head: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut out = Writer::new(out);
    let (method, uri, version) = first_line(head)?;
    let (_, path) = absolute(uri)?;
    for part in [method, b" ", if path.starts_with(b"/") { &b""[..] } else { b"/" }, path, b" ", version, b"\r\n"] {
        out.put(part)?;
    }
    for line in head.split(|c| *c == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let name = line.split(|c| *c == b':').next().unwrap_or_default();
        if !line.is_empty() && !DROPPED.iter().any(|dropped| name.eq_ignore_ascii_case(dropped)) {
            out.put(line)?;
            out.put(b"\r\n")?;
        }
    }
    out.put(b"Connection: close\r\n\r\n")?;
    Some(out.written())
}

/// Fields between the client and us (RFC 9110 section 7.6.1).
const DROPPED: [&[u8]; 4] = [b"Connection", b"Proxy-Connection", b"Proxy-Authorization", b"Keep-Alive"];

/// Where the head ends, its empty line included.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Method, target, version.
fn first_line(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let line = bytes.split(|c| *c == b'\n').next()?;
    let mut words = line.strip_suffix(b"\r")?.split(|c| *c == b' ');
    let (method, uri, version) = (words.next()?, words.next()?, words.next()?);
    (words.next().is_none() && version.starts_with(b"HTTP/1.")).then_some((method, uri, version))
}

/// Authority and the rest of `http://authority/rest`.
fn absolute(uri: &[u8]) -> Option<(&[u8], &[u8])> {
    let (scheme, rest) = uri.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"http://").then_some(())?;
    let end = rest.iter().position(|c| matches!(c, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// Host and port.
fn split(authority: &[u8], default: Option<u16>) -> Option<Target> {
    let authority = authority.rsplit(|c| *c == b'@').next()?;
    let colon = authority.iter().rposition(|c| *c == b':');
    let (host, port) = match colon.and_then(|at| authority.split_at_checked(at)) {
        Some((host, [_, port @ ..])) if !port.contains(&b']') => (host, std::str::from_utf8(port).ok()?.parse().ok()?),
        _ => (authority, default?),
    };
    target(host, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sniff::Name;

    fn name(text: &str, port: u16) -> Target {
        Target::Name(Name::parse(text.as_bytes()).unwrap(), port)
    }

    #[test]
    fn connect_names_host_and_port_and_every_prefix_needs_more() {
        for (authority, target) in [
            ("example.test:443", name("example.test", 443)),
            ("203.0.113.9:443", Target::Address("203.0.113.9:443".parse().unwrap())),
            ("[2001:db8::9]:443", Target::Address("[2001:db8::9]:443".parse().unwrap())),
        ] {
            let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: x\r\n\r\n");
            let bytes = [head.as_bytes(), b"tls"].concat();
            assert_eq!(request(&bytes), Heard::Whole(Request::Connect(target), head.len()));
            for cut in 0..head.len() {
                assert_eq!(request(&head.as_bytes()[..cut]), Heard::More, "cut at {cut}");
            }
        }
    }

    #[test]
    fn an_absolute_request_becomes_one_of_origin_form() {
        let head = b"GET http://Example.test/a?b=c HTTP/1.1\r\nHost: example.test\r\nProxy-Connection: keep-alive\r\n\
            Proxy-Authorization: Basic x\r\nAccept: */*\r\n\r\n";
        assert_eq!(request(head), Heard::Whole(Request::Forward(name("example.test", 80)), head.len()));
        let mut out = [0; 1024];
        let n = origin_form(head, &mut out).unwrap();
        let expected = "GET /a?b=c HTTP/1.1\r\nHost: example.test\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(std::str::from_utf8(&out[..n]).unwrap(), expected);
        let n = origin_form(b"GET http://example.test:8080?q HTTP/1.0\r\n\r\n", &mut out).unwrap();
        assert_eq!(&out[..n], b"GET /?q HTTP/1.0\r\nConnection: close\r\n\r\n");
        assert_eq!(origin_form(head, &mut out[..20]), None);
    }

    #[test]
    fn what_is_not_for_a_proxy_is_refused() {
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT example.test HTTP/1.1\r\n\r\n",
            "CONNECT example.test:http HTTP/1.1\r\n\r\n",
            "GET ftp://example.test/ HTTP/1.1\r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
            "nonsense\r\n\r\n",
            "GET http://example.test/ HTTP/2\r\n\r\n",
        ] {
            assert_eq!(request(bad.as_bytes()), Heard::Bad, "{bad}");
        }
        assert_eq!(request(&[b'x'; HEAD_MAX]), Heard::Bad);
    }

    proptest::proptest! {
        #[test]
        fn no_octets_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let head = [b"GET http://", &bytes[..], b"\r\n\r\n"].concat();
            let _ = (request(&bytes), request(&head), origin_form(&head, &mut [0; 400]));
        }
    }
}

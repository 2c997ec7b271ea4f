use super::*;

fn text(request: Request<'_>, credentials: Option<(&[u8], &[u8])>) -> String {
    let mut out = [0; OUTPUT_MAX];
    let len = encode(request, credentials, &mut out).unwrap();
    String::from_utf8(out[..len].to_vec()).unwrap()
}

fn scanned(input: &[u8]) -> Result<Progress, Refusal> {
    Scanner::new().scan(input)
}

const ANSWER: &[u8] = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: tinyproxy/1.11.1\r\n\r\n";

#[test]
fn a_request_names_its_target_twice_and_a_v6_address_in_brackets() {
    let v4 = Request::Address("203.0.113.1:443".parse().unwrap());
    assert_eq!(text(v4, None), "CONNECT 203.0.113.1:443 HTTP/1.1\r\nHost: 203.0.113.1:443\r\n\r\n");
    let v6 = Request::Address("[2001:db8::1]:443".parse().unwrap());
    assert_eq!(text(v6, None), "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
    let name = text(Request::Name("www.example", 443), None);
    assert_eq!(name, "CONNECT www.example:443 HTTP/1.1\r\nHost: www.example:443\r\n\r\n");
}

#[test]
fn credentials_are_those_of_the_rfc_s_example() {
    // RFC 7617 section 2
    let request = text(Request::Options, Some((b"Aladdin", b"open sesame")));
    assert!(request.ends_with("Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"), "{request}");
    for (password, basic) in [("", "YTo="), ("b", "YTpi"), ("bc", "YTpiYw==")] {
        assert!(text(Request::Options, Some((b"a", password.as_bytes()))).contains(&format!("Basic {basic}\r\n")));
    }
}

#[test]
fn the_longest_request_fits() {
    let (name, secret) = ("n".repeat(255), [b'x'; 255]);
    let mut out = [0; OUTPUT_MAX];
    assert!(encode(Request::Name(&name, 65_535), Some((&secret, &secret)), &mut out).is_some());
    assert_eq!(encode(Request::Name(&name, 65_535), Some((&secret, &secret)), &mut out[..600]), None);
}

#[test]
fn every_prefix_of_an_answer_needs_more_and_its_end_is_found_in_any_pieces() {
    for cut in 0..ANSWER.len() {
        let mut scanner = Scanner::new();
        assert_eq!(scanner.scan(&ANSWER[..cut]), Ok(Progress::NeedMore), "cut at {cut}");
        let rest = [&ANSWER[cut..], b"tunnel"].concat();
        assert_eq!(scanner.scan(&rest), Ok(Progress::Done { used: ANSWER.len() - cut, status: 200 }));
    }
}

#[test]
fn interim_responses_are_passed_over() {
    let answer =
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".as_slice(), ANSWER].concat();
    assert_eq!(scanned(&answer), Ok(Progress::Done { used: answer.len(), status: 200 }));
}

#[test]
fn legal_and_tolerated_shapes_are_taken() {
    for answer in [
        "HTTP/1.0 200\r\n\r\n",
        "HTTP/1.1 200 \r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\rX\r\n\r\n",
    ] {
        assert_eq!(scanned(answer.as_bytes()), Ok(Progress::Done { used: answer.len(), status: 200 }), "{answer:?}");
    }
}

#[test]
fn what_is_no_answer_is_refused_at_the_first_octet_that_shows_it() {
    for (answer, refusal) in [
        (&b"SSH-2.0-OpenSSH"[..], Refusal::NotHttp { got: b'S' }),
        (b"\x05\x00", Refusal::NotHttp { got: 5 }),
        (b"HTTP/2 200", Refusal::Version { got: b'2' }),
        (b"HTTP/1.x", Refusal::NotHttp { got: b'x' }),
        (b"HTTP/1.1 2x", Refusal::NotHttp { got: b'x' }),
        (b"HTTP/1.1 099", Refusal::NotHttp { got: b'0' }),
        (b"HTTP/1.1 2000", Refusal::NotHttp { got: b'0' }),
    ] {
        assert_eq!(scanned(answer), Err(refusal), "{answer:?}");
    }
}

#[test]
fn an_endless_head_is_given_up() {
    let mut scanner = Scanner::new();
    assert_eq!(scanner.scan(b"HTTP/1.1 200 OK\r\n"), Ok(Progress::NeedMore));
    let line = [b'x'; 1000];
    assert!((0..20).any(|_| scanner.scan(&line) == Err(Refusal::TooLong)));
    let mut scanner = Scanner::new();
    let mut interim = (0..1000).map(|_| scanner.scan(b"HTTP/1.1 100 Continue\r\n\r\n"));
    assert!(interim.any(|progress| progress == Err(Refusal::TooLong)), "interim responses without end");
}

#[test]
fn a_status_tells_whose_fault_it_is() {
    assert_eq!(accept(204, false), Ok(()));
    let refused = |status| accept(status, true).unwrap_err();
    assert_eq!((refused(407).fault(), refused(502).fault()), (Fault::Proxy, Fault::Destination));
    assert_eq!((refused(503).fault(), refused(302).fault()), (Fault::Unclear, Fault::Unclear));
    assert_eq!(refused(407).to_string(), "it does not take username and password");
    assert_eq!(refused(502).to_string(), "it answers with status 502 (bad gateway)");
}

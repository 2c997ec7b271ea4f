use super::*;
use proptest::prelude::*;

const CREDENTIALS: Option<(&[u8], &[u8])> = Some((b"user", b"pass"));

/// RFC 1928 section 3: VER, METHOD.
const METHOD_NONE: &[u8] = &[0x05, 0x00];
const METHOD_PASSWORD: &[u8] = &[0x05, 0x02];
/// RFC 1929 section 2: VER, STATUS.
const AUTH_OK: &[u8] = &[0x01, 0x00];
/// RFC 1928 section 6: VER, REP, RSV, ATYP, BND.ADDR, BND.PORT.
const REPLY_V4: &[u8] = &[0x05, 0x00, 0x00, 0x01, 198, 51, 100, 9, 0x04, 0x38];
const REPLY_V6: &[u8] =
    &[0x05, 0x00, 0x00, 0x04, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x09, 0x04, 0x38];
const REPLY_NAME: &[u8] = &[0x05, 0x00, 0x00, 0x03, 0x04, b'e', b'x', b'i', b't', 0x04, 0x38];
/// As answered by servers that have no address to tell.
const REPLY_EMPTY_NAME: &[u8] = &[0x05, 0x00, 0x00, 0x03, 0x00, 0x04, 0x38];

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn target() -> SocketAddr {
    address("192.0.2.7:443")
}

fn at(stage: Stage, with_auth: bool) -> Handshake {
    Handshake { stage, ..Handshake::new(Command::Connect, target(), with_auth) }
}

fn step(handshake: &mut Handshake, input: &[u8]) -> (Result<Step, Refusal>, Vec<u8>) {
    let mut out = [0xee; OUTPUT_MAX];
    let credentials = CREDENTIALS.filter(|_| handshake.with_auth);
    let step = handshake.step(credentials, input, &mut out);
    let n = if let Ok(Step::Send { n, .. }) = step { n } else { 0 };
    (step, out[..n].to_vec())
}

/// Drives a whole handshake as a caller does, with the server's bytes coming in the given pieces.
/// Returns the bound address, all that was sent, and what was left over.
fn converse(handshake: &mut Handshake, pieces: &[&[u8]]) -> Result<(Bound, Vec<u8>, Vec<u8>), Refusal> {
    let (mut waiting, mut sent, mut done) = (Vec::new(), Vec::new(), None);
    for piece in std::iter::once(&[][..]).chain(pieces.iter().copied()) {
        waiting.extend_from_slice(piece);
        while done.is_none() {
            let (step, bytes) = step(handshake, &waiting);
            sent.extend(bytes);
            match step? {
                Step::Send { used, .. } => drop(waiting.drain(..used)),
                Step::NeedMore => break,
                Step::Done { used, bound } => {
                    waiting.drain(..used);
                    done = Some(bound);
                }
            }
        }
    }
    Ok((done.expect("the server's bytes were too few"), sent, waiting))
}

#[test]
fn who_has_been_taken_in_before_begins_with_the_request() {
    let mut handshake = Handshake::new(Command::Connect, target(), true).welcomed();
    assert_eq!((handshake.wanted(b""), handshake.awaits()), (0, "request"));
    let (first, sent) = step(&mut handshake, b"");
    assert_eq!((first, &sent[..3]), (Ok(Step::Send { used: 0, n: sent.len() }), &[5, 1, 0][..]));
    assert_eq!(step(&mut handshake, b"").0, Ok(Step::NeedMore));
}

#[test]
fn the_state_of_a_handshake_is_small() {
    assert!(size_of::<Handshake>() <= 40, "{} bytes", size_of::<Handshake>());
}

#[test]
fn without_credentials_only_no_authentication_is_offered() {
    let (first, sent) = step(&mut Handshake::new(Command::Connect, target(), false), b"");
    assert_eq!(first, Ok(Step::Send { used: 0, n: 3 }));
    assert_eq!(sent, [0x05, 0x01, 0x00]);
}

#[test]
fn with_credentials_both_methods_are_offered() {
    let (first, sent) = step(&mut Handshake::new(Command::Connect, target(), true), b"");
    assert_eq!(first, Ok(Step::Send { used: 0, n: 4 }));
    assert_eq!(sent, [0x05, 0x02, 0x00, 0x02]);
}

#[test]
fn connect_without_authentication_sends_greeting_and_request() {
    let mut handshake = Handshake::new(Command::Connect, target(), false);
    let (bound, sent, rest) = converse(&mut handshake, &[METHOD_NONE, REPLY_V4]).unwrap();
    assert_eq!(bound, Bound::Address(address("198.51.100.9:1080")));
    assert_eq!(sent, [0x05, 0x01, 0x00, 0x05, 0x01, 0x00, 0x01, 192, 0, 2, 7, 0x01, 0xbb]);
    assert_eq!(rest, b"");
}

#[test]
fn connect_with_password_sends_it_between() {
    let mut handshake = Handshake::new(Command::Connect, target(), true);
    let (bound, sent, _) = converse(&mut handshake, &[METHOD_PASSWORD, AUTH_OK, REPLY_V6]).unwrap();
    assert_eq!(bound, Bound::Address(address("[2001:db8::9]:1080")));
    assert_eq!(sent[4..15], *b"\x01\x04user\x04pass");
    assert_eq!(sent[15..], [0x05, 0x01, 0x00, 0x01, 192, 0, 2, 7, 0x01, 0xbb]);
}

#[test]
fn a_server_that_wants_no_password_gets_none() {
    let mut handshake = Handshake::new(Command::Connect, target(), true);
    let (_, sent, _) = converse(&mut handshake, &[METHOD_NONE, REPLY_V4]).unwrap();
    assert!(!sent.windows(4).any(|window| window == b"pass"));
}

#[test]
fn udp_associate_for_an_unknown_source_asks_with_zeros() {
    let mut handshake = Handshake::new(Command::UdpAssociate, address("0.0.0.0:0"), false);
    let (_, sent, _) = converse(&mut handshake, &[METHOD_NONE, REPLY_V4]).unwrap();
    assert_eq!(sent[3..], [0x05, 0x03, 0x00, 0x01, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_v6_target_is_asked_for_as_v6() {
    let mut handshake = Handshake::new(Command::Connect, address("[2001:db8::7]:443"), false);
    let (_, sent, _) = converse(&mut handshake, &[METHOD_NONE, REPLY_V4]).unwrap();
    let request = [5, 1, 0, 0x04, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0x01, 0xbb];
    assert_eq!(sent[3..], request);
}

#[test]
fn a_mapped_target_is_asked_for_as_v4() {
    let mut handshake = Handshake::new(Command::Connect, address("[::ffff:192.0.2.7]:443"), false);
    let (_, sent, _) = converse(&mut handshake, &[METHOD_NONE, REPLY_V4]).unwrap();
    assert_eq!(sent[3..], [0x05, 0x01, 0x00, 0x01, 192, 0, 2, 7, 0x01, 0xbb]);
}

#[test]
fn a_mapped_bound_address_is_told_as_v4() {
    let mut reply = vec![0x05, 0x00, 0x00, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    reply.extend([198, 51, 100, 9, 0x04, 0x38]);
    let (done, _) = step(&mut at(Stage::AwaitReply, false), &reply);
    assert_eq!(done, Ok(Step::Done { used: 22, bound: Bound::Address(address("198.51.100.9:1080")) }));
}

#[test]
fn a_bound_name_of_any_length_tells_its_port() {
    for length in 0..=255_u8 {
        let mut reply = vec![0x05, 0x00, 0x00, 0x03, length];
        reply.extend(std::iter::repeat_n(b'x', usize::from(length)));
        reply.extend([0x04, 0x38]);
        let (done, _) = step(&mut at(Stage::AwaitReply, false), &reply);
        assert_eq!(done, Ok(Step::Done { used: reply.len(), bound: Bound::Name { port: 1080 } }));
        assert!(reply.len() <= INPUT_MAX);
    }
}

#[test]
fn every_prefix_of_an_answer_needs_more() {
    let answers: [(Stage, &[u8]); 7] = [
        (Stage::AwaitMethod, METHOD_NONE),
        (Stage::AwaitMethod, METHOD_PASSWORD),
        (Stage::AwaitAuth, AUTH_OK),
        (Stage::AwaitReply, REPLY_V4),
        (Stage::AwaitReply, REPLY_V6),
        (Stage::AwaitReply, REPLY_NAME),
        (Stage::AwaitReply, REPLY_EMPTY_NAME),
    ];
    for (stage, answer) in answers {
        for cut in 0..answer.len() {
            let mut handshake = at(stage, true);
            assert_eq!(step(&mut handshake, &answer[..cut]).0, Ok(Step::NeedMore), "{stage:?} cut at {cut}");
            assert_eq!(handshake, at(stage, true));
        }
        assert_ne!(step(&mut at(stage, true), answer).0, Ok(Step::NeedMore));
    }
}

#[test]
fn every_split_in_three_ends_the_same() {
    for reply in [REPLY_V4, REPLY_V6, REPLY_NAME, REPLY_EMPTY_NAME] {
        let server = [METHOD_PASSWORD, AUTH_OK, reply, b"SSH-2.0"].concat();
        let mut whole = Handshake::new(Command::Connect, target(), true);
        let expected = converse(&mut whole, &[&server]).unwrap();
        assert_eq!(expected.2, b"SSH-2.0");
        for first in 0..=server.len() {
            for second in first..=server.len() {
                let pieces = [&server[..first], &server[first..second], &server[second..]];
                let mut handshake = Handshake::new(Command::Connect, target(), true);
                assert_eq!(converse(&mut handshake, &pieces).as_ref(), Ok(&expected), "cut at {first}, {second}");
            }
        }
    }
}

#[test]
fn byte_by_byte_ends_the_same() {
    let server = [METHOD_PASSWORD, AUTH_OK, REPLY_NAME].concat();
    let pieces: Vec<&[u8]> = server.chunks(1).collect();
    let mut handshake = Handshake::new(Command::Connect, target(), true);
    let (bound, _, rest) = converse(&mut handshake, &pieces).unwrap();
    assert_eq!((bound, rest), (Bound::Name { port: 1080 }, Vec::new()));
}

#[test]
fn server_banner_glued_to_the_reply_is_left_for_the_relay() {
    let glued = [REPLY_V4, b"220 ready"].concat();
    let (done, _) = step(&mut at(Stage::AwaitReply, false), &glued);
    assert!(matches!(done, Ok(Step::Done { used: 10, .. })), "{done:?}");
}

#[test]
fn a_server_of_another_kind_is_told_by_its_first_octet() {
    for stage in [Stage::AwaitMethod, Stage::AwaitReply] {
        assert_eq!(step(&mut at(stage, true), b"HTTP/1.1 400").0, Err(Refusal::NotSocks5 { got: b'H' }));
        assert_eq!(step(&mut at(stage, true), &[0x04]).0, Err(Refusal::NotSocks5 { got: 0x04 }));
    }
}

#[test]
fn a_method_that_was_not_offered_is_refused() {
    let mut without = at(Stage::AwaitMethod, false);
    assert_eq!(step(&mut without, METHOD_PASSWORD).0, Err(Refusal::UnexpectedMethod { got: 0x02 }));
    let mut with = at(Stage::AwaitMethod, true);
    assert_eq!(step(&mut with, &[0x05, 0x01]).0, Err(Refusal::UnexpectedMethod { got: 0x01 }));
}

#[test]
fn no_acceptable_method_says_whether_a_password_was_offered() {
    for with_auth in [false, true] {
        let (refused, _) = step(&mut at(Stage::AwaitMethod, with_auth), &[0x05, 0xff]);
        assert_eq!(refused, Err(Refusal::NoMethod { with_auth }));
    }
}

#[test]
fn a_wrong_password_is_told_with_its_status() {
    assert_eq!(step(&mut at(Stage::AwaitAuth, true), &[0x01, 0x01]).0, Err(Refusal::AuthFailed { status: 1 }));
    assert_eq!(step(&mut at(Stage::AwaitAuth, true), &[0x05]).0, Err(Refusal::AuthVersion { got: 5 }));
}

#[test]
fn every_reply_code_is_refused_at_its_octet() {
    for rep in 1..=255 {
        assert_eq!(step(&mut at(Stage::AwaitReply, false), &[0x05, rep]).0, Err(Refusal::Reply { rep }));
    }
}

#[test]
fn reply_codes_say_what_happened_and_whose_fault_it_is() {
    let expected = [
        (1, "general server failure", Fault::Unclear),
        (2, "not allowed by its rules", Fault::Destination),
        (3, "network unreachable", Fault::Destination),
        (4, "host unreachable", Fault::Destination),
        (5, "connection refused", Fault::Destination),
        (6, "TTL expired", Fault::Destination),
        (7, "command not supported", Fault::Proxy),
        (8, "address type not supported", Fault::Proxy),
        (9, "a code that RFC 1928 does not assign", Fault::Unclear),
    ];
    for (rep, words, fault) in expected {
        let refusal = Refusal::Reply { rep };
        assert_eq!(refusal.to_string(), format!("SOCKS5 server refused: {words} (reply {rep})"));
        assert_eq!(refusal.fault(), fault);
        assert_eq!(refusal.destination_refused(), rep == 5);
    }
}

#[test]
fn an_unknown_address_type_is_refused_at_its_octet() {
    for got in [0x00, 0x02, 0x05, 0xff] {
        let (refused, _) = step(&mut at(Stage::AwaitReply, false), &[0x05, 0x00, 0x00, got]);
        assert_eq!(refused, Err(Refusal::BadAddressType { got }));
    }
}

#[test]
fn credentials_of_wrong_length_are_refused() {
    let long = [b'x'; 256];
    let wrong: [Option<(&[u8], &[u8])>; 5] =
        [None, Some((b"", b"p")), Some((b"u", b"")), Some((&long, b"p")), Some((b"u", &long))];
    for credentials in wrong {
        let refused = at(Stage::AwaitMethod, true).step(credentials, METHOD_PASSWORD, &mut [0; OUTPUT_MAX]);
        assert_eq!(refused, Err(Refusal::BadCredentials));
    }
}

#[test]
fn the_longest_credentials_fill_the_output() {
    let long = [b'x'; 255];
    let mut out = [0; OUTPUT_MAX];
    let sent = at(Stage::AwaitMethod, true).step(Some((&long, &long)), METHOD_PASSWORD, &mut out);
    assert_eq!(sent, Ok(Step::Send { used: 2, n: OUTPUT_MAX }));
}

#[test]
fn an_output_that_is_too_small_changes_nothing() {
    for (stage, input, needed) in
        [(Stage::Greet, &b""[..], 4), (Stage::AwaitMethod, METHOD_PASSWORD, 11), (Stage::AwaitAuth, AUTH_OK, 10)]
    {
        let mut handshake = at(stage, true);
        for size in 0..needed {
            assert_eq!(handshake.step(CREDENTIALS, input, &mut vec![0; size]), Err(Refusal::OutputTooSmall));
        }
        let sent = handshake.step(CREDENTIALS, input, &mut vec![0; needed]);
        assert_eq!(sent, Ok(Step::Send { used: input.len(), n: needed }));
    }
}

#[test]
fn a_step_after_the_end_is_refused() {
    assert_eq!(step(&mut at(Stage::Over, false), REPLY_V4).0, Err(Refusal::Over));
}

#[test]
fn a_relay_without_an_address_is_where_the_server_is() {
    let server = address("203.0.113.1:1080");
    let relay = |bound: &str| Bound::Address(address(bound)).relay(server);
    assert_eq!(relay("0.0.0.0:5000"), Some(address("203.0.113.1:5000")));
    assert_eq!(relay("[::]:5000"), Some(address("203.0.113.1:5000")));
    assert_eq!(relay("198.51.100.9:5000"), Some(address("198.51.100.9:5000")));
    assert_eq!(Bound::Name { port: 5000 }.relay(server), Some(address("203.0.113.1:5000")));
    assert_eq!(relay("198.51.100.9:0"), None);
}

#[test]
fn a_link_local_relay_is_on_the_link_of_the_server() {
    let server = address("[fe80::1%7]:1080");
    assert_eq!(Bound::Address(address("[fe80::2]:5000")).relay(server), Some(address("[fe80::2%7]:5000")));
    assert_eq!(Bound::Address(address("[::]:5000")).relay(server), Some(address("[fe80::1%7]:5000")));
}

#[test]
fn reading_what_is_wanted_never_takes_payload() {
    for (stage, answer) in [
        (Stage::AwaitMethod, METHOD_NONE),
        (Stage::AwaitAuth, AUTH_OK),
        (Stage::AwaitReply, REPLY_V4),
        (Stage::AwaitReply, REPLY_V6),
        (Stage::AwaitReply, REPLY_NAME),
    ] {
        let handshake = at(stage, true);
        let mut have = 0;
        while handshake.wanted(&answer[..have]) > 0 {
            have += handshake.wanted(&answer[..have]);
            assert!(have <= answer.len(), "{stage:?}");
        }
        assert_eq!(have, answer.len(), "{stage:?}");
    }
}

const STAGES: &[Stage] = &[Stage::Greet, Stage::AwaitMethod, Stage::AwaitAuth, Stage::AwaitReply, Stage::Over];
/// Put in front of garbage, so that it gets past the first octets.
const BEGINNINGS: &[&[u8]] =
    &[b"", METHOD_PASSWORD, AUTH_OK, &[0x05, 0x00, 0x00], &[0x05, 0x00, 0x00, 0x03], &[0x05, 0x00, 0x00, 0x04]];

proptest! {
    #[test]
    fn arbitrary_bytes_never_leave_the_buffers(
        stage in prop::sample::select(STAGES),
        with_auth in any::<bool>(),
        prefix in prop::sample::select(BEGINNINGS),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
        room in 0..=OUTPUT_MAX,
    ) {
        let input = [prefix, &garbage].concat();
        let mut handshake = at(stage, with_auth);
        match handshake.step(CREDENTIALS, &input, &mut vec![0; room]) {
            Ok(Step::Send { used, n }) => prop_assert!(used <= input.len() && n <= room && n > 0),
            Ok(Step::Done { used, .. }) => prop_assert!(used <= input.len() && used > 0),
            Ok(Step::NeedMore) => {
                prop_assert!(input.len() < INPUT_MAX);
                prop_assert_eq!(handshake, at(stage, with_auth));
            }
            Err(refusal) => {
                prop_assert_eq!(handshake, at(stage, with_auth));
                prop_assert!(!refusal.to_string().is_empty());
            }
        }
    }

    #[test]
    fn an_address_written_is_read_back(ip in any::<IpAddr>(), port in any::<u16>()) {
        let address = SocketAddr::new(ip.to_canonical(), port);
        let mut out = [0; 19];
        let mut writer = Writer::new(&mut out);
        put_address(&mut writer, address).unwrap();
        let n = writer.written();
        let mut reader = Reader::new(&out[..n]);
        let read = read_address(&mut reader);
        prop_assert!(matches!(read, Ok(Some(Endpoint::Address(read))) if read == address));
        prop_assert_eq!(reader.used(), n);
    }
}

#[test]
fn a_name_is_asked_for_in_place_of_the_address() {
    let mut handshake = at(Stage::AwaitMethod, false);
    let mut out = [0; OUTPUT_MAX];
    let step = handshake.step_to(Some("www.example"), None, METHOD_NONE, &mut out);
    let request = [&[0x05, 0x01, 0x00, 0x03, 11][..], b"www.example", &[0x01, 0xbb]].concat();
    assert_eq!(step, Ok(Step::Send { used: 2, n: request.len() }));
    assert_eq!(out[..request.len()], request);
    let mut handshake = at(Stage::AwaitMethod, false);
    assert_eq!(handshake.step_to(Some(&"n".repeat(256)), None, METHOD_NONE, &mut out), Err(Refusal::OutputTooSmall));
}

#[test]
fn a_greeting_alone_is_over_when_the_server_has_taken_us_in() {
    let mut handshake = Handshake::new(Command::Greet, target(), true);
    let pieces = [METHOD_PASSWORD, AUTH_OK];
    let (_, sent, _) = converse(&mut handshake, &pieces).unwrap();
    assert_eq!(sent, [&[0x05, 2, 0, 2][..], &[1, 4], b"user", &[4], b"pass"].concat());
}

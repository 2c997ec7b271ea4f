use super::*;
use proptest::prelude::*;

const ID: u16 = 0x1234;
const NAME: &str = "proxy.example";

/// RFC 1035 section 4.1: header and question, as sent for `proxy.example`, A.
const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05proxy\x07example\x00\x00\x01\x00\x01";
/// Where in it the name is, and its second label.
const AT_NAME: usize = 12;
const AT_EXAMPLE: usize = 18;

/// Builds answers octet by octet (RFC 1035 section 4.1.3).
struct Message(Vec<u8>);

impl Message {
    /// The echoed question, flags QR RD RA.
    fn answer(qtype: QType) -> Self {
        let mut message = QUESTION.to_vec();
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        let at = message.len() - 4;
        message[at..at + 2].copy_from_slice(&(qtype as u16).to_be_bytes());
        Message(message)
    }

    /// Where the next record will stand.
    fn end(&self) -> usize {
        self.0.len()
    }

    fn record(mut self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Self {
        self.0[7] += 1;
        self.0.extend(owner);
        self.0.extend(kind.to_be_bytes());
        self.0.extend(1_u16.to_be_bytes());
        self.0.extend(ttl.to_be_bytes());
        self.0.extend((data.len() as u16).to_be_bytes());
        self.0.extend(data);
        self
    }

    fn flags(mut self, flags: u16) -> Self {
        self.0[2..4].copy_from_slice(&flags.to_be_bytes());
        self
    }

    fn parse(&self) -> Result<Answer, AnswerError> {
        parse_answer(&self.0, ID, NAME, QType::A)
    }
}

fn pointer(at: usize) -> [u8; 2] {
    [0xc0 | (at >> 8) as u8, at as u8]
}

fn texts(answer: &Answer) -> Vec<String> {
    answer.addresses.iter().map(IpAddr::to_string).collect()
}

fn plain() -> Message {
    Message::answer(QType::A).record(&pointer(AT_NAME), 1, 300, &[192, 0, 2, 7])
}

/// `proxy.example` → `a.example` → `b.example` → 192.0.2.7, the records in the opposite order.
fn chain() -> Message {
    let message = Message::answer(QType::A);
    let (a, b) = ([&b"\x01a"[..], &pointer(AT_EXAMPLE)].concat(), [&b"\x01b"[..], &pointer(AT_EXAMPLE)].concat());
    message.record(&b, 1, 300, &[192, 0, 2, 7]).record(&a, 5, 60, &b).record(&pointer(AT_NAME), 5, 120, &a)
}

#[test]
fn a_question_has_the_octets_of_rfc_1035() {
    let mut out = [0xee; QUERY_MAX];
    let n = encode_query(ID, NAME, QType::A, &mut out).unwrap();
    assert_eq!(&out[..n], QUESTION);
    let n = encode_query(ID, NAME, QType::Aaaa, &mut out).unwrap();
    assert_eq!(out[n - 4..n], [0x00, 0x1c, 0x00, 0x01]);
}

#[test]
fn names_that_dns_cannot_carry_are_not_asked() {
    let long_label = "x".repeat(64);
    let long_name = format!("{}.xx", ["x".repeat(62), "x".repeat(62), "x".repeat(62), "x".repeat(62)].join("."));
    for name in ["", ".", "a.", ".a", "a..b", &long_label, &long_name] {
        assert_eq!(encode_query(ID, name, QType::A, &mut [0; 512]), Err(QueryError::BadName), "{name:?}");
    }
}

#[test]
fn the_longest_name_fits() {
    let name = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(61)].join(".");
    assert_eq!(name.len(), 253);
    assert_eq!(encode_query(ID, &name, QType::A, &mut [0; QUERY_MAX]), Ok(QUERY_MAX));
    assert_eq!(encode_query(ID, &name, QType::A, &mut [0; QUERY_MAX - 1]), Err(QueryError::OutputTooSmall));
}

#[test]
fn an_answer_yields_addresses_and_ttl() {
    let answer = plain().record(&pointer(AT_NAME), 1, 200, &[192, 0, 2, 8]).parse().unwrap();
    assert_eq!(texts(&answer), ["192.0.2.7", "192.0.2.8"]);
    assert_eq!(answer.ttl, Duration::from_secs(200));
}

#[test]
fn an_aaaa_answer_yields_v6() {
    let ip: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let message = Message::answer(QType::Aaaa).record(&pointer(AT_NAME), 28, 300, &ip.octets());
    let answer = parse_answer(&message.0, ID, NAME, QType::Aaaa).unwrap();
    assert_eq!(texts(&answer), ["2001:db8::7"]);
}

#[test]
fn aliases_are_followed_in_any_order_and_the_least_ttl_counts() {
    let answer = chain().parse().unwrap();
    assert_eq!((texts(&answer), answer.ttl), (vec!["192.0.2.7".to_owned()], Duration::from_secs(60)));
}

#[test]
fn records_of_other_names_types_and_classes_are_passed_over() {
    let mut message = plain();
    let foreign = [&b"\x05other"[..], &pointer(AT_EXAMPLE)].concat();
    message = message.record(&foreign, 1, 1, &[203, 0, 113, 1]).record(&pointer(AT_NAME), 16, 1, b"\x04text");
    let chaos = message.end() + 2 + 2;
    message = message.record(&pointer(AT_NAME), 1, 1, &[203, 0, 113, 2]);
    message.0[chaos + 1] = 3;
    let answer = message.parse().unwrap();
    assert_eq!((texts(&answer), answer.ttl), (vec!["192.0.2.7".to_owned()], Duration::from_secs(300)));
}

#[test]
fn an_alias_of_itself_has_no_address() {
    let message = Message::answer(QType::A).record(&pointer(AT_NAME), 5, 60, &pointer(AT_NAME));
    assert_eq!(message.parse(), Err(AnswerError::NoAddress));
}

#[test]
fn an_answer_without_records_has_no_address() {
    assert_eq!(Message::answer(QType::A).parse(), Err(AnswerError::NoAddress));
}

#[test]
fn pointers_that_do_not_lead_back_are_malformed() {
    let at = Message::answer(QType::A).end();
    for target in [at, at + 1, at + 2, 0x3fff] {
        let message = Message::answer(QType::A).record(&pointer(target), 1, 60, &[192, 0, 2, 7]);
        assert_eq!(message.parse(), Err(AnswerError::Malformed), "to {target}");
    }
    // A label, then a pointer to that label: back, but into what is being read.
    let circle = [&b"\x05proxy"[..], &pointer(at)].concat();
    let message = Message::answer(QType::A).record(&circle, 1, 60, &[192, 0, 2, 7]);
    assert_eq!(message.parse(), Err(AnswerError::Malformed));
}

#[test]
fn a_long_chain_of_pointers_is_malformed() {
    // A record of unknown type full of pointers, each to the one before; the next record's name is the last of them.
    let mut message = Message::answer(QType::A);
    let first = message.end() + 2 + 10;
    let pointers: Vec<u8> =
        (0..200).flat_map(|n| pointer(if n == 0 { AT_NAME } else { first + 2 * (n - 1) })).collect();
    message = message.record(&pointer(AT_NAME), 99, 60, &pointers);
    let last = first + 2 * 199;
    message = message.record(&pointer(last), 1, 60, &[192, 0, 2, 7]);
    assert_eq!(message.parse(), Err(AnswerError::Malformed));
}

#[test]
fn reserved_label_types_are_malformed() {
    for length in [0x40, 0x80] {
        let message = Message::answer(QType::A).record(&[length, 0x00], 1, 60, &[192, 0, 2, 7]);
        assert_eq!(message.parse(), Err(AnswerError::Malformed));
    }
}

#[test]
fn an_address_of_wrong_length_is_malformed() {
    for data in [&[192, 0, 2][..], &[192, 0, 2, 7, 0]] {
        let message = Message::answer(QType::A).record(&pointer(AT_NAME), 1, 60, data);
        assert_eq!(message.parse(), Err(AnswerError::Malformed));
    }
}

#[test]
fn what_does_not_answer_the_question_is_unrelated() {
    let message = plain();
    let parse = |id, name, qtype| parse_answer(&message.0, id, name, qtype);
    assert_eq!(parse(ID + 1, NAME, QType::A), Err(AnswerError::Unrelated));
    assert_eq!(parse(ID, "proxy.exampl", QType::A), Err(AnswerError::Unrelated));
    assert_eq!(parse(ID, "proxy.example.org", QType::A), Err(AnswerError::Unrelated));
    assert_eq!(parse(ID, "proxy", QType::A), Err(AnswerError::Unrelated));
    assert_eq!(parse(ID, NAME, QType::Aaaa), Err(AnswerError::Unrelated));
    assert_eq!(plain().flags(0x0100).parse(), Err(AnswerError::Unrelated), "a question");
    assert_eq!(plain().flags(0xa180).parse(), Err(AnswerError::Unrelated), "opcode 4");
    for questions in [0, 2] {
        let mut message = plain();
        message.0[5] = questions;
        assert_eq!(message.parse(), Err(AnswerError::Unrelated), "{questions} questions");
    }
}

#[test]
fn a_name_in_other_case_is_the_same() {
    let mut message = plain();
    message.0[AT_NAME + 1..AT_NAME + 6].copy_from_slice(b"pRoXy");
    assert_eq!(message.parse(), plain().parse());
}

#[test]
fn a_truncated_answer_is_asked_again() {
    assert_eq!(plain().flags(0x8380).parse(), Err(AnswerError::Truncated));
    assert_eq!(Message::answer(QType::A).flags(0x8380).parse(), Err(AnswerError::Truncated));
}

#[test]
fn every_rcode_is_told() {
    for rcode in 1..=15_u8 {
        let expected = if rcode == 3 { AnswerError::NoSuchName } else { AnswerError::Refused { rcode } };
        for flags in [0x8180, 0x8380] {
            assert_eq!(Message::answer(QType::A).flags(flags | u16::from(rcode)).parse(), Err(expected));
        }
    }
    assert_eq!(AnswerError::Refused { rcode: 2 }.to_string(), "the server answers SERVFAIL (rcode 2)");
    assert_eq!(AnswerError::Refused { rcode: 9 }.to_string(), "the server answers rcode 9");
}

#[test]
fn a_ttl_counts_within_its_bounds() {
    for (ttl, seconds) in [(0, 5), (5, 5), (6, 6), (86_400, 86_400), (604_800, 86_400), (0x8000_0000, 86_400)] {
        let message = Message::answer(QType::A).record(&pointer(AT_NAME), 1, ttl, &[192, 0, 2, 7]);
        assert_eq!(message.parse().unwrap().ttl, Duration::from_secs(seconds), "{ttl}");
    }
}

#[test]
fn of_many_addresses_the_first_are_kept() {
    let mut message = Message::answer(QType::A);
    for n in 0..200 {
        message = message.record(&pointer(AT_NAME), 1, 60, &[192, 0, 2, n]);
    }
    let answer = message.parse().unwrap();
    assert_eq!(answer.addresses.len(), ADDRESSES_MAX);
    assert_eq!(answer.addresses[7].to_string(), "192.0.2.7");
}

#[test]
fn no_prefix_of_an_answer_is_an_answer() {
    for message in [plain().0, chain().0] {
        for cut in 0..message.len() {
            let parsed = parse_answer(&message[..cut], ID, NAME, QType::A);
            let expected = if cut < QUESTION.len() { AnswerError::Unrelated } else { AnswerError::Malformed };
            assert_eq!(parsed, Err(expected), "cut at {cut}");
        }
    }
}

#[test]
fn what_follows_the_answer_section_is_not_looked_at() {
    let mut message = plain();
    message.0[9] = 3;
    message.0.extend([0xff; 7]);
    assert_eq!(message.parse(), plain().parse());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse_answer(&bytes, ID, NAME, QType::A);
        let behind_a_question = [&Message::answer(QType::A).0[..], &bytes].concat();
        let mut message = Message(behind_a_question);
        message.0[7] = 20;
        let _ = message.parse();
    }

    #[test]
    fn a_damaged_answer_is_survived(at in 0_usize..90, octet in any::<u8>()) {
        let mut message = chain();
        let at = at % message.0.len();
        message.0[at] = octet;
        if let Ok(answer) = message.parse() {
            prop_assert!(!answer.addresses.is_empty());
            prop_assert!(answer.ttl >= TTL_BOUNDS.0 && answer.ttl <= TTL_BOUNDS.1);
        }
    }

    #[test]
    fn an_echoed_question_is_recognised(id in any::<u16>(), name in "[a-z0-9_-]{1,63}(\\.[A-Za-z0-9-]{1,40}){0,4}") {
        let mut out = [0; QUERY_MAX];
        let n = encode_query(id, &name, QType::Aaaa, &mut out).unwrap();
        out[2] |= 0x80;
        prop_assert_eq!(parse_answer(&out[..n], id, &name, QType::Aaaa), Err(AnswerError::NoAddress));
        prop_assert_eq!(parse_answer(&out[..n], !id, &name, QType::Aaaa), Err(AnswerError::Unrelated));
    }
}

//! What holds for any bytes from outside, one function for each parser: bodies of the fuzz targets in `fuzz/`, and of the tests
//! here, which replay what fuzzers have found.

use std::io::{BufRead, Cursor};
use std::net::SocketAddr;

use tproxyd::config::{self, Config, Env, Errors};
use tproxyd::control::{REQUEST_MAX, Request};
use tproxyd::proto::socks5::{Command, Handshake, Step};
use tproxyd::proto::socks5_server::Heard;
use tproxyd::proto::{ctnetlink, dns, http, http_server, json, proxy_header, sniff, socks5, socks5_server, socks5_udp};
use tproxyd::{budget, helper, netfilter};

/// A body.
pub(crate) type Body = fn(&[u8]);

/// Every body by the name of its target and of its corpus.
pub(crate) const BODIES: &[(&str, Body)] = &[
    ("uci", uci),
    ("set_file", set_file),
    ("socks5_client", socks5_client),
    ("socks5_server", socks5_server),
    ("socks5_udp", socks5_udp),
    ("http_client", http_client),
    ("http_server", http_server),
    ("proxy_header", proxy_header),
    ("sniff", sniff_stream),
    ("quic", quic),
    ("quic_frames", quic_frames),
    ("shadowsocks", shadowsocks),
    ("dns", dns),
    ("netlink", netlink),
    ("control", control),
    ("helper", helper_message),
    ("networks", networks),
];

fn parse(text: &[u8], file: &[u8]) -> Result<Config, Errors> {
    let env = Env { total_memory: 64 << 20, descriptors: 1 << 16 };
    config::parse("f", text, &env, &mut |_| Ok(Box::new(Cursor::new(file.to_vec())) as Box<dyn BufRead>))
}

/// A configuration is refused, with a bounded number of errors, or can be installed.
pub(crate) fn uci(bytes: &[u8]) {
    match parse(bytes, b"192.0.2.0/24\n") {
        Ok(config) => installs(&config),
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

fn installs(config: &Config) {
    let found = netfilter::Surroundings { networks: Vec::new(), on_link: Vec::new(), backend: config::Backend::Nft };
    let servers = netfilter::literal_servers(config);
    let rules = netfilter::render(config, &netfilter::Facts::new(config, &found, &servers));
    assert!(rules.matches('{').count() == rules.matches('}').count(), "{rules}");
    let bound = budget::bound(budget::Tables::of(&config.globals), config, 0);
    assert!(bound > 0);
}

/// A list file of any form is read or refused, line by line.
pub(crate) fn set_file(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else { return };
    let (kind, strict) = (if kind & 1 == 0 { "net" } else { "domain" }, kind >> 1 & 1);
    let text = format!("config set 's'\n\toption type '{kind}'\n\toption strict '{strict}'\n\tlist loadfile '/f'\n");
    match parse(text.as_bytes(), file) {
        Ok(config) => {
            let memory = config.sets[0].entries.memory();
            assert!(memory <= 64 * file.len() + 4_096, "{memory} octets of {}", file.len());
        }
        Err(errors) => assert!(strict == 1 || file.contains(&0) || errors.to_string().contains("s"), "{errors}"),
    }
}

/// A proxy's answers: in whatever pieces they come, the outcome is the same, and what is used was there.
pub(crate) fn socks5_client(bytes: &[u8]) {
    let Some((flags, answers)) = bytes.split_first() else { return };
    let at_once = shake_hands(*flags, answers, answers.len());
    let by_octet = shake_hands(*flags, answers, 1);
    // (an error is told as soon as it is certain, so it may come at an earlier octet, but it is the same)
    assert_eq!(at_once, by_octet);
}

/// The end of a handshake in words, and how many octets belonged to it.
fn shake_hands(flags: u8, answers: &[u8], piece: usize) -> (String, usize) {
    let command = [Command::Connect, Command::UdpAssociate, Command::Greet][usize::from(flags & 3) % 3];
    let with_auth = flags & 4 != 0;
    let credentials = with_auth.then_some((&b"user"[..], &b"password"[..]));
    let name = (flags & 8 != 0).then_some("name.example");
    let target: SocketAddr =
        if flags & 16 == 0 { ([192, 0, 2, 1], 443).into() } else { ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 443).into() };
    let mut handshake = Handshake::new(command, target, with_auth);
    let mut out = [0; socks5::OUTPUT_MAX];
    let (mut used, mut come) = (0, 0);
    loop {
        let input = &answers[used..come];
        let wanted = handshake.wanted(input);
        match handshake.step_to(name, credentials, input, &mut out) {
            Ok(Step::Send { used: n, n: sent }) => {
                assert!(n <= input.len() && sent <= out.len() && sent > 0);
                used += n;
            }
            Ok(Step::NeedMore) => {
                assert!(wanted > 0, "more is needed, and none is wanted");
                assert!(input.len() < socks5::INPUT_MAX);
                if come == answers.len() {
                    return ("more".into(), used);
                }
                come = (come + piece).min(answers.len());
            }
            Ok(Step::Done { used: n, bound }) => {
                assert!(n <= input.len());
                assert!(piece > 1 || n == input.len(), "octet by octet nothing of the tunnel is taken");
                let server: SocketAddr = ([198, 51, 100, 1], 1080).into();
                assert!(bound.relay(server).is_none_or(|relay| relay.port() != 0));
                return (format!("{bound:?}"), used + n);
            }
            Err(refusal) => {
                assert!(!refusal.to_string().is_empty());
                return (format!("{refusal:?}"), 0);
            }
        }
    }
}

/// An answer is never taken back when more octets come, and belongs to octets that are there.
fn settles<T: PartialEq + std::fmt::Debug>(bytes: &[u8], read: impl Fn(&[u8]) -> Heard<T>) -> Option<(T, usize)> {
    let mut settled = None;
    for end in 0..=bytes.len() {
        let heard = read(&bytes[..end]);
        match (&settled, &heard) {
            (None, Heard::More) => {}
            (None, _) => settled = Some(heard),
            (Some(before), now) => assert_eq!(before, now, "decided before octet {end}"),
        }
    }
    match settled {
        Some(Heard::Whole(what, used)) => {
            assert!(used > 0 && used <= bytes.len());
            Some((what, used))
        }
        _ => None,
    }
}

/// A client's greeting and request.
pub(crate) fn socks5_server(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(600)];
    let used = settles(bytes, socks5_server::greeting).map_or(0, |(_, used)| used);
    // a kind of address that nobody knows has no length: what has come is all that is known of it
    let request = |bytes: &[u8]| match socks5_server::request(bytes) {
        Heard::Whole(socks5_server::Request::BadAddress, used) => {
            assert!(used <= bytes.len());
            Heard::Whole(socks5_server::Request::BadAddress, 1)
        }
        heard => heard,
    };
    let _ = settles(&bytes[used..], request);
}

/// The header before a datagram.
pub(crate) fn socks5_udp(bytes: &[u8]) {
    let Ok((source, start)) = socks5_udp::parse_udp(bytes) else { return };
    assert!(start <= bytes.len());
    if let socks5_udp::UdpSource::Address(address) = source {
        let mut out = [0; socks5_udp::HEADER_V6];
        let len = socks5_udp::encode_udp_header(address, &mut out);
        assert_eq!(socks5_udp::parse_udp(&out[..len]), Ok((socks5_udp::UdpSource::Address(address), len)));
    }
}

/// A proxy's answer to CONNECT: in whatever pieces it comes, the outcome is the same.
pub(crate) fn http_client(bytes: &[u8]) {
    let whole = http::Scanner::new().scan(bytes);
    let mut scanner = http::Scanner::new();
    let mut piecewise = Ok(http::Progress::NeedMore);
    for (n, octet) in bytes.iter().enumerate() {
        piecewise = scanner.scan(std::slice::from_ref(octet));
        match &mut piecewise {
            Ok(http::Progress::NeedMore) => {}
            Ok(http::Progress::Done { used, status }) => {
                assert!((200..=999).contains(status), "{status}");
                *used += n;
                break;
            }
            Err(_) => break,
        }
    }
    assert_eq!(whole, piecewise);
    if let Ok(http::Progress::Done { used, status }) = whole {
        assert!(used <= bytes.len());
        let _ = (http::accept(status, true), http::accept(status, false));
    }
}

/// A request to the HTTP proxy.
pub(crate) fn http_server(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(1200)];
    let Some((request, used)) = settles(bytes, http_server::request) else { return };
    if let http_server::Request::Forward(_) = request {
        let head = &bytes[..used];
        let mut out = [0; 4096];
        let len = http_server::origin_form(head, &mut out).expect("it was understood, and fits");
        let out = &out[..len];
        assert!(out.ends_with(b"\r\n\r\n"), "{}", String::from_utf8_lossy(out));
        let ends = out.windows(4).position(|four| four == b"\r\n\r\n");
        assert_eq!(ends, Some(len - 4), "one head went in, and one comes out: {}", String::from_utf8_lossy(out));
    }
}

/// A PROXY header.
pub(crate) fn proxy_header(bytes: &[u8]) {
    use proxy_header::{ENCODED_MAX, Header, Transport, Version, encode, read};
    for transport in [Transport::Stream, Transport::Datagram] {
        let mut settled = None;
        let ends = if transport == Transport::Stream { 0..=bytes.len().min(300) } else { bytes.len()..=bytes.len() };
        for end in ends {
            let header = read(&bytes[..end], transport);
            match (&settled, &header) {
                (None, Header::More) => {}
                (None, _) => settled = Some(header),
                (Some(before), now) => assert_eq!(before, now, "decided before octet {end}"),
            }
        }
        let Some(Header::Whole { flow, used }) = settled else { continue };
        assert!(used <= bytes.len());
        let Some((client, orig_dst)) = flow else { continue };
        assert_eq!(client.is_ipv4(), orig_dst.is_ipv4());
        let mut out = [0; ENCODED_MAX];
        let len = encode(Version::V2, transport, client, orig_dst, &mut out).expect("it fits");
        assert_eq!(read(&out[..len], transport), Header::Whole { flow, used: len });
    }
}

/// TLS and HTTP at the beginning of a connection.
pub(crate) fn sniff_stream(bytes: &[u8]) {
    sniff::check_prefix_law(&bytes[..bytes.len().min(800)]);
    if let sniff::Sniff::Name(name) = sniff::sniff(bytes) {
        assert_eq!(sniff::Name::parse(name.as_str().as_bytes()), Some(name));
    }
}

/// A client's first datagrams, each behind its length in two octets.
pub(crate) fn quic(bytes: &[u8]) {
    let mut datagrams = Vec::new();
    let mut rest = bytes;
    while let Some(([high, low], after)) = rest.split_first_chunk() {
        let (datagram, next) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(after.len()));
        datagrams.push(datagram);
        rest = next;
    }
    let _ = tproxyd::proto::quic_initial::sniff(datagrams.iter().copied().take(4));
}

/// What a packet holds that could be opened.
pub(crate) fn quic_frames(bytes: &[u8]) {
    tproxyd::proto::quic_initial::check_frames(bytes);
}

/// A Shadowsocks server's stream and datagrams: rubbish, and what is authentic with rubbish in it.
pub(crate) fn shadowsocks(bytes: &[u8]) {
    use tproxyd::proto::shadowsocks::{MasterKey, Method, Target, datagram, stream};
    let Some((pick, bytes)) = bytes.split_first() else { return };
    let names = [
        "aes-128-gcm",
        "aes-256-gcm",
        "chacha20-ietf-poly1305",
        "2022-blake3-aes-128-gcm",
        "2022-blake3-aes-256-gcm",
        "2022-blake3-chacha20-poly1305",
    ];
    let method = Method::of(names[usize::from(*pick) % names.len()]).expect("a known name");
    let password = match (method.is_2022(), method.key_len()) {
        (true, 16) => "AAAAAAAAAAAAAAAAAAAAAA==",
        (true, _) => "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        (false, _) => "secret",
    };
    let key = || MasterKey::new(method, password).expect("a good password");
    let target = Target { address: ([192, 0, 2, 1], 443).into(), name: None };

    let mut buffer = bytes.to_vec();
    if let Ok(opened) = stream::Stream::new(key(), [7; 32]).open(&mut buffer, 0) {
        assert!(opened.used <= bytes.len() && opened.text <= opened.used && opened.wanted <= stream::UNIT_MAX);
    }
    let mut session = datagram::Session::new(1);
    let mut buffer = bytes.to_vec();
    let _ = session.open(&key(), &mut buffer, 0);

    // what one side seals the other opens, and any change of it is seen
    let mut sealed = vec![0; stream::sealed_len(bytes.len()) + 1024];
    let mut client = stream::Stream::new(key(), [9; 32]);
    let Some(begun) = client.begin(target, b"first", 0, 3, &mut sealed) else { return };
    let Some(more) = client.seal(bytes, &mut sealed[begun..]) else { return };
    sealed.truncate(begun + more);
    if !method.is_2022() {
        let mut whole = sealed.clone();
        let opened = stream::Stream::new(key(), [7; 32]).open(&mut whole, 0).expect("authentic");
        assert_eq!(opened.used, sealed.len());
        assert!(whole[..opened.text].ends_with(bytes));
        let at = usize::from(*pick) * 31 % sealed.len();
        sealed[at] ^= 1;
        let changed = stream::Stream::new(key(), [7; 32]).open(&mut sealed, 0);
        assert!(changed.is_err() || changed.is_ok_and(|opened| opened.used < begun + more), "changed at {at}");
    }
    let mut out = vec![0; bytes.len() + 128];
    let lent = datagram::Lent { random: [5; 32], now: 0 };
    if let Some(len) = session.seal(&key(), target, bytes, lent, &mut out)
        && !method.is_2022()
    {
        let opened = session.open(&key(), &mut out[..len], 0).expect("authentic");
        assert!(opened.start <= len);
    }
}

/// The answer section behind a question that is ours, and the whole as it is.
pub(crate) fn dns(bytes: &[u8]) {
    let name = "proxy.example";
    for qtype in [dns::QType::A, dns::QType::Aaaa] {
        let _ = dns::parse_answer(bytes, 0x1234, name, qtype);
        let Some(([flags, records], rest)) = bytes.split_first_chunk() else { return };
        let mut message = [0; dns::QUERY_MAX];
        let len = dns::encode_query(0x1234, name, qtype, &mut message).expect("a good name");
        message[2..4].copy_from_slice(&[0x80 | flags & 0x02, flags >> 4]);
        message[7] = *records;
        let whole = [&message[..len], rest].concat();
        if let Ok(answer) = dns::parse_answer(&whole, 0x1234, name, qtype) {
            assert!(!answer.addresses.is_empty());
            assert!(answer.addresses.iter().all(|ip| ip.is_ipv4() == (qtype == dns::QType::A)));
            assert!((dns::TTL_BOUNDS.0..=dns::TTL_BOUNDS.1).contains(&answer.ttl));
        }
    }
}

/// What the kernel might send.
pub(crate) fn netlink(bytes: &[u8]) {
    netfilter::trial::check_any_datagram(bytes);
    assert!(ctnetlink::answers(bytes).count() <= bytes.len() / 16);
}

/// A line on the control socket.
pub(crate) fn control(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(REQUEST_MAX)];
    match Request::parse(bytes) {
        Ok(request) => {
            let mut line = String::new();
            request.write(&mut line).expect("a String takes everything");
            assert_eq!(Request::parse(line.as_bytes()), Ok(request), "{line}");
        }
        Err(error) => assert!(!error.is_empty() && error.len() < 2 * REQUEST_MAX + 200, "{error}"),
    }
    let mut tokens = json::Tokens::new(bytes);
    let mut count = 0;
    while let Ok(Some(_)) = tokens.next() {
        count += 1;
    }
    assert!(count <= bytes.len());
}

/// A message between the network process and its helper.
pub(crate) fn helper_message(bytes: &[u8]) {
    helper::check_any_message(bytes);
}

/// What ubus, or the user in its place, says about networks.
pub(crate) fn networks(bytes: &[u8]) {
    netfilter::trial::check_any_networks(&String::from_utf8_lossy(bytes));
}

use super::datagram::{Lent, Session};
use super::stream::{Stream, UNIT_MAX};
use super::*;

const NOW: u64 = 1_700_000_000;

fn key(method: Method) -> MasterKey {
    let password = match (method.is_2022(), method.key_len()) {
        (false, _) => "barfoo!",
        (true, 16) => "AAECAwQFBgcICQoLDA0ODw==",
        (true, _) => "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    };
    MasterKey::new(method, password).unwrap()
}

fn target() -> Target<'static> {
    Target { address: "203.0.113.1:443".parse().unwrap(), name: None }
}

#[test]
fn a_password_is_hashed_as_openssl_does_and_a_key_of_2022_is_base64() {
    // EVP_BytesToKey with MD5: MD5("foobar") is known from RFC 1321-style tests
    let key = MasterKey::new(Method::Aes256Gcm, "foobar").unwrap();
    assert_eq!(key.octets()[..4], [0x38, 0x58, 0xf6, 0x22]);
    let key = MasterKey::new(Method::Blake3Aes128Gcm, "AAECAwQFBgcICQoLDA0ODw==").unwrap();
    assert_eq!(key.octets(), (0..16).collect::<Vec<u8>>());
    for bad in [
        "",
        "barfoo!",
        "AAECAwQFBgcICQoLDA0ODw=",
        "AAECAwQFBgcICQoLDA0O",
        "AAECAwQFBgcICQoLDA0OD===",
        "====",
        "AAEC*wQFBgcICQoLDA0ODw==",
    ] {
        assert_eq!(MasterKey::new(Method::Blake3Aes128Gcm, bad), Err(BadKey { expected: 16 }), "{bad}");
    }
}

/// A server's answer to what `client` has begun: the same framing the other way.
fn answer(key: MasterKey, request: &[u8], texts: &[&[u8]]) -> Vec<u8> {
    let len = key.method.key_len();
    let salt = [7; KEY_MAX];
    let cipher = key.subkey(&salt[..len]).cipher();
    let mut out = salt[..len].to_vec();
    let mut nonce = 0u64;
    let mut put = |out: &mut Vec<u8>, text: &[u8]| {
        let mut sealed = [text, &[0; TAG]].concat();
        let mut counter = [0; 12];
        counter[..8].copy_from_slice(&nonce.to_le_bytes());
        nonce += 1;
        seal(&cipher, counter, &mut sealed);
        out.extend(sealed);
    };
    for (n, text) in texts.iter().enumerate() {
        let length = (text.len() as u16).to_be_bytes();
        if n == 0 && key.method.is_2022() {
            put(&mut out, &[&[1][..], &NOW.to_be_bytes(), &request[..len], &length].concat());
        } else {
            put(&mut out, &length);
        }
        put(&mut out, text);
    }
    out
}

#[test]
fn every_method_carries_streams_in_any_pieces() {
    for (name, method) in Method::ALL {
        let mut client = Stream::new(key(method), [9; KEY_MAX]);
        let mut begin = vec![0; 4_000];
        let len = client.begin(target(), b"hello", NOW, 40, &mut begin).unwrap();
        let long = vec![3; if method.is_2022() { 0xffff } else { 0x3fff }];
        let texts = [&b"first"[..], &[], &long, b"last"];
        let all = answer(key(method), &begin[..len], &texts);
        for piece in [1, 7, 1_000, 70_000] {
            let mut client = Stream::new(key(method), [9; KEY_MAX]);
            client.begin(target(), b"hello", NOW, 40, &mut begin).unwrap();
            let (mut waiting, mut got) = (Vec::new(), Vec::new());
            for part in all.chunks(piece) {
                waiting.extend_from_slice(part);
                let mut buffer = waiting.clone();
                let opened = client.open(&mut buffer, NOW + 3).unwrap();
                assert!(opened.wanted <= UNIT_MAX && opened.text <= opened.used);
                got.extend_from_slice(&buffer[..opened.text]);
                waiting.drain(..opened.used);
            }
            assert!(got == texts.concat() && client.is_between_chunks() && waiting.is_empty(), "{name}, {piece}");
        }
    }
}

#[test]
fn an_answer_that_was_changed_is_late_or_another_s_is_refused() {
    for (name, method) in Method::ALL {
        let mut begin = vec![0; 4_000];
        let mut fresh = || {
            let mut client = Stream::new(key(method), [9; KEY_MAX]);
            client.begin(target(), b"", NOW, 0, &mut begin).unwrap();
            client
        };
        let mut request = vec![9; KEY_MAX];
        let good = answer(key(method), &request, &[b"text"]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(fresh().open(&mut bad, NOW), Err(Refusal::NotAuthentic), "{name}, octet {at}");
        }
        if !method.is_2022() {
            let mut long = answer(key(method), &request, &[&[7; 0x4000]]);
            assert_eq!(fresh().open(&mut long, NOW), Err(Refusal::TooLong), "{name}");
        }
        if method.is_2022() {
            assert_eq!(fresh().open(&mut good.clone(), NOW + 31), Err(Refusal::WrongTime));
            request[0] = 8;
            let mut other = answer(key(method), &request, &[b"text"]);
            assert_eq!(fresh().open(&mut other, NOW), Err(Refusal::Replayed));
        }
    }
}

#[test]
fn what_is_sealed_is_the_target_the_first_bytes_and_chunks() {
    for (name, method) in Method::ALL {
        let (key, len) = (key(method), method.key_len());
        let mut client = Stream::new(key, [9; KEY_MAX]);
        let mut out = vec![0; 100_000];
        let n = client.begin(target(), b"hello", NOW, 40, &mut out).unwrap();
        let text: Vec<u8> = (0..40_000u32).map(|n| n as u8).collect();
        let m = client.seal(&text, &mut out[n..]).unwrap();
        assert_eq!(m, stream::sealed_len(text.len()));
        let cipher = key.subkey(&out[..len]).cipher();
        let (mut at, mut nonce, mut got) = (len, 0u64, Vec::new());
        let mut next = |n: usize| {
            let mut counter = [0; 12];
            counter[..8].copy_from_slice(&nonce.to_le_bytes());
            nonce += 1;
            at += n + TAG;
            open(&cipher, counter, &mut out[at - n - TAG..at]).expect(name).to_vec()
        };
        let length = |octets: &[u8]| usize::from(u16::from_be_bytes([octets[0], octets[1]]));
        let first = if method.is_2022() { length(&next(11)[9..]) } else { length(&next(2)) };
        let head = next(first);
        let address = [1, 203, 0, 113, 1, 1, 0xbb];
        let padding: &[u8] = if method.is_2022() { &[0, 0] } else { &[] };
        assert_eq!(head, [&address[..], padding, b"hello"].concat());
        while got.len() < text.len() {
            let n = length(&next(2));
            got.extend(next(n));
        }
        assert!(got == text && at == n + m, "{name}");
    }
}

#[test]
fn datagrams_come_back_and_none_of_2022_twice() {
    for (name, method) in Method::ALL {
        let key = key(method);
        let (mut client, mut out) = (Session::new(77), vec![0; 2_000]);
        let lent = Lent { random: [5; KEY_MAX], now: NOW };
        let n = client.seal(&key, target(), b"question", lent, &mut out).unwrap();
        assert!(n <= 8 + datagram::OVERHEAD_MAX);
        if !method.is_2022() {
            // both directions are alike
            let opened = client.open(&key, &mut out[..n], NOW).unwrap();
            assert_eq!(
                (opened.from, &out[opened.start..opened.start + opened.len]),
                (target().address, &b"question"[..])
            );
            continue;
        }
        let reply = |session: u64, number: u64, id: u64, stamp: u64| {
            let body = [&[1][..], &stamp.to_be_bytes(), &id.to_be_bytes(), &[0, 3, 0, 0, 0]].concat();
            let body = [&body[..], &[1, 203, 0, 113, 1, 1, 0xbb], b"answer", &[0; TAG]].concat();
            let header = [&session.to_be_bytes()[..], &number.to_be_bytes()].concat();
            if method == Method::Blake3ChaCha20Poly1305 {
                let (cipher, nonce) = Cipher::xchacha20(&key.key, &[4; 24]);
                let mut sealed = [&header[..], &body].concat();
                seal(&cipher, nonce, &mut sealed);
                return [&[4; 24][..], &sealed].concat();
            }
            let mut sealed = body;
            seal(&key.subkey(&header[..8]).cipher(), header[4..].try_into().unwrap(), &mut sealed);
            let mut block: [u8; 16] = header.try_into().unwrap();
            key.block(&mut block, true);
            [&block[..], &sealed].concat()
        };
        let mut take_at = |session, number, id, stamp, now| {
            let mut datagram = reply(session, number, id, stamp);
            let opened = client.open(&key, &mut datagram, now)?;
            assert_eq!(&datagram[opened.start..opened.start + opened.len], b"answer", "{name}");
            Ok(opened.from)
        };
        let mut take = |number, id, stamp| take_at(99, number, id, stamp, NOW);
        assert_eq!(take(5, 77, NOW), Ok(target().address));
        assert_eq!(take(5, 77, NOW), Err(Refusal::Replayed));
        assert_eq!(take(3, 77, NOW), Ok(target().address));
        assert_eq!(take(3, 77, NOW), Err(Refusal::Replayed));
        assert_eq!(take(500, 77, NOW), Ok(target().address));
        assert_eq!(take(6, 77, NOW), Err(Refusal::Replayed), "too old to tell");
        assert_eq!(take(501, 78, NOW), Err(Refusal::Replayed), "another client's");
        assert_eq!(take(502, 77, NOW - 31), Err(Refusal::WrongTime));
        // the server begins a session anew; what it sent in the one before may still be on its way
        let from = Ok(target().address);
        assert_eq!(take_at(100, 0, 77, NOW, NOW), from);
        assert_eq!(take_at(99, 501, 77, NOW, NOW), from);
        assert_eq!(take_at(99, 500, 77, NOW, NOW), Err(Refusal::Replayed));
        // a third is not believed while the first is remembered, and pushes nothing out
        assert_eq!(take_at(101, 0, 77, NOW + 59, NOW + 59), Err(Refusal::Replayed));
        assert_eq!(take_at(102, 0, 78, NOW + 59, NOW + 59), Err(Refusal::Replayed));
        assert_eq!(take_at(100, 1, 77, NOW + 59, NOW + 59), from);
        assert_eq!(take_at(101, 0, 77, NOW + 60, NOW + 60), from);
        // by the time that the first is forgotten its datagrams are too old to be played back
        assert_eq!(take_at(99, 500, 77, NOW, NOW + 60), Err(Refusal::WrongTime));
        assert_eq!(take_at(100, 1, 77, NOW + 59, NOW + 60), Err(Refusal::Replayed));
    }
}

#[test]
fn no_octets_from_a_server_do_harm() {
    let mut state = 1u64;
    let mut chance = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    for round in 0..300 {
        let octets: Vec<u8> = (0..round).map(|_| chance()).collect();
        for (_, method) in Method::ALL {
            let _ = Stream::new(key(method), [0; KEY_MAX]).open(&mut octets.clone(), NOW);
            assert!(Session::new(1).open(&key(method), &mut octets.clone(), NOW).is_err());
        }
    }
}

fn octets(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn ciphers_give_what_their_specifications_print() {
    let long: [u8; 32] = std::array::from_fn(|n| 0x80 + n as u8);
    let text = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    let chacha = (Cipher::chacha20(&long), [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47]);
    let xchacha = Cipher::xchacha20(&long, &std::array::from_fn(|n| 0x40 + n as u8));
    let aes = Cipher::aes128(octets("feffe9928665731c6d6a8f9467308308").first_chunk().unwrap());
    let header = "50515253c0c1c2c3c4c5c6c7";
    let aes_text = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let cases = [
        // RFC 8439 section 2.8.2
        (
            chacha,
            header,
            text.as_bytes().to_vec(),
            concat!(
                "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905",
                "d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116",
            ),
            "1ae10b594f09e26a7e902ecbd0600691",
        ),
        // draft-irtf-cfrg-xchacha-03 appendix A.3
        (
            xchacha,
            header,
            text.as_bytes().to_vec(),
            concat!(
                "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb",
                "96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c68b13b52e",
            ),
            "c0875924c1c7987947deafd8780acf49",
        ),
        // McGrew and Viega, The Galois/Counter Mode of Operation, test case 4
        (
            (aes, *octets("cafebabefacedbaddecaf888").first_chunk().unwrap()),
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            octets(aes_text),
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
            "5bc94fbc3221a5db94fae95ae7121a47",
        ),
    ];
    for ((cipher, nonce), header, text, sealed, tag) in cases {
        let (mut buffer, header) = (text.clone(), octets(header));
        assert_eq!(cipher.seal(nonce, &header, &mut buffer).unwrap()[..], octets(tag));
        assert_eq!(buffer, octets(sealed));
        let mut tag: [u8; TAG] = *octets(tag).first_chunk().unwrap();
        assert!(cipher.open(nonce, &header, &mut buffer, tag) && buffer == text);
        tag[15] ^= 1;
        assert!(!cipher.open(nonce, &header, &mut octets(sealed), tag));
    }
}

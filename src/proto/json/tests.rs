use super::*;
use proptest::prelude::*;
use std::fmt;

/// What is read is written again.
fn rewritten(document: &str) -> Result<String, Fault> {
    let mut text = String::new();
    let mut writer = Writer::new(&mut text);
    let mut tokens = Tokens::new(document.as_bytes());
    while let Some(token) = tokens.next()? {
        match token {
            Token::BeginObject => writer.begin_object(),
            Token::EndObject => writer.end_object(),
            Token::BeginArray => writer.begin_array(),
            Token::EndArray => writer.end_array(),
            Token::Key(key) => writer.key(&key.to_string()),
            Token::Text(text) => writer.text(text),
            Token::Number(number) => writer.number(number.parse().unwrap()),
            Token::Flag(flag) => writer.flag(flag),
            Token::Null => writer.null(),
        }
        .unwrap();
    }
    Ok(text)
}

const DOCUMENT: &str = r#"{"v":1,"a":[],"b":{},"c":[1,[true,null],{"k":"\"\\\n\u0001é€😀"}],"d":{"x":{"y":"z"}},"n":18446744073709551615}"#;

#[test]
fn what_is_read_and_written_again_is_the_same() {
    assert_eq!(rewritten(DOCUMENT).as_deref(), Ok(DOCUMENT));
}

#[test]
fn every_prefix_of_a_document_ends_too_early() {
    for cut in 0..DOCUMENT.len() {
        let mut tokens = Tokens::new(&DOCUMENT.as_bytes()[..cut]);
        let end = loop {
            match tokens.next() {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        let prefix = &DOCUMENT.as_bytes()[..cut];
        // a cut in the middle of a character is one in the middle of a string
        assert_eq!(end, Err(Fault::Truncated), "cut at {cut}: {}", String::from_utf8_lossy(prefix));
    }
}

#[test]
fn what_is_not_json_is_told_with_its_place() {
    let unexpected = |at| Err(Fault::Unexpected { at });
    for (document, fault) in [
        ("{'a':1}", unexpected(1)),
        ("{\"a\" 1}", unexpected(5)),
        ("{\"a\":1,}", unexpected(7)),
        ("[1,]", unexpected(3)),
        ("[1 2]", unexpected(3)),
        ("[1}", unexpected(2)),
        ("[01]", unexpected(2)),
        ("[1.]", unexpected(3)),
        ("[+1]", unexpected(1)),
        ("[tru]", unexpected(4)),
        ("{} {}", unexpected(3)),
        ("[\"\\x\"]", unexpected(2)),
        ("[\"\\ud800\"]", unexpected(2)),
        ("[\"\\udc00\"]", unexpected(2)),
        ("[\"\t\"]", unexpected(2)),
        ("", Err(Fault::Truncated)),
        ("   ", Err(Fault::Truncated)),
    ] {
        assert_eq!(rewritten(document), fault, "{document}");
    }
}

#[test]
fn brackets_are_counted() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(rewritten(&nested(DEPTH_MAX as usize)).is_ok());
    let too_deep = Fault::TooDeep { at: DEPTH_MAX as usize };
    assert_eq!(rewritten(&nested(DEPTH_MAX as usize + 1)), Err(too_deep));
}

#[test]
fn surrogates_stand_for_one_character() {
    let mut tokens = Tokens::new(br#""\ud83d\ude00\u00e9\/""#);
    let Ok(Some(Token::Text(text))) = tokens.next() else { panic!("a string") };
    assert_eq!(text.to_string(), "😀é/");
    assert!(text.is("😀é/") && !text.is("😀é"));
}

#[test]
fn a_writer_that_is_put_down_and_taken_up_again_writes_the_same() {
    let mut text = String::new();
    let mut comma = false;
    let steps: [fn(&mut Writer<'_>) -> fmt::Result; 5] = [
        |w| w.begin_array(),
        |w| w.new_line().and_then(|()| w.number(1)),
        |w| w.new_line().and_then(|()| w.text("two")),
        |w| w.new_line().and_then(|()| w.optional_text_member("not", None::<&str>)),
        |w| w.end_array(),
    ];
    for step in steps {
        let mut writer = Writer::resume(&mut text, comma);
        step(&mut writer).unwrap();
        comma = writer.needs_comma();
    }
    assert_eq!(text, "[\n1,\n\"two\",\n\"not\":null]");
}

proptest! {
    #[test]
    fn any_text_comes_back_and_stays_on_its_line(text in any::<String>()) {
        let mut document = String::new();
        Writer::new(&mut document).text(&text).unwrap();
        prop_assert!(!document.bytes().any(|c| c < 0x20 || c == 0x7f));
        let mut tokens = Tokens::new(document.as_bytes());
        let Ok(Some(Token::Text(read))) = tokens.next() else { panic!("{document}") };
        prop_assert_eq!(read.to_string(), text);
        prop_assert_eq!(tokens.next(), Ok(None));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut tokens = Tokens::new(&bytes);
        let mut count = 0;
        while let Ok(Some(_)) = tokens.next() {
            count += 1;
            prop_assert!(count <= bytes.len(), "each token takes a byte at least");
        }
    }

    #[test]
    fn any_mutation_of_a_document_is_read_or_refused(at in 0..DOCUMENT.len(), by in any::<u8>()) {
        let mut bytes = DOCUMENT.as_bytes().to_vec();
        bytes[at] = by;
        let mut tokens = Tokens::new(&bytes);
        while let Ok(Some(_)) = tokens.next() {}
    }
}

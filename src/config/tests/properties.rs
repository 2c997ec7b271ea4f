//! What holds for any text.

use proptest::prelude::*;

use super::*;

/// Lines that are nearly right.
fn line() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "config",
        "option",
        "list",
        "package",
        "listener",
        "outbound",
        "rule",
        "set",
        "globals",
        "port",
        "type",
        "socks5",
        "dest_ip",
        "!@s",
        "s",
        "192.0.2.0/24",
        "::/0",
        "1-2",
        "'",
        "\"",
        "\\",
        "#",
        ";",
        "\n",
        "''",
        "_x",
        "proto",
        "tcp",
        "server",
        "mark",
        "0x1/0x3",
        "relay_memory",
        "9999999999999999999G",
        "tproxyd",
        "é",
        "\r\n",
        "enabled",
        "0",
        "loadfile",
        "/a",
        "entry",
        "udp_outbound",
        "device",
        "*",
        "br-*",
        "\0",
    ]);
    prop::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn any_bytes_give_a_configuration_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse("f", &bytes, &ROUTER, &mut |_| Err(io::ErrorKind::NotFound.into()));
    }

    #[test]
    fn nearly_right_text_gives_a_configuration_or_errors_with_lines_that_exist(text in line()) {
        let lines = text.bytes().filter(|c| *c == b'\n').count() as u32 + 1;
        let bytes = text.into_bytes();
        let outcome = parse("f", &bytes, &Env { total_memory: 0, descriptors: u64::MAX }, &mut |_| {
            Ok(Box::new(Cursor::new(bytes.clone())) as Box<dyn BufRead>)
        });
        if let Err(errors) = outcome {
            let lines_in_order: Vec<u32> = errors.iter().filter(|p| p.file == "f").map(|p| p.line).collect();
            prop_assert!(lines_in_order.is_sorted());
            prop_assert!(errors.iter().all(|problem| (1..=lines).contains(&problem.line)), "{}", errors);
        }
    }

    #[test]
    fn every_prefix_of_a_right_file_gives_a_configuration_or_errors(cut in 0usize..4000) {
        let text = include_bytes!("../../../files/tproxyd.config");
        let _ = parse("f", &text[..cut.min(text.len())], &ROUTER, &mut |_| Err(io::ErrorKind::NotFound.into()));
    }
}

use proptest::prelude::*;

use super::*;

/// The sections in short, then errors and warnings.
fn read(text: &str) -> String {
    let mut report = Report::new("f");
    let sections = parse(text.as_bytes(), "tproxyd", &mut report);
    let mut all = String::new();
    for section in &sections {
        let name = section.name.as_deref().unwrap_or("-");
        all += &format!("{} {} {name}\n", section.line, section.kind);
        for setting in &section.settings {
            let sign = if setting.list { "+" } else { "=" };
            for (line, value) in &setting.values {
                all += &format!("{line} {}{sign}{value}\n", setting.name);
            }
        }
    }
    match report.finish() {
        Ok(warnings) => all + &warnings.join("\n"),
        Err(errors) => all + &errors.to_string(),
    }
}

#[test]
fn quotes_escapes_and_parts_make_one_word() {
    assert_eq!(
        read("config a b\n option a 'x y'\"z 'q' \\\"\"w\\ v\\'\n option b '\\n'\n option c \"\\n\"\n"),
        "1 a b\n2 a=x yz 'q' \"w v'\n3 b=\\n\n4 c=n\n"
    );
    assert_eq!(read("config 'a' \"b\"\n\toption 'o' it\\'s\n"), "1 a b\n2 o=it's\n");
    assert_eq!(read("config a b; option x 'it'\\''s'"), "1 a b\n1 x=it's\n");
}

#[test]
fn comments_blank_lines_and_either_line_end_are_passed_over() {
    assert_eq!(
        read("# a\r\n\r\nconfig a b # c\r\n  option x y# z\r\n\t# d\r\n option y '#1'"),
        "3 a b\n4 x=y\n6 y=#1\n"
    );
}

#[test]
fn a_comment_may_hold_anything() {
    let mut report = Report::new("f");
    let sections = parse(b"# \xff\0 '\nconfig a b # \xe9 \"\n", "tproxyd", &mut report);
    assert_eq!(sections.len(), 1);
    assert!(report.finish().is_ok());
}

#[test]
fn a_backslash_at_the_end_joins_the_next_line() {
    assert_eq!(
        read("config a b\n option x \\\n  y\n option z a\\\r\nb\n option w \"a\\\nb\"\n"),
        "1 a b\n2 x=y\n4 z=ab\n6 w=ab\n"
    );
}

#[test]
fn a_semicolon_ends_a_command() {
    assert_eq!(read("config a b; option x 1;option y '2;3'; # z"), "1 a b\n1 x=1\n1 y=2;3\n");
}

#[test]
fn sections_are_anonymous_or_add_to_their_namesake() {
    assert_eq!(
        read("config rule\n option x 1\nconfig rule\nconfig a b\n option x 1\nconfig rule\nconfig a b\n option y 2\n"),
        "1 rule -\n2 x=1\n3 rule -\n4 a b\n5 x=1\n8 y=2\n6 rule -\nf:7: section 'b' was begun on line 4: this adds to it"
    );
    assert_eq!(read("config a ''\n"), "1 a -\n");
}

#[test]
fn an_option_given_again_replaces_and_a_list_adds() {
    assert_eq!(
        read("config a b\n option x 1\n option x 2\n list y 1\n list y 2\n"),
        "1 a b\n3 x=2\n4 y+1\n5 y+2\nf:3: option 'x' again: this counts, not line 2"
    );
    assert_eq!(
        read("config a b\n option x 1\n list x 2\n list y 1\n option y 2\n"),
        "1 a b\n2 x+1\n3 x+2\n5 y=2\nf:3: list 'x' adds to the option on line 2\nf:5: option 'y' again: this counts, not line 4"
    );
}

#[test]
fn an_empty_value_unsets() {
    assert_eq!(read("config a b\n option x ''\n list y \"\"\n"), "1 a b\n");
    assert_eq!(
        read("config a b\n option x 1\n option x ''\n"),
        "1 a b\nf:3: option 'x' again: this counts, not line 2"
    );
}

#[test]
fn what_begins_with_an_underscore_is_passed_over_whatever_it_holds() {
    let mut report = Report::new("f");
    let text = b"config _cert pem\n option key '-----\nBEGIN \xff\n\n'\nconfig a b\n list _x \"a\nb\"\n option y 1\n";
    let sections = parse(text, "tproxyd", &mut report);
    assert_eq!(report.finish(), Ok(Vec::new()));
    assert_eq!(sections.len(), 2);
    assert_eq!(
        sections[1].settings,
        [Setting { name: "y".to_owned(), list: false, values: vec![(9, "1".to_owned())] }]
    );
}

#[test]
fn output_of_uci_export_is_taken_and_another_package_is_not() {
    assert_eq!(read("package tproxyd\n\nconfig a 'b'\n\toption x '1'\n\n"), "3 a b\n4 x=1\n");
    assert_eq!(
        read("package network\n\nconfig interface 'lan'\n\toption x '1'\n\npackage tproxyd\nconfig a\n"),
        "7 a -\nf:1: package 'network': expected package 'tproxyd' (uci export tproxyd)"
    );
}

#[test]
fn every_mistake_has_its_line_and_the_rest_is_read() {
    assert_eq!(
        read(
            "optoin x\noption x 1\nconfig\n option x 1\nconfig a b\n option\n option x\n option x 1 2\n option 'x\n list y \"z\n option x-y 1\n option z 3\no x 1\n"
        ),
        "5 a b\n12 z=3\n\
         f:1: 'optoin' begins no command: expected config, option, list or package; nearest is 'option'\n\
         f:2: option 'x' comes before the first section\n\
         f:3: config needs a type\n\
         f:6: option needs a name\n\
         f:7: option 'x' has no value\n\
         f:8: '2' is one word too many; a value with blanks needs quotes\n\
         f:9: the quote ' is not closed on this line\n\
         f:10: the quote \" is not closed on this line\n\
         f:11: name 'x-y' has other characters than A-Z a-z 0-9 _\n\
         f:13: 'o' begins no command: expected config, option, list or package"
    );
}

#[test]
fn a_name_of_another_type_is_an_error_and_its_options_are_still_seen() {
    assert_eq!(
        read("config a b\nconfig c b\n option x 1\n"),
        "1 a b\n2 c b\n3 x=1\nf:2: section 'b': line 1 has that name for type a; names are unique over all types"
    );
}

#[test]
fn bytes_that_are_no_text_are_errors() {
    let lines = |bytes: &[u8]| {
        let mut report = Report::new("f");
        parse(bytes, "tproxyd", &mut report);
        report.finish().unwrap_err().to_string()
    };
    assert_eq!(lines(b"config a b\n option x 'a\0b'\n option y \\\0\n"), "f:2: a NUL byte\nf:3: a NUL byte");
    assert_eq!(lines(b"config a b\n option x \xff\n"), "f:2: text that is not valid UTF-8");
    assert_eq!(
        lines(b"\xef\xbb\xbfconfig a b\n"),
        "f:1: the file begins with a byte order mark; save it as UTF-8 without one"
    );
    let long = [b"config a b\n option x ".to_vec(), b"y".repeat(70_000), b"\n option z '".to_vec()].concat();
    assert_eq!(lines(&long), "f:2: a value longer than 65536 bytes\nf:3: the quote ' is not closed on this line");
    assert_eq!(lines(b"config a b\n option x \"y\\"), "f:2: the quote \" is not closed on this line");
}

#[test]
fn options_of_one_section_are_limited() {
    let many: String = (0..=MOST_SETTINGS).map(|n| format!(" option x{n} 1\n")).collect();
    assert!(read(&format!("config a b\n{many}")).ends_with("f:130: more than 128 different options in one section"));
}

/// As `uci export` writes it.
fn print(sections: &[Section]) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let mut all = "package tproxyd\n".to_owned();
    for section in sections {
        all += &format!("\nconfig {}", section.kind);
        if let Some(name) = &section.name {
            all += &format!(" {}", quoted(name));
        }
        all += "\n";
        for setting in &section.settings {
            let keyword = if setting.list { "list" } else { "option" };
            for (_, value) in &setting.values {
                all += &format!("\t{keyword} {} {}\n", setting.name, quoted(value));
            }
        }
    }
    all
}

fn without_lines(mut sections: Vec<Section>) -> Vec<Section> {
    for section in &mut sections {
        section.line = 0;
        section.settings.iter_mut().flat_map(|setting| &mut setting.values).for_each(|(line, _)| *line = 0);
    }
    sections
}

fn setting() -> impl Strategy<Value = (bool, Vec<(u32, String)>)> {
    let value = "[^\\x00\n]{1,20}".prop_map(|text| (0, text));
    prop_oneof![
        value.clone().prop_map(|value| (false, vec![value])),
        prop::collection::vec(value, 1..4).prop_map(|values| (true, values)),
    ]
}

fn section() -> impl Strategy<Value = Section> {
    let settings = prop::collection::btree_map("[a-z][a-z0-9_]{0,8}", setting(), 0..6);
    ("[a-z]{1,8}", any::<bool>(), settings).prop_map(|(kind, named, settings)| Section {
        kind,
        name: named.then(String::new),
        line: 0,
        settings: settings.into_iter().map(|(name, (list, values))| Setting { name, list, values }).collect(),
    })
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_the_same(mut sections in prop::collection::vec(section(), 0..6)) {
        for (number, section) in sections.iter_mut().enumerate() {
            section.name = section.name.as_ref().map(|_| format!("name_{number}"));
        }
        let mut report = Report::new("f");
        let read = parse(print(&sections).as_bytes(), "tproxyd", &mut report);
        prop_assert_eq!(report.finish(), Ok(Vec::new()));
        prop_assert_eq!(without_lines(read), sections);
    }

    #[test]
    fn any_bytes_are_read_to_the_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut report = Report::new("f");
        parse(&bytes, "tproxyd", &mut report);
    }
}

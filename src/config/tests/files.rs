//! The annotated example is complete, right and safe.

use super::*;
use crate::config::schema::SECTIONS;

const EXAMPLE: &str = include_str!("../../../files/tproxyd.config");

/// The example with every commented line of UCI set.
fn all_set() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with("\toption ") || rest.starts_with("\tlist ") || rest.starts_with("config ") => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(|text| line(text) + "\n").collect()
}

#[test]
fn the_example_as_shipped_is_right_and_does_nothing() {
    let config = fine(EXAMPLE);
    assert!(!config.globals.enabled);
    assert_eq!(config.warnings, Vec::<String>::new());
    let defaults = fine("").globals;
    assert_eq!(Globals { enabled: true, ..config.globals }, defaults);
}

#[test]
fn every_option_is_in_files() {
    let mut report = report::Report::new("f");
    let text = all_set();
    let sections = uci::parse(text.as_bytes(), "tproxyd", &mut report);
    for of in &SECTIONS {
        for option in of.options {
            let setting = sections
                .iter()
                .filter(|section| section.kind == of.name)
                .find_map(|section| section.settings.iter().find(|setting| setting.name == option.name));
            let setting = setting.unwrap_or_else(|| panic!("files/tproxyd.config lacks {} {}", of.name, option.name));
            let shown: Vec<&str> = setting.values.iter().map(|(_, value)| value.as_str()).collect();
            let ships_otherwise = of.name == "globals" && option.name == "enabled";
            if !option.default.is_empty() && !ships_otherwise {
                assert_eq!(shown.join(" "), option.default, "{} {}", of.name, option.name);
            }
        }
    }
    report.finish().unwrap();
}

#[test]
fn with_everything_set_only_what_this_build_lacks_and_what_belongs_elsewhere_is_refused() {
    let errors = errors(&all_set());
    for error in errors {
        assert!(error.contains("is not in this build") || error.contains("belongs to"), "{error}");
    }
}

#[test]
fn a_set_with_a_url_has_a_list_of_its_own_unless_a_loadfile_says_otherwise() {
    for (more, wanted) in [("", "/etc/tproxyd/s.list"), ("list loadfile '/a'\n\tlist loadfile '/b'\n", "/a")] {
        let text =
            format!("config set 's'\n\toption url 'https://a.example/l'\n\toption update_interval '6h'\n\t{more}");
        let mut opened = Vec::new();
        let config = parse("f", text.as_bytes(), &ROUTER, &mut |path| {
            opened.push(path.display().to_string());
            Ok(Box::new(Cursor::new("192.0.2.1\n")))
        });
        let set = &config.expect("it is good").sets[0];
        assert_eq!(set.source.file(), Some(Path::new(wanted)));
        assert_eq!((opened[0].as_str(), set.source.update_interval.as_secs()), (wanted, 21_600));
    }
}

//! The command line, and that README.md says what the program does: every option, every test it names.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tproxyd::config::schema::{Opt, SECTIONS};

const SECURITY: &str = include_str!("../SECURITY.md");
const README: &str = include_str!("../README.md");

/// Runs the program with `input` on its standard input.
fn tproxyd(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tproxyd"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start tproxyd");
    // One that looks at its arguments alone may have ended already.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("wait for tproxyd")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A configuration, line by line; beside each mistake a word that its message must have.
const TEN_MISTAKES: [(&str, &str); 13] = [
    ("config globals", ""),
    ("\toption log_levle 'info'", "log_level"),
    ("\toption table '0'", "table"),
    ("\toption on_failure 'maybe'", "maybe"),
    ("config listner 'lan'", "listener"),
    ("config outbound 'proxy'", "server"),
    ("\toption type 'socks5'", ""),
    ("\toption port '70000'", "70000"),
    ("config rule", "outbound"),
    ("\tlist dest_ip '203.0.113.300'", "203.0.113.300"),
    ("config outbound 'game'", ""),
    ("\toption type 'forword'", "forward"),
    ("\toption idle_timeout '5 parsecs'", "5 parsecs"),
];

#[test]
fn a_configuration_with_ten_mistakes_names_all_ten_with_their_lines_and_ends_with_status_2() {
    let text: String = TEN_MISTAKES.iter().map(|(line, _)| format!("{line}\n")).collect();
    let output = tproxyd(&["run", "--config", "-"], &text);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for (number, (line, word)) in (1..).zip(TEN_MISTAKES).filter(|(_, (_, word))| !word.is_empty()) {
        let place = format!(":{number}: ");
        assert!(said.lines().any(|it| it.contains(&place) && it.contains(word)), "not named: {line}, in\n{said}");
    }
    assert_eq!(said.lines().count(), 10, "{said}");
}

#[test]
fn a_wrong_command_line_ends_with_status_2_and_says_where_help_is() {
    for args in [&[][..], &["rnu"], &["run", "--confg", "x"], &["run", "--config"]] {
        let output = tproxyd(args, "");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("--help"), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let help = tproxyd(&["--help"], "");
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    // A name is indented by two blanks; the rest of its description by more.
    let commands: Vec<_> = commands.filter_map(|line| line.strip_prefix("  ")?.split_once(' ')).collect();
    let commands: Vec<_> = commands.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    assert!(commands.contains(&"run"), "{help}");
    for command in commands {
        let output = tproxyd(&[command, "--help"], "");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
        let later = help.contains("Not in this build");
        assert!(
            later || help.contains("Examples:") && help.contains(&format!("tproxyd {command}")),
            "{command}: {help}"
        );
    }
}

#[test]
fn the_version_names_target_and_features() {
    let output = tproxyd(&["--version"], "");
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("tproxyd {} ({}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    assert!(said.starts_with(&expected), "{said}");
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let output = tproxyd(&["run", "--config", "/nowhere/tproxyd"], "");
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("/nowhere/tproxyd"), "{}", stderr(&output));
}

/// What README.md says of an option: its row is "| `name` | `default` | meaning |" below the heading of its section.
fn readme_row(section: &str, option: &Opt) -> Option<&'static str> {
    let heading = format!("### `config {section}`");
    let chapter = README.split(&heading).nth(1)?.split("\n#").next()?;
    chapter.lines().find(|line| line.starts_with(&format!("| `{}`", option.name)))
}

#[test]
fn every_option_is_in_the_readme_with_its_default_and_whether_this_build_has_it() {
    for section in &SECTIONS {
        for option in section.options {
            let (section, name) = (section.name, option.name);
            let row = readme_row(section, option).unwrap_or_else(|| panic!("README.md lacks {name} of {section}"));
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let default = if option.default.is_empty() { "–".to_owned() } else { format!("`{}`", option.default) };
            assert_eq!(cells.get(2).copied(), Some(&*default), "default of {name} of {section}");
            let later = cells.get(1).is_some_and(|cell| cell.contains("later"));
            assert!(!later, "README.md on whether this build has {name} of {section}");
        }
    }
}

#[test]
fn every_test_that_the_readme_and_the_security_notes_name_exists() {
    let code = sources("tests") + &sources("src");
    let table = README.split("## What happens when something fails").nth(1).expect("the chapter");
    let table = table.split("\n## ").next().expect("its text");
    let mut names = 0;
    for row in table.lines().chain(SECURITY.lines()).filter(|line| line.starts_with("| ") && line.contains('`')) {
        let cell = row.trim_end_matches(" |").rsplit('|').next().expect("a last cell");
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(code.contains(name), "README.md or SECURITY.md names a test that is not there: {name}");
            names += 1;
        }
    }
    assert!(names > 10);
}

/// Every text in the sources below `folder` whose names end in `.rs`.
fn sources(folder: &str) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("it is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            all += &sources(path.to_str().expect("a plain path"));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            all += &std::fs::read_to_string(&path).expect("it can be read");
        }
    }
    all
}

#[test]
fn every_finding_of_check_is_in_the_readme_and_provoked_by_a_test() {
    let source = sources("src/check") + &sources("src/cli");
    let (mut ids, mut bad) = (Vec::new(), 0);
    for kind in ["warn", "fail", "of"] {
        for rest in source.split(&format!("Finding::{kind}(")).skip(1) {
            let id = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            if let Some(id) = id.filter(|id| id.len() > 1).map(str::to_owned) {
                bad += 1;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
    }
    assert!(ids.len() >= 40 && bad > ids.len(), "{} findings: {ids:?}", ids.len());
    let table = README.split("| `id` | what is found |").nth(1).expect("a table").split("\n\n").next().expect("rows");
    let tests: String = source.split("mod tests").skip(1).collect::<String>() + &sources("tests/e2e");
    for id in ids {
        assert!(table.contains(&format!("`{id}`")), "README.md does not name {id}");
        let quoted = format!("\"{id}\"");
        let by_severity = ["memory", "kernel", "clock", "descriptors"].contains(&id.as_str());
        assert!(by_severity || tests.contains(&quoted), "no test provokes {id}");
    }
}

/// The texts of all warnings and errors that the program logs.
fn log_lines() -> Vec<String> {
    let mut lines = Vec::new();
    let source = sources("src");
    for kind in ["log::warn!(", "log::error!(", "log::log!("] {
        for call in source.split(kind).skip(1) {
            // the first string of the call
            let Some(text) = call.split_once('"').map(|(_, rest)| rest) else { continue };
            let end = text.char_indices().find(|(at, c)| *c == '"' && !text[..*at].ends_with('\\')).map(|(at, _)| at);
            let text = text[..end.expect("a string ends")].replace("\\\n", "").replace("\\n", "\n");
            lines.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    lines
}

#[test]
fn every_warning_and_error_that_is_logged_stands_in_the_readme_with_its_cause_and_cure() {
    let table =
        README.split("| log line | cause | cure |").nth(1).expect("a table").split("\n\n").next().expect("rows");
    let lines = log_lines();
    assert!(lines.len() > 20, "{lines:?}");
    for line in &lines {
        // what stands for itself between the values
        let parts =
            line.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest).trim_matches([' ', ':']));
        let longest = parts.max_by_key(|part| part.len()).unwrap_or_default();
        // "{e}", "{warning}": the words come from elsewhere
        assert!(longest.len() < 4 || table.contains(longest), "README.md lacks the log line '{line}' ('{longest}')");
    }
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert!(cells.len() == 3 && cells.iter().all(|cell| cell.trim().len() > 3), "{row}");
    }
}

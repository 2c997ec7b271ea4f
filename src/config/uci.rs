//! The UCI grammar: bytes → sections with line numbers, as libuci's `file.c` reads them. Knows no option's meaning.
//!
//! - A command is `package NAME`, `config TYPE [NAME]`, `option NAME VALUE` or `list NAME VALUE`; it ends at the end of
//!   the line or at `;`. `#` outside quotes begins a comment, in the middle of a word too.
//! - A word is made of unquoted, `'single'` and `"double"` quoted parts without blanks between them. A backslash takes
//!   the next character as it is, except in single quotes; at the end of a line it joins the next line.
//! - A section named as an earlier one adds to it. `option` replaces what was given before, `list` adds to it, and an
//!   empty value unsets.
//!
//! Four things differ from libuci on purpose. The one-letter forms (`c`, `o`, `l`, `p`) and an option without any value
//! are errors. An empty `list` value counts as none. A quote must be closed on its line, since a forgotten one would
//! otherwise hide every mistake up to the next quote; where the name begins with `_` and so belongs to somebody else, it
//! may go on over lines, and what is there is passed over.

use std::collections::BTreeMap;

use super::report::{Report, nearest};
use reader::{Reader, Wrong};

mod reader;

/// `config TYPE [NAME]` and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: String,
    pub(super) name: Option<String>,
    /// Line on which it begins first.
    pub(super) line: u32,
    /// Those that begin with `_` are left out.
    pub(super) settings: Vec<Setting>,
}

/// One option, by `option` or `list` lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: String,
    /// True if it was written as `list` lines: each value stands for itself then, and isn't split at blanks.
    pub(super) list: bool,
    /// Line and text of each value, one at least.
    pub(super) values: Vec<(u32, String)>,
}

impl Setting {
    /// Line of the first value.
    pub(super) fn line(&self) -> u32 {
        self.values.first().map_or(0, |(line, _)| *line)
    }
}

/// Reads a file whose sections belong to `package`; those of another package are reported once and passed over.
pub(super) fn parse(bytes: &[u8], package: &str, report: &mut Report<'_>) -> Vec<Section> {
    let reader = Reader::new(bytes);
    let mut parser =
        Parser { reader, package, sections: Vec::new(), named: BTreeMap::new(), current: Current::None, report };
    if bytes.starts_with(BYTE_ORDER_MARK) {
        parser.report.error(1, "the file begins with a byte order mark; save it as UTF-8 without one");
        parser.reader.pass(BYTE_ORDER_MARK.len());
    }
    while parser.reader.next_command() {
        if let Err((line, message)) = parser.command() {
            parser.report.error(line, message);
            parser.reader.skip_command();
        }
    }
    parser.sections
}

struct Parser<'a, 'r, 'f> {
    reader: Reader<'a>,
    package: &'a str,
    sections: Vec<Section>,
    named: BTreeMap<String, usize>,
    current: Current,
    report: &'r mut Report<'f>,
}

/// Where an `option` goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Current {
    /// No section yet.
    None,
    /// Nowhere: the section's own line was wrong, or it isn't ours.
    Nowhere,
    /// Nowhere, and neither do the sections that follow: another package.
    OtherPackage,
    /// An index into the sections.
    Section(usize),
}

impl Parser<'_, '_, '_> {
    fn command(&mut self) -> Result<(), Wrong> {
        let line = self.reader.line;
        let keyword = self.reader.keyword();
        match keyword.as_str() {
            "package" => self.package(line),
            "config" => self.config(line),
            "option" => self.setting(line, false),
            "list" => self.setting(line, true),
            other => {
                let known = ["package", "config", "option", "list"];
                let hint = nearest(other, known).map(|name| format!("; nearest is '{name}'")).unwrap_or_default();
                Err((
                    line,
                    format!("'{}' begins no command: expected config, option, list or package{hint}", shown(other)),
                ))
            }
        }
    }

    fn package(&mut self, line: u32) -> Result<(), Wrong> {
        let name = self.required("package", "a name", false)?;
        self.end(line)?;
        if name == self.package {
            self.current = Current::None;
            return Ok(());
        }
        self.current = Current::OtherPackage;
        let ours = self.package;
        Err((line, format!("package '{}': expected package '{ours}' (uci export {ours})", shown(&name))))
    }

    fn config(&mut self, line: u32) -> Result<(), Wrong> {
        if self.current != Current::OtherPackage {
            self.current = Current::Nowhere;
        }
        let kind = self.required("config", "a type", false)?;
        let name = self.reader.word(false)?.map(|word| text(word, line)).transpose()?.filter(|name| !name.is_empty());
        self.end(line)?;
        if self.current == Current::OtherPackage {
            return Ok(());
        }
        if !kind.bytes().all(|c| c.is_ascii_graphic()) {
            return Err((line, format!("section type '{}' has a character that none may have", shown(&kind))));
        }
        let Some(name) = name else {
            self.open(kind, None, line);
            return Ok(());
        };
        if let Some(index) = self.named.get(&name).copied() {
            let earlier = &self.sections[index];
            if earlier.kind == kind {
                self.current = Current::Section(index);
                self.report.warn(line, format!("section '{name}' was begun on line {}: this adds to it", earlier.line));
                return Ok(());
            }
            let (kind_before, line_before) = (earlier.kind.clone(), earlier.line);
            self.open(kind, Some(name.clone()), line);
            return Err((
                line,
                format!(
                    "section '{name}': line {line_before} has that name for type {kind_before}; names are unique over all types"
                ),
            ));
        }
        let wrong = name_is_wrong(&name);
        self.named.insert(name.clone(), self.sections.len());
        self.open(kind, Some(name), line);
        wrong.map_or(Ok(()), |message| Err((line, message)))
    }

    fn open(&mut self, kind: String, name: Option<String>, line: u32) {
        self.current = Current::Section(self.sections.len());
        self.sections.push(Section { kind, name, line, settings: Vec::new() });
    }

    fn setting(&mut self, line: u32, list: bool) -> Result<(), Wrong> {
        let keyword = if list { "list" } else { "option" };
        let foreign_section = match self.current {
            Current::Section(index) => self.sections[index].kind.starts_with('_'),
            _ => false,
        };
        let name = self.required(keyword, "a name", foreign_section)?;
        let foreign = foreign_section || name.starts_with('_');
        let value = self.reader.word(foreign)?;
        if foreign {
            return self.end(line);
        }
        let Some(value) = value else {
            return Err((line, format!("{keyword} '{}' has no value", shown(&name))));
        };
        let value = text(value, line)?;
        self.end(line)?;
        if let Some(message) = name_is_wrong(&name) {
            return Err((line, message));
        }
        match self.current {
            Current::None => Err((line, format!("{keyword} '{name}' comes before the first section"))),
            Current::Nowhere | Current::OtherPackage => Ok(()),
            Current::Section(index) => self.store(index, name, list, line, value),
        }
    }

    fn store(&mut self, section: usize, name: String, list: bool, line: u32, value: String) -> Result<(), Wrong> {
        let settings = &mut self.sections[section].settings;
        let Some(place) = settings.iter().position(|setting| setting.name == name) else {
            if settings.len() >= MOST_SETTINGS {
                return Err((line, format!("more than {MOST_SETTINGS} different options in one section")));
            }
            if !value.is_empty() {
                settings.push(Setting { name, list, values: vec![(line, value)] });
            }
            return Ok(());
        };
        let setting = &mut settings[place];
        let before = setting.line();
        if list {
            if !setting.list {
                self.report.warn(line, format!("list '{name}' adds to the option on line {before}"));
                setting.list = true;
            }
            if !value.is_empty() {
                setting.values.push((line, value));
            }
        } else {
            self.report.warn(line, format!("option '{name}' again: this counts, not line {before}"));
            if value.is_empty() {
                settings.remove(place);
            } else {
                *setting = Setting { name, list, values: vec![(line, value)] };
            }
        }
        Ok(())
    }

    fn required(&mut self, keyword: &str, what: &str, foreign: bool) -> Result<String, Wrong> {
        let line = self.reader.line;
        let word = self.reader.word(foreign)?.filter(|word| !word.is_empty());
        text(word.ok_or_else(|| (line, format!("{keyword} needs {what}")))?, line)
    }

    fn end(&mut self, line: u32) -> Result<(), Wrong> {
        self.reader.end().map_err(|rest| {
            (line, format!("'{}' is one word too many; a value with blanks needs quotes", shown(&rest)))
        })
    }
}

/// What is wrong with the name of a section or an option, if anything.
fn name_is_wrong(name: &str) -> Option<String> {
    if name.len() > LONGEST_NAME {
        return Some(format!("name '{}' is longer than {LONGEST_NAME} characters", shown(name)));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.chars().all(good)).then(|| format!("name '{}' has other characters than A-Z a-z 0-9 _", shown(name)))
}

fn text(word: Vec<u8>, line: u32) -> Result<String, Wrong> {
    if word.contains(&0) {
        return Err((line, "a NUL byte".to_owned()));
    }
    String::from_utf8(word).map_err(|_| (line, "text that is not valid UTF-8".to_owned()))
}

/// What the user typed, short enough and without control characters, for a message.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

/// What some editors put before UTF-8 text; libuci refuses it too.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Characters of a name; kernel and nft names made from it stay within their own limits.
const LONGEST_NAME: usize = 64;

/// Different options of one section; no type knows a quarter of that.
const MOST_SETTINGS: usize = 128;

#[cfg(test)]
mod tests;

//! Sections as written → sections of known types with typed values. All that the schema alone can tell is told here.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{Families, Host, Mac, Mark, PortRange, Protos, Resolver, Server, SniffPort, Values};
use super::report::{Report, nearest};
use super::schema::{Opt, SECTIONS, SectionType, section_type};
use super::uci::{Section, Setting, shown};
use super::value::{Addresses, Value};

/// A section of a known type, its values typed. What was wrong has been reported and is missing.
pub(super) struct Checked<'a> {
    /// Its type.
    pub(super) of: &'static SectionType,
    section: &'a Section,
    /// What messages call it: `listener 'lan'`, `rule 2`.
    pub(super) title: String,
    /// N of `@rule[N]`, counted for each type.
    pub(super) number: u32,
    pub(super) line: u32,
    /// False if `option enabled` says so, and the section asks for nothing. Globals always count: their own `enabled` is
    /// about the program.
    pub(super) enabled: bool,
    values: Vec<(&'static str, Vec<(u32, Value)>)>,
}

/// Checks every section against the schema; those of unknown types are reported and left out.
pub(super) fn check<'a>(sections: &'a [Section], report: &mut Report<'_>) -> Vec<Checked<'a>> {
    let mut counts = [0u32; SECTIONS.len()];
    let mut checked: Vec<Checked<'a>> = Vec::new();
    for section in sections.iter().filter(|section| !section.kind.starts_with('_')) {
        let Some(of) = section_type(&section.kind) else {
            let names = || SECTIONS.iter().map(|known| known.name);
            let hint = nearest(&section.kind, names()).map(|name| format!("; nearest is '{name}'")).unwrap_or_default();
            let names: Vec<&str> = names().collect();
            let expected = names.join(", ");
            report.error(
                section.line,
                format!("unknown section '{}': expected one of {expected}{hint}", shown(&section.kind)),
            );
            continue;
        };
        let place = SECTIONS.iter().position(|known| known.name == of.name).unwrap_or_default();
        let number = counts[place];
        counts[place] += 1;
        checked.push(check_section(of, section, number, report));
    }
    checked
}

fn check_section<'a>(
    of: &'static SectionType,
    section: &'a Section,
    number: u32,
    report: &mut Report<'_>,
) -> Checked<'a> {
    let title = match (of.name, &section.name) {
        ("globals", _) => "globals".to_owned(),
        ("rule", _) => format!("rule {number}"),
        (_, Some(name)) => format!("{} '{name}'", of.name),
        (kind, None) => kind.to_owned(),
    };
    let mut checked = Checked { of, section, title, number, line: section.line, enabled: true, values: Vec::new() };
    match &section.name {
        None if of.needs_name => {
            report.error(section.line, format!("{0} without a name: expected config {0} 'NAME'", of.name));
        }
        Some(name) if BUILT_IN.contains(&name.as_str()) => {
            report.error(section.line, format!("'{name}' is built in; give this {} another name", of.name));
        }
        _ => {}
    }
    for setting in &section.settings {
        let Some(option) = of.option(&setting.name) else {
            report.error(setting.line(), unknown_option(&checked.title, of, &setting.name));
            continue;
        };
        let values = checked.read(option, setting, report);
        if !values.is_empty() {
            checked.values.push((option.name, values));
        }
    }
    checked.enabled = of.name == "globals" || of.option("enabled").is_none() || checked.flag("enabled");
    checked.refuse(report);
    checked
}

fn unknown_option(title: &str, of: &SectionType, name: &str) -> String {
    let others: Vec<&str> =
        SECTIONS.iter().filter(|other| other.option(name).is_some()).map(|other| other.name).collect();
    if !others.is_empty() {
        return format!("{title}: option '{name}' belongs to {}", others.join(", "));
    }
    let names = || of.options.iter().map(|option| option.name);
    if let Some(near) = nearest(name, names()) {
        return format!("{title}: unknown option '{name}'; nearest is '{near}'");
    }
    let expected: Vec<&str> = names().collect();
    format!("{title}: unknown option '{name}': expected one of {}", expected.join(", "))
}

impl<'a> Checked<'a> {
    /// A section that the file doesn't have: every option has its default.
    pub(super) fn absent(of: &'static SectionType) -> Checked<'static> {
        let title = of.name.to_owned();
        Checked { of, section: &NOTHING, title, number: 0, line: 0, enabled: true, values: Vec::new() }
    }

    /// Types the values of one option; what is wrong is reported.
    fn read(&self, option: &'static Opt, setting: &Setting, report: &mut Report<'_>) -> Vec<(u32, Value)> {
        if setting.list && !option.many {
            let name = option.name;
            report.error(
                setting.line(),
                format!("{}: '{name}' takes one value: expected option {name}, not list", self.title),
            );
            return Vec::new();
        }
        let mut typed = Vec::new();
        for (line, text) in &setting.values {
            for text in words(option, setting.list, text) {
                match option.kind.parse(&text) {
                    Ok(value) => {
                        if let Value::Addresses { what: Addresses::Range { range, stray_bits: true }, .. } = &value {
                            let first = range.first;
                            report.warn(
                                *line,
                                format!("{}: {} '{text}' is taken to begin at {first}", self.title, option.name),
                            );
                        }
                        typed.push((*line, value));
                    }
                    Err(wrong) => report.error(*line, format!("{}: {} {wrong}", self.title, option.name)),
                }
            }
        }
        typed
    }

    /// Reports options that don't belong to the section's type or mode, and what this build doesn't have. A disabled
    /// section asks for nothing.
    fn refuse(&self, report: &mut Report<'_>) {
        if !self.enabled {
            return;
        }
        let selector = self.of.selector.and_then(|name| Some((name, self.value(name)?)));
        let mut type_is_built = true;
        if let Some((name, Value::Word(word))) = &selector
            && !word.built
        {
            report.error(self.line_of(name), format!("{} {name} '{}' is not in this build", self.of.name, word.text));
            type_is_built = false;
        }
        for (name, values) in &self.values {
            let Some(option) = self.of.option(name) else { continue };
            let line = values.first().map_or(self.line, |(line, _)| *line);
            if values.iter().map(|(_, value)| value).eq(default_of(option).iter()) {
                continue;
            }
            if let Some((selector, Value::Word(word))) = &selector
                && !option.only.is_empty()
                && !option.only.contains(&word.text)
            {
                let only = option.only.join(", ");
                let (title, chosen) = (&self.title, word.text);
                report.error(line, format!("{title}: option '{name}' belongs to {selector} {only}, not to '{chosen}'"));
            } else if type_is_built && self.of.selector != Some(name) {
                let lacking = values.iter().find_map(|(_, value)| match value {
                    Value::Word(word) if !word.built => Some(word.text),
                    _ => None,
                });
                if let Some(word) = lacking {
                    report.error(line, format!("{} {name} '{word}' is not in this build", self.of.name));
                }
            }
        }
    }

    /// The section's name; empty for an anonymous one, which has been reported where a name is needed.
    pub(super) fn name(&self) -> &'a str {
        self.section.name.as_deref().unwrap_or_default()
    }

    /// True if the option was written, be it right or wrong.
    pub(super) fn has(&self, name: &str) -> bool {
        self.section.settings.iter().any(|setting| setting.name == name)
    }

    /// Line of the option, or of the section if it isn't given.
    pub(super) fn line_of(&self, name: &str) -> u32 {
        let setting = self.section.settings.iter().find(|setting| setting.name == name);
        setting.map_or(self.line, Setting::line)
    }

    /// The values with their lines; the default's with the section's line.
    pub(super) fn values(&self, name: &str) -> Vec<(u32, Value)> {
        if let Some((_, values)) = self.values.iter().find(|(given, _)| *given == name) {
            return values.clone();
        }
        let option = self.of.option(name);
        debug_assert!(option.is_some(), "{} has no option {name} in the schema", self.of.name);
        option.map(default_of).unwrap_or_default().into_iter().map(|value| (self.line, value)).collect()
    }

    /// The one value, or the default.
    pub(super) fn value(&self, name: &str) -> Option<Value> {
        self.values(name).into_iter().next().map(|(_, value)| value)
    }
}

/// The words of one line: blanks part them where an option takes several values, but a lone `!` stays with what follows.
fn words(option: &Opt, list: bool, text: &str) -> Vec<String> {
    if option.kind.keeps_blanks() {
        return vec![text.to_owned()];
    }
    let blank = |c: char| c == ' ' || c == '\t';
    if list || !option.many {
        return Some(text.trim_matches(blank)).filter(|text| !text.is_empty()).map(str::to_owned).into_iter().collect();
    }
    let mut words: Vec<String> = Vec::new();
    for word in text.split(blank).filter(|word| !word.is_empty()) {
        match words.last_mut().filter(|last| *last == "!") {
            Some(last) => last.push_str(word),
            None => words.push(word.to_owned()),
        }
    }
    words
}

fn default_of(option: &Opt) -> Vec<Value> {
    words(option, false, option.default).iter().filter_map(|text| option.kind.parse(text).ok()).collect()
}

/// Readers of values by type. The schema says which kind an option has; to ask for another is a mistake in the program,
/// which every test of a whole configuration would show.
macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident: $variant:ident -> $type:ty;)*) => { impl Checked<'_> { $(
        $(#[$doc])*
        pub(super) fn $name(&self, name: &str) -> Option<$type> {
            match self.value(name) {
                Some(Value::$variant(value)) => Some(value),
                other => {
                    debug_assert!(matches!(other, None | Some(Value::Auto)), "{name} is not of this kind");
                    None
                }
            }
        }
    )* } };
}

readers! {
    /// `None` is `auto` or nothing.
    number: Number -> u64;
    time: Time -> Duration;
    text: Text -> String;
    mark: Mark -> Mark;
    address: Address -> IpAddr;
    host: Host -> Host;
    server: Server -> Server;
    resolver: Resolver -> Resolver;
}

impl Checked<'_> {
    /// False if it is neither given nor has a default.
    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Flag(true)))
    }

    pub(super) fn word(&self, name: &str) -> Option<&'static str> {
        match self.value(name) {
            Some(Value::Word(word)) => Some(word.text),
            _ => None,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.text(name).map(PathBuf::from).unwrap_or_default()
    }

    /// The protocols of all values together.
    pub(super) fn protos(&self) -> Protos {
        let mut all = Protos { tcp: false, udp: false };
        for (_, value) in self.values("proto") {
            if let Value::Protos(one) = value {
                all = Protos { tcp: all.tcp || one.tcp, udp: all.udp || one.udp };
            }
        }
        all
    }

    /// The families of all values together.
    pub(super) fn families(&self) -> Families {
        let mut all = Families { v4: false, v6: false };
        for (_, value) in self.values("family") {
            if let Value::Families(one) = value {
                all = Families { v4: all.v4 || one.v4, v6: all.v6 || one.v6 };
            }
        }
        all
    }

    pub(super) fn texts(&self, name: &str) -> Vec<(u32, String)> {
        let text = |(line, value)| if let Value::Text(text) = value { Some((line, text)) } else { None };
        self.values(name).into_iter().filter_map(text).collect()
    }

    pub(super) fn ports(&self, name: &str) -> Values<PortRange> {
        let mut ports = Values::default();
        for (_, value) in self.values(name) {
            if let Value::Ports { not, range } = value {
                if not { ports.not.push(range) } else { ports.plain.push(range) }
            }
        }
        ports
    }

    pub(super) fn sniff_ports(&self, name: &str) -> Vec<SniffPort> {
        let port = |(_, value)| if let Value::SniffPort(port) = value { Some(port) } else { None };
        self.values(name).into_iter().filter_map(port).collect()
    }

    /// Names of which a `!` before them excludes.
    pub(super) fn names(&self, name: &str) -> Values<String> {
        let mut names = Values::default();
        for (_, text) in self.texts(name) {
            match text.strip_prefix('!') {
                Some(excluded) => names.not.push(excluded.to_owned()),
                None => names.plain.push(text),
            }
        }
        names
    }

    pub(super) fn macs(&self, name: &str) -> Values<Mac> {
        let mut macs = Values::default();
        for (_, value) in self.values(name) {
            if let Value::Mac { not, mac } = value {
                if not { macs.not.push(mac) } else { macs.plain.push(mac) }
            }
        }
        macs
    }
}

/// Names that need no section.
const BUILT_IN: [&str; 3] = ["direct", "reject", "drop"];

/// Stands for a section that isn't there.
static NOTHING: Section = Section { kind: String::new(), name: None, line: 0, settings: Vec::new() };

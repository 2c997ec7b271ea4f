//! Names by address (`option dnsmasq`): dnsmasq puts the addresses that it tells for the names of a rule into sets of our
//! table, and the rule is decided by them. Which rules that is, what their sets are called, and the lines for dnsmasq.
//!
//! dnsmasq knows names with everything below them only, so what asks for a name alone (`=example.com`, a hosts file) is for
//! the process to decide: the kernel gives it what may be meant. Two names at one address share their fate.

use std::fmt::Write;

use super::{TABLE, verdict};
use crate::config::domains::{FNV_BASIS, fnv1a};
use crate::config::{Config, DomainMatch, Open, Rule, each_name};

/// The sets of a rule's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    digest: u32,
    /// False if an address in the sets may be one of a name that the rule does not mean.
    pub certain: bool,
}

impl Named {
    /// The sets of `rule`, if it is decided by them. Which names it has is in their names: a rule that is changed, or moved,
    /// does not inherit what was noted for another.
    pub fn of(cfg: &Config, rule: &Rule) -> Option<Named> {
        let globals = &cfg.globals;
        let asks = globals.dnsmasq && globals.kernel_verdicts && rule.active;
        if !asks || rule.domain.plain.is_empty() || !rule.domain.not.is_empty() {
            return None;
        }
        let mut named = Named { digest: fnv1a(FNV_BASIS, &globals.kernel_set_max.to_be_bytes()), certain: true };
        for value in &rule.domain.plain {
            match value {
                DomainMatch::Name { name, only_itself } => {
                    named.digest = fnv1a(named.digest ^ u32::from(*only_itself), name.as_bytes());
                    named.certain &= !only_itself;
                }
                DomainMatch::Set(place) => {
                    let domains = cfg.sets.get(usize::from(*place))?.entries.domains();
                    if domains.len() > globals.kernel_set_max as usize {
                        return None;
                    }
                    named.digest = fnv1a(named.digest, &domains.digest().to_be_bytes());
                    named.certain &= !domains.has_only_itself();
                }
            }
        }
        Some(named)
    }

    /// The set of one family.
    pub fn set(self, v4: bool) -> String {
        format!("{NOTED}{}_{:08x}", if v4 { 4 } else { 6 }, self.digest)
    }
}

/// What dnsmasq is to be told, a line for each few names; empty: nothing. List files are read once more, by `open`.
pub fn lines(cfg: &Config, early_reject: bool, open: &mut Open<'_>) -> String {
    let mut lines = Lines::default();
    if !verdict::decides(cfg, early_reject) {
        return lines.text;
    }
    let rules: Vec<(&Rule, Named)> = cfg.rules.iter().filter_map(|rule| Some((rule, Named::of(cfg, rule)?))).collect();
    for (place, (rule, _)) in rules.iter().enumerate() {
        let mut add = |name: &str| {
            // a name has one line, with the sets of all rules that mean it: dnsmasq takes the longest match alone
            if rules.iter().take(place).any(|(earlier, _)| has(cfg, earlier, name)) {
                return;
            }
            let meant = rules.iter().filter(|(other, _)| means(cfg, other, name));
            lines.add(name, meant.map(|(_, named)| *named).take(MOST_SETS));
        };
        for value in &rule.domain.plain {
            match value {
                DomainMatch::Name { name, .. } => add(name),
                DomainMatch::Set(place) => {
                    if let Some(set) = cfg.sets.get(usize::from(*place)) {
                        each_name(&set.source, open, &mut |name, _| add(name));
                    }
                }
            }
        }
    }
    lines.end();
    lines.text
}

/// Whether `rule` means `name`, as dnsmasq takes it: with what is below.
fn means(cfg: &Config, rule: &Rule, name: &str) -> bool {
    let is_below = |parent: &str| name.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    rule.domain.plain.iter().any(|value| match value {
        DomainMatch::Name { name: parent, .. } => is_below(parent),
        DomainMatch::Set(place) => {
            cfg.sets.get(usize::from(*place)).is_some_and(|set| set.entries.domains().contains(name))
        }
    })
}

/// Whether `rule` has `name` itself.
fn has(cfg: &Config, rule: &Rule, name: &str) -> bool {
    rule.domain.plain.iter().any(|value| match value {
        DomainMatch::Name { name: own, .. } => own == name,
        DomainMatch::Set(place) => {
            cfg.sets.get(usize::from(*place)).is_some_and(|set| set.entries.domains().has_name(name))
        }
    })
}

/// The lines as they come about: neighbours with the same sets share one.
#[derive(Default)]
struct Lines {
    text: String,
    names: String,
    sets: String,
}

impl Lines {
    fn add(&mut self, name: &str, named: impl Iterator<Item = Named>) {
        let mut sets = String::new();
        for named in named {
            let comma = if sets.is_empty() { "" } else { "," };
            let (v4, v6) = (named.set(true), named.set(false));
            // Writing to a String does not fail.
            let _ = write!(sets, "{comma}4#inet#{TABLE}#{v4},6#inet#{TABLE}#{v6}");
        }
        if sets != self.sets || self.names.len() + name.len() + sets.len() > LONGEST_LINE {
            self.end();
            self.sets = sets;
        }
        self.names.push('/');
        self.names += name;
    }

    fn end(&mut self) {
        if !self.names.is_empty() {
            let _ = writeln!(self.text, "{NFTSET}{}/{}", self.names, self.sets);
            self.names.clear();
        }
    }
}

/// Whether each line is what [`lines`] makes: nothing else is given to dnsmasq, which obeys what stands in its files.
pub fn are_ours(text: &str) -> bool {
    text.lines().all(|line| {
        let Some((names, sets)) = line.strip_prefix(NFTSET).and_then(|rest| rest.rsplit_once('/')) else {
            return false;
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
        names.starts_with('/')
            && names.chars().all(fits)
            && sets.split(',').all(|set| {
                let table = set.strip_prefix("4#").or_else(|| set.strip_prefix("6#"));
                let name = table.and_then(|rest| rest.strip_prefix("inet#")?.strip_prefix(TABLE)?.strip_prefix('#'));
                name.is_some_and(|name| {
                    name.starts_with(NOTED) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                })
            })
    })
}

/// How the names of these sets begin.
pub const NOTED: &str = "dns";
/// How long an address is kept that nobody uses: longer than clients and resolvers are told to keep theirs.
pub const KEPT: &str = "1d";
const NFTSET: &str = "nftset=";
/// dnsmasq reads 1,024 octets of a line; this is without its other words.
const LONGEST_LINE: usize = 1000;
/// Sets in one line; the first rules in order are asked first.
const MOST_SETS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, parse};
    use std::io::Cursor;

    fn config(more: &str) -> Config {
        let text = format!(
            "config globals\n\toption dnsmasq '1'\n\toption kernel_set_max '2000'\n\
             config set 'films'\n\toption type 'domain'\n\tlist entry 'films.example'\n\tlist loadfile '/films'\n{more}"
        );
        let env = Env { total_memory: 0, descriptors: u64::MAX };
        parse("f", text.as_bytes(), &env, &mut list).unwrap()
    }

    fn list(_: &std::path::Path) -> std::io::Result<Box<dyn std::io::BufRead>> {
        let names: String = (0..100).map(|n| format!("host-{n}.long-name-of-a-domain.example\n")).collect();
        Ok(Box::new(Cursor::new(names + "||www.video.example^\n")))
    }

    const RULES: &str = "config rule\n\tlist domain 'video.example'\n\toption outbound 'direct'
config rule\n\tlist domain '@films'\n\tlist domain 'www.video.example'\n\toption outbound 'drop'
config rule\n\tlist domain '!video.example'\n\toption outbound 'drop'\n";

    #[test]
    fn a_name_has_one_line_with_the_sets_of_all_rules_that_mean_it() {
        let cfg = config(RULES);
        let sets: Vec<String> =
            cfg.rules.iter().filter_map(|rule| Named::of(&cfg, rule)).map(|named| named.set(true)).collect();
        let [video, films] = &sets[..] else { panic!("{sets:?}") };
        let text = lines(&cfg, true, &mut list);
        assert!(are_ours(&text), "{text}");
        let of = |name: &str| {
            let found: Vec<&str> = text.lines().filter(|line| line.contains(&format!("/{name}/"))).collect();
            assert_eq!(found.len(), 1, "{name}: {text}");
            (found[0].contains(video), found[0].contains(films))
        };
        assert_eq!(of("video.example"), (true, false));
        assert_eq!(of("www.video.example"), (true, true));
        assert_eq!(of("host-99.long-name-of-a-domain.example"), (false, true));
        assert!(text.lines().all(|line| line.len() <= 1023), "{text}");
        assert!(text.lines().count() < 10, "neighbours share a line: {text}");
    }

    #[test]
    fn sets_are_called_by_what_is_in_them() {
        let name = |more: &str| {
            let cfg = config(&format!("config rule\n{more}\toption outbound 'direct'\n"));
            Named::of(&cfg, &cfg.rules[0])
        };
        let plain = name("\tlist domain 'a.example'\n").unwrap();
        assert_eq!(name("\toption name 'x'\n\tlist domain 'a.example'\n\tlist dest_port '80'\n"), Some(plain));
        assert_ne!(name("\tlist domain 'b.example'\n"), Some(plain));
        assert!(plain.certain && !name("\tlist domain '=a.example'\n").unwrap().certain);
        assert_eq!(name("\tlist domain '!a.example'\n"), None);
        assert_eq!(name("\tlist dest_port '80'\n"), None);
    }

    #[test]
    fn lines_about_anything_else_are_refused() {
        let good = "nftset=/a.example/4#inet#tproxyd#dns4_1,6#inet#tproxyd#dns6_1\n";
        assert!(are_ours(good) && are_ours(""));
        for bad in [
            "dhcp-script=/tmp/x\n",
            "nftset=/a.example/4#inet#fw4#dns4_1\n",
            "nftset=/a.example/4#inet#tproxyd#servers4\n",
            "nftset=/a.example\nserver=/x/4#inet#tproxyd#dns4_1\n",
            "nftset=/a example/4#inet#tproxyd#dns4_1\n",
            "\n",
        ] {
            assert!(!are_ours(&format!("{good}{bad}")), "{bad}");
        }
    }
}

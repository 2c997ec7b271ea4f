//! One line of a list of domains, in the forms that public lists have: one a line, dnsmasq, hosts, adblock.

use super::address::host;
use super::model::Host;
use super::uci::shown;

/// Calls `found` with each domain of a line and whether only the name itself is meant. A line may have none.
///
/// # Errors
/// The second half of a sentence: what the line is not.
pub(super) fn domains(line: &str, found: &mut dyn FnMut(&str, bool)) -> Result<(), String> {
    let line = without_comment(line);
    if line.is_empty() || line.starts_with('!') || line.starts_with('[') {
        return Ok(());
    }
    if let Some(rest) = line.strip_prefix("||") {
        // what follows "^" narrows the rule to requests of some kind, which a name alone doesn't tell
        let name = rest.strip_suffix('^').ok_or_else(|| wrong(line))?;
        return one(name, false, found);
    }
    if let Some((directive, rest)) = line.split_once("=/") {
        let known = ["server", "local", "address", "ipset", "nftset"].contains(&directive.trim());
        let (names, _) = rest.rsplit_once('/').filter(|_| known).ok_or_else(|| wrong(line))?;
        return names.split('/').try_for_each(|name| one(name, false, found));
    }
    let mut words = line.split_ascii_whitespace();
    let first = words.next().unwrap_or_default();
    if words.clone().next().is_some() {
        if first.parse::<std::net::IpAddr>().is_err() {
            return Err(wrong(line));
        }
        return words.filter(|name| !is_local(name)).try_for_each(|name| one(name, true, found));
    }
    match first.strip_prefix('=') {
        Some(name) => one(name, true, found),
        None => one(first, false, found),
    }
}

fn one(name: &str, only_itself: bool, found: &mut dyn FnMut(&str, bool)) -> Result<(), String> {
    let bare = name.strip_prefix("*.").or_else(|| name.strip_prefix('.')).unwrap_or(name);
    match host(bare) {
        Ok(Host::Name(name)) => {
            found(&name, only_itself);
            Ok(())
        }
        _ => Err(wrong(name)),
    }
}

fn wrong(text: &str) -> String {
    format!("'{}' is not a domain", shown(text))
}

/// `#` begins a comment at the beginning and after a blank: dnsmasq has it inside its values.
fn without_comment(line: &str) -> &str {
    let begins = |at: usize| at == 0 || line.as_bytes()[at - 1].is_ascii_whitespace();
    let comment = line.match_indices('#').map(|(at, _)| at).find(|at| begins(*at));
    line[..comment.unwrap_or(line.len())].trim()
}

/// Names that every hosts file has for the machine itself.
fn is_local(name: &str) -> bool {
    matches!(name, "localhost" | "localhost.localdomain" | "local" | "broadcasthost" | "0.0.0.0")
        || name.starts_with("ip6-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        domains(line, &mut |name, only_itself| all.push(format!("{}{name}", if only_itself { "=" } else { "" })))?;
        Ok(all)
    }

    #[test]
    fn the_usual_forms_are_read() {
        for (line, expected) in [
            ("video.example", &["video.example"][..]),
            ("  Video.Example.  # what it is", &["video.example"]),
            ("=video.example", &["=video.example"]),
            (".video.example", &["video.example"]),
            ("*.video.example", &["video.example"]),
            ("server=/a.example/b.example/192.0.2.1#5353", &["a.example", "b.example"]),
            ("nftset=/a.example/4#inet#fw4#names", &["a.example"]),
            ("ipset=/a.example/names", &["a.example"]),
            ("address=/a.example/", &["a.example"]),
            ("0.0.0.0 a.example b.example # both", &["=a.example", "=b.example"]),
            ("::1 localhost ip6-loopback", &[]),
            ("||a.example^", &["a.example"]),
            ("! a comment of adblock", &[]),
            ("[Adblock Plus 2.0]", &[]),
            ("# a comment", &[]),
            ("", &[]),
        ] {
            assert_eq!(read(line), Ok(expected.iter().map(|name| (*name).to_owned()).collect()), "{line}");
        }
    }

    #[test]
    fn what_is_no_domain_is_named() {
        for (line, named) in [
            ("192.0.2.1", "192.0.2.1"),
            ("a b", "a b"),
            ("||a.example^$third-party", "||a.example^$third-party"),
            ("@@||a.example^", "@@||a.example^"),
            ("server=/a.example", "server=/a.example"),
            ("dhcp=/a.example/x", "dhcp=/a.example/x"),
            ("server=/a..b/x", "a..b"),
            ("0.0.0.0 a/b", "a/b"),
        ] {
            assert_eq!(read(line), Err(format!("'{named}' is not a domain")), "{line}");
        }
    }
}

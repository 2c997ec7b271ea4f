//! Has iptables load a rendered text: sets by `ipset restore`, then each family's tables by `iptables-restore --noflush`, one
//! transaction for each table. What is there is looked at first, by `iptables-save`, so that jumps are not put in twice, and
//! chains that are not needed any more go in the same transaction.

use std::fmt::Write;
use std::process::Command;

use super::program::{self, Failure};
use super::render::iptables::{IPSET, PREFIX, TABLES};
use crate::config::Families;
use crate::error::Error;
use crate::sys::passing::text_file;

mod vet;

pub use vet::only_ours;

/// Loads `text` in place of what there is of ours. If it fails, loads `before` again (empty: takes everything away).
/// Returns how many rules there are then.
///
/// # Errors
/// A tool is missing, hangs, or refuses: its own words.
pub fn replace(text: &str, before: &str, families: Families) -> Result<usize, Error> {
    let loaded = load(text, families);
    if loaded.is_err() {
        // The error that counts is the first; what can't be undone is left to `clear`.
        let _ = load(before, families);
    }
    loaded?;
    destroy_sets(text);
    count(families)
}

/// Takes away what there is of ours.
///
/// # Errors
/// A tool hangs, or refuses.
pub fn remove() -> Result<(), Error> {
    load("", super::kernel_families())?;
    destroy_sets("");
    Ok(())
}

/// Takes the jumps of `text` into our chains away, and nothing else: quick, since what TPROXY finds no socket for is dropped
/// until then. What could not be taken away is left to [`remove`].
pub fn unhook(text: &str, families: Families) {
    for v4 in of(families) {
        let hooks = jumps_away(text, v4);
        if !hooks.is_empty() {
            let _ = restore(&hooks, v4, false);
        }
    }
}

/// Has the tools check `text`, without those of its rules that name a set: a set has to be there.
///
/// # Errors
/// A tool is missing, or refuses.
pub fn check(text: &str, families: Families) -> Result<(), Error> {
    for v4 in of(families) {
        let rules: Vec<&str> = text.lines().filter(|line| !line.contains("--match-set")).collect();
        let wanted = transaction("", &rules.join("\n"), v4);
        restore(&wanted, v4, true)?;
    }
    Ok(())
}

/// What says that ipset and its kernel module are not there, if they are not.
///
/// # Errors
/// The refusal.
pub fn check_sets() -> Result<(), Error> {
    names_of_sets().map(|_| ()).map_err(|failure| Error::new("list the sets by ipset", failure))
}

/// Rules of ours in all tables, and jumps to them.
///
/// # Errors
/// A tool refuses.
pub fn count(families: Families) -> Result<usize, Error> {
    let mut count = 0;
    for v4 in of(families) {
        let saved = saved(v4)?;
        count += saved.lines().filter(|line| line.starts_with("-A ") && line.contains(PREFIX)).count();
    }
    Ok(count)
}

fn load(text: &str, families: Families) -> Result<(), Error> {
    let sets: String = text.lines().filter_map(|line| line.strip_prefix(IPSET)).flat_map(|line| [line, "\n"]).collect();
    if !sets.is_empty() {
        let mut command = Command::new("ipset");
        command.args(["restore", "-exist"]);
        feed(command, &sets).map_err(|failure| {
            let missing = failure.is_missing();
            let error = Error::new("fill the sets by ipset", program::shortened(&failure.to_string()));
            if missing { error.hint("opkg install ipset") } else { error }
        })?;
    }
    for v4 in of(families) {
        let wanted = transaction(&saved(v4)?, text, v4);
        if !wanted.is_empty() {
            restore(&wanted, v4, false)?;
        }
    }
    Ok(())
}

fn restore(text: &str, v4: bool, dry: bool) -> Result<(), Error> {
    let name = tool(v4, "restore");
    let mut command = Command::new(name);
    command.args(["--noflush", "--wait=10"]);
    if dry {
        command.arg("--test");
    }
    feed(command, text).map_err(|failure| {
        let missing = failure.is_missing();
        let what = if dry { "have the rules checked" } else { "load the rules" };
        let words = failure.to_string();
        // it says "line 12 failed", and not which that is
        let line = words.split("line").skip(1).find_map(|rest| {
            let number: String = rest.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
            text.lines().nth(number.parse::<usize>().ok()?.checked_sub(1)?)
        });
        let mut why = program::shortened(&words);
        if let Some(line) = line {
            let _ = write!(why, " | {line:.200}");
        }
        let error = Error::new(format!("{what} by {name}"), why);
        let package = if v4 { "iptables" } else { "ip6tables" };
        if missing { error.hint(format!("opkg install {package}")) } else { error }
    })
}

/// What is there now. Nothing, if nobody can list it: then nobody can have put something there.
fn saved(v4: bool) -> Result<String, Error> {
    let name = tool(v4, "save");
    match program::output(Command::new(name), MOST_SAVED) {
        Ok(text) => Ok(text),
        Err(failure) if failure.is_missing() => Ok(String::new()),
        Err(failure) => Err(Error::new(format!("list the rules by {name}"), failure)),
    }
}

fn feed(mut command: Command, text: &str) -> Result<(), Failure> {
    command.stdin(text_file(text).map_err(Failure::Start)?);
    program::complaints(command)
}

fn tool(v4: bool, what: &str) -> &'static str {
    match (v4, what) {
        (true, "save") => "iptables-save",
        (false, "save") => "ip6tables-save",
        (true, _) => "iptables-restore",
        (false, _) => "ip6tables-restore",
    }
}

fn of(families: Families) -> impl Iterator<Item = bool> {
    [true, false].into_iter().filter(move |v4| if *v4 { families.v4 } else { families.v6 })
}

fn names_of_sets() -> Result<Vec<String>, Failure> {
    let mut command = Command::new("ipset");
    command.args(["list", "-n"]);
    let names = program::output(command, MOST_SAVED)?;
    Ok(names.lines().filter(|name| name.starts_with(PREFIX)).map(str::to_string).collect())
}

/// Deletes the sets of ours that `text` does not name. One that can't be deleted does no harm.
fn destroy_sets(text: &str) {
    let names = names_of_sets().unwrap_or_default();
    for name in names.into_iter().filter(|name| !text.contains(&format!("{IPSET}create {name} "))) {
        let mut command = Command::new("ipset");
        command.args(["destroy", &name]);
        let _ = program::output(command, MOST_SAVED);
    }
}

/// What makes `text` of what is `saved`, for one family; empty: there is nothing to do.
fn transaction(saved: &str, text: &str, v4: bool) -> String {
    let (skipped, own) = if v4 { ("-6 ", "-4 ") } else { ("-4 ", "-6 ") };
    let mut out = String::new();
    for table in TABLES {
        let old = section(saved, table);
        let mut new = section(text, table);
        // a table that has rules for the other family only may not exist in this one
        let has_any = matches!(table, "filter" | "mangle") || new.iter().any(|line| line.starts_with(own));
        if !has_any {
            new.clear();
        }
        let chains = |lines: &[&str]| -> Vec<String> {
            let names = lines.iter().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
            names.filter(|name| name.starts_with(PREFIX)).map(str::to_string).collect()
        };
        let jump = |line: &&str, verb: &str| {
            let hook = line.strip_prefix(verb)?;
            (!hook.starts_with(PREFIX) && hook.contains(&format!(" -j {PREFIX}"))).then(|| hook.trim().to_string())
        };
        let (old_chains, new_chains) = (chains(&old), chains(&new));
        let mut old_hooks: Vec<_> = old.iter().filter_map(|line| jump(line, "-A ")).collect();
        let new_hooks: Vec<_> = new.iter().filter_map(|line| jump(line, "-I ")).collect();
        if old_chains.is_empty() && old_hooks.is_empty() && new.is_empty() {
            continue;
        }
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a String does not fail.
            let _ = writeln!(out, "{text}");
        };
        line(format_args!("*{table}"));
        let stale: Vec<_> = old_chains.iter().filter(|name| !new_chains.contains(name)).collect();
        for name in new_chains.iter().chain(stale.iter().copied()) {
            line(format_args!(":{name} - [0:0]"));
        }
        for hook in &new_hooks {
            match old_hooks.iter().position(|old| old == hook) {
                Some(place) => drop(old_hooks.remove(place)),
                None => line(format_args!("-I {hook}")),
            }
        }
        for hook in &old_hooks {
            line(format_args!("-D {hook}"));
        }
        for rule in new.iter().filter(|rule| !rule.starts_with(skipped) && rule.contains("-A ")) {
            line(format_args!("{}", rule.strip_prefix(own).unwrap_or(rule)));
        }
        for name in stale {
            line(format_args!("-X {name}"));
        }
        line(format_args!("COMMIT"));
    }
    out
}

/// What takes the jumps away that `text` puts in.
fn jumps_away(text: &str, v4: bool) -> String {
    let mut out = String::new();
    for table in TABLES {
        let lines = section(text, table);
        let own = if v4 { "-4 " } else { "-6 " };
        // as in `transaction`
        let has_any = matches!(table, "filter" | "mangle") || lines.iter().any(|line| line.starts_with(own));
        let hooks: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("-I ")).filter(|_| has_any).collect();
        if !hooks.is_empty() {
            let lines: String = hooks.iter().flat_map(|hook| ["-D ", hook, "\n"]).collect();
            out += &format!("*{table}\n{lines}COMMIT\n");
        }
    }
    out
}

/// The lines of a table.
fn section<'a>(text: &'a str, table: &str) -> Vec<&'a str> {
    let begin = |line: &&str| line.strip_prefix('*').is_some_and(|name| name.trim() == table);
    let rest = text.lines().skip_while(|line| !begin(line)).skip(1);
    rest.take_while(|line| line.trim() != "COMMIT").collect()
}

/// Octets of a listing.
const MOST_SAVED: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_put_in_once_and_what_is_not_needed_any_more_goes() {
        let text = "*nat\n:tproxyd_dnat - [0:0]\n-I PREROUTING -j tproxyd_dnat\n-4 -A tproxyd_dnat -j RETURN\nCOMMIT\n";
        let first = transaction("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", text, true);
        assert_eq!(
            first,
            "*nat\n:tproxyd_dnat - [0:0]\n-I PREROUTING -j tproxyd_dnat\n-A tproxyd_dnat -j RETURN\nCOMMIT\n"
        );
        assert_eq!(jumps_away(text, true), "*nat\n-D PREROUTING -j tproxyd_dnat\nCOMMIT\n");
        assert_eq!(jumps_away(text, false), "", "the table has nothing for the other family");
        assert_eq!(transaction("", text, false), "", "the table has nothing for the other family");
        let there = "*nat\n:PREROUTING ACCEPT [0:0]\n:tproxyd_old - [0:0]\n:tproxyd_dnat - [0:0]\n-A PREROUTING -j other\n\
            -A PREROUTING -j tproxyd_dnat\n-A PREROUTING -j tproxyd_dnat\n-A tproxyd_dnat -j tproxyd_old\nCOMMIT\n";
        assert_eq!(
            transaction(there, text, true),
            "*nat\n:tproxyd_dnat - [0:0]\n:tproxyd_old - [0:0]\n-D PREROUTING -j tproxyd_dnat\n\
                -A tproxyd_dnat -j RETURN\n-X tproxyd_old\nCOMMIT\n"
        );
        let gone = transaction(there, "", true);
        assert_eq!(gone.matches("-D PREROUTING -j tproxyd_dnat").count(), 2);
        assert!(!gone.contains("other"), "{gone}");
    }
}

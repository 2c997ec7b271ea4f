//! Has nft load a rendered text: small ones in one transaction; before a large one its sets, in parts, since nft takes
//! 24 KB of memory for each kilobyte of a transaction. What the last text made and this one doesn't need is deleted.

use std::fmt::Write;

use super::render::FILLED_ONCE;
use super::{TABLE, program};
use crate::error::Error;
use crate::sys::passing::text_file;

/// What a loaded text made: (`chain`, `set` or `counter`; name).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects(Vec<(String, String)>);

impl Objects {
    /// What `text` makes.
    pub fn of(text: &str) -> Objects {
        let made = text.lines().filter_map(|line| line.strip_prefix("add ")?.split_once(BETWEEN));
        let named = made.filter(|(kind, _)| ["chain", "set", "counter"].contains(kind));
        Objects(named.map(|(kind, rest)| (kind.to_string(), first_word(rest).to_string())).collect())
    }

    fn has_set(&self, name: &str) -> bool {
        self.0.iter().any(|(kind, known)| kind == "set" && known == name)
    }

    /// True if there are sets whose names begin so, and `before` did not have all of them.
    pub fn has_sets_beside(&self, before: &Objects, beginning: &str) -> bool {
        let sets = self.0.iter().filter(|(kind, name)| kind == "set" && name.starts_with(beginning));
        sets.into_iter().any(|set| !before.0.contains(set))
    }

    /// Deletes what is in `self` and not in `after`.
    fn leftovers(&self, after: &Objects) -> String {
        let mut text = String::new();
        for (kind, name) in self.0.iter().filter(|object| !after.0.contains(object)) {
            // Writing to a String does not fail.
            let _ = writeln!(text, "delete {kind}{BETWEEN}{name}");
        }
        text
    }
}

/// Loads `text` in place of the one that made `before`. The rules change in one transaction; if it fails, they stay as
/// they were.
///
/// # Errors
/// Those of [`program::nft`].
pub fn replace(text: &str, before: &Objects) -> Result<Objects, Error> {
    let objects = Objects::of(text);
    let (mut parts, mut rest) = (Vec::new(), String::new());
    for line in text.lines() {
        match filled_once(line) {
            // It is loaded already: the name stands for the content.
            Some(set) if before.has_set(set) => {}
            Some(_) => parts.push(line),
            None => {
                rest += line;
                rest.push('\n');
            }
        }
    }
    rest += &before.leftovers(&objects);
    if parts.len() <= LINES_PER_PART {
        // Elements before the rules; sets are declared where they were.
        let declared = rest.find("add rule ").unwrap_or(rest.len());
        let elements: String = parts.iter().flat_map(|line| [line, "\n"]).collect();
        rest.insert_str(declared, &elements);
        return transaction(&rest).map(|()| objects);
    }
    let was_there = table_exists();
    let result = fill_in_parts(text, &parts).and_then(|()| transaction(&rest));
    if result.is_err() {
        // What the parts brought is not used by any rule. That they can't be deleted is the lesser error.
        let _ = if was_there { transaction(&objects.new_sets_deleted(before)) } else { super::remove_table() };
    }
    result.map(|()| objects)
}

impl Objects {
    fn new_sets_deleted(&self, before: &Objects) -> String {
        let sets = self.0.iter().filter(|(kind, name)| kind == "set" && name.starts_with(FILLED_ONCE));
        Objects(sets.cloned().collect()).leftovers(before)
    }
}

fn fill_in_parts(text: &str, elements: &[&str]) -> Result<(), Error> {
    let declares = |line: &&str| {
        let set = line.strip_prefix("add set").and_then(|rest| rest.strip_prefix(BETWEEN));
        set.is_some_and(|name| name.starts_with(FILLED_ONCE))
    };
    let sets: String = text.lines().filter(declares).flat_map(|line| [line, "\n"]).collect();
    transaction(&format!("add table inet {TABLE}\n{sets}"))?;
    elements.chunks(LINES_PER_PART).try_for_each(|part| transaction(&part.join("\n")))
}

/// Loads `text` by nft, in one transaction.
///
/// # Errors
/// Those of [`program::nft`].
pub fn transaction(text: &str) -> Result<(), Error> {
    let file = text_file(text).map_err(|error| Error::new("hold the rules in memory", error))?;
    program::nft(file, false)
}

/// Has nft and the kernel check `text`, and load nothing.
///
/// # Errors
/// Those of [`program::nft`].
pub fn check(text: &str) -> Result<(), Error> {
    let file = text_file(text).map_err(|error| Error::new("hold the rules in memory", error))?;
    program::nft(file, true)
}

fn table_exists() -> bool {
    transaction(&format!("list table inet {TABLE}\n")).is_ok()
}

/// The set that `line` adds elements to, if its name stands for its content.
fn filled_once(line: &str) -> Option<&str> {
    let name = first_word(line.strip_prefix("add element")?.strip_prefix(BETWEEN)?);
    name.starts_with(FILLED_ONCE).then_some(name)
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or(text)
}

/// Stands between the kind of an object and its name.
const BETWEEN: &str = " inet tproxyd ";
/// Lines of 256 elements each in one transaction. Without root (in a user namespace) nft can't raise the socket buffer
/// beyond `net.core.wmem_max`, which by default has room for about 2,000 intervals.
const LINES_PER_PART: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_new_text_does_not_make_is_deleted_and_the_rest_stays() {
        let old = Objects::of(
            "add table inet tproxyd\nadd chain inet tproxyd listener_a\nadd set inet tproxyd net4_x_1 { type ipv4_addr; }\n",
        );
        let new = Objects::of("add table inet tproxyd\nadd chain inet tproxyd listener_a\n");
        assert_eq!(old.leftovers(&new), "delete set inet tproxyd net4_x_1\n");
        assert_eq!(new.leftovers(&old), "");
        assert!(BETWEEN.contains(TABLE));
    }
}

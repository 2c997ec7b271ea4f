//! `tproxyd sets`: what `/usr/libexec/tproxyd/update-sets` has to know, and whether a list may take another's place.

use super::ask::{Output, print};
use super::{DEFAULT_CONFIG, Failure};
use crate::config::{self, Config, Open, Set, lists};
use argh::FromArgs;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// List the sets for update-sets: name, whether it is time to fetch it (due, later, -), list file, file for the outcome,
/// url; columns are apart by one tab, and - is nothing.
#[derive(FromArgs)]
#[argh(subcommand, name = "sets", example = "{command_name}\n{command_name} --try country=/tmp/new.list")]
pub(super) struct Sets {
    /// configuration file (default: /etc/config/tproxyd; -: standard input)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// NAME=FILE: check the configuration with FILE as the set's list, and print how many entries the set has then, and how
    /// many it has now
    #[argh(option, long = "try")]
    attempt: Option<String>,
}

impl Sets {
    pub(super) fn run(self) -> Result<(), Failure> {
        match &self.attempt {
            Some(attempt) => self.tried(attempt),
            None => self.listed(),
        }
    }

    fn listed(&self) -> Result<(), Failure> {
        // what is in the lists does not matter here
        let config = self.load(&mut |_| Err(io::ErrorKind::NotFound.into()))?;
        let mut out = Output::new();
        for set in &config.sets {
            let note = lists::note_path(&config.globals.control, &set.name);
            let (url, file) = (set.source.url.as_deref(), set.source.file());
            let due = match (url, file) {
                (Some(_), Some(file)) if is_due(set, file, &note) => "due",
                (Some(_), _) => "later",
                _ => "-",
            };
            let file = file.map_or("-".into(), Path::to_string_lossy);
            let line = format!("{}\t{due}\t{file}\t{}\t{}\n", set.name, note.display(), url.unwrap_or("-"));
            out.write(&line)?;
        }
        out.flush()
    }

    fn tried(&self, attempt: &str) -> Result<(), Failure> {
        let wrong = || Failure::Usage("--try wants NAME=FILE, with the name of a set that has a list".into());
        let (name, candidate) = attempt.split_once('=').ok_or_else(wrong)?;
        let now = self.load(&mut open_list)?;
        let set = |config: &'_ Config| config.sets.iter().find(|set| set.name == name).cloned();
        let before = set(&now).ok_or_else(wrong)?;
        let replaced = before.source.file().ok_or_else(wrong)?;
        let then = self.load(&mut |path| open_list(if path == replaced { Path::new(candidate) } else { path }))?;
        let entries = |set: &Set| set.entries.nets().len() + set.entries.domains().len();
        print(&format!("{} {}\n", set(&then).as_ref().map_or(0, entries), entries(&before)))
    }

    fn load(&self, open: &mut Open<'_>) -> Result<Config, Failure> {
        let env = config::load::this_machine();
        config::load::load_with(&self.config, &env, open).map_err(|errors| Failure::Usage(errors.to_string()))
    }
}

fn open_list(path: &Path) -> io::Result<Box<dyn io::BufRead>> {
    Ok(Box::new(BufReader::new(File::open(path)?)))
}

fn is_due(set: &Set, file: &Path, note: &Path) -> bool {
    let now = crate::stats::events::unix_time();
    lists::is_due(now, lists::modified(file), lists::Note::read(note).as_ref(), set.source.update_interval)
}

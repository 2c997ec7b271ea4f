//! What clients have used of their quotas, kept over a restart in a file beside the control socket: written once in a while
//! and at the end, by rename, so that whoever reads it finds all of one moment. Of a crash the last minute is forgotten.

use crate::event_loop::Engine;
use crate::store::quotas::Quotas;
use crate::store::timers::Tick;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// When it is written next.
#[derive(Default)]
pub(super) struct Ledger {
    due: Option<Tick>,
}

/// How long what has been used may be missing in the file.
const EVERY: Duration = Duration::from_secs(60);

/// The first line.
const HEAD: &str = "tproxyd quotas 1";

/// The last line begins so; how many there are before it follows.
const END: &str = "end ";

/// Bytes of the longest line.
const LINE_MAX: u64 = 128;

impl Ledger {
    /// Reads what a daemon before has left. A file that makes no sense is as none.
    pub(super) fn load(engine: &mut Engine) {
        let path = path(engine);
        let read = File::open(&path).and_then(|file| read(file, engine.quotas()));
        match read {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                engine.quotas().forget();
                log::warn!("cannot read {}: {e}; what clients have used of their quotas begins anew", path.display());
            }
            Ok(count) => log::debug!("{}: {count} accounts", path.display()),
        }
        engine.quotas().saved();
    }

    /// When [`Self::run`] has something to do.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.due
    }

    /// Writes the file if it is time to.
    pub(super) fn run(&mut self, engine: &mut Engine) {
        if !engine.quotas().has_changed() {
            return;
        }
        let now = engine.moment();
        if now.reached(*self.due.get_or_insert(now.after(EVERY))) {
            self.save(engine);
        }
    }

    /// Writes the file, if something has changed.
    pub(super) fn save(&mut self, engine: &mut Engine) {
        self.due = None;
        if !engine.quotas().has_changed() {
            return;
        }
        let path = path(engine);
        if let Err(e) = write(&path, engine.quotas()) {
            log::warn!(
                "cannot write {}: {e}; a restart forgets what clients have used of their quotas",
                path.display()
            );
        }
        engine.quotas().saved();
    }
}

fn path(engine: &Engine) -> PathBuf {
    engine.config().globals.control.with_file_name("quotas")
}

fn write(path: &Path, quotas: &Quotas) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = BufWriter::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?);
    let mut count = 0;
    writeln!(file, "{HEAD}")?;
    for line in quotas.lines() {
        writeln!(file, "{line}")?;
        count += 1;
    }
    writeln!(file, "{END}{count}")?;
    file.flush()?;
    fs::rename(&new, path)
}

/// Takes all accounts of a file, or says which line makes no sense.
fn read(file: impl Read, quotas: &mut Quotas) -> io::Result<usize> {
    let most = LINE_MAX * (quotas.usage().1 as u64 + 2);
    let bad = |number: usize, what: &str| io::Error::new(ErrorKind::InvalidData, format!("line {number} {what}"));
    let mut count = 0;
    for (place, line) in BufReader::new(file.take(most)).split(b'\n').enumerate() {
        let line = line?;
        let number = place + 1;
        let line = str::from_utf8(&line).map_err(|_| bad(number, "is no text"))?;
        if place == 0 {
            if line != HEAD {
                return Err(bad(number, "is not of this program"));
            }
        } else if let Some(told) = line.strip_prefix(END) {
            let whole = told.parse() == Ok(count);
            return if whole { Ok(count) } else { Err(bad(number, "tells of more accounts than there are")) };
        } else if quotas.restore(line) {
            count += 1;
        } else {
            return Err(bad(number, "is no account, or one too many"));
        }
    }
    Err(bad(count + 2, "is missing: the file ends too soon"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::quotas::{Grant, Taken};
    use proptest::prelude::*;

    fn used(capacity: u16, clients: u8) -> Quotas {
        let mut quotas = Quotas::new(capacity, 1);
        for n in 0..clients {
            let taken = quotas.take(Grant { rule: 1, bytes: 1 << 40, monthly: true }, [10, 0, 0, n].into(), None);
            let Taken::Within(account) = taken else { panic!("{taken:?}") };
            quotas.count(&account, 1 << n);
            quotas.give_back(account);
        }
        quotas
    }

    fn written(quotas: &Quotas) -> (String, PathBuf) {
        let path = std::env::temp_dir().join(format!(
            "tproxyd-quotas-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        write(&path, quotas).unwrap();
        write(&path, quotas).unwrap();
        (fs::read_to_string(&path).unwrap(), path)
    }

    #[test]
    fn what_is_written_is_read_and_every_shorter_file_is_refused() {
        let (text, path) = written(&used(8, 5));
        fs::remove_file(path).unwrap();
        let mut back = Quotas::new(8, 9);
        assert_eq!(read(text.as_bytes(), &mut back).unwrap(), 5);
        assert_eq!(back.usage().0, 5);
        let whole = text.len() - 1;
        for cut in 0..whole {
            assert!(read(&text.as_bytes()[..cut], &mut Quotas::new(8, 9)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_file_of_another_program_a_bad_line_and_too_many_are_named() {
        let (text, path) = written(&used(8, 5));
        fs::remove_file(path).unwrap();
        for (text, capacity, says) in [
            (text.replace(HEAD, "x"), 8, "line 1 is not of this program"),
            (text.replacen("month", "moon", 1), 8, "line 2 is no account"),
            (text.clone(), 3, "line 5 is no account, or one too many"),
            (text.replace("end 5", "end 6"), 8, "line 7 tells of more accounts"),
        ] {
            let error = read(text.as_bytes(), &mut Quotas::new(capacity, 9)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes[..], &mut Quotas::new(4, 1));
            let mut behind_head = format!("{HEAD}\n").into_bytes();
            behind_head.extend(&bytes);
            let _ = read(&behind_head[..], &mut Quotas::new(4, 1));
        }
    }
}

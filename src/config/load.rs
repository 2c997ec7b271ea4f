//! Reads the configuration and its list files from the file system, or the configuration from standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::report::Report;
use super::{Config, Env, Errors, LARGEST_FILE, Moment, Zone, parse, schema, uci};
use crate::sys::clock;

/// Reads and checks `path`; `-` is standard input, also as `uci export` prints it.
///
/// # Errors
/// Everything that is wrong in it, or why it can't be read.
pub fn load(path: &Path) -> Result<Config, Errors> {
    load_for(path, &this_machine())
}

/// What a configuration depends on, as this machine and this process have it.
pub fn this_machine() -> Env {
    let descriptors = crate::sys::process::descriptor_limit().map_or(u64::MAX, |(_, hard)| hard);
    Env { total_memory: total_memory(), descriptors }
}

/// As [`load`], for a machine with the memory of `env`.
///
/// # Errors
/// Everything that is wrong in it, or why it can't be read.
pub fn load_for(path: &Path, env: &Env) -> Result<Config, Errors> {
    load_with(path, env, &mut |path| Ok(Box::new(BufReader::new(File::open(path)?))))
}

/// As [`load_for`], with list files as `open` opens them.
///
/// # Errors
/// Everything that is wrong in it, or why it can't be read.
pub fn load_with(
    path: &Path,
    env: &Env,
    open: &mut dyn FnMut(&Path) -> io::Result<Box<dyn BufRead>>,
) -> Result<Config, Errors> {
    let (name, bytes) = if path == Path::new("-") {
        ("(standard input)".to_owned(), read(io::stdin().lock()))
    } else {
        (path.display().to_string(), File::open(path).and_then(read))
    };
    match bytes {
        Ok(bytes) => parse(&name, &bytes, env, open).map(|mut config| {
            config.keep_hours(&moment());
            config
        }),
        Err(why) => Err(Errors::whole_file(&name, format!("cannot read it: {why}"))),
    }
}

/// The control socket that `path` names, whatever else is in it: a mistake elsewhere must not keep anybody from asking the
/// daemon that runs.
///
/// # Errors
/// Why the file can't be read.
pub fn control_path(path: &Path) -> io::Result<PathBuf> {
    let bytes = if path == Path::new("-") { read(io::stdin().lock()) } else { File::open(path).and_then(read) }?;
    let mut unheard = Report::new("");
    let sections = uci::parse(&bytes, "tproxyd", &mut unheard);
    let settings = sections.iter().filter(|section| section.kind == "globals").flat_map(|section| &section.settings);
    let given =
        settings.filter(|setting| setting.name == "control").filter_map(|setting| setting.values.last()).next_back();
    Ok(given.map_or_else(default_control_path, |(_, text)| PathBuf::from(text)))
}

/// The control socket of a configuration that does not name one.
pub fn default_control_path() -> PathBuf {
    PathBuf::from(schema::GLOBALS_SECTION.option("control").map_or("", |option| option.default))
}

/// One byte more than is allowed, so that [`parse`] can tell that it is too large.
fn read(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What time it is, and in which zone: of `TZ` in the environment, `/etc/TZ` (OpenWrt), the last line of `/etc/localtime`
/// (RFC 8536 section 3.3), else UTC.
pub fn moment() -> Moment {
    Moment { utc: clock::utc(), zone: zone().unwrap_or_default() }
}

/// True if somebody has said which zone that is.
pub fn has_zone() -> bool {
    zone().is_some()
}

fn zone() -> Option<Zone> {
    let environment = std::env::var("TZ").ok();
    let openwrts = || Zone::parse(&std::fs::read_to_string("/etc/TZ").ok()?);
    let others = || {
        let file = std::fs::read("/etc/localtime").ok()?;
        let line = file.strip_suffix(b"\n")?.rsplit(|c| *c == b'\n').next()?;
        Zone::parse(std::str::from_utf8(line).ok()?)
    };
    environment.and_then(|text| Zone::parse(&text)).or_else(openwrts).or_else(others)
}

/// `MemTotal` of proc_meminfo(5) in bytes; 0 if it can't be read.
pub fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

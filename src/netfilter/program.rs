//! Runs the tools we rely on (`nft`, `ubus`): bounded output, bounded patience.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::Error;
use crate::sys::passing::wait_readable;

/// Why a tool did not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It could not be started.
    Start(io::Error),
    /// It said nothing for [`PATIENCE`], and was killed.
    Silent,
    /// It said more than it should have, and was killed.
    TooMuch,
    /// It ended with a status other than 0 (none: killed by a signal); its own words.
    Refused(Option<i32>, String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Start(error) => write!(f, "{error}"),
            Failure::Silent => write!(f, "no answer for {} s", PATIENCE.as_secs()),
            Failure::TooMuch => write!(f, "an answer without end"),
            Failure::Refused(_, words) => write!(f, "{words}"),
        }
    }
}

/// Loads `script` by `nft -f -`, in one transaction; `dry` only checks it (`-c`).
///
/// # Errors
/// nft is missing, hangs, or refuses: its own words.
pub fn nft(script: File, dry: bool) -> Result<(), Error> {
    let mut command = Command::new("nft");
    command.args(if dry { &["-c", "-f", "-"][..] } else { &["-f", "-"] }).stdin(script).stdout(Stdio::null());
    command.stderr(Stdio::piped());
    let what = if dry { "have the rules checked by nft" } else { "load the rules by nft" };
    run(command, MOST_WORDS).map(|_| ()).map_err(|failure| {
        let missing = failure.is_missing();
        let error = Error::new(what, shortened(&failure.to_string()));
        if missing { error.hint("install nftables (OpenWrt: firewall4 brings it)") } else { error }
    })
}

impl Failure {
    /// True if there is no such program.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Failure::Start(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Runs `command`, whose complaints tell why it failed.
pub(crate) fn complaints(mut command: Command) -> Result<(), Failure> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    run(command, MOST_WORDS).map(|_| ())
}

/// True if there is a program of this name where programs are looked for.
pub(crate) fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// The first complaint and the line it is about: nft repeats long lines, and complains of each.
pub(crate) fn shortened(words: &str) -> String {
    let lines: Vec<String> = words.lines().take(2).map(|line| line.chars().take(300).collect()).collect();
    lines.join(" | ")
}

/// What `command` prints, at most `most` octets of it.
pub(crate) fn output(mut command: Command, most: usize) -> Result<String, Failure> {
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    run(command, most)
}

/// Runs it and returns what came out of its one piped stream.
fn run(mut command: Command, most: usize) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(Failure::Start)?;
    let read = read_bounded(&mut child, most);
    if !matches!(&read, Ok((_, true))) {
        // It may be gone already.
        let _ = child.kill();
    }
    let status = child.wait().map_err(Failure::Start)?;
    let (bytes, _) = read?;
    let words = String::from_utf8_lossy(&bytes).trim().to_string();
    if status.success() {
        Ok(words)
    } else if words.is_empty() {
        Err(Failure::Refused(status.code(), format!("{name} failed ({status})")))
    } else {
        Err(Failure::Refused(status.code(), words))
    }
}

/// Everything until the stream's end. The bool is true if the end was reached.
fn read_bounded(child: &mut Child, most: usize) -> Result<(Vec<u8>, bool), Failure> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let mut out = child.stdout.take();
    let mut err = child.stderr.take();
    loop {
        let fd = match (&out, &err) {
            (Some(out), _) => out.as_fd(),
            (None, Some(err)) => err.as_fd(),
            (None, None) => return Ok((bytes, true)),
        };
        if !wait_readable(fd, PATIENCE).map_err(Failure::Start)? {
            return Err(Failure::Silent);
        }
        let read = match (&mut out, &mut err) {
            (Some(out), _) => out.read(&mut part),
            (None, Some(err)) => err.read(&mut part),
            (None, None) => Ok(0),
        };
        match read.map_err(Failure::Start)? {
            0 => return Ok((bytes, true)),
            n => bytes.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
        if bytes.len() > most {
            return Err(Failure::TooMuch);
        }
    }
}

/// Silence after which a tool is taken for dead.
const PATIENCE: Duration = Duration::from_secs(20);
/// Octets of a tool's complaint. nft repeats the line at fault, which may be long.
const MOST_WORDS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_comes_back_and_an_endless_one_is_cut_off() {
        assert_eq!(output(sh("echo hello"), 100).unwrap(), "hello");
        assert!(matches!(output(sh("yes"), 10_000), Err(Failure::TooMuch)));
    }

    #[test]
    fn a_tool_that_fails_is_quoted_in_its_own_words() {
        let mut command = sh("echo 'no such thing' >&2; exit 3");
        command.stderr(Stdio::piped());
        assert!(matches!(run(command, 100), Err(Failure::Refused(_, words)) if words == "no such thing"));
        assert!(matches!(output(Command::new("no-such-tool"), 9), Err(Failure::Start(_))));
    }
}

//! Every dnsmasq of this network namespace, found among the processes: its folder for further lines, and our file there.
//! Runs in the helper, or in a command. dnsmasq reads such lines only when it starts, so it is restarted when they change.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{names, program};
use crate::error::Error;
use crate::sys::process::{self, fork_child};

/// A dnsmasq that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its process.
    pub process_id: u32,
    /// `conf-dir`s, of the command line and of its configuration file.
    pub folders: Vec<PathBuf>,
}

/// Those of this network namespace.
pub fn instances() -> Vec<Instance> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let namespace = |id: &str| fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let own = namespace("self");
    ids.filter(|id| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim_end() == "dnsmasq"))
        .filter(|id| own.is_some() && namespace(&id.to_string()) == own)
        .map(|id| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<String> =
                line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            Instance { process_id: id, folders: folders(&words, &|path| fs::read_to_string(path).unwrap_or_default()) }
        })
        .collect()
}

/// The folders that a command line names, by itself or in the configuration file.
fn folders(words: &[String], read: &dyn Fn(&str) -> String) -> Vec<PathBuf> {
    let values = |short: &str, long: &str| {
        let mut values = Vec::new();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let joined = word.strip_prefix(long).and_then(|rest| rest.strip_prefix('='));
            let joined = joined.or_else(|| word.strip_prefix(short).filter(|rest| !rest.is_empty()));
            if word == short || word == long {
                values.extend(words.next().cloned());
            } else {
                values.extend(joined.map(str::to_owned));
            }
        }
        values
    };
    let files = values("-C", "--conf-file");
    let mut found = values("-7", "--conf-dir");
    for file in files.iter().map(String::as_str).chain(files.is_empty().then_some("/etc/dnsmasq.conf")) {
        let text = read(file);
        found.extend(text.lines().filter_map(|line| {
            let value = line.trim().strip_prefix("conf-dir")?.trim_start().strip_prefix('=')?;
            Some(value.trim().to_owned())
        }));
    }
    // what follows a comma says which of its files count
    found.iter().filter_map(|value| value.split(',').next()).map(PathBuf::from).collect()
}

impl Instance {
    /// Whether it can fill sets of nftables: OpenWrt's `dnsmasq` can't, `dnsmasq-full` can. A line that it does not know
    /// would keep it from starting.
    pub fn knows_nftset(&self) -> bool {
        let mut command = Command::new(format!("/proc/{}/exe", self.process_id));
        command.arg("--version");
        program::output(command, 16 << 10).is_ok_and(|said| said.split_whitespace().any(|word| word == "nftset"))
    }
}

/// Our lines in the folders of dnsmasq.
#[derive(Debug, Default)]
pub struct Notes {
    /// Folders that we have written to.
    written: Vec<PathBuf>,
}

impl Notes {
    /// Puts `lines` into the folder of every dnsmasq, or takes them out if there are none, and restarts dnsmasq if that
    /// changed anything. `anew`: their sets are empty, so what dnsmasq keeps in its cache has to be asked for once more.
    ///
    /// # Errors
    /// A dnsmasq that can't do it, a folder that can't be written to, or a restart that fails.
    pub fn put(&mut self, lines: &str, anew: bool) -> Result<(), Error> {
        if !names::are_ours(lines) {
            return Err(Error::new("tell dnsmasq of names", "a line is not about our sets"));
        }
        let running = instances();
        let mut folders = self.written.clone();
        for instance in running.iter().filter(|instance| !instance.folders.is_empty()) {
            if !lines.is_empty() && !instance.knows_nftset() {
                return Err(Error::new("tell dnsmasq of names", "this dnsmasq was built without nftset")
                    .hint("install dnsmasq-full in its place, or set `option dnsmasq '0'`"));
            }
            // one that is named first is enough
            folders.extend(instance.folders.first().filter(|folder| !self.written.contains(folder)).cloned());
        }
        folders.sort_unstable();
        folders.dedup();
        let text = if lines.is_empty() { String::new() } else { format!("{HEADER}{lines}") };
        let mut changed = false;
        for folder in &folders {
            let put = replace(folder, &text);
            changed |= put.map_err(|e| Error::new(format!("write {}", folder.join(FILE).display()), e))?;
        }
        self.written = if lines.is_empty() { Vec::new() } else { folders };
        if changed {
            return restart();
        }
        if anew && !lines.is_empty() {
            // one that ends just now needs it no more
            running.iter().for_each(|instance| drop(process::hang_up(instance.process_id)));
        }
        Ok(())
    }

    /// Takes out what was put in.
    ///
    /// # Errors
    /// Those of [`Self::put`].
    pub fn take_out_if_put(&mut self) -> Result<(), Error> {
        if self.written.is_empty() { Ok(()) } else { self.put("", false) }
    }
}

/// Gives our file in `folder` this text, in one step; none: there is no file. True if it was another.
fn replace(folder: &Path, text: &str) -> io::Result<bool> {
    let path = folder.join(FILE);
    let before = fs::read_to_string(&path).unwrap_or_default();
    if before == text {
        return Ok(false);
    }
    if !before.is_empty() && !before.starts_with(HEADER) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is somebody else's"));
    }
    if text.is_empty() {
        fs::remove_file(&path)?;
    } else {
        // dnsmasq passes over what begins with a dot
        let new = folder.join(format!(".{FILE}"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path))?;
    }
    Ok(true)
}

/// By whatever looks after dnsmasq here.
fn restart() -> Result<(), Error> {
    let what = || Error::new("restart dnsmasq, whose lines have changed", "nobody here knows how");
    let mut command = if Path::new(INIT).exists() {
        let mut command = Command::new(INIT);
        command.arg("restart");
        command
    } else if Path::new("/run/systemd/system").exists() {
        let mut command = Command::new("systemctl");
        command.args(["try-restart", "dnsmasq"]);
        command
    } else {
        return Err(what().hint("restart it by hand"));
    };
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let failed = |e: io::Error| Error::new("restart dnsmasq, whose lines have changed", e);
    let keep = File::open("/dev/null").map_err(failed)?;
    let child = fork_child(keep.into(), |_| process::run_script(command, LIMIT).unwrap_or(1)).map_err(failed)?;
    child.wait();
    Ok(())
}

const FILE: &str = "tproxyd.conf";
const HEADER: &str = "# Written by tproxyd (option dnsmasq), and taken away when it ends.\n";
const INIT: &str = "/etc/init.d/dnsmasq";
/// How long a restart may take.
const LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_on_the_command_line_or_in_the_file() {
        let read = |path: &str| match path {
            "/var/etc/dnsmasq.conf.cfg01" => "port=53\nconf-dir=/tmp/dnsmasq.cfg01.d\n".to_owned(),
            "/etc/dnsmasq.conf" => "#conf-dir=/no\n conf-dir = /etc/dnsmasq.d/,*.conf\n".to_owned(),
            _ => String::new(),
        };
        for (line, wanted) in [
            ("dnsmasq -C /var/etc/dnsmasq.conf.cfg01 -k", &["/tmp/dnsmasq.cfg01.d"][..]),
            ("dnsmasq --conf-file=/var/etc/dnsmasq.conf.cfg01 --conf-dir=/a", &["/a", "/tmp/dnsmasq.cfg01.d"]),
            ("dnsmasq", &["/etc/dnsmasq.d/"]),
            ("dnsmasq -x /run/d.pid -C/x -7 /etc/dnsmasq.d,.dpkg-dist,.dpkg-old", &["/etc/dnsmasq.d"]),
            ("dnsmasq --conf-file=/var/lib/libvirt/dnsmasq/default.conf", &[]),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(folders(&words, &read), wanted.iter().map(PathBuf::from).collect::<Vec<_>>(), "{line}");
        }
    }
}

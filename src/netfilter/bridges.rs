//! `br_netfilter` (docker loads it, and turns it on): what crosses a bridge is shown to the rules of IP before the packet
//! enters IP, where TPROXY's choice of a socket is lost again. So it is turned off for the bridges of the listeners by
//! TPROXY, stays on for all other bridges, and what was changed is put back.
//!
//! A record of what was changed lies beside the control socket: whoever comes after a helper that was killed finds it.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::sys::{passing, process};

/// What has been changed, and where that is written down.
#[derive(Debug)]
pub struct Spared {
    record: PathBuf,
    changed: Vec<Change>,
    /// The listeners' devices, by which bridges are known.
    devices: Vec<String>,
}

/// One setting, which was on (or off) before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    place: Place,
    was: bool,
}

/// A setting: of all bridges together (`None`), or of one. It holds if either is on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bridge: Option<String>,
    family: usize,
}

/// The settings for IPv4 and IPv6: of all bridges, and of one.
const SETTINGS: [(&str, &str); 2] =
    [("bridge-nf-call-iptables", "nf_call_iptables"), ("bridge-nf-call-ip6tables", "nf_call_ip6tables")];

/// Where the record of a daemon with this control socket is.
pub fn record_beside(control: &Path) -> PathBuf {
    control.with_extension("bridges")
}

impl Spared {
    /// Nothing is changed yet, unless whoever was here before did not get to put it back.
    pub fn new(record: &Path) -> Spared {
        Spared { record: record.to_path_buf(), changed: read(record), devices: Vec::new() }
    }

    /// Turns it off for the bridges among (or below) `devices`; puts back what is not needed for that any more.
    ///
    /// # Errors
    /// A setting can't be changed.
    pub fn spare(&mut self, devices: &[String]) -> Result<(), Error> {
        self.devices = devices.to_vec();
        let mine = concerned(devices);
        if mine.is_empty() {
            return self.put_back();
        }
        let mut wanted = Vec::new();
        for family in 0..SETTINGS.len() {
            let everybody = Place { bridge: None, family };
            let mut for_all = everybody.is_on() == Some(true);
            for_all |= self.changed.iter().any(|change| change.place == everybody && change.was);
            for bridge in bridges() {
                let place = Place { bridge: Some(bridge.clone()), family };
                match place.is_on() {
                    Some(true) if mine.contains(&bridge) => wanted.push((place, false)),
                    // it was on by the setting for all
                    Some(false) if for_all && !mine.contains(&bridge) => wanted.push((place, true)),
                    _ => {}
                }
            }
            if everybody.is_on() == Some(true) {
                wanted.push((everybody, false));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        for (place, on) in &wanted {
            if !self.changed.iter().any(|change| change.place == *place) {
                self.changed.push(Change { place: place.clone(), was: !on });
            }
        }
        // first, so that what is changed is always written down
        write(&self.record, &self.changed)?;
        wanted.iter().try_for_each(|(place, on)| place.set(*on))?;
        let names = mine.join(", ");
        log::info!("br_netfilter is off for bridge {names} while tproxyd runs, and for other bridges as before");
        Ok(())
    }

    /// The same for the devices that were named last.
    ///
    /// # Errors
    /// Those of [`Spared::spare`].
    pub fn spare_again(&mut self) -> Result<(), Error> {
        let devices = std::mem::take(&mut self.devices);
        self.spare(&devices)
    }

    /// What has been turned on again, in words.
    pub fn damage(&self) -> Option<String> {
        let mine = concerned(&self.devices);
        let places = (0..SETTINGS.len()).flat_map(|family| {
            let of_bridge = mine.iter().map(move |bridge| Place { bridge: Some(bridge.clone()), family });
            of_bridge.chain([Place { bridge: None, family }])
        });
        let on = places.into_iter().find(|place| !mine.is_empty() && place.is_on() == Some(true));
        on.map(|place| format!("{} had been turned on", place.name()))
    }

    /// True if there is a bridge that has come since, for which it is not as before.
    pub fn is_behind(&self) -> bool {
        let for_all = self.changed.iter().filter(|change| change.place.bridge.is_none() && change.was);
        let mine = concerned(&self.devices);
        let families: Vec<_> = for_all.map(|change| change.place.family).collect();
        let others = bridges().into_iter().filter(|bridge| !mine.contains(bridge));
        others.into_iter().any(|bridge| {
            families.iter().any(|family| {
                let place = Place { bridge: Some(bridge.clone()), family: *family };
                place.is_on() == Some(false)
            })
        })
    }

    /// Makes everything as it was.
    ///
    /// # Errors
    /// A setting can't be changed.
    pub fn put_back(&mut self) -> Result<(), Error> {
        if self.changed.is_empty() {
            return Ok(());
        }
        for Change { place, was } in self.changed.iter().rev() {
            // a bridge that is gone has no settings
            if place.is_on().is_some_and(|on| on != *was) {
                place.set(*was)?;
            }
        }
        self.changed.clear();
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::new(format!("delete {}", self.record.display()), error))
            }
            _ => Ok(()),
        }
    }
}

impl Place {
    fn path(&self) -> PathBuf {
        let (of_all, of_one) = SETTINGS.get(self.family).copied().unwrap_or(("", ""));
        match &self.bridge {
            None => Path::new("/proc/sys/net/bridge").join(of_all),
            Some(bridge) => Path::new("/sys/class/net").join(bridge).join("bridge").join(of_one),
        }
    }

    /// As people and the record call it.
    fn name(&self) -> String {
        let (of_all, of_one) = SETTINGS.get(self.family).copied().unwrap_or(("", ""));
        match &self.bridge {
            None => of_all.to_string(),
            Some(bridge) => format!("{of_one} {bridge}"),
        }
    }

    fn of_name(name: &str) -> Option<Place> {
        let (setting, bridge) = name.split_once(' ').map_or((name, None), |(setting, bridge)| (setting, Some(bridge)));
        let family = SETTINGS.iter().position(|(of_all, of_one)| match bridge {
            None => *of_all == setting,
            Some(_) => *of_one == setting,
        })?;
        if bridge.is_some_and(|name| name.contains('/') || name.starts_with('.')) {
            return None;
        }
        Some(Place { bridge: bridge.map(str::to_string), family })
    }

    /// `None`: there is no such setting (any more).
    fn is_on(&self) -> Option<bool> {
        let text = fs::read_to_string(self.path()).ok()?;
        Some(text.trim() != "0")
    }

    fn set(&self, on: bool) -> Result<(), Error> {
        let path = self.path();
        fs::write(&path, if on { "1" } else { "0" }).map_err(|error| {
            Error::new(format!("set {} to {}", path.display(), u8::from(on)), error)
                .hint("a listener of mode redirect works with br_netfilter as it is")
        })
    }
}

/// The bridges among `devices`, and those below one of them (`br-lan.10`).
pub fn concerned(devices: &[String]) -> Vec<String> {
    // without the module there is nothing to spare them
    if !Path::new("/proc/sys/net/bridge").exists() {
        return Vec::new();
    }
    let is_among = |bridge: &String| {
        devices.iter().any(|name| match name.strip_suffix('*') {
            Some(start) => bridge.starts_with(start),
            None => bridge == name || Path::new("/sys/class/net").join(name).join(format!("lower_{bridge}")).exists(),
        })
    };
    bridges().into_iter().filter(is_among).collect()
}

fn bridges() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let bridges = entries.filter(|entry| entry.path().join("bridge").exists());
    bridges.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// What is written down; nothing, if it was not this user (or root) who did.
fn read(record: &Path) -> Vec<Change> {
    let mut text = String::new();
    let opened = OpenOptions::new().read(true).custom_flags(passing::NO_LINK | passing::NONBLOCKING).open(record);
    let read = opened.and_then(|file| {
        let found = file.metadata()?;
        if found.is_file() && process::is_own(found.uid()) {
            file.take(MOST_OF_A_RECORD).read_to_string(&mut text)?;
        }
        Ok(())
    });
    // none, as a rule; what can't be read is as good as none
    if read.is_err() {
        return Vec::new();
    }
    let line = |line: &str| {
        let (was, name) = line.split_once(' ')?;
        Some(Change { place: Place::of_name(name)?, was: was == "1" })
    };
    text.lines().filter_map(line).collect()
}

/// In a directory of the daemon's own, which may be in others' hands: a link there is not followed.
fn write(record: &Path, changed: &[Change]) -> Result<(), Error> {
    let mut text = String::new();
    for Change { place, was } in changed {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} {}", u8::from(*was), place.name());
    }
    let _ = fs::remove_file(record);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(record);
    made.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Error::new(format!("write {}", record.display()), error))
}

/// Two settings for each bridge.
const MOST_OF_A_RECORD: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written_and_nonsense_in_it_is_no_setting() {
        let path = std::env::temp_dir().join(format!("tproxyd-record-{}", std::process::id()));
        let changed = [(None, 1, true), (Some("docker0"), 0, false)]
            .map(|(bridge, family, was)| Change { place: Place { bridge: bridge.map(str::to_string), family }, was });
        write(&path, &changed).unwrap();
        assert_eq!(read(&path), changed);
        fs::write(&path, "1 nf_call_iptables ../../x\n1 bridge-nf-call-arptables\n0\n\n1 nf_call_iptables .\n")
            .unwrap();
        assert_eq!(read(&path), []);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(read(&path), []);
        write(&path, &changed).unwrap();
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_record_lies_beside_the_control_socket() {
        let beside = record_beside(Path::new("/var/run/tproxyd/control.sock"));
        assert_eq!(beside, Path::new("/var/run/tproxyd/control.bridges"));
    }
}

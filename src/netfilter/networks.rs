//! OpenWrt's network names → devices: from netifd by `ubus`, without it from a file that the user keeps.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::program;
use crate::error::Error;

/// The device of each name in `wanted`, in that order; `None` for a network that is not up or not there. At boot, before
/// netifd has started, the networks' configuration tells what their devices will be.
///
/// # Errors
/// Neither ubus nor the file is there, or netifd does not answer.
pub fn resolve(wanted: &[String]) -> Result<Vec<Option<String>>, Error> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = Command::new("ubus");
    command.args(["call", "network.interface", "dump"]).stdin(Stdio::null());
    resolve_by(program::output(command, LONGEST_DUMP), Path::new(FILE), Path::new(NETIFD_CONFIG), wanted)
}

fn resolve_by(
    dump: Result<String, program::Failure>,
    file: &Path,
    netifd_config: &Path,
    wanted: &[String],
) -> Result<Vec<Option<String>>, Error> {
    let hint = "use `list device` in place of `list network`";
    let explain = |why: String| Error::new(format!("find the device of network '{}'", wanted.join("', '")), why);
    let known = match dump {
        Ok(json) => from_dump(&json).ok_or_else(|| explain("netifd's answer can't be read".into()).hint(hint))?,
        Err(program::Failure::Start(error)) if error.kind() == io::ErrorKind::NotFound => {
            let text = std::fs::read_to_string(file).map_err(|error| {
                explain(format!("there is no ubus here, and {}: {error}", file.display())).hint(hint)
            })?;
            from_file(&text)
        }
        Err(program::Failure::Refused(Some(UBUS_STATUS_NOT_FOUND), _)) => {
            let text = std::fs::read(netifd_config).unwrap_or_default();
            from_netifd_config(&String::from_utf8_lossy(&text))
        }
        Err(failure) => return Err(explain(failure.to_string()).hint(hint)),
    };
    let device = |name: &String| known.iter().find(|network| network.0 == *name).map(|network| network.1.clone());
    Ok(wanted.iter().map(device).collect())
}

/// Lines `lan br-lan`; `#` begins a comment.
pub(super) fn from_file(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    let words = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_string(), words.next()?.to_string()))
    });
    words.collect()
}

/// The devices that `config interface` sections name. What a protocol makes for itself (pppoe-wan) is not known before it
/// is up.
pub(super) fn from_netifd_config(text: &str) -> Vec<(String, String)> {
    let mut networks: Vec<(String, String)> = Vec::new();
    let mut network = None;
    for line in text.lines() {
        let mut words = line.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
        match (words.next(), words.next(), words.next()) {
            (Some("config"), Some(kind), name) => network = name.filter(|_| kind == "interface"),
            (Some("option"), Some("device"), Some(device)) => {
                networks.extend(network.map(|network| (network.to_string(), device.to_string())));
            }
            _ => {}
        }
    }
    networks
}

/// The networks that are up in the answer of `network.interface dump`: (`interface`, `l3_device` or else `device`).
/// `None` if it is not the JSON it should be.
pub(super) fn from_dump(json: &str) -> Option<Vec<(String, String)>> {
    let mut networks = Vec::new();
    let mut scan = Scan { rest: json, depth: 0 };
    scan.members(|scan, key| match key {
        "interface" => scan.elements(|scan| {
            let (mut name, mut up, mut l3_device, mut device) = (None, false, None, None);
            scan.members(|scan, key| {
                match key {
                    "interface" => name = Some(scan.string()?),
                    "up" => up = scan.skip()? == "true",
                    "l3_device" => l3_device = Some(scan.string()?),
                    "device" => device = Some(scan.string()?),
                    _ => {
                        scan.skip()?;
                    }
                }
                Some(())
            })?;
            if let (true, Some(name), Some(device)) = (up, name, l3_device.or(device)) {
                networks.push((name, device));
            }
            Some(())
        }),
        _ => scan.skip().map(|_| ()),
    })?;
    Some(networks)
}

/// Just enough JSON to walk through that answer. Escapes in strings are left as they are: names of networks and devices
/// have none.
struct Scan<'a> {
    rest: &'a str,
    depth: u8,
}

impl<'a> Scan<'a> {
    fn members(&mut self, mut each: impl FnMut(&mut Scan<'a>, &str) -> Option<()>) -> Option<()> {
        self.sequence('{', '}', |scan| {
            let key = scan.string()?;
            scan.token(':')?;
            each(scan, &key)
        })
    }

    fn elements(&mut self, each: impl FnMut(&mut Scan<'a>) -> Option<()>) -> Option<()> {
        self.sequence('[', ']', each)
    }

    fn sequence(&mut self, open: char, close: char, mut each: impl FnMut(&mut Scan<'a>) -> Option<()>) -> Option<()> {
        self.depth = self.depth.checked_add(1).filter(|depth| *depth <= DEEPEST)?;
        self.token(open)?;
        if self.token(close).is_none() {
            loop {
                each(self)?;
                if self.token(close).is_some() {
                    break;
                }
                self.token(',')?;
            }
        }
        self.depth -= 1;
        Some(())
    }

    fn token(&mut self, wanted: char) -> Option<()> {
        self.rest = self.rest.trim_start();
        self.rest = self.rest.strip_prefix(wanted)?;
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        self.token('"')?;
        let mut escaped = false;
        let end = self.rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        let text = self.rest.get(..end)?.to_string();
        self.rest = self.rest.get(end + 1..)?;
        Some(text)
    }

    /// Passes over one value of any kind and returns its text.
    fn skip(&mut self) -> Option<&'a str> {
        self.rest = self.rest.trim_start();
        let before = self.rest;
        match before.chars().next()? {
            '{' => self.members(|scan, _| scan.skip().map(|_| ()))?,
            '[' => self.elements(|scan| scan.skip().map(|_| ()))?,
            '"' => drop(self.string()?),
            _ => {
                let end = before.find([',', '}', ']']).unwrap_or(before.len());
                self.rest = before.get(end..)?;
            }
        }
        before.get(..before.len() - self.rest.len()).map(str::trim)
    }
}

/// Where the user names the devices of networks if there is no ubus.
const FILE: &str = "/var/run/tproxyd/networks";
/// What netifd will set up.
const NETIFD_CONFIG: &str = "/etc/config/network";
/// ubus ends with it where nobody offers the object: netifd does not run.
const UBUS_STATUS_NOT_FOUND: i32 = 4;
/// Octets of netifd's answer; one network takes about 3 KB.
const LONGEST_DUMP: usize = 512 * 1024;
const DEEPEST: u8 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = r#"{ "interface": [
        { "interface": "lan", "up": true, "l3_device": "br-lan", "device": "br0",
          "ipv4-address": [ { "address": "192.168.1.1", "mask": 24 } ], "data": { "a\"b": [ ] } },
        { "interface": "wan", "up": true, "device": "eth1", "metric": 0 },
        { "interface": "guest", "up": false, "device": "br-guest" } ] }"#;

    #[test]
    fn a_dump_names_the_l3_device_and_leaves_out_what_is_down() {
        let networks = from_dump(DUMP).unwrap();
        assert_eq!(networks, [("lan".into(), "br-lan".into()), ("wan".into(), "eth1".into())]);
    }

    #[test]
    fn every_prefix_of_a_dump_is_refused_and_none_panics() {
        for cut in 0..DUMP.len() {
            assert!(from_dump(&DUMP[..cut]).is_none(), "cut at {cut}");
        }
        assert!(from_dump(&"[".repeat(100_000)).is_none());
        assert!(from_dump(&format!("{{\"x\":{}", "[".repeat(100_000))).is_none());
    }

    #[test]
    fn without_ubus_the_file_answers_and_without_both_the_error_names_device() {
        let wanted = ["lan".to_string(), "guest".to_string()];
        let nowhere = Path::new("/nonexistent/networks");
        let no_ubus = || Err(program::Failure::Start(io::ErrorKind::NotFound.into()));
        let error = resolve_by(no_ubus(), nowhere, nowhere, &wanted).unwrap_err();
        assert!(error.to_string().contains("list device"), "{error}");
        assert_eq!(from_file("# mine\nlan br-lan # home\n\nguest\n"), [("lan".into(), "br-lan".into())]);
        let file = std::env::temp_dir().join(format!("tproxyd-networks-{}", std::process::id()));
        std::fs::write(&file, "lan br-lan\n").unwrap();
        let resolved = resolve_by(no_ubus(), &file, nowhere, &wanted);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(resolved.unwrap(), [Some("br-lan".to_string()), None]);
    }

    #[test]
    fn before_netifd_runs_its_configuration_names_the_devices() {
        let text = "config interface 'loopback'\n\toption device 'lo'\n\nconfig device\n\toption name 'br-lan'\n\
            \nconfig interface lan\n\toption device \"br-lan\"\n\toption proto 'static'\n\
            \nconfig interface 'wan6'\n\toption proto 'dhcpv6'\nconfig route\n\toption device 'eth9'\n";
        let expected = [("loopback".to_string(), "lo".to_string()), ("lan".into(), "br-lan".into())];
        assert_eq!(from_netifd_config(text), expected);
        assert!(from_netifd_config("option device 'eth0'\nconfig\noption\n").is_empty());
    }

    #[test]
    fn an_ubus_without_netifd_is_no_error() {
        let nowhere = Path::new("/nonexistent/network");
        let refused = |status| Err(program::Failure::Refused(Some(status), "Command failed".into()));
        let wanted = ["lan".to_string()];
        assert_eq!(resolve_by(refused(UBUS_STATUS_NOT_FOUND), nowhere, nowhere, &wanted).unwrap(), [None]);
        // 7: nobody answered in time
        assert!(resolve_by(refused(7), nowhere, nowhere, &wanted).is_err());
    }
}

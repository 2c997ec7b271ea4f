//! Flows that are offloaded to a flow table (`flow_offloading` of the firewall) pass no rules any more. They come back to them
//! by ageing (`nf_flow_offload_gc_step`): while the flow tables' timeouts (Linux 5.14) are nought, each packet of a flow makes its
//! entry old, and each second old entries go. A silent flow's goes when its former timeout is over. Nothing else becomes of a
//! flow: its connection tracking entry stays, and so do its addresses; if the rules let it pass it is offloaded anew.
//!
//! (Deleting the connection tracking entry ends a flow, too, but of a masqueraded download, whose next packet comes from
//! the server, also where it should live on; and before Linux 5.19 the kernel refuses.)

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// The timeouts while they are not those of before.
#[derive(Debug)]
pub struct Ageing {
    before: Vec<(PathBuf, u32)>,
}

impl Ageing {
    /// Has offloaded flows come back. `None`: this kernel has no flow tables, or none with timeouts.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn begin() -> Result<Option<Ageing>, Error> {
        Ageing::begin_in(Path::new(SETTINGS))
    }

    fn begin_in(settings: &Path) -> Result<Option<Ageing>, Error> {
        let mut ageing = Ageing { before: Vec::new() };
        for name in TIMEOUTS {
            let path = settings.join(name);
            let seconds = match fs::read_to_string(&path) {
                // nought: somebody died with them at nought
                Ok(text) => text.trim().parse().ok().filter(|seconds| *seconds > 0).unwrap_or(USUAL),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&path, error)),
            };
            fs::write(&path, "0").map_err(|error| failed(&path, error))?;
            ageing.before.push((path, seconds));
        }
        Ok((!ageing.before.is_empty()).then_some(ageing))
    }

    /// After this long every entry of before has gone: the longest timeout, and two rounds of the kernel's.
    pub fn lasts(&self) -> Duration {
        let longest = self.before.iter().map(|(_, seconds)| *seconds).max().unwrap_or(0);
        Duration::from_secs(u64::from(longest) + 2)
    }
}

impl Drop for Ageing {
    fn drop(&mut self) {
        for (path, seconds) in &self.before {
            if let Err(error) = fs::write(path, seconds.to_string()) {
                log::error!("{}", failed(path, error));
            }
        }
    }
}

/// True if this kernel has flows come back.
pub fn can_age(root: &Path) -> bool {
    root.join(SETTINGS.trim_start_matches('/')).join(TCP).exists()
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(format!("set {}, by which offloaded flows come back to the rules", path.display()), error)
}

const SETTINGS: &str = "/proc/sys/net/netfilter";
const TCP: &str = "nf_flowtable_tcp_timeout";
const TIMEOUTS: [&str; 2] = [TCP, "nf_flowtable_udp_timeout"];
/// NF_FLOW_TIMEOUT, in seconds.
const USUAL: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_nought_for_a_while_and_then_what_they_were() {
        let settings = std::env::temp_dir().join(format!("tproxyd-offload-{}", std::process::id()));
        fs::create_dir_all(&settings).unwrap();
        assert!(Ageing::begin_in(&settings).unwrap().is_none(), "a kernel without");
        let [tcp, udp] = TIMEOUTS.map(|name| settings.join(name));
        fs::write(&tcp, "45\n").unwrap();
        fs::write(&udp, "0\n").unwrap();
        let ageing = Ageing::begin_in(&settings).unwrap().unwrap();
        assert_eq!(ageing.lasts(), Duration::from_secs(47));
        assert_eq!(fs::read_to_string(&tcp).unwrap(), "0");
        drop(ageing);
        assert_eq!([tcp, udp].map(|path| fs::read_to_string(path).unwrap()), ["45", "30"]);
        fs::remove_dir_all(settings).unwrap();
    }
}

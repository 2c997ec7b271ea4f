//! The kernel's side of interception: rules, policy routes, connection tracking. Runs once per start, reload and stop,
//! in the helper or in a command; never per packet or session, never on the event loop.

#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod addresses;
pub mod backend;
pub mod bridges;
pub mod commands;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod conntrack;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod counters;
pub mod dnsmasq;
pub mod iptables;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod links;
pub mod load;
pub mod main_router;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub(crate) mod message;
pub mod names;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod neighbours;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod networks;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod news;
#[cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]
pub mod offload;
pub mod program;
pub mod render;
pub mod routes;
pub mod survey;
pub mod trial;
pub mod verdict;

use std::net::SocketAddr;
use std::path::Path;

pub use render::{decided_mark, render, render_block, render_on_link, render_servers};
pub use routes::PolicyRoutes;

use crate::config::{Backend, Config, Families, Globals, Host, IpRange, Mode, Server};
use crate::error::Error;

/// Name of our table, family `inet`.
pub const TABLE: &str = "tproxyd";

/// What the rules depend on beside the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// For each of [`Config::listeners`], in that order, its devices with networks resolved. Empty: it catches nothing.
    pub devices: Vec<Vec<String>>,
    /// Devices of listeners that are gone since a reload, whose flows live on.
    pub former_devices: Vec<String>,
    /// Prefixes that are connected directly, to which traffic stays with the firewall.
    pub on_link: Vec<IpRange>,
    /// Devices that default routes lead out by.
    pub ways_out: Vec<String>,
    /// The outbounds' servers as far as their addresses are known.
    pub servers: Vec<ServerAddress>,
    /// The families that this kernel has.
    pub families: Families,
    /// What the networks that rules name are, those that are up: (network, device).
    pub networks: Vec<(String, String)>,
    /// This kernel can reject in prerouting (Linux 5.9).
    pub early_reject: bool,
    /// Who the rules are for: nft or iptables.
    pub backend: Backend,
}

/// Where an outbound's server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// TCP, else UDP.
    pub tcp: bool,
    /// Address and port.
    pub address: SocketAddr,
}

/// What can be asked of the machine: the answer to [`look`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// For each network asked for, in that order, its device; `None` for one that is not up.
    pub networks: Vec<Option<String>>,
    /// Prefixes that are connected directly, see [`links::on_link`].
    pub on_link: Vec<IpRange>,
    /// What `option backend 'auto'` means here.
    pub backend: Backend,
}

/// The names that [`look`] needs: the networks of all listeners and rules, each once, and the listeners' devices.
pub fn questions(cfg: &Config) -> (Vec<String>, Vec<String>) {
    let (mut networks, mut devices) = (Vec::new(), Vec::new());
    for listener in &cfg.listeners {
        for (from, to) in [(&listener.network, &mut networks), (&listener.device, &mut devices)] {
            for name in from {
                if !to.contains(name) {
                    to.push(name.clone());
                }
            }
        }
    }
    // clients come from those that rules name as well, so their prefixes are connected in the same sense
    for name in cfg.rules.iter().flat_map(|rule| rule.network.plain.iter().chain(&rule.network.not)) {
        if !networks.contains(name) {
            networks.push(name.clone());
        }
    }
    (networks, devices)
}

/// Resolves `networks`, and lists the prefixes that are connected to them, to `devices`, and to what leads nowhere else.
///
/// # Errors
/// Those of [`networks::resolve`] and [`links::on_link`].
pub fn look(networks: &[String], devices: &[String]) -> Result<Surroundings, Error> {
    let resolved = networks::resolve(networks)?;
    let mut all = devices.to_vec();
    all.extend(resolved.iter().flatten().cloned());
    Ok(Surroundings { networks: resolved, on_link: links::on_link(&all)?, backend: backend::automatic() })
}

impl Facts {
    /// Puts together what is known; `servers` are addresses beside those that the configuration spells out (by DNS).
    pub fn new(cfg: &Config, found: &Surroundings, servers: &[ServerAddress]) -> Facts {
        let (networks, _) = questions(cfg);
        let device_of = |name: &String| {
            let place = networks.iter().position(|network| network == name)?;
            found.networks.get(place)?.clone()
        };
        let devices = cfg.listeners.iter().map(|listener| {
            let mut devices = listener.device.clone();
            devices.extend(listener.network.iter().filter_map(device_of));
            devices
        });
        let mut all = literal_servers(cfg);
        all.extend(servers);
        Facts {
            devices: devices.collect(),
            former_devices: Vec::new(),
            on_link: found.on_link.clone(),
            ways_out: routes::default_devices().unwrap_or_default(),
            servers: all,
            families: kernel_families(),
            networks: networks
                .iter()
                .zip(&found.networks)
                .filter_map(|(name, device)| Some((name.clone(), device.clone()?)))
                .collect(),
            early_reject: kernel_rejects_early(),
            backend: if cfg.globals.backend == Backend::Auto { found.backend } else { cfg.globals.backend },
        }
    }

    /// The device of a network that a listener or rule names, if it is up.
    pub fn device_of(&self, network: &str) -> Option<String> {
        self.networks.iter().find(|(name, _)| name == network).map(|(_, device)| device.clone())
    }

    /// The devices of listeners by TPROXY, and of those that are gone.
    pub fn by_tproxy(&self, cfg: &Config) -> Vec<String> {
        let listeners = cfg.listeners.iter().zip(&self.devices).filter(|(listener, _)| listener.mode == Mode::Tproxy);
        listeners.flat_map(|(_, devices)| devices).chain(&self.former_devices).cloned().collect()
    }

    /// One line for each listener that catches nothing, because no network of its is up.
    pub fn warnings(&self, cfg: &Config) -> Vec<String> {
        let pairs = cfg.listeners.iter().zip(&self.devices).filter(|(_, devices)| devices.is_empty());
        let line = |listener: &crate::config::Listener| {
            let (name, networks) = (&listener.name, listener.network.join("', '"));
            format!("listener '{name}' catches nothing: network '{networks}' is not up")
        };
        pairs.map(|(listener, _)| line(listener)).collect()
    }
}

/// The servers that the configuration names by address.
pub fn literal_servers(cfg: &Config) -> Vec<ServerAddress> {
    let mut servers = Vec::new();
    for outbound in &cfg.outbounds {
        if let Some(Server { host: Host::Address(ip), port }) = outbound.kind.server() {
            let address = SocketAddr::new(*ip, *port);
            servers.push(ServerAddress { tcp: true, address });
            if outbound.sends_udp_to_server() {
                servers.push(ServerAddress { tcp: false, address });
            }
        }
    }
    servers
}

/// The families that this kernel has.
pub fn kernel_families() -> Families {
    Families { v4: true, v6: Path::new("/proc/sys/net/ipv6").exists() }
}

/// True from Linux 5.9 on.
pub fn kernel_rejects_early() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (5, 9)
}

/// What a daemon has put in place, and what is to be taken away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installation {
    /// Rule and route of each family; their mark is that of the connection tracking entries, too.
    pub routes: PolicyRoutes,
    /// Whose rules they are. [`Backend::Auto`]: whoever may have been asked.
    pub backend: Backend,
}

impl Installation {
    /// What `globals` asks for on this kernel.
    pub fn new(globals: &Globals) -> Installation {
        Installation { routes: PolicyRoutes::new(globals, kernel_families()), backend: globals.backend }
    }

    /// Takes everything away, in the order that leaves no packet half intercepted: rules, policy routes, connection
    /// tracking entries. Goes on after an error, and returns all of them.
    pub fn remove(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        errors.extend(backend::remove_rules(self.backend).err());
        errors.extend(self.routes.remove().err());
        errors.extend(conntrack::delete_marked(self.routes.mark).err());
        errors
    }
}

/// Deletes our table if it is there.
///
/// # Errors
/// Those of [`program::nft`].
pub fn remove_table() -> Result<(), Error> {
    // `destroy table` is younger than the nft of OpenWrt 22.03.
    load::transaction(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n"))
}

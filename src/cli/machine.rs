//! `check`, `rules`, `clear`: what deals with this machine and its configuration without asking the daemon.

use super::ask::print;
use super::{DEFAULT_CONFIG, Failure, probe};
use crate::budget::{self, Tables};
use crate::check::{self, Needs};
use crate::config::{self, Backend, Config};
use crate::daemon::{descriptors_needed, descriptors_wanted};
use crate::netfilter::commands::{self, RulesOptions};
use crate::sys::memory;
use argh::FromArgs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Check the configuration, then this machine; each finding comes with what mends it. Status 1: something will not work.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "check",
    example = "{command_name}\n{command_name} --probe\nuci export tproxyd | {command_name} --config-only --config -"
)]
pub(super) struct Check {
    /// configuration file (default: /etc/config/tproxyd; -: standard input)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// only the configuration, not this machine
    #[argh(switch)]
    config_only: bool,
    /// send a real connection through the rules, and say at which step it stopped
    #[argh(switch)]
    probe: bool,
    /// where the probe goes, ADDRESS:PORT (default: a name server that this machine asks)
    #[argh(option)]
    to: Option<SocketAddr>,
    /// as a JSON list
    #[argh(switch)]
    json: bool,
}

/// Print what `run` would install, loadable by nft (or iptables-restore) as it is, policy routes as comments.
#[derive(FromArgs)]
#[argh(subcommand, name = "rules", example = "{command_name} | nft -c -f -\n{command_name} --block-only")]
pub(super) struct Rules {
    /// configuration file (default: /etc/config/tproxyd; -: standard input)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// nft, or iptables (default: the configuration's)
    #[argh(option, from_str_fn(backend))]
    backend: Option<Backend>,
    /// what to put on the main router, which then sends its clients' packets to this box
    #[argh(switch)]
    main_router: bool,
    /// just what on_failure 'block' needs before the daemon runs
    #[argh(switch)]
    block_only: bool,
}

/// Remove everything that `run` installs, whatever state it was left in. Safe to repeat.
#[derive(FromArgs)]
#[argh(subcommand, name = "clear", example = "{command_name}")]
pub(super) struct Clear {
    /// configuration file that names marks and tables (default: /etc/config/tproxyd; -: standard input)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
}

fn backend(text: &str) -> Result<Backend, String> {
    match text {
        "nft" => Ok(Backend::Nft),
        "iptables" => Ok(Backend::Iptables),
        "auto" => Ok(Backend::Auto),
        other => Err(format!("'{other}' is no backend: nft or iptables")),
    }
}

fn load(path: &Path) -> Result<Config, Failure> {
    config::load(path).map_err(|errors| Failure::Usage(errors.to_string()))
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = load(&self.config)?;
        let needs = Needs {
            descriptors: descriptors_needed(&config),
            descriptors_wanted: descriptors_wanted(&config),
            kernel_memory: budget::kernel(Tables::of(&config.globals)),
            memory: budget::bound(Tables::of(&config.globals), &config, memory::mapped_files()),
        };
        let mut findings = check::configuration(&config, needs);
        if !self.config_only {
            findings.extend(check::machine(&config, needs));
        }
        if self.probe {
            findings.extend(probe::run(&config, &self.config, self.to));
        }
        print(&if self.json { check::json(&findings) } else { check::lines(&findings) })?;
        if check::works(&findings) { Ok(()) } else { Err(Failure::Failed("something will not work: see above".into())) }
    }
}

impl Rules {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = load(&self.config)?;
        let Rules { backend, main_router, block_only, .. } = self;
        let options = RulesOptions { backend, main_router, block_only };
        let rules = commands::rules(&config, options).map_err(|e| Failure::Failed(e.to_string()))?;
        for warning in &rules.warnings {
            eprintln!("{warning}");
        }
        print(&rules.text)
    }
}

impl Clear {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = config::load(&self.config);
        if let Err(errors) = &config {
            eprintln!("{errors}\nclearing by the defaults of mark, table and priority");
        }
        let errors = commands::clear(config.as_ref().ok());
        if errors.is_empty() {
            return Ok(());
        }
        Err(Failure::Failed(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
    }
}

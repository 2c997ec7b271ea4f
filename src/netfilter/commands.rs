//! The commands that deal with rules without a daemon: `tproxyd rules`, `tproxyd clear`.

use std::io;
use std::path::Path;

use super::bridges::{Spared, record_beside};
use super::{Facts, Installation, backend, dnsmasq, look, main_router, questions, render, render_block};
use crate::config::{self, Backend, Config, Env};
use crate::error::Error;

/// What the command line asks of `rules`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RulesOptions {
    /// `--backend`.
    pub backend: Option<Backend>,
    /// `--main-router`.
    pub main_router: bool,
    /// `--block-only`.
    pub block_only: bool,
}

/// What `rules` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// For standard output: loadable as it is, policy routes as comments.
    pub text: String,
    /// For standard error: listeners that catch nothing.
    pub warnings: Vec<String>,
}

/// What `run` would install on this machine now.
///
/// # Errors
/// Those of [`look`].
pub fn rules(cfg: &Config, options: RulesOptions) -> Result<Rules, Error> {
    let mut facts = facts_now(cfg)?;
    if let Some(backend) = options.backend {
        facts.backend = backend::in_force(backend);
    }
    if options.main_router {
        return Ok(Rules { text: main_router::render(&cfg.globals, &facts)?, warnings: facts.warnings(cfg) });
    }
    let mut text = String::new();
    if options.block_only {
        text += "# tproxyd: what `on_failure 'block'` drops until the daemon runs.";
        text += load_by(facts.backend);
        text += &render_block(cfg, &facts);
    } else {
        text += "# tproxyd: its rules, and as comments its policy routes.";
        text += load_by(facts.backend);
        text += &Installation::new(&cfg.globals).routes.comments();
        text += &render(cfg, &facts);
    }
    Ok(Rules { text, warnings: facts.warnings(cfg) })
}

fn load_by(backend: Backend) -> &'static str {
    match backend {
        Backend::Iptables => {
            " Load by iptables-restore --noflush, and the\n\
             # same by ip6tables-restore. Sets before: sed -n 's/^#ipset //p' FILE | ipset restore -exist\n"
        }
        _ => " Load by: nft -f FILE\n",
    }
}

/// The facts of this machine, names of servers left out: only the daemon looks those up.
///
/// # Errors
/// Those of [`look`].
pub fn facts_now(cfg: &Config) -> Result<Facts, Error> {
    let (networks, devices) = questions(cfg);
    Ok(Facts::new(cfg, &look(&networks, &devices)?, &[]))
}

/// Takes away everything that `run` installs, whatever state it was left in. Without a configuration (`None`: it can't be
/// read) by the defaults of mark, table and priority. Goes on after an error, and returns all of them.
pub fn clear(cfg: Option<&Config>) -> Vec<Error> {
    let mut errors = dnsmasq::Notes::default().put("", false).err().into_iter().collect::<Vec<_>>();
    // another backend may have been in force before
    let all = |cfg: &Config| Installation { backend: Backend::Auto, ..Installation::new(&cfg.globals) }.remove();
    errors.extend(match cfg {
        Some(cfg) => all(cfg),
        None => match defaults() {
            Some(cfg) => all(&cfg),
            None => backend::remove_rules(Backend::Auto).err().into_iter().collect(),
        },
    });
    let control = cfg.map(|cfg| cfg.globals.control.clone()).or_else(|| Some(defaults()?.globals.control));
    errors.extend(control.and_then(|control| Spared::new(&record_beside(&control)).put_back().err()));
    errors
}

/// The configuration of an empty file.
fn defaults() -> Option<Config> {
    let mut no_files = |_: &Path| Err(io::ErrorKind::NotFound.into());
    config::parse("(defaults)", b"config globals\n", &Env { total_memory: 0, descriptors: u64::MAX }, &mut no_files)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_configuration_the_defaults_of_the_contract_are_cleared() {
        let globals = defaults().unwrap().globals;
        assert_eq!((globals.mark.value, globals.mark.mask), (0x0100_0000, 0x0300_0000));
        assert_eq!((globals.table, globals.rule_priority), (233, 533));
    }

    #[test]
    fn without_a_device_there_is_nothing_to_tell_the_main_router() {
        let cfg = defaults().unwrap();
        let main_router = RulesOptions { main_router: true, ..RulesOptions::default() };
        assert!(rules(&cfg, main_router).unwrap_err().to_string().contains("no listener has a device"));
    }

    #[test]
    fn the_listing_carries_the_policy_routes_as_comments() {
        let cfg = defaults().unwrap();
        let listing = rules(&cfg, RulesOptions::default()).unwrap().text;
        assert!(listing.contains("\n# ip -4 rule add priority 533 fwmark 0x01000000/0x03000000 lookup 233\n"));
        let block = rules(&cfg, RulesOptions { block_only: true, ..RulesOptions::default() }).unwrap().text;
        assert!(!block.contains("ip -4 rule"), "{block}");
    }
}

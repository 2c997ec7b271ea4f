//! The commands that deal with rules without a daemon: `tproxyd rules`, `tproxyd clear`.

use std::io;
use std::path::Path;

use super::{Facts, Installation, dnsmasq, look, main_router, questions, render, render_block};
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
    /// For standard output: loadable by `nft -f` as it is, policy routes as comments.
    pub text: String,
    /// For standard error: listeners that catch nothing.
    pub warnings: Vec<String>,
}

/// What `run` would install on this machine now.
///
/// # Errors
/// What is not in this build, and those of [`look`].
pub fn rules(cfg: &Config, options: RulesOptions) -> Result<Rules, Error> {
    let not_built = |what: &str| Err(Error::new("print the rules", format!("{what} is not in this build")));
    if options.backend.unwrap_or(cfg.globals.backend) == Backend::Iptables {
        return not_built("the iptables backend");
    }
    let facts = facts_now(cfg)?;
    if options.main_router {
        return Ok(Rules { text: main_router::render(&cfg.globals, &facts)?, warnings: facts.warnings(cfg) });
    }
    let mut text = String::new();
    if options.block_only {
        text += "# tproxyd: what `on_failure 'block'` drops until the daemon runs. Load by: nft -f FILE\n";
        text += &render_block(cfg, &facts);
    } else {
        text += "# tproxyd: its rules, and as comments its policy routes. Load by: nft -f FILE\n";
        text += &Installation::new(&cfg.globals).routes.comments();
        text += &render(cfg, &facts);
    }
    Ok(Rules { text, warnings: facts.warnings(cfg) })
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
    errors.extend(match cfg {
        Some(cfg) => Installation::new(&cfg.globals).remove(),
        None => match defaults() {
            Some(cfg) => Installation::new(&cfg.globals).remove(),
            None => super::remove_table().err().into_iter().collect(),
        },
    });
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
    fn what_this_build_lacks_is_said_and_not_ignored() {
        let cfg = defaults().unwrap();
        let iptables = RulesOptions { backend: Some(Backend::Iptables), ..RulesOptions::default() };
        assert!(rules(&cfg, iptables).unwrap_err().to_string().contains("not in this build"));
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

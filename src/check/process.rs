//! What the process needs of this machine: a user, a directory, the daemon that already runs, who has port 53.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::system::Root;
use super::{Finding, Findings, ports};
use crate::config::{Config, Resolver};
use crate::sys::{process, sandbox};

pub(super) fn check(findings: &mut Findings, cfg: &Config, root: &Root, rules_loaded: bool) {
    user(findings, process::is_root(), process::user_ids("tproxyd"));
    if cfg.globals.sandbox {
        sandbox(findings, root);
    }
    let directory = cfg.globals.control.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() && !directory.parent().is_some_and(Path::is_dir) {
        let text = format!("the directory of the control socket, {}, can't be made", directory.display());
        let mend = "name another path in `option control`";
        findings.push(Finding::fail("control", text, mend));
    }
    let runs = UnixStream::connect(&cfg.globals.control).is_ok();
    if runs && !rules_loaded {
        let text = "the daemon runs, but its rules are gone: nothing is intercepted";
        findings.push(Finding::fail("rules_gone", text, "tproxyd reload"));
    } else if runs {
        findings.push(Finding::ok("daemon", "the daemon runs, with its rules in place"));
    }
    if let Some((name, id)) = ports::holder(&root.0.join("proc"), "udp", 53) {
        let text = format!(
            "{name} (process {id}) has UDP port 53; answers in the name of DNS servers leave by a raw socket, so it is in \
             nobody's way"
        );
        findings.push(Finding::ok("port_53", text));
    }
    resolver(findings, cfg);
}

fn user(findings: &mut Findings, is_root: bool, ids: Option<(u32, u32)>) {
    if is_root && ids.is_none() {
        let text = "there is no user tproxyd: the network process would run as root";
        findings.push(Finding::warn("user", text, "the package makes it; by hand: useradd -r -s /bin/false tproxyd"));
    }
}

/// Beside its user, three capabilities and `no_new_privs`.
fn sandbox(findings: &mut Findings, root: &Root) {
    let actions = root.read("proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let text = if !sandbox::BUILT {
        "this build filters no system calls (`option sandbox`): its user, three capabilities and no_new_privs confine it"
    } else if actions.split(' ').any(|action| action == "trap") {
        "the network process gets only the system calls that it needs"
    } else {
        "this kernel filters no system calls (CONFIG_SECCOMP_FILTER): user, three capabilities and no_new_privs confine tproxyd"
    };
    findings.push(Finding::ok("sandbox", text));
}

fn resolver(findings: &mut Findings, cfg: &Config) {
    if let Resolver::File(path) = &cfg.globals.resolver {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let servers = text.lines().filter(|line| line.split_whitespace().next() == Some("nameserver")).count();
        if servers == 0 {
            let text = format!("{} names no name server: outbounds by name can't be reached", path.display());
            let mend = "option resolver '192.0.2.53', the address of a DNS server";
            findings.push(Finding::warn("resolver", text, mend));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::ids;

    #[test]
    fn a_missing_user_is_found_where_root_would_run_it() {
        let found = |is_root, known| {
            let mut findings = Findings::new();
            user(&mut findings, is_root, known);
            ids(&findings)
        };
        assert_eq!(found(true, None), ["user"]);
        assert!(found(true, Some((453, 453))).is_empty() && found(false, None).is_empty());
    }
}

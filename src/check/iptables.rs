//! What the rules need of iptables: has the tools check the real ones, and if they refuse, finds out what is missing.

use super::{Finding, Findings, Severity};
use crate::config::{Config, Mode};
use crate::netfilter::{Facts, iptables, render};

pub(super) fn check(findings: &mut Findings, cfg: &Config, facts: &Facts) {
    let text = render(cfg, facts);
    if text.contains("--match-set")
        && let Err(error) = iptables::check_sets()
    {
        findings.push(Finding::of("rules", Severity::Fail, &error.hint("opkg install ipset kmod-ipt-ipset")));
    }
    let Err(error) = iptables::check(&text, facts.families) else {
        findings.push(Finding::ok("rules", "iptables and the kernel take the rules"));
        return;
    };
    findings.push(Finding::of("rules", Severity::Fail, &error));
    let redirects = cfg.listeners.iter().any(|listener| listener.mode == Mode::Redirect);
    let tproxies = cfg.listeners.iter().any(|listener| listener.mode == Mode::Tproxy);
    for (feature, table, rule, package) in FEATURES {
        let wanted = match feature {
            "TPROXY" => tproxies,
            "REDIRECT" | "CT" => redirects,
            _ => true,
        };
        let small = format!("*{table}\n:tproxyd_check - [0:0]\n-4 -A tproxyd_check {rule}\nCOMMIT\n");
        let v4 = crate::config::Families { v4: true, v6: false };
        if wanted && iptables::check(&small, v4).is_err() {
            let text = format!("iptables or the kernel lacks {feature}");
            findings.push(Finding::fail("feature", text, format!("opkg install {package}")));
        }
    }
}

/// What the rules are made of: its name, the table and a rule that need it, and the packages of OpenWrt that bring it.
const FEATURES: [(&str, &str, &str, &str); 6] = [
    ("TPROXY", "mangle", "-p tcp -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1", "iptables-mod-tproxy"),
    ("REDIRECT", "nat", "-p tcp -j REDIRECT --to-ports 1", "kmod-ipt-nat"),
    ("CT", "raw", "-p udp -j CT --notrack", "kmod-ipt-raw iptables-mod-conntrack-extra"),
    ("addrtype", "mangle", "-m addrtype --dst-type LOCAL -j RETURN", "iptables-mod-extra"),
    ("conntrack", "mangle", "-m conntrack --ctdir REPLY -j RETURN", "kmod-ipt-conntrack"),
    ("CONNMARK", "mangle", "-j CONNMARK --set-xmark 0x1/0x1", "iptables-mod-conntrack-extra"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_the_small_rules_is_one_that_iptables_takes() {
        for (feature, table, rule, _) in FEATURES {
            let small = format!("*{table}\n:x - [0:0]\n-A x {rule}\nCOMMIT\n");
            let mut command = std::process::Command::new("unshare");
            let script = format!("iptables-restore --noflush --test <<'.'\n{small}.\n");
            let done = command.args(["-Urnm", "sh", "-c", &script]).output().unwrap();
            assert!(done.status.success(), "{feature}: {}", String::from_utf8_lossy(&done.stderr));
        }
    }
}

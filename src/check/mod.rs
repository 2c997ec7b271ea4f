//! `tproxyd check`: what will not work on this machine, and the command that mends it. Changes nothing.

mod ports;

use std::fmt::Write;
use std::path::Path;

use crate::config::{Config, Mode};
use crate::error::Error;
use crate::netfilter::{Facts, Installation, commands, conntrack, load, render, survey};
use crate::sys::process::{self, Capability};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, but perhaps not as meant.
    Warn,
    /// Will not work.
    Fail,
}

impl Severity {
    /// The word in front of a line, and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warn => "warn",
            Severity::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub text: String,
    /// A command, or an option to change, that mends it.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(text: impl Into<String>) -> Finding {
        Finding { severity: Severity::Ok, text: text.into(), mend: None }
    }

    fn new(severity: Severity, text: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { severity, text: text.into(), mend: Some(mend.into()) }
    }

    fn of(severity: Severity, error: &Error) -> Finding {
        let (what, why, hint) = error.parts();
        Finding { severity, text: format!("cannot {what}: {why}"), mend: hint.map(str::to_string) }
    }
}

/// What the tables of a configuration take; the daemon knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Descriptors without which the daemon does not start.
    pub descriptors: u64,
    /// Descriptors with which every table can be filled.
    pub descriptors_wanted: u64,
    /// Most memory of the process, in bytes.
    pub memory: u64,
}

/// What can be said of the configuration alone: `check --config-only`.
pub fn configuration(cfg: &Config, needs: Needs) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("the configuration can be read")];
    findings.extend(cfg.warnings.iter().map(|warning| Finding {
        severity: Severity::Warn,
        text: warning.clone(),
        mend: None,
    }));
    if !cfg.globals.enabled {
        let mend = "uci set tproxyd.globals.enabled=1; uci commit tproxyd";
        findings.push(Finding::new(Severity::Warn, "`option enabled` is 0: `run` does nothing", mend));
    }
    let (tcp, udp) = (cfg.globals.tcp_sessions, cfg.globals.udp_sessions);
    let mebibytes = needs.memory.div_ceil(1 << 20);
    findings
        .push(Finding::ok(format!("at most {mebibytes} MB of memory, for {tcp} TCP sessions and {udp} UDP mappings")));
    findings
}

/// What can be said of this machine.
pub fn machine(cfg: &Config, needs: Needs) -> Vec<Finding> {
    let mut findings = Vec::new();
    capabilities(&mut findings);
    // Raising it changes this process only, and it ends soon.
    let limit = process::raise_descriptor_limit(needs.descriptors_wanted).unwrap_or(0);
    findings.push(descriptors(limit, needs));
    match commands::facts_now(cfg) {
        Ok(facts) => {
            let mend = "tproxyd reload, once it is up";
            findings.extend(facts.warnings(cfg).into_iter().map(|text| Finding::new(Severity::Warn, text, mend)));
            rules(&mut findings, cfg, &facts);
            bridges(&mut findings, &facts);
        }
        Err(error) => findings.push(Finding::of(Severity::Fail, &error)),
    }
    routes(&mut findings, cfg);
    if let Err(error) = conntrack::probe(cfg.globals.mark) {
        // by it alone the process learns where a redirected datagram was going
        let needed = cfg.listeners.iter().any(|listener| listener.mode == Mode::Redirect && listener.protos.udp);
        findings.push(Finding::of(if needed { Severity::Fail } else { Severity::Warn }, &error));
    }
    kept_sources(&mut findings, cfg);
    ports::check(&mut findings, cfg);
    findings
}

/// True if nothing was found that will not work.
pub fn works(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity != Severity::Fail)
}

/// One line for each: `ok|warn|fail  text`, and what mends it below.
pub fn lines(findings: &[Finding]) -> String {
    let mut out = String::new();
    for Finding { severity, text, mend } in findings {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{:<4}  {text}", severity.word());
        if let Some(mend) = mend {
            let _ = writeln!(out, "      → {mend}");
        }
    }
    out
}

/// A list of objects with `severity`, `text`, `mend` (or null).
pub fn json(findings: &[Finding]) -> String {
    let object = |finding: &Finding| {
        let mend = finding.mend.as_deref().map_or("null".to_string(), json_string);
        format!(r#"{{"severity":"{}","text":{},"mend":{mend}}}"#, finding.severity.word(), json_string(&finding.text))
    };
    let objects: Vec<_> = findings.iter().map(object).collect();
    format!("[{}]", objects.join(","))
}

/// RFC 8259 section 7.
fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn capabilities(findings: &mut Vec<Finding>) {
    let name = |capability| match capability {
        Capability::NetAdmin => "CAP_NET_ADMIN",
        Capability::NetRaw => "CAP_NET_RAW",
        Capability::NetBindService => "CAP_NET_BIND_SERVICE",
    };
    let missing: Vec<_> = process::KEPT.into_iter().filter(|c| !process::has_capability(*c)).map(name).collect();
    findings.push(if missing.is_empty() {
        Finding::ok("capabilities are there")
    } else {
        Finding::new(
            Severity::Fail,
            format!("{} missing", missing.join(", ")),
            "run tproxyd as root, or by its init script",
        )
    });
}

fn descriptors(limit: u64, needs: Needs) -> Finding {
    let Needs { descriptors, descriptors_wanted, .. } = needs;
    let mend = "raise it (`procd_set_param limits nofile`, `ulimit -n`), or lower tcp_sessions and udp_sessions";
    if limit < descriptors {
        let text = format!("the descriptor limit is {limit}, the tables need {descriptors}");
        Finding::new(Severity::Fail, text, mend)
    } else if limit < descriptors_wanted {
        let text = format!("the descriptor limit is {limit}; with all tables full {descriptors_wanted} would be used");
        Finding::new(Severity::Warn, text, mend)
    } else {
        Finding::ok(format!("{descriptors_wanted} descriptors can be had"))
    }
}

/// Has kernel and nft check the real rules; if they refuse, finds out by small ones what is missing.
fn rules(findings: &mut Vec<Finding>, cfg: &Config, facts: &Facts) {
    let Err(error) = load::check(&render(cfg, facts)) else {
        findings.push(Finding::ok("nft and the kernel take the rules"));
        return;
    };
    findings.push(Finding::of(Severity::Fail, &error));
    let wanted = |kind: &str| match kind {
        NAT => cfg.listeners.iter().any(|listener| listener.mode == Mode::Redirect),
        _ => cfg.listeners.iter().any(|listener| listener.mode == Mode::Tproxy),
    };
    for (feature, kind, rule, package) in FEATURES.into_iter().filter(|feature| wanted(feature.1)) {
        if load::check(&small_rules(kind, rule)).is_err() {
            let text = format!("nft or the kernel lacks {feature}");
            findings.push(Finding::new(Severity::Fail, text, format!("install {package}")));
        }
    }
}

fn routes(findings: &mut Vec<Finding>, cfg: &Config) {
    let routes = Installation::new(&cfg.globals).routes;
    match routes.clashes() {
        Ok(clashes) if clashes.is_empty() => {
            let text =
                format!("routing table {} and rule priority {} are free, or ours", routes.table, routes.priority);
            findings.push(Finding::ok(text));
        }
        Ok(clashes) => {
            let mend = "set `option table` and `option rule_priority` to what `ip rule` does not show";
            findings.extend(clashes.into_iter().map(|clash| Finding::new(Severity::Fail, clash, mend)));
        }
        Err(error) => findings.push(Finding::of(Severity::Fail, &error)),
    }
}

/// An address that masquerading replaces is kept for nothing.
fn kept_sources(findings: &mut Vec<Finding>, cfg: &Config) {
    let Some(outbound) = cfg.outbounds.iter().find(|outbound| outbound.keep_source) else { return };
    if survey::masquerades().unwrap_or(false) {
        let text = format!(
            "outbound '{}' keeps the clients' addresses, and this router masquerades: where it does, the server sees the \
             router's address all the same",
            outbound.name
        );
        let mend = "except these flows from masquerading, or drop `option keep_source`";
        findings.push(Finding::new(Severity::Warn, text, mend));
    }
}

/// With br_netfilter calling into iptables, TPROXY on a bridge fails silently (kernel.md section 3).
fn bridges(findings: &mut Vec<Finding>, facts: &Facts) {
    let bridged =
        facts.devices.iter().flatten().find(|name| Path::new("/sys/class/net").join(name).join("bridge").exists());
    let Some(name) = bridged else { return };
    for sysctl in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let value = std::fs::read_to_string(Path::new("/proc/sys/net/bridge").join(sysctl)).unwrap_or_default();
        if value.trim() == "1" {
            let text = format!("{sysctl} is 1: nothing that comes through bridge {name} would reach the process");
            findings.push(Finding::new(Severity::Fail, text, format!("sysctl -w net.bridge.{sysctl}=0")));
        }
    }
}

fn small_rules(kind: &str, rule: &str) -> String {
    format!(
        "add table inet tproxyd_check\n\
         add chain inet tproxyd_check c {{ type {kind}; }}\n\
         add rule inet tproxyd_check c {rule}\n"
    )
}

/// What the rules are made of: its name, the chain and a rule that need it, and the package of OpenWrt that brings it.
const FEATURES: [(&str, &str, &str, &str); 6] = [
    ("tproxy", FILTER, "meta nfproto ipv4 meta l4proto tcp tproxy ip to :1", "kmod-nft-tproxy"),
    ("redirect", NAT, "meta l4proto tcp redirect to :1", "kmod-nft-nat"),
    ("fib", FILTER, "fib daddr type local", "kmod-nft-fib"),
    ("fib", NAT, "fib daddr type local", "kmod-nft-fib"),
    ("connection tracking marks", FILTER, "ct state new ct mark set 1", "kmod-nft-core"),
    ("matches on packet marks", FILTER, "meta mark & 1 == 1", "kmod-nft-core"),
];
const FILTER: &str = "filter hook prerouting priority mangle";
const NAT: &str = "nat hook prerouting priority -105";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_for_people_and_json_for_programs() {
        let findings = [Finding::ok("fine"), Finding::new(Severity::Fail, "a \"b\"\n\u{1}", "do\\it")];
        assert_eq!(lines(&findings[..1]), "ok    fine\n");
        assert_eq!(
            json(&findings),
            r#"[{"severity":"ok","text":"fine","mend":null},{"severity":"fail","text":"a \"b\"\n\u0001","mend":"do\\it"}]"#
        );
        assert!(works(&findings[..1]) && !works(&findings));
    }

    #[test]
    fn each_feature_is_there_where_the_tests_run() {
        for (feature, kind, rule, _) in FEATURES {
            if process::has_capability(Capability::NetAdmin) {
                assert!(load::check(&small_rules(kind, rule)).is_ok(), "{feature}");
            }
        }
    }

    #[test]
    fn too_few_descriptors_fail_and_a_few_too_few_warn() {
        let needs = Needs { descriptors: 1000, descriptors_wanted: 2000, memory: 0 };
        let severities = [999, 1000, 2000].map(|limit| descriptors(limit, needs).severity);
        assert_eq!(severities, [Severity::Fail, Severity::Warn, Severity::Ok]);
    }
}

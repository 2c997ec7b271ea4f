//! `tproxyd check`: what will not work on this machine, and the command that mends it. Changes nothing.

mod clashes;
mod devices;
mod firewall;
mod iptables;
mod names;
mod outbounds;
mod ports;
mod process;
mod ruleset;
mod system;
mod ways_back;

use std::fmt::Write;

use crate::config::{Backend, Config, Mode};
use crate::error::Error;
use crate::netfilter::{Facts, commands, conntrack, counters, load, render, survey};
use crate::sys::process::{self as own, Capability};
use system::Root;

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
    /// What was looked at, for programs: README.md lists them.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub text: String,
    /// A command, or an option to change, that mends it.
    pub mend: Option<String>,
}

/// What was found so far.
type Findings = Vec<Finding>;

impl Finding {
    pub(crate) fn ok(id: &'static str, text: impl Into<String>) -> Finding {
        Finding { id, severity: Severity::Ok, text: text.into(), mend: None }
    }

    pub(crate) fn warn(id: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { id, severity: Severity::Warn, text: text.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn fail(id: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { severity: Severity::Fail, ..Finding::warn(id, text, mend) }
    }

    fn of(id: &'static str, severity: Severity, error: &Error) -> Finding {
        let (what, why, hint) = error.parts();
        Finding { id, severity, text: format!("cannot {what}: {why}"), mend: hint.map(str::to_string) }
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
    /// Memory of the kernel's for full tables, about, in bytes.
    pub kernel_memory: u64,
}

/// What can be said of the configuration alone: `check --config-only`.
pub fn configuration(cfg: &Config, needs: Needs) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("configuration", "the configuration can be read")];
    let mend = "the README says what each option means";
    findings.extend(cfg.warnings.iter().map(|warning| Finding::warn("configuration", warning.clone(), mend)));
    if !cfg.globals.enabled {
        let mend = "uci set tproxyd.globals.enabled=1; uci commit tproxyd";
        findings.push(Finding::warn("enabled", "`option enabled` is 0: `run` does nothing", mend));
    }
    let (tcp, udp) = (cfg.globals.tcp_sessions, cfg.globals.udp_sessions);
    let mebibytes = needs.memory.div_ceil(1 << 20);
    let kernel = needs.kernel_memory.div_ceil(1 << 20);
    let text = format!(
        "at most {mebibytes} MB of memory, for {tcp} TCP sessions and {udp} UDP mappings; full and quiet, these take about \
         {kernel} MB of the kernel's"
    );
    findings.push(Finding::ok("bound", text));
    findings
}

/// What can be said of this machine.
pub fn machine(cfg: &Config, needs: Needs) -> Vec<Finding> {
    let mut findings = Findings::new();
    let root = Root("/".into());
    capabilities(&mut findings);
    // Raising it changes this process only, and it ends soon.
    let limit = own::raise_descriptor_limit(needs.descriptors_wanted).unwrap_or(0);
    findings.push(descriptors(limit, needs));
    let facts = commands::facts_now(cfg);
    let devices: Vec<String> = match &facts {
        Ok(facts) => facts.devices.iter().flatten().cloned().collect(),
        Err(_) => Vec::new(),
    };
    let by_tproxy = facts.as_ref().map(|facts| facts.by_tproxy(cfg)).unwrap_or_default();
    system::check(&mut findings, cfg, needs, (&devices, &by_tproxy), &root);
    match &facts {
        Ok(facts) => {
            let mend = "tproxyd reload, once it is up";
            findings.extend(facts.warnings(cfg).into_iter().map(|text| Finding::warn("network", text, mend)));
            rules(&mut findings, cfg, facts);
            devices::check(&mut findings, cfg, facts, &root);
            ways_back::check(&mut findings, cfg, facts);
        }
        Err(error) => findings.push(Finding::of("network", Severity::Fail, error)),
    }
    clashes::check(&mut findings, cfg);
    firewall::check(&mut findings, cfg, &devices, &root);
    if let Err(error) = conntrack::probe(cfg.globals.mark) {
        // by it alone the process learns where a redirected datagram was going
        let needed = cfg.listeners.iter().any(|listener| listener.mode == Mode::Redirect && listener.protos.udp);
        let severity = if needed { Severity::Fail } else { Severity::Warn };
        findings.push(Finding::of("conntrack", severity, &error));
    }
    kept_sources(&mut findings, cfg);
    names::check(&mut findings, cfg);
    ports::check(&mut findings, cfg);
    let loaded = match &facts {
        Ok(facts) if facts.backend == Backend::Iptables => {
            crate::netfilter::iptables::count(facts.families).is_ok_and(|rules| rules > 0)
        }
        _ => counters::packets().is_ok_and(|counters| !counters.is_empty()),
    };
    process::check(&mut findings, cfg, &root, loaded);
    outbounds::check(&mut findings, cfg);
    findings
}

/// True if nothing was found that will not work.
pub fn works(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity != Severity::Fail)
}

/// One line for each: `ok|warn|fail  text`, and what mends it below.
pub fn lines(findings: &[Finding]) -> String {
    let mut out = String::new();
    for Finding { severity, text, mend, .. } in findings {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{:<4}  {text}", severity.word());
        if let Some(mend) = mend {
            let _ = writeln!(out, "      → {mend}");
        }
    }
    out
}

/// A list of objects with `id`, `severity`, `text`, `mend` (or null).
pub fn json(findings: &[Finding]) -> String {
    let object = |finding: &Finding| {
        let mend = finding.mend.as_deref().map_or("null".to_string(), json_string);
        let (severity, text) = (finding.severity.word(), json_string(&finding.text));
        format!(r#"{{"id":"{}","severity":"{severity}","text":{text},"mend":{mend}}}"#, finding.id)
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

fn capabilities(findings: &mut Findings) {
    let name = |capability| match capability {
        Capability::NetAdmin => "CAP_NET_ADMIN",
        Capability::NetRaw => "CAP_NET_RAW",
        Capability::NetBindService => "CAP_NET_BIND_SERVICE",
    };
    let missing: Vec<_> = own::KEPT.into_iter().filter(|c| !own::has_capability(*c)).map(name).collect();
    findings.push(if missing.is_empty() {
        Finding::ok("capabilities", "capabilities are there")
    } else {
        let text = format!("{} missing", missing.join(", "));
        Finding::fail("capabilities", text, "run tproxyd as root, or by its init script")
    });
}

fn descriptors(limit: u64, needs: Needs) -> Finding {
    let Needs { descriptors, descriptors_wanted, .. } = needs;
    let mend = "raise it (`procd_set_param limits nofile`, `ulimit -n`), or lower tcp_sessions and udp_sessions";
    if limit < descriptors {
        let text = format!("the descriptor limit is {limit}, the tables need {descriptors}");
        Finding::fail("descriptors", text, mend)
    } else if limit < descriptors_wanted {
        let text = format!("the descriptor limit is {limit}; with all tables full {descriptors_wanted} would be used");
        Finding::warn("descriptors", text, mend)
    } else {
        Finding::ok("descriptors", format!("{descriptors_wanted} descriptors can be had"))
    }
}

/// Has kernel and nft check the real rules; if they refuse, finds out by small ones what is missing.
fn rules(findings: &mut Findings, cfg: &Config, facts: &Facts) {
    if facts.backend == Backend::Iptables {
        return iptables::check(findings, cfg, facts);
    }
    let Err(error) = load::check(&render(cfg, facts)) else {
        findings.push(Finding::ok("rules", "nft and the kernel take the rules"));
        return;
    };
    findings.push(Finding::of("rules", Severity::Fail, &error));
    let wanted = |kind: &str| match kind {
        NAT => cfg.listeners.iter().any(|listener| listener.mode == Mode::Redirect),
        _ => cfg.listeners.iter().any(|listener| listener.mode == Mode::Tproxy),
    };
    for (feature, kind, rule, package) in FEATURES.into_iter().filter(|feature| wanted(feature.1)) {
        if load::check(&small_rules(kind, rule)).is_err() {
            let text = format!("nft or the kernel lacks {feature}");
            findings.push(Finding::fail("feature", text, format!("opkg install {package}")));
        }
    }
}

/// An address that masquerading replaces is kept for nothing.
fn kept_sources(findings: &mut Findings, cfg: &Config) {
    let Some(outbound) = cfg.outbounds.iter().find(|outbound| outbound.keep_source) else { return };
    if survey::masquerades().unwrap_or(false) {
        let text = format!(
            "outbound '{}' keeps the clients' addresses, and this router masquerades: where it does, the server sees the \
             router's address all the same",
            outbound.name
        );
        let mend = "except these flows from masquerading, or drop `option keep_source`";
        findings.push(Finding::warn("kept_source", text, mend));
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
pub(super) mod tests {
    use super::*;
    use crate::config::{Env, parse};

    /// The configuration that most machines have.
    pub(super) fn config() -> Config {
        parsed(
            "config globals\n\toption tcp_sessions '1000'\n\toption udp_sessions '1000'\n\
                config listener 'lan'\n\toption port '2333'\n\tlist device 'br-lan'\n",
        )
    }

    pub(super) fn parsed(text: &str) -> Config {
        let env = Env { total_memory: 256 << 20, descriptors: 1 << 20 };
        parse("f", text.as_bytes(), &env, &mut |_| Err(std::io::ErrorKind::NotFound.into())).unwrap()
    }

    /// What was found that is not as it should be.
    pub(super) fn ids(findings: &[Finding]) -> Vec<&'static str> {
        assert!(findings.iter().all(|finding| finding.severity == Severity::Ok || finding.mend.is_some()));
        findings.iter().filter(|finding| finding.severity != Severity::Ok).map(|finding| finding.id).collect()
    }

    /// A `/proc` and `/sys` of a test's own.
    pub(super) struct Tree(Root);

    impl std::ops::Deref for Tree {
        type Target = Root;

        fn deref(&self) -> &Root {
            &self.0
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0.0).unwrap();
        }
    }

    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("tproxyd-check-{}-{n}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Tree(Root(root))
    }

    #[test]
    fn what_the_configuration_alone_shows_is_found() {
        let needs = Needs { descriptors: 1, descriptors_wanted: 2, memory: 0, kernel_memory: 0 };
        let found = |text: &str| ids(&configuration(&parsed(text), needs));
        assert_eq!(found("config globals\n\toption enabled '0'\n"), ["configuration", "enabled"], "and no listener");
        let two = "config listener 'a'\n\toption port '1'\n\tlist device 'lan0'\n\
                   config listener 'b'\n\toption port '2'\n\tlist device 'lan0'\n";
        assert_eq!(found(two), ["configuration"], "they overlap");
        assert!(found(&two.replacen("'lan0'", "'lan1'", 1)).is_empty());
    }

    #[test]
    fn findings_are_lines_for_people_and_json_for_programs() {
        let findings = [Finding::ok("x", "fine"), Finding::fail("y", "a \"b\"\n\u{1}", "do\\it")];
        assert_eq!(lines(&findings[..1]), "ok    fine\n");
        assert_eq!(
            json(&findings),
            r#"[{"id":"x","severity":"ok","text":"fine","mend":null},{"id":"y","severity":"fail","text":"a \"b\"\n\u0001","mend":"do\\it"}]"#
        );
        assert!(works(&findings[..1]) && !works(&findings));
    }

    #[test]
    fn each_feature_is_there_where_the_tests_run() {
        for (feature, kind, rule, _) in FEATURES {
            if own::has_capability(Capability::NetAdmin) {
                assert!(load::check(&small_rules(kind, rule)).is_ok(), "{feature}");
            }
        }
    }

    #[test]
    fn too_few_descriptors_fail_and_a_few_too_few_warn() {
        let needs = Needs { descriptors: 1000, descriptors_wanted: 2000, memory: 0, kernel_memory: 0 };
        let severities = [999, 1000, 2000].map(|limit| descriptors(limit, needs).severity);
        assert_eq!(severities, [Severity::Fail, Severity::Warn, Severity::Ok]);
    }
}

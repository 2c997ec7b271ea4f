//! The kernel and this machine: what its settings do to intercepted packets, and whether there is enough of everything.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Finding, Findings, Needs};
use crate::config::{Config, Moment, load};
use crate::netfilter::routes;

/// Where `/proc` and `/sys` are.
pub(super) struct Root(pub(super) PathBuf);

impl Root {
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.0.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.0.join(path).exists()
    }
}

pub(super) fn check(
    findings: &mut Findings,
    cfg: &Config,
    needs: Needs,
    (devices, by_tproxy): (&[String], &[String]),
    root: &Root,
) {
    version(findings, root);
    memory(findings, needs, root);
    conntrack(findings, cfg, root);
    forwarding(findings, cfg, root);
    bridges(findings, by_tproxy, root);
    rp_filter(findings, devices, root, &routes::default_devices().unwrap_or_default());
    clock(findings, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    hours(findings, cfg, &load::moment(), load::has_zone());
}

/// OpenWrt 21.02 has 5.4; nft's tproxy came with 4.19.
fn version(findings: &mut Findings, root: &Root) {
    let release = root.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if release.is_empty() || version >= (5, 4) {
        findings.push(Finding::ok("kernel", format!("Linux {release}")));
    } else if version < (4, 19) {
        findings.push(Finding::fail(
            "kernel",
            format!("Linux {release} has no TPROXY for nft"),
            "upgrade to OpenWrt 22.03",
        ));
    } else {
        let text = format!("Linux {release} is older than any that was tried (5.4)");
        findings.push(Finding::warn("kernel", text, "upgrade to OpenWrt 22.03"));
    }
}

fn memory(findings: &mut Findings, needs: Needs, root: &Root) {
    let meminfo = root.read("proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let Some(available) = field("MemAvailable:") else { return };
    let (bound, free) = (needs.memory.div_ceil(1 << 20), available >> 20);
    let mend = "lower tcp_sessions, udp_sessions or relay_memory";
    if needs.memory > available {
        let text = format!("the tables can take {bound} MB, and {free} MB of memory are free");
        findings.push(Finding::fail("memory", text, mend));
    } else if needs.memory > available / 2 {
        let text = format!("the tables can take {bound} MB of the {free} MB of memory that are free");
        findings.push(Finding::warn("memory", text, mend));
    } else {
        findings.push(Finding::ok("memory", format!("{free} MB of memory are free for {bound} MB")));
    }
}

/// A relayed flow has two entries: the client's and ours.
fn conntrack(findings: &mut Findings, cfg: &Config, root: &Root) {
    let Some(most) = root.number("proc/sys/net/netfilter/nf_conntrack_max") else { return };
    let wanted = 2 * (u64::from(cfg.globals.tcp_sessions) + u64::from(cfg.globals.udp_sessions));
    if most < wanted {
        let text = format!("connection tracking has room for {most} entries; full tables need {wanted}");
        findings.push(Finding::warn(
            "conntrack_size",
            text,
            format!("sysctl -w net.netfilter.nf_conntrack_max={wanted}"),
        ));
    }
    if let Some(count) = root.number("proc/sys/net/netfilter/nf_conntrack_count")
        && count > most / 10 * 9
    {
        let text = format!("connection tracking is nearly full: {count} of {most} entries, and new flows will be lost");
        let mend = format!("sysctl -w net.netfilter.nf_conntrack_max={}", most.max(8192) * 2);
        findings.push(Finding::fail("conntrack_full", text, mend));
    }
}

fn forwarding(findings: &mut Findings, cfg: &Config, root: &Root) {
    let v4 = cfg.listeners.iter().any(|listener| listener.families.v4);
    let v6 = cfg.listeners.iter().any(|listener| listener.families.v6);
    for (wanted, file, sysctl) in [
        (v4, "proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        (v6, "proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        if wanted && root.number(file) == Some(0) {
            let text =
                format!("{sysctl} is 0: what is not intercepted goes nowhere, least of all while tproxyd is off");
            findings.push(Finding::warn("forwarding", text, format!("sysctl -w {sysctl}=1")));
        }
    }
}

/// With br_netfilter calling into iptables, TPROXY on a bridge fails silently (kernel.md section 3).
fn bridges(findings: &mut Findings, devices: &[String], root: &Root) {
    let is_bridge = |name: &&String| {
        let place = root.0.join("sys/class/net").join(name);
        let mut below = std::fs::read_dir(&place).into_iter().flatten().flatten();
        place.join("bridge").exists()
            || below.any(|entry| {
                entry.file_name().to_string_lossy().starts_with("lower_") && entry.path().join("bridge").exists()
            })
    };
    let Some(name) = devices.iter().find(is_bridge) else { return };
    let mut on = false;
    for sysctl in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        if root.number(&format!("proc/sys/net/bridge/{sysctl}")) == Some(1) {
            on = true;
            let text = format!(
                "{sysctl} is 1, which takes away what TPROXY catches on bridge {name}: while tproxyd runs it is 0, and on \
                 for each other bridge instead"
            );
            let mend = format!("sysctl -w net.bridge.{sysctl}=0, or `option mode 'redirect'`, which works with it");
            findings.push(Finding::warn("bridge_nf", text, mend));
        }
    }
    if !on && root.has("sys/class/net/docker0") {
        let text = format!(
            "docker is here: when it starts it turns bridge-nf-call-iptables on, and bridge {name} is cut off for 10 s"
        );
        let mend = "keep it 0: net.bridge.bridge-nf-call-iptables=0 in /etc/sysctl.d, applied after docker starts";
        findings.push(Finding::warn("docker", text, mend));
    }
}

/// Strict reverse path filtering drops answers that come in by another way than the route out. The stricter of the
/// device's and everybody's setting holds (ip-sysctl.rst).
fn rp_filter(findings: &mut Findings, devices: &[String], root: &Root, ways_out: &[String]) {
    if ways_out.len() < 2 {
        return;
    }
    let value = |name: &str| root.number(&format!("proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    let all = value("all");
    for name in ways_out.iter().chain(devices) {
        if all.max(value(name)) == 1 {
            let text = format!(
                "rp_filter is strict on {name}, and there are {} ways out: answers that come by the other are lost",
                ways_out.len()
            );
            let mend = format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2 net.ipv4.conf.all.rp_filter=0");
            findings.push(Finding::warn("rp_filter", text, mend));
        }
    }
}

/// Before this the program was not there. A router without a battery begins at 1970, or where it was switched off.
const FIRST_POSSIBLE: u64 = 1_764_000_000;

fn clock(findings: &mut Findings, now: u64) {
    if now < FIRST_POSSIBLE {
        let text = "the clock is wrong: rules by time are wrong with it, and 2022 ciphers are refused";
        findings.push(Finding::warn("clock", text, "service sysntpd restart; ntpd -q -p pool.ntp.org"));
    } else {
        findings.push(Finding::ok("clock", "the clock is set"));
    }
}

/// Rules by the time of day need a clock, and to know where they are.
fn hours(findings: &mut Findings, cfg: &Config, now: &Moment, has_zone: bool) {
    let timed = cfg.rules.iter().filter(|rule| rule.active && rule.schedule.is_some()).count();
    let local = cfg.rules.iter().any(|rule| rule.active && rule.schedule.is_some_and(|schedule| !schedule.utc));
    if timed == 0 {
        return;
    }
    if !now.is_known() {
        let text = format!(
            "{timed} rules go by the time, and the clock is not set: until it is, those that lead to reject or drop hold, \
             and the others don't"
        );
        findings.push(Finding::warn("hours", text, "service sysntpd restart; ntpd -q -p pool.ntp.org"));
    } else if local && !has_zone {
        let text = "rules go by the local time, and no time zone is set: they go by UTC";
        let mend = "uci set system.@system[0].timezone='CET-1CEST,M3.5.0,M10.5.0/3'; uci commit system; service system \
                    reload; or `option utc_time '1'`";
        findings.push(Finding::warn("hours", text, mend));
    } else {
        findings.push(Finding::ok("hours", format!("the clock is set, and {timed} rules go by it")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{config, ids, parsed, tree};

    const NEEDS: Needs = Needs { descriptors: 1, descriptors_wanted: 2, memory: 20 << 20, kernel_memory: 0 };

    fn meminfo(available_kb: u64) -> String {
        format!("MemTotal:      60000 kB\nMemFree:  1 kB\nMemAvailable:   {available_kb} kB\n")
    }

    #[test]
    fn a_bound_beyond_the_free_memory_fails_and_one_beyond_half_of_it_warns() {
        for (available, severity) in [(19 << 10, "fail"), (30 << 10, "warn"), (50 << 10, "ok")] {
            let mut findings = Findings::new();
            memory(&mut findings, NEEDS, &tree(&[("proc/meminfo", &meminfo(available))]));
            assert_eq!(findings.iter().map(|f| f.severity.word()).collect::<Vec<_>>(), [severity], "{available}");
        }
    }

    #[test]
    fn a_kernel_that_is_too_old_is_named() {
        for (release, severity) in [("4.14.275", "fail"), ("4.19.1-rc2", "warn"), ("5.4.0", "ok"), ("6.12.3+", "ok")] {
            let mut findings = Findings::new();
            version(&mut findings, &tree(&[("proc/sys/kernel/osrelease", release)]));
            assert_eq!(findings[0].severity.word(), severity, "{release}");
        }
    }

    #[test]
    fn connection_tracking_that_is_too_small_or_nearly_full_is_found() {
        let found = |most: &str, count: &str| {
            let mut findings = Findings::new();
            let root = tree(&[
                ("proc/sys/net/netfilter/nf_conntrack_max", most),
                ("proc/sys/net/netfilter/nf_conntrack_count", count),
            ]);
            conntrack(&mut findings, &config(), &root);
            ids(&findings)
        };
        assert_eq!(found("1000", "3"), ["conntrack_size"]);
        assert_eq!(found("1000000", "990000"), ["conntrack_full"]);
        assert!(found("1000000", "3").is_empty());
    }

    #[test]
    fn a_clock_before_this_program_is_found() {
        let mut findings = Findings::new();
        clock(&mut findings, 86_400);
        clock(&mut findings, FIRST_POSSIBLE);
        assert_eq!(findings.iter().map(|f| f.severity.word()).collect::<Vec<_>>(), ["warn", "ok"]);
    }

    #[test]
    fn rules_by_the_time_want_a_clock_and_a_zone() {
        let found = |options: &str, utc: i64, has_zone: bool| {
            let cfg = parsed(&format!("config rule\n\toption outbound 'reject'\n{options}"));
            let mut findings = Findings::new();
            hours(&mut findings, &cfg, &Moment { utc, ..Moment::default() }, has_zone);
            findings.iter().map(|f| (f.id, f.severity.word())).collect::<Vec<_>>()
        };
        let (night, by_utc) = ("\toption start_time '21:00'\n", "\toption utc_time '1'\n");
        let set = FIRST_POSSIBLE as i64;
        assert_eq!(found("", 40, false), []);
        assert_eq!(found(night, 40, true), [("hours", "warn")]);
        assert_eq!(found(night, set, false), [("hours", "warn")]);
        assert_eq!(found(night, set, true), [("hours", "ok")]);
        assert_eq!(found(&format!("{night}{by_utc}"), set, false), [("hours", "ok")]);
    }

    #[test]
    fn bridges_that_iptables_sees_and_docker_that_would_do_it_are_found() {
        let found = |files: &[(&str, &str)]| {
            let mut findings = Findings::new();
            bridges(&mut findings, &["eth9".into(), "br-lan".into()], &tree(files));
            ids(&findings)
        };
        let bridge = ("sys/class/net/br-lan/bridge/x", "");
        let call = ("proc/sys/net/bridge/bridge-nf-call-iptables", "1");
        let docker = ("sys/class/net/docker0/x", "");
        assert_eq!(found(&[bridge, call]), ["bridge_nf"]);
        assert_eq!(found(&[bridge, docker]), ["docker"]);
        assert!(found(&[call, docker]).is_empty() && found(&[bridge]).is_empty());
    }

    #[test]
    fn strict_reverse_path_filtering_is_found_where_there_are_two_ways_out() {
        let root = tree(&[
            ("proc/sys/net/ipv4/conf/all/rp_filter", "0"),
            ("proc/sys/net/ipv4/conf/wan/rp_filter", "1"),
            ("proc/sys/net/ipv4/conf/wanb/rp_filter", "2"),
        ]);
        let found = |ways_out: &[&str]| {
            let mut findings = Findings::new();
            let ways_out: Vec<String> = ways_out.iter().map(ToString::to_string).collect();
            rp_filter(&mut findings, &["lan".into()], &root, &ways_out);
            ids(&findings)
        };
        assert_eq!(found(&["wan", "wanb"]), ["rp_filter"]);
        assert!(found(&["wan"]).is_empty());
    }
}

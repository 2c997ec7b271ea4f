//! Golden files: the whole text for typical configurations, loaded by nft where that is allowed.

use std::path::{Path, PathBuf};

use super::*;
use crate::config::*;

mod iptables;

const BOTH: Protos = Protos { tcp: true, udp: true };
const ANY: Families = Families { v4: true, v6: true };

fn config(listeners: Vec<Listener>) -> Config {
    Config {
        globals: Globals {
            client_sessions: 0,
            enabled: true,
            log_level: log::LevelFilter::Info,
            default: Target::Direct,
            kernel_verdicts: false,
            on_failure: OnFailure::Direct,
            mark: Mark { value: 0x0100_0000, mask: 0x0300_0000 },
            self_mark: Mark { value: 0x0200_0000, mask: 0x0300_0000 },
            table: 233,
            rule_priority: 533,
            backend: Backend::Auto,
            tcp_sessions: 100,
            udp_sessions: 100,
            relay_memory: 1 << 20,
            control: PathBuf::from("/var/run/tproxyd/control.sock"),
            sniff_port: Vec::new(),
            sniff_timeout: std::time::Duration::ZERO,
            metrics: None,
            drop_stale: false,
            reclassify: false,
            dnsmasq: false,
            on_event: None,
            kernel_set_max: 1000,
            resolver: Resolver::File("/etc/resolv.conf".into()),
            sandbox: true,
        },
        listeners,
        outbounds: Vec::new(),
        sets: Vec::new(),
        rules: Vec::new(),
        warnings: Vec::new(),
    }
}

fn listener(name: &str, port: u16) -> Listener {
    Listener {
        name: name.into(),
        label: None,
        line: 1,
        mode: Mode::Tproxy,
        port,
        address: None,
        device: vec!["br-lan".into()],
        network: Vec::new(),
        protos: BOTH,
        families: ANY,
        src_ip: Values::default(),
        src_mac: Values::default(),
        src_port: Values::default(),
        dest_ip: Values::default(),
        dest_port: Values::default(),
        router: false,
        allow_ip: Values::default(),
        accept_proxy: false,
    }
}

fn range(first: &str, last: &str) -> IpRange {
    IpRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
}

fn nets(ranges: impl IntoIterator<Item = IpRange>) -> Entries {
    Entries::Nets(std::sync::Arc::new(ranges.into_iter().collect()))
}

fn facts(cfg: &Config) -> Facts {
    Facts {
        devices: cfg.listeners.iter().map(|listener| listener.device.clone()).collect(),
        former_devices: Vec::new(),
        on_link: vec![range("192.168.1.0", "192.168.1.255"), range("fd00:1::", "fd00:1::ffff:ffff:ffff:ffff")],
        ways_out: vec!["wan".into()],
        servers: vec![ServerAddress { tcp: true, address: "203.0.113.5:1080".parse().unwrap() }],
        families: ANY,
        networks: Vec::new(),
        early_reject: true,
        backend: Backend::Nft,
    }
}

/// Two listeners on several devices, narrowed in every way there is.
fn narrowed() -> Config {
    let mut kids = listener("kids", 2334);
    kids.device = vec!["br-lan".into(), "wlan*".into()];
    kids.protos = Protos { tcp: true, udp: false };
    kids.families = Families { v4: true, v6: false };
    kids.address = Some("127.0.0.1".parse().unwrap());
    kids.src_ip.plain = vec![AddressMatch::Range(range("192.168.1.64", "192.168.1.127")), AddressMatch::Set(0)];
    kids.src_ip.not = vec![AddressMatch::Range(range("192.168.1.70", "192.168.1.72"))];
    kids.src_mac.plain = vec![Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 0xab])];
    kids.src_mac.not = vec![Mac([2, 0, 0, 0, 0, 9])];
    kids.dest_port.plain = vec![PortRange { first: 443, last: 443 }, PortRange { first: 80, last: 90 }];
    let mut all = listener("all", 2333);
    all.dest_ip.not = vec![AddressMatch::Set(0)];
    all.dest_ip.plain = vec![AddressMatch::Range(range("0.0.0.0", "127.255.255.255"))];
    all.src_port.plain = vec![PortRange { first: 1024, last: 65535 }];
    all.src_port.not = vec![PortRange { first: 5060, last: 5061 }];
    let mut cfg = config(vec![kids, all]);
    cfg.globals.on_failure = OnFailure::Block;
    cfg.sets.push(Set {
        name: "near".into(),
        label: None,
        line: 1,
        entries: nets([range("10.0.0.0", "10.0.0.255"), range("10.9.0.1", "10.9.0.7"), range("fd09::", "fd09::ff")]),
        incomplete: false,
        source: Source::default(),
    });
    cfg
}

/// Compares with `tests/golden/NAME`; with `BLESS=1` in the environment writes it anew.
fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{} differs; BLESS=1 writes it anew", path.display());
}

/// As [`compare`], and nft loads it.
fn golden(name: &str, text: &str) {
    compare(name, text);
    loads(text);
}

/// Loads it twice in a namespace of its own: the second time is a reload.
fn loads(text: &str) {
    use std::io::Write;
    let script = "f=$(mktemp) && cat >$f && nft -f $f && nft -f $f; s=$?; rm -f $f; exit $s";
    let mut command = std::process::Command::new("unshare");
    command.args(["-Urn", "sh", "-c", script]).stdin(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "nft refuses: {:.500}", words);
}

#[test]
fn one_listener_for_everything() {
    let cfg = config(vec![listener("lan", 2333)]);
    golden("plain.nft", &render(&cfg, &facts(&cfg)));
}

#[test]
fn every_way_of_narrowing_and_a_block_when_the_daemon_is_gone() {
    let cfg = narrowed();
    golden("narrowed.nft", &render(&cfg, &facts(&cfg)));
}

#[test]
fn redirection_before_and_behind_listeners_by_tproxy() {
    let mut first = listener("first", 2334);
    first.mode = Mode::Redirect;
    first.protos = Protos { tcp: true, udp: false };
    let mut last = listener("last", 2335);
    (last.mode, last.device, last.address) =
        (Mode::Redirect, vec!["lan1".into()], Some("192.168.2.1".parse().unwrap()));
    let cfg = config(vec![first, listener("lan", 2333), last]);
    golden("redirect.nft", &render(&cfg, &facts(&cfg)));
    loads(&render_block(&cfg, &facts(&cfg)));
}

#[test]
fn what_the_router_sends_by_either_mode() {
    let (mut tproxy, mut redirect) = (listener("lan", 2333), listener("old", 2334));
    (tproxy.router, redirect.router, redirect.mode) = (true, true, Mode::Redirect);
    tproxy.protos = Protos { tcp: true, udp: false };
    redirect.dest_port.plain = vec![PortRange { first: 443, last: 443 }];
    let mut cfg = config(vec![tproxy, redirect]);
    golden("router.nft", &render(&cfg, &facts(&cfg)));
    cfg.globals.on_failure = OnFailure::Block;
    loads(&render(&cfg, &facts(&cfg)));
    loads(&render_block(&cfg, &facts(&cfg)));
}

#[test]
fn a_way_out_by_a_listeners_device() {
    let mut wild = listener("lan", 2333);
    wild.device = vec!["br*".into()];
    let cfg = config(vec![wild]);
    let facts = Facts { ways_out: vec!["br-lan".into(), "wan".into()], ..facts(&cfg) };
    let text = render(&cfg, &facts);
    let there = text.lines().filter(|line| line.contains("one arm")).collect::<Vec<_>>();
    assert_eq!(there.len(), 4, "{there:?}");
    assert!(there.iter().all(|line| line.contains(r#"oifname "br-lan""#)), "{there:?}");
    loads(&text);
}

#[test]
fn before_the_daemon_runs_a_block_drops_what_it_would_take_and_redirects_nothing() {
    let cfg = narrowed();
    let text = render_block(&cfg, &facts(&cfg));
    assert!(!text.contains("tproxy ") && !text.contains("mark set"), "{text}");
    golden("block-only.nft", &text);
}

#[test]
fn a_listener_whose_network_is_down_catches_nothing_and_the_rest_loads() {
    let cfg = config(vec![listener("lan", 2333)]);
    let nowhere = Facts { devices: vec![Vec::new()], ..facts(&cfg) };
    let text = render(&cfg, &nowhere);
    assert!(!text.contains("tproxy "), "{text}");
    loads(&text);
}

#[test]
fn without_ipv6_no_rule_takes_ipv6() {
    let cfg = config(vec![listener("lan", 2333)]);
    let v4_only = Facts { families: Families { v4: true, v6: false }, ..facts(&cfg) };
    let text = render(&cfg, &v4_only);
    assert!(!text.contains("tproxy ip6"), "{text}");
    loads(&text);
}

#[test]
fn servers_and_connected_prefixes_can_be_filled_anew_alone() {
    let cfg = config(vec![listener("lan", 2333)]);
    let facts = facts(&cfg);
    let servers = [
        ServerAddress { tcp: false, address: "[2001:db8::1]:1080".parse().unwrap() },
        ServerAddress { tcp: false, address: "[2001:db8::1]:1080".parse().unwrap() },
    ];
    let text = fill_servers(&servers);
    assert!(text.contains("{ 2001:db8::1 . udp . 1080 }"), "{text}");
    loads(&format!("{}{text}{}", render(&cfg, &facts), render_on_link(&[range("10.0.0.0", "10.0.0.9")])));
}

#[test]
fn a_large_set_is_loaded_in_many_lines() {
    let mut cfg = config(vec![listener("lan", 2333)]);
    cfg.listeners[0].dest_ip.not = vec![AddressMatch::Set(0)];
    let ranges = (0..4000u32).map(|i| {
        let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + i * 4);
        IpRange { first: address.into(), last: address.into() }
    });
    cfg.sets.push(Set {
        name: "many".into(),
        label: None,
        line: 1,
        entries: nets(ranges),
        incomplete: false,
        source: Source::default(),
    });
    let text = render(&cfg, &facts(&cfg));
    assert!(text.lines().all(|line| line.len() < 8192));
}

#[test]
fn on_the_way_of_live_streams_there_are_few_rules() {
    let cfg = config(vec![listener("lan", 2333)]);
    let text = render(&cfg, &facts(&cfg));
    let place =
        |needle: &str| text.lines().filter(|line| line.starts_with("add rule")).position(|l| l.contains(needle));
    assert!(place("goto live").unwrap() < place("fib daddr type {").unwrap());
}

fn rule(number: u32, outbound: Target) -> Rule {
    Rule {
        number,
        name: None,
        line: 1,
        active: true,
        protos: BOTH,
        families: ANY,
        device: Values::default(),
        network: Values::default(),
        src_ip: Values::default(),
        src_mac: Values::default(),
        src_port: Values::default(),
        dest_ip: Values::default(),
        dest_port: Values::default(),
        domain: Values::default(),
        schedule: None,
        rate: None,
        quota: None,
        on: true,
        outbound,
    }
}

/// A rule of every sort, in front of a default by proxy.
fn ruled() -> Config {
    let mut cfg = config(vec![listener("lan", 2333)]);
    cfg.globals.kernel_verdicts = true;
    cfg.globals.sniff_port = vec![SniffPort { tcp: true, port: 443 }, SniffPort { tcp: false, port: 443 }];
    cfg.globals.kernel_set_max = 2;
    let set = |name: &str, ranges: &[IpRange]| {
        let entries = nets(ranges.iter().copied());
        Set { name: name.into(), label: None, line: 1, entries, incomplete: false, source: Source::default() }
    };
    let few = [range("10.0.0.0", "10.0.0.255"), range("fd09::", "fd09::ff")];
    let many = [range("10.0.0.1", "10.0.0.1"), range("10.0.0.3", "10.0.0.3"), range("10.0.0.5", "10.0.0.5")];
    cfg.sets = vec![set("few", &few), set("many", &many)];
    let mut names = rule(0, Target::Drop);
    names.domain.plain = vec![DomainMatch::Name { name: "video.example".into(), only_itself: false }];
    let mut country = rule(1, Target::Direct);
    country.dest_ip.plain = vec![AddressMatch::Set(0), AddressMatch::Range(range("192.0.2.0", "192.0.2.255"))];
    country.dest_ip.not = vec![AddressMatch::Range(range("10.0.0.9", "10.0.0.9"))];
    let mut large = rule(2, Target::Direct);
    large.dest_ip.plain = vec![AddressMatch::Set(1)];
    large.dest_port.plain = vec![PortRange { first: 80, last: 80 }];
    let mut child = rule(3, Target::Reject);
    child.device.plain = vec!["br-lan".into(), "wlan*".into(), "eth7".into()];
    child.src_mac.plain = vec![Mac([2, 0, 0, 0, 0, 1])];
    child.src_port.not = vec![PortRange { first: 1, last: 9 }];
    child.protos = Protos { tcp: true, udp: false };
    let mut nowhere = rule(4, Target::Reject);
    nowhere.network.plain = vec!["guest".into()];
    let mut nameless = rule(5, Target::Drop);
    nameless.domain.not = vec![DomainMatch::Name { name: "free.example".into(), only_itself: false }];
    nameless.families = Families { v4: false, v6: true };
    cfg.rules = vec![names, country, large, child, nowhere, nameless];
    cfg
}

#[test]
fn every_sort_of_rule_is_compiled_in_order() {
    let cfg = ruled();
    golden("verdicts.nft", &render(&cfg, &facts(&cfg)));
}

#[test]
fn names_that_dnsmasq_notes_are_decided_by_address() {
    let mut cfg = ruled();
    cfg.globals.dnsmasq = true;
    let mut hosts = rule(6, Target::Drop);
    hosts.domain.plain = vec![DomainMatch::Name { name: "only.example".into(), only_itself: true }];
    cfg.rules.push(hosts);
    golden("noted.nft", &render(&cfg, &facts(&cfg)));
}

#[test]
fn flows_that_the_kernel_decided_are_asked_again_if_that_is_wanted() {
    let mut cfg = ruled();
    cfg.globals.reclassify = true;
    golden("reclassify.nft", &render(&cfg, &facts(&cfg)));
    cfg.globals.self_mark = Mark { value: 4, mask: 4 };
    assert!(!render(&cfg, &facts(&cfg)).contains("again"), "no value is left that says it");
}

#[test]
fn hours_ask_each_live_flow_of_either_mode_and_reclassify_those_that_it_has_marked() {
    let mut cfg = ruled();
    let mut old = listener("old", 2334);
    (old.mode, old.device) = (Mode::Redirect, vec!["lan1".into()]);
    old.src_ip.plain = vec![AddressMatch::Range(range("192.168.2.0", "192.168.2.127"))];
    cfg.listeners.push(old);
    let asked = |cfg: &Config| {
        let text = render(cfg, &facts(cfg));
        loads(&text);
        let jump = |line: &&str| line.starts_with("add rule inet tproxyd prerouting") && line.contains("jump again");
        text.lines().filter(jump).map(|line| line.contains("== 0x03000000")).collect::<Vec<_>>()
    };
    assert_eq!(asked(&cfg), []);
    cfg.globals.reclassify = true;
    assert_eq!(asked(&cfg), [true, true]);
    cfg.rules[3].schedule = Some(Schedule { start: 0, stop: 3600, weekdays: 0x7f, utc: false });
    assert_eq!(asked(&cfg), [false, false]);
    golden("hours.nft", &render(&cfg, &facts(&cfg)));
    cfg.globals.reclassify = false;
    golden("hours.nft", &render(&cfg, &facts(&cfg)));
    // no value is left that says it: what is for the process now goes on, what is refused ends
    cfg.globals.self_mark = Mark { value: 4, mask: 4 };
    assert_eq!(asked(&cfg), [false, false]);
    // what holds no more may have refused, what holds now may
    cfg.rules[3].on = false;
    assert_eq!(asked(&cfg), [false, false]);
}

#[test]
fn without_kernel_verdicts_everything_goes_to_the_process() {
    let mut cfg = ruled();
    cfg.globals.kernel_verdicts = false;
    let text = render(&cfg, &facts(&cfg));
    assert!(!text.contains("verdicts") && !text.contains("rule_"), "{text}");
}

#[test]
fn what_a_client_moves_under_a_limiting_rule_only_the_process_knows() {
    let mut cfg = ruled();
    let plain = render(&cfg, &facts(&cfg));
    assert!(plain.contains("goto rule_1"), "{plain}");
    cfg.rules[1].rate = Some(1_000_000);
    let text = render(&cfg, &facts(&cfg));
    assert!(!text.contains("rule_1") && text.contains("goto rule_3"), "{text}");
    loads(&text);
}

#[test]
fn a_kernel_that_cannot_reject_early_leaves_that_to_the_process() {
    let cfg = ruled();
    let old = Facts { early_reject: false, ..facts(&cfg) };
    let text = render(&cfg, &old);
    assert!(!text.contains("reject") && text.contains("accept"), "{text}");
    loads(&text);
}

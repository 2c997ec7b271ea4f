//! `tproxyd check`: each finding about the machine, provoked on a real kernel, with the remedy, and gone once it is applied.

use std::process::Command;

use crate::daemon::{Daemon, PROGRAM, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::mirror::Mirror;
use crate::ns::Namespace;
use crate::passage::socks_uci;
use crate::process::TempDir;
use crate::sock::{accept, connect, listen, udp};
use crate::socks::{Manners, Socks};

const README: &str = include_str!("../../README.md");

/// Finds out by the command, in `ns`, what `check` says of a configuration.
fn check(ns: &Namespace, config: &str, args: &[&str]) -> Vec<Json> {
    let files = TempDir::new();
    let path = files.write("tproxyd", config);
    let mut command: Command = ns.command(PROGRAM);
    command.args(["check", "--json", "--config"]).arg(&path).args(args);
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    match Json::parse(text.trim()) {
        Json::List(findings) => {
            let fails = findings.iter().any(|finding| finding.text("severity") == "fail");
            assert_eq!(output.status.code(), Some(i32::from(fails)), "{text}");
            findings.iter().for_each(assert_documented);
            findings
        }
        other => panic!("{other}"),
    }
}

/// It has the members that README.md documents, and no others.
fn assert_documented(finding: &Json) {
    let Json::Map(members) = finding else { panic!("{finding}") };
    let names: Vec<&str> = members.keys().map(String::as_str).collect();
    assert_eq!(names, ["id", "mend", "severity", "text"], "{finding}");
    assert!(README.contains(&format!("`{}`", finding.text("id"))), "README.md does not name {finding}");
    assert!(!finding.text("text").is_empty() && !finding.text("text").contains('\n'), "{finding}");
    match finding.text("severity") {
        "ok" => assert!(matches!(finding.at("mend"), Json::Null), "{finding}"),
        "warn" | "fail" => assert!(matches!(finding.at("mend"), Json::Text(_) | Json::Null), "{finding}"),
        other => panic!("severity '{other}' of {finding}"),
    }
}

/// The findings of that id that are not "ok".
fn troubles(findings: &[Json], id: &str) -> Vec<Json> {
    findings.iter().filter(|f| f.text("id") == id && f.text("severity") != "ok").cloned().collect()
}

fn text(uci: &Uci) -> String {
    uci.text("/var/run/tproxyd-doctor/control.sock")
}

/// It is not found, then `provoke`d and found as bad as `severity`, with `words` in its text and `remedy` in what mends it.
fn provoked(
    (id, severity): (&str, &str),
    config: &str,
    (words, remedy): (&str, &str),
    provoke: impl FnOnce(&Lab),
) -> Lab {
    let lab = Lab::new();
    let before = troubles(&check(&lab.router, config, &[]), id);
    assert!(before.is_empty(), "{id} before it was provoked: {before:?}");
    provoke(&lab);
    let found = troubles(&check(&lab.router, config, &[]), id);
    assert!(!found.is_empty(), "{id} is not found");
    let fits =
        |f: &Json| f.text("severity") == severity && f.text("text").contains(words) && f.text("mend").contains(remedy);
    assert!(found.iter().any(fits), "{id}: {found:?}");
    lab
}

fn direct() -> String {
    text(&Uci::new("direct"))
}

fn nft(lab: &Lab, rules: &str) {
    lab.router.tool("nft", &["-f", "-"], rules);
}

fn ip(lab: &Lab, args: &str) {
    lab.router.tool("ip", &args.split(' ').collect::<Vec<_>>(), "");
}

#[test]
fn a_healthy_router_has_no_trouble_but_what_its_machine_has() {
    let lab = Lab::new();
    let findings = check(&lab.router, &direct(), &[]);
    // a machine of the tests may have little memory, no user, small tables
    let of_the_machine = ["user", "memory", "conntrack_size", "descriptors", "clock", "resolver", "conntrack_full"];
    let bad = |f: &&Json| f.text("severity") != "ok" && !of_the_machine.contains(&f.text("id"));
    let bad: Vec<_> = findings.iter().filter(bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_rule_that_comes_before_ours_and_takes_everything_is_found() {
    provoked(("rule_order", "fail"), &direct(), ("takes every packet to table 100", "below 200"), |lab| {
        ip(lab, "rule add pref 200 lookup 100");
    });
}

#[test]
fn marks_of_others_that_share_our_bits_are_found_and_those_of_mwan3_pbr_and_tailscale_are_not() {
    let lab = provoked(("mark_bits", "fail"), &direct(), ("fwmark 0x1000000/0xff000000", "self_mark"), |lab| {
        // mwan3, pbr, Tailscale as they are
        ip(lab, "rule add pref 2001 fwmark 0x100/0x3f00 lookup 1");
        ip(lab, "rule add pref 30000 fwmark 0x10000/0xff0000 lookup 256");
        ip(lab, "rule add pref 210 fwmark 0x80000/0xff0000 lookup main");
        let findings = check(&lab.router, &direct(), &[]);
        for id in ["mark_bits", "rule_order", "routes"] {
            assert_eq!(troubles(&findings, id), [], "{id}");
        }
        ip(lab, "rule add pref 700 fwmark 0x1000000/0xff000000 lookup 77");
    });
    ip(&lab, "rule del pref 700");
    assert_eq!(troubles(&check(&lab.router, &direct(), &[]), "mark_bits"), []);
}

#[test]
fn a_rule_or_table_of_somebody_else_at_our_numbers_is_found() {
    provoked(("routes", "fail"), &direct(), ("rule 533", "rule_priority"), |lab| {
        ip(lab, "rule add pref 533 fwmark 0x4/0x4 lookup 9");
    });
    provoked(("routes", "fail"), &direct(), ("table 233", "option table"), |lab| {
        ip(lab, "route add 10.9.0.0/16 dev lan0 table 233");
    });
}

#[test]
fn a_firewall_that_drops_what_comes_in_and_does_not_know_our_mark_is_found() {
    let lab = provoked(("input", "fail"), &direct(), ("inet fw4", "nft insert rule inet fw4 input"), |lab| {
        nft(
            lab,
            "table inet fw4 { chain input { type filter hook input priority filter; policy drop; iif lo accept; }; }",
        );
    });
    // the remedy as it is printed
    let mend = troubles(&check(&lab.router, &direct(), &[]), "input")[0].text("mend").to_owned();
    let rule = mend.split('\'').nth(1).expect("a rule in quotes");
    lab.router.tool("nft", &["insert", "rule", "inet", "fw4", "input", rule], "");
    assert_eq!(troubles(&check(&lab.router, &direct(), &[]), "input"), []);
}

#[test]
fn what_the_firewall_refuses_to_forward_and_relaying_passes_by_is_found() {
    provoked(("forward", "warn"), &direct(), ("ip daddr 10.66.0.0/16 drop", "option outbound 'reject'"), |lab| {
        nft(
            lab,
            "table inet fw4 { chain forward { type filter hook forward priority filter; ip daddr 10.66.0.0/16 drop; }; }",
        );
    });
}

#[test]
fn a_masqueraded_device_as_listener_is_found() {
    provoked(("masqueraded_listener", "fail"), &direct(), ("lan0", "device of the LAN"), |lab| {
        nft(
            lab,
            "table inet fw4 { chain srcnat { type nat hook postrouting priority srcnat; oifname lan0 jump srcnat_wan; }; \
             chain srcnat_wan { meta nfproto ipv4 masquerade; }; }",
        );
    });
}

#[test]
fn somebody_else_who_sets_whole_marks_or_intercepts_is_found() {
    provoked(("foreign_marks", "warn"), &direct(), ("inet other prerouting", "meta mark & ~MASK"), |lab| {
        nft(
            lab,
            "table inet other { chain prerouting { type filter hook prerouting priority mangle; \
             tcp dport 80 meta mark set 0x1; }; chain good { type filter hook output priority mangle; \
             meta mark set meta mark & 0xffffff00 | 0x1; }; }",
        );
    });
    provoked(("others_intercept", "warn"), &direct(), ("ip ss prerouting", "nft delete table ip ss"), |lab| {
        nft(
            lab,
            "table ip ss { chain prerouting { type filter hook prerouting priority mangle; \
             meta l4proto tcp tproxy to :1234 meta mark set 0x1 accept; }; }",
        );
    });
}

#[test]
fn a_port_of_a_bridge_as_device_is_found() {
    provoked(("bridge_port", "fail"), &direct(), ("lan0 is a port of bridge br-lan", "list device 'br-lan'"), |lab| {
        ip(lab, "link add br-lan type bridge");
        ip(lab, "link set lan0 master br-lan");
    });
}

#[test]
fn the_way_out_as_listener_a_missing_device_and_one_that_is_down_are_found() {
    let lab = Lab::new();
    let at = |device: &str| direct().replace("'lan0'", &format!("'{device}'"));
    let found = troubles(&check(&lab.router, &at("wan0"), &[]), "way_out");
    assert!(found[0].text("text").contains("wan0"), "{found:?}");
    let found = troubles(&check(&lab.router, &at("lan7"), &[]), "device");
    assert!(found[0].text("text").contains("no device lan7"), "{found:?}");
    ip(&lab, "link set lan0 down");
    let found = troubles(&check(&lab.router, &at("lan0"), &[]), "device_down");
    assert!(found[0].text("mend").contains("ip link set lan0 up"), "{found:?}");
}

#[test]
fn a_family_or_protocol_that_is_not_caught_is_found() {
    let lab = Lab::new();
    let v4 = text(&Uci::new("direct").listener(&[("family", "ipv4"), ("proto", "tcp")]));
    let findings = check(&lab.router, &v4, &[]);
    assert!(troubles(&findings, "ipv6_leak")[0].text("mend").contains("family 'any'"));
    assert!(troubles(&findings, "udp_leak")[0].text("mend").contains("tcpudp"));
    ip(&lab, "-6 route del default");
    assert_eq!(troubles(&check(&lab.router, &v4, &[]), "ipv6_leak"), []);
}

#[test]
fn forwarding_that_is_off_is_found() {
    provoked(
        ("forwarding", "warn"),
        &direct(),
        ("net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"),
        |lab| {
            lab.router.sysctl(&[("ipv4/ip_forward", "0")]);
        },
    );
}

#[test]
fn strict_reverse_path_filtering_with_two_ways_out_is_found() {
    provoked(("rp_filter", "warn"), &direct(), ("rp_filter is strict on wan", "rp_filter=2"), |lab| {
        ip(lab, "link add wanb type veth peer name wanc");
        ip(lab, "link set wanb up");
        ip(lab, "route add default dev wanb metric 9");
        lab.router.sysctl(&[("ipv4/conf/wan0/rp_filter", "1")]);
    });
}

#[test]
fn docker_beside_a_bridge_is_found() {
    let on_bridge = direct().replace("'lan0'", "'br-lan'");
    let lab = Lab::new();
    ip(&lab, "link add br-lan type bridge");
    // bridge-nf-call-iptables belongs to the machine where br_netfilter is loaded
    let found = |lab: &Lab| {
        let findings = check(&lab.router, &on_bridge, &[]);
        troubles(&findings, "docker").len() + troubles(&findings, "bridge_nf").len()
    };
    let before = found(&lab);
    ip(&lab, "link add docker0 type bridge");
    assert!(before > 0 || found(&lab) > 0);
}

#[test]
fn a_port_that_somebody_has_is_found_with_its_holder_and_port_53_is_told() {
    let lab = Lab::new();
    let _taken = listen(&lab.router, "::".parse().expect("an address"), 2333);
    let dns = udp(&lab.router, Family::V4.any(), 53);
    let findings = check(&lab.router, &direct(), &[]);
    let me = std::fs::read_to_string("/proc/self/comm").expect("a name");
    let port = troubles(&findings, "port");
    assert!(port[0].text("text").contains(me.trim()), "{port:?}");
    let dns_holder: Vec<_> = findings.iter().filter(|f| f.text("id") == "port_53").collect();
    assert!(dns_holder[0].text("text").contains(me.trim()), "{dns_holder:?}");
    drop(dns);
}

#[test]
fn an_outbound_that_is_not_there_speaks_nonsense_or_refuses_the_login_is_found() {
    let lab = Lab::new();
    let uci = text(&socks_uci(Family::V4).outbound(&[("username", "me"), ("password", "secret")]));
    let found = |id| troubles(&check(&lab.router, &uci, &[]), id);
    assert!(found("outbound_reach")[0].text("text").contains("198.51.100.2:1080 can't be reached"));
    let start = |manners| Socks::start(&lab.server, Family::V4.proxy(), 1080, manners);
    let login = Some(("me", "secret"));
    let proxy = start(Manners { login, ..Manners::default() });
    let findings = check(&lab.router, &uci, &[]);
    for id in ["outbound_reach", "outbound_handshake", "outbound_login"] {
        assert_eq!(troubles(&findings, id), [], "{id}");
    }
    assert!(findings.iter().any(|f| f.text("id") == "outbound" && f.text("text").contains("answers")));
    drop(proxy);
    let proxy = start(Manners { garbage: true, ..Manners::default() });
    assert!(found("outbound_handshake")[0].text("mend").contains("option port"));
    drop(proxy);
    let proxy = start(Manners { login: Some(("me", "other")), ..Manners::default() });
    let refused = found("outbound_login");
    assert!(refused[0].text("mend").contains("option password"), "{refused:?}");
    assert!(!refused[0].text("text").contains("secret"), "a password is never shown");
    drop(proxy);
}

#[test]
fn an_outbound_whose_name_nobody_knows_is_found() {
    let lab = Lab::new();
    let uci = socks_uci(Family::V4).outbound(&[("server", "no-such-host.example")]);
    // nobody answers at this name server: refused at once
    let uci = text(&uci.globals(&[("resolver", "198.51.100.2:5353")]));
    let found = troubles(&check(&lab.router, &uci, &[]), "outbound_name");
    assert!(found[0].text("text").contains("name server 198.51.100.2:5353"), "{found:?}");
}

#[test]
fn a_resolver_file_without_servers_and_a_control_socket_in_nowhere_are_found() {
    let lab = Lab::new();
    let uci = Uci::new("direct").globals(&[("resolver", "/dev/null")]).text("/nowhere/at/all/control.sock");
    let findings = check(&lab.router, &uci, &[]);
    assert!(troubles(&findings, "resolver")[0].text("mend").contains("option resolver"));
    assert!(troubles(&findings, "control")[0].text("mend").contains("option control"));
}

#[test]
fn rules_that_somebody_took_from_a_running_daemon_are_found() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &Uci::new("direct"));
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    let findings = check(&lab.router, &config, &[]);
    assert!(findings.iter().any(|f| f.text("id") == "daemon"), "{findings:?}");
    for id in ["port", "rules_gone"] {
        assert_eq!(troubles(&findings, id), [], "{id}");
    }
    daemon.stop();
    // one that puts nothing back
    let daemon = Daemon::start_with(&lab, &Uci::new("direct"), &["--no-rules"]);
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    assert_eq!(troubles(&check(&lab.router, &config, &[]), "rules_gone")[0].text("mend"), "tproxyd reload");
}

#[test]
fn the_configuration_alone_is_checked_from_standard_input_as_uci_exports_it() {
    use std::io::Write;
    let mut command = Command::new(PROGRAM);
    command.args(["check", "--config-only", "--json", "--config", "-"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let export = format!("package tproxyd\n\n{}", direct());
    child.stdin.take().expect("piped").write_all(export.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    let findings = Json::parse(String::from_utf8_lossy(&output.stdout).trim());
    let Json::List(findings) = findings else { panic!("{findings}") };
    assert!(findings.iter().any(|finding| finding.text("id") == "configuration"));
}

#[test]
fn a_network_that_cannot_be_resolved_is_found() {
    let lab = Lab::new();
    let uci = direct().replace("option device 'lan0'", "list network 'nowhere'");
    assert!(!troubles(&check(&lab.router, &uci, &[]), "network").is_empty());
}

#[test]
fn what_a_process_without_capabilities_cannot_do_is_found() {
    let lab = Lab::new();
    let files = TempDir::new();
    let path = files.write("tproxyd", &direct());
    let mut command = lab.router.command("setpriv");
    command.args(["--bounding-set=-all", PROGRAM, "check", "--json", "--config"]).arg(&path);
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    let Json::List(findings) = Json::parse(String::from_utf8_lossy(&output.stdout).trim()) else { panic!("no list") };
    for id in ["capabilities", "rules", "feature", "conntrack", "ruleset"] {
        assert!(!troubles(&findings, id).is_empty(), "{id}: {findings:?}");
    }
}

/// The steps of a probe to `to`: each with its severity.
fn probe(lab: &Lab, config: &str, to: std::net::SocketAddr) -> Vec<(String, String)> {
    let findings = check(&lab.router, config, &["--probe", "--to", &to.to_string()]);
    let steps = findings.iter().filter(|f| f.text("id").starts_with("probe_"));
    steps.map(|f| (f.text("id").to_owned(), f.text("severity").to_owned())).collect()
}

fn last(steps: &[(String, String)]) -> (&str, &str) {
    let (id, severity) = steps.last().expect("a step");
    (id, severity)
}

#[test]
fn a_probe_goes_through_the_rules_the_process_and_the_outbound_and_leaves_nothing_behind() {
    for family in Family::BOTH {
        let lab = Lab::new();
        lab.track_connections();
        let daemon = Daemon::start(&lab, &Uci::new("direct"));
        let config = std::fs::read_to_string(daemon.config()).expect("it is there");
        let before = lab.router.tool("nft", &["-s", "list", "ruleset"], "");
        let mirror = Mirror::start(&lab.server, family.destination(80));
        let steps = probe(&lab, &config, mirror.at);
        let all = ["probe_daemon", "probe_route", "probe_rules", "probe_process", "probe_answer"];
        assert_eq!(steps, all.map(|id| (id.to_owned(), "ok".to_owned())));
        assert_eq!(lab.router.tool("nft", &["-s", "list", "ruleset"], ""), before);
        daemon.stop();
    }
}

#[test]
fn a_probe_says_at_which_step_it_stopped() {
    let lab = Lab::new();
    let at = (Family::V4.destination(80), 443).into();
    assert_eq!(last(&probe(&lab, &direct(), at)), ("probe_daemon", "fail"));
    let daemon = Daemon::start(&lab, &socks_uci(Family::V4));
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    // nobody listens at the proxy
    assert_eq!(last(&probe(&lab, &config, at)), ("probe_outbound", "fail"));
    // connected directly
    let excluded = (Family::V4.client(), 443).into();
    assert_eq!(last(&probe(&lab, &config, excluded)), ("probe_rules", "fail"));
    // without a destination of its own it asks the name server
    let of_dns = socks_uci(Family::V4).globals(&[("resolver", "127.0.0.1")]);
    daemon.write_config(&of_dns);
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    let findings = check(&lab.router, &config, &["--probe"]);
    assert!(!troubles(&findings, "probe_destination").is_empty(), "{findings:?}");
}

#[test]
fn a_probe_tells_missing_rules_from_a_missing_policy_route() {
    let lab = Lab::new();
    let at = (Family::V4.destination(80), 443).into();
    // one that puts nothing back
    let daemon = Daemon::start_with(&lab, &Uci::new("direct"), &["--no-rules"]);
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    assert_eq!(last(&probe(&lab, &config, at)), ("probe_rules", "fail"));
    let rules = daemon.command("rules", &[]);
    lab.router.tool("nft", &["-f", "-"], &rules);
    assert_eq!(last(&probe(&lab, &config, at)), ("probe_route", "fail"));
}

#[test]
fn a_probe_names_a_listener_that_does_not_want_it_and_a_process_that_takes_nothing() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab, &Uci::new("direct").listener(&[("dest_port", "22")]));
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    let at = (Family::V4.destination(80), 443).into();
    assert_eq!(last(&probe(&lab, &config, at)), ("probe_listener", "fail"));
    daemon.stop();
    let daemon = Daemon::start(&lab, &Uci::new("direct").globals(&[("tcp_sessions", "16")]));
    let config = std::fs::read_to_string(daemon.config()).expect("it is there");
    let listener = listen(&lab.server, Family::V4.destination(80), 443);
    let held: Vec<_> = (0..16).map(|_| (connect(&lab.client, at), accept(&listener))).collect();
    daemon.status_until("the table is full", |status| status.number("tcp.active") == 16);
    assert_eq!(last(&probe(&lab, &config, at)), ("probe_process", "fail"));
    drop(held);
}

#[test]
fn an_address_that_is_kept_and_masqueraded_is_found() {
    let keeps = text(&Uci::new("direct").outbound(&[("keep_source", "1")]));
    provoked(("kept_source", "warn"), &keeps, ("masquerades", "keep_source"), Lab::masquerade);
}

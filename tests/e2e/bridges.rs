//! Clients behind a bridge of the router, where `br_netfilter` is loaded (docker): what crosses a bridge is shown to the rules
//! of IP too early, which takes away what TPROXY catches. It is turned off for these bridges alone, and put back as it was.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::mirror::{Mirror, seen_by_tcp, seen_by_udp};
use crate::over_ways;
use crate::passage::{Way, uci};
use crate::process::{until, until_within};
use crate::sock::{PATIENCE, udp};

fn passes(lab: &Lab, family: Family) {
    let mirror = Mirror::start(&lab.server, family.destination(80));
    assert_eq!(seen_by_tcp(&lab.client, mirror.at).expect("a connection").ip(), family.router_wan());
    let socket = udp(&lab.client, family.client(), 0);
    assert_eq!(seen_by_udp(&socket, mirror.at, PATIENCE).expect("an answer").ip(), family.router_wan());
}

fn on_bridge(way: Way) -> Uci {
    uci(way, Family::V4).listener(&[("device", "br-lan")])
}

/// For all bridges, for the clients', and for docker's: IPv4 and IPv6 of each.
fn settings(lab: &Lab) -> String {
    let of = |bridge: &str| {
        ["nf_call_iptables", "nf_call_ip6tables"].map(|name| format!("/sys/class/net/{bridge}/bridge/{name}"))
    };
    let all = ["iptables", "ip6tables"].map(|name| format!("/proc/sys/net/bridge/bridge-nf-call-{name}"));
    let paths = [all, of("br-lan"), of("docker0")].concat();
    let values = lab.router.tool("cat", &paths.iter().map(String::as_str).collect::<Vec<_>>(), "");
    values.split_whitespace().collect()
}

/// On for all; for the clients' bridge and docker's only by that.
const BEFORE: &str = "110000";
/// Off for all, on for docker's.
const SPARED: &str = "000011";

fn until_set(lab: &Lab, wanted: &str) {
    until_within(PATIENCE, || format!("{} and not {wanted}", settings(lab)), || settings(lab) == wanted);
}

/// Neither process gets to put anything back.
fn kill_with_helper(daemon: &Daemon) {
    let pid = daemon.process().pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    for child in children.split_whitespace() {
        kill(Pid::from_raw(child.parse().expect("a number")), Signal::SIGKILL).expect("the helper runs");
    }
    daemon.kill();
}

over_ways!(clients_behind_a_bridge_are_relayed_though_br_netfilter_is_there, |way, family| {
    let lab = Lab::behind_a_bridge();
    assert_eq!(settings(&lab), BEFORE, "this kernel has no br_netfilter");
    let daemon = Daemon::start(&lab, &on_bridge(way));
    passes(&lab, family);
    // REDIRECT works with it as it is
    assert_eq!(settings(&lab), if way == Way::Redirect { BEFORE } else { SPARED });
    daemon.stop();
    assert_eq!(settings(&lab), BEFORE);
}, tproxy_v4 Direct V4, tproxy_v6 Direct V6, redirect_v4 Redirect V4, redirect_v6 Redirect V6);

#[test]
fn what_a_vlan_device_lies_upon_is_its_bridge() {
    let lab = Lab::behind_a_bridge();
    lab.router.tool("ip", &["link", "add", "link", "br-lan", "name", "br-lan.7", "type", "macvlan"], "");
    let daemon = Daemon::start(&lab, &uci(Way::Direct, Family::V4).listener(&[("device", "br-lan.7")]));
    assert_eq!(settings(&lab), SPARED);
    daemon.stop();
    assert_eq!(settings(&lab), BEFORE);
}

#[test]
fn settings_of_br_netfilter_are_as_before_however_the_daemon_ends() {
    let lab = Lab::behind_a_bridge();
    let mut daemon = Daemon::start(&lab, &on_bridge(Way::Direct));
    assert_eq!(settings(&lab), SPARED);
    daemon.kill();
    assert_eq!(settings(&lab), BEFORE, "the helper has put them back");
    daemon.restart();
    kill_with_helper(&daemon);
    assert_eq!(settings(&lab), SPARED, "nobody was left to do it");
    daemon.restart();
    passes(&lab, Family::V4);
    daemon.stop();
    assert_eq!(settings(&lab), BEFORE, "the next one knows how they were");
    daemon.restart();
    kill_with_helper(&daemon);
    daemon.command("clear", &[]);
    assert_eq!(settings(&lab), BEFORE, "so does `clear`");
    daemon.restart();
    daemon.write_config(&on_bridge(Way::Redirect));
    daemon.reload(&["reloaded"]);
    until_set(&lab, BEFORE);
    daemon.write_config(&on_bridge(Way::Direct));
    daemon.reload(&["reloaded"]);
    until_set(&lab, SPARED);
}

#[test]
fn settings_of_br_netfilter_that_were_off_stay_off() {
    let lab = Lab::behind_a_bridge();
    lab.router.sysctl(&[("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")]);
    let daemon = Daemon::start(&lab, &on_bridge(Way::Direct));
    assert_eq!(settings(&lab), "000000");
    daemon.stop();
    assert_eq!(settings(&lab), "000000");
}

// As docker does when it starts, and when it makes a network.
#[test]
fn br_netfilter_that_somebody_turns_on_is_turned_off_again_and_new_bridges_of_others_have_it() {
    let lab = Lab::behind_a_bridge();
    let daemon = Daemon::start(&lab, &on_bridge(Way::Direct));
    lab.router.sysctl(&[("bridge/bridge-nf-call-iptables", "1")]);
    daemon.process().wait_for_line(&["bridge-nf-call-iptables had been turned on", "in place again"]);
    until_set(&lab, SPARED);
    passes(&lab, Family::V4);
    lab.router.tool("ip", &["link", "add", "br-12ab", "type", "bridge"], "");
    until("a new bridge is as it would be without us", || {
        lab.router.tool("cat", &["/sys/class/net/br-12ab/bridge/nf_call_iptables"], "").trim() == "1"
    });
    lab.router.tool("ip", &["link", "del", "docker0"], "");
    lab.router.tool("ip", &["link", "add", "docker0", "type", "bridge"], "");
    until_set(&lab, SPARED);
    daemon.stop();
    assert_eq!(settings(&lab), BEFORE);
    assert_eq!(lab.router.tool("cat", &["/sys/class/net/br-12ab/bridge/nf_call_iptables"], "").trim(), "0");
}

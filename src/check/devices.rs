//! The listeners' devices: are they there, and are they those by which clients come in?

use super::system::Root;
use super::{Finding, Findings};
use crate::config::{Config, Listener};
use crate::netfilter::{Facts, routes};

pub(super) fn check(findings: &mut Findings, cfg: &Config, facts: &Facts, root: &Root) {
    let ways_out = routes::default_devices().unwrap_or_default();
    for (listener, devices) in cfg.listeners.iter().zip(&facts.devices) {
        for device in devices.iter().filter(|name| !name.ends_with('*')) {
            look(findings, listener, device, &ways_out, root);
        }
    }
    leaks(findings, cfg, facts);
}

fn look(findings: &mut Findings, listener: &Listener, device: &str, ways_out: &[String], root: &Root) {
    let name = &listener.name;
    let of_device = |what: &str| format!("sys/class/net/{device}/{what}");
    if !root.has(of_device("")) {
        let text = format!("listener '{name}': there is no device {device} now");
        findings.push(Finding::warn("device", text, "ip link; it is taken as soon as it comes"));
        return;
    }
    if root.has(of_device("brport")) {
        let bridge = std::fs::read_link(root.0.join(of_device("master"))).unwrap_or_default();
        let bridge = bridge.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = format!("listener '{name}': {device} is a port of bridge {bridge}, by whose name packets come in");
        findings.push(Finding::fail("bridge_port", text, format!("list device '{bridge}'")));
    }
    let redirects = |place: &str| {
        root.read(&format!("proc/sys/net/ipv4/conf/{place}/send_redirects")).is_some_and(|on| on.trim() == "1")
    };
    if ways_out.iter().any(|way| way == device) && (redirects("all") || redirects(device)) {
        // A box beside the main router: the kernel tells who sent by it of the shorter way (RFC 792, redirect).
        let text = format!(
            "listener '{name}': {device} is the way out, too, and send_redirects is on: while tproxyd does not run, \
             clients learn the way past this router"
        );
        let mend = format!("sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{device}.send_redirects=0");
        findings.push(Finding::warn("send_redirects", text, mend));
    }
    if ways_out.iter().any(|way| way == device) {
        let text = format!("listener '{name}': the default route leads out by {device}: is that where clients are?");
        findings.push(Finding::warn("way_out", text, "name the device of the LAN in `list device` or `list network`"));
    }
    let up = root.read(&of_device("operstate")).is_none_or(|state| state != "down");
    if !up {
        let text = format!("listener '{name}': {device} is down");
        findings.push(Finding::warn("device_down", text, format!("ip link set {device} up")));
    }
}

/// A family that the clients have and no listener takes goes out as if tproxyd were not there.
fn leaks(findings: &mut Findings, cfg: &Config, facts: &Facts) {
    let has_v6_way = routes::has_default_route(false).unwrap_or(false);
    let some = |proto: fn(&Listener) -> bool| cfg.listeners.iter().any(proto);
    if some(|l| l.families.v4) && !some(|l| l.families.v6) && has_v6_way && facts.families.v6 {
        let text =
            "listeners take IPv4 alone, and this machine has a way out by IPv6: that of the clients is not caught";
        findings.push(Finding::warn("ipv6_leak", text, "option family 'any', or switch IPv6 off in the LAN"));
    }
    if some(|l| l.protos.tcp) && !some(|l| l.protos.udp) {
        let text = "listeners take TCP alone: QUIC and other UDP of the clients is not caught";
        findings.push(Finding::warn("udp_leak", text, "option proto 'tcpudp'"));
    }
}

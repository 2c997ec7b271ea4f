//! Does what is answered to the clients get to them? On a side router clients may be of networks that are not connected to
//! this machine: their packets come from the main router, and answers must lead back by the device they came in on.

use std::net::IpAddr;

use super::{Finding, Findings};
use crate::config::{AddressMatch, Config, Listener};
use crate::netfilter::routes::{self, WayTo};
use crate::netfilter::{Facts, conntrack};

pub(super) fn check(findings: &mut Findings, cfg: &Config, facts: &Facts) {
    let mut told: Vec<String> = Vec::new();
    let mut look = |client: IpAddr, devices: &[String], whence: &str| {
        let way = routes::way_to(client);
        let Some((finding, network)) = judge(client, devices, whence, way.ok()) else { return };
        if !told.contains(&network) && told.len() < MOST {
            findings.push(finding);
            told.push(network);
        }
    };
    let catching = cfg.listeners.iter().zip(&facts.devices).filter(|(listener, _)| listener.mode.intercepts());
    for (listener, devices) in catching.clone() {
        for client in named(listener, facts) {
            look(client, devices, "`src_ip` names");
        }
    }
    let devices: Vec<String> = catching.flat_map(|(_, devices)| devices).cloned().collect();
    // one that can't be listed is named by another finding
    for client in conntrack::clients(cfg.globals.mark, MOST_SEEN).unwrap_or_default() {
        look(client, &devices, "packets come from");
    }
}

/// One address of each network that the listener is narrowed to, but for what has a connected prefix in it.
fn named(listener: &Listener, facts: &Facts) -> Vec<IpAddr> {
    let ranges = listener.src_ip.plain.iter().filter_map(|value| match value {
        AddressMatch::Range(range) => Some(range),
        AddressMatch::Set(_) => None,
    });
    let far = ranges.filter(|range| !facts.on_link.iter().any(|on| on.first <= range.last && range.first <= on.last));
    far.map(|range| range.last).filter(|last| !is_of_one_link(*last)).collect()
}

/// What is wrong with this way to the client, and its network as one would write it.
fn judge(client: IpAddr, devices: &[String], whence: &str, way: Option<WayTo>) -> Option<(Finding, String)> {
    if devices.is_empty() || is_of_one_link(client) {
        return None;
    }
    let network = network_of(client);
    let names = devices.join(", ");
    let mend = format!(
        "ip route add {network} via MAIN-ROUTER dev {}, with the main router's address there (`config route` of OpenWrt)",
        devices.first()?
    );
    let text = |way: &str| format!("{whence} {client}, and {way}: clients of {network} get no answer");
    match way? {
        WayTo::Here => None,
        WayTo::Device(device) if devices.iter().any(|name| fits(name, &device)) => None,
        WayTo::Device(device) => {
            let way = format!("the way back leads out by {device}, not by {names}");
            Some((Finding::warn("return_route", text(&way), mend), network))
        }
        WayTo::Nowhere => Some((Finding::fail("return_route", text("there is no way back"), mend), network)),
    }
}

fn fits(name: &str, device: &str) -> bool {
    name.strip_suffix('*').map_or(name == device, |start| device.starts_with(start))
}

/// Link-local: its route is the device's own.
fn is_of_one_link(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

/// The /24 or /64 around an address.
fn network_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{}/64", std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// Networks that are told of.
const MOST: usize = 8;
/// Clients that are looked at.
const MOST_SEEN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_back_by_a_device_of_the_listeners_is_one_and_another_or_none_is_not() {
        let devices = ["lan0".to_string(), "wlan*".to_string()];
        let verdict = |client: &str, way: WayTo| {
            let found = judge(client.parse().unwrap(), &devices, "packets come from", Some(way));
            found.map(|(finding, network)| (finding.severity.word(), network))
        };
        for device in ["lan0", "wlan1"] {
            assert_eq!(verdict("192.168.7.2", WayTo::Device(device.into())), None);
        }
        assert_eq!(verdict("192.168.7.2", WayTo::Here), None);
        assert_eq!(verdict("fe80::2", WayTo::Nowhere), None, "of the link itself");
        let other = verdict("192.168.7.2", WayTo::Device("wan0".into()));
        assert_eq!(other, Some(("warn", "192.168.7.0/24".into())));
        assert_eq!(verdict("fd00:7::2", WayTo::Nowhere), Some(("fail", "fd00:7::/64".into())));
    }
}

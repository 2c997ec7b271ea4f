//! `rules --main-router`: what to put on another router, so that it sends its clients' packets here over the LAN, unchanged.
//!
//! It marks what comes from its clients, but for what comes from this box, which it tells by the MAC address, and routes what
//! is marked to this box. For nftables as it is; for iptables and for UCI (OpenWrt) as comments.

use std::fmt::Write;
use std::net::IpAddr;

use super::{Facts, links};
use crate::config::{Globals, IpRange};
use crate::error::Error;

/// The device of the main router on the same LAN, as OpenWrt calls it.
const LAN: &str = "br-lan";

/// The text for the box that `facts` describe.
///
/// # Errors
/// No listener has a device with an address.
pub fn render(globals: &Globals, facts: &Facts) -> Result<String, Error> {
    let device = facts.devices.iter().flatten().find(|name| links::mac_of(name).is_some());
    let found = device.and_then(|name| Some((name, links::mac_of(name)?, links::addresses_of(name).ok()?)));
    let Some((device, mac, addresses)) = found.filter(|found| !found.2.is_empty()) else {
        return Err(Error::new("tell the main router where this box is", "no listener has a device with an address")
            .hint("give a listener the device on which the main router is, and bring it up"));
    };
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let v6 = addresses.iter().find(|address| address.is_ipv6());
    Ok(text(globals, device, &mac, (v4.copied(), v6.copied()), &facts.on_link))
}

fn text(
    globals: &Globals,
    device: &str,
    mac: &str,
    (v4, v6): (Option<IpAddr>, Option<IpAddr>),
    on_link: &[IpRange],
) -> String {
    let (value, mask, table, priority) = (globals.mark.value, globals.mark.mask, globals.table, globals.rule_priority);
    let mut out = format!(
        "# tproxyd: for the main router, which sends what its clients want to this box ({device}, {mac}).\n\
         # '{LAN}' is its device on this LAN. Load by: nft -f FILE\n\
         # It sees one half of these flows, so it must not drop what connection tracking calls invalid (OpenWrt's\n\
         # firewall: `option drop_invalid '0'`, the default).\n\
         table inet tproxyd_side\ndelete table inet tproxyd_side\n\
         table inet tproxyd_side {{\n\tchain prerouting {{\n\
         \t\ttype filter hook prerouting priority mangle; policy accept;\n\
         \t\tiifname != \"{LAN}\" return\n\t\tether saddr {mac} return comment \"this box\"\n\
         \t\tfib daddr type != unicast return\n\
         \t\tct direction reply return comment \"answers\"\n\
         \t\tip daddr {{ 127.0.0.0/8, 169.254.0.0/16 }} return\n\t\tip6 daddr fe80::/10 return\n"
    );
    let ranges: Vec<_> =
        on_link.iter().map(|range| (range.first.is_ipv4(), super::render::prefix_text(range))).collect();
    let mut put = |line: String| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{line}");
    };
    for (is_v4, range) in &ranges {
        put(format!("\t\t{} daddr {range} return", if *is_v4 { "ip" } else { "ip6" }));
    }
    for (family, address) in [("ipv4", v4), ("ipv6", v6)] {
        if address.is_some() {
            put(format!(
                "\t\tmeta nfproto {family} meta l4proto {{ tcp, udp }} meta mark set meta mark & {:#010x} | {value:#010x}",
                !mask
            ));
        }
    }
    put("\t}\n}\n\n# Then, on every start:".into());
    for (dash, address) in [("-4", v4), ("-6", v6)].into_iter().filter_map(|(dash, a)| Some((dash, a?))) {
        put(format!("# ip {dash} rule add priority {priority} fwmark {value:#010x}/{mask:#010x} lookup {table}"));
        put(format!("# ip {dash} route replace default via {address} dev {LAN} table {table}"));
    }
    put(format!("# sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{LAN}.send_redirects=0"));
    put("\n# The same by iptables, where there is no nft:".into());
    for (tool, address, is_v4) in [("iptables", v4, true), ("ip6tables", v6, false)] {
        if address.is_none() {
            continue;
        }
        put(format!("# {tool} -t mangle -N tproxyd_side"));
        put(format!("# {tool} -t mangle -A tproxyd_side -m mac --mac-source {mac} -j RETURN"));
        put(format!("# {tool} -t mangle -A tproxyd_side -m conntrack --ctdir REPLY -j RETURN"));
        put(format!("# {tool} -t mangle -A tproxyd_side -m addrtype ! --dst-type UNICAST -j RETURN"));
        for (_, range) in ranges.iter().filter(|range| range.0 == is_v4) {
            put(format!("# {tool} -t mangle -A tproxyd_side -d {range} -j RETURN"));
        }
        for proto in ["tcp", "udp"] {
            put(format!(
                "# {tool} -t mangle -A tproxyd_side -p {proto} -j MARK --set-xmark {value:#010x}/{mask:#010x}"
            ));
        }
        put(format!("# {tool} -t mangle -A PREROUTING -i {LAN} -j tproxyd_side"));
    }
    put("\n# The same for OpenWrt's /etc/config/network (the marks by the nft file above, as /etc/nftables.d does not\n\
         # take tables: save it and name it in a `config include` of /etc/config/firewall with `option type 'script'`):"
        .into());
    for (section, route, target, address) in [("rule", "route", "0.0.0.0/0", v4), ("rule6", "route6", "::/0", v6)] {
        let Some(address) = address else { continue };
        put(format!(
            "# config {section}\n#\toption mark '{value:#x}/{mask:#x}'\n#\toption lookup '{table}'\n#\toption priority '{priority}'\n\
             # config {route}\n#\toption interface 'lan'\n#\toption target '{target}'\n#\toption gateway '{address}'\n#\toption table '{table}'"
        ));
    }
    out
}

//! The one table of section types and options: name, kind and range, default, and whether this build has it.
//!
//! Validation, suggestions, refusal by name and the checks of `README.md` and `files/tproxyd.config` come from here.

use std::time::Duration;

pub use super::value::{Kind, Word};

/// A type of section.
#[derive(Debug)]
pub struct SectionType {
    /// `config NAME`.
    pub name: &'static str,
    /// True if others refer to it, so that it needs a name.
    pub needs_name: bool,
    /// The option that decides which others belong to a section: `type` of an outbound, `mode` of a listener.
    pub selector: Option<&'static str>,
    /// Its options, in the order of the contract.
    pub options: &'static [Opt],
}

/// An option of a section type.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// `option NAME`.
    pub name: &'static str,
    /// What its value looks like, with the range.
    pub kind: Kind,
    /// What counts if it isn't given, as the user would write it; a list with blanks between. Empty: nothing.
    pub default: &'static str,
    /// True if it takes several values: `list` lines, or one `option` split at blanks.
    pub many: bool,
    /// The values of the section's selector that it belongs to; empty: all.
    pub only: &'static [&'static str],
    /// One line about it.
    pub help: &'static str,
}

impl Opt {
    const fn many(mut self) -> Self {
        self.many = true;
        self
    }

    const fn only(mut self, selectors: &'static [&'static str]) -> Self {
        self.only = selectors;
        self
    }
}

const fn opt(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Opt {
    Opt { name, kind, default, many: false, only: &[], help }
}

const fn has(text: &'static str) -> Word {
    Word { text, built: true }
}

const fn lacks(text: &'static str) -> Word {
    Word { text, built: false }
}

const fn millis(least: u64, most: u64) -> Kind {
    Kind::Time(Duration::from_millis(least), Duration::from_millis(most))
}

const SECOND: u64 = 1000;
const DAY: u64 = 86_400 * SECOND;
const KIB: u64 = 1024;
const GIB: u64 = 1024 * 1024 * KIB;

/// Most sessions or flows that a table may be set to hold.
pub const MOST_SESSIONS: u64 = 16_384;

const LEVELS: &[Word] = &[has("error"), has("warn"), has("info"), has("debug"), has("trace")];
const MODES: &[Word] = &[has("tproxy"), has("redirect"), has("plain"), has("http"), has("socks5")];
const TYPES: &[Word] = &[
    has("direct"),
    has("forward"),
    has("socks5"),
    has("http"),
    if cfg!(feature = "shadowsocks") { has("shadowsocks") } else { lacks("shadowsocks") },
    has("group"),
    has("reject"),
    has("drop"),
];
/// Of Shadowsocks: SIP004 and SIP022.
const METHODS: &[Word] = &[
    has("aes-128-gcm"),
    has("aes-256-gcm"),
    has("chacha20-ietf-poly1305"),
    has("2022-blake3-aes-128-gcm"),
    has("2022-blake3-aes-256-gcm"),
    has("2022-blake3-chacha20-poly1305"),
];
const POLICIES: &[Word] = &[has("failover"), has("fastest"), has("balance")];

/// Types of outbounds that speak to a proxy server.
const PROXIES: &[&str] = &["socks5", "http", "shadowsocks"];
/// Types of outbounds with a server.
const SERVED: &[&str] = &["forward", "socks5", "http", "shadowsocks"];
/// Types of outbounds that open sockets.
const DIALLED: &[&str] = &["direct", "forward", "socks5", "http", "shadowsocks"];
/// Types of outbounds that flows go out by.
const CARRIERS: &[&str] = &["direct", "forward", "socks5", "http", "shadowsocks", "group"];
/// Modes of listeners that take packets which were meant for others.
const INTERCEPTING: &[&str] = &["tproxy", "redirect"];

/// Everything that a configuration can say.
pub static SECTIONS: [SectionType; 5] = [
    GLOBALS_SECTION,
    SectionType { name: "listener", needs_name: true, selector: Some("mode"), options: LISTENER },
    SectionType { name: "outbound", needs_name: true, selector: Some("type"), options: OUTBOUND },
    SectionType { name: "set", needs_name: true, selector: None, options: SET },
    SectionType { name: "rule", needs_name: false, selector: None, options: RULE },
];

/// The section that may be missing: its options have defaults then.
pub(super) const GLOBALS_SECTION: SectionType =
    SectionType { name: "globals", needs_name: false, selector: None, options: GLOBALS };

const GLOBALS: &[Opt] = &[
    opt("enabled", Kind::Flag, "1", "0: `run` does nothing and says so"),
    opt("log_level", Kind::Word(LEVELS), "info", "what is logged: this and what is worse"),
    opt("default", Kind::Outbound, "direct", "outbound of flows that no rule matches"),
    opt("kernel_verdicts", Kind::Flag, "1", "what netfilter can decide alone is left to it"),
    opt("on_failure", Kind::Word(&[has("direct"), has("block")]), "direct", "traffic while the daemon does not run"),
    opt("mark", Kind::Mark, "0x01000000/0x03000000", "fwmark and conntrack mark of what is intercepted"),
    opt("self_mark", Kind::Mark, "0x02000000/0x03000000", "fwmark of the daemon's own packets"),
    opt("table", Kind::Number(1, u32::MAX as u64), "233", "number of the routing table"),
    opt("rule_priority", Kind::Number(1, 32_765), "533", "priority of the policy routing rule"),
    opt("backend", Kind::Word(&[has("auto"), has("nft"), has("iptables")]), "auto", "which packet filter is used"),
    opt("tcp_sessions", Kind::AutoNumber(16, MOST_SESSIONS), "auto", "most TCP sessions at once; auto: by memory"),
    opt("udp_sessions", Kind::AutoNumber(16, MOST_SESSIONS), "auto", "most UDP mappings at once; auto: by memory"),
    opt("relay_memory", Kind::AutoSize(64 * KIB, GIB), "auto", "most bytes in flight of all sessions together"),
    opt("client_sessions", Kind::Number(0, MOST_SESSIONS), "0", "most sessions and flows of one client; 0: no quota"),
    opt("control", Kind::Path, "/var/run/tproxyd/control.sock", "the control socket"),
    opt("metrics", Kind::Endpoint, "", "address:port of a Prometheus listener"),
    opt("kernel_set_max", Kind::AutoNumber(0, 1 << 24), "auto", "a set with more intervals stays in the process"),
    opt("sniff_port", Kind::SniffPort, "tcp:80 tcp:443 tcp:8080 udp:443", "where names are looked for").many(),
    opt("sniff_timeout", millis(10, 10 * SECOND), "300ms", "how long names are looked for"),
    opt("resolver", Kind::Resolver, "/etc/resolv.conf", "DNS server for the outbounds' names"),
    opt("reclassify", Kind::Flag, "0", "after a reload live flows get the new rules too"),
    opt("drop_stale", Kind::Flag, "0", "after a reload sessions of what was removed end"),
    opt("dnsmasq", Kind::Flag, "0", "write nftset lines for domain rules"),
    opt("on_event", Kind::Path, "", "script that is run for each event"),
    opt("sandbox", Kind::Flag, "1", "seccomp, where target and build have it"),
];

const LISTENER: &[Opt] = &[
    opt("enabled", Kind::Flag, "1", "0: as if the section were not there"),
    opt("label", Kind::Text, "", "text shown to people"),
    opt("mode", Kind::Word(MODES), "tproxy", "how packets or clients reach it"),
    opt("port", Kind::Port, "", "port that it listens on"),
    opt("address", Kind::Address, "", "address that it listens on; none: any"),
    opt("device", Kind::Device, "", "interfaces whose incoming packets it takes").many(),
    opt("network", Kind::Network, "", "the same by OpenWrt's names").many(),
    opt("proto", Kind::Protos, "tcpudp", "which transport protocols").many(),
    opt("family", Kind::Families, "any", "which address families").many(),
    opt("src_ip", Kind::Addresses, "", "narrows what is caught, by client").many().only(INTERCEPTING),
    opt("src_mac", Kind::Mac, "", "narrows what is caught, by client").many().only(INTERCEPTING),
    opt("src_port", Kind::Ports, "", "narrows what is caught, by client").many().only(INTERCEPTING),
    opt("dest_ip", Kind::Addresses, "", "narrows what is caught, by destination").many().only(INTERCEPTING),
    opt("dest_port", Kind::Ports, "", "narrows what is caught, by destination").many().only(INTERCEPTING),
    opt("router", Kind::Flag, "0", "also what the router itself sends").only(INTERCEPTING),
    opt("accept_proxy", Kind::Flag, "0", "client and destination come in a PROXY header").only(&["plain"]),
    opt("allow_ip", Kind::Addresses, "", "who may connect").many().only(&["plain", "http", "socks5"]),
];

const OUTBOUND: &[Opt] = &[
    opt("enabled", Kind::Flag, "1", "0: as if the section were not there"),
    opt("label", Kind::Text, "", "text shown to people"),
    opt("type", Kind::Word(TYPES), "", "what it does with a flow"),
    opt("server", Kind::Host, "", "address or name of the server").only(SERVED),
    opt("port", Kind::Port, "", "port of the server").only(SERVED),
    opt("username", Kind::Secret, "", "for the proxy").only(&["socks5", "http"]),
    opt("password", Kind::Secret, "", "for the proxy").only(PROXIES),
    opt("method", Kind::Word(METHODS), "", "cipher").only(&["shadowsocks"]),
    opt("udp", Kind::Flag, "1", "whether it carries UDP").only(CARRIERS),
    opt("udp_outbound", Kind::Outbound, "reject", "where UDP goes if it doesn't carry it").only(CARRIERS),
    opt("keep_source", Kind::Flag, "0", "the server sees the client's own address").only(&["direct", "forward"]),
    opt("full_cone", Kind::Flag, "0", "anyone may answer a client's UDP port").only(&["direct"]),
    opt("send_proxy", Kind::Word(&[has("v1"), has("v2")]), "", "PROXY header to the server").only(&["forward"]),
    opt("send_domain", Kind::Flag, "0", "a sniffed name is sent instead of the address").only(PROXIES),
    opt("device", Kind::Device, "", "interface that it goes out by").only(DIALLED),
    opt("fwmark", Kind::Mark, "", "mark on its packets").only(DIALLED),
    opt("member", Kind::Outbound, "", "outbounds of the group").many().only(&["group"]),
    opt("policy", Kind::Word(POLICIES), "failover", "which member takes a flow").only(&["group"]),
    opt("on_all_down", Kind::Word(&[has("reject"), has("direct")]), "reject", "when no member is up").only(&["group"]),
    opt("spare", Kind::Number(0, 64), "0", "connections to the server kept open in advance").only(SERVED),
    opt("check_interval", millis(SECOND, DAY), "30s", "time between two health checks").only(PROXIES),
    opt("check_timeout", millis(100, 60 * SECOND), "5s", "how long a health check waits").only(PROXIES),
    opt("check_target", Kind::HostPort, "", "host:port asked through the proxy").only(PROXIES),
    opt("rise", Kind::Number(1, 100), "2", "good checks until it counts as up").only(PROXIES),
    opt("fall", Kind::Number(1, 100), "2", "failed checks until it counts as down").only(PROXIES),
    opt("connect_timeout", millis(100, 600 * SECOND), "5s", "until the destination has answered").only(DIALLED),
    opt("idle_timeout", millis(SECOND, 30 * DAY), "125m", "TCP with no byte either way").only(DIALLED),
    opt("udp_timeout", millis(SECOND, DAY), "180s", "UDP with no datagram either way").only(DIALLED),
];

const SET: &[Opt] = &[
    opt("type", Kind::Word(&[has("net"), has("domain")]), "net", "what its entries are"),
    opt("label", Kind::Text, "", "text shown to people"),
    opt("entry", Kind::Entry, "", "a network or domain").many(),
    opt("loadfile", Kind::Path, "", "files with one entry per line").many(),
    opt("strict", Kind::Flag, "1", "0: a bad line is reported and skipped"),
    opt("url", Kind::Url, "", "where `update-sets` gets it from"),
    opt("update_interval", millis(60 * SECOND, 365 * DAY), "1d", "time between two updates"),
];

const RULE: &[Opt] = &[
    opt("enabled", Kind::Flag, "1", "0: never matches, but is counted"),
    opt("name", Kind::Text, "", "text shown to people"),
    opt("proto", Kind::Protos, "any", "which transport protocols").many(),
    opt("family", Kind::Families, "any", "which address families").many(),
    opt("device", Kind::DeviceOrNot, "", "interface that the flow came in by").many(),
    opt("network", Kind::DeviceOrNot, "", "network that the flow came in by").many(),
    opt("src_ip", Kind::Addresses, "", "the client's address").many(),
    opt("src_mac", Kind::Mac, "", "the client's MAC address").many(),
    opt("src_port", Kind::Ports, "", "the client's port").many(),
    opt("dest_ip", Kind::Addresses, "", "original destination's address").many(),
    opt("dest_port", Kind::Ports, "", "original destination's port").many(),
    opt("domain", Kind::Domain, "", "name that the client asks for").many(),
    opt("start_time", Kind::Clock, "", "from this time of day"),
    opt("stop_time", Kind::Clock, "", "until this time of day; may be past midnight"),
    opt("weekdays", Kind::Weekday, "", "on these days").many(),
    opt("utc_time", Kind::Flag, "0", "times are UTC, not local"),
    opt("rate", Kind::Rate, "", "bits per second for each client, each way"),
    opt("quota", Kind::Size(1, u64::MAX), "", "bytes for each client in a period"),
    opt("quota_period", Kind::Word(&[has("day"), has("month")]), "month", "what the quota is for"),
    opt("quota_outbound", Kind::Outbound, "reject", "where flows go when it is used up"),
    opt("outbound", Kind::Outbound, "", "where matching flows go"),
];

/// The section type of that name.
pub fn section_type(name: &str) -> Option<&'static SectionType> {
    SECTIONS.iter().find(|section| section.name == name)
}

impl SectionType {
    /// The option of that name.
    pub fn option(&self, name: &str) -> Option<&'static Opt> {
        self.options.iter().find(|option| option.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        for section in &SECTIONS {
            for option in section.options {
                for value in option.default.split_ascii_whitespace() {
                    assert!(option.kind.parse(value).is_ok(), "{} {}", section.name, option.name);
                }
                assert!(!option.help.is_empty());
            }
        }
    }

    #[test]
    fn an_option_stands_once_in_its_section_and_belongs_to_known_selectors() {
        for section in &SECTIONS {
            for (place, option) in section.options.iter().enumerate() {
                assert!(section.options[..place].iter().all(|earlier| earlier.name != option.name), "{}", option.name);
                let selectors: &[Word] = match section.selector.and_then(|name| section.option(name)) {
                    Some(Opt { kind: Kind::Word(words), .. }) => words,
                    _ => &[],
                };
                assert!(option.only.iter().all(|only| selectors.iter().any(|word| word.text == *only)));
            }
        }
    }
}

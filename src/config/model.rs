//! The configuration as the program uses it: typed, validated, immutable. No text, no clock, no network.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::schedule::Schedule;
use std::sync::Arc;
use std::time::Duration;

use super::domains::DomainSet;
use super::nets::NetSet;

pub use outbound::*;

mod outbound;

/// A whole configuration file, validated. A reload builds a new one and compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `config globals`.
    pub globals: Globals,
    /// Every `config listener` in file order, disabled ones left out.
    pub listeners: Vec<Listener>,
    /// Every `config outbound` in file order, disabled ones left out. [`Target::Outbound`] is an index into this.
    pub outbounds: Vec<Outbound>,
    /// Every `config set`. [`AddressMatch::Set`] is an index into this.
    pub sets: Vec<Set>,
    /// Every `config rule` in file order, disabled ones left out; [`Rule::number`] still counts them.
    pub rules: Vec<Rule>,
    /// What is odd but does not stop the start (`file:line: …`).
    pub warnings: Vec<String>,
}

/// Where a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Built-in: straight out, by the process.
    Direct,
    /// Built-in: a TCP reset, an ICMP port unreachable.
    Reject,
    /// Built-in: silence.
    Drop,
    /// An index into [`Config::outbounds`].
    Outbound(u16),
}

/// `config globals`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Globals {
    /// `option enabled`: false makes `run` say so and end with status 0.
    pub enabled: bool,
    /// `option log_level`.
    pub log_level: log::LevelFilter,
    /// `option default`: where flows go that no rule matches.
    pub default: Target,
    /// `option kernel_verdicts`.
    pub kernel_verdicts: bool,
    /// `option on_failure`.
    pub on_failure: OnFailure,
    /// `option mark`: fwmark and conntrack mark of what is intercepted.
    pub mark: Mark,
    /// `option self_mark`: fwmark of the daemon's own packets.
    pub self_mark: Mark,
    /// `option table`: number of the routing table.
    pub table: u32,
    /// `option rule_priority`: preference of the `ip rule`.
    pub rule_priority: u32,
    /// `option backend`.
    pub backend: Backend,
    /// `option tcp_sessions`, auto resolved: 16 to 16384.
    pub tcp_sessions: u32,
    /// `option udp_sessions`, auto resolved: 16 to 16384.
    pub udp_sessions: u32,
    /// `option relay_memory` in bytes, auto resolved.
    pub relay_memory: u64,
    /// `option client_sessions`: most sessions and flows of one client; 0: no quota.
    pub client_sessions: u32,
    /// `option control`.
    pub control: PathBuf,
    /// `option kernel_set_max`, auto resolved: intervals of a set that rules may have in the kernel.
    pub kernel_set_max: u32,
    /// `list sniff_port`: where names are looked for.
    pub sniff_port: Vec<SniffPort>,
    /// `option sniff_timeout`: for how long.
    pub sniff_timeout: Duration,
    /// `option metrics`: where Prometheus is answered.
    pub metrics: Option<SocketAddr>,
    /// `option reclassify`: after a reload live flows get the new rules too.
    pub reclassify: bool,
    /// `option drop_stale`: sessions of what a reload removes end.
    pub drop_stale: bool,
    /// `option dnsmasq`: domain rules become nftset lines.
    pub dnsmasq: bool,
    /// `option on_event`: the script that is run for each event.
    pub on_event: Option<PathBuf>,
    /// `option resolver`.
    pub resolver: Resolver,
    /// `option sandbox`.
    pub sandbox: bool,
}

/// One value of `sniff_port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SniffPort {
    /// TCP, else UDP.
    pub tcp: bool,
    /// Destination port.
    pub port: u16,
}

impl Globals {
    /// The values of `sniff_port` where this build can look for names: at those of UDP with feature `quic` only.
    pub fn sniffed(&self) -> impl Iterator<Item = SniffPort> {
        self.sniff_port.iter().copied().filter(|at| at.tcp || cfg!(feature = "quic"))
    }
}

/// A fwmark that touches only the bits of its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The bits to set; none outside `mask`.
    pub value: u32,
    /// The bits that belong to us.
    pub mask: u32,
}

/// What happens to traffic while the daemon does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It flows as if tproxyd were not installed.
    Direct,
    /// It is dropped.
    Block,
}

/// Which packet filter carries the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nft where there is one.
    Auto,
    /// nftables.
    Nft,
    /// iptables (fw3 routers).
    Iptables,
}

/// Who is asked for the names of the outbounds' servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolver {
    /// A file in the form of resolv.conf(5).
    File(PathBuf),
    /// One server.
    Server(SocketAddr),
}

/// Which transport protocols: `option proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protos {
    /// TCP is meant.
    pub tcp: bool,
    /// UDP is meant.
    pub udp: bool,
}

/// Which address families: `option family` (`any`, `ipv4`, `ipv6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4 is meant.
    pub v4: bool,
    /// IPv6 is meant.
    pub v6: bool,
}

/// Plain values and `!` values of one kind: it matches if it has no plain value or one matches, and no `!` value does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values<T> {
    /// Values without `!`.
    pub plain: Vec<T>,
    /// Values with `!`.
    pub not: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Values { plain: Vec::new(), not: Vec::new() }
    }
}

impl<T> Values<T> {
    /// True if the kind was not given at all, and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.not.is_empty()
    }
}

/// Addresses from `first` to `last`, both included, of one family. A prefix is such a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    /// Lowest address.
    pub first: IpAddr,
    /// Highest address; same family as `first`, not below it.
    pub last: IpAddr,
}

/// One value of `src_ip` or `dest_ip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressMatch {
    /// An address, prefix or range.
    Range(IpRange),
    /// `@name`: an index into [`Config::sets`].
    Set(u16),
}

/// One value of `domain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainMatch {
    /// A name, in lower case.
    Name {
        /// Without a trailing dot.
        name: String,
        /// `=`: not what is below it.
        only_itself: bool,
    },
    /// `@name`: an index into [`Config::sets`].
    Set(u16),
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port, not below `first`.
    pub last: u16,
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// `config listener`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Section name.
    pub name: String,
    /// `option label`, for people.
    pub label: Option<String>,
    /// Line of the section in its file.
    pub line: u32,
    /// `option mode`.
    pub mode: Mode,
    /// `option port`.
    pub port: u16,
    /// `option address`; `None` is any address.
    pub address: Option<IpAddr>,
    /// `list device`: interface names, a trailing `*` is a wildcard.
    pub device: Vec<String>,
    /// `list network`: OpenWrt network names, to be resolved to devices.
    pub network: Vec<String>,
    /// `option proto`.
    pub protos: Protos,
    /// `option family`.
    pub families: Families,
    /// `list src_ip`.
    pub src_ip: Values<AddressMatch>,
    /// `list src_mac`.
    pub src_mac: Values<Mac>,
    /// `list src_port`.
    pub src_port: Values<PortRange>,
    /// `list dest_ip`.
    pub dest_ip: Values<AddressMatch>,
    /// `list dest_port`.
    pub dest_port: Values<PortRange>,
    /// `option router`: what this machine itself sends is caught, too.
    pub router: bool,
    /// `list allow_ip`: who may connect to one that does not intercept; nobody if empty.
    pub allow_ip: Values<AddressMatch>,
    /// `option accept_proxy`: client and original destination come in a PROXY header.
    pub accept_proxy: bool,
}

/// How packets reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// TPROXY: the packets keep their addresses.
    Tproxy,
    /// nat REDIRECT, for kernels without TPROXY: connection tracking knows where the packets were going.
    Redirect,
    /// An ordinary port: what comes goes to a fixed server, or a PROXY header says where to.
    Plain,
    /// An HTTP proxy for clients that are told.
    Http,
    /// A SOCKS5 proxy for clients that are told.
    Socks5,
}

impl Mode {
    /// Packets reach it that were meant for others.
    pub fn intercepts(self) -> bool {
        matches!(self, Mode::Tproxy | Mode::Redirect)
    }
}

/// `config set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Section name.
    pub name: String,
    /// `option label`, for people.
    pub label: Option<String>,
    /// Line of the section in its file.
    pub line: u32,
    /// What is in it.
    pub entries: Entries,
    /// A list file was missing or the set is empty: a rule that says `!@name` is inactive.
    pub incomplete: bool,
    /// Where its list comes from.
    pub source: Source,
}

/// Where the list of a set comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// `list entry` of a set of domains, which keeps no names.
    pub names: Vec<String>,
    /// `list loadfile`. With `url` and no `loadfile` a file of the set's own.
    pub files: Vec<PathBuf>,
    /// `option url`.
    pub url: Option<String>,
    /// `option update_interval`.
    pub update_interval: Duration,
}

impl Source {
    /// What `update-sets` replaces.
    pub fn file(&self) -> Option<&Path> {
        self.files.first().map(PathBuf::as_path)
    }
}

/// What is in a set. Shared between a configuration, its copies, and who looks up in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entries {
    /// `option type 'net'`.
    Nets(Arc<NetSet>),
    /// `option type 'domain'`.
    Domains(Arc<DomainSet>),
}

impl Entries {
    /// The networks; those of a set of domains are none.
    pub fn nets(&self) -> &NetSet {
        match self {
            Entries::Nets(nets) => nets,
            Entries::Domains(_) => &super::nets::NOTHING,
        }
    }

    /// The domains; those of a set of networks are none.
    pub fn domains(&self) -> &DomainSet {
        match self {
            Entries::Nets(_) => super::domains::NOTHING.get_or_init(DomainSet::default),
            Entries::Domains(domains) => domains,
        }
    }

    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        self.nets().is_empty() && self.domains().is_empty()
    }

    /// Bytes that they take.
    pub fn memory(&self) -> usize {
        self.nets().memory() + self.domains().memory()
    }
}

/// `config rule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// N of `@rule[N]`, disabled ones counted.
    pub number: u32,
    /// `option name`.
    pub name: Option<String>,
    /// Line of the section in its file.
    pub line: u32,
    /// False if it refers to `!@set` and that set is incomplete: it is shown, and never matches.
    pub active: bool,
    /// `option proto`.
    pub protos: Protos,
    /// `option family`.
    pub families: Families,
    /// `list device`: interface names, a trailing `*` is a wildcard.
    pub device: Values<String>,
    /// `list network`: OpenWrt network names, to be resolved to devices.
    pub network: Values<String>,
    /// `list src_ip`.
    pub src_ip: Values<AddressMatch>,
    /// `list src_mac`.
    pub src_mac: Values<Mac>,
    /// `list src_port`.
    pub src_port: Values<PortRange>,
    /// `list dest_ip`.
    pub dest_ip: Values<AddressMatch>,
    /// `list dest_port`.
    pub dest_port: Values<PortRange>,
    /// `list domain`.
    pub domain: Values<DomainMatch>,
    /// `option start_time` and those beside it; `None`: at any time.
    pub schedule: Option<Schedule>,
    /// False while its schedule does not let it match.
    pub on: bool,
    /// `option rate`: bits per second for each client, each way.
    pub rate: Option<u64>,
    /// `option quota` and those beside it.
    pub quota: Option<Quota>,
    /// `option outbound`.
    pub outbound: Target,
}

impl Rule {
    /// It allows each client only so much.
    pub fn is_limited(&self) -> bool {
        self.rate.is_some() || self.quota.is_some()
    }
}

/// What a rule gives to each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// `option quota`: both ways together.
    pub bytes: u64,
    /// `option quota_period`: in a month, not in a day.
    pub monthly: bool,
    /// `option quota_outbound`: where flows go when it is used up.
    pub outbound: Target,
}

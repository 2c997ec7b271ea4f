//! The ways out as the running process keeps them: configuration, counters, and which address of a server works.

use super::spares::Stock;
use crate::config::{Check, Credentials, GroupPolicy, Host, SendProxy, Target};
pub use crate::policy::group::{Health, State};
use crate::proto::proxy_header::Version;
#[cfg(feature = "shadowsocks")]
use crate::proto::shadowsocks::MasterKey;
use crate::resolve::{NameId, Resolver};
use crate::stats::events::{Bounded, unix_time};
use crate::store::timers::Tick;
use std::net::SocketAddr;
use std::time::Duration;

pub use table::{Chosen, Outbounds, Tried};

pub mod table;

/// A way out. Index 0 is the built-in `direct`.
#[derive(Debug)]
pub struct Outbound {
    /// Section name.
    pub name: String,
    /// How flows leave.
    pub way: Way,
    /// Until the destination has answered, handshakes included.
    pub connect_timeout: Duration,
    /// TCP with no byte either way.
    pub idle_timeout: Duration,
    /// UDP with no datagram.
    pub udp_timeout: Duration,
    /// The interface that its packets leave by.
    pub device: Option<String>,
    /// A name that the client asked for is said instead of the address.
    pub send_domain: bool,
    /// Bits of the mark on its packets, beside those of all our own.
    pub fwmark: u32,
    /// Its packets have the client's own address.
    pub keep_source: bool,
    /// Whether datagrams go to the server's own port.
    pub sends_udp: bool,
    /// Connections to its server that are opened in advance.
    pub spares: Stock,
    /// Changes with the way, and with how its packets leave.
    pub epoch: u32,
    /// Still in the configuration. One that is not lives on until its sessions end.
    pub configured: bool,
    /// Which of the server's addresses worked last.
    pub preferred: u8,
    /// Live sessions and mappings.
    pub sessions: u32,
    /// Bytes from clients.
    pub bytes_up: u64,
    /// Bytes to clients.
    pub bytes_down: u64,
    /// Sessions that could not be connected.
    pub errors: u64,
    /// Whether it works, by its checks and by what sessions met.
    pub health: Health,
    /// How long its health checks take, smoothed, in microseconds; of one that is not checked, how long it took to be
    /// connected, handshakes included.
    pub latency: Option<u32>,
    /// How it is checked, if it is.
    pub check: Option<Check>,
    /// When the next check is due; `None`: at once.
    pub next_check: Option<Tick>,
    /// A session met a failure of its: until then others go first, and one that is down and not checked is not tried.
    pub doubtful_until: Option<Tick>,
    /// Of a group: the member that took the flow before.
    pub last_member: Option<u16>,
    /// It carries UDP.
    pub udp: bool,
    /// Where UDP goes that it turns out not to carry.
    pub udp_outbound: Target,
    /// Its proxy said that it carries no UDP: not asked again until then.
    no_udp_until: Option<Tick>,
    /// When a session could not be connected last, in seconds since 1970, and why.
    pub last_error: Option<(u64, Bounded<160>)>,
    /// The state that `Outbounds::announce` saw last.
    announced: State,
    limiter: Limiter,
}

/// How flows leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To where the client wanted.
    Direct,
    /// To a fixed server.
    Forward {
        /// The server.
        server: Upstream,
        /// The header that tells it client and original destination.
        send_proxy: Option<Version>,
    },
    /// Through an HTTP proxy.
    Http {
        /// The proxy.
        server: Upstream,
        /// What it wants to hear.
        credentials: Option<Credentials>,
    },
    /// Through a Shadowsocks server.
    #[cfg(feature = "shadowsocks")]
    Shadowsocks {
        /// The server.
        server: Upstream,
        /// Method and key.
        key: MasterKey,
    },
    /// By one of several others.
    Group {
        /// Their indices, in order.
        members: Vec<u16>,
        /// Which of them takes a flow.
        policy: GroupPolicy,
        /// Straight out when none is up, else rejected.
        direct_when_down: bool,
    },
    /// Through a SOCKS5 proxy.
    Socks5 {
        /// The proxy.
        server: Upstream,
        /// What it wants to hear.
        credentials: Option<Credentials>,
    },
}

/// The server of an outbound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// As the user named it.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// Its number at the resolver, if it is a name.
    pub name: Option<NameId>,
}

impl Upstream {
    /// `host:port` as the user wrote it.
    pub fn display(&self) -> String {
        match &self.host {
            Host::Address(ip) => SocketAddr::new(*ip, self.port).to_string(),
            Host::Name(name) => format!("{name}:{}", self.port),
        }
    }
}

/// How long one that failed is left to the others of its group, and one that is down and not checked is not tried again.
const DOUBT: Duration = Duration::from_secs(5);

/// How long a proxy is not asked for UDP that has said that it carries none.
const NO_UDP: Duration = Duration::from_secs(600);

/// When a check follows a sign that it fails.
const RECHECK: Duration = Duration::from_millis(200);

/// Most outbounds at one time, those included that a reload took out but whose sessions live on.
pub const OUTBOUNDS_MAX: usize = 256;

/// Most addresses of one server that are tried for one connection.
pub const ADDRESSES_MAX: usize = 8;

impl Outbound {
    fn direct() -> Outbound {
        Outbound {
            name: "direct".into(),
            way: Way::Direct,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(125 * 60),
            udp_timeout: Duration::from_secs(180),
            device: None,
            fwmark: 0,
            send_domain: false,
            keep_source: false,
            sends_udp: false,
            spares: Stock::default(),
            epoch: 0,
            configured: true,
            preferred: 0,
            sessions: 0,
            bytes_up: 0,
            bytes_down: 0,
            errors: 0,
            health: Health::UNKNOWN,
            latency: None,
            check: None,
            next_check: None,
            doubtful_until: None,
            last_member: None,
            udp: true,
            udp_outbound: Target::Reject,
            no_udp_until: None,
            last_error: None,
            announced: State::Unknown,
            limiter: Limiter::default(),
        }
    }

    /// Whether what goes to `to` for `client` has the client's own address; one of another family can't.
    pub fn keeps_source_of(&self, client: SocketAddr, to: SocketAddr) -> bool {
        self.keep_source && client.is_ipv4() == to.is_ipv4() && !client.ip().is_unspecified()
    }

    /// Type as the configuration calls it.
    pub fn kind(&self) -> &'static str {
        match self.way {
            Way::Direct => "direct",
            Way::Forward { .. } => "forward",
            Way::Http { .. } => "http",
            Way::Group { .. } => "group",
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { .. } => "shadowsocks",
            Way::Socks5 { .. } => "socks5",
        }
    }

    /// Whether everything goes to a fixed server.
    pub fn is_forward(&self) -> bool {
        matches!(self.way, Way::Forward { .. })
    }

    /// Whether what goes through it is encrypted.
    #[cfg(feature = "shadowsocks")]
    pub fn is_sealed(&self) -> bool {
        matches!(self.way, Way::Shadowsocks { .. })
    }

    /// [`Self::latency`] as people read it.
    pub fn latency_ms(&self) -> Option<u32> {
        self.latency.map(|micros| micros.div_ceil(1000))
    }

    /// The server, if the outbound has one.
    pub fn server(&self) -> Option<&Upstream> {
        match &self.way {
            Way::Direct | Way::Group { .. } => None,
            #[cfg(feature = "shadowsocks")]
            Way::Shadowsocks { server, .. } => Some(server),
            Way::Forward { server, .. } | Way::Http { server, .. } | Way::Socks5 { server, .. } => Some(server),
        }
    }

    /// Username and password to lend to a handshake.
    pub fn credentials(&self) -> Option<(&[u8], &[u8])> {
        match &self.way {
            Way::Http { credentials: Some(c), .. } | Way::Socks5 { credentials: Some(c), .. } => {
                Some((c.username.as_bytes(), c.password.as_bytes()))
            }
            _ => None,
        }
    }

    /// The `attempt`th address to try for a flow to `orig_dst`, beginning with the one that worked last; `None` if there is
    /// no further one.
    pub fn address(&self, attempt: u8, orig_dst: SocketAddr, resolver: &Resolver) -> Option<SocketAddr> {
        match self.server() {
            None => (attempt == 0).then_some(orig_dst),
            Some(server) => {
                let literal;
                let addresses = match (&server.host, server.name) {
                    (Host::Address(ip), _) => {
                        literal = [*ip];
                        &literal[..]
                    }
                    (Host::Name(_), Some(name)) => resolver.addresses(name),
                    (Host::Name(_), None) => &[],
                };
                let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
                if usize::from(attempt) >= addresses.len() {
                    return None;
                }
                let index = (usize::from(self.preferred) + usize::from(attempt)) % addresses.len();
                addresses.get(index).map(|ip| SocketAddr::new(*ip, server.port))
            }
        }
    }

    /// Remembers that the `attempt`th address worked.
    pub fn worked(&mut self, attempt: u8, resolver: &Resolver) {
        let count = match self.server().and_then(|server| server.name) {
            Some(name) => resolver.addresses(name).len().min(ADDRESSES_MAX),
            None => 1,
        };
        self.good();
        self.preferred = ((usize::from(self.preferred) + usize::from(attempt)) % count.max(1)) as u8;
    }

    /// A sign that it works.
    pub fn good(&mut self) {
        self.health.good(self.check.as_ref().map_or(1, |check| check.rise));
        self.doubtful_until = None;
    }

    /// A sign that it fails, by its own fault. A check that is to come follows at once.
    pub fn bad(&mut self, now: Tick) {
        self.health.bad(self.check.as_ref().map_or(1, |check| check.fall));
        self.doubtful_until = Some(now.after(DOUBT));
        if self.health.state != State::Down && self.next_check.is_some_and(|at| !now.after(RECHECK).reached(at)) {
            self.next_check = Some(now.after(RECHECK));
        }
    }

    /// Its proxy says that it carries no UDP.
    pub fn found_without_udp(&mut self, now: Tick) {
        log::warn!("outbound '{}' carries no UDP, says its server: UDP goes to its udp_outbound", self.name);
        self.no_udp_until = Some(now.after(NO_UDP));
    }

    /// Whether it carries UDP, as far as is known.
    pub fn carries_udp(&self, now: Tick) -> bool {
        self.udp && self.no_udp_until.is_none_or(|until| now.reached(until))
    }

    /// Whether a flow may be given to it; `Some(true)`: only if no other can take it.
    pub fn doubtful(&self, resolver: &Resolver, now: Tick) -> Option<bool> {
        let in_doubt = self.doubtful_until.is_some_and(|until| !now.reached(until));
        let name = self.server().and_then(|server| server.name);
        let unresolved = name.is_some_and(|name| resolver.addresses(name).is_empty());
        match self.health.state {
            // one that is checked comes up by its checks, others only by being tried
            State::Down if self.check.is_some() || in_doubt => None,
            State::Down => Some(true),
            State::Unknown | State::Up => Some(in_doubt || unresolved),
        }
    }

    /// Remembers why a session could not be connected.
    pub fn note_error(&mut self, why: impl std::fmt::Display) {
        self.last_error = Some((unix_time(), Bounded::of(why)));
    }

    /// Counts a failure. `Some`: say so in the log, with this behind the message; at most once in ten seconds.
    pub fn failed(&mut self, now: Tick) -> Option<HeldBack> {
        self.errors += 1;
        self.limiter.admit(now).map(HeldBack)
    }
}

/// The form of header that the configuration asks for.
fn version(send_proxy: SendProxy) -> Version {
    match send_proxy {
        SendProxy::V1 => Version::V1,
        SendProxy::V2 => Version::V2,
    }
}

/// How many log lines of the same kind were held back; empty text if none was.
pub struct HeldBack(pub u32);

impl std::fmt::Display for HeldBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like it since the last such line)"),
        }
    }
}

/// Lets one through in ten seconds, and counts the rest.
#[derive(Debug, Default)]
pub struct Limiter {
    last: Option<Tick>,
    held_back: u32,
}

impl Limiter {
    /// `Some(n)`: go ahead, n were held back since the last time.
    pub fn admit(&mut self, now: Tick) -> Option<u32> {
        const INTERVAL: Duration = Duration::from_secs(10);
        if self.last.is_some_and(|last| now.since(last) < INTERVAL) {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

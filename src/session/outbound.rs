//! The ways out as the running process keeps them: configuration, counters, and which address of a server works.

use crate::config::{Credentials, Host, SendProxy};
use crate::proto::proxy_header::Version;
use crate::resolve::{NameId, Resolver};
use crate::stats::events::{Bounded, unix_time};
use crate::store::timers::Tick;
use std::net::SocketAddr;
use std::time::Duration;

pub use table::Outbounds;

mod table;

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
    /// Bits of the mark on its packets, beside those of all our own.
    pub fwmark: u32,
    /// Its packets have the client's own address.
    pub keep_source: bool,
    /// Whether datagrams go to the server's own port.
    pub sends_udp: bool,
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
    /// What its last dial said.
    pub state: State,
    /// How long it took to be connected the last time, handshakes included, in milliseconds.
    pub latency_ms: Option<u32>,
    /// When a session could not be connected last, in seconds since 1970, and why.
    pub last_error: Option<(u64, Bounded<160>)>,
    /// The state that [`Outbounds::announce`] saw last.
    announced: State,
    limiter: Limiter,
}

/// Whether an outbound works, as far as its last dial tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not dialled yet.
    Unknown,
    /// It worked, or the proxy said that the destination is to blame.
    Up,
    /// It failed, and the way out is to blame.
    Down,
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
            keep_source: false,
            sends_udp: false,
            configured: true,
            preferred: 0,
            sessions: 0,
            bytes_up: 0,
            bytes_down: 0,
            errors: 0,
            state: State::Unknown,
            latency_ms: None,
            last_error: None,
            announced: State::Unknown,
            limiter: Limiter::default(),
        }
    }

    /// Whether what goes to `to` for `client` has the client's own address; one of another family can't.
    pub fn keeps_source_of(&self, client: SocketAddr, to: SocketAddr) -> bool {
        self.keep_source && client.is_ipv4() == to.is_ipv4()
    }

    /// Type as the configuration calls it.
    pub fn kind(&self) -> &'static str {
        match self.way {
            Way::Direct => "direct",
            Way::Forward { .. } => "forward",
            Way::Http { .. } => "http",
            Way::Socks5 { .. } => "socks5",
        }
    }

    /// Whether everything goes to a fixed server.
    pub fn is_forward(&self) -> bool {
        matches!(self.way, Way::Forward { .. })
    }

    /// The server, if the outbound has one.
    pub fn server(&self) -> Option<&Upstream> {
        match &self.way {
            Way::Direct => None,
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
        self.state = State::Up;
        self.preferred = ((usize::from(self.preferred) + usize::from(attempt)) % count.max(1)) as u8;
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

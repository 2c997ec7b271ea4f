//! The ways out as the running process keeps them: configuration, counters, and which address of a server works.

use crate::config::{Config, Credentials, Host, OutboundKind, Server, Target};
use crate::error::Error;
use crate::resolve::{NameId, Resolver};
use crate::stats::events::{Bounded, Events, Kind, unix_time};
use crate::store::timers::Tick;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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

    /// Type as the configuration calls it.
    pub fn kind(&self) -> &'static str {
        match self.way {
            Way::Direct => "direct",
            Way::Socks5 { .. } => "socks5",
        }
    }

    /// The server, if the outbound has one.
    pub fn server(&self) -> Option<&Upstream> {
        match &self.way {
            Way::Direct => None,
            Way::Socks5 { server, .. } => Some(server),
        }
    }

    /// Username and password to lend to a handshake.
    pub fn credentials(&self) -> Option<(&[u8], &[u8])> {
        match &self.way {
            Way::Socks5 { credentials: Some(c), .. } => Some((c.username.as_bytes(), c.password.as_bytes())),
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

/// All ways out. An index stays the same over reloads for as long as sessions may hold it.
pub struct Outbounds {
    list: Vec<Outbound>,
}

impl Outbounds {
    /// Only the built-in `direct`.
    pub fn new() -> Outbounds {
        let mut list = Vec::with_capacity(OUTBOUNDS_MAX);
        list.push(Outbound::direct());
        Outbounds { list }
    }

    /// Whether [`Self::adopt`] has room for the outbounds of `config`, and the resolver for their names.
    ///
    /// # Errors
    /// What there is too much of.
    pub fn fit(&self, config: &Config, resolver: &mut Resolver) -> Result<(), Error> {
        let kept = self.list.iter().skip(1).filter(|o| o.sessions > 0).count();
        if kept + config.outbounds.len() + 1 > OUTBOUNDS_MAX {
            let why = format!("the file has {}, and at most {OUTBOUNDS_MAX} fit", config.outbounds.len());
            return Err(Error::new("take the outbounds over", why));
        }
        for section in &config.outbounds {
            if let OutboundKind::Socks5 { server: Server { host: Host::Name(name), .. }, .. } = &section.kind
                && resolver.intern(name).is_none()
            {
                let what = format!("look up '{name}' for outbound '{}'", section.name);
                return Err(Error::new(what, "too many different server names").hint("use addresses for some servers"));
            }
        }
        Ok(())
    }

    /// Takes the outbounds of `config` over: those of the same name keep index and counters, those that have gone are kept
    /// until their last session ends. Returns for each outbound of `config` the target that the rules shall use.
    ///
    /// # Errors
    /// Those of [`Self::fit`]; nothing has changed then.
    pub fn adopt(&mut self, config: &Config, resolver: &mut Resolver) -> Result<Vec<Target>, Error> {
        self.fit(config, resolver)?;
        for outbound in self.list.iter_mut().skip(1) {
            outbound.configured = false;
        }
        let targets = config.outbounds.iter().map(|section| {
            let way = match &section.kind {
                OutboundKind::Reject => return Target::Reject,
                OutboundKind::Drop => return Target::Drop,
                OutboundKind::Direct => Way::Direct,
                OutboundKind::Socks5 { server, credentials } => {
                    let name = match &server.host {
                        Host::Name(name) => resolver.intern(name),
                        Host::Address(_) => None,
                    };
                    let server = Upstream { host: server.host.clone(), port: server.port, name };
                    Way::Socks5 { server, credentials: credentials.clone() }
                }
            };
            let index = self.slot_for(&section.name, &way);
            let outbound = &mut self.list[index];
            if outbound.way != way {
                outbound.state = State::Unknown;
            }
            outbound.way = way;
            outbound.configured = true;
            outbound.connect_timeout = section.connect_timeout;
            outbound.idle_timeout = section.idle_timeout;
            outbound.udp_timeout = section.udp_timeout;
            Target::Outbound(index as u16)
        });
        Ok(targets.collect())
    }

    /// The index of the outbound of this name, else of one that nobody uses, else of a new one. One whose server has changed
    /// keeps its index only while no session dials through it by the old one.
    fn slot_for(&mut self, name: &str, way: &Way) -> usize {
        let same = |o: &&Outbound| !o.configured && o.name == name && (o.sessions == 0 || o.way == *way);
        if let Some(index) = self.list.iter().skip(1).position(|o| same(&o)) {
            return index + 1;
        }
        let fresh = Outbound { name: name.into(), ..Outbound::direct() };
        match self.list.iter().skip(1).position(|o| !o.configured && o.sessions == 0) {
            Some(index) => {
                self.list[index + 1] = fresh;
                index + 1
            }
            None => {
                self.list.push(fresh);
                self.list.len() - 1
            }
        }
    }

    /// Tells of those with a server that have gone up or down since the last call. To be called once a turn.
    pub fn announce(&mut self, events: &mut Events) {
        for outbound in self.list.iter_mut().filter(|outbound| outbound.state != outbound.announced) {
            outbound.announced = outbound.state;
            if outbound.server().is_none() || !outbound.configured {
                continue;
            }
            match outbound.state {
                State::Unknown => {}
                State::Up => events.push(Kind::OutboundUp, &outbound.name, ""),
                State::Down => {
                    let why = outbound.last_error.as_ref().map_or("", |(_, why)| why.as_str());
                    events.push(Kind::OutboundDown, &outbound.name, why);
                }
            }
        }
    }

    /// The outbound of this index, which came from [`Self::adopt`] or is 0.
    pub fn get(&self, index: u16) -> &Outbound {
        self.list.get(usize::from(index)).unwrap_or(&self.list[0])
    }

    /// As [`Self::get`], to change.
    pub fn get_mut(&mut self, index: u16) -> &mut Outbound {
        let index = if usize::from(index) < self.list.len() { usize::from(index) } else { 0 };
        &mut self.list[index]
    }

    /// All, the built-in `direct` first.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Outbound)> {
        self.list.iter().enumerate().map(|(index, outbound)| (index as u16, outbound))
    }

    /// Whether an outbound that is configured or still has sessions has a server of this name.
    pub fn uses_name(&self, name: &str) -> bool {
        self.list.iter().filter(|outbound| outbound.configured || outbound.sessions > 0).any(|outbound| {
            let host = outbound.server().map(|server| &server.host);
            matches!(host, Some(Host::Name(known)) if known.eq_ignore_ascii_case(name))
        })
    }

    /// Addresses at which servers are reached now, with their ports: what the rules must pass by.
    pub fn server_addresses(&self, resolver: &Resolver) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = Vec::new();
        for outbound in self.list.iter().filter(|o| o.configured && o.server().is_some()) {
            let no_destination = SocketAddr::new(IpAddr::from([0; 4]), 0);
            all.extend((0..ADDRESSES_MAX as u8).map_while(|n| outbound.address(n, no_destination, resolver)));
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Default for Outbounds {
    fn default() -> Self {
        Self::new()
    }
}

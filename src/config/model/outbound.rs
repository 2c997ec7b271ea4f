//! `config outbound`.

use super::Target;
use std::net::IpAddr;
use std::time::Duration;

/// `config outbound`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Section name.
    pub name: String,
    /// `option label`, for people.
    pub label: Option<String>,
    /// Line of the section in its file.
    pub line: u32,
    /// `option type` with what belongs to it.
    pub kind: OutboundKind,
    /// `option udp`: whether it carries UDP.
    pub udp: bool,
    /// `option full_cone`: its UDP goes through the process, so that anyone may answer.
    pub full_cone: bool,
    /// `option udp_outbound`: where UDP goes if not. Never leads in a circle.
    pub udp_outbound: Target,
    /// `option connect_timeout`: until the destination has answered, handshakes included.
    pub connect_timeout: Duration,
    /// `option idle_timeout`: TCP with no byte either way.
    pub idle_timeout: Duration,
    /// `option udp_timeout`: a UDP flow with no datagram (to port 53 alone: 10 s).
    pub udp_timeout: Duration,
    /// `option device`: the interface that its packets leave by, whatever the routes say.
    pub device: Option<String>,
    /// `option fwmark`: bits of the mark on its packets, beside those of `self_mark`.
    pub fwmark: u32,
    /// `option send_domain`: a name that the client asked for goes to the proxy instead of the address.
    pub send_domain: bool,
    /// `option keep_source`: the server sees the client's own address.
    pub keep_source: bool,
    /// `option spare`: connections to the server that are kept open in advance.
    pub spare: u8,
    /// How its health is checked; `None`: nobody asked for that.
    pub check: Option<Check>,
}

/// Most connections that all outbounds together may keep open in advance.
pub const SPARES_MAX: usize = 64;

/// Health checks: `option check_*`, `rise`, `fall`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// `option check_interval`: time between two checks.
    pub interval: Duration,
    /// `option check_timeout`: how long one may take.
    pub timeout: Duration,
    /// `option check_target`: what is asked through the proxy; `None`: greeting and authentication alone.
    pub target: Option<Server>,
    /// `option rise`: good signs in a row that bring it up.
    pub rise: u8,
    /// `option fall`: bad signs in a row that bring it down.
    pub fall: u8,
}

/// `option type` of an outbound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboundKind {
    /// Straight out.
    Direct,
    /// To a fixed server.
    Forward {
        /// The server.
        server: Server,
        /// `option send_proxy`.
        send_proxy: Option<SendProxy>,
    },
    /// CONNECT (RFC 9110 section 9.3.6).
    Http {
        /// The proxy.
        server: Server,
        /// Basic authentication (RFC 7617); `None` is none.
        credentials: Option<Credentials>,
    },
    /// RFC 1928.
    Socks5 {
        /// The proxy.
        server: Server,
        /// RFC 1929; `None` is no authentication.
        credentials: Option<Credentials>,
    },
    /// Shadowsocks (SIP004, SIP022).
    Shadowsocks {
        /// The server.
        server: Server,
        /// Method and password.
        secret: Secret,
    },
    /// One of several others.
    Group(Group),
    /// A TCP reset, an ICMP port unreachable.
    Reject,
    /// Silence.
    Drop,
}

/// What is shared with a Shadowsocks server.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// `option method`: its name.
    pub method: &'static str,
    /// `option password`; never printed. Of a method of SIP022 it is base64 of as many octets as the key has.
    pub password: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What a group is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// `list member`, in order; none leads back to the group.
    pub members: Vec<Target>,
    /// `option policy`.
    pub policy: GroupPolicy,
    /// `option on_all_down`: straight out then, else rejected.
    pub direct_when_down: bool,
}

/// `option policy`: which member takes a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupPolicy {
    /// The first that is up.
    Failover,
    /// The one whose checks take the least time.
    Fastest,
    /// The one with the fewest sessions.
    Balance,
}

/// Which header of the PROXY protocol goes before what a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    /// A line of text, TCP only.
    V1,
    /// Octets, before each datagram too.
    V2,
}

/// A server as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Address or name.
    pub host: Host,
    /// Port.
    pub port: u16,
}

/// Address or name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A literal address.
    Address(IpAddr),
    /// A host name, at most 253 characters, without a trailing dot.
    Name(String),
}

/// Username and password, 1 to 255 octets each (RFC 1929 section 2).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `option username`.
    pub username: String,
    /// `option password`; never printed.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Outbound {
    /// Whether datagrams go to the server's own port. (A SOCKS5 server names another for them.)
    pub fn sends_udp_to_server(&self) -> bool {
        self.udp && matches!(self.kind, OutboundKind::Forward { .. } | OutboundKind::Shadowsocks { .. })
    }
}

impl OutboundKind {
    /// The server that it reaches flows by, if it has one.
    pub fn server(&self) -> Option<&Server> {
        match self {
            OutboundKind::Forward { server, .. }
            | OutboundKind::Http { server, .. }
            | OutboundKind::Shadowsocks { server, .. }
            | OutboundKind::Socks5 { server, .. } => Some(server),
            OutboundKind::Direct | OutboundKind::Group(_) | OutboundKind::Reject | OutboundKind::Drop => None,
        }
    }

    /// Whether it can carry datagrams at all: HTTP has no words for them, nor has a PROXY header of version 1.
    pub fn can_carry_udp(&self) -> bool {
        let streams_only = Some(SendProxy::V1);
        !matches!(self, OutboundKind::Http { .. })
            && !matches!(self, OutboundKind::Forward { send_proxy, .. } if *send_proxy == streams_only)
    }
}

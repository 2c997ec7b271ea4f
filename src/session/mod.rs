//! One connection or flow, from stage to stage: intercept → classify → dial → relay → account.

pub mod associated;
pub mod association;
pub mod checks;
mod classify;
mod departed;
pub mod destinations;
pub mod dial;
pub mod fixed;
mod greet;
pub mod intercept;
pub mod loops;
pub mod mapping;
pub mod metered;
pub mod origin;
pub mod outbound;
pub mod pipes;
#[cfg(feature = "quic")]
mod quic;
pub mod redirect;
pub mod relay;
pub mod reply;
#[cfg(feature = "shadowsocks")]
mod sealed;
#[cfg(feature = "shadowsocks")]
mod sealed_check;
#[cfg(feature = "shadowsocks")]
mod sealed_udp;
pub mod spares;
pub mod tcp;
pub mod udp;

use crate::policy::Policy;
use crate::resolve::Resolver;
use crate::stats::events::Kind;
use crate::stats::{Drop, Stats};
use crate::store::meters::Meters;
use crate::store::names::Names;
use crate::store::pool::Pool;
use crate::store::quotas::Quotas;
use crate::store::shares::{Share, Shares};
use crate::store::slab::Key;
use crate::store::timers::Tick;
use associated::Associated;
use mio::Token;
use origin::Origins;
use outbound::Outbounds;
use pipes::Pipes;
use spares::Spares;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// All that a session may touch in its turn.
pub struct Cx<'a> {
    /// Where descriptors are registered.
    pub registry: &'a mio::Registry,
    /// The moment of this turn.
    pub now: Tick,
    /// Buffers for what the other side did not take.
    pub pool: &'a mut Pool,
    /// Pipes for bulk.
    pub pipes: &'a mut Pipes,
    /// The ways out.
    pub outbounds: &'a mut Outbounds,
    /// Connections to their servers that were opened in advance.
    pub spares: &'a mut Spares,
    /// Names of the outbounds' servers.
    pub resolver: &'a mut Resolver,
    /// The rules.
    pub policy: &'a mut Policy,
    /// The counters.
    pub stats: &'a mut Stats,
    /// Names that clients asked for.
    pub names: &'a mut Names,
    /// Where flows come from.
    pub origins: &'a mut Origins,
    /// How many sessions and flows each client has.
    pub shares: &'a mut Shares,
    /// What the clients of rules with a rate move.
    pub meters: &'a mut Meters,
    /// What the clients of rules with a quota have used.
    pub quotas: &'a mut Quotas,
    /// Who has a relay for datagrams.
    pub associated: &'a mut Associated,
    /// How long names are looked for.
    pub sniff_timeout: Duration,
    /// fwmark of the daemon's own packets.
    pub self_mark: u32,
    /// Place of the listener whose connections and datagrams are being taken.
    pub listener: u8,
}

impl Cx<'_> {
    /// Takes a place in the tables for `client`; `None` if it has all that `option client_sessions` gives it.
    fn take_share(&mut self, client: SocketAddr) -> Option<Share> {
        let mac = if self.shares.counts() { self.origins.mac_of(client.ip(), self.now) } else { None };
        let share = self.shares.take(client.ip(), mac);
        if share.is_none() {
            self.stats.drop(Drop::ClientSessions);
            let ip = client.ip();
            let detail = format_args!("{ip} has all that one client may have");
            if self.stats.events.push_seldom(Kind::TableFull, "client", detail) {
                log::warn!(
                    "client {ip} has as many sessions and flows as client_sessions allows: new ones are refused"
                );
            }
        }
        share
    }
}

/// Which end of a session or mapping a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// TCP: the client's connection. UDP: the outside socket.
    Near,
    /// TCP: the connection to the server or proxy. UDP: the association's control connection.
    Far,
}

/// Whose event it is, packed into the 32 bits that mips and arm have for a token:
/// generation 16 | UDP 1 | slot 14 | side 1. The generation that no tenant has marks the process's own descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A TCP session.
    Tcp(Key, Side),
    /// A UDP mapping.
    Udp(Key, Side),
    /// One of the process's own descriptors, by number.
    Process(u16),
}

/// Most tenants of one table: what 14 bits of slot can name.
pub const TABLE_MAX: u16 = 1 << 14;

impl Owner {
    /// The token for `mio`.
    pub fn token(self) -> Token {
        let packed = match self {
            Owner::Tcp(key, side) => pack(key, 0, side),
            Owner::Udp(key, side) => pack(key, 1, side),
            Owner::Process(number) => u32::from(Key::NO_GENERATION) << 16 | u32::from(number),
        };
        Token(packed as usize)
    }

    /// Whose token it is.
    pub fn of(token: Token) -> Owner {
        let packed = token.0 as u32;
        let generation = (packed >> 16) as u16;
        if generation == Key::NO_GENERATION {
            return Owner::Process(packed as u16);
        }
        let key = Key { slot: (packed >> 1) as u16 & (TABLE_MAX - 1), generation };
        let side = if packed & 1 == 0 { Side::Near } else { Side::Far };
        if packed & 0x8000 == 0 { Owner::Tcp(key, side) } else { Owner::Udp(key, side) }
    }
}

fn pack(key: Key, udp: u32, side: Side) -> u32 {
    let side = u32::from(side == Side::Far);
    u32::from(key.generation) << 16 | udp << 15 | u32::from(key.slot & (TABLE_MAX - 1)) << 1 | side
}

/// What `mio` said about a descriptor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Readiness {
    /// Bytes, an end or an error wait to be read.
    pub readable: bool,
    /// Bytes can be written, or writing fails.
    pub writable: bool,
    /// The peer has ended its direction: read to the end, a short read is not the end of it.
    pub read_closed: bool,
    /// Urgent data: a read stops short of it, so a short read does not mean that nothing waits.
    pub urgent: bool,
    /// The socket has a pending error.
    pub error: bool,
}

impl From<&mio::event::Event> for Readiness {
    fn from(event: &mio::event::Event) -> Readiness {
        let error = event.is_error();
        Readiness {
            readable: event.is_readable() || event.is_read_closed() || error,
            writable: event.is_writable() || event.is_write_closed() || error,
            read_closed: event.is_read_closed(),
            urgent: event.is_priority(),
            error,
        }
    }
}

/// Why a session or mapping ended.
#[derive(Debug)]
pub enum CloseReason {
    /// Both directions came to their end.
    Done,
    /// The client reset it.
    ClientFailed(io::Error),
    /// The server or proxy reset it.
    ServerFailed(io::Error),
    /// The outbound could not reach the destination; logged where it happened.
    DialFailed,
    /// No byte for `idle_timeout`, no datagram for `udp_timeout`.
    Idle,
    /// A rule says drop.
    Dropped,
    /// A rule says reject.
    Rejected,
    /// The rules have changed, and send it elsewhere.
    Reclassified,
    /// Its client has used up the quota of its rule.
    QuotaUsedUp,
    /// Made room for a newer one.
    Evicted,
    /// Someone asked for it.
    Kicked,
    /// A reload has taken its listener or its outbound away, under `option drop_stale`.
    Stale,
    /// The address that its connection to the server is bound to is this machine's no more.
    AddressGone,
    /// The daemon stops.
    Stopping,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Done => f.write_str("done"),
            CloseReason::ClientFailed(error) => write!(f, "client: {}", Words(error)),
            CloseReason::ServerFailed(error) => write!(f, "server: {}", Words(error)),
            CloseReason::DialFailed => f.write_str("not connected"),
            CloseReason::Idle => f.write_str("idle"),
            CloseReason::Dropped => f.write_str("dropped"),
            CloseReason::Rejected => f.write_str("rejected"),
            CloseReason::Reclassified => f.write_str("new rules send it elsewhere"),
            CloseReason::QuotaUsedUp => f.write_str("quota used up"),
            CloseReason::Evicted => f.write_str("evicted"),
            CloseReason::Kicked => f.write_str("kicked"),
            CloseReason::Stale => f.write_str("stale"),
            CloseReason::AddressGone => f.write_str("own address has gone"),
            CloseReason::Stopping => f.write_str("daemon stops"),
        }
    }
}

/// An error in the kernel's words alone, without `(os error 111)`.
pub struct Words<'a>(pub &'a io::Error);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let words = text.split(" (os error").next().unwrap_or(&text);
        let mut letters = words.chars();
        match letters.next() {
            Some(first) => write!(f, "{}{}", first.to_ascii_lowercase(), letters.as_str()),
            None => f.write_str("unknown error"),
        }
    }
}

/// `5`, `0.3`, `12.34`: seconds as people read them, without the 10 KB that formatting a float would cost.
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_secs())?;
        match self.0.subsec_millis() {
            0 => Ok(()),
            ms if ms % 100 == 0 => write!(f, ".{}", ms / 100),
            ms if ms % 10 == 0 => write!(f, ".{:02}", ms / 10),
            ms => write!(f, ".{ms:03}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_no_more_figures_than_they_need() {
        for (ms, text) in [(5_000, "5"), (300, "0.3"), (12_340, "12.34"), (1_005, "1.005"), (0, "0")] {
            assert_eq!(Seconds(Duration::from_millis(ms)).to_string(), text);
        }
    }

    #[test]
    fn a_token_names_its_owner() {
        for slot in [0, 1, TABLE_MAX - 1] {
            for generation in [0, 1, 0x8000, Key::NO_GENERATION - 1] {
                for side in [Side::Near, Side::Far] {
                    let key = Key { slot, generation };
                    for owner in [Owner::Tcp(key, side), Owner::Udp(key, side)] {
                        assert_eq!(Owner::of(owner.token()), owner);
                        assert!(u32::try_from(owner.token().0).is_ok());
                    }
                }
            }
        }
        for number in [0, 7, u16::MAX] {
            assert_eq!(Owner::of(Owner::Process(number).token()), Owner::Process(number));
        }
    }

    #[test]
    fn an_error_is_told_in_words() {
        assert_eq!(Words(&nix::errno::Errno::ECONNREFUSED.into()).to_string(), "connection refused");
    }
}

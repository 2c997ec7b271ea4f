//! What the control socket shows and changes, as the loop offers it. Nothing here knows sessions from inside.

use crate::config::Mac;
use crate::config::lists::Note;
use crate::error::Error;
use crate::policy::explain::Step;
use crate::policy::{Flow, Proto};
use crate::stats::Stats;
use crate::stats::events::Bounded;
use crate::store::names::NameText;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who answers for the running process.
pub trait Subject {
    /// Registers the connection of client `n`, for reading and writing, edge-triggered.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    fn watch_client(&self, fd: RawFd, n: usize) -> Result<(), Error>;

    /// What is one number, and costs nothing to ask for.
    fn totals(&self) -> Totals;

    /// What is counted and belongs to no outbound or rule.
    fn stats(&self) -> &Stats;

    /// Memory of the process. Costs some system calls.
    fn memory(&self) -> Memory;

    /// The `n`th listener, from 0.
    fn listener(&self, n: usize) -> Option<Listener<'_>>;

    /// For each listener, in the same order, how many packets the rules have given to it; `None`: there are no rules, or
    /// none that count. Costs a question to the kernel.
    fn packets(&self) -> Vec<Option<u64>>;

    /// What each client has moved, live sessions included, the largest first. Costs a walk over all sessions, and a question
    /// to the kernel.
    fn clients(&self) -> Clients;

    /// The last warning or error but `n`.
    fn problem(&self, n: usize) -> Option<Problem>;

    /// The `n`th rule in order, from 0, inactive ones counted.
    fn rule(&self, n: usize) -> Option<Rule<'_>>;

    /// The `n`th set in file order, from 0. Costs a look at its file.
    fn set(&self, n: usize) -> Option<Set<'_>>;

    /// All outbounds, with what their live sessions have moved so far. Costs a walk over all sessions.
    fn outbounds(&self) -> Vec<Outbound>;

    /// True if an outbound of this name is configured or still has sessions.
    fn has_outbound(&self, name: &str) -> bool;

    /// What is at `place`, counted from 0 over all tables.
    fn session(&self, place: u32) -> Place<'_>;

    /// What the rules say to a flow.
    fn explain(&self, asked: &Asked) -> Explained;

    /// Ends sessions and flows; returns how many.
    fn kick(&mut self, which: Kick) -> usize;
}

/// Single numbers.
#[derive(Debug, Clone, Copy)]
pub struct Totals {
    /// Since the process began to serve.
    pub uptime: Duration,
    /// TCP sessions: live, and how many fit.
    pub tcp: (usize, usize),
    /// UDP mappings: live, and how many fit.
    pub udp: (usize, usize),
    /// Buffers.
    pub pool: Pool,
    /// Destination entries in use.
    pub destinations_used: usize,
    /// Destination entries that made room for others.
    pub destinations_evicted: u64,
    /// Redirected UDP flows whose entry made room for another's.
    pub redirected_evicted: u64,
    /// Blocks of the names that clients asked for: in use, and how many there are.
    pub names: (usize, usize),
    /// Flows whose MAC address a rule asked for and nobody knew.
    pub no_mac: u64,
    /// Names for which there was no room, so that nobody sees them.
    pub names_refused: u64,
    /// Clients of rules with a rate: how many are measured, and how many can be.
    pub meters: (usize, usize),
    /// Flows of such rules that were refused because one more could not be.
    pub meters_refused: u64,
    /// Accounts of clients of rules with a quota: in use, and how many there are.
    pub quotas: (usize, usize),
    /// Those that are used up.
    pub quotas_used_up: usize,
    /// Flows of such rules that were refused because there was no account for their client.
    pub quotas_refused: u64,
    /// Most descriptors that the process may have open.
    pub descriptors: u64,
    /// Warnings and errors since the start.
    pub problems: u64,
}

/// A flow that somebody asks about; what is `None` was not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// TCP or UDP.
    pub proto: Proto,
    /// Who begins it.
    pub client: SocketAddr,
    /// Where it goes.
    pub orig_dst: SocketAddr,
    /// The name that is asked for, in lower case.
    pub domain: Option<String>,
    /// By which it comes in.
    pub device: Option<String>,
    /// Of the client.
    pub mac: Option<Mac>,
}

impl Asked {
    /// As the rules are asked.
    pub fn flow(&self) -> Flow<'_> {
        Flow {
            domain: self.domain.as_deref(),
            device: self.device.as_deref(),
            mac: self.mac,
            ..Flow::new(self.proto, self.client, self.orig_dst)
        }
    }
}

/// What the rules say to it.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The file that the rules are from.
    pub config: PathBuf,
    /// Rule by rule, and where each leads.
    pub steps: Vec<(Step, Way)>,
}

/// Where a rule leads.
#[derive(Debug, Clone)]
pub struct Way {
    /// The outbound.
    pub name: String,
    /// up, down, unknown; `None` for what needs no dial.
    pub state: Option<&'static str>,
}

/// What each client has moved.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    /// Those that are kept apart.
    pub list: Vec<ClientRow>,
    /// All the others together.
    pub others: ClientRow,
    /// How often one had to make room for another.
    pub evicted: u64,
}

/// What one client has moved since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRow {
    /// Its address.
    pub ip: IpAddr,
    /// What the kernel's neighbour table has for it.
    pub mac: Option<[u8; 6]>,
    /// Live sessions and mappings.
    pub sessions: u32,
    /// Sessions and mappings since the start.
    pub total: u64,
    /// Bytes from it.
    pub bytes_up: u64,
    /// Bytes to it.
    pub bytes_down: u64,
}

impl Default for ClientRow {
    fn default() -> Self {
        let ip = IpAddr::from([0; 4]);
        ClientRow { ip, mac: None, sessions: 0, total: 0, bytes_up: 0, bytes_down: 0 }
    }
}

/// A warning or error that was logged.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Seconds since 1970.
    pub at: u64,
    /// True: an error; else a warning.
    pub error: bool,
    /// Its text.
    pub text: Bounded<240>,
}

/// Buffers for bytes that the other side did not take at once.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// In use.
    pub lent: usize,
    /// Most that were in use at once.
    pub peak: usize,
    /// All.
    pub capacity: usize,
}

/// Memory of the process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Now.
    pub used: u64,
    /// Most ever.
    pub peak: u64,
    /// Most that this configuration can take.
    pub bound: u64,
}

/// A listener.
#[derive(Debug, Clone, Copy)]
pub struct Listener<'s> {
    /// Section name.
    pub name: &'s str,
    /// What it is bound to.
    pub address: SocketAddr,
    /// TCP is caught.
    pub tcp: bool,
    /// UDP is caught.
    pub udp: bool,
    /// Connections accepted and datagrams received.
    pub accepted: u64,
}

/// A rule.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'s> {
    /// N of `@rule[N]`.
    pub number: u32,
    /// `option name`.
    pub name: Option<&'s str>,
    /// Where it sends flows.
    pub outbound: &'s str,
    /// False: it names a set that could not be read, and never matches.
    pub active: bool,
    /// Flows that it decided.
    pub hits: u64,
    /// Whether it holds now; `None`: it has no hours.
    pub holds: Option<bool>,
    /// Seconds since 1970 when that changes, if it does within a week and the clock is set.
    pub changes: Option<u64>,
}

/// A set.
#[derive(Debug, Clone)]
pub struct Set<'s> {
    /// Section name.
    pub name: &'s str,
    /// It has domains, not networks.
    pub domains: bool,
    /// Networks that touch are one.
    pub entries: usize,
    /// Its list file.
    pub file: Option<&'s Path>,
    /// How old that is; `None`: there is none.
    pub age: Option<Duration>,
    /// What `update-sets` has noted last.
    pub update: Option<Note>,
}

/// A way out.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Section name.
    pub name: String,
    /// `option type`.
    pub kind: &'static str,
    /// What the last dial said.
    pub state: State,
    /// Live sessions and mappings.
    pub sessions: u32,
    /// Bytes from clients, since the start.
    pub bytes_up: u64,
    /// Bytes to clients, since the start.
    pub bytes_down: u64,
    /// Sessions that could not be connected.
    pub errors: u64,
    /// How long it took to be connected the last time, in milliseconds.
    pub latency_ms: Option<u32>,
    /// When a session could not be connected last, in seconds since 1970, and why.
    pub last_error: Option<(u64, Bounded<160>)>,
    /// Connections to its server that were opened in advance.
    pub spare: Spare,
}

/// What an outbound has of connections that were opened in advance.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spare {
    /// `option spare`.
    pub wanted: u64,
    /// How many stand now.
    pub ready: u64,
    /// How often one was taken.
    pub used: u64,
    /// How often there was none.
    pub missing: u64,
    /// How many the server ended.
    pub lost: u64,
}

/// Whether an outbound works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its last dial worked.
    Up,
    /// Its last dial failed, and the destination was not to blame.
    Down,
    /// Nothing was dialled yet.
    Unknown,
}

impl State {
    /// As the answers name it.
    pub fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Down => "down",
            State::Unknown => "unknown",
        }
    }
}

/// What a place in the tables holds.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "it lives for one call, and most are sessions")]
pub enum Place<'s> {
    /// A session or flow.
    Session(Session<'s>),
    /// Nothing.
    Vacant,
    /// There are no more places.
    End,
}

/// A TCP session or UDP mapping.
#[derive(Debug, Clone)]
pub struct Session<'s> {
    /// Names it for `kick`.
    pub id: u32,
    /// TCP or UDP.
    pub proto: Proto,
    /// Who began it.
    pub client: SocketAddr,
    /// Where it was going; for a mapping its first destination.
    pub orig_dst: SocketAddr,
    /// The name that the client asked for.
    pub domain: Option<NameText>,
    /// Number of the rule that decided; `None`: `option default`.
    pub rule: Option<u16>,
    /// Name of the outbound.
    pub outbound: &'s str,
    /// Since when it lives.
    pub age: Duration,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// `resolving`, `dialling`, `relaying`, and others.
    pub state: &'static str,
}

/// What to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// The session of this [`Session::id`].
    Id(u32),
    /// Everything of a client.
    Client(Address),
}

impl Kick {
    /// True if the session of `id`, begun by `client`, is meant.
    pub fn picks(&self, id: u32, client: SocketAddr) -> bool {
        match self {
            Kick::Id(wanted) => *wanted == id,
            Kick::Client(address) => address.is(client),
        }
    }
}

/// An address to look for, with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    ip: IpAddr,
    port: Option<u16>,
}

impl Address {
    /// Reads `192.168.1.2`, `192.168.1.2:443`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:443`.
    ///
    /// # Errors
    /// What it is not, in a sentence.
    pub fn parse(text: &str) -> Result<Address, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Address { ip: ip.to_canonical(), port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => Ok(Address { ip: address.ip().to_canonical(), port: Some(address.port()) }),
            Err(_) => {
                Err(format!("'{text}' is not an address: expected 192.168.1.2, 192.168.1.2:443 or [2001:db8::1]:443"))
            }
        }
    }

    /// True if `address` is meant.
    pub fn is(&self, address: SocketAddr) -> bool {
        self.ip == address.ip() && self.port.is_none_or(|port| port == address.port())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_port_and_brackets() {
        let client: SocketAddr = "192.168.1.2:40000".parse().unwrap();
        for text in ["192.168.1.2", "192.168.1.2:40000", "::ffff:192.168.1.2"] {
            assert!(Address::parse(text).unwrap().is(client), "{text}");
        }
        assert!(!Address::parse("192.168.1.2:1").unwrap().is(client));
        let client: SocketAddr = "[2001:db8::1]:53".parse().unwrap();
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:53"] {
            assert!(Address::parse(text).unwrap().is(client), "{text}");
        }
        for text in ["", "lan", "192.168.1", "192.168.1.2:", "[::1", "192.168.1.0/24"] {
            assert!(Address::parse(text).unwrap_err().contains("expected"), "{text}");
        }
    }
}

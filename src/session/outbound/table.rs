//! The table of all ways out, and how a reload changes it.

use super::{ADDRESSES_MAX, Health, OUTBOUNDS_MAX, Outbound, State, Upstream, Way, version};
use crate::config::{self, Config, Host, OutboundKind, Server, Target};
use crate::error::Error;
use crate::policy::Proto;
use crate::policy::group::{Candidate, pick};
#[cfg(feature = "shadowsocks")]
use crate::proto::shadowsocks::{MasterKey, Method};
use crate::resolve::Resolver;
use crate::stats::events::{Events, Kind};
use crate::store::timers::Tick;
use std::net::{IpAddr, SocketAddr};

/// Members of a group that a flow has been tried by.
pub type Tried = heapless::Vec<u16, 8>;

/// The way that a flow takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// The outbound of this index, which is no group.
    Via(u16),
    /// No member can take it.
    Nobody,
}

/// Groups within groups: the configuration has no more.
const DEEPEST: u8 = 9;

/// Members of one group: the configuration has no more.
const MEMBERS_MAX: usize = 32;

/// All ways out. An index stays the same over reloads for as long as sessions may hold it.
pub struct Outbounds {
    list: Vec<Outbound>,
    /// The latest [`Outbound::epoch`].
    epoch: u32,
}

impl Outbounds {
    /// Only the built-in `direct`.
    pub fn new() -> Outbounds {
        let mut list = Vec::with_capacity(OUTBOUNDS_MAX);
        list.push(Outbound::direct());
        Outbounds { list, epoch: 0 }
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
            if let Some(Server { host: Host::Name(name), .. }) = section.kind.server()
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
        let mut targets: Vec<Option<Target>> = vec![None; config.outbounds.len()];
        // a group comes after its members, and the configuration has no circles
        for _ in 0..config.outbounds.len() {
            for (place, section) in config.outbounds.iter().enumerate() {
                if targets[place].is_none() {
                    targets[place] = self.adopt_one(section, &targets, resolver);
                }
            }
            if targets.iter().all(Option::is_some) {
                break;
            }
        }
        let targets: Vec<Target> = targets.into_iter().map(|target| target.unwrap_or(Target::Reject)).collect();
        for (section, target) in config.outbounds.iter().zip(&targets) {
            if let Target::Outbound(index) = target {
                self.list[usize::from(*index)].udp_outbound = match section.udp_outbound {
                    Target::Outbound(place) => targets.get(usize::from(place)).copied().unwrap_or(Target::Reject),
                    built_in => built_in,
                };
            }
        }
        Ok(targets)
    }

    /// What the rules shall use for `section`; `None`: a member of it has no index yet.
    fn adopt_one(
        &mut self,
        section: &config::Outbound,
        targets: &[Option<Target>],
        resolver: &mut Resolver,
    ) -> Option<Target> {
        let way = match &section.kind {
            OutboundKind::Reject => return Some(Target::Reject),
            OutboundKind::Drop => return Some(Target::Drop),
            OutboundKind::Direct => Way::Direct,
            OutboundKind::Forward { server, send_proxy } => {
                Way::Forward { server: upstream(server, resolver), send_proxy: send_proxy.map(version) }
            }
            OutboundKind::Http { server, credentials } => {
                Way::Http { server: upstream(server, resolver), credentials: credentials.clone() }
            }
            OutboundKind::Socks5 { server, credentials } => {
                Way::Socks5 { server: upstream(server, resolver), credentials: credentials.clone() }
            }
            #[cfg(feature = "shadowsocks")]
            OutboundKind::Shadowsocks { server, secret } => {
                // the configuration knows the methods, and has looked at the password
                let method = Method::of(secret.method)?;
                let key = MasterKey::new(method, &secret.password).ok()?;
                Way::Shadowsocks { server: upstream(server, resolver), key }
            }
            #[cfg(not(feature = "shadowsocks"))]
            OutboundKind::Shadowsocks { .. } => return Some(Target::Reject),
            OutboundKind::Group(group) => {
                let member = |member: &Target| match member {
                    Target::Direct => Some(0),
                    Target::Outbound(place) => match targets.get(usize::from(*place))? {
                        Some(Target::Outbound(index)) => Some(*index),
                        _ => None,
                    },
                    Target::Reject | Target::Drop => None,
                };
                let members = group.members.iter().map(member).collect::<Option<Vec<u16>>>()?;
                Way::Group { members, policy: group.policy, direct_when_down: group.direct_when_down }
            }
        };
        let index = self.slot_for(&section.name, &way);
        self.epoch = self.epoch.wrapping_add(1);
        let outbound = &mut self.list[index];
        if outbound.way != way || outbound.device != section.device || outbound.fwmark != section.fwmark {
            outbound.epoch = self.epoch;
        }
        outbound.spares.wanted = section.spare;
        if outbound.way != way || outbound.check != section.check {
            (outbound.health, outbound.latency) = (Health::UNKNOWN, None);
            outbound.next_check = None;
        }
        outbound.way = way;
        outbound.configured = true;
        outbound.connect_timeout = section.connect_timeout;
        outbound.idle_timeout = section.idle_timeout;
        outbound.udp_timeout = section.udp_timeout;
        outbound.device = section.device.clone();
        outbound.fwmark = section.fwmark;
        outbound.send_domain = section.send_domain;
        outbound.keep_source = section.keep_source;
        outbound.udp = section.udp;
        outbound.sends_udp = section.sends_udp_to_server();
        outbound.check = section.check.clone();
        Some(Target::Outbound(index as u16))
    }

    /// The way that a flow takes which the rules have given to `index`: that one or, if it is a group, one of its members,
    /// but for those in `tried`.
    pub fn choose(&mut self, index: u16, proto: Proto, tried: &Tried, resolver: &Resolver, now: Tick) -> Chosen {
        let Way::Group { direct_when_down, .. } = self.get(index).way else { return Chosen::Via(index) };
        match self.member(index, proto, tried, resolver, now, DEEPEST) {
            Some(candidate) => Chosen::Via(candidate.outbound),
            None if direct_when_down && !tried.contains(&0) => Chosen::Via(0),
            None => Chosen::Nobody,
        }
    }

    fn member(
        &mut self,
        index: u16,
        proto: Proto,
        tried: &Tried,
        resolver: &Resolver,
        now: Tick,
        depth: u8,
    ) -> Option<Candidate> {
        let outbound = self.get(index);
        let Way::Group { members, policy, .. } = &outbound.way else {
            let carries = proto == Proto::Tcp || outbound.carries_udp(now);
            let doubtful = outbound.doubtful(resolver, now).filter(|_| carries && !tried.contains(&index))?;
            let (latency, sessions) = (outbound.latency, outbound.sessions);
            return Some(Candidate { outbound: index, doubtful, latency, sessions });
        };
        let (policy, last, count) = (*policy, outbound.last_member, members.len());
        let mut candidates = heapless::Vec::<Candidate, MEMBERS_MAX>::new();
        for place in 0..count {
            let Way::Group { members, .. } = &self.get(index).way else { break };
            let Some(member) = members.get(place).copied() else { break };
            if let Some(candidate) = self.member(member, proto, tried, resolver, now, depth.checked_sub(1)?) {
                let _ = candidates.push(candidate);
            }
        }
        let chosen = pick(policy, last, &candidates)?;
        self.get_mut(index).last_member = Some(chosen);
        candidates.into_iter().find(|candidate| candidate.outbound == chosen)
    }

    /// Where UDP goes that the rules give to `target`: there or, if its server turned out to carry none, elsewhere.
    pub fn carrying_udp(&self, mut target: Target, now: Tick) -> Target {
        // `udp_outbound` never leads in a circle
        for _ in 0..self.list.len() {
            match target {
                Target::Outbound(index) if !self.get(index).carries_udp(now) => target = self.get(index).udp_outbound,
                _ => return target,
            }
        }
        Target::Reject
    }

    /// Whether each destination needs a mapping of its own, since answers do not name it.
    pub fn is_single(&self, index: u16) -> bool {
        self.is_single_within(index, DEEPEST)
    }

    fn is_single_within(&self, index: u16, depth: u8) -> bool {
        match (&self.get(index).way, depth.checked_sub(1)) {
            (Way::Group { members, .. }, Some(depth)) => {
                members.iter().any(|member| self.is_single_within(*member, depth))
            }
            _ => self.get(index).is_forward(),
        }
    }

    /// Whether anything can be given to `index`, as far as is known: of a group, to one of its members.
    fn state(&self, index: u16, depth: u8) -> State {
        let Way::Group { members, .. } = &self.get(index).way else { return self.get(index).health.state };
        let Some(depth) = depth.checked_sub(1) else { return State::Unknown };
        let mut states = members.iter().map(|member| self.state(*member, depth));
        let (mut up, mut down) = (false, true);
        states.by_ref().for_each(|state| {
            up |= state == State::Up;
            down &= state == State::Down;
        });
        match (up, down) {
            (true, _) => State::Up,
            (_, true) => State::Down,
            _ => State::Unknown,
        }
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

    /// Tells of those with a server, and of groups, that have gone up or down since the last call. To be called once a turn.
    pub fn announce(&mut self, events: &mut Events) {
        let is_as_before = |outbound: &Outbound| {
            outbound.health.state == outbound.announced && !matches!(outbound.way, Way::Group { .. })
        };
        if self.list.iter().all(is_as_before) {
            return;
        }
        for index in 0..self.list.len() {
            if matches!(self.list[index].way, Way::Group { .. }) {
                self.list[index].health.state = self.state(index as u16, DEEPEST);
            }
            let outbound = &mut self.list[index];
            let state = outbound.health.state;
            if state == outbound.announced {
                continue;
            }
            outbound.announced = state;
            let is_group = matches!(outbound.way, Way::Group { .. });
            if !outbound.configured || outbound.server().is_none() && !is_group {
                continue;
            }
            let name = &outbound.name;
            match state {
                State::Unknown => {}
                State::Up => {
                    log::info!("outbound '{name}' is up");
                    events.push(Kind::OutboundUp, name, "");
                }
                State::Down => {
                    let why = outbound.last_error.as_ref().map_or("", |(_, why)| why.as_str());
                    let why = if is_group { "no member is up" } else { why };
                    // of one that is not checked, the session that failed has been warned of already
                    let level = if is_group || outbound.check.is_some() { log::Level::Warn } else { log::Level::Info };
                    log::log!(level, "outbound '{name}' is down: {why}");
                    events.push(Kind::OutboundDown, name, why);
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

    /// How many there are; each index below is taken.
    pub fn len(&self) -> u16 {
        self.list.len() as u16
    }

    /// Never: `direct` is always there.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
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
    pub fn server_addresses(&self, resolver: &Resolver) -> Vec<(Proto, SocketAddr)> {
        let mut all: Vec<(Proto, SocketAddr)> = Vec::new();
        for outbound in self.list.iter().filter(|o| o.configured && o.server().is_some()) {
            let no_destination = SocketAddr::new(IpAddr::from([0; 4]), 0);
            for address in (0..ADDRESSES_MAX as u8).map_while(|n| outbound.address(n, no_destination, resolver)) {
                all.push((Proto::Tcp, address));
                if outbound.sends_udp {
                    all.push((Proto::Udp, address));
                }
            }
        }
        all.sort_unstable_by_key(|(proto, address)| (*address, *proto == Proto::Udp));
        all.dedup();
        all
    }
}

fn upstream(server: &Server, resolver: &mut Resolver) -> Upstream {
    let name = match &server.host {
        Host::Name(name) => resolver.intern(name),
        Host::Address(_) => None,
    };
    Upstream { host: server.host.clone(), port: server.port, name }
}

impl Default for Outbounds {
    fn default() -> Self {
        Self::new()
    }
}

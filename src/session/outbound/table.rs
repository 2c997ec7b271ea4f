//! The table of all ways out, and how a reload changes it.

use super::{ADDRESSES_MAX, OUTBOUNDS_MAX, Outbound, State, Upstream, Way, version};
use crate::config::{Config, Host, OutboundKind, Server, Target};
use crate::error::Error;
use crate::policy::Proto;
use crate::resolve::Resolver;
use crate::stats::events::{Events, Kind};
use std::net::{IpAddr, SocketAddr};

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
        let targets = config.outbounds.iter().map(|section| {
            let way = match &section.kind {
                OutboundKind::Reject => return Target::Reject,
                OutboundKind::Drop => return Target::Drop,
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
            outbound.device = section.device.clone();
            outbound.fwmark = section.fwmark;
            outbound.keep_source = section.keep_source;
            outbound.sends_udp = section.sends_udp_to_server();
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

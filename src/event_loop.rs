//! The loop: one thread, one `mio::Poll`, the only clock. It owns every table and hands each event to whom it belongs.

use crate::config::{self, Config, Families};
use crate::control;
use crate::error::Error;
use crate::netfilter::addresses::Addresses;
use crate::netfilter::neighbours;
use crate::policy::{Policy, Proto};
use crate::resolve::{NameId, Outcome, QUERIES_MAX, Resolver, ServersSource};
use crate::session::association;
use crate::session::checks::{CHECKS_MAX, Checks};
use crate::session::intercept::{Allowed, Listener};
use crate::session::origin::Origins;
use crate::session::outbound::{HeldBack, Limiter, Outbounds};
use crate::session::pipes::Pipes;
use crate::session::redirect::Redirects;
use crate::session::reply::Replies;
use crate::session::tcp::Tcp;
use crate::session::tcp::View;
use crate::session::udp::Udp;
use crate::session::{CloseReason, Cx, Owner, Readiness, Words};
use crate::stats::Stats;
use crate::stats::events::{Events as EventLog, Kind};
use crate::store::names::Names;
use crate::store::pool::Pool;
use crate::store::timers::Tick;
use crate::sys::dgram::ReceiveBatch;
use crate::sys::random;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use std::cell::RefCell;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod subject;

/// Numbers of the process's own descriptors (see [`Owner::Process`]).
pub mod number {
    /// SIGTERM, SIGINT, SIGHUP.
    pub const SIGNALS: u16 = 0;
    /// The privileged helper.
    pub const HELPER: u16 = 1;
    /// The control socket.
    pub const CONTROL: u16 = 2;
    /// Connections to the control socket, one number each.
    pub const CONTROL_CLIENT: u16 = 3;
    /// News of this machine's addresses.
    pub const ADDRESSES: u16 = 15;
    /// The socket of `option metrics`.
    pub const METRICS: u16 = 8;
    /// Connections to it; the number of the first for [`super::control::Subject::watch_client`] is [`SCRAPE_CLIENT`].
    pub const SCRAPE: u16 = CONTROL_CLIENT + SCRAPE_CLIENT as u16;
    /// See [`SCRAPE`].
    pub const SCRAPE_CLIENT: usize = 6;
    /// Listeners: two numbers each, TCP and UDP.
    pub const LISTENER: u16 = 16;
    /// News of devices and addresses.
    pub const NEWS: u16 = 96;
    /// News of nftables.
    pub const NEWS_OF_TABLES: u16 = 97;
    /// Health checks under way.
    pub const CHECK: u16 = 128;
    /// The resolver's sockets.
    pub const RESOLVER: u16 = 256;
}

/// Most listeners.
pub const LISTENERS_MAX: usize = 32;

const _: () = assert!(number::CONTROL_CLIENT as usize + control::CLIENTS_MAX <= number::METRICS as usize);
const _: () = assert!(number::METRICS < number::SCRAPE);
const _: () = assert!(number::SCRAPE as usize + control::SCRAPES_MAX <= number::ADDRESSES as usize);
const _: () = assert!(number::LISTENER as usize + 2 * LISTENERS_MAX <= number::CHECK as usize);
const _: () = assert!(number::CHECK as usize + CHECKS_MAX <= number::RESOLVER as usize);
const _: () = assert!(LISTENERS_MAX <= u32::BITS as usize);

/// Events that one call of poll returns at most.
const EVENTS: usize = 256;

/// How long accepting pauses when descriptors or kernel memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything that lives as long as the process.
pub struct Engine {
    poll: Poll,
    started: Instant,
    /// When the last turn began.
    now: Tick,
    config: Config,
    /// Where it was read from.
    file: PathBuf,
    families: Families,
    listeners: Vec<Option<Listener>>,
    /// Places of listeners where something may wait, a bit for each.
    waiting: u32,
    tcp: Tcp,
    udp: Udp,
    batch: ReceiveBatch,
    pool: Pool,
    pipes: Pipes,
    outbounds: Outbounds,
    /// Not there only while they run.
    checks: Option<Checks>,
    resolver: Resolver,
    policy: Policy,
    replies: Replies,
    addresses: Addresses,
    stats: Stats,
    names: Names,
    origins: Origins,
    /// Live flows are to be looked at once the new rules are complete.
    reclassify_due: bool,
    /// The listeners were asked to tell devices.
    told_devices: bool,
    /// Flows that each rule decided in the kernel, by its number, as last looked at.
    kernel_hits: RefCell<Vec<(u32, u64)>>,
    accept_again: Option<Tick>,
    accept_limiter: Limiter,
    lookup_limiter: Limiter,
}

/// Names that were looked up in one turn, and what came of it.
type Resolved = heapless::Vec<(NameId, Outcome), { 2 * QUERIES_MAX }>;

impl Engine {
    /// Opens every socket and takes every table of `config`, on a kernel that has `families`.
    ///
    /// # Errors
    /// What could not be had, and what to do about it.
    pub fn new(config: Config, families: Families) -> Result<Engine, Error> {
        let poll = Poll::new().map_err(|e| Error::new("open an epoll descriptor", &e))?;
        let globals = &config.globals;
        let self_mark = globals.self_mark.value;
        let token = Owner::Process(number::RESOLVER).token();
        let source = servers(&globals.resolver);
        let mut resolver = Resolver::new(source, self_mark, (families.v4, families.v6), token);
        let mut outbounds = Outbounds::new();
        let targets = outbounds.adopt(&config, &mut resolver)?;
        let replies = Replies::open(families.v4, families.v6, self_mark)
            .map_err(|e| Error::new("open raw sockets", &e).hint("replies from foreign addresses need CAP_NET_RAW"))?;
        let mut engine = Engine {
            poll,
            started: now(),
            file: PathBuf::new(),
            now: Tick(0),
            families,
            listeners: Vec::new(),
            waiting: 0,
            tcp: Tcp::new(globals.tcp_sessions as u16),
            udp: Udp::new(globals.udp_sessions as u16, random::u64()),
            batch: ReceiveBatch::new(),
            pool: Pool::new(globals.relay_memory),
            pipes: Pipes::new(Pipes::suiting(globals.relay_memory)),
            outbounds,
            checks: Some(Checks::new(number::CHECK)),
            resolver,
            policy: Policy::new(&config, &targets),
            replies,
            addresses: Addresses::watch()?,
            stats: Stats::new(),
            names: Names::new((globals.tcp_sessions + globals.udp_sessions) as usize),
            origins: Origins::new(neighbours::all),
            told_devices: false,
            reclassify_due: false,
            kernel_hits: RefCell::default(),
            accept_again: None,
            accept_limiter: Limiter::default(),
            lookup_limiter: Limiter::default(),
            config,
        };
        engine.replies.redirects = Redirects::new(engine.udp.capacity() as u16, random::u64());
        engine.listeners.resize_with(LISTENERS_MAX, || None);
        engine.watch(engine.addresses.fd(), number::ADDRESSES)?;
        let plan = engine.plan_listeners(&engine.config.clone())?;
        engine.take_listeners(plan)?;
        engine.ask_names();
        Ok(engine)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The configuration comes from `file`, for whoever asks.
    pub fn read_from(&mut self, file: &Path) {
        self.file = file.to_owned();
    }

    /// What has happened lately.
    pub fn events(&self) -> &EventLog {
        &self.stats.events
    }

    /// Something has happened outside of the loop.
    pub fn note_event(&mut self, kind: Kind, detail: impl std::fmt::Display) {
        self.stats.events.push(kind, "", detail);
    }

    /// Registers one of the process's own descriptors, for reading.
    ///
    /// # Errors
    /// `ENOMEM`, `ENOSPC` of epoll_ctl(2).
    pub fn watch(&self, fd: RawFd, number: u16) -> Result<(), Error> {
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), Owner::Process(number).token(), Interest::READABLE)
            .map_err(|e| Error::new("watch a descriptor", &e))
    }

    /// Addresses of the outbounds' servers, for the rules to pass by.
    pub fn server_addresses(&self) -> Vec<(Proto, std::net::SocketAddr)> {
        self.outbounds.server_addresses(&self.resolver)
    }

    /// Waits for events and hands them out once, until one is of the process's own: its numbers are put into `own`.
    /// True: addresses of servers may have changed.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn turn(&mut self, events: &mut Events, until: Option<Tick>, own: &mut Vec<u16>) -> std::io::Result<bool> {
        let timeout = self.timeout(until);
        match self.poll.poll(events, timeout) {
            Err(e) if e.kind() != std::io::ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        let now = self.tick();
        self.now = now;
        let mut resolved = Resolved::new();
        for event in events.iter() {
            match Owner::of(event.token()) {
                Owner::Process(number) if (number::CHECK..number::CHECK + CHECKS_MAX as u16).contains(&number) => {
                    let micros = self.micros();
                    self.with_checks(now, |checks, cx| checks.ready(number, Readiness::from(event), micros, cx));
                }
                Owner::Process(number) => self.own_event(event.token(), number, now, &mut resolved, own),
                Owner::Tcp(key, side) => {
                    let (tcp, _, batch, _, mut cx) = self.split(now);
                    tcp.ready(key, side, Readiness::from(event), batch.scratch(), &mut cx);
                }
                Owner::Udp(key, side) => {
                    let (_, udp, batch, replies, mut cx) = self.split(now);
                    udp.ready(key, side, Readiness::from(event), batch, replies, &mut cx);
                }
            }
        }
        self.serve_listeners(now);
        let (tcp, udp, batch, replies, mut cx) = self.split(now);
        tcp.run_queued(batch.scratch(), &mut cx);
        udp.run_queued(batch, replies, &mut cx);
        replies.expire(now);
        replies.redirects.expire(now);
        tcp.expire(&mut cx);
        udp.expire(&mut cx);
        #[cfg(feature = "quic")]
        udp.give_up_names(replies, &mut cx);
        let mut done = |id, outcome| note(&mut resolved, id, outcome);
        self.resolver.expire(now, self.poll.registry(), &mut done);
        for (name, outcome) in &resolved {
            self.log_lookup(*name, outcome, now);
            let (tcp, udp, _, replies, mut cx) = self.split(now);
            tcp.resolved(*name, &mut cx);
            association::resolved(udp, *name, replies, &mut cx);
        }
        let micros = self.micros();
        self.with_checks(now, |checks, cx| {
            checks.hurry(cx);
            checks.run(micros, cx);
        });
        self.outbounds.announce(&mut self.stats.events);
        Ok(resolved.iter().any(|(_, outcome)| matches!(outcome, Outcome::Resolved { .. })))
    }

    fn log_lookup(&mut self, name: NameId, outcome: &Outcome, now: Tick) {
        let Some(status) = self.resolver.status(name) else { return };
        match outcome {
            Outcome::Resolved { changed: true } => log::info!("'{}' is at {:?}", status.name, status.addresses),
            Outcome::Resolved { changed: false } => {}
            Outcome::Failed(failure) => {
                if let Some(held_back) = self.lookup_limiter.admit(now) {
                    let kept = if status.addresses.is_empty() { "" } else { "; its last address stays in use" };
                    log::warn!("look up '{}': {failure}{kept}{}", status.name, HeldBack(held_back));
                }
            }
        }
    }

    fn own_event(&mut self, token: mio::Token, number: u16, now: Tick, resolved: &mut Resolved, own: &mut Vec<u16>) {
        if self.resolver.owns(token) {
            let mut done = |id, outcome| note(resolved, id, outcome);
            self.resolver.ready(token, now, self.poll.registry(), &mut done);
        } else if let Some(place) =
            number.checked_sub(number::LISTENER).map(usize::from).filter(|n| *n < 2 * LISTENERS_MAX)
        {
            let proto = if place % 2 == 0 { Proto::Tcp } else { Proto::Udp };
            if let Some(listener) = &mut self.listeners[place / 2] {
                listener.note(proto);
                self.waiting |= 1 << (place / 2);
            }
        } else if number == number::ADDRESSES {
            self.end_bound_to_gone(now);
        } else {
            own.push(number);
        }
    }

    /// Ends what is bound to addresses that this machine has lost.
    fn end_bound_to_gone(&mut self, now: Tick) {
        loop {
            let gone = self.addresses.take_gone();
            if gone.is_empty() {
                return;
            }
            let (tcp, udp, _, _, mut cx) = self.split(now);
            let (sessions, flows) = (tcp.end_bound_to(&gone, &mut cx), udp.end_bound_to(&gone, &mut cx));
            if sessions + flows > 0 {
                log::info!(
                    "lost {gone:?}: {sessions} TCP sessions and {flows} UDP flows that were bound to it have ended"
                );
            }
        }
    }

    /// Accepts and receives what waits at the listeners, each up to its share.
    fn serve_listeners(&mut self, now: Tick) {
        let paused = self.accept_again.is_some_and(|again| !now.reached(again));
        if !paused {
            self.accept_again = None;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        while waiting != 0 {
            let place = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            let Some(mut listener) = self.listeners[place].take() else { continue };
            let (tcp, udp, batch, replies, mut cx) = self.split(now);
            cx.listener = listener.place;
            if listener.has_queued() {
                listener.receive(udp, batch, replies, &mut cx);
            }
            if listener.has_waiting()
                && !paused
                && let Err(e) = listener.accept(tcp, &mut cx)
            {
                cx.stats.accept_paused += 1;
                if let Some(held_back) = self.accept_limiter.admit(now) {
                    log::warn!(
                        "accept at listener '{}': {}; it pauses{}",
                        listener.name,
                        Words(&e),
                        HeldBack(held_back)
                    );
                }
                self.accept_again = Some(now.after(ACCEPT_PAUSE));
            }
            self.waiting |= u32::from(listener.has_queued() || listener.has_waiting()) << place;
            self.listeners[place] = Some(listener);
        }
    }

    /// How long poll may sleep.
    fn timeout(&self, until: Option<Tick>) -> Option<Duration> {
        let may_accept = self.accept_again.is_none() && !self.tcp.is_full();
        let work = self.tcp.has_queued()
            || self.udp.has_queued()
            || self.waiting != 0
                && self.listeners.iter().flatten().any(|l| l.has_queued() || l.has_waiting() && may_accept);
        if work {
            return Some(Duration::ZERO);
        }
        let tables = [
            self.tcp.deadline(),
            self.udp.deadline(),
            self.resolver.deadline(),
            self.replies.deadline(),
            self.replies.redirects.deadline(),
            self.checks.as_ref().and_then(Checks::deadline),
        ];
        let deadlines = tables.into_iter().chain([self.accept_again, until]);
        // As of this turn's begin: on many routers the clock is a system call, and a deadline has time.
        let now = self.now;
        deadlines.flatten().map(|at| if now.reached(at) { Duration::ZERO } else { at.since(now) }).min()
    }

    fn with_checks(&mut self, now: Tick, work: impl FnOnce(&mut Checks, &mut Cx<'_>)) {
        if let Some(mut checks) = self.checks.take() {
            let (_, _, _, _, mut cx) = self.split(now);
            work(&mut checks, &mut cx);
            self.checks = Some(checks);
        }
    }

    /// Microseconds since the start, for what is measured.
    fn micros(&self) -> u64 {
        now().duration_since(self.started).as_micros() as u64
    }

    /// The moment, in steps since the start.
    pub fn tick(&self) -> Tick {
        Tick::at(now().duration_since(self.started))
    }

    fn split(&mut self, now: Tick) -> (&mut Tcp, &mut Udp, &mut ReceiveBatch, &mut Replies, Cx<'_>) {
        let cx = Cx {
            registry: self.poll.registry(),
            now,
            pool: &mut self.pool,
            pipes: &mut self.pipes,
            outbounds: &mut self.outbounds,
            resolver: &mut self.resolver,
            policy: &mut self.policy,
            stats: &mut self.stats,
            names: &mut self.names,
            origins: &mut self.origins,
            sniff_timeout: self.config.globals.sniff_timeout,
            self_mark: self.config.globals.self_mark.value,
            listener: 0,
        };
        (&mut self.tcp, &mut self.udp, &mut self.batch, &mut self.replies, cx)
    }

    /// Ends everything that is relayed.
    pub fn close_all(&mut self) {
        let now = self.tick();
        let (tcp, udp, _, _, mut cx) = self.split(now);
        tcp.close_all(&mut cx);
        udp.close_all(&mut cx);
    }

    /// Asks for the names of all servers, so that the first flow need not wait.
    fn ask_names(&mut self) {
        let now = self.tick();
        for (_, outbound) in self.outbounds.iter().filter(|(_, outbound)| outbound.configured) {
            if let Some(name) = outbound.server().and_then(|server| server.name) {
                self.resolver.request(name, now);
            }
        }
    }

    /// Opens what a new configuration needs beside what is open already. Nothing has changed yet, and dropping the result
    /// changes nothing.
    ///
    /// # Errors
    /// What could not be had.
    pub fn prepare(&mut self, config: Config) -> Result<Prepared, Error> {
        let plan = self.plan_listeners(&config)?;
        self.outbounds.fit(&config, &mut self.resolver)?;
        Ok(Prepared { config, plan })
    }

    /// Puts a prepared configuration in force: swaps rules, closes what has gone. Sessions live on. Returns what changed, for
    /// people to read.
    ///
    /// # Errors
    /// A new listener could not be watched.
    pub fn commit(&mut self, prepared: Prepared) -> Result<Vec<String>, Error> {
        let Prepared { config, plan } = prepared;
        let mut changes = self.differences(&config);
        let targets = self.outbounds.adopt(&config, &mut self.resolver)?;
        let outbounds = &self.outbounds;
        self.resolver.retain(self.poll.registry(), &mut |name| outbounds.uses_name(name));
        let now = self.tick();
        let globals = &config.globals;
        let families = (self.families.v4, self.families.v6);
        self.resolver.reconfigure(servers(&globals.resolver), globals.self_mark.value, families, now);
        let mut policy = Policy::new(&config, &targets);
        policy.adopt_hits(&self.policy);
        self.policy = policy;
        self.with_checks(now, |checks, _| checks.restart(now));
        self.udp.forget_verdicts();
        log::set_max_level(globals.log_level);
        let reclassifies = config.globals.reclassify;
        self.config = config;
        self.ask_names();
        let kept: Vec<usize> = plan.iter().filter_map(|planned| planned.from).collect();
        self.take_listeners(plan)?;
        if self.config.globals.drop_stale {
            let ended = self.drop_stale(&kept);
            if ended > 0 {
                changes.push(format!("{ended} sessions of what was removed ended"));
            }
        }
        self.reclassify_due = reclassifies;
        self.now = self.tick();
        if changes.is_empty() {
            changes.push("nothing".into());
        }
        Ok(changes)
    }

    /// Ends what a listener that is not in one of the `kept` places has taken before, or what leaves by an outbound that is not
    /// configured any more.
    fn drop_stale(&mut self, kept: &[usize]) -> usize {
        let gone: Vec<bool> =
            self.outbounds.iter().map(|(_, outbound)| !outbound.configured && outbound.sessions > 0).collect();
        let is_gone = |index: u16| gone.get(usize::from(index)).copied().unwrap_or(false);
        let stale =
            |view: &View| is_gone(view.outbound) || is_gone(view.group) || !kept.contains(&usize::from(view.listener));
        let now = self.tick();
        let (tcp, udp, _, _, mut cx) = self.split(now);
        tcp.end(stale, || CloseReason::Stale, &mut cx) + udp.end(stale, || CloseReason::Stale, &mut cx)
    }

    /// Tells which devices the networks are that rules name. Live flows get new rules then, if that is wanted.
    pub fn resolve_networks(&mut self, device_of: &dyn Fn(&str) -> Option<String>) {
        self.policy.resolve_networks(device_of);
        if std::mem::take(&mut self.reclassify_due) {
            let now = self.tick();
            let (tcp, udp, _, _, mut cx) = self.split(now);
            let ended = tcp.reclassify(&mut cx);
            udp.forget_all();
            log::info!("the new rules end {ended} TCP sessions");
        }
    }

    /// What a reload to `new` changes, in a person's words.
    fn differences(&self, new: &Config) -> Vec<String> {
        let (old, new) = (&without_lines(&self.config), &without_lines(new));
        let mut all = Vec::new();
        if old.listeners != new.listeners {
            all.push("listeners".into());
        }
        if old.outbounds != new.outbounds {
            all.push("outbounds".into());
        }
        if old.rules != new.rules || old.sets != new.sets || old.globals.default != new.globals.default {
            all.push("rules".into());
        }
        let fixed = |globals: &config::Globals| {
            (globals.tcp_sessions, globals.udp_sessions, globals.relay_memory, globals.mark, globals.self_mark)
        };
        if fixed(&old.globals) != fixed(&new.globals) {
            all.push("table sizes or marks (which take effect at the next restart)".into());
        } else if old.globals != new.globals {
            all.push("globals".into());
        }
        all
    }

    /// Which socket goes to which listener, with those opened that are missing. Nothing has changed yet.
    fn plan_listeners(&self, config: &Config) -> Result<Vec<Planned>, Error> {
        if config.listeners.len() > LISTENERS_MAX {
            let why = format!("the file has {}, and at most {LISTENERS_MAX} fit", config.listeners.len());
            return Err(Error::new("open the listeners", why));
        }
        let mark = self.config.globals.self_mark.value;
        let mut plan: Vec<Planned> = Vec::new();
        for section in &config.listeners {
            let taken = |place: usize| plan.iter().any(|planned| planned.from == Some(place));
            let from = self.listeners.iter().enumerate().position(|(place, listener)| {
                !taken(place) && listener.as_ref().is_some_and(|l| l.may_become(section, self.families))
            });
            let old = from.and_then(|place| self.listeners[place].as_ref());
            plan.push(Planned {
                from,
                listener: Listener::open(
                    section,
                    self.families,
                    mark,
                    old,
                    &self.listeners,
                    Allowed::of(section, config),
                )?,
            });
        }
        Ok(plan)
    }

    /// Carries a plan out: listeners without a place in it are closed.
    fn take_listeners(&mut self, plan: Vec<Planned>) -> Result<(), Error> {
        let mut old: Vec<Option<Listener>> = std::mem::take(&mut self.listeners);
        self.listeners.resize_with(LISTENERS_MAX, || None);
        let (kept, new): (Vec<_>, Vec<_>) = plan.into_iter().partition(|planned| planned.from.is_some());
        let mut to_register: Vec<(RawFd, u16)> = Vec::new();
        for Planned { from, mut listener } in kept.into_iter().chain(new) {
            let free = || self.listeners.iter().position(Option::is_none);
            let Some(place) = from.or_else(free) else { continue };
            for (offset, proto) in [Proto::Tcp, Proto::Udp].into_iter().enumerate() {
                if let Some(fd) = listener.fd(proto) {
                    to_register.push((fd, number::LISTENER + (2 * place + offset) as u16));
                }
            }
            if let Some(old) = from.and_then(|place| old[place].take()) {
                listener.inherit(old);
            }
            listener.place = place as u8;
            self.listeners[place] = Some(listener);
        }
        old.into_iter().flatten().for_each(|listener| self.take_leave(listener));
        self.waiting = u32::MAX;
        self.listeners.iter().flatten().for_each(Listener::keep_ports);
        self.origins.serve(&self.policy);
        let tells = self.origins.asks_for_device();
        if tells || self.told_devices {
            self.listeners.iter().flatten().for_each(|listener| listener.tell_devices(tells));
            self.told_devices = tells;
        }
        self.answer_redirected()?;
        to_register.into_iter().try_for_each(|(fd, number)| self.watch(fd, number))
    }

    /// Takes what still waits at a listener that goes: connections in its queue would be reset with it.
    fn take_leave(&mut self, mut listener: Listener) {
        let now = self.tick();
        let (tcp, udp, batch, replies, mut cx) = self.split(now);
        cx.listener = listener.place;
        if listener.fd(Proto::Tcp).is_some() {
            listener.note(Proto::Tcp);
        }
        while listener.has_waiting() && !tcp.is_full() && listener.accept(tcp, &mut cx).is_ok() {}
        listener.receive(udp, batch, replies, &mut cx);
    }

    /// Gives the sockets of listeners by redirect to those who answer for them.
    fn answer_redirected(&mut self) -> Result<(), Error> {
        let timeouts = self.config.outbounds.iter().map(|outbound| outbound.udp_timeout);
        let longest = timeouts.chain([self.outbounds.get(0).udp_timeout]).max().unwrap_or_default();
        self.replies.redirects.set_lifetime(longest);
        for (place, listener) in self.listeners.iter().enumerate() {
            let redirects = &mut self.replies.redirects;
            let socket = listener.as_ref().map_or(Ok(None), Listener::answering_socket);
            let translated = listener.as_ref().is_some_and(|listener| listener.bound.mode == config::Mode::Redirect);
            let added = socket.and_then(|socket| match socket {
                Some(socket) => redirects.add_listener(place, socket, translated),
                None => {
                    redirects.remove_listener(place);
                    Ok(())
                }
            });
            added.map_err(|e| {
                Error::new("ask connection tracking where redirected datagrams were going", &e)
                    .hint("install kmod-nf-conntrack-netlink (CONFIG_NF_CT_NETLINK), or set `option proto 'tcp'`")
            })?;
        }
        Ok(())
    }
}

/// A configuration that can be put in force at once.
pub struct Prepared {
    config: Config,
    plan: Vec<Planned>,
}

impl Prepared {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// A listener as it will be, with the sockets that had to be opened for it.
struct Planned {
    /// The place of the listener whose other sockets it takes over.
    from: Option<usize>,
    listener: Listener,
}

/// Remembers what came of looking a name up; of both its questions, the later.
fn note(resolved: &mut Resolved, name: NameId, outcome: Outcome) {
    match resolved.iter_mut().find(|(known, _)| *known == name) {
        Some(known) => known.1 = outcome,
        // there is room for two names for each question that can be under way
        None => drop(resolved.push((name, outcome))),
    }
}

/// Where the resolver learns its servers.
fn servers(option: &config::Resolver) -> ServersSource {
    match option {
        config::Resolver::File(path) => ServersSource::File(path.clone()),
        config::Resolver::Server(address) => ServersSource::Server(*address),
    }
}

/// `config` as it would be with everything on one line, so that a comment more is no change.
fn without_lines(config: &Config) -> Config {
    let mut config = config.clone();
    config.listeners.iter_mut().for_each(|section| section.line = 0);
    config.outbounds.iter_mut().for_each(|section| section.line = 0);
    config.sets.iter_mut().for_each(|section| section.line = 0);
    config.rules.iter_mut().for_each(|section| section.line = 0);
    config
}

/// Room for the events of one turn.
pub fn events() -> Events {
    Events::with_capacity(EVENTS)
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
fn now() -> Instant {
    Instant::now()
}

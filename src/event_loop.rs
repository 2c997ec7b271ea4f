//! The loop: one thread, one `mio::Poll`, the only clock. It owns every table and hands each event to whom it belongs.

use crate::config::{self, Config, Families, SPARES_MAX};
use crate::control;
use crate::error::Error;
use crate::netfilter::addresses::Addresses;
use crate::netfilter::neighbours;
use crate::policy::{Policy, Proto};
use crate::resolve::{NameId, Outcome, QUERIES_MAX, Resolver, ServersSource};
use crate::session::associated::Associated;
use crate::session::association;
use crate::session::checks::{CHECKS_MAX, Checks};
use crate::session::intercept::Listener;
use crate::session::origin::Origins;
use crate::session::outbound::{HeldBack, Limiter, Outbounds};
use crate::session::pipes::Pipes;
use crate::session::redirect::Redirects;
use crate::session::reply::Replies;
use crate::session::spares::{self, Spares};
use crate::session::tcp::{Tcp, View};
use crate::session::udp::Udp;
use crate::session::{CloseReason, Cx, Owner, Readiness, Words};
use crate::stats::Stats;
use crate::stats::events::{Events as EventLog, Kind};
use crate::store::meters::Meters;
use crate::store::names::Names;
use crate::store::pool::Pool;
use crate::store::quotas::Quotas;
use crate::store::shares::Shares;
use crate::store::timers::Tick;
use crate::sys::dgram::ReceiveBatch;
use crate::sys::{memory, random};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use std::cell::RefCell;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod changes;
mod subject;

pub use changes::Prepared;

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
    /// The clock on the wall.
    pub const HOURS: u16 = 98;
    /// Health checks under way.
    pub const CHECK: u16 = 128;
    /// Spare connections to servers.
    pub const SPARE: u16 = 160;
    /// The resolver's sockets.
    pub const RESOLVER: u16 = 256;
}

/// Most listeners.
pub const LISTENERS_MAX: usize = 32;

const _: () = assert!(number::CONTROL_CLIENT as usize + control::CLIENTS_MAX <= number::METRICS as usize);
const _: () = assert!(number::METRICS < number::SCRAPE);
const _: () = assert!(number::SCRAPE as usize + control::SCRAPES_MAX <= number::ADDRESSES as usize);
const _: () = assert!(number::LISTENER as usize + 2 * LISTENERS_MAX <= number::CHECK as usize);
const _: () = assert!(number::CHECK as usize + CHECKS_MAX <= number::SPARE as usize);
const _: () = assert!(number::SPARE as usize + SPARES_MAX <= number::RESOLVER as usize);
const _: () = assert!(LISTENERS_MAX <= u32::BITS as usize);

/// Events that one call of poll returns at most.
const EVENTS: usize = 256;

/// How long accepting pauses when descriptors or kernel memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long after a load has passed its memory is kept for the next.
const TRIM_AFTER: Duration = Duration::from_secs(5);

/// Everything that lives as long as the process.
pub struct Engine {
    poll: Poll,
    started: Instant,
    /// When the last turn began.
    now: Tick,
    /// When the first of the tables had something to do, as of then.
    due: Option<Tick>,
    /// When memory goes back to the kernel.
    trim_at: Option<Tick>,
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
    spares: Spares,
    /// Not there only while they run.
    checks: Option<Checks>,
    resolver: Resolver,
    policy: Policy,
    replies: Replies,
    addresses: Addresses,
    stats: Stats,
    names: Names,
    origins: Origins,
    shares: Shares,
    meters: Meters,
    quotas: Quotas,
    associated: Associated,
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
            due: None,
            trim_at: None,
            families,
            listeners: Vec::new(),
            waiting: 0,
            tcp: Tcp::new(globals.tcp_sessions as u16),
            udp: Udp::new(globals.udp_sessions as u16, random::u64()),
            batch: ReceiveBatch::new(),
            pool: Pool::new(globals.relay_memory),
            pipes: Pipes::new(Pipes::suiting(globals.relay_memory)),
            outbounds,
            spares: Spares::new(number::SPARE),
            checks: Some(Checks::new(number::CHECK)),
            resolver,
            policy: Policy::new(&config, &targets),
            replies,
            addresses: Addresses::watch()?,
            stats: Stats::new(),
            names: Names::new((globals.tcp_sessions + globals.udp_sessions) as usize),
            origins: Origins::new(neighbours::all),
            shares: Shares::new((globals.tcp_sessions + globals.udp_sessions) as u16, random::u64()),
            quotas: Quotas::new((globals.tcp_sessions + globals.udp_sessions) as u16, random::u64()),
            meters: Meters::new((globals.tcp_sessions + globals.udp_sessions) as u16, random::u64()),
            associated: Associated::new(globals.tcp_sessions as usize),
            told_devices: false,
            reclassify_due: false,
            kernel_hits: RefCell::default(),
            accept_again: None,
            accept_limiter: Limiter::default(),
            lookup_limiter: Limiter::default(),
            config,
        };
        engine.replies.redirects = Redirects::new(engine.udp.capacity() as u16, random::u64());
        engine.shares.allow(engine.config.globals.client_sessions as u16);
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
        while let Some((client, listener)) = self.associated.next_ended() {
            let (_, udp, _, _, mut cx) = self.split(self.now);
            let theirs = |view: &View| view.listener == listener && view.client.ip() == client;
            udp.end(theirs, || CloseReason::Done, &mut cx);
        }
        self.due = self.deadline();
        let timeout = self.timeout(Tick::soonest(self.due, until));
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
                Owner::Process(number) if (number::SPARE..number::SPARE + SPARES_MAX as u16).contains(&number) => {
                    spares::ready(number, Readiness::from(event), &mut self.split(now).4);
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
        if self.tcp.has_queued() || self.udp.has_queued() {
            let (tcp, udp, batch, replies, mut cx) = self.split(now);
            tcp.run_queued(batch.scratch(), &mut cx);
            udp.run_queued(batch, replies, &mut cx);
        }
        if self.due.is_some_and(|due| now.reached(due)) {
            self.expire(now, &mut resolved);
        }
        for (name, outcome) in &resolved {
            self.log_lookup(*name, outcome, now);
            let (tcp, udp, _, replies, mut cx) = self.split(now);
            tcp.resolved(*name, &mut cx);
            association::resolved(udp, *name, replies, &mut cx);
        }
        if self.checks.as_ref().is_some_and(|checks| checks.deadline().is_some()) {
            self.check(now);
        }
        if self.spares.deadline().is_some_and(|due| now.reached(due)) {
            spares::run(&mut self.split(now).4);
        }
        if self.quotas.has_news() {
            let (tcp, udp, _, _, mut cx) = self.split(now);
            cx.end_used_up(tcp, udp);
        }
        self.outbounds.announce(&mut self.stats.events);
        if self.trim_at.is_none() && (self.tcp.is_slack() || self.udp.is_slack()) {
            self.trim_at = Some(now.after(TRIM_AFTER));
        }
        Ok(resolved.iter().any(|(_, outcome)| matches!(outcome, Outcome::Resolved { .. })))
    }

    /// Ends and begins what was due when the turn began.
    fn expire(&mut self, now: Tick, resolved: &mut Resolved) {
        if self.trim_at.is_some_and(|at| now.reached(at)) {
            self.trim();
        }
        let (tcp, udp, _, replies, mut cx) = self.split(now);
        replies.expire(now);
        replies.redirects.expire(now);
        tcp.expire(&mut cx);
        udp.expire(&mut cx);
        #[cfg(feature = "quic")]
        udp.give_up_names(replies, &mut cx);
        let mut done = |id, outcome| note(resolved, id, outcome);
        self.resolver.expire(now, self.poll.registry(), &mut done);
    }

    /// Gives memory back that a load which has passed has left behind.
    fn trim(&mut self) {
        self.trim_at = None;
        self.tcp.trim();
        self.udp.trim();
        self.names.trim().into_iter().for_each(memory::discard);
        self.pool.trim().into_iter().for_each(memory::clear);
        memory::clear(self.batch.scratch());
    }

    /// Goes on with the health checks, which sessions may have hurried.
    fn check(&mut self, now: Tick) {
        self.with_checks(now, |checks, cx| checks.hurry(cx));
        if self.checks.as_ref().and_then(Checks::deadline).is_some_and(|due| now.reached(due)) {
            let micros = self.micros();
            self.with_checks(now, |checks, cx| checks.run(micros, cx));
        }
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
            spares::end_bound_to(&gone, &mut cx);
            self.with_checks(now, |checks, cx| checks.end_bound_to(&gone, cx));
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
        if waiting == 0 {
            return;
        }
        // lent to itself for a moment: a listener is large to move
        let mut listeners = std::mem::take(&mut self.listeners);
        while waiting != 0 {
            let place = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            let Some(Some(listener)) = listeners.get_mut(place) else { continue };
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
        }
        self.listeners = listeners;
    }

    /// How long poll may sleep, with nothing to do before `until`.
    fn timeout(&self, until: Option<Tick>) -> Option<Duration> {
        let may_accept = self.accept_again.is_none() && !self.tcp.is_full();
        let work = self.tcp.has_queued()
            || self.udp.has_queued()
            || self.waiting != 0
                && self.listeners.iter().flatten().any(|l| l.has_queued() || l.has_waiting() && may_accept);
        if work {
            return Some(Duration::ZERO);
        }
        // As of this turn's begin: on many routers the clock is a system call, and a deadline has time.
        until.map(|at| at.since(self.now))
    }

    /// When something of the tables is due.
    fn deadline(&self) -> Option<Tick> {
        let tables = [
            self.tcp.deadline(),
            self.udp.deadline(),
            self.resolver.deadline(),
            self.replies.deadline(),
            self.replies.redirects.deadline(),
            self.checks.as_ref().and_then(Checks::deadline),
            self.spares.deadline(),
        ];
        tables.iter().fold(Tick::soonest(self.accept_again, self.trim_at), |soonest, at| Tick::soonest(soonest, *at))
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

    /// The moment at which the last turn began: cheap, and late by no more than the work of one turn.
    pub fn moment(&self) -> Tick {
        self.now
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
            spares: &mut self.spares,
            resolver: &mut self.resolver,
            policy: &mut self.policy,
            stats: &mut self.stats,
            names: &mut self.names,
            origins: &mut self.origins,
            shares: &mut self.shares,
            meters: &mut self.meters,
            quotas: &mut self.quotas,
            associated: &mut self.associated,
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

/// Room for the events of one turn.
pub fn events() -> Events {
    Events::with_capacity(EVENTS)
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
fn now() -> Instant {
    Instant::now()
}

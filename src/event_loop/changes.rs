//! A new configuration in the running loop: what it needs is opened beside what is open, then it takes its place.

use super::{Engine, LISTENERS_MAX, number, servers};
use crate::config::{self, Config};
use crate::error::Error;
use crate::policy::{Policy, Proto};
use crate::session::CloseReason;
use crate::session::intercept::{Allowed, Listener};
use crate::session::tcp::View;
use crate::store::quotas::{Quotas, Today};
use std::os::fd::RawFd;

impl Engine {
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
        self.spares.look_again(now);
        self.udp.forget_verdicts();
        log::set_max_level(globals.log_level);
        self.shares.allow(globals.client_sessions as u16);
        // the hour of a rule that stays may have come with this reload
        let reclassifies = config.globals.reclassify || config.is_at_another_hour_than(&self.config);
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

    /// Begins quotas anew whose day or month is over at `moment`. What their use has refused is decided anew.
    pub fn keep_periods(&mut self, moment: &config::Moment) {
        if !moment.is_known() {
            return;
        }
        let day = moment.local().div_euclid(config::zone::DAY);
        let today = Today { day: day as i32, month: config::zone::month_of(day) as i32 };
        if self.quotas.follow(today) {
            log::info!("another day: quotas begin anew");
            self.udp.forget_all();
        }
    }

    /// What the clients of rules with a quota have used.
    pub fn quotas(&mut self) -> &mut Quotas {
        &mut self.quotas
    }

    /// Switches rules on and off as `moment` wants it. Live flows get them too: the game would go on.
    pub fn keep_hours(&mut self, moment: &config::Moment) {
        let before = self.config.hours();
        if !self.config.keep_hours(moment) {
            return;
        }
        self.policy.keep_hours(&self.config);
        let now = self.tick();
        let (tcp, udp, _, _, mut cx) = self.split(now);
        let ended = tcp.reclassify(&mut cx);
        udp.forget_all();
        for (rule, _) in self.config.rules.iter().zip(before).filter(|(rule, before)| rule.on != *before) {
            let name = rule
                .name
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(|name| format!(" '{name}'"))
                .unwrap_or_default();
            log::info!("rule {}{name} {}", rule.number, if rule.on { "holds from now on" } else { "holds no more" });
        }
        log::info!("it ends {ended} TCP sessions");
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
            let marks = (globals.mark, globals.self_mark, globals.sandbox);
            (globals.tcp_sessions, globals.udp_sessions, globals.relay_memory, marks)
        };
        if fixed(&old.globals) != fixed(&new.globals) {
            all.push("table sizes, marks or sandbox (which take effect at the next restart)".into());
        } else if old.globals != new.globals {
            all.push("globals".into());
        }
        all
    }

    /// Which socket goes to which listener, with those opened that are missing. Nothing has changed yet.
    pub(super) fn plan_listeners(&self, config: &Config) -> Result<Vec<Planned>, Error> {
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
    pub(super) fn take_listeners(&mut self, plan: Vec<Planned>) -> Result<(), Error> {
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
pub(super) struct Planned {
    /// The place of the listener whose other sockets it takes over.
    from: Option<usize>,
    listener: Listener,
}

/// `config` as it would be with everything on one line, so that a comment more is no change.
fn without_lines(config: &Config) -> Config {
    let mut config = config.clone();
    config.listeners.iter_mut().for_each(|section| section.line = 0);
    config.outbounds.iter_mut().for_each(|section| section.line = 0);
    config.sets.iter_mut().for_each(|section| section.line = 0);
    config.rules.iter_mut().for_each(|section| (section.line, section.on) = (0, true));
    config
}

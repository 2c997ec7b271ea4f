//! What the control socket sees and may change of the loop.

use super::{Engine, number};
use crate::budget::{self, Tables};
use crate::config::{Entries, Moment, OutboundKind, Target, lists, load};
use crate::control::{
    Asked, ClientRow, Clients, Explained, Kick, Listener, Memory, Outbound, Place, Pool, Problem, Rule, Session, Set,
    Spare, State, Subject, Totals, Way,
};
use crate::error::Error;
use crate::log_sink;
use crate::netfilter::render::RULE;
use crate::netfilter::{counters, neighbours};
use crate::policy::Proto;
use crate::session::metered::grant;
use crate::session::tcp::View;
use crate::session::{Owner, outbound, spares};
use crate::stats::Stats;
use crate::stats::clients::Sums;
use crate::stats::events::unix_time;
use crate::store::names::NameSlot;
use crate::sys::{memory, process};
use mio::Interest;
use mio::unix::SourceFd;
use std::os::fd::RawFd;
use std::time::Duration;

impl Subject for Engine {
    fn watch_client(&self, fd: RawFd, n: usize) -> Result<(), Error> {
        let token = Owner::Process(number::CONTROL_CLIENT + n as u16).token();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let watched = self.poll.registry().register(&mut SourceFd(&fd), token, interest);
        watched.map_err(|e| Error::new("watch a control connection", &e))
    }

    fn totals(&self) -> Totals {
        Totals {
            uptime: super::now().duration_since(self.started),
            tcp: (self.tcp.len(), self.tcp.capacity()),
            udp: (self.udp.len(), self.udp.capacity()),
            pool: Pool { lent: self.pool.lent(), peak: self.pool.peak(), capacity: self.pool.capacity() },
            destinations_used: self.udp.destinations().used(),
            destinations_evicted: self.udp.destinations().evicted(),
            redirected_evicted: self.replies.redirects.evicted(),
            descriptors: process::descriptor_limit().map_or(0, |(soft, _)| soft),
            problems: log_sink::problem_count(),
            names: self.names.usage(),
            names_refused: self.names.refused(),
            no_mac: self.origins.unknown(),
            meters: self.meters.usage(),
            meters_refused: self.meters.refused(),
            quotas: self.quotas.usage(),
            quotas_used_up: self.quotas.used_up(),
            quotas_refused: self.quotas.refused(),
        }
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }

    fn memory(&self) -> Memory {
        let usage = memory::usage();
        let tables = Tables { tcp: self.tcp.capacity(), udp: self.udp.capacity(), buffers: self.pool.capacity() };
        let bound = budget::bound(tables, &self.config, memory::mapped_files());
        Memory { used: usage.used, peak: usage.peak, bound }
    }

    fn listener(&self, n: usize) -> Option<Listener<'_>> {
        let listener = self.listeners.iter().flatten().nth(n)?;
        let bound = &listener.bound;
        Some(Listener {
            name: &listener.name,
            address: bound.address,
            tcp: bound.tcp,
            udp: bound.udp,
            accepted: listener.accepted,
        })
    }

    fn packets(&self) -> Vec<Option<u64>> {
        let counted = counters::packets().unwrap_or_default();
        let number = |name: &str| name.strip_prefix(RULE)?.parse::<u32>().ok();
        let hits = counted.iter().filter_map(|(name, hits)| Some((number(name)?, *hits)));
        self.kernel_hits.replace(hits.collect());
        let of = |name: &str| {
            let counter = counted.iter().find(|(counter, _)| counter.strip_prefix("listener_") == Some(name));
            counter.map(|(_, packets)| *packets)
        };
        self.listeners.iter().flatten().map(|listener| of(&listener.name)).collect()
    }

    fn clients(&self) -> Clients {
        let neighbours = neighbours::all().unwrap_or_default();
        let kept = &self.stats.clients;
        let ((sums, evicted), nobody) = (kept.others(), ClientRow::default());
        let row = |ip, sums: Sums| ClientRow {
            ip,
            mac: neighbours.iter().find(|(known, _)| *known == ip).map(|(_, mac)| *mac),
            total: sums.total,
            bytes_up: sums.bytes_up,
            bytes_down: sums.bytes_down,
            ..nobody
        };
        let mut list: Vec<ClientRow> = kept.list().iter().map(|client| row(client.ip, client.sums)).collect();
        list.sort_unstable_by_key(|client| client.ip);
        let mut others = ClientRow { mac: None, ..row(nobody.ip, sums) };
        for view in self.tcp.views().chain(self.udp.views()) {
            let found = list.binary_search_by_key(&view.client.ip(), |client| client.ip);
            let client = found.ok().and_then(|place| list.get_mut(place)).unwrap_or(&mut others);
            client.sessions += 1;
            client.bytes_up += view.bytes_up;
            client.bytes_down += view.bytes_down;
        }
        list.sort_by_key(|client| std::cmp::Reverse(client.bytes_up + client.bytes_down));
        Clients { list, others, evicted }
    }

    fn problem(&self, n: usize) -> Option<Problem> {
        log_sink::problem(n).map(|log_sink::Problem { at, error, text }| Problem { at, error, text })
    }

    fn rule(&self, n: usize) -> Option<Rule<'_>> {
        let rule = self.config.rules.get(n)?;
        let outbound = match rule.outbound {
            Target::Direct => "direct",
            Target::Reject => "reject",
            Target::Drop => "drop",
            Target::Outbound(index) => &self.config.outbounds.get(usize::from(index))?.name,
        };
        // the policy has the active ones, in the same order
        let active = self.policy.rules();
        let found = active.binary_search_by_key(&rule.number, |active| active.number).ok();
        let by_process = found.and_then(|index| active.get(index)).map_or(0, |active| active.hits);
        // as they were when the answer began: see `packets`
        let by_kernel = self.kernel_hits.borrow().iter().find(|(number, _)| *number == rule.number).map(|(_, n)| *n);
        let hits = by_process + by_kernel.unwrap_or(0);
        let (name, active) = (rule.name.as_deref(), found.is_some());
        let now = rule.schedule.map(|_| load::moment()).filter(Moment::is_known);
        let changes = rule.schedule.zip(now).and_then(|(schedule, now)| schedule.next_change(&now));
        let (holds, changes) = (rule.schedule.map(|_| rule.on), changes.map(|at| at as u64));
        Some(Rule { number: rule.number, name, outbound, active, hits, holds, changes })
    }

    fn set(&self, n: usize) -> Option<Set<'_>> {
        let set = self.config.sets.get(n)?;
        let (nets, domains) = (set.entries.nets().len(), set.entries.domains().len());
        let file = set.source.file();
        let age = |time: u64| Duration::from_secs(unix_time().saturating_sub(time));
        Some(Set {
            name: &set.name,
            domains: matches!(set.entries, Entries::Domains(_)),
            entries: nets + domains,
            file,
            age: file.and_then(lists::modified).map(age),
            update: lists::Note::read(&lists::note_path(&self.config.globals.control, &set.name)),
        })
    }

    fn outbounds(&self) -> Vec<Outbound> {
        let mut all: Vec<Outbound> = self.outbounds.iter().map(|(_, outbound)| shown(outbound)).collect();
        for (one, index) in all.iter_mut().zip(0..) {
            one.spare.ready = spares::count(&self.spares, index).into();
        }
        for view in self.tcp.views().chain(self.udp.views()) {
            let by_member = (view.group != view.outbound).then_some(view.outbound);
            for index in [Some(view.group), by_member].into_iter().flatten() {
                if let Some(outbound) = all.get_mut(usize::from(index)) {
                    outbound.bytes_up += view.bytes_up;
                    outbound.bytes_down += view.bytes_down;
                }
            }
        }
        // one that a reload has replaced lives on under the same name until its last session ends
        let mut known: Vec<Outbound> = Vec::with_capacity(all.len());
        for (new, (_, live)) in all.into_iter().zip(self.outbounds.iter()) {
            match known.iter_mut().find(|old| old.name == new.name) {
                Some(old) => merge(old, new, live.configured),
                None if self.has_outbound(&new.name) => known.push(new),
                None => {}
            }
        }
        // these need no place among those that flows go out by
        for section in &self.config.outbounds {
            let kind = match section.kind {
                OutboundKind::Reject => "reject",
                OutboundKind::Drop => "drop",
                _ => continue,
            };
            known.push(Outbound { name: section.name.clone(), kind, state: State::Up, ..NOTHING_COUNTED });
        }
        known
    }

    fn has_outbound(&self, name: &str) -> bool {
        let lives = |outbound: &outbound::Outbound| outbound.configured || outbound.sessions > 0;
        self.outbounds.iter().any(|(_, outbound)| outbound.name == name && lives(outbound))
            || self.config.outbounds.iter().any(|section| section.name == name)
    }

    fn session(&self, place: u32) -> Place<'_> {
        let tcp = u32::from(self.tcp.slots());
        let (view, proto) = match place.checked_sub(tcp) {
            None => (self.tcp.view_at(place as u16), Proto::Tcp),
            Some(slot) if slot < u32::from(self.udp.slots()) => (self.udp.view_at(slot as u16), Proto::Udp),
            Some(_) => return Place::End,
        };
        let name = match proto {
            Proto::Tcp => self.tcp.name_at(place as u16),
            Proto::Udp => self.udp.name_at(place.wrapping_sub(tcp) as u16),
        };
        view.map_or(Place::Vacant, |view| Place::Session(self.row(&view, proto, name)))
    }

    fn explain(&self, asked: &Asked) -> Explained {
        let way = |target: Target| match target {
            Target::Direct => Way { name: "direct".into(), state: None },
            Target::Reject => Way { name: "reject".into(), state: None },
            Target::Drop => Way { name: "drop".into(), state: None },
            Target::Outbound(index) => {
                let outbound = self.outbounds.get(index);
                let state = outbound.server().is_some().then(|| shown(outbound).state.name());
                Way { name: outbound.name.clone(), state }
            }
        };
        let steps = self.policy.explain(&asked.flow()).into_iter().map(|mut step| {
            if let Some((rule, quota)) = step.quota
                && self.quotas.is_used_up(grant(rule, &quota), asked.client.ip(), mac_of(asked))
            {
                step.target = quota.outbound;
            }
            let leads = way(step.target);
            (step, leads)
        });
        Explained { config: self.file.clone(), steps: steps.collect() }
    }

    fn kick(&mut self, which: Kick) -> usize {
        let picks = |view: &View| which.picks(view.id, view.client);
        let now = self.tick();
        let (tcp, udp, _, _, mut cx) = self.split(now);
        tcp.kick(picks, &mut cx) + udp.kick(picks, &mut cx)
    }
}

impl Engine {
    fn row(&self, view: &View, proto: Proto, name: Option<&NameSlot>) -> Session<'_> {
        Session {
            id: view.id,
            proto,
            client: view.client,
            orig_dst: view.orig_dst,
            domain: name.map(|name| self.names.text(name)),
            rule: view.rule,
            outbound: &self.outbounds.get(view.outbound).name,
            age: self.tick().since(view.started),
            bytes_up: view.bytes_up,
            bytes_down: view.bytes_down,
            state: view.state,
        }
    }
}

const NOTHING_COUNTED: Outbound = Outbound {
    name: String::new(),
    kind: "",
    state: State::Unknown,
    sessions: 0,
    bytes_up: 0,
    bytes_down: 0,
    errors: 0,
    latency_ms: None,
    last_error: None,
    spare: Spare { wanted: 0, ready: 0, used: 0, missing: 0, lost: 0 },
};

fn shown(outbound: &outbound::Outbound) -> Outbound {
    let stock = &outbound.spares;
    Outbound {
        name: outbound.name.clone(),
        kind: outbound.kind(),
        state: match outbound.health.state {
            outbound::State::Up => State::Up,
            outbound::State::Down => State::Down,
            outbound::State::Unknown => State::Unknown,
        },
        sessions: outbound.sessions,
        bytes_up: outbound.bytes_up,
        bytes_down: outbound.bytes_down,
        errors: outbound.errors,
        latency_ms: outbound.latency_ms(),
        last_error: outbound.last_error.clone(),
        spare: Spare {
            wanted: stock.wanted.into(),
            ready: 0,
            used: stock.used,
            missing: stock.missing,
            lost: stock.lost,
        },
    }
}

/// Adds what `new` has counted to `old` of the same name; what they are is told by the one that is `configured`.
fn merge(old: &mut Outbound, new: Outbound, configured: bool) {
    if configured {
        (old.kind, old.state, old.latency_ms) = (new.kind, new.state, new.latency_ms);
        old.last_error = new.last_error.or(old.last_error.take());
        old.spare.wanted = new.spare.wanted;
    }
    old.sessions += new.sessions;
    old.bytes_up += new.bytes_up;
    old.bytes_down += new.bytes_down;
    old.errors += new.errors;
    old.spare.ready += new.spare.ready;
    old.spare.used += new.spare.used;
    old.spare.missing += new.spare.missing;
    old.spare.lost += new.spare.lost;
}

/// The client's MAC address as it was said or, if it was not, as the kernel knows it.
fn mac_of(asked: &Asked) -> Option<[u8; 6]> {
    let found = || neighbours::all().ok()?.into_iter().find(|(ip, _)| *ip == asked.client.ip()).map(|(_, mac)| mac);
    asked.mac.map(|mac| mac.0).or_else(found)
}

//! The answer to `status`. Its fields are part of the contract; new ones may come, none changes its meaning. README.md says
//! what each is and in which unit; tests/control.rs holds the two together.

use super::answer::{Next, Short};
use super::request::VERSION;
use super::subject::{Listener, Outbound, Problem, Rule, Set, Spare, Subject};
use crate::proto::json::Writer;
use crate::stats::events::unix_time;
use crate::stats::{Drop, Table};
use std::fmt;
use std::path::Path;

/// How far the answer is.
pub(super) struct Status {
    /// Of one moment, so that what a closing session takes along is counted once.
    outbounds: Vec<Outbound>,
    /// Of the listeners.
    packets: Vec<Option<u64>>,
    part: Part,
    index: usize,
}

enum Part {
    Head,
    Listeners,
    Outbounds,
    Rules,
    Sets,
    Tables,
    Problems,
}

impl Status {
    pub(super) fn new(subject: &dyn Subject) -> Status {
        Status { outbounds: subject.outbounds(), packets: subject.packets(), part: Part::Head, index: 0 }
    }

    /// Writes the next item. What is changed here is changed behind the last write that can fail.
    pub(super) fn write(&mut self, subject: &dyn Subject, json: &mut Writer<'_>) -> Result<Next, fmt::Error> {
        match self.part {
            Part::Head => {
                head(subject, json)?;
                list(json, "listeners")?;
                self.go_to(Part::Listeners);
            }
            Part::Listeners => match subject.listener(self.index) {
                Some(one) => {
                    let packets = self.packets.get(self.index).copied().flatten();
                    listener(&one, packets, json)?;
                    self.index += 1;
                }
                None => {
                    json.end_array()?;
                    list(json, "outbounds")?;
                    self.go_to(Part::Outbounds);
                }
            },
            Part::Outbounds => match self.outbounds.get(self.index) {
                Some(one) => {
                    outbound(one, json)?;
                    self.index += 1;
                }
                None => {
                    json.end_array()?;
                    list(json, "rules")?;
                    self.go_to(Part::Rules);
                }
            },
            Part::Rules => match subject.rule(self.index) {
                Some(one) => {
                    rule(&one, json)?;
                    self.index += 1;
                }
                None => {
                    json.end_array()?;
                    list(json, "sets")?;
                    self.go_to(Part::Sets);
                }
            },
            Part::Sets => match subject.set(self.index) {
                Some(one) => {
                    set(&one, json)?;
                    self.index += 1;
                }
                None => {
                    json.end_array()?;
                    self.go_to(Part::Tables);
                }
            },
            Part::Tables => {
                tables(subject, json)?;
                list(json, "problems")?;
                self.go_to(Part::Problems);
            }
            Part::Problems => match subject.problem(self.index) {
                Some(one) => {
                    problem(&one, json)?;
                    self.index += 1;
                }
                None => {
                    json.end_array()?;
                    json.end_object()?;
                    return Ok(Next::Done);
                }
            },
        }
        Ok(Next::More)
    }

    fn go_to(&mut self, part: Part) {
        (self.part, self.index) = (part, 0);
    }
}

fn list(json: &mut Writer<'_>, name: &str) -> fmt::Result {
    json.key(name)?;
    json.begin_array()
}

fn head(subject: &dyn Subject, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.number_member("v", VERSION)?;
    json.text_member("version", env!("CARGO_PKG_VERSION"))?;
    json.number_member("time", unix_time())?;
    json.number_member("uptime_s", subject.totals().uptime.as_secs())
}

fn listener(listener: &Listener<'_>, packets: Option<u64>, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.text_member("name", Short(listener.name))?;
    json.text_member("address", listener.address)?;
    json.flag_member("tcp", listener.tcp)?;
    json.flag_member("udp", listener.udp)?;
    json.optional_number_member("packets", packets)?;
    json.number_member("accepted", listener.accepted)?;
    json.end_object()
}

fn outbound(outbound: &Outbound, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.text_member("name", Short(&outbound.name))?;
    json.text_member("type", outbound.kind)?;
    json.text_member("state", outbound.state.name())?;
    json.optional_number_member("latency_ms", outbound.latency_ms.map(u64::from))?;
    json.number_member("sessions", outbound.sessions.into())?;
    json.number_member("bytes_up", outbound.bytes_up)?;
    json.number_member("bytes_down", outbound.bytes_down)?;
    json.number_member("errors", outbound.errors)?;
    json.key("last_error")?;
    match &outbound.last_error {
        None => json.null()?,
        Some((time, text)) => {
            json.begin_object()?;
            json.number_member("time", *time)?;
            json.text_member("text", text)?;
            json.end_object()?;
        }
    }
    let Spare { wanted, ready, used, missing, lost } = outbound.spare;
    json.key("spare")?;
    numbers(json, &[("wanted", wanted), ("ready", ready), ("used", used), ("missing", missing), ("lost", lost)])?;
    json.end_object()
}

fn rule(rule: &Rule<'_>, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.number_member("number", rule.number.into())?;
    json.optional_text_member("name", rule.name.map(Short))?;
    json.text_member("outbound", Short(rule.outbound))?;
    json.flag_member("active", rule.active)?;
    json.number_member("hits", rule.hits)?;
    json.optional_flag_member("holds", rule.holds)?;
    json.optional_number_member("changes", rule.changes)?;
    json.end_object()
}

fn set(set: &Set<'_>, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.text_member("name", Short(set.name))?;
    json.text_member("type", if set.domains { "domain" } else { "net" })?;
    json.number_member("entries", set.entries as u64)?;
    let file = set.file.map(Path::to_string_lossy);
    json.optional_text_member("file", file.as_deref().map(Short))?;
    json.optional_number_member("age_s", set.age.map(|age| age.as_secs()))?;
    let update = set.update.as_ref();
    json.optional_number_member("update_time", update.map(|update| update.time))?;
    json.optional_text_member("update_error", update.and_then(|update| update.error.as_deref()))?;
    json.end_object()
}

fn tables(subject: &dyn Subject, json: &mut Writer<'_>) -> fmt::Result {
    let (totals, stats, memory) = (subject.totals(), subject.stats(), subject.memory());
    table(json, "tcp", totals.tcp, &stats.tcp)?;
    table(json, "udp", totals.udp, &stats.udp)?;
    json.key("memory")?;
    numbers(json, &[("used", memory.used), ("peak", memory.peak), ("bound", memory.bound)])?;
    json.key("pool")?;
    let pool = totals.pool;
    numbers(
        json,
        &[
            ("lent", pool.lent as u64),
            ("peak", pool.peak as u64),
            ("capacity", pool.capacity as u64),
            ("empty", stats.pool_empty),
        ],
    )?;
    json.key("destinations")?;
    numbers(json, &[("used", totals.destinations_used as u64), ("evicted", totals.destinations_evicted)])?;
    json.key("redirected")?;
    numbers(json, &[("evicted", totals.redirected_evicted)])?;
    json.key("names")?;
    let (used, limit) = totals.names;
    let refused = totals.names_refused;
    numbers(json, &[("used", used as u64), ("limit", limit as u64), ("refused", refused)])?;
    json.key("meters")?;
    let ((used, limit), refused) = (totals.meters, totals.meters_refused);
    numbers(json, &[("used", used as u64), ("limit", limit as u64), ("refused", refused)])?;
    json.key("quotas")?;
    let ((used, limit), refused) = (totals.quotas, totals.quotas_refused);
    let used_up = totals.quotas_used_up as u64;
    numbers(json, &[("used", used as u64), ("limit", limit as u64), ("refused", refused), ("used_up", used_up)])?;
    json.number_member("nameless", stats.nameless)?;
    json.number_member("no_mac", totals.no_mac)?;
    json.number_member("accept_paused", stats.accept_paused)?;
    json.key("drops")?;
    numbers(json, &Drop::ALL.map(|reason| (reason.name(), stats.dropped(reason))))?;
    json.key("descriptors")?;
    numbers(json, &[("limit", totals.descriptors)])?;
    json.number_member("problem_count", totals.problems)
}

fn problem(problem: &Problem, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.number_member("time", problem.at)?;
    json.text_member("level", if problem.error { "error" } else { "warn" })?;
    json.text_member("text", &problem.text)?;
    json.end_object()
}

fn table(json: &mut Writer<'_>, name: &str, (active, limit): (usize, usize), counted: &Table) -> fmt::Result {
    json.key(name)?;
    let Table { total, refused, evicted } = *counted;
    let (active, limit) = (active as u64, limit as u64);
    numbers(json, &[("active", active), ("limit", limit), ("total", total), ("refused", refused), ("evicted", evicted)])
}

fn numbers(json: &mut Writer<'_>, members: &[(&str, u64)]) -> fmt::Result {
    json.begin_object()?;
    members.iter().try_for_each(|(name, number)| json.number_member(name, *number))?;
    json.end_object()
}

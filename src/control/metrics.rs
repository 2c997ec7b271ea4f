//! The answer to `metrics`: `{"v":1,"lines":[…]}`, the lines of Prometheus' text format 0.0.4.
//!
//! Label sets are bounded by the configuration: no label has a client or a destination in it.

use super::answer::{Fill, Next, Output, Short};
use super::request::VERSION;
use super::subject::{Listener, Memory, Outbound, Rule, State, Subject, Totals};
use crate::proto::json::Writer;
use crate::stats::Drop;
use std::fmt::{self, Write};

/// How far the answer is.
pub(super) struct Metrics {
    /// Of one moment, so that a counter never goes back because a session has ended in between.
    outbounds: Vec<Outbound>,
    /// Of the listeners.
    packets: Vec<Option<u64>>,
    memory: Memory,
    begun: bool,
    /// Index into [`FAMILIES`].
    family: usize,
    /// Its next line: 0 help, 1 type, then the samples.
    line: usize,
}

/// Metrics of one name.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Samples,
}

/// Where the samples of a family come from; each writes its labels, without braces, and gives the value.
enum Samples {
    Single(fn(&Totals, &dyn Subject) -> u64),
    /// Label `proto`.
    Protos(fn(&Totals, &dyn Subject) -> [usize; 2]),
    /// Label `proto`.
    ProtoCounters(fn(&dyn Subject) -> [u64; 2]),
    Memory(fn(&Memory) -> u64),
    Listeners(fn(&Listener<'_>) -> u64),
    Packets,
    /// `None`: no sample.
    Outbounds(fn(&Outbound) -> Option<u64>),
    /// No sample before the first connection.
    Latency,
    /// Label `direction`.
    Bytes,
    Rules(fn(&Rule<'_>) -> u64),
    Drops,
    Build,
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

const FAMILIES: &[Family] = &[
    family("tproxyd_build_info", GAUGE, "Always 1; the label says which version runs.", Samples::Build),
    family(
        "tproxyd_uptime_seconds",
        GAUGE,
        "Time since the start.",
        Samples::Single(|totals, _| totals.uptime.as_secs()),
    ),
    family(
        "tproxyd_sessions",
        GAUGE,
        "Live TCP sessions and UDP mappings.",
        Samples::Protos(|totals, _| [totals.tcp.0, totals.udp.0]),
    ),
    family(
        "tproxyd_sessions_limit",
        GAUGE,
        "Most TCP sessions and UDP mappings at once.",
        Samples::Protos(|totals, _| [totals.tcp.1, totals.udp.1]),
    ),
    family(
        "tproxyd_sessions_opened_total",
        COUNTER,
        "TCP sessions and UDP mappings that were opened.",
        Samples::ProtoCounters(|subject| [subject.stats().tcp.total, subject.stats().udp.total]),
    ),
    family(
        "tproxyd_sessions_refused_total",
        COUNTER,
        "TCP sessions and UDP mappings that could not be opened.",
        Samples::ProtoCounters(|subject| [subject.stats().tcp.refused, subject.stats().udp.refused]),
    ),
    family(
        "tproxyd_sessions_evicted_total",
        COUNTER,
        "TCP sessions and UDP mappings that made room for others.",
        Samples::ProtoCounters(|subject| [subject.stats().tcp.evicted, subject.stats().udp.evicted]),
    ),
    family(
        "tproxyd_listener_accepted_total",
        COUNTER,
        "Connections and datagrams that came to a listener.",
        Samples::Listeners(|listener| listener.accepted),
    ),
    family(
        "tproxyd_listener_packets_total",
        COUNTER,
        "Packets that the rules gave to a listener; no sample where no rules count.",
        Samples::Packets,
    ),
    family(
        "tproxyd_outbound_up",
        GAUGE,
        "1 if the last dial worked, 0 if it failed; no sample before the first.",
        Samples::Outbounds(|outbound| match outbound.state {
            State::Up => Some(1),
            State::Down => Some(0),
            State::Unknown => None,
        }),
    ),
    family(
        "tproxyd_outbound_sessions",
        GAUGE,
        "Live TCP sessions and UDP mappings of an outbound.",
        Samples::Outbounds(|outbound| Some(outbound.sessions.into())),
    ),
    family(
        "tproxyd_outbound_errors_total",
        COUNTER,
        "Sessions that an outbound could not connect.",
        Samples::Outbounds(|outbound| Some(outbound.errors)),
    ),
    family(
        "tproxyd_outbound_latency_seconds",
        GAUGE,
        "How long the last connection took, handshakes included.",
        Samples::Latency,
    ),
    family("tproxyd_outbound_bytes_total", COUNTER, "Payload from clients (up) and to clients (down).", Samples::Bytes),
    family(
        "tproxyd_outbound_spare_ready",
        GAUGE,
        "Connections to an outbound's server that were opened in advance and wait; no sample without option spare.",
        Samples::Outbounds(|outbound| (outbound.spare.wanted > 0).then_some(outbound.spare.ready)),
    ),
    family(
        "tproxyd_outbound_spare_used_total",
        COUNTER,
        "Sessions and UDP associations that took a connection which was opened in advance.",
        Samples::Outbounds(|outbound| (outbound.spare.wanted > 0).then_some(outbound.spare.used)),
    ),
    family(
        "tproxyd_outbound_spare_missing_total",
        COUNTER,
        "Sessions and UDP associations that found none.",
        Samples::Outbounds(|outbound| (outbound.spare.wanted > 0).then_some(outbound.spare.missing)),
    ),
    family(
        "tproxyd_outbound_spare_lost_total",
        COUNTER,
        "Connections opened in advance that the server ended.",
        Samples::Outbounds(|outbound| (outbound.spare.wanted > 0).then_some(outbound.spare.lost)),
    ),
    family("tproxyd_rule_hits_total", COUNTER, "Flows that a rule decided.", Samples::Rules(|rule| rule.hits)),
    family("tproxyd_drops_total", COUNTER, "What was dropped or refused, by reason.", Samples::Drops),
    family(
        "tproxyd_clients",
        GAUGE,
        "Clients whose sums are kept apart.",
        Samples::Single(|_, subject| subject.stats().clients.list().len() as u64),
    ),
    family(
        "tproxyd_clients_evicted_total",
        COUNTER,
        "Clients whose sums made room for others.",
        Samples::Single(|_, subject| subject.stats().clients.others().1),
    ),
    family(
        "tproxyd_memory_used_bytes",
        GAUGE,
        "Memory of the process, its share of common pages included.",
        Samples::Memory(|memory| memory.used),
    ),
    family("tproxyd_memory_peak_bytes", GAUGE, "Most resident memory ever.", Samples::Memory(|memory| memory.peak)),
    family(
        "tproxyd_memory_bound_bytes",
        GAUGE,
        "Most memory that this configuration can take.",
        Samples::Memory(|memory| memory.bound),
    ),
    family(
        "tproxyd_pool_buffers",
        GAUGE,
        "Buffers of 64 KiB that are in use.",
        Samples::Single(|totals, _| totals.pool.lent as u64),
    ),
    family(
        "tproxyd_pool_buffers_peak",
        GAUGE,
        "Most buffers that were in use at once.",
        Samples::Single(|totals, _| totals.pool.peak as u64),
    ),
    family(
        "tproxyd_pool_buffers_limit",
        GAUGE,
        "All buffers.",
        Samples::Single(|totals, _| totals.pool.capacity as u64),
    ),
    family(
        "tproxyd_pool_empty_total",
        COUNTER,
        "Reads that went on without a buffer because none was free.",
        Samples::Single(|_, subject| subject.stats().pool_empty),
    ),
    family(
        "tproxyd_destinations",
        GAUGE,
        "UDP destination entries in use.",
        Samples::Single(|totals, _| totals.destinations_used as u64),
    ),
    family(
        "tproxyd_redirected_evicted_total",
        COUNTER,
        "Redirected UDP flows that made room for others.",
        Samples::Single(|totals, _| totals.redirected_evicted),
    ),
    family(
        "tproxyd_destinations_evicted_total",
        COUNTER,
        "UDP destination entries that made room for others.",
        Samples::Single(|totals, _| totals.destinations_evicted),
    ),
    family(
        "tproxyd_meters",
        GAUGE,
        "Clients of rules with a rate that are measured.",
        Samples::Single(|totals, _| totals.meters.0 as u64),
    ),
    family(
        "tproxyd_meters_refused_total",
        COUNTER,
        "Flows of such rules that were refused since their client was one too many.",
        Samples::Single(|totals, _| totals.meters_refused),
    ),
    family(
        "tproxyd_quotas_used_up",
        GAUGE,
        "Quotas of clients that are used up in this day or month.",
        Samples::Single(|totals, _| totals.quotas_used_up as u64),
    ),
    family(
        "tproxyd_quotas",
        GAUGE,
        "Accounts of clients of rules with a quota.",
        Samples::Single(|totals, _| totals.quotas.0 as u64),
    ),
    family(
        "tproxyd_quotas_refused_total",
        COUNTER,
        "Flows of such rules that were refused since there was no account for their client.",
        Samples::Single(|totals, _| totals.quotas_refused),
    ),
    family(
        "tproxyd_accept_paused_total",
        COUNTER,
        "How often accepting paused because descriptors or kernel memory had run out.",
        Samples::Single(|_, subject| subject.stats().accept_paused),
    ),
    family(
        "tproxyd_problems_total",
        COUNTER,
        "Warnings and errors in the log.",
        Samples::Single(|totals, _| totals.problems),
    ),
];

const fn family(name: &'static str, kind: &'static str, help: &'static str, samples: Samples) -> Family {
    Family { name, kind, help, samples }
}

/// Bytes of one line: a metric's name and two labels, one of them a name whose every byte is escaped.
const LINE: usize = 1024;

type Line = heapless::String<LINE>;

/// What a family has as its `n`th sample.
enum Sample {
    /// Labels without braces are in the line buffer.
    Value(u64),
    /// In thousandths.
    Thousandths(u64),
    /// None at this number, but perhaps at the next.
    Missing,
    /// No more.
    End,
}

/// What stands at one place.
#[allow(clippy::large_enum_variant, reason = "it lives for the writing of one line")]
enum Found {
    Line(Line),
    /// No sample, but perhaps the next.
    Nothing,
    End,
}

impl Metrics {
    pub(super) fn new(subject: &dyn Subject) -> Metrics {
        let (outbounds, packets, memory) = (subject.outbounds(), subject.packets(), subject.memory());
        Metrics { outbounds, packets, memory, begun: false, family: 0, line: 0 }
    }

    /// Writes the next item of the JSON document. What is changed here is changed behind the last write that can fail.
    pub(super) fn write(&mut self, subject: &dyn Subject, json: &mut Writer<'_>) -> Result<Next, fmt::Error> {
        if !self.begun {
            json.begin_object()?;
            json.number_member("v", VERSION)?;
            json.key("lines")?;
            json.begin_array()?;
            self.begun = true;
            return Ok(Next::More);
        }
        match self.line(subject)? {
            Found::End => {
                json.end_array_on_new_line()?;
                json.end_object()?;
                return Ok(Next::Done);
            }
            Found::Line(line) => {
                json.new_line()?;
                json.text(line)?;
            }
            Found::Nothing => {}
        }
        self.go_on(subject)?;
        Ok(Next::More)
    }

    /// Writes as many lines of plain text into `out` as fit behind what it holds.
    pub(super) fn fill(&mut self, subject: &dyn Subject, out: &mut Output) -> Fill {
        loop {
            let written = out.len();
            match self.line(subject) {
                Ok(Found::Line(line)) if writeln!(out, "{line}").is_err() => {
                    out.truncate(written);
                    return Fill::More;
                }
                Ok(Found::End) | Err(_) => return Fill::Done,
                Ok(Found::Line(_) | Found::Nothing) => {}
            }
            if self.go_on(subject).is_err() {
                return Fill::Done;
            }
        }
    }

    /// The line at which it is.
    fn line(&self, subject: &dyn Subject) -> Result<Found, fmt::Error> {
        let Some(family) = FAMILIES.get(self.family) else { return Ok(Found::End) };
        let Family { name, kind, help, .. } = family;
        let mut line = Line::new();
        match self.line {
            0 => write!(line, "# HELP {name} {help}")?,
            1 => write!(line, "# TYPE {name} {kind}")?,
            number => {
                let mut labels = Line::new();
                let sample = self.sample(family, number - 2, subject, &mut labels)?;
                let braced = |line: &mut Line| match labels.is_empty() {
                    true => write!(line, "{name} "),
                    false => write!(line, "{name}{{{labels}}} "),
                };
                match sample {
                    Sample::Value(value) => {
                        braced(&mut line)?;
                        write!(line, "{value}")?;
                    }
                    Sample::Thousandths(value) => {
                        braced(&mut line)?;
                        write!(line, "{}.{:03}", value / 1000, value % 1000)?;
                    }
                    Sample::Missing | Sample::End => return Ok(Found::Nothing),
                }
            }
        }
        Ok(Found::Line(line))
    }

    /// On to the next.
    fn go_on(&mut self, subject: &dyn Subject) -> fmt::Result {
        let Some(family) = FAMILIES.get(self.family) else { return Ok(()) };
        let at_end =
            self.line >= 2 && matches!(self.sample(family, self.line - 2, subject, &mut Line::new())?, Sample::End);
        (self.family, self.line) = if at_end { (self.family + 1, 0) } else { (self.family, self.line + 1) };
        Ok(())
    }

    fn sample(
        &self,
        family: &Family,
        n: usize,
        subject: &dyn Subject,
        labels: &mut Line,
    ) -> Result<Sample, fmt::Error> {
        const PROTOS: [&str; 2] = ["tcp", "udp"];
        let totals = subject.totals();
        let found = match &family.samples {
            Samples::Build if n == 0 => {
                label(labels, "version", env!("CARGO_PKG_VERSION"))?;
                Some(1)
            }
            Samples::Single(value) if n == 0 => Some(value(&totals, subject)),
            Samples::Memory(value) if n == 0 => Some(value(&self.memory)),
            Samples::Build | Samples::Single(_) | Samples::Memory(_) => None,
            Samples::Protos(_) | Samples::ProtoCounters(_) => {
                let Some(proto) = PROTOS.get(n) else { return Ok(Sample::End) };
                label(labels, "proto", proto)?;
                match &family.samples {
                    Samples::Protos(values) => values(&totals, subject).get(n).map(|value| *value as u64),
                    Samples::ProtoCounters(values) => values(subject).get(n).copied(),
                    _ => None,
                }
            }
            Samples::Listeners(value) => {
                let Some(listener) = subject.listener(n) else { return Ok(Sample::End) };
                label(labels, "listener", Short(listener.name))?;
                Some(value(&listener))
            }
            Samples::Packets => {
                let Some(listener) = subject.listener(n) else { return Ok(Sample::End) };
                let Some(packets) = self.packets.get(n).copied().flatten() else { return Ok(Sample::Missing) };
                label(labels, "listener", Short(listener.name))?;
                Some(packets)
            }
            Samples::Latency => {
                let Some(outbound) = self.outbounds.get(n) else { return Ok(Sample::End) };
                let Some(latency) = outbound.latency_ms else { return Ok(Sample::Missing) };
                label(labels, "outbound", Short(&outbound.name))?;
                return Ok(Sample::Thousandths(latency.into()));
            }
            Samples::Outbounds(value) => {
                let Some(outbound) = self.outbounds.get(n) else { return Ok(Sample::End) };
                let Some(value) = value(outbound) else { return Ok(Sample::Missing) };
                label(labels, "outbound", Short(&outbound.name))?;
                Some(value)
            }
            Samples::Bytes => {
                let Some(outbound) = self.outbounds.get(n / 2) else { return Ok(Sample::End) };
                let (direction, value) =
                    if n.is_multiple_of(2) { ("up", outbound.bytes_up) } else { ("down", outbound.bytes_down) };
                label(labels, "outbound", Short(&outbound.name))?;
                label(labels, "direction", direction)?;
                Some(value)
            }
            Samples::Rules(value) => {
                let Some(rule) = subject.rule(n) else { return Ok(Sample::End) };
                label(labels, "rule", rule.number)?;
                label(labels, "name", Short(rule.name.unwrap_or_default()))?;
                Some(value(&rule))
            }
            Samples::Drops => {
                let Some(reason) = Drop::ALL.get(n) else { return Ok(Sample::End) };
                label(labels, "reason", reason.name())?;
                Some(subject.stats().dropped(*reason))
            }
        };
        Ok(found.map_or(Sample::End, Sample::Value))
    }
}

fn label(labels: &mut Line, name: &str, value: impl fmt::Display) -> fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    write!(labels, "{comma}{name}=\"")?;
    write!(Escaped(labels), "{value}")?;
    labels.write_char('"')
}

/// Escapes what the text format says must be in the value of a label.
struct Escaped<'l>(&'l mut Line);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '\\' | '"' => write!(self.0, "\\{c}"),
            '\n' => self.0.write_str("\\n"),
            c => self.0.write_char(c),
        })
    }
}

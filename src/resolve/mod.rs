//! Addresses of the outbounds' servers: a DNS stub on the loop. No threads, no `getaddrinfo`, no waiting.
//!
//! A small set of names is known by id. Whoever dials takes the addresses that are there, even old ones, and requests the
//! name: if they are not fresh, a *round* of questions (A and AAAA at once) brings them up to date. The last good addresses
//! stay while DNS is down, however long. Names are absolute; search lists and the hosts file do not apply.

mod attempt;
mod name;
mod servers;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mio::{Registry, Token};

use crate::proto::dns::Answer;
use crate::store::slab::{Key, Slab};
use crate::store::timers::Tick;

pub use attempt::Failure;
pub use name::{Freshness, Outcome, Status};
pub use servers::ServersSource;

use attempt::{Attempt, Door, Progress, Question};
use name::{Half, Name, QTYPES};
use servers::Servers;

/// Most names that are known at once.
pub const NAMES_MAX: u16 = 64;

/// Most questions that are under way at once; others wait. Each holds one descriptor and one [`Token`].
pub const QUERIES_MAX: usize = 16;

/// How long one server has for its answer before the next is asked.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Shortest and longest pause after a round that failed; it doubles from the one to the other.
pub const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Least time between a round and another that [`Resolver::refresh`] brings about.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// One name. Finds nothing once the name was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameId(Key);

/// The names, what is known of them, and the questions that are under way.
///
/// Whoever owns it passes events of its tokens to [`Resolver::ready`], and calls [`Resolver::expire`] at
/// [`Resolver::deadline`]. All memory but the texts of names is reserved at the start.
pub struct Resolver {
    source: ServersSource,
    self_mark: u32,
    /// By index of [`QTYPES`].
    families: [bool; 2],
    token_base: Token,
    names: Slab<Name>,
    /// By token.
    queries: [Option<Query>; QUERIES_MAX],
    /// Not empty once a round has begun.
    servers: Servers,
    /// When `servers` was read: names that are asked for at the same moment share one reading.
    servers_read: Option<Tick>,
    /// Index of the server that answered last, which is asked first.
    preferred: usize,
    deadline: Option<Tick>,
}

/// A question that is under way.
struct Query {
    plan: Plan,
    attempt: Attempt,
}

/// A question's way from server to server.
struct Plan {
    name: Key,
    /// Index of [`QTYPES`].
    half: usize,
    /// Index of the server that is asked first.
    first: usize,
    /// Servers asked so far, some of them twice.
    tries: usize,
}

/// What one call from the loop may use.
struct Turn<'t> {
    now: Tick,
    registry: &'t Registry,
    done: &'t mut dyn FnMut(NameId, Outcome),
}

impl Resolver {
    /// The most memory that a resolver takes, in bytes.
    pub const MEMORY_MAX: usize = size_of::<Resolver>() + NAMES_MAX as usize * (Slab::<Name>::SLOT_SIZE + 253);

    /// A resolver without names. Its sockets carry `self_mark` (0: none) and the [`QUERIES_MAX`] tokens from `token_base`
    /// on. `families`: whether v4 and v6 addresses are of use; v4 if neither is said to be.
    pub fn new(source: ServersSource, self_mark: u32, families: (bool, bool), token_base: Token) -> Resolver {
        Resolver {
            source,
            self_mark,
            families: by_qtype(families),
            token_base,
            names: Slab::new(NAMES_MAX),
            queries: [const { None }; QUERIES_MAX],
            servers: Servers::new(),
            servers_read: None,
            preferred: 0,
            deadline: None,
        }
    }

    /// Takes the settings of a reload. Questions that are under way go on as they began; pauses after failures end, since
    /// an uplink that has just come up is the usual reason of a reload.
    pub fn reconfigure(&mut self, source: ServersSource, self_mark: u32, families: (bool, bool), now: Tick) {
        (self.source, self.self_mark, self.families) = (source, self_mark, by_qtype(families));
        self.servers_read = None;
        for slot in 0..self.names.touched() {
            if let Some(name) = self.names.key_at(slot).and_then(|key| self.names.get_mut(key)) {
                name.back_off = None;
                name.start = name.start.map(|_| now);
            }
        }
        self.deadline = self.next_deadline();
    }

    /// The id of `name`, the same for the same name in upper or lower case. `None` if there are [`NAMES_MAX`] others.
    pub fn intern(&mut self, name: &str) -> Option<NameId> {
        let known = self.names.iter().find(|(_, known)| known.text.eq_ignore_ascii_case(name)).map(|(key, _)| key);
        known.or_else(|| self.names.insert(Name::new(name)).ok()).map(NameId)
    }

    /// Drops the names that `keep` does not want, and their questions.
    pub fn retain(&mut self, registry: &Registry, keep: &mut dyn FnMut(&str) -> bool) {
        for slot in 0..self.names.touched() {
            let Some(key) = self.names.key_at(slot) else { continue };
            if self.names.get(key).is_some_and(|name| keep(&name.text)) {
                continue;
            }
            self.names.remove(key);
            for query in &mut self.queries {
                if let Some(query) = query.take_if(|query| query.plan.name == key) {
                    query.attempt.end(registry);
                }
            }
        }
        self.deadline = self.next_deadline();
    }

    /// The last good addresses, v6 before v4, each family in its server's order; empty if there never were any.
    pub fn addresses(&self, id: NameId) -> &[IpAddr] {
        self.names.get(id.0).map_or(&[], |name| &name.addresses)
    }

    /// What is known of a name; `None` if it was dropped.
    pub fn status(&self, id: NameId) -> Option<Status<'_>> {
        self.names.get(id.0).map(Name::status)
    }

    /// What is known of all names.
    pub fn statuses(&self) -> impl Iterator<Item = Status<'_>> {
        self.names.iter().map(|(_, name)| name.status())
    }

    /// Says that `id` is wanted. Unless its addresses are fresh or a round is under way, one begins at the next
    /// [`Self::expire`], which is then due at once, or when the pause after a failure is over.
    pub fn request(&mut self, id: NameId, now: Tick) {
        if self.names.get_mut(id.0).is_some_and(|name| name.request(now)) {
            self.deadline = self.next_deadline();
        }
    }

    /// Says that the addresses of `id` have stopped working, so that they are asked for again although they may be fresh.
    ///
    /// False if that does nothing: a round is under way, or has begun within [`REFRESH_INTERVAL`].
    pub fn refresh(&mut self, id: NameId, now: Tick) -> bool {
        let wanted = self.names.get_mut(id.0).is_some_and(|name| name.refresh(now));
        self.deadline = self.next_deadline();
        wanted
    }

    /// Whether `token` is one of ours.
    pub fn owns(&self, token: Token) -> bool {
        self.slot(token).is_some()
    }

    /// Takes an event of a socket. One that belonged to a predecessor on the same token does no harm.
    pub fn ready(&mut self, token: Token, now: Tick, registry: &Registry, done: &mut dyn FnMut(NameId, Outcome)) {
        if let Some(slot) = self.slot(token) {
            let turn = &mut Turn { now, registry, done };
            self.advance(slot, turn);
            self.fill_places(turn);
            self.deadline = self.next_deadline();
        }
    }

    /// Does what is due by `now`; before [`Self::deadline`] that is nothing, and costs nothing.
    pub fn expire(&mut self, now: Tick, registry: &Registry, done: &mut dyn FnMut(NameId, Outcome)) {
        if self.deadline.is_none_or(|deadline| !now.reached(deadline)) {
            return;
        }
        let turn = &mut Turn { now, registry, done };
        for slot in 0..QUERIES_MAX {
            if let Some(late) = self.query(slot).filter(|query| now.reached(query.attempt.deadline)) {
                let failure = Failure::NoAnswer { server: late.attempt.server };
                self.ask_on(slot, failure, turn);
            }
        }
        for slot in 0..self.names.touched() {
            let Some(key) = self.names.key_at(slot) else { continue };
            if self.names.get_mut(key).is_some_and(|name| name.pass(now)) {
                self.begin_round(key, turn);
            }
        }
        self.fill_places(turn);
        self.deadline = self.next_deadline();
    }

    /// When [`Self::expire`] is due; `None` if nothing is under way.
    pub fn deadline(&self) -> Option<Tick> {
        self.deadline
    }

    fn next_deadline(&self) -> Option<Tick> {
        let queries = self.queries.iter().flatten().map(|query| query.attempt.deadline);
        // A question may wait beside a free place only after a name was dropped; it is due at once.
        let places = self.queries.iter().any(Option::is_none);
        let names = self.names.iter().flat_map(|(_, name)| name.deadlines(places));
        queries.chain(names).reduce(Tick::earlier)
    }

    fn slot(&self, token: Token) -> Option<usize> {
        token.0.checked_sub(self.token_base.0).filter(|slot| *slot < QUERIES_MAX)
    }

    fn query(&self, slot: usize) -> Option<&Query> {
        self.queries.get(slot)?.as_ref()
    }

    fn door<'t>(&self, slot: usize, turn: &Turn<'t>) -> Door<'t> {
        let token = Token(self.token_base.0 + slot);
        Door { registry: turn.registry, token, mark: self.self_mark, now: turn.now }
    }

    fn begin_round(&mut self, key: Key, turn: &mut Turn<'_>) {
        let read = self.read_servers(turn.now);
        let Some(name) = self.names.get_mut(key) else { return };
        name.begin(self.families, turn.now);
        if let Err(failure) = read {
            for half in 0..QTYPES.len() {
                self.settle(key, half, Err(failure), turn);
            }
        }
    }

    fn read_servers(&mut self, now: Tick) -> Result<(), Failure> {
        if self.servers_read != Some(now) {
            let servers = servers::read(&self.source).map_err(|e| Failure::no_servers(&e))?;
            if servers != self.servers {
                (self.servers, self.preferred) = (servers, 0);
            }
            self.servers_read = Some(now);
        }
        Ok(())
    }

    /// Gives free places to the questions that wait for one.
    fn fill_places(&mut self, turn: &mut Turn<'_>) {
        for slot in 0..QUERIES_MAX {
            while self.query(slot).is_none() {
                let Some((key, half)) = self.names.iter().find_map(|(key, name)| Some((key, name.waiting()?))) else {
                    return;
                };
                if let Some(name) = self.names.get_mut(key) {
                    name.halves[half] = Half::Asking;
                }
                self.ask(slot, Plan { name: key, half, first: self.preferred, tries: 0 }, None, turn);
            }
        }
    }

    /// Asks server after server until one can be asked. If all tries are used up, the question has failed, because of
    /// `failure` if nothing newer is known, and the place stays free.
    fn ask(&mut self, slot: usize, mut plan: Plan, mut failure: Option<Failure>, turn: &mut Turn<'_>) {
        while let Some(server) = self.server(&plan) {
            let Some(name) = self.names.get(plan.name) else { return };
            plan.tries += 1;
            match Attempt::by_udp(server, name.question(plan.half), self.door(slot, turn)) {
                Ok(attempt) => {
                    self.queries[slot] = Some(Query { plan, attempt });
                    return;
                }
                Err(other) => failure = Some(other),
            }
        }
        if let Some(failure) = failure {
            self.settle(plan.name, plan.half, Err(failure), turn);
        }
    }

    /// Whom to ask next: each server twice in turn, a single one three times.
    fn server(&self, plan: &Plan) -> Option<SocketAddr> {
        let tries = (2 * self.servers.len()).max(3);
        let index = (plan.first + plan.tries) % self.servers.len().max(1);
        self.servers.get(index).copied().filter(|_| plan.tries < tries)
    }

    fn advance(&mut self, slot: usize, turn: &mut Turn<'_>) {
        let Some(query) = self.queries.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(name) = self.names.get(query.plan.name) else { return };
        match query.attempt.advance(name.question(query.plan.half)) {
            Progress::Wait => {}
            Progress::Truncated => self.ask_by_tcp(slot, turn),
            Progress::Answered(answer) => self.finish(slot, Ok(answer), turn),
            Progress::Failed(failure) if failure.is_about_the_name() => self.finish(slot, Err(failure), turn),
            Progress::Failed(failure) => self.ask_on(slot, failure, turn),
        }
    }

    /// Ends the attempt in `slot` and frees the place.
    fn take(&mut self, slot: usize, turn: &Turn<'_>) -> Option<(Plan, SocketAddr)> {
        let Query { plan, attempt } = self.queries.get_mut(slot)?.take()?;
        let server = attempt.server;
        attempt.end(turn.registry);
        Some((plan, server))
    }

    fn ask_on(&mut self, slot: usize, failure: Failure, turn: &mut Turn<'_>) {
        if let Some((plan, _)) = self.take(slot, turn) {
            self.ask(slot, plan, Some(failure), turn);
        }
    }

    fn ask_by_tcp(&mut self, slot: usize, turn: &mut Turn<'_>) {
        let Some((plan, server)) = self.take(slot, turn) else { return };
        match Attempt::by_tcp(server, self.door(slot, turn)) {
            Ok(attempt) => self.queries[slot] = Some(Query { plan, attempt }),
            Err(failure) => self.ask(slot, plan, Some(failure), turn),
        }
    }

    /// The question in `slot` has its answer, if only that there is no address.
    fn finish(&mut self, slot: usize, result: Result<Answer, Failure>, turn: &mut Turn<'_>) {
        let Some((plan, server)) = self.take(slot, turn) else { return };
        self.preferred = self.servers.iter().position(|known| *known == server).unwrap_or(0);
        self.settle(plan.name, plan.half, result, turn);
    }

    fn settle(&mut self, key: Key, half: usize, result: Result<Answer, Failure>, turn: &mut Turn<'_>) {
        let outcome = self.names.get_mut(key).and_then(|name| name.settle(half, result, turn.now));
        if let Some(outcome) = outcome {
            (turn.done)(NameId(key), outcome);
        }
    }
}

impl Name {
    fn question(&self, half: usize) -> Question<'_> {
        Question { name: &self.text, qtype: QTYPES[half] }
    }

    fn waiting(&self) -> Option<usize> {
        self.halves.iter().position(|half| *half == Half::Waiting)
    }
}

/// (v4, v6) by index of [`QTYPES`].
fn by_qtype((v4, v6): (bool, bool)) -> [bool; 2] {
    [v6, v4 || !v6]
}

#[cfg(test)]
mod tests;

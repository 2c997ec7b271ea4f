//! A house full of sessions and flows under a simulated clock: the tables, buffers, deadlines, quotas and health states that the
//! daemon is built of, and the choice of groups, together, step by step from a seed. At every step a plain model must agree: every
//! slot and buffer has one owner, no deadline is lost or early, nothing is stuck, no byte appears or goes, and a session goes to
//! the member that its policy says. `TPROXYD_TEST_SEED` runs a seed again,
//! `TPROXYD_SIMULATED_STEPS` makes it longer.
//!
//! What is not in it: whatever holds a socket (`session/`'s pumps and dials). That part runs in `tests/e2e`, with real ones.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tproxyd::config::GroupPolicy;
use tproxyd::policy::group::{self, Candidate, Health, State};
use tproxyd::session::destinations::{Decision, Destinations};
use tproxyd::store::endpoint::Endpoint;
use tproxyd::store::lru::Lru;
use tproxyd::store::pool::{CHUNK, Chunk, Pool};
use tproxyd::store::shares::{Share, Shares};
use tproxyd::store::slab::{Key, Slab};
use tproxyd::store::timers::{Tick, Timers};

const SLOTS: u16 = 64;
const BUFFERS: usize = 8;
const QUOTA: u16 = 20;
const CLIENTS: usize = 6;
const MEMBERS: usize = 4;
const IDLE: Duration = Duration::from_secs(120);
/// An hour of silence in one direction changes nothing for a session whose other direction speaks.
const LONG: Duration = Duration::from_secs(3_600);
const POLICIES: [GroupPolicy; 3] = [GroupPolicy::Failover, GroupPolicy::Fastest, GroupPolicy::Balance];

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % limit
    }
}

/// What the tables hold: one session or flow.
struct Session {
    client: usize,
    member: u16,
    share: Share,
    /// What the far side did not take.
    waiting: Option<Chunk>,
    half_closed: bool,
}

/// What the model knows of the session in a slot.
struct Known {
    key: Key,
    client: usize,
    member: u16,
    deadline: u64,
    /// When it spoke last, in steps of its own.
    spoke: u64,
    /// The octets that wait: their first, and how many. Each is one more than that before it.
    expected: (u8, usize),
}

/// A member of the group.
struct Member {
    health: Health,
    latency: Option<u32>,
    sessions: u32,
}

struct House {
    now: u64,
    sessions: Slab<Session>,
    timers: Timers,
    lru: Lru,
    pool: Pool,
    shares: Shares,
    destinations: Destinations,
    members: [Member; MEMBERS],
    last_member: Option<u16>,
    model: [Option<Known>; SLOTS as usize],
    of_client: [u16; CLIENTS],
    waiting: usize,
    spoken: u64,
    gone: VecDeque<Key>,
    ended: u64,
    /// Every octet follows the one below it.
    octets: Vec<u8>,
}

fn ip(client: usize) -> IpAddr {
    IpAddr::from([192, 168, 1, client as u8])
}

fn endpoint(client: usize, port: u16) -> Endpoint {
    SocketAddr::new(ip(client), port).into()
}

impl House {
    fn new() -> House {
        let mut shares = Shares::new(SLOTS, 11);
        shares.allow(QUOTA);
        House {
            // the counter of steps wraps under way
            now: u64::from(u32::MAX) - 100_000,
            sessions: Slab::new(SLOTS),
            timers: Timers::new(SLOTS),
            lru: Lru::new(SLOTS),
            pool: Pool::new((BUFFERS * CHUNK) as u64),
            shares,
            destinations: Destinations::new(128, 13),
            members: std::array::from_fn(|_| Member { health: Health::UNKNOWN, latency: None, sessions: 0 }),
            last_member: None,
            model: [const { None }; SLOTS as usize],
            of_client: [0; CLIENTS],
            waiting: 0,
            spoken: 0,
            gone: VecDeque::new(),
            ended: 0,
            octets: (0..=255).cycle().take(256 + CHUNK).collect(),
        }
    }

    fn tick(&self) -> Tick {
        Tick(self.now as u32)
    }

    fn steps(span: Duration) -> u64 {
        span.as_millis() as u64 / 10
    }

    fn known(&mut self, key: Key) -> &mut Known {
        self.model[usize::from(key.slot)].as_mut().filter(|known| known.key == key).expect("it is known")
    }

    /// It has spoken: its deadline moves, and it is the latest.
    fn touch(&mut self, key: Key) {
        let now = self.tick();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let span = if session.half_closed { LONG } else { IDLE };
        self.timers.set(key.slot, now.after(span));
        self.lru.touch(key.slot);
        self.spoken += 1;
        let (deadline, spoke) = (self.now + House::steps(span), self.spoken);
        let known = self.known(key);
        (known.deadline, known.spoke) = (deadline, spoke);
    }

    /// Which member takes a new session, and that it is the one that the policy means.
    fn choose(&mut self, policy: GroupPolicy) -> Option<u16> {
        let candidates: Vec<Candidate> = (0..)
            .zip(&self.members)
            .filter(|(_, member)| member.health.state != State::Down)
            .map(|(n, member)| Candidate {
                outbound: n,
                doubtful: member.health.wavers(),
                latency: member.latency,
                sessions: member.sessions,
            })
            .collect();
        let chosen = group::pick(policy, self.last_member, &candidates);
        let Some(one) = candidates.iter().find(|one| Some(one.outbound) == chosen) else {
            assert!(candidates.is_empty() && chosen.is_none(), "{policy:?} took {chosen:?} of {candidates:?}");
            return None;
        };
        let able = || candidates.iter().filter(|other| other.doubtful == one.doubtful);
        assert!(!one.doubtful || candidates.iter().all(|other| other.doubtful), "a sound one goes before");
        let latency = |one: &Candidate| one.latency.unwrap_or(u32::MAX);
        let best = able().map(latency).min().unwrap_or(u32::MAX);
        assert!(match policy {
            GroupPolicy::Failover => able().next() == Some(one),
            // the last may be a quarter slower, or two milliseconds
            GroupPolicy::Fastest if Some(one.outbound) != self.last_member => latency(one) == best,
            GroupPolicy::Fastest => latency(one) <= best.saturating_add((best / 4).max(2_000)),
            GroupPolicy::Balance => able().all(|other| other.sessions >= one.sessions),
        });
        self.last_member = chosen;
        chosen
    }

    fn open(&mut self, client: usize, port: u16, policy: GroupPolicy) {
        let has = self.of_client[client];
        let Some(share) = self.shares.take(ip(client), None) else {
            assert!(has >= QUOTA, "client {client} was refused with {has}");
            return;
        };
        assert!(has < QUOTA, "client {client} got one more than {has}");
        let Some(member) = self.choose(policy) else {
            self.shares.give_back(share);
            return;
        };
        if self.sessions.is_full() {
            let oldest =
                self.lru.oldest().and_then(|slot| self.sessions.key_at(slot)).expect("a full table has an oldest");
            self.close(oldest);
        }
        let session = Session { client, member, share, waiting: None, half_closed: false };
        let Ok(key) = self.sessions.insert(session) else { panic!("there was room") };
        let slot = &mut self.model[usize::from(key.slot)];
        assert!(slot.is_none() && !self.gone.contains(&key), "a slot or a key is given twice");
        *slot = Some(Known { key, client, member, deadline: 0, spoke: 0, expected: (0, 0) });
        self.of_client[client] += 1;
        self.members[usize::from(member)].sessions += 1;
        self.touch(key);
        let orig_dst: Endpoint = SocketAddr::from(([203, 0, 113, (port % 250) as u8], port)).into();
        self.destinations.insert(endpoint(client, port), orig_dst, Decision::Through(key), self.tick());
        assert_eq!(
            self.destinations.find(endpoint(client, port), orig_dst, self.tick()),
            Some(Decision::Through(key)),
            "what was just decided is known"
        );
    }

    /// The far side takes nothing: bytes wait in a buffer, if there is one.
    fn hold(&mut self, key: Key, len: usize) {
        let (first, waits) = self.known(key).expected;
        let next = usize::from(first.wrapping_add(waits as u8));
        let bytes = &self.octets[next..next + len];
        let Some(session) = self.sessions.get_mut(key) else { return };
        let lent = self.pool.lent();
        let held = match session.waiting.as_mut() {
            Some(chunk) => self.pool.append_all(chunk, &[bytes]),
            None => {
                session.waiting = self.pool.take(bytes);
                let held = session.waiting.is_some();
                assert_eq!(held, lent < BUFFERS && len <= CHUNK, "a free buffer is lent");
                self.waiting += usize::from(held);
                held
            }
        };
        if held {
            self.known(key).expected.1 += len;
        }
        self.touch(key);
    }

    /// The far side takes some of what waits.
    fn drain(&mut self, key: Key, len: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(mut chunk) = session.waiting.take() else { return };
        let known = self.model[usize::from(key.slot)].as_mut().expect("it is known");
        let (first, waits) = known.expected;
        let taken = len.min(chunk.len());
        assert_eq!(chunk.len(), waits, "no octet appears or goes");
        let expected = &self.octets[usize::from(first)..usize::from(first) + taken];
        assert!(self.pool.bytes(&chunk)[..taken] == *expected, "the octets in their order");
        known.expected = (first.wrapping_add(taken as u8), waits - taken);
        chunk.advance(taken);
        if chunk.is_empty() {
            self.pool.give_back(chunk);
            self.waiting -= 1;
        } else {
            session.waiting = Some(chunk);
        }
        self.touch(key);
    }

    fn close(&mut self, key: Key) {
        let Some(mut session) = self.sessions.remove(key) else { panic!("it was there") };
        let known = self.model[usize::from(key.slot)].take().expect("it is known");
        assert_eq!((session.client, session.member), (known.client, known.member), "whose slot it was");
        self.timers.clear(key.slot);
        self.lru.remove(key.slot);
        self.shares.give_back(std::mem::replace(&mut session.share, Share::NONE));
        if let Some(chunk) = session.waiting.take() {
            self.pool.give_back(chunk);
            self.waiting -= 1;
        }
        self.of_client[known.client] -= 1;
        self.members[usize::from(known.member)].sessions -= 1;
        self.gone.push_back(key);
        if self.gone.len() > 100 {
            self.gone.pop_front();
        }
        self.ended += 1;
    }

    fn pass(&mut self, steps: u64) {
        self.now += steps;
        while let Some(slot) = self.timers.expired(self.tick()) {
            let key = self.sessions.key_at(slot).expect("a deadline has a session");
            let (due, now) = (self.known(key).deadline, self.now);
            assert!(due <= now, "{} steps early", due - now);
            self.close(key);
        }
    }

    /// One look at each slot of the model.
    fn check(&self, step: u64) {
        let (mut live, mut next, mut oldest) = (0, u64::MAX, (u64::MAX, None));
        for known in self.model.iter().flatten() {
            live += 1;
            next = next.min(known.deadline);
            oldest = oldest.min((known.spoke, Some(known.key.slot)));
        }
        assert_eq!(self.sessions.len(), live);
        assert!(next > self.now, "a session is stuck");
        assert_eq!(self.timers.next().map(|at| at.0), (live > 0).then_some(next as u32), "the next deadline");
        assert_eq!(self.lru.oldest(), oldest.1, "the longest idle makes room");
        assert_eq!(self.pool.lent(), self.waiting, "every lent buffer has one owner");
        assert_eq!(self.of_client.iter().map(|count| usize::from(*count)).sum::<usize>(), live);
        if let Some(key) = self.gone.get(step as usize % 100) {
            let other = self.model[usize::from(key.slot)].as_ref().is_some_and(|known| known.key == *key);
            assert!(other || self.sessions.get(*key).is_none(), "a key of one that has gone finds another");
        }
        assert!(self.destinations.used() <= 128);
    }

    /// A session at random.
    fn any(&self, chance: &mut Chance) -> Option<Key> {
        let begin = chance.below(SLOTS.into());
        let (before, from) = self.model.split_at(begin);
        from.iter().chain(before).flatten().next().map(|known| known.key)
    }

    fn step(&mut self, chance: &mut Chance) {
        match chance.below(12) {
            0..=2 => {
                let (client, port) = (chance.below(CLIENTS), chance.below(5_000) as u16);
                self.open(client, port, POLICIES[chance.below(POLICIES.len())]);
            }
            3 | 4 => {
                if let Some(key) = self.any(chance) {
                    self.hold(key, [1, 100, 5_000, CHUNK / 2][chance.below(4)]);
                }
            }
            5 | 6 => {
                if let Some(key) = self.any(chance) {
                    self.drain(key, [1, 1_000, CHUNK][chance.below(3)]);
                }
            }
            7 => {
                if let Some(key) = self.any(chance) {
                    if chance.below(2) == 0 {
                        self.close(key);
                    } else if let Some(session) = self.sessions.get_mut(key) {
                        session.half_closed = true;
                        self.touch(key);
                    }
                }
            }
            8 => self.pass([1, 100, 3_000, House::steps(LONG)][chance.below(40).saturating_sub(36)]),
            9 | 10 => {
                let member = &mut self.members[chance.below(MEMBERS)];
                if chance.below(3) > 0 {
                    member.health.good(2);
                    member.latency = Some(group::smoothed(member.latency, chance.below(100_000) as u32));
                } else {
                    member.health.bad(2);
                }
            }
            _ => {
                self.destinations.forget_verdicts();
                self.pass(1);
            }
        }
    }
}

#[test]
fn a_house_full_of_sessions_keeps_its_books_for_any_seed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64 | 1);
    let seed = number("TPROXYD_TEST_SEED").unwrap_or(clock);
    let steps = number("TPROXYD_SIMULATED_STEPS").unwrap_or(200_000);
    println!("TPROXYD_TEST_SEED={seed}");
    let (mut house, mut chance) = (House::new(), Chance(seed | 1));
    #[allow(clippy::disallowed_methods, reason = "how fast it is, is said and not judged")]
    let begin = Instant::now();
    for step in 0..steps {
        house.step(&mut chance);
        house.check(step);
    }
    println!("{:.0} steps a second", steps as f64 / begin.elapsed().as_secs_f64());
    assert!(house.ended > steps / 100, "{} ended", house.ended);
    // after an hour and a bit without a word nobody is left
    house.pass(House::steps(LONG) + 1);
    house.check(0);
    assert_eq!((house.sessions.len(), house.pool.lent(), house.timers.next()), (0, 0, None));
}

#[test]
fn health_follows_what_a_majority_of_signs_says_for_any_seed() {
    for seed in 1..500u64 {
        let mut chance = Chance(seed);
        let (rise, fall) = (1 + chance.below(4) as u8, 1 + chance.below(4) as u8);
        let (mut health, mut state) = (Health::UNKNOWN, State::Unknown);
        let mut row = BTreeMap::from([(true, 0u8), (false, 0u8)]);
        for _ in 0..200 {
            let good = chance.below(2) == 0;
            *row.get_mut(&good).expect("both are there") += 1;
            row.insert(!good, 0);
            if good {
                health.good(rise)
            } else {
                health.bad(fall)
            }
            state = match state {
                State::Down if row[&true] >= rise => State::Up,
                State::Up if row[&false] >= fall => State::Down,
                State::Unknown if good => State::Up,
                State::Unknown if row[&false] >= fall => State::Down,
                same => same,
            };
            assert_eq!(health.state, state, "seed {seed}, rise {rise}, fall {fall}");
            row.values_mut().for_each(|count| *count = (*count).min(100));
        }
    }
}

//! A house full of sessions and flows under a simulated clock: the tables, buffers, deadlines, quotas and health states that the
//! daemon is built of, together, step by step from a seed. At every step a plain model must agree: every slot and buffer has one
//! owner, no deadline is lost or early, nothing is stuck, no byte appears or goes. `TPROXYD_TEST_SEED` runs a seed again,
//! `TPROXYD_SIMULATED_STEPS` makes it longer.
//!
//! What is not in it: whatever holds a socket (`session/`'s pumps and dials). That part runs in `tests/e2e`, with real ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tproxyd::policy::group::{Health, State};
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
const CLIENTS: u8 = 6;
const IDLE: Duration = Duration::from_secs(120);
/// An hour of silence in one direction changes nothing for a session whose other direction speaks.
const LONG: Duration = Duration::from_secs(3_600);

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
    client: u8,
    share: Share,
    active: Tick,
    /// What the far side did not take.
    waiting: Option<Chunk>,
    half_closed: bool,
}

/// What the model knows of it.
struct Known {
    client: u8,
    deadline: u64,
    expected: VecDeque<u8>,
}

struct House {
    now: u64,
    sessions: Slab<Session>,
    timers: Timers,
    lru: Lru,
    pool: Pool,
    shares: Shares,
    destinations: Destinations,
    model: HashMap<Key, Known>,
    /// Slots from the longest idle to the latest.
    order: VecDeque<u16>,
    gone: VecDeque<Key>,
    next_octet: u8,
    ended: u64,
}

fn ip(client: u8) -> IpAddr {
    IpAddr::from([192, 168, 1, client])
}

fn endpoint(client: u8, port: u16) -> Endpoint {
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
            model: HashMap::new(),
            order: VecDeque::new(),
            gone: VecDeque::new(),
            next_octet: 0,
            ended: 0,
        }
    }

    fn tick(&self) -> Tick {
        Tick(self.now as u32)
    }

    fn steps(span: Duration) -> u64 {
        span.as_millis() as u64 / 10
    }

    /// It has spoken: its deadline moves, and it is the latest.
    fn touch(&mut self, key: Key) {
        let now = self.tick();
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.active = now;
        let span = if session.half_closed { LONG } else { IDLE };
        self.timers.set(key.slot, now.after(span));
        self.lru.touch(key.slot);
        self.order.retain(|slot| *slot != key.slot);
        self.order.push_back(key.slot);
        self.model.get_mut(&key).expect("it is known").deadline = self.now + House::steps(span);
    }

    fn open(&mut self, client: u8, port: u16) {
        let has = self.model.values().filter(|known| known.client == client).count();
        let Some(share) = self.shares.take(ip(client), None) else {
            assert!(has >= usize::from(QUOTA), "client {client} was refused with {has}");
            return;
        };
        assert!(has < usize::from(QUOTA), "client {client} got one more than {has}");
        if self.sessions.is_full() {
            let oldest =
                self.lru.oldest().and_then(|slot| self.sessions.key_at(slot)).expect("a full table has an oldest");
            assert_eq!(self.order.front(), Some(&oldest.slot), "the longest idle makes room");
            self.close(oldest);
        }
        let session = Session { client, share, active: self.tick(), waiting: None, half_closed: false };
        let Ok(key) = self.sessions.insert(session) else { panic!("there was room") };
        assert!(!self.model.contains_key(&key), "a key is given twice");
        self.model.insert(key, Known { client, deadline: 0, expected: VecDeque::new() });
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
        let bytes: Vec<u8> = (0..len).map(|n| self.next_octet.wrapping_add(n as u8)).collect();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let lent = self.pool.lent();
        let held = match session.waiting.as_mut() {
            Some(chunk) => self.pool.append_all(chunk, &[&bytes]),
            None => {
                session.waiting = self.pool.take(&bytes);
                assert_eq!(session.waiting.is_some(), lent < BUFFERS && len <= CHUNK, "a free buffer is lent");
                session.waiting.is_some()
            }
        };
        if held {
            self.next_octet = self.next_octet.wrapping_add(len as u8);
            self.model.get_mut(&key).expect("it is known").expected.extend(&bytes);
        }
        self.touch(key);
    }

    /// The far side takes some of what waits.
    fn drain(&mut self, key: Key, len: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(mut chunk) = session.waiting.take() else { return };
        let known = self.model.get_mut(&key).expect("it is known");
        let taken = len.min(chunk.len());
        let expected: Vec<u8> = known.expected.drain(..taken).collect();
        assert_eq!(&self.pool.bytes(&chunk)[..taken], expected, "the bytes in their order");
        chunk.advance(taken);
        if chunk.is_empty() {
            assert!(known.expected.is_empty(), "{} bytes were lost", known.expected.len());
            self.pool.give_back(chunk);
        } else {
            session.waiting = Some(chunk);
        }
        self.touch(key);
    }

    fn close(&mut self, key: Key) {
        let Some(mut session) = self.sessions.remove(key) else { panic!("it was there") };
        assert_eq!(session.client, self.model[&key].client, "whose slot it was");
        self.timers.clear(key.slot);
        self.lru.remove(key.slot);
        self.order.retain(|slot| *slot != key.slot);
        self.shares.give_back(std::mem::replace(&mut session.share, Share::NONE));
        if let Some(chunk) = session.waiting.take() {
            self.pool.give_back(chunk);
        }
        self.model.remove(&key);
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
            let due = self.model[&key].deadline;
            assert!(due <= self.now, "{} steps early", due - self.now);
            self.close(key);
        }
    }

    fn check(&self) {
        assert_eq!(self.sessions.len(), self.model.len());
        assert!(self.model.values().all(|known| known.deadline > self.now), "a session is stuck");
        let next = self.model.values().map(|known| known.deadline).min();
        assert_eq!(self.timers.next().map(|at| at.0), next.map(|at| at as u32), "the next deadline");
        let waiting = self.sessions.iter().filter(|(_, session)| session.waiting.is_some()).count();
        assert_eq!(self.pool.lent(), waiting, "every lent buffer has one owner");
        for key in &self.gone {
            assert!(
                self.sessions.get(*key).is_none() || self.model.contains_key(key),
                "a key of one that has gone finds another"
            );
        }
        assert_eq!(self.lru.oldest(), self.order.front().copied());
        assert!(self.destinations.used() <= 128);
    }

    /// A session at random.
    fn any(&self, chance: &mut Chance) -> Option<Key> {
        let live: Vec<Key> = self.sessions.iter().map(|(key, _)| key).collect();
        (!live.is_empty()).then(|| live[chance.below(live.len())])
    }

    fn step(&mut self, chance: &mut Chance) {
        match chance.below(10) {
            0..=2 => self.open(chance.below(CLIENTS.into()) as u8, chance.below(5_000) as u16),
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
    let steps = number("TPROXYD_SIMULATED_STEPS").unwrap_or(40_000);
    println!("TPROXYD_TEST_SEED={seed}");
    let (mut house, mut chance) = (House::new(), Chance(seed | 1));
    for _ in 0..steps {
        house.step(&mut chance);
        house.check();
    }
    assert!(house.ended > steps / 100, "{} ended", house.ended);
    // after an hour and a bit without a word nobody is left
    house.pass(House::steps(LONG) + 1);
    house.check();
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

//! What the clients of rules with `rate` move: two buckets for each client of such a rule, one for each direction. A flow
//! holds the meter that it began with, so that a reload changes nothing for it. The meter outlives it: else a client would
//! begin anew with each connection.

use super::bucket::Bucket;
use super::endpoint::keyed_hash;
use super::index::Index;
use super::lru::Lru;
use super::shares;
use super::slab::Slab;
use super::timers::Tick;
use std::net::IpAddr;

/// One meter for each client of a rule, in fixed memory. The one that is without a flow for longest makes room.
pub struct Meters {
    slots: Slab<Metered>,
    index: Index,
    /// Those without a flow.
    idle: Lru,
    hash_key: u64,
    refused: u64,
}

/// Which meter a flow has, to be [given back](Meters::give_back).
#[derive(Debug, PartialEq, Eq)]
pub struct Meter(u16);

impl Meter {
    /// None: nothing is measured.
    pub const NONE: Meter = Meter(u16::MAX);

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0 != u16::MAX
    }
}

/// What a rule gives to each of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Tells the rule from the others.
    pub rule: u64,
    /// Bits per second, each way.
    pub rate: u64,
}

/// It stands here by its keyed hash, as in [`shares`].
struct Metered {
    client: u64,
    flows: u16,
    rate: u64,
    up: Bucket,
    down: Bucket,
}

/// Bytes of a turn that are not worth dividing.
const TURN_MIN: u64 = 16 * 1024;

impl Meters {
    /// Bytes that `capacity` meters take at most.
    pub const fn memory_max(capacity: usize) -> usize {
        capacity * (Slab::<Metered>::SLOT_SIZE + Index::SLOT_SIZE + Lru::SLOT_SIZE)
    }

    /// So many, at most 32,768.
    pub fn new(capacity: u16, hash_key: u64) -> Meters {
        let (index, idle) = (Index::new(capacity), Lru::new(capacity));
        Meters { slots: Slab::new(capacity), index, idle, hash_key, refused: 0 }
    }

    /// Clients that are measured, and how many fit.
    pub fn usage(&self) -> (usize, usize) {
        (self.slots.len(), self.slots.capacity())
    }

    /// Flows for which there was none.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The meter for a flow of the client with `ip` and `mac`, which are looked at as in [`shares`]; `None`: there is no
    /// room for one more.
    pub fn take(&mut self, of: Allowance, ip: IpAddr, mac: Option<[u8; 6]>, now: Tick) -> Option<Meter> {
        let [kind, number] = shares::words(ip, mac);
        let client = keyed_hash(self.hash_key, &[of.rule, of.rate, kind, number]);
        let Meters { slots, index, idle, .. } = self;
        let is_it = |slot| slots.key_at(slot).and_then(|key| slots.get(key)).is_some_and(|m| m.client == client);
        if let Some(slot) = index.find(client, is_it) {
            idle.remove(slot);
            self.of_slot(slot)?.flows += 1;
            return Some(Meter(slot));
        }
        if slots.is_full()
            && let Some(oldest) = idle.oldest()
        {
            self.remove(oldest);
        }
        let Meters { slots, index, .. } = self;
        let full = Bucket::new(of.rate, now);
        match slots.insert(Metered { client, flows: 1, rate: of.rate, up: full, down: full }) {
            Ok(key) => {
                index.insert(client, key.slot);
                Some(Meter(key.slot))
            }
            Err(_) => {
                self.refused += 1;
                None
            }
        }
    }

    /// A flow has ended.
    pub fn give_back(&mut self, meter: Meter) {
        let Some(metered) = self.of_slot(meter.0) else { return };
        metered.flows -= 1;
        if metered.flows == 0 {
            self.idle.touch(meter.0);
        }
    }

    fn remove(&mut self, slot: u16) {
        self.idle.remove(slot);
        if let Some(gone) = self.slots.key_at(slot).and_then(|key| self.slots.remove(key)) {
            self.index.remove(gone.client, slot);
        }
    }

    /// Bytes that a stream may move in its turn, up and down, `most` at most. Half of what there is, since others of the
    /// client wait for it, too.
    pub fn turns(&mut self, meter: &Meter, most: u64, now: Tick) -> (u64, u64) {
        let Some(Metered { rate, up, down, .. }) = self.of_slot(meter.0) else { return (most, most) };
        let turn = |room: u64| room.min((room / 2).max(TURN_MIN)).min(most);
        (turn(up.room(*rate, now)), turn(down.room(*rate, now)))
    }

    /// A stream has moved so many bytes.
    pub fn moved(&mut self, meter: &Meter, up: u64, down: u64) {
        let Some(metered) = self.of_slot(meter.0) else { return };
        metered.up.take(metered.rate, up);
        metered.down.take(metered.rate, down);
    }

    /// How a stream goes on whose turn was used up, up or down: true if there is more for it now, else when there will be.
    pub fn goes_on(&mut self, meter: &Meter, used_up: [bool; 2]) -> (bool, Option<Tick>) {
        let Some(Metered { up, down, .. }) = self.of_slot(meter.0) else { return (used_up.contains(&true), None) };
        let opens = [up, down].map(|bucket| bucket.opens());
        let waits = used_up.iter().zip(opens).filter(|(used_up, _)| **used_up);
        waits.fold((false, None), |(now, at), (_, opens)| (now || opens.is_none(), Tick::soonest(at, opens)))
    }

    /// Whether a datagram of so many bytes passes.
    pub fn admits(&mut self, meter: &Meter, is_up: bool, bytes: usize, now: Tick) -> bool {
        let Some(metered) = self.of_slot(meter.0) else { return true };
        let bucket = if is_up { &mut metered.up } else { &mut metered.down };
        bucket.admits(metered.rate, bytes, now)
    }

    fn of_slot(&mut self, slot: u16) -> Option<&mut Metered> {
        let key = self.slots.key_at(slot)?;
        self.slots.get_mut(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TV: Allowance = Allowance { rule: 1, rate: 8_000_000 };

    fn ip(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    #[test]
    fn flows_of_one_client_and_rule_share_a_meter_and_others_have_theirs() {
        let mut meters = Meters::new(8, 7);
        let now = Tick(5);
        let first = meters.take(TV, ip(1), None, now).unwrap();
        let second = meters.take(TV, ip(1), None, now).unwrap();
        assert_eq!(first, second);
        let other_client = meters.take(TV, ip(2), None, now).unwrap();
        let other_rule = meters.take(Allowance { rule: 2, ..TV }, ip(1), None, now).unwrap();
        let other_rate = meters.take(Allowance { rate: 1, ..TV }, ip(1), None, now).unwrap();
        meters.moved(&first, 200_000, 0);
        assert_eq!(meters.turns(&second, u64::MAX, now), (0, 50_000), "each way for itself");
        let opens = meters.goes_on(&second, [true, false]);
        assert!(!opens.0 && opens.1.is_some());
        assert_eq!(meters.goes_on(&second, [false, true]), (true, None));
        assert_eq!(meters.goes_on(&second, [true, true]), (true, opens.1));
        for other in [&other_client, &other_rule] {
            assert_eq!(meters.turns(other, 40_000, now), (40_000, 40_000));
        }
        assert_eq!(meters.usage(), (4, 8));
        meters.give_back(first);
        assert_eq!(meters.turns(&second, 9, now).0, 0, "the other flow holds it");
        for meter in [second, other_client, other_rule, other_rate] {
            meters.give_back(meter);
        }
        let again = meters.take(TV, ip(1), None, now).unwrap();
        assert_eq!(meters.turns(&again, 9, now).0, 0, "a new connection is no new beginning");
    }

    #[test]
    fn a_client_is_known_by_its_mac_address() {
        let mut meters = Meters::new(8, 7);
        let mac = Some([2, 0, 0, 0, 0, 1]);
        let [v4, v6] = ["192.0.2.1", "2001:db8::1"].map(|ip| meters.take(TV, ip.parse().unwrap(), mac, Tick(0)));
        assert!(v4.is_some() && v4 == v6);
    }

    #[test]
    fn a_full_table_gives_the_meter_of_the_longest_idle_and_refuses_if_none_is() {
        let mut meters = Meters::new(2, 7);
        let held: Vec<Meter> = (0..2).map(|n| meters.take(TV, ip(n), None, Tick(0)).unwrap()).collect();
        assert_eq!((meters.take(TV, ip(2), None, Tick(0)), meters.refused()), (None, 1));
        meters.moved(&held[1], 1 << 20, 0);
        held.into_iter().for_each(|meter| meters.give_back(meter));
        let newest = meters.take(TV, ip(2), None, Tick(0)).unwrap();
        assert_eq!(meters.usage(), (2, 2));
        let kept = meters.take(TV, ip(1), None, Tick(0)).unwrap();
        assert_eq!((meters.turns(&kept, 9, Tick(0)).0, meters.turns(&newest, 9, Tick(0)).0), (0, 9));
    }

    #[test]
    fn what_has_no_meter_is_not_measured() {
        let mut meters = Meters::new(2, 7);
        meters.moved(&Meter::NONE, 1 << 40, 1 << 40);
        assert_eq!(meters.turns(&Meter::NONE, 7, Tick(0)), (7, 7));
        assert!(meters.admits(&Meter::NONE, true, 65_507, Tick(0)));
        meters.give_back(Meter::NONE);
    }
}

//! How many places of the tables each client has, so that nobody takes them all.

use super::endpoint::keyed_hash;
use super::index::Index;
use super::slab::Slab;
use std::net::IpAddr;

/// One count for each client that has a place. Fixed memory: there are as many slots as places, so one is always free for
/// a client's first.
pub struct Shares {
    slots: Slab<Counted>,
    index: Index,
    hash_key: u64,
    most: u16,
}

/// One place that a client has, to be [given back](Shares::give_back).
#[derive(Debug, PartialEq, Eq)]
pub struct Share(u16);

impl Share {
    /// A place that counts for nobody.
    pub const NONE: Share = Share(u16::MAX);
}

/// A client and how many places it has. It stands here by its keyed hash: of 64 bits, and nobody outside knows the key, so
/// that two clients have the same once in billions of years.
struct Counted {
    client: u64,
    places: u16,
}

impl Shares {
    /// Bytes that it takes at most for tables of `capacity` places together.
    pub const fn memory_max(capacity: usize) -> usize {
        capacity * (Slab::<Counted>::SLOT_SIZE + Index::SLOT_SIZE)
    }

    /// For tables of `capacity` places together, at most 32,768. Nobody is counted before [`Self::allow`].
    pub fn new(capacity: u16, hash_key: u64) -> Shares {
        Shares { slots: Slab::new(capacity), index: Index::new(capacity), hash_key, most: 0 }
    }

    /// Each client may have `most` places from now on; 0: as many as there are. Who has more keeps them.
    pub fn allow(&mut self, most: u16) {
        self.most = most;
    }

    /// True if clients are counted.
    pub fn counts(&self) -> bool {
        self.most != 0
    }

    /// Takes a place for the client with `ip`, which is known by its MAC address where that is known: its v4 and v6
    /// addresses are one client then. Else by its address, of v6 by the first 64 bits, of which one client has all the rest.
    /// `None`: it has all that it may.
    pub fn take(&mut self, ip: IpAddr, mac: Option<[u8; 6]>) -> Option<Share> {
        if self.most == 0 {
            return Some(Share::NONE);
        }
        let client = keyed_hash(self.hash_key, &words(ip, mac));
        let slots = &mut self.slots;
        let counted = |slots: &Slab<Counted>, slot| slots.key_at(slot).and_then(|key| slots.get(key)).map(|c| c.client);
        match self.index.find(client, |slot| counted(slots, slot) == Some(client)) {
            Some(slot) => {
                let counted = slots.key_at(slot).and_then(|key| slots.get_mut(key))?;
                if counted.places >= self.most {
                    return None;
                }
                counted.places += 1;
                Some(Share(slot))
            }
            None => {
                // there are as many slots as places, so this can't fail; if it did, nobody would be locked out
                let Ok(key) = slots.insert(Counted { client, places: 1 }) else { return Some(Share::NONE) };
                self.index.insert(client, key.slot);
                Some(Share(key.slot))
            }
        }
    }

    /// Gives a place back.
    pub fn give_back(&mut self, share: Share) {
        let Some(key) = self.slots.key_at(share.0) else { return };
        let Some(counted) = self.slots.get_mut(key) else { return };
        counted.places -= 1;
        if counted.places == 0 {
            self.index.remove(counted.client, key.slot);
            self.slots.remove(key);
        }
    }
}

/// What tells one client from all others.
pub(super) fn words(ip: IpAddr, mac: Option<[u8; 6]>) -> [u64; 2] {
    match (mac, ip) {
        (Some([a, b, c, d, e, f]), _) => [0, u64::from_be_bytes([0, 0, a, b, c, d, e, f])],
        (None, IpAddr::V4(v4)) => [1, u32::from(v4).into()],
        (None, IpAddr::V6(v6)) => [2, (u128::from(v6) >> 64) as u64],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_has_its_quota_whatever_addresses_it_takes_and_others_have_theirs() {
        let mut shares = Shares::new(32, 7);
        assert_eq!(shares.take(ip("192.0.2.1"), None), Some(Share::NONE), "without a quota nobody is counted");
        shares.allow(3);
        let mac = Some([2, 0, 0, 0, 0, 1]);
        let mut held: Vec<Share> = ["192.0.2.1", "2001:db8::1", "2001:db8:9::1"]
            .map(|text| shares.take(ip(text), mac).unwrap())
            .into_iter()
            .collect();
        assert_eq!(shares.take(ip("192.0.2.2"), mac), None);
        // by address it is another, and all of a /64 are one
        for text in ["192.0.2.1", "2001:db8:1::1", "2001:db8:1::ffff:2", "2001:db8:1:0:8000::3"] {
            assert!(shares.take(ip(text), None).is_some(), "{text}");
        }
        assert_eq!(shares.take(ip("2001:db8:1::4"), None), None);
        assert!(shares.take(ip("2001:db8:1:1::4"), None).is_some());
        shares.give_back(held.pop().unwrap());
        assert!(shares.take(ip("192.0.2.1"), mac).is_some());
        shares.allow(1);
        assert_eq!(shares.take(ip("192.0.2.1"), mac), None, "who has more keeps them, and gets none");
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(steps in proptest::collection::vec((0u8..6, any::<bool>()), 0..300)) {
            let mut shares = Shares::new(16, 1);
            shares.allow(4);
            let mut held: Vec<(u8, Share)> = Vec::new();
            for (client, takes) in steps {
                let has = held.iter().filter(|(holder, _)| *holder == client).count();
                if takes && held.len() < 16 {
                    let share = shares.take([192, 0, 2, client].into(), None);
                    prop_assert_eq!(share.is_some(), has < 4);
                    held.extend(share.map(|share| (client, share)));
                } else if let Some(at) = held.iter().position(|(holder, _)| *holder == client) {
                    shares.give_back(held.swap_remove(at).1);
                }
                let clients: std::collections::HashSet<u8> = held.iter().map(|(holder, _)| *holder).collect();
                prop_assert_eq!(shares.slots.len(), clients.len());
            }
            held.into_iter().for_each(|(_, share)| shares.give_back(share));
            prop_assert!(shares.slots.is_empty());
        }
    }
}

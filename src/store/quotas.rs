//! What the clients of rules with `quota` have used in this day or month: one account for each client of such a rule, in
//! fixed memory. An account stays until its period is over, with or without flows; who finds none free is refused, since an
//! account that made room would begin anew.

use super::endpoint::keyed_hash;
use super::index::Index;
use super::shares;
use super::slab::Slab;
use std::fmt::{self, Display};
use std::net::IpAddr;

/// All accounts.
pub struct Quotas {
    slots: Slab<Used>,
    index: Index,
    hash_key: u64,
    /// What day and month it is; `None`: the clock is not set yet.
    today: Option<Today>,
    refused: u64,
    /// Accounts of which nobody has been told yet that they are used up.
    untold: u16,
    /// Something has changed since [`Self::saved`].
    changed: bool,
}

/// Which account a flow has, to be [given back](Quotas::give_back).
#[derive(Debug, PartialEq, Eq)]
pub struct Account(u16);

impl Account {
    /// None: nobody counts.
    pub const NONE: Account = Account(u16::MAX);

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0 != u16::MAX
    }

    /// Whether it is that in `slot`.
    pub fn is_in(&self, slot: u16) -> bool {
        self.0 == slot
    }
}

/// What a rule gives to each of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Tells the rule from the others.
    pub rule: u64,
    /// Bytes, both ways together.
    pub bytes: u64,
    /// In a month, not in a day.
    pub monthly: bool,
}

/// Day and month on the clock on the wall, each as a number that grows by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Today {
    /// Days since 1970.
    pub day: i32,
    /// Months.
    pub month: i32,
}

/// What a new flow is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Something is left.
    Within(Account),
    /// Nothing is.
    UsedUp,
    /// There is no account free for this client.
    Full,
}

/// An account that was used up just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedUp {
    /// Which flows have it.
    pub slot: u16,
    /// Tells the rule from the others.
    pub rule: u64,
    /// The client, by the address of its last flow.
    pub ip: IpAddr,
    /// What was used.
    pub used: u64,
}

struct Used {
    id: Id,
    ip: IpAddr,
    flows: u16,
    /// `None`: begun before the clock was set.
    period: Option<i32>,
    bytes: u64,
    used: u64,
    told: Told,
}

/// Whose account it is, and for which sort of period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Id {
    monthly: bool,
    rule: u64,
    client: [u64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It is not used up.
    Nothing,
    /// It is, and nobody knows.
    Due,
    Done,
}

impl Quotas {
    /// Bytes that `capacity` accounts take at most.
    pub const fn memory_max(capacity: usize) -> usize {
        capacity * (Slab::<Used>::SLOT_SIZE + Index::SLOT_SIZE)
    }

    /// So many, at most 32,768.
    pub fn new(capacity: u16, hash_key: u64) -> Quotas {
        let (slots, index) = (Slab::new(capacity), Index::new(capacity));
        Quotas { slots, index, hash_key, today: None, refused: 0, untold: 0, changed: false }
    }

    /// Accounts in use, and how many there are.
    pub fn usage(&self) -> (usize, usize) {
        (self.slots.len(), self.slots.capacity())
    }

    /// Flows for which there was none.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Accounts that are used up.
    pub fn used_up(&self) -> usize {
        self.slots.iter().filter(|(_, used)| used.told != Told::Nothing).count()
    }

    /// An account for a flow of the client with `ip` and `mac`, which are looked at as in [`shares`].
    pub fn take(&mut self, of: Grant, ip: IpAddr, mac: Option<[u8; 6]>) -> Taken {
        let id = Id { monthly: of.monthly, rule: of.rule, client: shares::words(ip, mac) };
        let slot = self.find(id).or_else(|| self.insert(id, ip, 0, self.period(of.monthly)));
        let Some((slot, used)) = slot.and_then(|slot| Some((slot, self.of_slot(slot)?))) else {
            self.refused += 1;
            return Taken::Full;
        };
        (used.ip, used.bytes) = (ip, of.bytes);
        if used.used < used.bytes {
            used.flows += 1;
            let was_due = std::mem::replace(&mut used.told, Told::Nothing) == Told::Due;
            self.untold -= u16::from(was_due);
            return Taken::Within(Account(slot));
        }
        if used.told == Told::Nothing {
            used.told = Told::Due;
            self.untold += 1;
        }
        Taken::UsedUp
    }

    /// Whether a client has nothing left.
    pub fn is_used_up(&self, of: Grant, ip: IpAddr, mac: Option<[u8; 6]>) -> bool {
        let id = Id { monthly: of.monthly, rule: of.rule, client: shares::words(ip, mac) };
        let found = self.find(id).and_then(|slot| self.slots.get(self.slots.key_at(slot)?));
        found.is_some_and(|used| used.used >= of.bytes)
    }

    /// A flow has moved so many bytes.
    pub fn count(&mut self, account: &Account, bytes: u64) {
        let Some(used) = self.of_slot(account.0) else { return };
        used.used = used.used.saturating_add(bytes);
        if used.used >= used.bytes && used.told == Told::Nothing {
            used.told = Told::Due;
            self.untold += 1;
        }
        self.changed |= bytes > 0;
    }

    /// A flow has ended.
    pub fn give_back(&mut self, account: Account) {
        let Some(used) = self.of_slot(account.0) else { return };
        used.flows -= 1;
        if used.flows == 0 && used.used == 0 {
            self.remove(account.0);
        }
    }

    /// True if [`Self::next_used_up`] has something to tell.
    pub fn has_news(&self) -> bool {
        self.untold > 0
    }

    /// The next account of which nobody has been told that it is used up.
    pub fn next_used_up(&mut self) -> Option<UsedUp> {
        if self.untold == 0 {
            return None;
        }
        let key = self.slots.iter().find(|(_, used)| used.told == Told::Due).map(|(key, _)| key)?;
        self.untold -= 1;
        let used = self.slots.get_mut(key)?;
        used.told = Told::Done;
        Some(UsedUp { slot: key.slot, rule: used.id.rule, ip: used.ip, used: used.used })
    }

    /// It is another day, or the clock was set. True: somebody begins anew.
    ///
    /// A clock that is set back by one period takes nothing back: what was used counts until it has come past that again. One
    /// that had been far ahead is believed.
    pub fn follow(&mut self, today: Today) -> bool {
        self.today = Some(today);
        let mut anew = false;
        for slot in 0..self.slots.touched() {
            let Some(used) = self.of_slot(slot) else { continue };
            let now = if used.id.monthly { today.month } else { today.day };
            let before = *used.period.get_or_insert(now);
            if before == now || before == now.saturating_add(1) {
                continue;
            }
            (used.period, used.used) = (Some(now), 0);
            let was_due = std::mem::replace(&mut used.told, Told::Nothing) == Told::Due;
            let is_idle = used.flows == 0;
            self.untold -= u16::from(was_due);
            if is_idle {
                self.remove(slot);
            }
            (anew, self.changed) = (true, true);
        }
        anew
    }

    /// True if something has changed since [`Self::saved`].
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// What [`Self::lines`] gives is kept.
    pub fn saved(&mut self) {
        self.changed = false;
    }

    /// All accounts, a line each, to be kept over a restart.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        self.slots.iter().filter(|(_, used)| used.used > 0).map(|(_, used)| Line {
            id: used.id,
            period: used.period,
            used: used.used,
            told: used.told == Told::Done,
        })
    }

    /// Takes one such line. False: it is none, or there is no room.
    pub fn restore(&mut self, line: &str) -> bool {
        let Some(Line { id, period, used, told }) = Line::read(line) else { return false };
        let nobody = IpAddr::from([0; 4]);
        let Some(slot) = self.find(id).is_none().then(|| self.insert(id, nobody, used, period)).flatten() else {
            return false;
        };
        if let Some(used) = self.of_slot(slot)
            && told
        {
            used.told = Told::Done;
        }
        true
    }

    /// Forgets all accounts that have no flow.
    pub fn forget(&mut self) {
        for slot in 0..self.slots.touched() {
            if self.of_slot(slot).is_some_and(|used| used.flows == 0) {
                self.remove(slot);
            }
        }
    }

    fn period(&self, monthly: bool) -> Option<i32> {
        self.today.map(|today| if monthly { today.month } else { today.day })
    }

    fn hash(&self, id: Id) -> u64 {
        keyed_hash(self.hash_key, &[u64::from(id.monthly), id.rule, id.client[0], id.client[1]])
    }

    fn find(&self, id: Id) -> Option<u16> {
        let is_it =
            |slot| self.slots.key_at(slot).and_then(|key| self.slots.get(key)).is_some_and(|used| used.id == id);
        self.index.find(self.hash(id), is_it)
    }

    fn insert(&mut self, id: Id, ip: IpAddr, used: u64, period: Option<i32>) -> Option<u16> {
        let new = Used { id, ip, flows: 0, period, bytes: u64::MAX, used, told: Told::Nothing };
        let slot = self.slots.insert(new).ok()?.slot;
        self.index.insert(self.hash(id), slot);
        Some(slot)
    }

    fn remove(&mut self, slot: u16) {
        if let Some(gone) = self.slots.key_at(slot).and_then(|key| self.slots.remove(key)) {
            self.untold -= u16::from(gone.told == Told::Due);
            self.index.remove(self.hash(gone.id), slot);
        }
    }

    fn of_slot(&mut self, slot: u16) -> Option<&mut Used> {
        let key = self.slots.key_at(slot)?;
        self.slots.get_mut(key)
    }
}

/// An account as it is kept: `month 24322 0 20000000001 f00d 12345 -`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    id: Id,
    period: Option<i32>,
    used: u64,
    told: bool,
}

/// What a line has in place of a period that is not known.
const UNKNOWN: &str = "?";

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Id { monthly, rule, client: [kind, number] } = self.id;
        f.write_str(if monthly { "month " } else { "day " })?;
        match self.period {
            Some(period) => write!(f, "{period}")?,
            None => f.write_str(UNKNOWN)?,
        }
        write!(f, " {kind} {number:x} {rule:x} {} {}", self.used, if self.told { "!" } else { "-" })
    }
}

impl Line {
    fn read(text: &str) -> Option<Line> {
        let mut words = text.split(' ');
        let mut next = || words.next();
        let monthly = match next()? {
            "month" => true,
            "day" => false,
            _ => return None,
        };
        let period = match next()? {
            UNKNOWN => None,
            number => Some(number.parse().ok()?),
        };
        let kind = next()?.parse().ok().filter(|kind| *kind <= 2)?;
        let number = u64::from_str_radix(next()?, 16).ok()?;
        let rule = u64::from_str_radix(next()?, 16).ok()?;
        let used = next()?.parse().ok()?;
        let told = match next()? {
            "!" => true,
            "-" => false,
            _ => return None,
        };
        let line = Line { id: Id { monthly, rule, client: [kind, number] }, period, used, told };
        next().is_none().then_some(line)
    }
}

#[cfg(test)]
mod tests;

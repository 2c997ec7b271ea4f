//! Time as the program keeps it, and deadlines by key. Never reads the clock.

use std::time::Duration;

/// A moment, in steps of 10 ms since the process started. Wraps after 497 days; differences stay right for spans below
/// half of that, so compare only by [`Tick::reached`] and [`Tick::since`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tick(pub u32);

impl Tick {
    /// Length of one step.
    pub const STEP: Duration = Duration::from_millis(10);

    const PER_SECOND: u32 = 100;

    /// This moment plus `span`, rounded up to a whole step.
    #[must_use]
    pub fn after(self, span: Duration) -> Tick {
        let part = span.subsec_nanos().div_ceil(Self::STEP.as_nanos() as u32);
        let steps = span.as_secs().saturating_mul(Self::PER_SECOND.into()).saturating_add(part.into());
        Tick(self.0.wrapping_add(steps.min((u32::MAX / 2).into()) as u32))
    }

    /// The moment `span` after the start, rounded down to a whole step.
    pub fn at(span: Duration) -> Tick {
        // Multiplied: many routers' processors can't divide, and a program built for size calls a function for it. The
        // quotient of everything below 1,000,000,000 comes out exact.
        let part = (u64::from(span.subsec_nanos()) * ((1 << 54) / Self::STEP.as_nanos() as u64 + 1)) >> 54;
        Tick((span.as_secs() as u32).wrapping_mul(Self::PER_SECOND).wrapping_add(part as u32))
    }

    /// The one that comes first.
    #[must_use]
    pub fn earlier(self, other: Tick) -> Tick {
        if self.reached(other) { other } else { self }
    }

    /// The one that comes first, of those that there are.
    pub fn soonest(one: Option<Tick>, other: Option<Tick>) -> Option<Tick> {
        match (one, other) {
            (Some(one), Some(other)) => Some(one.earlier(other)),
            (one, other) => one.or(other),
        }
    }

    /// True if `self` is `deadline` or later.
    pub fn reached(self, deadline: Tick) -> bool {
        self.0.wrapping_sub(deadline.0) as i32 >= 0
    }

    /// Steps from `earlier` to `self`; zero if `earlier` lies ahead.
    pub fn steps_since(self, earlier: Tick) -> u32 {
        let steps = self.0.wrapping_sub(earlier.0);
        if (steps as i32) < 0 { 0 } else { steps }
    }

    /// Time from `earlier` to `self`; zero if `earlier` lies ahead.
    pub fn since(self, earlier: Tick) -> Duration {
        let steps = self.steps_since(earlier);
        // by a multiplication, as in `at`: exact for every u32
        let seconds = ((u64::from(steps) * ((1 << 37) / u64::from(Self::PER_SECOND) + 1)) >> 37) as u32;
        let part = steps - seconds * Self::PER_SECOND;
        Duration::new(seconds.into(), part * Self::STEP.as_nanos() as u32)
    }
}

/// At most one deadline for each of a fixed number of slots, the next one found at once.
///
/// A heap of four children a node with the place of every slot in it, so that a deadline can be moved or taken out. Setting
/// one is O(log n), and nothing wakes the process but a deadline that is reached.
pub struct Timers {
    heap: Vec<Deadline>,
    /// Where a slot stands in `heap`; [`ABSENT`] if nowhere.
    place: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Deadline {
    at: Tick,
    slot: u16,
}

const ABSENT: u16 = u16::MAX;

impl Timers {
    /// Bytes that one slot takes.
    pub const SLOT_SIZE: usize = size_of::<Deadline>() + size_of::<u16>();

    /// Room for the deadlines of `capacity` slots, at most 65,534.
    pub fn new(capacity: u16) -> Timers {
        let capacity = usize::from(capacity.min(ABSENT - 1));
        Timers { heap: Vec::with_capacity(capacity), place: Vec::with_capacity(capacity) }
    }

    /// Sets or moves the deadline of `slot`. Ignored for a slot outside the capacity.
    pub fn set(&mut self, slot: u16, at: Tick) {
        let index = usize::from(slot);
        if index >= self.place.capacity() {
            debug_assert!(false, "slot {slot} has no room for a deadline");
            return;
        }
        // grows within its capacity, so that a table of which little is used touches little
        if index >= self.place.len() {
            self.place.resize(index + 1, ABSENT);
        }
        match self.place[index] {
            ABSENT => {
                self.heap.push(Deadline { at, slot });
                self.rise(self.heap.len() - 1);
            }
            place => {
                let place = usize::from(place);
                let earlier = before(at, self.heap[place].at);
                self.heap[place].at = at;
                if earlier { self.rise(place) } else { self.sink(place) }
            }
        }
    }

    /// Takes the deadline of `slot` out, if it has one.
    pub fn clear(&mut self, slot: u16) {
        let place = self.place.get(usize::from(slot)).copied().unwrap_or(ABSENT);
        if place != ABSENT {
            self.remove(usize::from(place));
        }
    }

    /// The next deadline.
    pub fn next(&self) -> Option<Tick> {
        self.heap.first().map(|deadline| deadline.at)
    }

    /// Takes out the next deadline that has been reached by `now`, and names its slot.
    pub fn expired(&mut self, now: Tick) -> Option<u16> {
        let first = self.heap.first().filter(|first| now.reached(first.at))?.slot;
        self.remove(0);
        Some(first)
    }

    fn remove(&mut self, place: usize) {
        let gone = self.heap.swap_remove(place);
        self.place[usize::from(gone.slot)] = ABSENT;
        if let Some(moved) = self.heap.get(place) {
            self.place[usize::from(moved.slot)] = place as u16;
            if before(moved.at, gone.at) { self.rise(place) } else { self.sink(place) }
        }
    }

    fn rise(&mut self, mut place: usize) {
        let item = self.heap[place];
        while place > 0 {
            let parent = (place - 1) / 4;
            if !before(item.at, self.heap[parent].at) {
                break;
            }
            self.put(place, self.heap[parent]);
            place = parent;
        }
        self.put(place, item);
    }

    fn sink(&mut self, mut place: usize) {
        let item = self.heap[place];
        loop {
            let children = 4 * place + 1..self.heap.len().min(4 * place + 5);
            let Some(least) = children.reduce(|a, b| if before(self.heap[b].at, self.heap[a].at) { b } else { a })
            else {
                break;
            };
            if !before(self.heap[least].at, item.at) {
                break;
            }
            self.put(place, self.heap[least]);
            place = least;
        }
        self.put(place, item);
    }

    fn put(&mut self, place: usize, item: Deadline) {
        self.heap[place] = item;
        self.place[usize::from(item.slot)] = place as u16;
    }
}

fn before(a: Tick, b: Tick) -> bool {
    a != b && b.reached(a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_tick_survives_its_own_wrap() {
        let late = Tick(u32::MAX - 5);
        let later = late.after(Duration::from_millis(95));
        assert_eq!(later, Tick(4));
        assert!(later.reached(late) && !late.reached(later));
        assert_eq!((later.since(late), late.since(later)), (Duration::from_millis(100), Duration::ZERO));
    }

    #[test]
    fn quotients_without_division_are_exact() {
        for step in (0..=u32::MAX).step_by(9_973).chain(u32::MAX / 2 - 500..=u32::MAX / 2).chain(0..2000) {
            let span = Tick(step & (u32::MAX / 2)).since(Tick(0));
            assert_eq!(span, Duration::from_millis(u64::from(step & (u32::MAX / 2)) * 10));
            assert_eq!(Tick::at(span), Tick(step & (u32::MAX / 2)));
            assert_eq!(Tick::at(span + Duration::from_nanos(9_999_999)), Tick(step & (u32::MAX / 2)));
        }
    }

    #[test]
    fn deadlines_come_in_order_and_not_before_their_time() {
        let mut timers = Timers::new(4);
        timers.set(0, Tick(30));
        timers.set(1, Tick(10));
        timers.set(2, Tick(20));
        timers.set(1, Tick(40));
        timers.clear(2);
        assert_eq!(timers.next(), Some(Tick(30)));
        assert_eq!(timers.expired(Tick(29)), None);
        assert_eq!(
            (timers.expired(Tick(99)), timers.expired(Tick(99)), timers.expired(Tick(99))),
            (Some(0), Some(1), None)
        );
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_map(
            start in any::<u32>(),
            steps in proptest::collection::vec((0u16..20, proptest::option::of(0u32..1000)), 0..300),
        ) {
            let mut timers = Timers::new(20);
            let mut model = BTreeMap::new();
            for (slot, deadline) in steps {
                match deadline {
                    Some(at) => { timers.set(slot, Tick(start.wrapping_add(at))); model.insert(slot, at); }
                    None => { timers.clear(slot); model.remove(&slot); }
                }
                prop_assert_eq!(timers.next(), model.values().min().map(|at| Tick(start.wrapping_add(*at))));
            }
            let now = Tick(start.wrapping_add(500));
            let mut came = Vec::new();
            while let Some(slot) = timers.expired(now) {
                came.push((model[&slot], slot));
            }
            prop_assert!(came.is_sorted_by_key(|(at, _)| *at));
            prop_assert_eq!(came.len(), model.values().filter(|at| **at <= 500).count());
        }
    }
}

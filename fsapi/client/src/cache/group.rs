//! What is known of the items of one lock group.

use std::collections::BTreeMap;

use bytes::Bytes;
use vellum_base::{BatchNo, Ino, Key, KeyRange, Mutant, Zone, mutant};

use super::RangeSet;
use super::evicted::Evicted;

/// Bytes that an item takes besides its value: key, tree node, reference count.
const ITEM_OVERHEAD: usize = 96;

/// Items, and where the following page begins.
pub(crate) type Page = (Vec<(Key, Bytes)>, Option<Key>);

/// Answer of the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// Ask the engine.
    No,
    Absent,
    Present(Bytes),
}

struct Cached {
    /// `None`: known to be absent.
    value: Option<Bytes>,
    /// The batch that changed it last; 0 when it came from the engine. Durable batches make it as good as clean.
    batch: BatchNo,
}

impl Cached {
    fn bytes(&self) -> usize {
        ITEM_OVERHEAD + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// What an eviction is to do.
pub(crate) struct Limits {
    /// Changes up to here may go.
    pub durable: BatchNo,
    /// What is to be dropped.
    pub enough_bytes: usize,
    /// Items from which on a group is so large that what is evicted is remembered; a smaller one is soon fetched again.
    pub large_items: usize,
    /// What may be remembered of one group.
    pub memory_bytes: usize,
}

#[derive(Default)]
pub(crate) struct GroupCache {
    items: BTreeMap<Key, Cached>,
    /// Ranges in which everything that exists is in `items`.
    pub known: RangeSet,
    evicted: Evicted,
    /// Inodes whose items all died, with the batch that says so.
    deaths: BTreeMap<Ino, BatchNo>,
    item_bytes: usize,
    /// Where the last eviction stopped.
    evict_from: Option<Key>,
    pub last_batch: BatchNo,
    pub fetches: u32,
    pub used_at: u64,
}

impl GroupCache {
    pub fn bytes(&self) -> usize {
        let ranges = self.known.len() + self.evicted.ranges() + self.deaths.len();
        self.item_bytes + ranges * ITEM_OVERHEAD + self.evicted.filter_bytes()
    }

    pub fn is_empty(&self) -> bool {
        let nothing_known = self.items.is_empty() && self.known.is_empty() && self.evicted.is_empty();
        nothing_known && self.deaths.is_empty() && self.fetches == 0
    }

    pub fn lookup(&self, key: &Key) -> Known {
        match self.items.get(key) {
            Some(Cached { value: Some(value), .. }) => Known::Present(value.clone()),
            Some(_) => Known::Absent,
            None if self.is_dead(key) || self.known.contains(key) || self.evicted.has_not(key) => Known::Absent,
            None => Known::No,
        }
    }

    fn is_dead(&self, key: &Key) -> bool {
        !self.deaths.is_empty() && key.zone() == Some(Zone::Fs) && self.deaths.contains_key(&Ino(key.first()))
    }

    fn set(&mut self, key: Key, cached: Cached) {
        self.item_bytes += cached.bytes();
        if let Some(old) = self.items.insert(key, cached) {
            self.item_bytes -= old.bytes();
        }
    }

    /// An own change.
    pub fn put(&mut self, key: Key, value: Option<Bytes>, batch: BatchNo) {
        self.set(key, Cached { value, batch });
        self.last_batch = self.last_batch.max(batch);
    }

    pub fn delete_inode(&mut self, ino: Ino, batch: BatchNo) {
        let range = KeyRange::of_inode(ino);
        let dead: Vec<Key> = self.items.range(range.first..=range.last).map(|(k, _)| *k).collect();
        for key in dead {
            if let Some(old) = self.items.remove(&key) {
                self.item_bytes -= old.bytes();
            }
        }
        self.deaths.insert(ino, batch);
        self.last_batch = self.last_batch.max(batch);
    }

    /// The engine's answer for one key. What is here already is at least as new.
    pub fn fetched(&mut self, key: Key, value: Option<Bytes>) -> Option<Bytes> {
        match self.lookup(&key) {
            Known::Present(newer) => Some(newer),
            Known::Absent => None,
            Known::No => {
                self.set(key, Cached { value: value.clone(), batch: BatchNo(0) });
                value
            }
        }
    }

    pub fn replace(&mut self, key: &Key, from: &Bytes, to: Bytes) {
        if let Some(cached) = self.items.get_mut(key)
            && let Some(value) = &mut cached.value
            && value.as_ptr() == from.as_ptr()
            && value.len() == to.len()
        {
            *value = to;
        }
    }

    /// Items of `range` as far as they are known, at most `max`; where it stopped, `None` at the range's end.
    /// `None` altogether when the first key is not known.
    pub fn scan(&self, range: KeyRange, max: usize) -> Option<Page> {
        let mut through = self.known.known_through(&range.first);
        if range.first.zone() == Some(Zone::Fs) {
            let inode = KeyRange::of_inode(Ino(range.first.first()));
            if self.is_dead(&range.first) {
                through = Some(through.map_or(inode.last, |t| t.max(inode.last)));
            }
        }
        if through.is_none() && self.evicted.has_none_in(&range) {
            through = Some(range.last);
        }
        let through = through?.min(range.last);
        let mut items = Vec::new();
        for (key, cached) in self.items.range(range.first..=through) {
            if let Some(value) = &cached.value {
                if items.len() == max {
                    return Some((items, Some(*key)));
                }
                items.push((*key, value.clone()));
            }
        }
        let next = if through == range.last { None } else { through.successor() };
        Some((items, next))
    }

    /// Drops what is not an undurable change, on from where the last call stopped, until it is enough or the `budget` of items that
    /// are looked at is used up. True: it came to the end. Nothing is remembered of a group that nobody used since all its items
    /// were dropped.
    pub fn evict(&mut self, limits: &Limits, budget: &mut usize) -> bool {
        if self.items.is_empty() {
            self.evicted = Evicted::default();
        }
        let remembers = self.items.len() >= limits.large_items || !self.evicted.is_empty();
        let durable = if mutant::active(Mutant::EvictUndurable) { BatchNo(u64::MAX) } else { limits.durable };
        let first = self.evict_from.take().unwrap_or(Key::MIN);
        let (mut dropped, mut bytes, mut stop) = (Vec::new(), 0, None);
        for (key, cached) in self.items.range(first..) {
            if *budget == 0 || bytes >= limits.enough_bytes {
                stop = Some(*key);
                break;
            }
            *budget -= 1;
            if cached.batch <= durable {
                bytes += cached.bytes();
                dropped.push(*key);
            }
        }
        for key in &dropped {
            let exists = self.items.remove(key).is_some_and(|item| item.value.is_some());
            if exists && remembers && !mutant::active(Mutant::ForgetEvicted) {
                self.evicted.insert(key);
            }
        }
        self.item_bytes -= bytes;
        let range = KeyRange { first, last: stop.and_then(|stop| stop.predecessor()).unwrap_or(Key::MAX) };
        if remembers {
            self.known.within(range).into_iter().for_each(|part| self.evicted.cover(part));
        }
        self.known.remove(range);
        if self.evicted.filter_bytes() > limits.memory_bytes {
            self.evicted = Evicted::default();
        }
        if stop.is_none() {
            self.deaths.retain(|_, batch| *batch > durable);
        }
        self.evict_from = stop;
        stop.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::fs(Ino(5), 1, n, 0, 0)
    }

    fn bytes(s: &'static str) -> Bytes {
        Bytes::from_static(s.as_bytes())
    }

    /// Eleven items are many.
    fn evict(c: &mut GroupCache, durable: u64, enough_bytes: usize, budget: &mut usize, memory_bytes: usize) -> bool {
        c.evict(&Limits { durable: BatchNo(durable), enough_bytes, large_items: 11, memory_bytes }, budget)
    }

    #[test]
    fn absence_is_known_by_item_by_death_and_by_range() {
        let mut c = GroupCache::default();
        assert_eq!(c.lookup(&key(1)), Known::No);
        c.put(key(1), None, BatchNo(1));
        c.known.insert(KeyRange { first: key(5), last: key(9) });
        assert_eq!(
            (c.lookup(&key(1)), c.lookup(&key(7)), c.lookup(&key(10))),
            (Known::Absent, Known::Absent, Known::No)
        );
        c.put(key(7), Some(bytes("x")), BatchNo(2));
        c.delete_inode(Ino(5), BatchNo(3));
        assert_eq!((c.lookup(&key(7)), c.lookup(&key(10))), (Known::Absent, Known::Absent));
        assert_eq!(c.scan(KeyRange::of_inode(Ino(5)), 10), Some((vec![], None)));
    }

    #[test]
    fn what_is_not_durable_is_not_evicted() {
        let mut c = GroupCache::default();
        c.put(key(1), Some(bytes("old")), BatchNo(1));
        c.put(key(2), Some(bytes("new")), BatchNo(2));
        c.delete_inode(Ino(6), BatchNo(2));
        c.fetched(key(3), Some(bytes("clean")));
        assert!(evict(&mut c, 1, usize::MAX, &mut 4, usize::MAX));
        assert_eq!((c.lookup(&key(1)), c.lookup(&key(3))), (Known::No, Known::No));
        assert_eq!(c.lookup(&key(2)), Known::Present(bytes("new")));
        assert_eq!(c.lookup(&Key::fs(Ino(6), 1, 0, 0, 0)), Known::Absent);
    }

    #[test]
    fn an_eviction_of_a_large_group_is_done_in_parts_and_forgets_no_more_than_it_drops() {
        let mut c = GroupCache::default();
        (0..10).for_each(|n| c.put(key(n), Some(bytes("v")), BatchNo(u64::from(n == 1))));
        c.known.insert(KeyRange { first: key(0), last: key(20) });
        let each = c.bytes() / 11;
        let mut budget = 3;
        assert!(!evict(&mut c, 0, usize::MAX, &mut budget, usize::MAX), "used up");
        assert_eq!(budget, 0);
        let known = |c: &GroupCache, n| c.lookup(&key(n)) != Known::No;
        assert_eq!([0, 1, 2, 3, 15].map(|n| known(&c, n)), [false, true, false, true, true]);
        assert!(!evict(&mut c, 0, usize::MAX, &mut 0, usize::MAX), "nothing is allowed");
        assert!(!evict(&mut c, 0, each, &mut 100, usize::MAX), "enough");
        assert_eq!([3, 4, 15].map(|n| known(&c, n)), [false, true, true]);
        assert!(evict(&mut c, 0, usize::MAX, &mut 100, usize::MAX));
        assert_eq!([1, 9, 15].map(|n| known(&c, n)), [true, false, false]);
        assert!(evict(&mut c, 1, usize::MAX, &mut 100, usize::MAX), "from the beginning again");
        assert!(c.is_empty() && c.bytes() == 0);
    }

    /// Twenty keys of one inode, and all behind them, known; those in `gone` do not exist.
    fn large(gone: std::ops::Range<u64>) -> GroupCache {
        let mut c = GroupCache::default();
        for n in 0..20 {
            c.put(key(n), Some(bytes("v")).filter(|_| !gone.contains(&n)), BatchNo(0));
        }
        c.known.insert(KeyRange { first: key(0), last: key(99) });
        c
    }

    #[test]
    fn what_a_large_group_never_had_is_known_after_its_items_are_gone() {
        let mut c = large(3..6);
        assert!(!evict(&mut c, 0, usize::MAX, &mut 10, usize::MAX));
        for n in 0..10 {
            let expected = if (3..6).contains(&n) { Known::Absent } else { Known::No };
            assert_eq!(c.lookup(&key(n)), expected, "key {n}");
        }
        assert_eq!(c.lookup(&key(15)), Known::Present(bytes("v")));
        let one = |n| KeyRange { first: key(n), last: Key::fs(Ino(5), 1, n, u64::MAX, 0) };
        assert_eq!((c.scan(one(4), 10), c.scan(one(7), 10)), (Some((vec![], None)), None));
        // What is made there, and evicted in its turn, is no less remembered.
        c.put(key(4), Some(bytes("new")), BatchNo(1));
        assert_eq!(c.scan(one(4), 10), Some((vec![(key(4), bytes("new"))], None)));
        assert!(evict(&mut c, 1, usize::MAX, &mut { usize::MAX }, usize::MAX), "the rest");
        assert!(evict(&mut c, 1, usize::MAX, &mut 100, usize::MAX), "and what came after");
        assert_eq!(c.lookup(&key(4)), Known::No);
        assert_eq!([5, 50, 98].map(|n| c.lookup(&key(n))), [Known::Absent, Known::Absent, Known::Absent]);
        assert!(c.bytes() > 0 && !c.is_empty());
        assert!(evict(&mut c, 1, usize::MAX, &mut 100, usize::MAX), "unused since it was emptied");
        assert!(c.is_empty() && c.bytes() == 0);
    }

    #[test]
    fn a_memory_of_evicted_items_that_is_too_large_is_given_up() {
        let mut c = large(0..0);
        assert!(evict(&mut c, 0, usize::MAX, &mut { usize::MAX }, 100));
        assert_eq!((c.lookup(&key(50)), c.bytes()), (Known::No, 0));
    }

    #[test]
    fn scenario_44_an_answer_that_was_overtaken_changes_nothing() {
        let mut c = GroupCache::default();
        c.put(key(1), Some(bytes("mine")), BatchNo(1));
        assert_eq!(c.fetched(key(1), Some(bytes("theirs"))), Some(bytes("mine")));
        c.put(key(2), None, BatchNo(1));
        assert_eq!(c.fetched(key(2), Some(bytes("theirs"))), None);
    }

    #[test]
    fn a_scan_stops_where_knowledge_or_the_page_ends() {
        let mut c = GroupCache::default();
        for n in [1, 3, 5, 7] {
            c.put(key(n), Some(bytes("v")), BatchNo(1));
        }
        let all = KeyRange { first: key(1), last: key(9) };
        assert_eq!(c.scan(all, 10), None);
        c.known.insert(KeyRange { first: key(0), last: key(5) });
        let (items, next) = c.scan(all, 10).unwrap();
        assert_eq!((items.len(), next), (3, key(5).successor()));
        let (items, next) = c.scan(all, 2).unwrap();
        assert_eq!((items.len(), next), (2, Some(key(5))));
    }
}

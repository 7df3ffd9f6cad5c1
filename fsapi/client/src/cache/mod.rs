//! The item cache: what is known of the items under held locks.
//!
//! Items are kept per lock group, so that giving a lock away costs the group's items and not the cache. Absence is
//! knowledge too: as an item without value, as an inode that died, by a range that is known completely, or by what is
//! remembered of evicted items ([`evicted`]).
//! Invariants: what is cached is the newest state (own changes included), because the lock is held; a change stays
//! until its batch is durable (an undurable item that were evicted could be read back in its old state after a crash);
//! in a group from which items are being fetched nothing is evicted, so that an answer that was overtaken by an own
//! change always finds that change here.

mod evicted;
mod group;
mod ranges;

use std::collections::HashMap;

use bytes::Bytes;
use vellum_base::{BatchNo, Ino, ItemOp, Key, KeyRange, Zone};

pub(crate) use group::{GroupCache, Known, Limits, Page};
pub(crate) use ranges::RangeSet;

#[derive(Default)]
pub(crate) struct ItemCache {
    groups: HashMap<u64, GroupCache>,
    bytes: usize,
    clock: u64,
    /// Groups with the time of their last use when this was made, the oldest last: what evictions take from. Those that were used
    /// since are passed over.
    oldest: Vec<(u64, u64)>,
}

/// The lock group of an item.
pub(crate) fn group_of(key: &Key) -> u64 {
    Ino(key.first()).group()
}

impl ItemCache {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    fn change<R>(&mut self, group: u64, change: impl FnOnce(&mut GroupCache) -> R) -> R {
        self.clock += 1;
        let cache = self.groups.entry(group).or_default();
        cache.used_at = self.clock;
        let before = cache.bytes();
        let result = change(cache);
        self.bytes = self.bytes + cache.bytes() - before;
        result
    }

    pub fn lookup(&mut self, key: &Key) -> Known {
        match self.groups.get_mut(&group_of(key)) {
            None => Known::No,
            Some(cache) => {
                self.clock += 1;
                cache.used_at = self.clock;
                cache.lookup(key)
            }
        }
    }

    pub fn apply(&mut self, op: &ItemOp, batch: BatchNo) {
        match op {
            ItemOp::Put { key, value } => self.change(group_of(key), |c| c.put(*key, Some(value.clone()), batch)),
            ItemOp::Delete { key } => self.change(group_of(key), |c| c.put(*key, None, batch)),
            ItemOp::DeleteInode { ino } => self.change(ino.group(), |c| c.delete_inode(*ino, batch)),
        }
    }

    pub fn fetch_begins(&mut self, group: u64) {
        self.change(group, |c| c.fetches += 1);
    }

    pub fn fetch_ends(&mut self, group: u64) {
        self.change(group, |c| c.fetches -= 1);
    }

    /// Takes an answer of the engine for one key and returns what is true now.
    pub fn fetched(&mut self, key: Key, value: Option<Bytes>) -> Option<Bytes> {
        self.change(group_of(&key), |c| c.fetched(key, value))
    }

    /// Takes the engine's items of a whole range.
    pub fn fetched_range(&mut self, group: u64, range: KeyRange, items: Vec<(Key, Bytes)>) {
        self.change(group, |c| {
            for (key, value) in items {
                c.fetched(key, Some(value));
            }
            c.known.insert(range);
        });
    }

    /// Items of `range` from memory, at most `max`, and where the knowledge or the page ends:
    /// `None` when not even the range's first key is known.
    pub fn scan(&mut self, group: u64, range: KeyRange, max: usize) -> Option<Page> {
        self.clock += 1;
        let clock = self.clock;
        let cache = self.groups.get_mut(&group)?;
        cache.used_at = clock;
        cache.scan(range, max)
    }

    pub fn know_range(&mut self, group: u64, range: KeyRange) {
        self.change(group, |c| c.known.insert(range));
    }

    /// The newest batch that changed the group.
    pub fn last_batch(&self, group: u64) -> BatchNo {
        self.groups.get(&group).map_or(BatchNo(0), |c| c.last_batch)
    }

    pub fn drop_group(&mut self, group: u64) {
        if let Some(cache) = self.groups.remove(&group) {
            debug_assert_eq!(cache.fetches, 0, "a fetch runs under the lock that is given away");
            self.bytes -= cache.bytes();
        }
    }

    /// Puts the durable form of a value in the place of its provisional one, if it still stands there.
    pub fn replace(&mut self, key: Key, provisional: &Bytes, settled: Bytes) {
        if let Some(cache) = self.groups.get_mut(&group_of(&key)) {
            cache.replace(&key, provisional, settled);
        }
    }

    /// Drops what was used longest ago and need not stay until `limit_bytes` is met with some room, or `budget` items have been
    /// looked at; groups of `large_items` are remembered. Returns the groups that lost items.
    pub fn evict(&mut self, limit_bytes: usize, large_items: usize, mut budget: usize, durable: BatchNo) -> Vec<u64> {
        let mut evicted = Vec::new();
        if self.bytes <= limit_bytes {
            return evicted;
        }
        let goal = limit_bytes - limit_bytes / 8;
        let mut may_order = true;
        while self.bytes > goal && budget > 0 {
            let Some((used_at, group)) = self.oldest.pop() else {
                if !std::mem::take(&mut may_order) {
                    break;
                }
                self.oldest = self.groups.iter().map(|(group, cache)| (cache.used_at, *group)).collect();
                self.oldest.sort_unstable_by_key(|(used_at, _)| std::cmp::Reverse(*used_at));
                continue;
            };
            let Some(cache) = self.groups.get_mut(&group).filter(|c| c.used_at == used_at && c.fetches == 0) else {
                continue;
            };
            budget -= 1;
            let before = cache.bytes();
            let (enough_bytes, memory_bytes) = (self.bytes - goal, limit_bytes / 4);
            let whole = cache.evict(&Limits { durable, enough_bytes, large_items, memory_bytes }, &mut budget);
            self.bytes = self.bytes + cache.bytes() - before;
            evicted.push(group);
            if cache.is_empty() {
                self.bytes -= cache.bytes();
                self.groups.remove(&group);
            } else if !whole {
                self.oldest.push((used_at, group));
            }
        }
        evicted
    }
}

/// True for keys that a client may hold: items of inodes and orphan records.
pub(crate) fn is_client_key(key: &Key) -> bool {
    matches!(key.zone(), Some(Zone::Fs | Zone::Orphan)) && key.bucket().0 == Ino(key.first()).bucket()
}

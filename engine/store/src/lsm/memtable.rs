//! What was applied and is in no segment yet: versions by key, range tombstones, values in an arena.
//!
//! A key's versions stand newest first and no two have the same epoch. When two writes have one epoch the later one
//! (greater sequence) wins; that order also decides between a write and a range deletion of the same epoch.

use bytes::Bytes;
use vellum_base::{Epoch, Key, KeyRange};

use super::arena::{Arena, ValueRef};
use super::key_map::{self, KeyMap};
use super::ranges::{RangeTombstones, Stamp};

#[derive(Clone, Copy, Debug)]
pub struct Version {
    pub epoch: Epoch,
    pub sequence: u32,
    pub value: ValueRef,
}

impl Version {
    pub fn stamp(&self) -> Stamp {
        (self.epoch, self.sequence)
    }
}

/// All versions of a key, newest first; mostly one.
pub struct Versions {
    newest: Version,
    /// A box: a vector in place would make all entries larger for the few that have several versions.
    #[allow(clippy::box_collection)]
    older: Option<Box<Vec<Version>>>,
}

impl Versions {
    pub fn iter(&self) -> impl Iterator<Item = &Version> {
        std::iter::once(&self.newest).chain(self.older.iter().flat_map(|older| older.iter()))
    }

    pub fn at(&self, at: Epoch) -> Option<&Version> {
        self.iter().find(|version| version.epoch <= at)
    }
}

/// What a key with one version counts for in the memtable's size, beside its value's slot.
const ENTRY_CHARGE: usize = key_map::KEY_CHARGE + size_of::<Versions>();
const OLDER_CHARGE: usize = 40;
/// Journal entries between two prunings. Few: they are not counted.
const PRUNE_STEP: usize = 1024;

/// Keys in order, with their versions.
pub type Points<'a> = key_map::Iter<'a, Versions>;

/// A key's state in one memtable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    Value(Bytes),
    Deleted,
}

#[derive(Default)]
pub struct Memtable {
    points: KeyMap<Versions>,
    arena: Arena,
    pub tombstones: RangeTombstones,
    sequence: u32,
    /// Without the values.
    point_bytes: usize,
    min_epoch: Option<Epoch>,
    max_epoch: Epoch,
    /// Writes of epochs that may be open still: what a freeze in their midst has to carry over.
    recent: Vec<(Epoch, Key)>,
    recent_ranges: Vec<(Stamp, KeyRange)>,
    prune_at: usize,
}

impl Memtable {
    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.tombstones.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.point_bytes + self.arena.bytes_taken() + self.tombstones.bytes()
    }

    /// A lower bound of the epochs in it.
    pub fn min_epoch(&self) -> Option<Epoch> {
        self.min_epoch
    }

    pub fn max_epoch(&self) -> Epoch {
        self.max_epoch
    }

    fn next_sequence(&mut self, epoch: Epoch) -> u32 {
        self.sequence += 1;
        self.holds(epoch);
        self.sequence
    }

    fn holds(&mut self, epoch: Epoch) {
        self.min_epoch = Some(self.min_epoch.map_or(epoch, |min| min.min(epoch)));
        self.max_epoch = self.max_epoch.max(epoch);
    }

    /// `value` is `None` for a deletion. Versions that no reader at `oldest_reader` or later can see are dropped.
    pub fn put(&mut self, epoch: Epoch, key: Key, value: Option<&[u8]>, oldest_reader: impl FnOnce() -> Epoch) {
        let sequence = self.next_sequence(epoch);
        self.recent.push((epoch, key));
        self.insert(key, epoch, sequence, value, oldest_reader);
    }

    fn insert(
        &mut self,
        key: Key,
        epoch: Epoch,
        sequence: u32,
        value: Option<&[u8]>,
        oldest_reader: impl FnOnce() -> Epoch,
    ) {
        let version = Version { epoch, sequence, value: self.arena.store(value) };
        let Some(versions) = self.points.insert(key, Versions { newest: version, older: None }) else {
            self.point_bytes += ENTRY_CHARGE;
            return;
        };
        let mut dropped = |version: Version| self.arena.release(version.value);
        if versions.newest.epoch == epoch && versions.older.is_none() {
            dropped(std::mem::replace(&mut versions.newest, version));
            return;
        }
        let mut all: Vec<Version> = versions.iter().copied().collect();
        let before = all.len();
        match all.iter().position(|v| v.epoch <= epoch) {
            Some(i) if all[i].epoch == epoch => dropped(std::mem::replace(&mut all[i], version)),
            Some(i) => all.insert(i, version),
            None => all.push(version),
        }
        let oldest_reader = oldest_reader();
        if let Some(visible) = all.iter().position(|v| v.epoch <= oldest_reader) {
            all.drain(visible + 1..).for_each(dropped);
        }
        self.point_bytes += all.len() * OLDER_CHARGE;
        self.point_bytes -= before * OLDER_CHARGE;
        versions.newest = all.remove(0);
        versions.older = (!all.is_empty()).then(|| Box::new(all));
    }

    pub fn delete_range(&mut self, epoch: Epoch, range: KeyRange, oldest_reader: Epoch) {
        let stamp = (epoch, self.next_sequence(epoch));
        self.recent_ranges.push((stamp, range));
        self.tombstones.insert(range, stamp, oldest_reader);
    }

    /// True when the journal of open epochs is worth pruning.
    pub fn wants_prune(&self) -> bool {
        self.recent.len() + self.recent_ranges.len() >= self.prune_at.max(PRUNE_STEP)
    }

    /// Forgets the journal of epochs that are closed.
    pub fn prune(&mut self, closed: Epoch) {
        self.recent.retain(|(epoch, _)| *epoch > closed);
        self.recent_ranges.retain(|((epoch, _), _)| *epoch > closed);
        self.prune_at = (self.recent.len() + self.recent_ranges.len()) * 2;
    }

    /// It is frozen: nothing is carried over from it any more.
    pub fn forget_journal(&mut self) {
        (self.recent, self.recent_ranges) = (Vec::new(), Vec::new());
    }

    /// A new memtable with what is newer than `closed_through`. This one keeps it too; whoever reads both must not look
    /// in this one beyond `closed_through`.
    pub fn split_after(&self, closed_through: Epoch) -> Memtable {
        let mut next = Memtable::default();
        if self.max_epoch <= closed_through {
            return next;
        }
        for (stamp, range) in self.recent_ranges.iter().filter(|(stamp, _)| stamp.0 > closed_through) {
            next.next_sequence(stamp.0);
            next.recent_ranges.push((*stamp, *range));
            next.tombstones.insert(*range, *stamp, Epoch::NONE);
        }
        for (epoch, key) in self.recent.iter().filter(|(epoch, _)| *epoch > closed_through) {
            let version = self.points.get(key).and_then(|all| all.iter().find(|v| v.epoch == *epoch));
            let Some(version) = version else { continue }; // superseded by a later epoch that all readers see
            next.next_sequence(*epoch);
            next.recent.push((*epoch, *key));
            next.insert(*key, *epoch, version.sequence, self.arena.bytes(version.value), || Epoch::NONE);
        }
        next.sequence = self.sequence;
        next
    }

    /// A memtable with what this one holds of `range`.
    pub fn part(&self, range: &KeyRange) -> Memtable {
        let mut part = Memtable { tombstones: self.tombstones.part(range), ..Memtable::default() };
        for (key, versions) in self.from(&range.first).take_while(|(key, _)| **key <= range.last) {
            let mut versions: Vec<&Version> = versions.iter().collect();
            while let Some(version) = versions.pop() {
                part.holds(version.epoch);
                part.insert(*key, version.epoch, version.sequence, self.arena.bytes(version.value), || Epoch::NONE);
            }
        }
        let stamps: Vec<Epoch> =
            part.tombstones.from(&Key::MIN).flat_map(|(_, fragment)| fragment.stamps().map(|stamp| stamp.0)).collect();
        stamps.into_iter().for_each(|epoch| part.holds(epoch));
        part.recent = self.recent.iter().filter(|(_, key)| range.contains(key)).copied().collect();
        let cut = |r: &KeyRange| KeyRange { first: r.first.max(range.first), last: r.last.min(range.last) };
        let mine = self.recent_ranges.iter().filter(|(_, r)| r.overlaps(range));
        part.recent_ranges = mine.map(|(stamp, r)| (*stamp, cut(r))).collect();
        part.sequence = self.sequence;
        part
    }

    pub fn get(&self, key: &Key, at: Epoch) -> Option<Found> {
        let version = self.points.get(key).and_then(|versions| versions.at(at));
        let deleted = self.tombstones.newest_at(key, at);
        match (version, deleted) {
            (None, None) => None,
            (Some(version), deleted) if deleted.is_none_or(|stamp| stamp < version.stamp()) => {
                Some(self.arena.copy(version.value).map_or(Found::Deleted, Found::Value))
            }
            _ => Some(Found::Deleted),
        }
    }

    /// Keys of at least `from`, in order, with all their versions.
    pub fn from(&self, from: &Key) -> Points<'_> {
        self.points.from(from)
    }

    pub fn value(&self, value: ValueRef) -> Option<&[u8]> {
        self.arena.bytes(value)
    }

    /// Brings keys and values into the processor's cache: in key order they lie anywhere, and here no access waits for
    /// the one before it.
    pub fn touch<'a>(&self, points: impl Iterator<Item = (&'a Key, &'a Versions)>) {
        let lines = points.map(|(_, versions)| self.arena.touch(versions.newest.value));
        std::hint::black_box(lines.fold(0, u8::wrapping_add));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::Ino;

    fn key(i: u64) -> Key {
        Key::fs(Ino(i), 1, 0, 0, 0)
    }

    fn put(table: &mut Memtable, epoch: u64, i: u64, value: &str, oldest: u64) {
        table.put(Epoch(epoch), key(i), Some(value.as_bytes()), || Epoch(oldest));
    }

    fn get(table: &Memtable, i: u64, at: u64) -> Option<Found> {
        table.get(&key(i), Epoch(at))
    }

    fn value(text: &'static str) -> Option<Found> {
        Some(Found::Value(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn epochs_choose_the_version() {
        let mut table = Memtable::default();
        put(&mut table, 5, 1, "five", 0);
        put(&mut table, 7, 1, "seven", 0);
        put(&mut table, 6, 1, "six", 0);
        put(&mut table, 7, 1, "seven again", 0);
        assert_eq!(get(&table, 1, 4), None);
        assert_eq!(get(&table, 1, 5), value("five"));
        assert_eq!(get(&table, 1, 6), value("six"));
        assert_eq!(get(&table, 1, u64::MAX), value("seven again"));
    }

    #[test]
    fn what_no_reader_sees_is_dropped_and_its_bytes_are_used_again() {
        let mut table = Memtable::default();
        put(&mut table, 1, 1, "a", 0);
        put(&mut table, 2, 1, "b", 2);
        let one = table.bytes();
        for epoch in 3..100 {
            put(&mut table, epoch, 1, "b", epoch);
        }
        assert_eq!(table.bytes(), one);
        put(&mut table, 100, 1, "c", 98);
        assert_eq!(get(&table, 1, 99), value("b"));
        assert!(table.bytes() > one);
    }

    #[test]
    fn a_range_deletion_covers_what_came_before_it() {
        let mut table = Memtable::default();
        put(&mut table, 5, 1, "before", 0);
        table.delete_range(Epoch(5), KeyRange::of_inode(Ino(1)), Epoch(0));
        put(&mut table, 5, 1, "after", 0);
        assert_eq!(get(&table, 1, 5), value("after"));
        table.delete_range(Epoch(6), KeyRange::of_inode(Ino(1)), Epoch(0));
        assert_eq!(get(&table, 1, 5), value("after"));
        assert_eq!(get(&table, 1, 6), Some(Found::Deleted));
        assert_eq!(get(&table, 2, 6), None);
    }

    #[test]
    fn e7_a_freeze_in_the_midst_of_open_epochs_carries_them_over() {
        let mut table = Memtable::default();
        put(&mut table, 5, 1, "five", 0);
        put(&mut table, 6, 1, "six", 0);
        table.delete_range(Epoch(6), KeyRange::of_inode(Ino(2)), Epoch(0));
        put(&mut table, 6, 2, "born again", 0);
        put(&mut table, 6, 3, "doomed", 0);
        table.delete_range(Epoch(6), KeyRange::of_inode(Ino(3)), Epoch(0));
        let next = table.split_after(Epoch(5));
        assert_eq!(next.min_epoch(), Some(Epoch(6)));
        assert_eq!(get(&next, 1, 5), None);
        assert_eq!(get(&next, 1, 6), value("six"));
        assert_eq!(get(&next, 2, 6), value("born again"));
        assert_eq!(get(&next, 3, 6), Some(Found::Deleted));
        assert!(table.split_after(Epoch(6)).is_empty());
    }
}

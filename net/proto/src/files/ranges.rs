//! The locks of one file in one family.
//!
//! Invariants: an owner's ranges are disjoint, and touch only where their modes differ; ranges of two owners overlap only
//! when both are shared. [`Ranges::set`] keeps the first by itself, the second is its caller's duty: it asks
//! [`Ranges::conflicts`] before.

use vellum_base::Rid;
use vellum_wire::FileLockMode;

/// Who holds a lock: the client, and its own number for the process or open file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    pub rid: Rid,
    pub id: u64,
}

/// Bytes `start..=end`, never in mode `Unlocked`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    pub owner: Owner,
    pub pid: u32,
    pub start: u64,
    pub end: u64,
    pub mode: FileLockMode,
}

impl Held {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }
}

/// In ascending order of their first bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    held: Vec<Held>,
}

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// Ranges of others that exclude `wanted`. Nothing is in the way of giving up.
    pub fn conflicts(&self, wanted: &Held) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(move |held| {
            let exclusive = held.mode == FileLockMode::Exclusive || wanted.mode == FileLockMode::Exclusive;
            let wants = wanted.mode != FileLockMode::Unlocked;
            wants && exclusive && held.owner != wanted.owner && held.overlaps(wanted.start, wanted.end)
        })
    }

    /// Ranges more (or less) than now after `set(new)`.
    pub fn growth(&self, new: &Held) -> isize {
        let mut after = Ranges { held: self.held.iter().filter(|held| held.owner == new.owner).copied().collect() };
        let before = after.held.len();
        after.set(new);
        after.held.len() as isize - before as isize
    }

    /// The owner's bytes `start..=end` are in `new.mode` from now on, whatever they were.
    pub fn set(&mut self, new: &Held) {
        self.change(new.owner, new.start, new.end, |_| FileLockMode::Unlocked);
        if new.mode != FileLockMode::Unlocked {
            self.insert(*new);
        }
    }

    /// The owner's bytes of the range are in `to` at most.
    pub fn weaken(&mut self, owner: Owner, start: u64, end: u64, to: FileLockMode) {
        self.change(owner, start, end, |mode| mode.min(to));
    }

    pub fn has_owner(&self, owner: Owner) -> bool {
        self.held.iter().any(|held| held.owner == owner)
    }

    pub fn count_of(&self, rid: Rid) -> usize {
        self.held.iter().filter(|held| held.owner.rid == rid).count()
    }

    /// Nothing of the client is left.
    pub fn remove_client(&mut self, rid: Rid) {
        self.held.retain(|held| held.owner.rid != rid);
    }

    fn change(&mut self, owner: Owner, start: u64, end: u64, to: impl Fn(FileLockMode) -> FileLockMode) {
        let mine = |held: &Held| held.owner == owner && held.overlaps(start, end);
        let (changed, kept): (Vec<Held>, Vec<Held>) = self.held.drain(..).partition(mine);
        self.held = kept;
        for held in changed {
            if held.start < start {
                self.insert(Held { end: start - 1, ..held });
            }
            if held.end > end {
                self.insert(Held { start: end + 1, ..held });
            }
            let mode = to(held.mode);
            if mode != FileLockMode::Unlocked {
                self.insert(Held { start: held.start.max(start), end: held.end.min(end), mode, ..held });
            }
        }
    }

    /// Adds bytes that the owner does not hold, joined with neighbours of its own in the same mode.
    fn insert(&mut self, mut new: Held) {
        self.held.retain(|held| {
            let joins = held.owner == new.owner
                && held.mode == new.mode
                && (held.end.checked_add(1) == Some(new.start) || new.end.checked_add(1) == Some(held.start));
            if joins {
                new.start = new.start.min(held.start);
                new.end = new.end.max(held.end);
            }
            !joins
        });
        let at = self.held.partition_point(|held| (held.start, held.owner) < (new.start, new.owner));
        self.held.insert(at, new);
    }
}

//! The set of sources of a shard at one moment. Readers hold it; changes make a new one.

use std::cell::RefCell;
use std::rc::Rc;

use vellum_base::{Epoch, Key, KeyRange};
use vellum_format::SegmentMeta;

use super::ShardEnv;
use super::memtable::Memtable;
use super::segment::Segment;

/// A memtable that takes no writes any more. After a split the halves share it: it may hold keys of other shards.
#[derive(Clone)]
pub struct Frozen {
    pub table: Rc<RefCell<Memtable>>,
    /// Versions beyond this epoch are in the next newer memtable too, and count only there.
    pub through: Epoch,
}

/// Segments that do not overlap, in key order.
#[derive(Clone, Default)]
pub struct Run {
    /// The flush that wrote it, in level 0; 0 elsewhere.
    pub id: Epoch,
    pub segments: Vec<Rc<Segment>>,
}

impl Run {
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.meta.len_bytes).sum()
    }

    /// Index of the first segment that ends at `key` or later.
    pub fn lower_bound(&self, key: &Key) -> usize {
        self.segments.partition_point(|s| s.meta.last < *key)
    }

    /// The segment whose bounds hold `key`.
    pub fn find(&self, key: &Key) -> Option<&Rc<Segment>> {
        self.segments.get(self.lower_bound(key)).filter(|s| s.meta.first <= *key)
    }

    pub fn overlapping(&self, range: &KeyRange) -> &[Rc<Segment>] {
        let first = self.lower_bound(&range.first);
        let rest = self.segments.get(first..).unwrap_or_default();
        let len = rest.partition_point(|s| s.meta.first <= range.last);
        &rest[..len]
    }

    fn add(&mut self, segment: Rc<Segment>) {
        let at = self.segments.partition_point(|s| s.meta.first < segment.meta.first);
        let range = KeyRange { first: segment.meta.first, last: segment.meta.last };
        if let Some(other) = self.overlapping(&range).first() {
            debug_assert!(false, "segment {:?} overlaps another of its run: {:?}", segment.meta, other.meta);
        }
        self.segments.insert(at, segment);
    }
}

#[derive(Clone)]
pub struct State {
    pub active: Rc<RefCell<Memtable>>,
    /// Newest first.
    pub frozen: Vec<Frozen>,
    /// Level 0, newest first.
    pub runs: Vec<Rc<Run>>,
    /// Level 1 and below: `levels[0]` is level 1.
    pub levels: Vec<Rc<Run>>,
}

impl State {
    pub fn new(levels: Vec<Vec<SegmentMeta>>, env: &Rc<dyn ShardEnv>) -> State {
        let active = Rc::new(RefCell::new(Memtable::default()));
        let mut state = State { active, frozen: Vec::new(), runs: Vec::new(), levels: Vec::new() };
        for (level, metas) in levels.into_iter().enumerate() {
            for meta in metas {
                state.add(level, Segment::new(meta, env.clone()));
            }
        }
        state
    }

    pub fn add(&mut self, level: usize, segment: Rc<Segment>) {
        if level > 0 {
            if self.levels.len() < level {
                self.levels.resize_with(level, Rc::default);
            }
            Rc::make_mut(&mut self.levels[level - 1]).add(segment);
            return;
        }
        let id = segment.meta.run;
        let at = self.runs.partition_point(|run| run.id > id);
        if self.runs.get(at).is_none_or(|run| run.id != id) {
            self.runs.insert(at, Rc::new(Run { id, segments: Vec::new() }));
        }
        Rc::make_mut(&mut self.runs[at]).add(segment);
    }

    /// Takes the segments out for which `removed` says so.
    pub fn take(&mut self, removed: impl Fn(&Segment) -> bool) -> Vec<Rc<Segment>> {
        let mut taken = Vec::new();
        for run in self.runs.iter_mut().chain(&mut self.levels) {
            if run.segments.iter().any(|s| removed(s)) {
                let (out, keep) = run.segments.iter().cloned().partition(|s| removed(s));
                let id = run.id;
                *run = Rc::new(Run { id, segments: keep });
                taken.extend::<Vec<_>>(out);
            }
        }
        self.runs.retain(|run| !run.segments.is_empty());
        taken
    }

    /// Memtables, newest first, each with the newest epoch that a reader at `at` may see in it.
    pub fn memtables(&self, at: Epoch) -> impl Iterator<Item = (&Rc<RefCell<Memtable>>, Epoch)> {
        let frozen = self.frozen.iter().map(move |frozen| (&frozen.table, frozen.through.min(at)));
        std::iter::once((&self.active, at)).chain(frozen)
    }

    /// Level 0 newest first, then the levels: from new to old.
    pub fn sorted_runs(&self) -> impl Iterator<Item = &Rc<Run>> {
        self.runs.iter().chain(&self.levels)
    }
}

//! A shard: what the rest of the store sees of the LSM.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use vellum_base::{Bucket, Epoch, Key, KeyRange, ShardId};
use vellum_format::{SegmentMeta, Value};

use super::memtable::Found;
use super::segment::{Segment, space_of};
use super::state::{Frozen, Run, State};
use super::touches::{Load, Touches};
use super::{BlockCache, Edit, ItemWrite, LsmConfig, LsmError, ShardEnv};

/// Writes that a memtable may owe, so that who looks waits for some 100 us at most.
const MOST_LATE: usize = 256;

pub struct Shard {
    pub(super) id: ShardId,
    pub(super) range: KeyRange,
    pub(super) env: Rc<dyn ShardEnv>,
    pub(super) cache: Rc<BlockCache>,
    pub(super) cfg: LsmConfig,
    /// Of the configuration; less when there are more shards to share with.
    pub(super) memtable_bound: Cell<usize>,
    state: RefCell<Rc<State>>,
    /// Applied, and in no memtable yet, in order. Whoever looks at the memtables finds it empty.
    late: RefCell<VecDeque<(Epoch, ItemWrite)>>,
    /// Everything up to here was in segments when the shard was opened: a replay brings it again.
    recovered_through: Epoch,
    /// Everything up to here is in segments.
    flushed_through: Cell<Epoch>,
    /// Everything up to here is in segments or frozen.
    frozen_through: Cell<Epoch>,
    pub(super) flushing: Cell<bool>,
    /// No compaction begins.
    pub(super) held: Cell<bool>,
    /// How many times the usual space a compaction gets.
    pub(super) room: Cell<u64>,
    /// Epochs of the reads that are in progress here.
    readers: RefCell<BTreeMap<Epoch, usize>>,
    touches: Touches,
}

impl Shard {
    /// A shard whose segments are `levels` (in any order within a level), or an empty one.
    pub fn new(
        id: ShardId,
        range: KeyRange,
        levels: Vec<Vec<SegmentMeta>>,
        flushed_through: Epoch,
        env: Rc<dyn ShardEnv>,
        cache: Rc<BlockCache>,
        cfg: LsmConfig,
    ) -> Rc<Shard> {
        let state = State::new(levels, &env);
        Shard::of(id, range, state, [flushed_through; 3], env, cache, cfg)
    }

    /// A part of this shard, with the epochs of the whole.
    pub(super) fn half(&self, id: ShardId, range: KeyRange, state: State, cfg: LsmConfig) -> Rc<Shard> {
        let epochs = [self.recovered_through, self.flushed_through.get(), self.frozen_through.get()];
        Shard::of(id, range, state, epochs, self.env.clone(), self.cache.clone(), cfg)
    }

    fn of(
        id: ShardId,
        range: KeyRange,
        state: State,
        [recovered_through, flushed_through, frozen_through]: [Epoch; 3],
        env: Rc<dyn ShardEnv>,
        cache: Rc<BlockCache>,
        cfg: LsmConfig,
    ) -> Rc<Shard> {
        Rc::new(Shard {
            id,
            range,
            env,
            cache,
            memtable_bound: Cell::new(cfg.memtable_bytes),
            cfg,
            state: RefCell::new(Rc::new(state)),
            late: RefCell::default(),
            recovered_through,
            flushed_through: Cell::new(flushed_through),
            frozen_through: Cell::new(frozen_through),
            flushing: Cell::new(false),
            held: Cell::new(false),
            room: Cell::new(1),
            readers: RefCell::default(),
            touches: Touches::new(&range),
        })
    }

    pub fn id(&self) -> ShardId {
        self.id
    }

    pub fn range(&self) -> KeyRange {
        self.range
    }

    pub fn flushed_through(&self) -> Epoch {
        self.flushed_through.get()
    }

    /// Something in `bucket` costs as much as so many gets.
    pub fn touch(&self, bucket: Bucket, gets: u32) {
        self.touches.add(bucket, gets);
    }

    /// What was asked of it since somebody looked.
    pub fn take_load(&self) -> Load {
        self.touches.take()
    }

    /// Its segments, level by level.
    pub fn levels(&self) -> Vec<Vec<SegmentMeta>> {
        let state = self.state();
        let metas = |run: &Rc<Run>| run.segments.iter().map(|segment| segment.meta.clone()).collect::<Vec<_>>();
        let first = state.runs.iter().flat_map(metas).collect();
        std::iter::once(first).chain(state.levels.iter().map(metas)).collect()
    }

    /// It is served elsewhere: its segments are given back when the last read here has let go of them.
    pub fn retire(&self) {
        let state = self.state();
        state.sorted_runs().flat_map(|run| &run.segments).for_each(|segment| segment.make_obsolete());
    }

    /// What is visible to every reader: the environment's, and those in progress here.
    pub(super) fn oldest_reader(&self) -> Epoch {
        let oldest = self.env.oldest_reader();
        self.readers.borrow().first_key_value().map_or(oldest, |(epoch, _)| oldest.min(*epoch))
    }

    pub(super) fn state(&self) -> Rc<State> {
        self.current().clone()
    }

    /// For who looks at its segments alone: the memtable may be late.
    pub(super) fn segments(&self) -> Rc<State> {
        self.state.borrow().clone()
    }

    fn current(&self) -> Ref<'_, Rc<State>> {
        self.catch_up(usize::MAX);
        self.state.borrow()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = (**self.current()).clone();
        change(&mut state);
        // The old state dies outside of the borrow: that may release segments.
        let _old = self.state.replace(Rc::new(state));
    }

    /// Applies one write. The later epoch wins, within one epoch the later call. A write of an epoch that was in
    /// segments when the shard was opened (a replay) is ignored; one of an epoch that was frozen in this run is our own bug.
    ///
    /// The memtable takes it when somebody looks, or by [`Shard::catch_up`].
    pub fn apply(&self, epoch: Epoch, op: ItemWrite) {
        if epoch <= self.recovered_through {
            return;
        }
        assert!(epoch > self.frozen_through.get(), "epoch {epoch} was closed for shard {}", self.id);
        self.touch(op.first_key().bucket(), 1);
        let late = {
            let mut late = self.late.borrow_mut();
            late.push_back((epoch, op));
            late.len()
        };
        if late > MOST_LATE {
            self.catch_up(1);
        }
    }

    /// Gives the memtable up to `most` writes that were applied; true when there are more.
    pub fn catch_up(&self, most: usize) -> bool {
        let mut late = self.late.borrow_mut();
        if late.is_empty() {
            return false;
        }
        let state = self.state.borrow();
        let mut table = state.active.borrow_mut();
        let count = most.min(late.len());
        for (epoch, op) in late.drain(..count) {
            match op {
                ItemWrite::Put { key, value } => {
                    debug_assert!(self.range.contains(&key));
                    table.put(epoch, key, Some(&value), || self.oldest_reader());
                }
                ItemWrite::Delete { key } => table.put(epoch, key, None, || self.oldest_reader()),
                ItemWrite::DeleteRange { range } => table.delete_range(epoch, range, self.oldest_reader()),
            }
            if table.wants_prune() {
                table.prune(self.env.closed_epoch());
            }
        }
        !late.is_empty()
    }

    /// Bytes of all memtables.
    pub fn memtable_bytes(&self) -> usize {
        self.current().memtables(Epoch::NONE).map(|(table, _)| table.borrow().bytes()).sum()
    }

    pub fn active_bytes(&self) -> usize {
        self.current().active.borrow().bytes()
    }

    pub fn wants_freeze(&self) -> bool {
        self.active_bytes() >= self.memtable_bound.get()
    }

    /// The active memtable wants to be frozen at this size from now on.
    pub fn bound_memtable(&self, bytes: usize) {
        self.memtable_bound.set(bytes);
    }

    /// The oldest epoch that is in a memtable: logs are needed from there (a lower bound). `None`: they are not needed.
    pub fn unflushed_from(&self) -> Option<Epoch> {
        self.current().memtables(Epoch::NONE).filter_map(|(table, _)| table.borrow().min_epoch()).min()
    }

    /// Puts the versions up to `closed_through` (an epoch boundary) among the frozen memtables; later ones go to the new
    /// active one. False when there are none.
    pub fn freeze(&self, closed_through: Epoch) -> bool {
        let state = self.state();
        if state.active.borrow().min_epoch().is_none_or(|min| min > closed_through) {
            return false;
        }
        let next = state.active.borrow().split_after(closed_through);
        state.active.borrow_mut().forget_journal();
        self.frozen_through.set(closed_through);
        self.change(|state| {
            let table = std::mem::replace(&mut state.active, Rc::new(RefCell::new(next)));
            state.frozen.insert(0, Frozen { table, through: closed_through });
        });
        true
    }

    /// Frozen memtables that are not yet in segments.
    pub fn frozen_tables(&self) -> usize {
        self.current().frozen.len()
    }

    /// The newest version of `key` at or before epoch `at` (which must not be older than the environment's oldest reader;
    /// `Epoch(u64::MAX)` is the newest applied).
    pub async fn get(&self, key: &Key, at: Epoch) -> Result<Option<Value>, LsmError> {
        self.touch(key.bucket(), 1);
        match self.get_in_memtables(key, at) {
            Some(Found::Value(value)) => Ok(Some(value)),
            Some(Found::Deleted) => Ok(None),
            None => self.get_in_segments(key, at).await,
        }
    }

    fn get_in_memtables(&self, key: &Key, at: Epoch) -> Option<Found> {
        let state = self.current();
        state.memtables(at).find_map(|(table, at)| table.borrow().get(key, at))
    }

    /// After the manifest made `edit` durable: readers see the new segments, the removed ones are released when the last
    /// reader has let go of them.
    pub fn install(&self, edit: &Edit) {
        self.end_flush(edit);
        self.flushed_through.set(self.flushed_through.get().max(edit.flushed_through));
        self.change(|state| {
            state.frozen.retain(|frozen| frozen.through > edit.flushed_through);
            let removed = state.take(|segment| edit.removed.contains(&segment.meta.id));
            for (level, meta) in &edit.added {
                let segment = match removed.iter().find(|s| s.meta.id == meta.id) {
                    Some(moved) => moved.clone(),
                    None => Segment::new(meta.clone(), self.env.clone()),
                };
                state.add(*level, segment);
            }
            for segment in removed {
                let moved = edit.added.iter().any(|(_, meta)| meta.id == segment.meta.id);
                if !moved {
                    segment.make_obsolete();
                }
                segment.set_busy(false);
            }
        });
    }

    /// The manifest says that everything up to `through` is in segments: nothing of it is in memory. No flush's end, unlike
    /// an edit: one may be running meanwhile.
    pub fn advance(&self, through: Epoch) {
        self.flushed_through.set(self.flushed_through.get().max(through));
    }

    /// The edit could not be made durable: its new segments are given back.
    pub fn abandon(&self, edit: Edit) {
        self.end_flush(&edit);
        let state = self.state();
        for segment in state.sorted_runs().flat_map(|run| &run.segments) {
            if edit.removed.contains(&segment.meta.id) {
                segment.set_busy(false);
            }
        }
        for (_, meta) in edit.added {
            if !edit.removed.contains(&meta.id) {
                self.env.release_space(space_of(&meta));
            }
        }
    }

    /// One flush at a time: `None` when one is running.
    pub(super) fn begin_flush(&self) -> Option<FlushSlot<'_>> {
        // Not `then_some`: that makes the slot in any case, and one that is dropped ends the flush that runs.
        (!self.flushing.replace(true)).then(|| FlushSlot { shard: self, kept: false })
    }

    fn end_flush(&self, edit: &Edit) {
        if edit.flushed_through > Epoch::NONE {
            self.flushing.set(false);
        }
    }

    /// Keeps versions that a read at `at` needs while it waits for the device.
    pub(super) fn read_at(&self, at: Epoch) -> Reading<'_> {
        *self.readers.borrow_mut().entry(at).or_insert(0) += 1;
        Reading { shard: self, at }
    }
}

/// The right to flush; given back unless an edit came of it.
pub(super) struct FlushSlot<'a> {
    shard: &'a Shard,
    kept: bool,
}

impl FlushSlot<'_> {
    /// It ends with the edit's `install` or `abandon`.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for FlushSlot<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shard.flushing.set(false);
        }
    }
}

pub(super) struct Reading<'a> {
    shard: &'a Shard,
    at: Epoch,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut readers = self.shard.readers.borrow_mut();
        if let Some(count) = readers.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.at);
            }
        }
    }
}

//! A frozen memtable becomes a run of level 0.

use std::rc::Rc;

use vellum_base::{Epoch, Key, KeyRange};
use vellum_format::SegmentMeta;

use super::bottom::Bottom;
use super::memtable::{Memtable, Version, Versions};
use super::output::{EnvSpace, Output, Shape};
use super::ranges::{Fragment, Stamp};
use super::state::Frozen;
use super::{Edit, LsmError, Shard};

/// Keys between two chances to yield and to write.
const BATCH: usize = 256;

impl Shard {
    /// Writes the oldest frozen memtable, if its last epoch is durable. The edit's segments are on the medium; one flush
    /// runs at a time, from the call to `install` or `abandon` of its edit. `None`: nothing to do, or one is running.
    pub async fn flush(&self, durable: Epoch) -> Result<Option<Edit>, LsmError> {
        let Some(frozen) = self.state().frozen.last().filter(|frozen| frozen.through <= durable).cloned() else {
            return Ok(None);
        };
        let Some(slot) = self.begin_flush() else { return Ok(None) };
        let added = self.write_table(&frozen).await?;
        slot.keep();
        let added = added.into_iter().map(|meta| (0, meta)).collect();
        Ok(Some(Edit { added, removed: Vec::new(), flushed_through: frozen.through }))
    }

    async fn write_table(&self, frozen: &Frozen) -> Result<Vec<SegmentMeta>, LsmError> {
        let (epochs, oldest) = {
            let table = frozen.table.borrow();
            let min = table.min_epoch().unwrap_or(frozen.through);
            ((min, table.max_epoch().min(frozen.through)), self.oldest_reader())
        };
        let state = self.state();
        let space = Rc::new(EnvSpace(self.env.clone()));
        let output = Output::new(space, self.env.queue(), Shape::of(&self.cfg), frozen.through, epochs)
            .warming(self.cache.clone());
        let mut writer = TableWriter {
            oldest,
            through: frozen.through,
            bottom: Bottom::of(state.sorted_runs(), &KeyRange::ALL),
            output,
            last: self.range.last,
            ranges_from: self.range.first,
            may_cut: true,
        };
        let mut next = Some(self.range.first);
        while let Some(from) = next {
            next = writer.batch(&frozen.table.borrow(), &from)?;
            if writer.may_cut && writer.output.is_full() {
                writer.output.cut().await?;
            }
            vellum_rt::yield_if_needed().await;
        }
        writer.output.finish().await
    }
}

struct TableWriter {
    oldest: Epoch,
    through: Epoch,
    bottom: Bottom,
    output: Output,
    /// The shard's last key: the memtable may hold others', too.
    last: Key,
    /// Range tombstones are written up to here.
    ranges_from: Key,
    /// False when one of them reaches over the end of the batch and is not written: segments would overlap.
    may_cut: bool,
}

impl TableWriter {
    /// Writes the keys from `from` to the key that it answers, where the next batch begins, and the range tombstones
    /// that end before it. One that reaches over that key is cut there only when the segment ends there.
    fn batch(&mut self, table: &Memtable, from: &Key) -> Result<Option<Key>, LsmError> {
        let mut points = table.from(from);
        table.touch(points.by_ref().take(BATCH));
        let after_points = points.next().map(|(key, _)| *key);
        let after_ranges = table.tombstones.from(&self.ranges_from).nth(BATCH).map(|(first, _)| first);
        let end = match (after_points, after_ranges.filter(|key| key > from)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let shard_last = self.last;
        let end = end.filter(|end| *end <= shard_last);
        let inside = |key: &Key| end.map_or(*key <= shard_last, |end| *key < end);
        for (key, versions) in table.from(from).take_while(|(key, _)| inside(key)) {
            self.point(table, key, versions)?;
        }
        let start = self.ranges_from;
        self.ranges_from = end.unwrap_or(Key::MAX);
        self.may_cut = true;
        for (first, fragment) in table.tombstones.from(&start).take_while(|(first, _)| inside(first)) {
            let (first, last) = (first.max(start), fragment.last.min(shard_last));
            if inside(&last) {
                self.range(&first, &last, fragment)?;
            } else if let Some(before) = end.and_then(|end| end.predecessor()).filter(|_| self.output.is_full()) {
                self.range(&first, &before, fragment)?;
            } else {
                self.ranges_from = first;
                self.may_cut = false;
            }
        }
        Ok(end)
    }

    fn point(&mut self, table: &Memtable, key: &Key, versions: &Versions) -> Result<(), LsmError> {
        let fragment = table.tombstones.covering(key).map(|(_, fragment)| fragment);
        let stamps = || fragment.into_iter().flat_map(Fragment::stamps).filter(|stamp| stamp.0 <= self.through);
        for version in versions.iter().filter(|version| version.epoch <= self.through) {
            let covers = |stamp: &Stamp| *stamp > version.stamp();
            if stamps().any(|stamp| covers(&stamp) && stamp.0 <= self.oldest) {
                return Ok(()); // deleted for every reader, and so are the older versions
            }
            if stamps().any(|stamp| covers(&stamp) && stamp.0 == version.epoch) {
                continue; // written and deleted in one epoch
            }
            if version.epoch <= self.oldest {
                return self.visible_to_all(table, key, version);
            }
            self.output.add(key, version.epoch, table.value(version.value))?;
        }
        Ok(())
    }

    fn visible_to_all(&mut self, table: &Memtable, key: &Key, version: &Version) -> Result<(), LsmError> {
        if version.value.is_tombstone() && self.bottom.is_below(key, key) {
            return Ok(());
        }
        self.output.add(key, Epoch::NONE, table.value(version.value))
    }

    fn range(&mut self, first: &Key, last: &Key, fragment: &Fragment) -> Result<(), LsmError> {
        let mut epochs = Vec::new();
        for (epoch, _) in fragment.stamps().filter(|stamp| stamp.0 <= self.through) {
            if epoch <= self.oldest {
                if !self.bottom.is_below(first, last) {
                    epochs.push(Epoch::NONE);
                }
                break;
            }
            epochs.push(epoch);
        }
        self.output.add_range(first, last, &epochs)
    }
}

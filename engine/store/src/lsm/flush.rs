//! A frozen memtable becomes a run of level 0.

use vellum_base::{Epoch, Key};
use vellum_format::SegmentMeta;

use super::bottom::Bottom;
use super::memtable::{Memtable, Version, Versions};
use super::output::Output;
use super::ranges::{Fragment, Stamp, predecessor};
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
        let mut writer = TableWriter {
            oldest,
            through: frozen.through,
            bottom: Bottom::new(state.sorted_runs().cloned().collect()),
            output: Output::new(&self.env, &self.cfg, frozen.through, epochs),
        };
        let mut next = Some(Key::MIN);
        while let Some(from) = next {
            next = writer.batch(&frozen.table.borrow(), &from);
            if writer.output.is_full() {
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
}

impl TableWriter {
    /// Writes some keys from `from` on, and the range tombstones before the key that it answers: where to go on.
    fn batch(&mut self, table: &Memtable, from: &Key) -> Option<Key> {
        let mut end = None;
        for (count, (key, versions)) in table.from(from).enumerate() {
            if count == BATCH {
                end = Some(*key);
                break;
            }
            self.point(table, key, versions);
        }
        for (first, fragment) in table.tombstones.from(from) {
            if end.is_some_and(|end| first >= end) {
                break;
            }
            self.range(&first.max(*from), &clip(fragment, end), fragment);
        }
        end
    }

    fn point(&mut self, table: &Memtable, key: &Key, versions: &Versions) {
        let fragment = table.tombstones.covering(key).map(|(_, fragment)| fragment);
        let stamps = || fragment.into_iter().flat_map(Fragment::stamps).filter(|stamp| stamp.0 <= self.through);
        for version in versions.iter().filter(|version| version.epoch <= self.through) {
            let covers = |stamp: &Stamp| *stamp > version.stamp();
            if stamps().any(|stamp| covers(&stamp) && stamp.0 <= self.oldest) {
                return; // deleted for every reader, and so are the older versions
            }
            if stamps().any(|stamp| covers(&stamp) && stamp.0 == version.epoch) {
                continue; // written and deleted in one epoch
            }
            if version.epoch <= self.oldest {
                self.visible_to_all(table, key, version);
                return;
            }
            self.output.add(key, version.epoch, table.value(version.value));
        }
    }

    fn visible_to_all(&mut self, table: &Memtable, key: &Key, version: &Version) {
        if !(version.value.is_tombstone() && self.bottom.is_below(key, key)) {
            self.output.add(key, Epoch::NONE, table.value(version.value));
        }
    }

    fn range(&mut self, first: &Key, last: &Key, fragment: &Fragment) {
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
        self.output.add_range(first, last, &epochs);
    }
}

fn clip(fragment: &Fragment, end: Option<Key>) -> Key {
    match end.and_then(|end| predecessor(&end)) {
        Some(before) => fragment.last.min(before),
        None => fragment.last,
    }
}

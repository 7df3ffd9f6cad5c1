//! A cursor over one run of segments, for scans: synchronous, stops where a block is missing.

use std::rc::Rc;

use vellum_base::{Epoch, Key, KeyRange};
use vellum_format::Place;
use vellum_format::segment::BlockKind;
use vellum_format::segment::entry::Entry;
use vellum_format::segment::filter::range_hash;

use super::blocks::{Blocks, Stop, View};
use super::cache::Block;
use super::lookup::may_contain;
use super::segment::Segment;

/// A block of the index with the entry that was followed last, and the block that it led to.
struct Position {
    index: Rc<Block>,
    index_entry: Entry,
    block: Rc<Block>,
    entry: Entry,
}

/// Walks the entries of a run (points or range tombstones) from a key to the end of a range.
struct Walk {
    segments: Vec<Rc<Segment>>,
    kind: BlockKind,
    /// All keys of the scan have this prefix: filters can be asked.
    hash: Option<u64>,
    at: usize,
    position: Option<Position>,
}

impl Walk {
    fn segment(&self) -> Option<&Rc<Segment>> {
        self.segments.get(self.at)
    }

    fn index_place(&self, segment: &Segment) -> Place {
        if self.kind == BlockKind::Data { segment.meta.index } else { segment.meta.tombstone_index }
    }

    fn worth_reading(&self, segment: &Rc<Segment>, blocks: &Blocks<'_>) -> Result<bool, Stop> {
        if self.index_place(segment).is_none() {
            return Ok(false);
        }
        match self.hash {
            Some(hash) if self.kind == BlockKind::Data => may_contain(segment, blocks, hash),
            _ => Ok(true),
        }
    }

    /// Goes to the first entry with a key of at least `key`, in the current segment or after it.
    fn seek(&mut self, key: &Key, blocks: &Blocks<'_>, ahead: usize) -> Result<(), Stop> {
        self.position = None;
        while let Some(segment) = self.segment().cloned() {
            if segment.meta.last >= *key && self.worth_reading(&segment, blocks)? {
                let index = blocks.get(&segment, BlockKind::Index, self.index_place(&segment))?;
                let mut next = View { segment: &segment, block: &index }.seek_floor(key)?;
                while let Some(index_entry) = next {
                    let view = View { segment: &segment, block: &index };
                    let block = self.child(&segment, &view, &index_entry, blocks, ahead)?;
                    if let Some(entry) = (View { segment: &segment, block: &block }).seek(key)? {
                        self.position = Some(Position { index, index_entry, block, entry });
                        return Ok(());
                    }
                    next = view.after(&index_entry)?;
                }
            }
            self.at += 1;
        }
        Ok(())
    }

    fn child(
        &self,
        segment: &Rc<Segment>,
        index: &View<'_>,
        entry: &Entry,
        blocks: &Blocks<'_>,
        ahead: usize,
    ) -> Result<Rc<Block>, Stop> {
        blocks.get(segment, self.kind, index.child(entry)?).or_else(|stop| {
            let Stop::Miss(mut miss) = stop else { return Err(stop) };
            let mut next = index.after(entry)?;
            while let Some(entry) = next.filter(|_| miss.ahead.len() < ahead) {
                let place = index.child(&entry)?;
                if !blocks.has(segment.meta.id, place) {
                    miss.ahead.push(place);
                }
                next = index.after(&entry)?;
            }
            Err(Stop::Miss(miss))
        })
    }

    /// Goes to the next entry. When it stops, the walk stands where it stood.
    fn step(&mut self, blocks: &Blocks<'_>, ahead: usize) -> Result<(), Stop> {
        let (Some(segment), Some(position)) = (self.segments.get(self.at).cloned(), &mut self.position) else {
            // At the end; or it stopped on its way into the next segment.
            return self.seek(&Key::MIN, blocks, ahead);
        };
        if let Some(entry) = (View { segment: &segment, block: &position.block }).after(&position.entry)? {
            position.entry = entry;
            return Ok(());
        }
        let index = position.index.clone();
        let view = View { segment: &segment, block: &index };
        if let Some(index_entry) = view.after(&position.index_entry)? {
            let block = self.child(&segment, &view, &index_entry, blocks, ahead)?;
            let entry = (View { segment: &segment, block: &block }).first()?;
            self.position = entry.map(|entry| Position { index, index_entry, block, entry });
            if self.position.is_some() {
                return Ok(());
            }
        }
        self.at += 1;
        self.position = None;
        self.seek(&Key::MIN, blocks, ahead)
    }
}

/// A range tombstone that a run's cursor stands at.
struct Range {
    first: Key,
    last: Key,
    epochs: Vec<Epoch>,
}

/// Points and range tombstones of one run.
pub struct RunCursor {
    points: Walk,
    ranges: Option<Walk>,
    range: Option<Range>,
    ahead: usize,
}

impl RunCursor {
    /// `segments`: those of the run that overlap `range`. `ahead`: blocks to be read ahead.
    pub fn new(segments: &[Rc<Segment>], range: &KeyRange, ahead: usize) -> RunCursor {
        let hash = range_hash(&range.first, &range.last);
        let walk = |kind, segments| Walk { segments, kind, hash, at: 0, position: None };
        let with_ranges: Vec<_> = segments.iter().filter(|s| s.meta.range_tombstones > 0).cloned().collect();
        let ranges = (!with_ranges.is_empty()).then(|| walk(BlockKind::Tombstones, with_ranges));
        RunCursor { points: walk(BlockKind::Data, segments.to_vec()), ranges, range: None, ahead }
    }

    /// Goes to the first entry at or after `key`.
    pub fn seek(&mut self, key: &Key, blocks: &Blocks<'_>) -> Result<(), Stop> {
        if let Some(walk) = &mut self.ranges {
            walk.seek(key, blocks, 0)?;
            self.read_range()?;
        }
        self.seek_points(key, blocks)
    }

    pub fn seek_points(&mut self, key: &Key, blocks: &Blocks<'_>) -> Result<(), Stop> {
        self.points.seek(key, blocks, self.ahead)
    }

    pub fn key(&self) -> Option<Key> {
        self.points.position.as_ref().map(|position| position.entry.key)
    }

    /// Epoch and value of the current entry; the value is `None` for a tombstone.
    pub fn entry(&self) -> Option<(Epoch, Option<&[u8]>)> {
        let position = self.points.position.as_ref()?;
        let value =
            position.entry.value.as_ref().map(|range| position.block.payload().get(range.clone()).unwrap_or_default());
        Some((position.entry.epoch, value))
    }

    /// Why it cannot be that the cursor stands at a key that was passed: the entry is in the wrong place.
    pub fn disorder(&self) -> Option<Stop> {
        let position = self.points.position.as_ref()?;
        let view = View { segment: self.points.segment()?, block: &position.block };
        Some(view.disorder(&position.entry))
    }

    pub fn step(&mut self, blocks: &Blocks<'_>) -> Result<(), Stop> {
        self.points.step(blocks, self.ahead)
    }

    fn read_range(&mut self) -> Result<(), Stop> {
        self.range = None;
        if let Some(walk) = &self.ranges
            && let (Some(segment), Some(position)) = (walk.segment(), &walk.position)
        {
            let mut epochs = Vec::new();
            let view = View { segment, block: &position.block };
            let first = view.range_first(&position.entry, &mut epochs)?;
            self.range = Some(Range { first, last: position.entry.key, epochs });
        }
        Ok(())
    }

    /// The newest deletion, visible at `at`, of the range that covers `key`, and that range's last key. Keys must ascend.
    pub fn deleted(&mut self, key: &Key, at: Epoch, blocks: &Blocks<'_>) -> Result<Option<(Epoch, Key)>, Stop> {
        while self.range.as_ref().is_some_and(|range| range.last < *key) {
            if let Some(walk) = &mut self.ranges {
                walk.step(blocks, 0)?;
            }
            self.read_range()?;
        }
        let Some(range) = self.range.as_ref().filter(|range| range.first <= *key) else { return Ok(None) };
        Ok(range.epochs.iter().find(|epoch| **epoch <= at).map(|epoch| (*epoch, range.last)))
    }
}

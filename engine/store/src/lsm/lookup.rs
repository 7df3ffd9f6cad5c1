//! Finding one key in the segments.

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Epoch, Key};
use vellum_format::segment::{BlockKind, filter};
use vellum_format::{Place, Value};

use super::blocks::{Blocks, Stop, View};
use super::memtable::Found;
use super::segment::Segment;
use super::state::State;
use super::{LsmError, Shard};

impl Shard {
    pub(super) async fn get_in_segments(&self, key: &Key, at: Epoch) -> Result<Option<Value>, LsmError> {
        let state = self.state();
        let mut blocks = Blocks::new(&self.cache, &*self.env);
        loop {
            match find(&state, &blocks, key, at) {
                Ok(Some(Found::Value(value))) => return Ok(Some(value)),
                Ok(Some(Found::Deleted) | None) => return Ok(None),
                Err(stop) => blocks.load(stop).await?,
            }
        }
    }
}

fn find(state: &State, blocks: &Blocks<'_>, key: &Key, at: Epoch) -> Result<Option<Found>, Stop> {
    let hash = filter::prefix_hash(key);
    for run in state.sorted_runs() {
        let Some(segment) = run.find(key) else { continue };
        if let Some(found) = find_in_segment(segment, blocks, key, hash, at)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in_segment(
    segment: &Rc<Segment>,
    blocks: &Blocks<'_>,
    key: &Key,
    hash: u64,
    at: Epoch,
) -> Result<Option<Found>, Stop> {
    let deleted = newest_range(segment, blocks, key, at)?;
    let point = if may_contain(segment, blocks, hash)? { find_point(segment, blocks, key, at)? } else { None };
    Ok(match (point, deleted) {
        (Some((epoch, found)), deleted) if deleted.is_none_or(|deleted| deleted <= epoch) => Some(found),
        (_, Some(_)) => Some(Found::Deleted),
        _ => None,
    })
}

/// Asks the filter: false only when no entry of the segment has this key prefix.
pub fn may_contain(segment: &Rc<Segment>, blocks: &Blocks<'_>, hash: u64) -> Result<bool, Stop> {
    let pages = segment.meta.filter;
    if pages.is_none() {
        return Ok(segment.meta.entries > 0);
    }
    let at_blocks = pages.at_blocks + filter::page_of(hash, pages.len_blocks);
    let page = blocks.get(segment, BlockKind::Filter, Place { at_blocks, len_blocks: 1 })?;
    Ok(filter::may_contain(page.payload(), hash))
}

fn find_point(
    segment: &Rc<Segment>,
    blocks: &Blocks<'_>,
    key: &Key,
    at: Epoch,
) -> Result<Option<(Epoch, Found)>, Stop> {
    let index = blocks.get(segment, BlockKind::Index, segment.meta.index)?;
    let index = View { segment, block: &index };
    let Some(entry) = index.seek_floor(key)? else { return Ok(None) };
    let data = blocks.get(segment, BlockKind::Data, index.child(&entry)?)?;
    let data = View { segment, block: &data };
    // All versions of a key are in one block.
    let mut next = data.seek(key)?;
    while let Some(entry) = next.filter(|entry| entry.key == *key) {
        if entry.epoch <= at {
            let value = data.value(&entry).map(Bytes::copy_from_slice);
            return Ok(Some((entry.epoch, value.map_or(Found::Deleted, Found::Value))));
        }
        next = data.after(&entry)?;
    }
    Ok(None)
}

/// The newest range deletion of `key` in the segment that a reader at `at` sees.
fn newest_range(segment: &Rc<Segment>, blocks: &Blocks<'_>, key: &Key, at: Epoch) -> Result<Option<Epoch>, Stop> {
    if segment.meta.range_tombstones == 0 {
        return Ok(None);
    }
    let index = blocks.get(segment, BlockKind::Index, segment.meta.tombstone_index)?;
    let index = View { segment, block: &index };
    let mut next = index.seek_floor(key)?;
    // Ranges are found by their last keys, so the one that covers `key` may be the first of the block after.
    while let Some(entry) = next {
        let ranges = blocks.get(segment, BlockKind::Tombstones, index.child(&entry)?)?;
        let ranges = View { segment, block: &ranges };
        if let Some(range) = ranges.seek(key)? {
            let mut epochs = Vec::new();
            let first = ranges.range_first(&range, &mut epochs)?;
            return Ok(epochs.into_iter().find(|epoch| *epoch <= at).filter(|_| first <= *key));
        }
        next = index.after(&entry)?;
    }
    Ok(None)
}

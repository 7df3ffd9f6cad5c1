//! The merge of a compaction: the newest state of each key, and every older version that a reader may still ask for.
//!
//! It works in synchronous stretches over blocks that are in memory; when one is missing it is loaded, and all sources
//! are sought again at the key that the merge stands at. What was written to the output before a stop is never written
//! again: a key's entries are added only when all of them are known.

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Epoch, Key, KeyRange};
use vellum_format::SegmentMeta;

use super::blocks::{Blocks, Stop};
use super::bottom::Bottom;
use super::cursor::RunCursor;
use super::output::Output;
use super::ranges::{Fragment, RangeTombstones, predecessor};
use super::segment::Segment;
use super::{LsmError, Shard};

/// Keys between two chances to yield and to cut the output.
const STRETCH: usize = 256;
/// Blocks read ahead.
const AHEAD: usize = 16;

pub struct Merge<'a> {
    shard: &'a Shard,
    sources: Vec<Vec<Rc<Segment>>>,
    oldest: Epoch,
    bottom: Bottom,
    output: Output,
    /// All inputs' range tombstones. Epochs that every reader sees are 0 here.
    ranges: RangeTombstones,
    /// The first key that is not written.
    position: Key,
}

impl<'a> Merge<'a> {
    pub fn new(shard: &'a Shard, sources: Vec<Vec<Rc<Segment>>>, bottom: Bottom, output: Output) -> Merge<'a> {
        let oldest = shard.oldest_reader();
        Merge { shard, sources, oldest, bottom, output, ranges: RangeTombstones::default(), position: Key::MIN }
    }

    pub async fn run(mut self) -> Result<Vec<SegmentMeta>, LsmError> {
        self.collect_ranges().await?;
        let mut blocks = Blocks::new(&self.shard.cache, &*self.shard.env);
        'seek: loop {
            let mut cursors = Vec::with_capacity(self.sources.len());
            for segments in &self.sources {
                cursors.push(RunCursor::new(segments, &KeyRange::ALL, AHEAD));
            }
            for cursor in &mut cursors {
                if let Err(stop) = cursor.seek(&self.position, &blocks) {
                    blocks.load(stop).await?;
                    continue 'seek;
                }
            }
            loop {
                let from = self.position;
                let end = match self.stretch(&mut cursors, &blocks) {
                    Ok(end) => end,
                    Err(stop) => {
                        // What was finished before the stop stays finished.
                        let done = self.position;
                        if done > from {
                            self.write_ranges(&from, Some(done));
                        }
                        blocks.load(stop).await?;
                        continue 'seek;
                    }
                };
                self.write_ranges(&from, end);
                let Some(_) = end else { return self.output.finish().await };
                if self.output.is_full() {
                    self.output.cut().await?;
                }
                vellum_rt::yield_if_needed().await;
            }
        }
    }

    async fn collect_ranges(&mut self) -> Result<(), LsmError> {
        let mut blocks = Blocks::new(&self.shard.cache, &*self.shard.env);
        let newest_rank = self.sources.len() as u32;
        // Oldest first: a later stamp of the same epoch is the newer one.
        for (rank, segments) in self.sources.iter().enumerate().rev() {
            let segments: Vec<_> = segments.iter().filter(|s| s.meta.range_tombstones > 0).cloned().collect();
            if segments.is_empty() {
                continue;
            }
            let mut cursor = RunCursor::new(&segments, &KeyRange::ALL, 0);
            while let Err(stop) = cursor.seek_ranges(&Key::MIN, &blocks) {
                blocks.load(stop).await?;
            }
            loop {
                let Some((range, epochs)) = cursor.range() else { break };
                for epoch in epochs.into_iter().rev() {
                    let epoch = if epoch <= self.oldest { Epoch::NONE } else { epoch };
                    self.ranges.insert(range, (epoch, newest_rank - rank as u32), self.oldest);
                }
                while let Err(stop) = cursor.step_range(&blocks) {
                    blocks.load(stop).await?;
                }
            }
            vellum_rt::yield_if_needed().await;
        }
        Ok(())
    }

    /// Writes some keys. Answers where it stands, `None` at the end; `position` says the same also when it stops.
    fn stretch(&mut self, cursors: &mut [RunCursor], blocks: &Blocks<'_>) -> Result<Option<Key>, Stop> {
        let mut versions: Vec<(Epoch, Option<Bytes>)> = Vec::new();
        for _ in 0..STRETCH {
            let Some(key) = cursors.iter().filter_map(RunCursor::key).min() else { return Ok(None) };
            versions.clear();
            self.gather(cursors, &key, blocks, &mut versions)?;
            for (epoch, value) in &versions {
                self.output.add(&key, *epoch, value.as_deref());
            }
            match key.successor() {
                Some(next) => self.position = next,
                None => return Ok(None),
            }
        }
        Ok(Some(self.position))
    }

    /// The versions of `key` that stay, newest first; leaves the key behind in all cursors.
    fn gather(
        &self,
        cursors: &mut [RunCursor],
        key: &Key,
        blocks: &Blocks<'_>,
        out: &mut Vec<(Epoch, Option<Bytes>)>,
    ) -> Result<(), Stop> {
        // Deleted by a range of a newer source, for every reader; or the newest version that every reader sees was met.
        let mut over = false;
        for cursor in cursors.iter_mut() {
            let deleted = cursor.deleted(key, self.oldest, blocks)?.map(|(epoch, _)| epoch);
            while cursor.key() == Some(*key) {
                if let Some((epoch, value)) = cursor.entry()
                    && !over
                {
                    if deleted.is_some_and(|deleted| deleted > epoch) {
                        over = true;
                    } else if epoch <= self.oldest {
                        over = true;
                        if value.is_some() || !self.bottom.is_below(key, key) {
                            out.push((Epoch::NONE, value.map(Bytes::copy_from_slice)));
                        }
                    } else {
                        out.push((epoch, value.map(Bytes::copy_from_slice)));
                    }
                }
                cursor.step(blocks)?;
            }
            over |= deleted.is_some();
        }
        Ok(())
    }

    /// Writes the range tombstones from `from` to before `end`.
    fn write_ranges(&mut self, from: &Key, end: Option<Key>) {
        for (first, fragment) in self.ranges.from(from) {
            if end.is_some_and(|end| first >= end) {
                break;
            }
            let last = match end.and_then(|end| predecessor(&end)) {
                Some(before) => fragment.last.min(before),
                None => fragment.last,
            };
            let first = first.max(*from);
            let epochs = staying(fragment, &self.bottom, &first, &last);
            self.output.add_range(&first, &last, &epochs);
        }
    }
}

/// Epochs of a fragment that must stay: at the bottom those that every reader sees hide nothing.
fn staying(fragment: &Fragment, bottom: &Bottom, first: &Key, last: &Key) -> Vec<Epoch> {
    let mut epochs: Vec<Epoch> = fragment.stamps().map(|stamp| stamp.0).collect();
    if epochs.last() == Some(&Epoch::NONE) && bottom.is_below(first, last) {
        epochs.pop();
    }
    epochs
}

//! One step on the reactor that owns the shard: finds extents in the chunks that are being emptied, and has them moved.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{BlockRange, ChunkIndex, Epoch, Ino, Key, KeyRange, Zone};
use vellum_format::{Extent, ItemKind};
use vellum_rt::{Class, sleep, spawn, yield_if_needed};

use crate::beyond::{Beyond, Next};
use crate::data::LOW_CHUNKS;
use crate::error::StoreError;
use crate::lsm::Shard;
use crate::mesh::Answer;
use crate::scrub::Finding;
use crate::store::Store;

/// A step ends when it has found so many blocks to move, or has read so many pages of items.
const STEP_BLOCKS: u64 = 1024;
const STEP_PAGES: usize = 64;
/// Blocks that are moved while one inode group is held, about.
const MOVE_BLOCKS: u64 = 256;
/// Moves that share an epoch.
const MOVES_AT_ONCE: usize = 8;
/// How long emptied chunks may take to cool down, in waits of 2 ms.
const COOL_WAITS: usize = 250;

/// Where a pass goes on.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// Shards may split under it, so it is no shard's number.
    from: Key,
    beyond: Beyond,
}

#[derive(Debug, Default)]
pub struct Step {
    pub scanned_bytes: u64,
    pub moved_blocks: u64,
    pub moved_extents: u64,
    /// Of the moved blocks, those that lay in the chunks.
    pub emptied_blocks: u64,
    pub findings: Vec<Finding>,
    /// Something was left to the next pass.
    pub skipped: bool,
    /// What ends the pass.
    pub error: Option<StoreError>,
    pub next: Option<Cursor>,
}

/// Extents of one inode group, moved together.
pub(super) struct Move {
    pub group: u64,
    pub keys: Vec<Key>,
    blocks: u64,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Moved {
    pub blocks: u64,
    pub emptied_blocks: u64,
    pub extents: u64,
    pub findings: Vec<Finding>,
    pub skipped: bool,
}

/// How many blocks of the range are in these chunks.
pub(super) fn blocks_in(chunks: &BTreeSet<ChunkIndex>, range: BlockRange, chunk_blocks: u32) -> u64 {
    let of = |block: u64| ChunkIndex((block / u64::from(chunk_blocks)) as u32);
    let blocks = range.start.0..range.start.0 + u64::from(range.len_blocks);
    if of(blocks.start) == of(blocks.end - 1) && !chunks.contains(&of(blocks.start)) {
        return 0;
    }
    blocks.filter(|block| chunks.contains(&of(*block))).count() as u64
}

impl Store {
    pub(crate) fn drain_sparse_here(self: &Rc<Self>, most: usize, sparse: u64) -> Answer {
        self.give_back_chunks(LOW_CHUNKS);
        let keep = LOW_CHUNKS * u64::from(self.superblock.chunk_blocks);
        let mut space = self.space.borrow_mut();
        let chunks = space.drain_sparse(most, sparse, keep);
        Answer::Draining { chunks, used_blocks: space.draining().1 }
    }

    /// Answers the chunks that were not emptied.
    pub(crate) async fn call_off_draining_here(self: &Rc<Self>, tried: bool) -> Answer {
        for _ in 0..COOL_WAITS {
            if !self.space.borrow().is_nearly_drained() || self.check_writable().is_err() {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        self.give_back_chunks(LOW_CHUNKS);
        let chunks = self.space.borrow_mut().call_off_draining(tried);
        self.room.notify_all();
        Answer::Draining { chunks, used_blocks: 0 }
    }

    pub(crate) async fn evacuation_step(
        self: &Rc<Self>,
        mut cursor: Cursor,
        chunks: &Arc<BTreeSet<ChunkIndex>>,
    ) -> Result<Step, StoreError> {
        self.check_writable()?;
        let shard = self.shards.borrow().iter().find(|s| s.range().last >= cursor.from).cloned();
        let Some(shard) = shard else { return Ok(Step::default()) };
        cursor.from = cursor.from.max(shard.range().first);
        let last = shard.range().last;
        let mut step = Step::default();
        let mut found = Vec::new();
        let mut blocks = 0;
        let mut after = None;
        for _ in 0..STEP_PAGES {
            let range = KeyRange { first: cursor.from, last };
            let next = match self.find_extents(&shard, &range, &mut cursor.beyond, chunks, &mut step).await {
                Some((extents, next)) => {
                    blocks += extents.iter().map(|(_, len)| len).sum::<u64>();
                    found.extend(extents);
                    next
                }
                None => Some(range.first),
            };
            let Some(next) = next else {
                after = last.successor().map(|from| Cursor { from, ..Cursor::default() });
                break;
            };
            cursor.from = next;
            after = Some(cursor.clone());
            if blocks >= STEP_BLOCKS {
                break;
            }
            yield_if_needed().await;
        }
        step.next = after;
        self.move_all(found, chunks, &mut step).await;
        Ok(step)
    }

    /// Extents of one page in these chunks, with their lengths, and where the next page begins. `None`: the same place again.
    async fn find_extents(
        &self,
        shard: &Shard,
        range: &KeyRange,
        beyond: &mut Beyond,
        chunks: &BTreeSet<ChunkIndex>,
        step: &mut Step,
    ) -> Option<(Vec<(Key, u64)>, Option<Key>)> {
        let page = match shard.scan(*range, Epoch(u64::MAX), beyond.items(), 1 << 20).await {
            Ok(page) => page,
            // What cannot be listed stays where it is; the scrub tells of it.
            Err(_) => match beyond.failed(&range.first, &range.last) {
                Next::Again => return None,
                Next::From(next) => return Some((Vec::new(), Some(next))),
                Next::End => return Some((Vec::new(), None)),
            },
        };
        beyond.succeeded();
        let mut found = Vec::new();
        for (key, value) in &page.items {
            step.scanned_bytes += (Key::LEN + value.len()) as u64;
            if key.zone() != Some(Zone::Fs) || key.kind() != ItemKind::Extent as u8 {
                continue;
            }
            let blocks = Extent::decode_header(value).ok().and_then(|header| header.blocks());
            let Some(blocks) = blocks else { continue };
            if blocks_in(chunks, blocks, self.superblock.chunk_blocks) > 0 {
                found.push((*key, u64::from(blocks.len_blocks)));
            }
        }
        Some((found, page.next))
    }

    async fn move_all(self: &Rc<Self>, found: Vec<(Key, u64)>, chunks: &Arc<BTreeSet<ChunkIndex>>, step: &mut Step) {
        let mut moves = by_group(found).into_iter().peekable();
        while moves.peek().is_some() && step.error.is_none() {
            let running: Vec<_> = moves
                .by_ref()
                .take(MOVES_AT_ONCE)
                .map(|one| {
                    let (store, chunks) = (self.clone(), chunks.clone());
                    // While a group is held, requests of clients may wait for it.
                    spawn(Class::Request, "evacuation move", async move { store.relocate(one, &chunks).await })
                })
                .collect();
            for one in running {
                match one.await {
                    Ok(Ok(moved)) => {
                        step.moved_blocks += moved.blocks;
                        step.emptied_blocks += moved.emptied_blocks;
                        step.moved_extents += moved.extents;
                        step.findings.extend(moved.findings);
                        step.skipped |= moved.skipped;
                    }
                    Ok(Err(e)) => step.error = Some(e),
                    Err(_) => step.error = Some(StoreError::Closed),
                }
            }
        }
    }
}

/// Cut to [`MOVE_BLOCKS`], or one extent. In key order a group's extents stand together.
fn by_group(found: Vec<(Key, u64)>) -> Vec<Move> {
    let mut groups: BTreeMap<u64, Vec<Move>> = BTreeMap::new();
    for (key, len) in found {
        let group = Ino(key.first()).group();
        let moves = groups.entry(group).or_default();
        match moves.last_mut() {
            Some(last) if last.blocks + len <= MOVE_BLOCKS => {
                last.keys.push(key);
                last.blocks += len;
            }
            _ => moves.push(Move { group, keys: vec![key], blocks: len }),
        }
    }
    groups.into_values().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_counted_by_chunk_and_moved_by_group() {
        let chunks = BTreeSet::from([ChunkIndex(2), ChunkIndex(4)]);
        let count = |start, len| blocks_in(&chunks, BlockRange::new(start, len), 256);
        assert_eq!((count(511, 1), count(512, 5), count(510, 4), count(800, 10), count(700, 400)), (0, 5, 2, 0, 144));
        let key = |ino, block| Extent::key(Ino(ino), block, 1);
        let moves =
            by_group(vec![(key(5, 0), 200), (key(5, 9), 56), (key(6, 0), 1), (key(5000, 0), 256), (key(5001, 1), 1)]);
        let seen: Vec<(u64, usize)> = moves.iter().map(|m| (m.group, m.keys.len())).collect();
        assert_eq!(seen, vec![(0, 2), (0, 1), (4, 1), (4, 1)]);
    }
}

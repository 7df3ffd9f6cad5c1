//! One move: extents of an inode group get other blocks, and nothing else of them changes.

use std::any::Any;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, BlockRange, ChunkIndex, DmaBuf, Epoch, ItemOp, Key, Mutant, Rid, crc32c, mutant, probe};
use vellum_format::{Extent, ExtentHeader, Value};
use vellum_rt::timeout;

use super::step::{Move, Moved, blocks_in};
use crate::error::{CommitError, StoreError};
use crate::fact::Fact;
use crate::store::Store;

/// A group that cannot be had so long is left to the next pass.
const HOLD_WAIT: Duration = Duration::from_secs(10);

/// An extent as it is, with its content.
struct Old {
    key: Key,
    value: Value,
    extent: Extent,
    data: DmaBuf,
}

impl Store {
    /// Errors end the pass; what only this group suffers from does not.
    pub(super) async fn relocate(
        self: &Rc<Self>,
        wanted: Move,
        chunks: &BTreeSet<ChunkIndex>,
    ) -> Result<Moved, StoreError> {
        let mut moved = Moved::default();
        let Some(_held) = self.hold(wanted.group).await else {
            return Ok(Moved { skipped: true, ..moved });
        };
        let mut old = Vec::new();
        for key in &wanted.keys {
            self.check_writable()?;
            old.extend(self.read_old(key, chunks, &mut moved).await?);
        }
        if old.is_empty() {
            return Ok(moved);
        }
        let mut data = DmaBuf::new(old.iter().map(|one| one.data.len()).sum());
        let mut at = 0;
        for one in &old {
            data[at..at + one.data.len()].copy_from_slice(&one.data);
            at += one.data.len();
        }
        let ranges = self.write_data(Rid::ENGINE, data.freeze()).await?;
        let expected: Vec<(Key, Value)> = old.iter().map(|one| (one.key, one.value.clone())).collect();
        let refused = match self.commit_engine(new_places(&old, &ranges), &expected).await {
            Ok(Some(epoch)) => {
                let (term, group, blocks) = (self.term, wanted.group, moved.blocks);
                probe::tell(|| Fact::Moved { term, group, blocks, epoch });
                // Durable before anybody else may have the group: what follows from the new place would else be refused,
                // were the move lost in a crash.
                self.wait_durable(epoch).await?;
                moved.extents = old.len() as u64;
                return Ok(moved);
            }
            Ok(None) => None,
            Err(e) => Some(e),
        };
        self.discard_data(Rid::ENGINE, &ranges).await?;
        match refused {
            Some(CommitError::Store(e)) => return Err(e),
            Some(e) => tracing::warn!(group = wanted.group, error = %e, "file data could not be moved"),
            None => {} // somebody was faster
        }
        Ok(Moved { findings: moved.findings, skipped: true, ..Moved::default() })
    }

    async fn hold(&self, group: u64) -> Option<Box<dyn Any>> {
        if mutant::active(Mutant::MoveUnheld) {
            return Some(Box::new(()));
        }
        timeout(HOLD_WAIT, self.authority.hold(group)).await.ok().flatten()
    }

    /// The extent's content, when it still lies in these chunks and verifies.
    async fn read_old(
        self: &Rc<Self>,
        key: &Key,
        chunks: &BTreeSet<ChunkIndex>,
        moved: &mut Moved,
    ) -> Result<Option<Old>, StoreError> {
        // From before it is looked up: its blocks are not used again while this runs.
        let _reading = self.reads.begin();
        let Some(value) = self.shard(key)?.get(key, Epoch(u64::MAX)).await? else { return Ok(None) };
        let Ok(extent) = Extent::decode(&value) else { return Ok(None) };
        let Some(blocks) = extent.header.blocks() else { return Ok(None) };
        let inside = blocks_in(chunks, blocks, self.superblock.chunk_blocks);
        if inside == 0 {
            return Ok(None);
        }
        match self.queue.read(blocks.start.bytes(), DmaBuf::new(blocks.len_bytes())).await {
            Ok(data) if data.chunks(BLOCK_SIZE).map(crc32c).eq(extent.checksums.iter().copied()) => {
                moved.blocks += u64::from(blocks.len_blocks);
                moved.emptied_blocks += inside;
                Ok(Some(Old { key: *key, value, extent, data }))
            }
            _ => {
                moved.findings.extend(self.verify_extent(key, &extent).await);
                Ok(None)
            }
        }
    }
}

/// The same extents with the blocks of `ranges`, in order; one that gets several runs becomes several. The last one of them
/// ends where the old one did, so it takes the old one's key.
fn new_places(old: &[Old], ranges: &[BlockRange]) -> Vec<ItemOp> {
    let mut ops = Vec::new();
    let mut ranges = ranges.iter().copied();
    let mut run = BlockRange::new(0, 0);
    for Old { key, extent, .. } in old {
        let ino = vellum_base::Ino(key.first());
        let len = extent.header.len_blocks;
        let first = Extent::first_block(key, len).unwrap_or_default();
        let mut done = 0;
        while done < len {
            if run.len_blocks == 0 {
                let Some(next) = ranges.next() else { return ops };
                run = next;
            }
            let piece = run.len_blocks.min(len - done);
            let header = ExtentHeader { start: run.start, len_blocks: piece, offline: false };
            let checksums = extent.checksums[done as usize..(done + piece) as usize].to_vec();
            let key = Extent::key(ino, first + u64::from(done), piece);
            ops.push(ItemOp::Put { key, value: Extent { header, checksums }.encode() });
            run = BlockRange::new(run.start.0 + u64::from(piece), run.len_blocks - piece);
            done += piece;
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use vellum_base::Ino;

    use super::*;

    fn old(ino: u64, first: u64, checksums: &[u32]) -> Old {
        let header =
            ExtentHeader { start: vellum_base::BlockAddr(9), len_blocks: checksums.len() as u32, offline: false };
        let extent = Extent { header, checksums: checksums.to_vec() };
        let key = Extent::key(Ino(ino), first, header.len_blocks);
        Old { key, value: extent.encode(), extent, data: DmaBuf::new(0) }
    }

    #[test]
    fn every_block_keeps_its_place_in_the_file_and_its_checksum() {
        let old = [old(5, 10, &[1, 2, 3]), old(5, 20, &[4]), old(6, 0, &[5, 6])];
        let ops = new_places(&old, &[BlockRange::new(100, 2), BlockRange::new(200, 3), BlockRange::new(300, 1)]);
        let found: Vec<(u64, u64, u64, Vec<u32>)> = ops
            .iter()
            .map(|op| {
                let ItemOp::Put { key, value } = op else { unreachable!() };
                let e = Extent::decode(value).unwrap();
                let first = Extent::first_block(key, e.header.len_blocks).unwrap();
                (key.first(), first, e.header.start.0, e.checksums)
            })
            .collect();
        let expected = [
            (5, 10, 100, vec![1, 2]),
            (5, 12, 200, vec![3]),
            (5, 20, 201, vec![4]),
            (6, 0, 202, vec![5]),
            (6, 1, 300, vec![6]),
        ];
        assert_eq!(found, expected);
        assert!(old.iter().all(|o| ops.iter().any(|op| matches!(op, ItemOp::Put { key, .. } if *key == o.key))));
    }
}

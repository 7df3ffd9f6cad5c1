//! What a batch does to blocks: takes new ones into use, frees some, and lets extents share what is in use.
//!
//! Each block is held against how many extents of the batch name it, and how many of those did that the batch replaces or
//! deletes:
//! ```text
//!  named  before   the block
//!    1      0      is a new one: it must be pending for the client
//!    n      n      stays in use; it was moved from one extent to another, or nothing was changed
//!    n    m > n    loses m - n owners
//!    n    m < n    gets n - m further owners, when every checksum is the one that it had
//! ```
//! So a client that copies by reference says the source's extent once more, as it is, in the same batch: it can only share
//! what it may write, what is there, and what nobody else changes meanwhile (the source's inode is reserved, too).

use std::collections::BTreeMap;

use vellum_base::{BlockRange, ItemOp, ReactorId, Rid, Zone};
use vellum_format::item::MAX_EXTENT_BLOCKS;
use vellum_format::superblock::SHARED_BLOCKS;
use vellum_format::{Extent, ItemKind, Value};

use crate::error::{CommitError, StoreError};
use crate::mesh::Released;
use crate::space::SpaceChange;
use crate::store::Store;

/// An extent that names blocks.
struct Named<'a> {
    blocks: BlockRange,
    value: &'a Value,
}

impl Named<'_> {
    fn end(&self) -> u64 {
        self.blocks.start.0 + u64::from(self.blocks.len_blocks)
    }

    /// Those of these blocks; `None` when it does not name all of them.
    fn checksums(&self, start: u64, len: u64) -> Option<&[u8]> {
        let at = usize::try_from(start.checked_sub(self.blocks.start.0)?).ok()?;
        let (from, to) = (Extent::HEADER + 4 * at, Extent::HEADER + 4 * (at + len as usize));
        self.value.get(from..to)
    }
}

/// Blocks with the same extents: of the batch, and before it.
struct Piece {
    start: u64,
    len: u64,
    named: usize,
    before: usize,
}

impl Store {
    pub(super) fn block_changes(
        &self,
        rid: Rid,
        by_owner: &BTreeMap<ReactorId, Vec<ItemOp>>,
        released: &[Released],
    ) -> Result<SpaceChange, CommitError> {
        let mut named = Vec::new();
        for op in by_owner.values().flatten() {
            let ItemOp::Put { key, value } = op else { continue };
            if key.zone() != Some(Zone::Fs) || key.kind() != ItemKind::Extent as u8 {
                continue;
            }
            let header = Extent::decode_header(value).map_err(|error| StoreError::Item { key: *key, error })?;
            let Some(blocks) = header.blocks() else { continue };
            let (start, len) = (blocks.start.0, u64::from(blocks.len_blocks));
            if start.checked_add(len).is_none_or(|end| end > self.blocks.get()) {
                return Err(CommitError::Blocks { rid, start, len });
            }
            named.push(Named { blocks, value });
        }
        let mut before: Vec<Named<'_>> = released.iter().map(|r| Named { blocks: r.blocks, value: &r.value }).collect();
        [&mut named, &mut before].into_iter().for_each(|all| all.sort_by_key(|one| one.blocks.start));
        let mut change = SpaceChange::default();
        for Piece { start, len, named: now, before: then } in
            pieces(&named, &before, self.superblock.chunk_blocks.into())
        {
            match (now, then) {
                (1, 0) => change.allocs.push((start, len)),
                _ if now < then => {
                    change.frees.push((start, len));
                    if then - now > 1 {
                        change.drops.push((start, len, (then - now - 1) as u32));
                    }
                }
                _ if now == then => {}
                _ if then == 0 => return Err(CommitError::Blocks { rid, start, len }),
                _ => {
                    let refused = |reason| Err(CommitError::NotShared { rid, start, len, reason });
                    if self.superblock.format_version < SHARED_BLOCKS {
                        return refused("a block of this filesystem has one owner, as in format version 1");
                    }
                    if !same_checksums(&named, &before, start, len) {
                        return refused("the checksums are not those that they have");
                    }
                    change.shares.push((start, len, (now - then) as u32));
                }
            }
        }
        Ok(change)
    }
}

/// The blocks of all extents, in order; no piece passes a chunk's end.
fn pieces(named: &[Named<'_>], before: &[Named<'_>], chunk_blocks: u64) -> Vec<Piece> {
    // Where the numbers of extents change, and by how much.
    let mut steps: Vec<(u64, isize, isize)> = Vec::with_capacity(2 * (named.len() + before.len()));
    for (all, step) in [(named, (1, 0)), (before, (0, 1))] {
        for one in all {
            steps.push((one.blocks.start.0, step.0, step.1));
            steps.push((one.end(), -step.0, -step.1));
        }
    }
    steps.sort_unstable();
    let (mut out, mut counts, mut at) = (Vec::<Piece>::new(), (0isize, 0isize), 0);
    for (block, now, then) in steps {
        while at < block && counts != (0, 0) {
            let len = (block - at).min(chunk_blocks - at % chunk_blocks);
            let (named, before) = (counts.0 as usize, counts.1 as usize);
            let shared = named > before && before > 0; // by the same extents, whose checksums are compared
            let last = out.last_mut().filter(|p| !shared && p.start + p.len == at && at % chunk_blocks != 0);
            match last {
                Some(p) if (p.named, p.before) == (named, before) => p.len += len,
                _ => out.push(Piece { start: at, len, named, before }),
            }
            at += len;
        }
        at = block;
        counts = (counts.0 + now, counts.1 + then);
    }
    out
}

/// Every extent says the same of these blocks, a piece. Both lists are in order.
fn same_checksums(named: &[Named<'_>], before: &[Named<'_>], start: u64, len: u64) -> bool {
    let mut all = [before, named].into_iter().flat_map(|list| {
        let from = list.partition_point(|one| one.blocks.start.0 + u64::from(MAX_EXTENT_BLOCKS) <= start);
        let near = list[from..].iter().take_while(|one| one.blocks.start.0 <= start);
        near.filter(|one| one.end() > start).map(|one| one.checksums(start, len))
    });
    let Some(Some(first)) = all.next() else { return false };
    all.all(|other| other == Some(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::BlockAddr;
    use vellum_format::ExtentHeader;

    fn extent(start: u64, checksums: &[u32]) -> (BlockRange, Value) {
        let header = ExtentHeader { start: BlockAddr(start), len_blocks: checksums.len() as u32, offline: false };
        let blocks = BlockRange::new(start, header.len_blocks);
        (blocks, Extent { header, checksums: checksums.to_vec() }.encode())
    }

    fn all(extents: &[(BlockRange, Value)]) -> Vec<Named<'_>> {
        let mut all: Vec<Named<'_>> = extents.iter().map(|(blocks, value)| Named { blocks: *blocks, value }).collect();
        all.sort_by_key(|one| one.blocks.start);
        all
    }

    #[test]
    fn blocks_are_counted_by_who_named_them_and_who_does() {
        let named = [extent(10, &[0; 10]), extent(12, &[0; 3]), extent(250, &[0; 10]), extent(260, &[0; 4])];
        let before = [extent(10, &[0; 5]), extent(18, &[0; 4])];
        let found: Vec<_> =
            pieces(&all(&named), &all(&before), 256).iter().map(|p| (p.start, p.len, p.named, p.before)).collect();
        let expected =
            [(10, 2, 1, 1), (12, 3, 2, 1), (15, 3, 1, 0), (18, 2, 1, 1), (20, 2, 0, 1), (250, 6, 1, 0), (256, 8, 1, 0)];
        assert_eq!(found, expected);
    }

    #[test]
    fn extents_agree_on_every_checksum_or_they_do_not_share() {
        let before = [extent(10, &[1, 2, 3, 4])];
        let named = [extent(10, &[1, 2, 3, 4]), extent(11, &[2, 3])];
        assert!(same_checksums(&all(&named), &all(&before), 11, 2));
        let wrong = [extent(10, &[1, 2, 3, 4]), extent(11, &[2, 9])];
        assert!(same_checksums(&all(&wrong), &all(&before), 11, 1));
        assert!(!same_checksums(&all(&wrong), &all(&before), 11, 2));
        assert!(!same_checksums(&all(&named), &[], 11, 3), "nothing names all of them");
    }
}

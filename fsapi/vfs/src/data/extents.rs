//! The map from a file's blocks to the device: reading it, and what becomes of it when a range gets new blocks.
//!
//! Extents are never longer than a data frame and never overlap; they are keyed by their last block, so the first key
//! at or after a block is the extent that may cover it. Pure planning; the callers read and write the items.

use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, Ino, Key, KeyRange, crc32c};
use vellum_format::{Extent, ExtentHeader, ItemError, ItemKind, Value};

/// An extent at its place in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapped {
    pub first_block: u64,
    pub extent: Extent,
}

impl Mapped {
    pub fn online(first_block: u64, range: BlockRange, checksums: Vec<u32>) -> Mapped {
        let header = ExtentHeader { start: range.start, len_blocks: range.len_blocks, offline: false };
        Mapped { first_block, extent: Extent { header, checksums } }
    }

    pub fn decode(key: &Key, value: &Value) -> Result<Mapped, ItemError> {
        let extent = Extent::decode(value)?;
        let first = Extent::first_block(key, extent.header.len_blocks);
        let first_block = first.ok_or(ItemError::Value { what: "extent key", found: key.second() })?;
        Ok(Mapped { first_block, extent })
    }

    pub fn end_block(&self) -> u64 {
        self.first_block + u64::from(self.extent.header.len_blocks)
    }

    pub fn key(&self, ino: Ino) -> Key {
        Extent::key(ino, self.first_block, self.extent.header.len_blocks)
    }

    /// The part within `first..end`; `None` when nothing is.
    pub fn clip(&self, first: u64, end: u64) -> Option<Mapped> {
        let (from, to) = (self.first_block.max(first), self.end_block().min(end));
        if from >= to {
            return None;
        }
        let skip = from - self.first_block;
        let len = to - from;
        let header = self.extent.header;
        let start = if header.offline { BlockAddr::NONE } else { BlockAddr(header.start.0 + skip) };
        let checksums = self.extent.checksums.iter().skip(skip as usize).take(len as usize).copied().collect();
        let header = ExtentHeader { start, len_blocks: len as u32, offline: header.offline };
        Some(Mapped { first_block: from, extent: Extent { header, checksums } })
    }
}

/// The keys to scan for extents that cover blocks of `first..end`; a scan stops at the first extent that begins at or
/// after `end`.
pub fn scan_range(ino: Ino, first: u64) -> KeyRange {
    KeyRange {
        first: Extent::seek_key(ino, first),
        last: Key::fs(ino, ItemKind::Extent as u8, u64::MAX, u64::MAX, 255),
    }
}

/// What changes when the blocks `first..end` lose what they have.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Cut {
    pub deletes: Vec<Key>,
    pub puts: Vec<Mapped>,
    pub online_freed: u64,
    pub offline_freed: u64,
}

/// `old`: the extents that overlap `first..end`, in order.
pub fn cut(ino: Ino, old: &[Mapped], first: u64, end: u64) -> Cut {
    let mut cut = Cut::default();
    for mapped in old {
        let Some(gone) = mapped.clip(first, end) else { continue };
        let freed = u64::from(gone.extent.header.len_blocks);
        if gone.extent.header.offline {
            cut.offline_freed += freed;
        } else {
            cut.online_freed += freed;
        }
        let right = mapped.clip(end, u64::MAX);
        // The part to the right keeps the old key: it ends where the old extent ended.
        if right.is_none() {
            cut.deletes.push(mapped.key(ino));
        }
        cut.puts.extend(mapped.clip(0, first));
        cut.puts.extend(right);
    }
    cut
}

/// Splits device ranges, as the engine returned them for a frame, over the frame's pieces in order. `data` are the
/// pieces' bytes. `None` when the ranges hold fewer blocks than the pieces.
pub fn place<'a>(pieces: impl Iterator<Item = (u64, &'a [u8])>, ranges: &[BlockRange]) -> Option<Vec<Vec<Mapped>>> {
    let mut ranges = ranges.iter().copied();
    let mut current = BlockRange::default();
    let mut placed = Vec::new();
    for (first_block, data) in pieces {
        let (mut block, mut rest) = (first_block, data);
        let mut extents = Vec::with_capacity(1);
        while !rest.is_empty() {
            while current.len_blocks == 0 {
                current = ranges.next()?;
            }
            let take = (current.len_blocks as usize).min(rest.len() / BLOCK_SIZE);
            let (now, later) = rest.split_at(take * BLOCK_SIZE);
            let checksums = now.chunks_exact(BLOCK_SIZE).map(crc32c).collect();
            let range = BlockRange { start: current.start, len_blocks: take as u32 };
            extents.push(Mapped::online(block, range, checksums));
            current.start.0 += take as u64;
            current.len_blocks -= take as u32;
            block += take as u64;
            rest = later;
        }
        placed.push(extents);
    }
    Some(placed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use vellum_base::prng::Prng;

    fn mapped(first: u64, start: u64, len: u32) -> Mapped {
        Mapped::online(first, BlockRange::new(start, len), (0..len).map(|i| start as u32 + i).collect())
    }

    #[test]
    fn a_cut_in_the_middle_leaves_both_ends_with_their_checksums() {
        let cut = cut(Ino(9), &[mapped(10, 100, 10)], 13, 15);
        assert_eq!(cut.deletes, []);
        assert_eq!(cut.puts, [mapped(10, 100, 3), mapped(15, 105, 5)]);
        assert_eq!(cut.puts[1].key(Ino(9)), mapped(10, 100, 10).key(Ino(9)));
        assert_eq!(cut.online_freed, 2);
    }

    #[test]
    fn cuts_agree_with_a_plain_map_of_blocks() {
        let ino = Ino(5);
        for seed in 0..50 {
            let mut rng = Prng::new(seed);
            let mut items = BTreeMap::<Key, Value>::new();
            let mut model = BTreeMap::<u64, u64>::new();
            let mut next = 1000;
            for _ in 0..200 {
                let (first, len) = (rng.below(100), 1 + rng.below(20));
                let end = first + len;
                let old: Vec<Mapped> = items
                    .range(scan_range(ino, first).first..)
                    .map(|(k, v)| Mapped::decode(k, v).unwrap())
                    .take_while(|m| m.first_block < end)
                    .collect();
                let c = cut(ino, &old, first, end);
                let freed = (first..end).filter_map(|b| model.remove(&b)).count();
                assert_eq!(c.online_freed, freed as u64);
                c.deletes.iter().for_each(|k| assert!(items.remove(k).is_some()));
                c.puts.iter().for_each(|m| drop(items.insert(m.key(ino), m.extent.encode())));
                if rng.one_in(2) {
                    let new = mapped(first, next, len as u32);
                    model.extend((0..len).map(|i| (first + i, next + i)));
                    next += len;
                    items.insert(new.key(ino), new.extent.encode());
                }
                let mut seen = BTreeMap::new();
                for (k, v) in &items {
                    let m = Mapped::decode(k, v).unwrap();
                    for i in 0..u64::from(m.extent.header.len_blocks) {
                        assert_eq!(m.extent.checksums[i as usize], (m.extent.header.start.0 + i) as u32);
                        assert!(seen.insert(m.first_block + i, m.extent.header.start.0 + i).is_none());
                    }
                }
                assert_eq!(seen, model, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_frame_is_split_over_its_pieces_and_ranges() {
        let (a, b) = (vec![1u8; 3 * BLOCK_SIZE], vec![2u8; 2 * BLOCK_SIZE]);
        let ranges = [BlockRange::new(50, 1), BlockRange::new(70, 4)];
        let placed = place([(7, &a[..]), (0, &b[..])].into_iter(), &ranges).unwrap();
        let (ca, cb) = (crc32c(&a[..BLOCK_SIZE]), crc32c(&b[..BLOCK_SIZE]));
        assert_eq!(
            placed[0],
            [
                Mapped::online(7, BlockRange::new(50, 1), vec![ca]),
                Mapped::online(8, BlockRange::new(70, 2), vec![ca; 2])
            ]
        );
        assert_eq!(placed[1], [Mapped::online(0, BlockRange::new(72, 2), vec![cb; 2])]);
        assert!(place([(0, &a[..])].into_iter(), &ranges[..1]).is_none());
    }
}

//! Blocks that several extents name: how many more than one. Items of [`vellum_base::Zone::Space`] beside the bitmaps, in
//! the same bucket, written with their whole content. A block that no item speaks of has one owner, so files that share
//! nothing have no such items.

use bytes::{BufMut, Bytes, BytesMut};
use vellum_base::{Bucket, ChunkIndex, Key, Zone};

use crate::item::{ItemError, MAX_VALUE};

/// Blocks that one item covers. Each may have a number of its own, and all of them fit one value.
pub const OWNERS_BLOCKS: u32 = 256;
/// Bytes of a run.
pub const OWNERS_RUN: usize = 8;
/// Longest value.
pub const OWNERS_BYTES: usize = OWNERS_BLOCKS as usize * OWNERS_RUN;
const _: () = assert!(OWNERS_BYTES <= MAX_VALUE);
/// More further owners a block cannot have.
pub const MAX_EXTRA: u32 = u32::MAX;
const KIND: u8 = 1;

/// Blocks next to each other with the same number of further owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnersRun {
    pub first: u16,
    pub len: u16,
    /// Extents beyond the first that name each of the blocks; not 0.
    pub extra: u32,
}

/// ```text
///  0       2      4       8
///  | first | len  | extra | of the next run ...    integers LE; ascending, disjoint, as few runs as can be
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owners(Vec<OwnersRun>);

impl Owners {
    pub fn key(bucket: Bucket, chunk: ChunkIndex, index: u32) -> Key {
        Key::new(bucket, Zone::Space, u64::from(chunk.0), KIND, u64::from(index), 0, 0)
    }

    /// (chunk, index) of such an item's key; `None` for every other key.
    pub fn place(key: &Key) -> Option<(ChunkIndex, u32)> {
        if key.zone() != Some(Zone::Space) || key.kind() != KIND {
            return None;
        }
        Some((ChunkIndex(u32::try_from(key.first()).ok()?), u32::try_from(key.second()).ok()?))
    }

    pub fn runs(&self) -> &[OwnersRun] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Owners of a block beyond the first.
    pub fn extra(&self, block: u32) -> u32 {
        let at = self.0.partition_point(|run| u32::from(run.first) + u32::from(run.len) <= block);
        self.0.get(at).filter(|run| u32::from(run.first) <= block).map_or(0, |run| run.extra)
    }

    /// The greatest number.
    pub fn most(&self) -> u32 {
        self.0.iter().map(|run| run.extra).max().unwrap_or(0)
    }

    /// So many owners more for each of the blocks.
    pub fn add(&mut self, first: u32, len: u32, owners: u32) {
        self.change(first, len, |_, extra| extra.saturating_add(owners));
    }

    /// So many owners less for each of the blocks, which have more.
    pub fn drop_some(&mut self, first: u32, len: u32, owners: u32) {
        self.change(first, len, |_, extra| extra.saturating_sub(owners));
    }

    /// One owner less for each of the blocks. Answers those that had but one, as ranges.
    pub fn take(&mut self, first: u32, len: u32) -> Vec<(u32, u32)> {
        let mut last: Vec<(u32, u32)> = Vec::new();
        self.change(first, len, |block, extra| {
            if extra == 0 {
                match last.last_mut().filter(|(start, len)| start + len == block) {
                    Some(run) => run.1 += 1,
                    None => last.push((block, 1)),
                }
            }
            extra.saturating_sub(1)
        });
        last
    }

    fn change(&mut self, first: u32, len: u32, mut new: impl FnMut(u32, u32) -> u32) {
        let mut all = [0; OWNERS_BLOCKS as usize];
        for run in &self.0 {
            all[usize::from(run.first)..][..usize::from(run.len)].fill(run.extra);
        }
        for (at, extra) in all.iter_mut().enumerate().skip(first as usize).take(len as usize) {
            *extra = new(at as u32, *extra);
        }
        self.0.clear();
        for (at, extra) in all.into_iter().enumerate().filter(|(_, extra)| *extra > 0) {
            let at = at as u16;
            match self.0.last_mut().filter(|run| run.first + run.len == at && run.extra == extra) {
                Some(run) => run.len += 1,
                None => self.0.push(OwnersRun { first: at, len: 1, extra }),
            }
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.0.len() * OWNERS_RUN);
        for run in &self.0 {
            out.put_u16_le(run.first);
            out.put_u16_le(run.len);
            out.put_u32_le(run.extra);
        }
        out.freeze()
    }

    pub fn decode(value: &[u8]) -> Result<Owners, ItemError> {
        let (runs, rest) = value.as_chunks::<OWNERS_RUN>();
        if !rest.is_empty() || value.len() > OWNERS_BYTES {
            let expected = value.len().min(OWNERS_BYTES) / OWNERS_RUN * OWNERS_RUN;
            return Err(ItemError::Length { what: "owners", expected, found: value.len() });
        }
        let mut owners = Vec::with_capacity(runs.len());
        let mut before = OwnersRun { first: 0, len: 0, extra: 0 };
        for r in runs {
            let first = u16::from_le_bytes([r[0], r[1]]);
            let len = u16::from_le_bytes([r[2], r[3]]);
            let extra = u32::from_le_bytes([r[4], r[5], r[6], r[7]]);
            let free_from = before.first + before.len;
            let apart = first > free_from || (first == free_from && extra != before.extra);
            let inside = len > 0 && u32::from(first) + u32::from(len) <= OWNERS_BLOCKS;
            if !apart || !inside || extra == 0 {
                return Err(ItemError::Value { what: "run of owners", found: u64::from_le_bytes(*r) });
            }
            before = OwnersRun { first, len, extra };
            owners.push(before);
        }
        Ok(Owners(owners))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bitmap;
    use vellum_base::prng::Prng;

    #[test]
    fn owners_agree_with_a_plain_count_and_survive_the_encoding() {
        for seed in 0..20 {
            let (mut prng, mut owners) = (Prng::new(seed), Owners::default());
            let mut plain = [0u32; OWNERS_BLOCKS as usize];
            for _ in 0..300 {
                let first = prng.below(256) as u32;
                let len = 1 + prng.below(u64::from(256 - first)) as u32;
                let range = first as usize..(first + len) as usize;
                let times = 1 + prng.below(3) as u32;
                if prng.one_in(2) {
                    owners.add(first, len, times);
                    plain[range].iter_mut().for_each(|n| *n += times);
                } else if prng.one_in(2) {
                    owners.drop_some(first, len, times);
                    plain[range].iter_mut().for_each(|n| *n = n.saturating_sub(times));
                } else {
                    let last: u32 = owners.take(first, len).iter().map(|(_, len)| len).sum();
                    assert_eq!(last as usize, plain[range.clone()].iter().filter(|n| **n == 0).count());
                    plain[range].iter_mut().for_each(|n| *n = n.saturating_sub(1));
                }
                assert!((0..256).all(|block| owners.extra(block) == plain[block as usize]), "seed {seed}");
                assert_eq!(owners.most(), *plain.iter().max().unwrap());
                assert_eq!(Owners::decode(&owners.encode()), Ok(owners.clone()));
            }
        }
    }

    #[test]
    fn every_block_may_have_another_number_and_keys_are_told_from_those_of_bitmaps() {
        let mut owners = Owners::default();
        (0..256).for_each(|from| owners.add(from, 256 - from, 1));
        assert_eq!((owners.runs().len(), owners.encode().len()), (256, OWNERS_BYTES));
        assert_eq!(Owners::decode(&owners.encode()), Ok(owners));
        let (bitmap, owners) = (Bitmap::key(Bucket(3), ChunkIndex(7), 9), Owners::key(Bucket(3), ChunkIndex(7), 9));
        assert_eq!((Owners::place(&owners), Bitmap::place(&owners)), (Some((ChunkIndex(7), 9)), None));
        assert_eq!((Owners::place(&bitmap), Bitmap::place(&bitmap)), (None, Some((ChunkIndex(7), 9))));
        assert!(Bitmap::range(Bucket(3)).contains(&owners));
    }

    #[test]
    fn runs_that_contradict_themselves_are_refused() {
        let run = |first: u16, len: u16, extra: u32| {
            [&first.to_le_bytes()[..], &len.to_le_bytes(), &extra.to_le_bytes()].concat()
        };
        let two = |a: Vec<u8>, b: Vec<u8>| Owners::decode(&[a, b].concat());
        assert!(two(run(0, 2, 1), run(2, 254, 2)).is_ok());
        assert!(two(run(0, 2, 1), run(2, 1, 1)).is_err(), "one run in two");
        assert!(two(run(0, 2, 1), run(1, 1, 2)).is_err(), "they overlap");
        assert!(two(run(9, 1, 1), run(3, 1, 1)).is_err(), "descending");
        for bad in [run(0, 0, 1), run(0, 1, 0), run(255, 2, 1), run(65_535, 65_535, 1), vec![0; 7]] {
            assert!(Owners::decode(&bad).is_err());
        }
    }
}

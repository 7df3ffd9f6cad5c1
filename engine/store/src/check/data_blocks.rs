//! Blocks of file data, by the extents on one side and by bitmaps and counts of owners on the other.

use std::collections::BTreeMap;

use vellum_base::Key;
use vellum_format::{BITMAP_BLOCKS, Bitmap, ItemError, OWNERS_BLOCKS, Owners};

use crate::space::RangeSet;

#[derive(Default)]
pub(super) struct DataBlocks {
    /// Those that an extent names.
    named: RangeSet,
    /// By how many extents beyond the first. None without.
    extra: BTreeMap<u64, u32>,
    bitmaps: BTreeMap<(u32, u32), Bitmap>,
    owners: BTreeMap<(u32, u32), Owners>,
}

impl DataBlocks {
    /// An extent names these blocks; `blocks` is everything that is in use. False when something else than an extent has
    /// one of them.
    pub fn hold(&mut self, blocks: &mut RangeSet, start: u64, len: u64) -> bool {
        if blocks.insert(start, len) {
            self.named.insert(start, len);
            return true;
        }
        let mut alone = true;
        for block in start..start + len {
            if self.named.contains(block, 1) {
                *self.extra.entry(block).or_default() += 1;
            } else if blocks.insert(block, 1) {
                self.named.insert(block, 1);
            } else {
                alone = false;
            }
        }
        alone
    }

    /// A bitmap, or counts of owners.
    pub fn item(&mut self, key: &Key, value: &[u8]) -> Result<(), ItemError> {
        if let Some((chunk, index)) = Bitmap::place(key) {
            self.bitmaps.insert((chunk.0, index), Bitmap::decode(value)?);
        } else if let Some((chunk, index)) = Owners::place(key) {
            self.owners.insert((chunk.0, index), Owners::decode(value)?);
        }
        Ok(())
    }

    /// What is wrong with a block of a chunk for data; `used` says whether anything has it.
    pub fn problems(&self, chunk: u32, at: u32, used: bool, block: u64) -> Vec<String> {
        let mut out = Vec::new();
        let bitmap = self.bitmaps.get(&(chunk, at / BITMAP_BLOCKS));
        match (bitmap.is_some_and(|b| b.get(at % BITMAP_BLOCKS)), used) {
            (true, false) => out.push("its bit is set, and nothing refers to it".into()),
            (false, true) => out.push("it is used, and its bit is clear".into()),
            _ => {}
        }
        let counted = self.owners.get(&(chunk, at / OWNERS_BLOCKS)).map_or(0, |o| o.extra(at % OWNERS_BLOCKS));
        let found = self.extra.get(&block).copied().unwrap_or(0);
        if counted != found {
            let named = if used { u64::from(found) + 1 } else { 0 };
            out.push(format!("it has {} owners, and {named} extents name it", u64::from(counted) + 1));
        }
        out
    }
}

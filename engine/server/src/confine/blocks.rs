//! Are these a file's blocks, at this place of it?

use vellum_base::{Ino, Key, KeyRange, View};
use vellum_format::{Extent, ExtentHeader, ItemKind};
use vellum_wire::{FilePart, WireError};

use super::{Confined, Verdict, outside};

/// Extents read at a time: each has the checksums of up to 256 blocks.
const PAGE: usize = 16;
const PAGE_BYTES: usize = 32 << 10;

/// An extent and its first block in the file.
type Mapped = (u64, ExtentHeader);

impl Confined {
    /// While the caller holds blocks: what is found stays true until they are read, as blocks are never written in place.
    pub(crate) async fn check_blocks(&self, ino: Ino, parts: &[FilePart]) -> Verdict {
        self.require(ino).await?;
        let mut page: Vec<Mapped> = Vec::new();
        for part in parts {
            let (mut block, mut place) = (part.block, part.range.start.0);
            let mut left = u64::from(part.range.len_blocks);
            while left > 0 {
                if !page.iter().any(|extent| covers(extent, block)) {
                    page = self.extents_from(ino, block).await?;
                }
                let found = page.iter().find(|extent| covers(extent, block));
                let not_there =
                    || outside(format_args!("block {place} of the device (as block {block} of inode {ino})"));
                let (first, extent) = found.ok_or_else(not_there)?;
                let skip = block - first;
                if extent.offline || extent.start.0.checked_add(skip) != Some(place) {
                    return Err(not_there());
                }
                let take = left.min(u64::from(extent.len_blocks) - skip);
                // Beyond the greatest number nothing is mapped: it is found missing.
                (block, place) = (block.saturating_add(take), place.saturating_add(take));
                left -= take;
            }
        }
        Ok(())
    }

    async fn extents_from(&self, ino: Ino, block: u64) -> Result<Vec<Mapped>, WireError> {
        let last = Key::fs(ino, ItemKind::Extent as u8, u64::MAX, u64::MAX, u8::MAX);
        let range = KeyRange { first: Extent::seek_key(ino, block), last };
        let (items, _) = self.backend.scan(range, PAGE, PAGE_BYTES, View::Applied).await?;
        let mapped = items.iter().filter_map(|(key, value)| {
            let extent = Extent::decode_header(value).ok()?;
            Some((Extent::first_block(key, extent.len_blocks)?, extent))
        });
        Ok(mapped.collect())
    }
}

fn covers((first, extent): &Mapped, block: u64) -> bool {
    block.checked_sub(*first).is_some_and(|skip| skip < u64::from(extent.len_blocks))
}

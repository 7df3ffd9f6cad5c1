//! Loading the bitmaps of data chunks with the counts of owners, and finding them out again when their items are lost.
//!
//! Both repeat what the extents say. When the block of a segment that holds bitmaps is rotten, newer ones may still be
//! found one by one; else the start is refused, because blocks of files would be taken for free ones. A repair reads all
//! extents, and writes every item of the bucket anew; the rotten block is then in nobody's way and is replaced
//! ([`crate::lsm`], `stand_in`).

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{Bucket, ChunkIndex, Epoch, Key, KeyRange, Zone};
use vellum_format::superblock::SHARED_BLOCKS;
use vellum_format::{BITMAP_BLOCKS, Bitmap, Extent, ItemKind, OWNERS_BLOCKS, Owners, Record};

use crate::error::StoreError;
use crate::lsm::ScanPage;
use crate::store::Store;

const NEWEST: Epoch = Epoch(u64::MAX);
/// Bitmaps of one commit.
const AT_ONCE: usize = 16;

/// What is known of one chunk's blocks.
#[derive(Clone, Default)]
struct Known {
    bitmaps: BTreeMap<u32, Bitmap>,
    owners: BTreeMap<u32, Owners>,
}

type Chunks = BTreeMap<ChunkIndex, Known>;

/// A bucket whose bitmaps and counts were found out again.
pub(crate) struct Rebuilt {
    bucket: Bucket,
    chunks: Chunks,
}

impl Store {
    /// Loads the bitmaps of this reactor's chunks; those that had to be rebuilt are to be written.
    pub(crate) async fn load_space(&self, chunks: &[(ChunkIndex, Bucket)]) -> Result<Vec<Rebuilt>, StoreError> {
        let mut by_bucket: BTreeMap<Bucket, Vec<ChunkIndex>> = BTreeMap::new();
        chunks.iter().for_each(|(chunk, bucket)| by_bucket.entry(*bucket).or_default().push(*chunk));
        let mut rebuilt = Vec::new();
        for (bucket, chunks) in by_bucket {
            let mut found = match self.bitmaps_of(bucket, &chunks).await {
                Ok(found) => found,
                Err(e @ StoreError::Device(_)) => return Err(e),
                Err(e) if self.options.rebuild_bitmaps && self.options.reactors == 1 => {
                    tracing::warn!(bucket = bucket.0, error = %e, "bitmaps are lost: they are found out from the extents");
                    let chunks = self.rebuild_from_extents(bucket, &chunks).await?;
                    rebuilt.push(Rebuilt { bucket, chunks: chunks.clone() });
                    chunks
                }
                Err(e) => return Err(StoreError::Bitmaps { bucket: bucket.0, reason: e.to_string() }),
            };
            let mut space = self.space.borrow_mut();
            for chunk in chunks {
                let Known { bitmaps, mut owners } = found.remove(&chunk).unwrap_or_default();
                owners.retain(|_, owners| !owners.is_empty());
                space.add_chunk(chunk, bucket, bitmaps, owners);
            }
        }
        Ok(rebuilt)
    }

    async fn bitmaps_of(&self, bucket: Bucket, chunks: &[ChunkIndex]) -> Result<Chunks, StoreError> {
        match self.scan_bitmaps(bucket).await {
            Ok(found) => Ok(found),
            Err(e @ StoreError::Device(_)) => Err(e),
            // What is newer than what cannot be read is enough.
            Err(_) => self.get_bitmaps(bucket, chunks).await,
        }
    }

    async fn scan_bitmaps(&self, bucket: Bucket) -> Result<Chunks, StoreError> {
        let mut found = Chunks::new();
        let mut range = Bitmap::range(bucket);
        loop {
            let ScanPage { items, next } = self.shard(&range.first)?.scan(range, NEWEST, 1024, 1 << 20).await?;
            for (key, value) in items {
                known(&mut found, key, &value)?;
            }
            match next {
                Some(next) => range.first = next,
                None => return Ok(found),
            }
        }
    }

    async fn get_bitmaps(&self, bucket: Bucket, chunks: &[ChunkIndex]) -> Result<Chunks, StoreError> {
        let mut found = Chunks::new();
        for chunk in chunks {
            let bitmaps = self.indexes(BITMAP_BLOCKS).map(|index| Bitmap::key(bucket, *chunk, index));
            let owners = self.indexes(OWNERS_BLOCKS).map(|index| Owners::key(bucket, *chunk, index));
            for key in bitmaps.chain(owners) {
                if let Some(value) = self.shard(&key)?.get(&key, NEWEST).await? {
                    known(&mut found, key, &value)?;
                }
            }
        }
        Ok(found)
    }

    /// Items of a chunk, of which each covers so many blocks.
    fn indexes(&self, blocks: u32) -> std::ops::Range<u32> {
        0..self.superblock.chunk_blocks.div_ceil(blocks)
    }

    /// Every item of these chunks, the empty ones too, by the extents of all files: those of any inode may be there.
    async fn rebuild_from_extents(&self, bucket: Bucket, chunks: &[ChunkIndex]) -> Result<Chunks, StoreError> {
        // The versions before do not know items of owners, not even empty ones.
        let counts = if self.superblock.format_version < SHARED_BLOCKS { 0..0 } else { self.indexes(OWNERS_BLOCKS) };
        let all = || Known {
            bitmaps: self.indexes(BITMAP_BLOCKS).map(|index| (index, Bitmap::default())).collect(),
            owners: counts.clone().map(|index| (index, Owners::default())).collect(),
        };
        let mut found: Chunks = chunks.iter().map(|chunk| (*chunk, all())).collect();
        let lost = |e: StoreError| StoreError::Extents { bucket: bucket.0, reason: e.to_string() };
        for b in 0..=u8::MAX {
            let key = |first, rest, last| Key::new(Bucket(b), Zone::Fs, first, last, rest, rest, last);
            let mut range = KeyRange { first: key(0, 0, 0), last: key(u64::MAX, u64::MAX, u8::MAX) };
            loop {
                let page = self.shard(&range.first)?.scan(range, NEWEST, 1024, 1 << 20).await;
                let ScanPage { items, next } = page.map_err(|e| lost(e.into()))?;
                for (key, value) in items.iter().filter(|(key, _)| key.kind() == ItemKind::Extent as u8) {
                    let header = Extent::decode_header(value);
                    let header = header.map_err(|error| lost(StoreError::Item { key: *key, error }))?;
                    if let Some(blocks) = header.blocks() {
                        self.mark_used(&mut found, blocks.start.0, u64::from(blocks.len_blocks));
                    }
                }
                match next {
                    Some(next) => range.first = next,
                    None => break,
                }
            }
        }
        Ok(found)
    }

    fn mark_used(&self, found: &mut Chunks, start: u64, len: u64) {
        let chunk_blocks = u64::from(self.superblock.chunk_blocks);
        for block in start..start.saturating_add(len) {
            let Ok(chunk) = u32::try_from(block / chunk_blocks) else { return };
            let at = (block % chunk_blocks) as u32;
            let Some(known) = found.get_mut(&ChunkIndex(chunk)) else { continue };
            let Some(bitmap) = known.bitmaps.get_mut(&(at / BITMAP_BLOCKS)) else { continue };
            if !bitmap.get(at % BITMAP_BLOCKS) {
                bitmap.set(at % BITMAP_BLOCKS, true);
            } else if let Some(owners) = known.owners.get_mut(&(at / OWNERS_BLOCKS)) {
                owners.add(at % OWNERS_BLOCKS, 1, 1);
            }
        }
    }

    /// Makes them durable, the empty ones too: they hide what cannot be read.
    pub(crate) async fn write_rebuilt(self: &Rc<Self>, rebuilt: Vec<Rebuilt>) -> Result<(), StoreError> {
        for Rebuilt { bucket, chunks } in rebuilt {
            let mut records = Vec::new();
            for (chunk, Known { bitmaps, owners }) in &chunks {
                let bitmaps = bitmaps.iter().map(|(i, bitmap)| (Bitmap::key(bucket, *chunk, *i), bitmap.encode()));
                let owners = owners.iter().map(|(i, owners)| (Owners::key(bucket, *chunk, *i), owners.encode()));
                records.extend(bitmaps.chain(owners).map(|(key, value)| Record::Put { key, value }));
            }
            for some in records.chunks(AT_ONCE) {
                let epoch = self.commit_own(some).await?;
                self.wait_durable(epoch).await?;
            }
            self.rewritten.borrow_mut().push(Bitmap::range(bucket));
        }
        Ok(())
    }
}

/// Takes in one item.
fn known(found: &mut Chunks, key: Key, value: &[u8]) -> Result<(), StoreError> {
    let bad = |error| StoreError::Item { key, error };
    if let Some((chunk, index)) = Bitmap::place(&key) {
        found.entry(chunk).or_default().bitmaps.insert(index, Bitmap::decode(value).map_err(bad)?);
    } else if let Some((chunk, index)) = Owners::place(&key) {
        found.entry(chunk).or_default().owners.insert(index, Owners::decode(value).map_err(bad)?);
    }
    Ok(())
}

//! Loading the bitmaps of data chunks, and finding them out again when their items are lost.
//!
//! A bitmap repeats what the extents say. When the block of a segment that holds bitmaps is rotten, newer ones may still be
//! found one by one; else the start is refused, because blocks of files would be taken for free ones. A repair reads all
//! extents, and writes every bitmap of the bucket anew; the rotten block is then in nobody's way and is replaced
//! ([`crate::lsm`], `stand_in`).

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{Bucket, ChunkIndex, Epoch, Key, KeyRange, Zone};
use vellum_format::{BITMAP_BLOCKS, Bitmap, Extent, ItemKind, Record};

use crate::error::StoreError;
use crate::lsm::ScanPage;
use crate::store::Store;

const NEWEST: Epoch = Epoch(u64::MAX);
/// Bitmaps of one commit.
const AT_ONCE: usize = 16;

type Bitmaps = BTreeMap<ChunkIndex, BTreeMap<u32, Bitmap>>;

/// A bucket whose bitmaps were found out again.
pub(crate) struct Rebuilt {
    bucket: Bucket,
    bitmaps: Bitmaps,
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
                    let bitmaps = self.rebuild_from_extents(bucket, &chunks).await?;
                    rebuilt.push(Rebuilt { bucket, bitmaps: bitmaps.clone() });
                    bitmaps
                }
                Err(e) => return Err(StoreError::Bitmaps { bucket: bucket.0, reason: e.to_string() }),
            };
            let mut space = self.space.borrow_mut();
            for chunk in chunks {
                space.add_chunk(chunk, bucket, found.remove(&chunk).unwrap_or_default());
            }
        }
        Ok(rebuilt)
    }

    async fn bitmaps_of(&self, bucket: Bucket, chunks: &[ChunkIndex]) -> Result<Bitmaps, StoreError> {
        match self.scan_bitmaps(bucket).await {
            Ok(found) => Ok(found),
            Err(e @ StoreError::Device(_)) => Err(e),
            // What is newer than what cannot be read is enough.
            Err(_) => self.get_bitmaps(bucket, chunks).await,
        }
    }

    async fn scan_bitmaps(&self, bucket: Bucket) -> Result<Bitmaps, StoreError> {
        let mut found = Bitmaps::new();
        let mut range = Bitmap::range(bucket);
        loop {
            let ScanPage { items, next } = self.shard(&range.first)?.scan(range, NEWEST, 1024, 1 << 20).await?;
            for (key, value) in items {
                let bitmap = Bitmap::decode(&value).map_err(|error| StoreError::Item { key, error })?;
                if let Some((chunk, index)) = Bitmap::place(&key) {
                    found.entry(chunk).or_default().insert(index, bitmap);
                }
            }
            match next {
                Some(next) => range.first = next,
                None => return Ok(found),
            }
        }
    }

    async fn get_bitmaps(&self, bucket: Bucket, chunks: &[ChunkIndex]) -> Result<Bitmaps, StoreError> {
        let mut found = Bitmaps::new();
        for chunk in chunks {
            for index in self.bitmap_indexes() {
                let key = Bitmap::key(bucket, *chunk, index);
                if let Some(value) = self.shard(&key)?.get(&key, NEWEST).await? {
                    let bitmap = Bitmap::decode(&value).map_err(|error| StoreError::Item { key, error })?;
                    found.entry(*chunk).or_default().insert(index, bitmap);
                }
            }
        }
        Ok(found)
    }

    fn bitmap_indexes(&self) -> std::ops::Range<u32> {
        0..self.superblock.chunk_blocks.div_ceil(BITMAP_BLOCKS)
    }

    /// Every bitmap of these chunks, the empty ones too, by the extents of all files: those of any inode may be there.
    async fn rebuild_from_extents(&self, bucket: Bucket, chunks: &[ChunkIndex]) -> Result<Bitmaps, StoreError> {
        let all = || self.bitmap_indexes().map(|index| (index, Bitmap::default())).collect();
        let mut found: Bitmaps = chunks.iter().map(|chunk| (*chunk, all())).collect();
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

    fn mark_used(&self, bitmaps: &mut Bitmaps, start: u64, len: u64) {
        let chunk_blocks = u64::from(self.superblock.chunk_blocks);
        for block in start..start.saturating_add(len) {
            let Ok(chunk) = u32::try_from(block / chunk_blocks) else { return };
            let (at, per) = (block % chunk_blocks, u64::from(BITMAP_BLOCKS));
            let bitmap = bitmaps.get_mut(&ChunkIndex(chunk)).and_then(|all| all.get_mut(&((at / per) as u32)));
            if let Some(bitmap) = bitmap {
                bitmap.set((at % per) as u32, true);
            }
        }
    }

    /// Makes them durable, the empty ones too: they hide what cannot be read.
    pub(crate) async fn write_rebuilt(self: &Rc<Self>, rebuilt: Vec<Rebuilt>) -> Result<(), StoreError> {
        for Rebuilt { bucket, bitmaps } in rebuilt {
            let records: Vec<Record> = bitmaps
                .iter()
                .flat_map(|(chunk, all)| all.iter().map(|(index, bitmap)| (*chunk, *index, bitmap)))
                .map(|(chunk, index, bitmap)| Record::Put {
                    key: Bitmap::key(bucket, chunk, index),
                    value: bitmap.encode(),
                })
                .collect();
            for some in records.chunks(AT_ONCE) {
                let epoch = self.commit_own(some).await?;
                self.wait_durable(epoch).await?;
            }
            self.rewritten.borrow_mut().push(Bitmap::range(bucket));
        }
        Ok(())
    }
}

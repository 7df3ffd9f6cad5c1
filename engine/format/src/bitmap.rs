//! Bitmaps of data chunks: which blocks are in use. Items of [`vellum_base::Zone::Space`], written with their whole
//! content, so that replaying one twice is harmless. A missing bitmap is all free.

use bytes::Bytes;
use vellum_base::{Bucket, ChunkIndex, Key, KeyRange, Zone};

use crate::item::{ItemError, MAX_VALUE};

/// Blocks that one bitmap item covers.
pub const BITMAP_BLOCKS: u32 = 2048;
pub const BITMAP_BYTES: usize = BITMAP_BLOCKS as usize / 8;
const _: () = assert!(BITMAP_BYTES <= MAX_VALUE);
const KIND: u8 = 0;

/// One item's bits; bit set = block in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap(Box<[u64; BITMAP_BLOCKS as usize / 64]>);

impl Default for Bitmap {
    fn default() -> Self {
        Bitmap(Box::new([0; BITMAP_BLOCKS as usize / 64]))
    }
}

impl Bitmap {
    pub fn key(bucket: Bucket, chunk: ChunkIndex, index: u32) -> Key {
        Key::new(bucket, Zone::Space, u64::from(chunk.0), KIND, u64::from(index), 0, 0)
    }

    /// All items of one bucket that say which blocks are in use: bitmaps, and [`crate::Owners`].
    pub fn range(bucket: Bucket) -> KeyRange {
        KeyRange {
            first: Key::new(bucket, Zone::Space, 0, 0, 0, 0, 0),
            last: Key::new(bucket, Zone::Space, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX),
        }
    }

    /// (chunk, index) of a bitmap's key; `None` for every other key.
    pub fn place(key: &Key) -> Option<(ChunkIndex, u32)> {
        if key.zone() != Some(Zone::Space) || key.kind() != KIND {
            return None;
        }
        Some((ChunkIndex(u32::try_from(key.first()).ok()?), u32::try_from(key.second()).ok()?))
    }

    pub fn get(&self, bit: u32) -> bool {
        self.0[bit as usize / 64] >> (bit % 64) & 1 != 0
    }

    pub fn set(&mut self, bit: u32, used: bool) {
        let (word, mask) = (&mut self.0[bit as usize / 64], 1u64 << (bit % 64));
        if used { *word |= mask } else { *word &= !mask }
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    pub fn used(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    pub fn encode(&self) -> Bytes {
        self.0.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    pub fn decode(value: &[u8]) -> Result<Bitmap, ItemError> {
        if value.len() != BITMAP_BYTES {
            return Err(ItemError::Length { what: "bitmap", expected: BITMAP_BYTES, found: value.len() });
        }
        let mut bitmap = Bitmap::default();
        for (word, bytes) in bitmap.0.iter_mut().zip(value.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(bitmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_the_encoding() {
        let mut b = Bitmap::default();
        [0, 63, 64, 2047].into_iter().for_each(|bit| b.set(bit, true));
        b.set(63, false);
        let back = Bitmap::decode(&b.encode()).unwrap();
        assert_eq!(back, b);
        assert!(back.get(0) && !back.get(63) && back.get(64) && back.get(2047));
        assert_eq!(back.used(), 3);
        assert!(Bitmap::decode(&[0; 3]).is_err());
        let key = Bitmap::key(Bucket(3), ChunkIndex(7), 9);
        assert_eq!(Bitmap::place(&key), Some((ChunkIndex(7), 9)));
        assert!(Bitmap::range(Bucket(3)).contains(&key));
    }
}

//! The content of a device held in memory: sparse, and cheap to copy (chunks are shared until written).
//!
//! Cheap copies are what makes a crash test at every write affordable: each crash image shares all but a few chunks.

use std::sync::Arc;

/// Unit of sharing, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Clone)]
pub struct Image {
    len_bytes: u64,
    chunks: Vec<Option<Arc<Vec<u8>>>>,
}

impl Image {
    /// All zeros.
    pub fn zeroed(len_bytes: u64) -> Image {
        let chunks = vec![None; len_bytes.div_ceil(CHUNK_BYTES as u64) as usize];
        Image { len_bytes, chunks }
    }

    pub fn from_bytes(bytes: &[u8]) -> Image {
        let mut image = Image::zeroed(bytes.len() as u64);
        image.write(0, bytes);
        image
    }

    /// Adds zeros; a smaller length changes nothing.
    pub fn enlarge(&mut self, len_bytes: u64) {
        if len_bytes > self.len_bytes {
            self.len_bytes = len_bytes;
            self.chunks.resize(len_bytes.div_ceil(CHUNK_BYTES as u64) as usize, None);
        }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The parts of `at..at + len` by chunk: chunk index, offset in the chunk, range in the caller's buffer.
    fn parts(&self, at_bytes: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> + use<> {
        assert!(
            at_bytes.checked_add(len as u64).is_some_and(|end| end <= self.len_bytes),
            "{len} bytes at {at_bytes} pass the image's end at {}",
            self.len_bytes
        );
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = at_bytes + done as u64;
            let (chunk, offset) = ((at / CHUNK_BYTES as u64) as usize, (at % CHUNK_BYTES as u64) as usize);
            let step = (CHUNK_BYTES - offset).min(len - done);
            done += step;
            Some((chunk, offset, done - step..done))
        })
    }

    /// Panics beyond the end: callers have checked.
    pub fn read(&self, at_bytes: u64, out: &mut [u8]) {
        for (chunk, offset, range) in self.parts(at_bytes, out.len()) {
            let out = &mut out[range];
            match &self.chunks[chunk] {
                Some(bytes) => out.copy_from_slice(&bytes[offset..offset + out.len()]),
                None => out.fill(0),
            }
        }
    }

    /// Panics beyond the end: callers have checked.
    pub fn write(&mut self, at_bytes: u64, data: &[u8]) {
        for (chunk, offset, range) in self.parts(at_bytes, data.len()) {
            let data = &data[range];
            let bytes = self.chunks[chunk].get_or_insert_with(|| Arc::new(vec![0; CHUNK_BYTES]));
            Arc::make_mut(bytes)[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    /// Zeros, and the memory of whole chunks given back.
    pub fn zero(&mut self, at_bytes: u64, len_bytes: u64) {
        for (chunk, offset, range) in self.parts(at_bytes, len_bytes as usize) {
            if range.len() == CHUNK_BYTES {
                self.chunks[chunk] = None;
            } else if let Some(bytes) = &mut self.chunks[chunk] {
                Arc::make_mut(bytes)[offset..offset + range.len()].fill(0);
            }
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len_bytes as usize];
        self.read(0, &mut out);
        out
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Image) -> bool {
        let zeros = [0; CHUNK_BYTES];
        self.len_bytes == other.len_bytes
            && self.chunks.iter().zip(&other.chunks).all(|pair| match pair {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
                (Some(bytes), None) | (None, Some(bytes)) => bytes[..] == zeros,
            })
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.chunks.iter().flatten().count();
        write!(f, "Image({} bytes, {held} chunks held)", self.len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_until_written() {
        let mut a = Image::zeroed(3 * CHUNK_BYTES as u64 + 4096);
        a.write(CHUNK_BYTES as u64 - 3, b"across");
        let b = a.clone();
        a.zero(0, 2 * CHUNK_BYTES as u64);
        let mut out = [1; 6];
        b.read(CHUNK_BYTES as u64 - 3, &mut out);
        assert_eq!(&out, b"across");
        a.read(CHUNK_BYTES as u64 - 3, &mut out);
        assert_eq!(out, [0; 6]);
        assert_eq!(a, Image::zeroed(a.len_bytes()));
        assert_eq!(Image::from_bytes(&b.to_vec()), b);
    }

    #[test]
    #[should_panic(expected = "pass the image's end")]
    fn beyond_the_end_is_our_bug() {
        Image::zeroed(4096).read(4096, &mut [0]);
    }
}

//! The bytes of a segment that is being built: chunks of aligned memory, each written with one large write.

use vellum_base::DmaBuf;

/// Length of a write. A chunk may be shorter by less than a block of the segment, and longer for one long block.
pub const CHUNK_BYTES: usize = 512 << 10;

#[derive(Default)]
pub struct Image {
    chunks: Vec<DmaBuf>,
    /// Bytes of the last chunk that are in use.
    used: usize,
    len: u64,
}

impl Image {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Adds `len` zero bytes at the end, to be filled; they are contiguous.
    pub fn extend(&mut self, len: usize) -> &mut [u8] {
        let fits = self.chunks.last().is_some_and(|chunk| self.used + len <= chunk.capacity());
        if !fits {
            if let Some(last) = self.chunks.last_mut() {
                last.set_len(self.used);
            }
            self.chunks.push(DmaBuf::new(len.max(CHUNK_BYTES)));
            self.used = 0;
        }
        let at = self.used;
        self.used += len;
        self.len += len as u64;
        let index = self.chunks.len() - 1;
        let out = &mut self.chunks[index][at..at + len];
        out.fill(0);
        out
    }

    pub fn into_chunks(mut self) -> Vec<DmaBuf> {
        if let Some(last) = self.chunks.last_mut() {
            last.set_len(self.used);
        }
        self.chunks
    }
}

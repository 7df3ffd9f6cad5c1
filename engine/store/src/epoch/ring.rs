//! A log's place on the device: logical positions that grow for ever, laid round a fixed list of chunks. Pure.

use vellum_base::{BlockAddr, ChunkIndex};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    chunks: Vec<ChunkIndex>,
    chunk_blocks: u64,
}

impl Ring {
    pub fn new(chunks: Vec<ChunkIndex>, chunk_blocks: u32) -> Ring {
        Ring { chunks, chunk_blocks: u64::from(chunk_blocks.max(1)) }
    }

    /// Blocks that may be in use at once.
    pub fn capacity(&self) -> u64 {
        self.chunks.len() as u64 * self.chunk_blocks
    }

    /// Device address of a logical position; `None` for a ring without chunks.
    pub fn addr(&self, place: u64) -> Option<BlockAddr> {
        let at = place % self.capacity().max(1);
        let chunk = self.chunks.get((at / self.chunk_blocks) as usize)?;
        Some(BlockAddr(u64::from(chunk.0) * self.chunk_blocks + at % self.chunk_blocks))
    }

    /// The device runs of `len` blocks from `place`: (address, offset in blocks, length in blocks).
    pub fn pieces(&self, place: u64, len: u64) -> Vec<(BlockAddr, u64, u64)> {
        let mut out: Vec<(BlockAddr, u64, u64)> = Vec::new();
        let mut done = 0;
        while done < len {
            let Some(addr) = self.addr(place + done) else { break };
            let run = (len - done).min(self.chunk_blocks - (place + done) % self.chunk_blocks);
            match out.last_mut() {
                Some((start, _, l)) if start.0 + *l == addr.0 => *l += run,
                _ => out.push((addr, done, run)),
            }
            done += run;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_round_the_chunks() {
        let r = Ring::new(vec![ChunkIndex(7), ChunkIndex(8), ChunkIndex(3)], 4);
        assert_eq!(r.capacity(), 12);
        assert_eq!(r.addr(5), Some(BlockAddr(33)));
        assert_eq!(r.addr(12), Some(BlockAddr(28)));
        let pieces = r.pieces(2, 12);
        assert_eq!(pieces, vec![(BlockAddr(30), 0, 6), (BlockAddr(12), 6, 4), (BlockAddr(28), 10, 2)]);
        assert_eq!(Ring::new(vec![], 4).addr(0), None);
    }
}

//! Sizes of device space. Addresses are in 4 KiB blocks of the whole device unless a name says bytes.

use std::fmt;

/// The unit of allocation, of checksums and of every aligned transfer, in bytes.
pub const BLOCK_SIZE: usize = 4096;

/// A block's address on the device, in units of [`BLOCK_SIZE`]. Block 0 holds the superblock, so 0 also says "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct BlockAddr(pub u64);

impl BlockAddr {
    pub const NONE: BlockAddr = BlockAddr(0);
    /// The end of the address space: further on an address in bytes would be no `u64`.
    pub const LIMIT: BlockAddr = BlockAddr(u64::MAX / BLOCK_SIZE as u64);

    pub fn bytes(self) -> u64 {
        self.0 * BLOCK_SIZE as u64
    }

    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for BlockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// Index of a chunk (the large fixed unit of device space; its size is in the superblock).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct ChunkIndex(pub u32);

/// A run of device blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BlockRange {
    pub start: BlockAddr,
    pub len_blocks: u32,
}

impl BlockRange {
    pub fn new(start: u64, len_blocks: u32) -> Self {
        BlockRange { start: BlockAddr(start), len_blocks }
    }

    /// First block after the run; `None` when the run would pass the end of the address space.
    pub fn end(self) -> Option<BlockAddr> {
        let end = self.start.0.checked_add(u64::from(self.len_blocks)).map(BlockAddr);
        end.filter(|end| *end <= BlockAddr::LIMIT)
    }

    pub fn len_bytes(self) -> usize {
        self.len_blocks as usize * BLOCK_SIZE
    }
}

//! File content on its way to the device.
//!
//! ```text
//!   write() -> dirty (one copy, changed in place) -> flying (frozen, in data frames) -> extents, in one transaction
//!                                                                                        with size and times
//! ```
//! Invariants: a block is in at most one place of `dirty`; what is in `dirty` is newer than what is in a flight, a later
//! flight newer than an earlier one, and all newer than the device. Flights of a file begin in ascending order of
//! blocks and are committed in the order of their numbers. `pending` is there exactly while there is something dirty or
//! flying. A block moves from dirty to flying at any time, but from flying to the device only under the exclusive inode
//! lock, and not at all while `holds` is counted (truncation and deletion hold).

use std::collections::VecDeque;

use vellum_base::{BLOCK_SIZE, DmaSlice};
use vellum_format::item::MAX_INLINE;
use vellum_format::{Inode, Timestamp};
use vellum_rt::Instant;

use crate::error::VfsError;

use super::extents::Mapped;
use super::runs::Runs;

/// Attributes that belong to content in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub data_version: u64,
}

impl Pending {
    /// Puts mtime, ctime and version (not the size) into the inode that is committed.
    pub fn stamp(&self, inode: &mut Inode) {
        inode.mtime = self.mtime;
        inode.ctime = inode.ctime.max(self.ctime);
        inode.data_version = inode.data_version.max(self.data_version);
    }
}

/// Blocks of one file in one data frame.
pub(crate) struct Flight {
    pub number: u64,
    pub pieces: Vec<(u64, DmaSlice)>,
    /// As of the moment it began.
    pub attrs: Pending,
    /// Nothing was dirty any more when it began: with it the file's size is reached.
    pub last: bool,
    /// Where the engine put it, or why not.
    pub landed: Option<Result<Vec<Mapped>, VfsError>>,
}

#[derive(Default)]
pub(crate) struct Buffer {
    pub dirty: Runs,
    pub flying: VecDeque<Flight>,
    pub pending: Option<Pending>,
    /// The committed file has extents. Known while something is pending.
    pub mapped: bool,
    pub dirty_since: Option<Instant>,
    pub holds: u32,
    next_flight: u64,
}

impl Buffer {
    pub fn is_clean(&self) -> bool {
        self.pending.is_none() && self.holds == 0
    }

    /// Puts the pending attributes on top of the committed ones; answers the number of blocks in memory.
    pub fn overlay(&self, inode: &mut Inode) -> u64 {
        let Some(pending) = &self.pending else { return 0 };
        inode.size = pending.size;
        pending.stamp(inode);
        (self.dirty.len_blocks() + self.flying_blocks()) as u64
    }

    pub fn flying_blocks(&self) -> usize {
        let pieces = self.flying.iter().flat_map(|f| &f.pieces);
        pieces.map(|(_, slice)| slice.len() / BLOCK_SIZE).sum()
    }

    /// The newest image of a block in memory.
    pub fn get(&self, block: u64) -> Option<&[u8]> {
        self.dirty.get(block).or_else(|| self.flying_block(block))
    }

    pub fn flying_block(&self, block: u64) -> Option<&[u8]> {
        self.flying.iter().rev().flat_map(|f| &f.pieces).find_map(|(first, slice)| {
            let at = usize::try_from(block.checked_sub(*first)?).ok()?.checked_mul(BLOCK_SIZE)?;
            slice.get(at..at + BLOCK_SIZE)
        })
    }

    pub fn contains(&self, block: u64) -> bool {
        self.get(block).is_some()
    }

    /// The first run in memory that has blocks at or after `block`: its first block and the block after its last.
    pub fn next_run(&self, block: u64) -> Option<(u64, u64)> {
        let flying = self.flying.iter().flat_map(|f| &f.pieces);
        let flying = flying.map(|(first, slice)| (*first, first + (slice.len() / BLOCK_SIZE) as u64));
        let runs = flying.filter(|(_, end)| *end > block).chain(self.dirty.next_run(block));
        runs.min_by_key(|(first, _)| (*first).max(block))
    }

    /// Gives the newest image of every block in memory within `first..end` to `f`, oldest layers first.
    pub fn for_each_in(&self, first: u64, end: u64, mut f: impl FnMut(u64, &[u8])) {
        for (start, slice) in self.flying.iter().flat_map(|f| &f.pieces) {
            for (i, image) in slice.chunks_exact(BLOCK_SIZE).enumerate() {
                let block = start + i as u64;
                if (first..end).contains(&block) {
                    f(block, image);
                }
            }
        }
        self.dirty.for_each_in(first, end, f);
    }

    /// Its content belongs into the inline item, not into blocks.
    pub fn wants_inline(&self) -> bool {
        let small = self.pending.is_some_and(|p| p.size <= MAX_INLINE as u64);
        small && !self.mapped && self.flying.is_empty() && self.holds == 0
    }

    /// Freezes up to `max_blocks` from the front. Nothing while flights are held back.
    pub fn take_off(&mut self, max_blocks: usize) -> Option<(u64, Vec<(u64, DmaSlice)>)> {
        let attrs = self.pending.filter(|_| self.holds == 0 && !self.dirty.is_empty())?;
        let pieces = self.dirty.take_front(max_blocks);
        let number = self.next_flight;
        self.next_flight += 1;
        let last = self.dirty.is_empty();
        if last {
            self.dirty_since = None;
        } else if let Some(pending) = &mut self.pending {
            // The rest is committed later: then the committed content changes once more, and so does its version.
            pending.data_version += 1;
        }
        self.flying.push_back(Flight { number, pieces: pieces.clone(), attrs, last, landed: None });
        Some((number, pieces))
    }

    /// The next flight to be committed can be.
    pub fn front_landed(&self) -> bool {
        self.flying.front().is_some_and(|f| f.landed.is_some())
    }

    /// Number that the next flight will get.
    pub fn next_flight(&self) -> u64 {
        self.next_flight
    }

    /// True when every flight below `number` is committed.
    pub fn committed_below(&self, number: u64) -> bool {
        self.flying.front().is_none_or(|f| f.number >= number)
    }

    /// The times of content in memory give way to those set by hand.
    pub fn set_mtime(&mut self, mtime: Timestamp) {
        let attrs = self.pending.iter_mut().chain(self.flying.iter_mut().map(|f| &mut f.attrs));
        attrs.for_each(|a| a.mtime = mtime);
    }

    /// Drops `pending` when nothing is left that it belongs to.
    pub fn settle(&mut self) {
        if self.dirty.is_empty() && self.flying.is_empty() {
            self.pending = None;
            self.dirty_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine moves a file in the data index when its version changes. A large file is committed frame by frame, perhaps
    /// in several epochs; when all had one version, the index said that the file was done with its first frame.
    #[test]
    fn each_flight_commits_a_version_of_its_own() {
        let mut buffer = Buffer::default();
        buffer.dirty.write(0, &[7; 3 * BLOCK_SIZE], 1);
        let time = Timestamp::default();
        buffer.pending = Some(Pending { size: 3 * BLOCK_SIZE as u64, mtime: time, ctime: time, data_version: 5 });
        while buffer.take_off(1).is_some() {}
        let versions: Vec<u64> = buffer.flying.iter().map(|f| f.attrs.data_version).collect();
        assert_eq!(versions, [5, 6, 7]);
        assert_eq!(buffer.pending.map(|p| p.data_version), Some(7), "what a reader saw last is what stays");
    }
}

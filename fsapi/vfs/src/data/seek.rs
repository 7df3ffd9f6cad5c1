//! Where a file has content and where it has holes.
//!
//! Content is what an extent holds (offline ones too), what is inline, and what is in memory. A whole block counts, zeros
//! in it or not.

use std::cell::RefCell;
use std::collections::VecDeque;

use vellum_base::{BLOCK_SIZE, Ino, KeyRange};
use vellum_client::LockGuard;
use vellum_format::Inode;
use vellum_format::item::MAX_INLINE;

use crate::error::{Result, VfsError, corrupt};
use crate::types::{FileHandle, Seek};
use crate::vfs::Vfs;

use super::buffer::Buffer;
use super::extents::{Mapped, scan_range};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Extents that one page of a scan brings.
const PAGE: usize = 256;

/// Runs of blocks with content, asked for at ascending blocks.
struct Content<'a> {
    vfs: &'a Vfs,
    guard: &'a LockGuard,
    ino: Ino,
    buffer: &'a RefCell<Buffer>,
    inline: bool,
    page: VecDeque<(u64, u64)>,
    next: Option<KeyRange>,
}

impl Content<'_> {
    /// The first run that has blocks at or after `block`; it may begin before.
    async fn run_at(&mut self, block: u64) -> Result<Option<(u64, u64)>> {
        let on_device = self.device_run_at(block).await?;
        let in_memory = self.buffer.borrow().next_run(block);
        let inline = (self.inline && block == 0).then_some((0, 1));
        let runs = [on_device, in_memory, inline].into_iter().flatten();
        Ok(runs.min_by_key(|(first, _)| (*first).max(block)))
    }

    async fn device_run_at(&mut self, block: u64) -> Result<Option<(u64, u64)>> {
        loop {
            while self.page.front().is_some_and(|(_, end)| *end <= block) {
                self.page.pop_front();
            }
            if let Some(run) = self.page.front() {
                return Ok(Some(*run));
            }
            let Some(range) = self.next.take() else { return Ok(None) };
            let found = self.vfs.client.scan(self.guard, range, PAGE).await?;
            for (key, value) in &found.items {
                let mapped = Mapped::decode(key, value).map_err(|e| corrupt(self.ino, e))?;
                let (first, end) = (mapped.first_block, mapped.end_block());
                match self.page.back_mut().filter(|last| last.1 == first) {
                    Some(last) => last.1 = end,
                    None => self.page.push_back((first, end)),
                }
            }
            self.next = found.next.map(|first| KeyRange { first, last: range.last });
        }
    }
}

impl Vfs {
    /// The first offset at or after `offset` with content, or within a hole; the end of the file counts as a hole.
    /// ENXIO when there is none, or `offset` is not before the end.
    pub async fn seek(&self, handle: FileHandle, offset: u64, what: Seek) -> Result<u64> {
        let handle = self.handles.get(handle)?;
        let held = self.lock_shared(handle.ino).await?;
        let inode = self.inode(&held.guard, handle.ino).await?;
        let mut seen = inode.clone();
        handle.file.buffer.borrow().overlay(&mut seen);
        if offset >= seen.size {
            return Err(VfsError::NXIO);
        }
        let mut block = offset / BLOCK;
        let mut content = Content {
            vfs: self,
            guard: &held.guard,
            ino: handle.ino,
            buffer: &handle.file.buffer,
            inline: is_inline(&inode),
            page: VecDeque::new(),
            next: (inode.online_blocks + inode.offline_blocks > 0).then(|| scan_range(handle.ino, block)),
        };
        match what {
            Seek::Data => {
                let run = content.run_at(block).await?;
                let found = run.map(|(first, _)| offset.max(first * BLOCK)).filter(|at| *at < seen.size);
                found.ok_or(VfsError::NXIO)
            }
            Seek::Hole => {
                while let Some((_, end)) = content.run_at(block).await?.filter(|(first, _)| *first <= block) {
                    block = end;
                    if block * BLOCK >= seen.size {
                        return Ok(seen.size);
                    }
                }
                Ok(offset.max(block * BLOCK))
            }
        }
    }
}

/// The committed content is in the inline item.
pub(crate) fn is_inline(inode: &Inode) -> bool {
    inode.online_blocks + inode.offline_blocks == 0 && (1..=MAX_INLINE as u64).contains(&inode.size)
}

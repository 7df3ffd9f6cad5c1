//! fallocate(2): room, holes, and zeros.
//!
//! A hole frees whole blocks and writes zeros into the parts of blocks at its edges, as a write would. Extents go in steps of
//! one transaction each: after a crash between two, a part of the hole is there.

use std::rc::Rc;

use vellum_base::BLOCK_SIZE;
use vellum_client::LockGuard;
use vellum_format::{Inode, Timestamp};

use crate::access::Held;
use crate::error::{Result, VfsError, restarted};
use crate::file::File;
use crate::types::{Allocate, FileHandle};
use crate::vfs::Vfs;

use super::buffer::Pending;
use super::commit::Remap;
use super::seek::is_inline;
use super::truncate::DELETE_STEP;
use super::write::MAX_FILE_SIZE;

const BLOCK: u64 = BLOCK_SIZE as u64;

impl Vfs {
    /// `kill_privileges`: the caller may not keep setuid and setgid bits of the file.
    ///
    /// Errors: EBADF, EINVAL (an empty range), EFBIG, ENOSPC, EOPNOTSUPP (the file has offline content).
    pub async fn fallocate(
        &self,
        handle: FileHandle,
        what: Allocate,
        offset: u64,
        len: u64,
        kill_privileges: bool,
    ) -> Result<()> {
        let handle = self.handles.get(handle)?;
        if !handle.flags.write {
            return Err(VfsError::BADF);
        }
        if len == 0 {
            return Err(VfsError::INVAL);
        }
        let end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_SIZE).ok_or(VfsError::FBIG)?;
        restarted(async || {
            let held = self.lock_for_change(&handle.file, kill_privileges).await?;
            match what {
                Allocate::Room { keep_size } => self.make_room(&held, &handle.file, offset, end, keep_size).await,
                Allocate::PunchHole => self.punch(&held, &handle.file, offset, end).await,
                Allocate::Zero { keep_size } => {
                    self.punch(&held, &handle.file, offset, end).await?;
                    if keep_size { Ok(()) } else { self.grow_to(&held, &handle.file, end).await }
                }
            }
        })
        .await
    }

    async fn lock_for_change(&self, file: &File, kill_privileges: bool) -> Result<Held> {
        self.wait_for_room().await?;
        self.client.reserve(DELETE_STEP * 2).await?;
        let held = self.lock_exclusive(file.ino).await?;
        let mut inode = self.inode(&held.guard, file.ino).await?;
        if inode.offline_blocks > 0 {
            return Err(VfsError::NOTSUP);
        }
        if kill_privileges {
            self.kill_privileges(&held.guard, file.ino, &mut inode, Vfs::now()).await?;
        }
        Ok(held)
    }

    async fn make_room(&self, held: &Held, file: &Rc<File>, offset: u64, end: u64, keep_size: bool) -> Result<()> {
        let inode = self.inode(&held.guard, file.ino).await?;
        let in_memory = file.buffer.borrow().dirty.len_blocks() as u64;
        // As if all that the file has were within the range: what is missing for certain.
        let missing = (end.div_ceil(BLOCK) - offset / BLOCK).saturating_sub(inode.online_blocks + in_memory);
        if missing > self.client.statfs().await?.available_blocks {
            return Err(VfsError::NOSPC);
        }
        if keep_size { Ok(()) } else { self.grow_to(held, file, end).await }
    }

    async fn grow_to(&self, held: &Held, file: &Rc<File>, size: u64) -> Result<()> {
        let mut inode = self.inode(&held.guard, file.ino).await?;
        file.buffer.borrow().overlay(&mut inode);
        if size <= inode.size {
            return Ok(());
        }
        self.resize(&held.guard, file.ino, |_| (), size, Vfs::now()).await
    }

    async fn punch(&self, held: &Held, file: &Rc<File>, start: u64, end: u64) -> Result<()> {
        let hold = self.quiesce(&held.guard, file).await;
        let done = self.punch_quiet(&held.guard, file, start, end).await;
        drop(hold);
        done
    }

    async fn punch_quiet(&self, guard: &LockGuard, file: &Rc<File>, start: u64, end: u64) -> Result<()> {
        let ino = file.ino;
        let inode = self.inode(guard, ino).await?; // after the flights
        self.begin_buffering(file, &inode);
        let mut seen = inode.clone();
        file.buffer.borrow().overlay(&mut seen);
        let end = end.min(seen.size);
        if start >= end {
            return Ok(());
        }
        let hole = Hole::of(start, end, seen.size, is_inline(&inode));
        let mut added = 0;
        for (from, to) in hole.edges.into_iter().flatten() {
            added += self.zero_part(guard, file, &inode, from, to).await?;
        }
        let dropped = {
            let mut buffer = file.buffer.borrow_mut();
            let before = buffer.dirty.len_blocks();
            buffer.dirty.remove_range(hole.first, hole.end);
            before - buffer.dirty.len_blocks()
        };
        self.count_dirty(added);
        self.count_dropped(dropped);
        self.free_hole(guard, file, &hole, seen.size, Vfs::now()).await
    }

    /// Zeros a part of one block; answers how many blocks (0 or 1) became dirty.
    async fn zero_part(&self, guard: &LockGuard, file: &File, inode: &Inode, from: u64, to: u64) -> Result<usize> {
        let block = from / BLOCK;
        let (at, until) = ((from % BLOCK) as usize, (to - block * BLOCK) as usize);
        if let Some(image) = file.buffer.borrow_mut().dirty.get_mut(block) {
            image[at..until].fill(0);
            return Ok(0);
        }
        if is_inline(inode) && block == 0 {
            let content = self.inline_content(guard, file.ino).await?;
            let mut buffer = file.buffer.borrow_mut();
            let image = buffer.dirty.block_for_write(0, 1);
            image.fill(0);
            let len = content.len().min(image.len());
            image[..len].copy_from_slice(&content[..len]);
            image[at..until].fill(0);
            return Ok(1);
        }
        let old = match inode.online_blocks > 0 {
            true => self.read_block(guard, file.ino, block).await?,
            false => None,
        };
        let Some(old) = old else { return Ok(0) }; // a hole already
        let mut buffer = file.buffer.borrow_mut();
        let image = buffer.dirty.block_for_write(block, 1);
        image.copy_from_slice(&old);
        image[at..until].fill(0);
        Ok(1)
    }

    /// Commits that the whole blocks are gone. The size is committed with it when nothing is left in memory that it would
    /// come with.
    async fn free_hole(
        &self,
        guard: &LockGuard,
        file: &Rc<File>,
        hole: &Hole,
        size: u64,
        now: Timestamp,
    ) -> Result<()> {
        let ino = file.ino;
        let dirty = !file.buffer.borrow().dirty.is_empty();
        let version = {
            let mut seen = self.inode(guard, ino).await?;
            file.buffer.borrow().overlay(&mut seen);
            seen.data_version + 1
        };
        loop {
            let mut inode = self.inode(guard, ino).await?;
            let page = match inode.online_blocks > 0 && hole.first < hole.end {
                true => self.extent_page(guard, ino, hole.first).await?,
                false => Vec::new(),
            };
            let last = page.len() < DELETE_STEP || page.iter().any(|m| m.first_block >= hole.end);
            let mut remap = Remap::new(ino, page.into_iter().filter(|m| m.first_block < hole.end));
            remap.remove(hole.first, hole.end);
            remap.count(&mut inode);
            inode.mtime = now;
            inode.ctime = now;
            inode.data_version = version;
            if !dirty {
                inode.size = size;
            }
            let mut txn = self.client.begin(guard);
            remap.write(&mut txn);
            txn.put(Inode::key(ino), inode.encode());
            txn.commit()?;
            if last {
                self.after_hole(file, &inode, size, now);
                return Ok(());
            }
        }
    }

    /// What is left in memory belongs to this size; with nothing left there is nothing pending.
    pub(crate) fn after_hole(&self, file: &File, inode: &Inode, size: u64, now: Timestamp) {
        {
            let mut buffer = file.buffer.borrow_mut();
            buffer.mapped = inode.online_blocks > 0;
            buffer.pending = Some(Pending { size, mtime: now, ctime: now, data_version: inode.data_version + 1 });
            buffer.settle();
            if buffer.pending.is_none() {
                return;
            }
        }
        self.note_dirty(file);
    }
}

/// A range as whole blocks `first..end`, and the parts of blocks beside them in bytes.
struct Hole {
    first: u64,
    end: u64,
    edges: [Option<(u64, u64)>; 2],
}

impl Hole {
    /// `end` is at most `size`. `keep_first`: block 0 is an inline item, which is rewritten and not freed.
    fn of(start: u64, end: u64, size: u64, keep_first: bool) -> Hole {
        let mut first = start.div_ceil(BLOCK);
        if keep_first && start < BLOCK {
            first = 1;
        }
        // What is past the file's end are zeros already.
        let end_block = if end == size { end.div_ceil(BLOCK) } else { end / BLOCK };
        let head = (start < first * BLOCK).then(|| (start, end.min(first * BLOCK)));
        let tail_from = (end_block.max(first)) * BLOCK;
        let tail = (tail_from < end).then_some((tail_from, end));
        Hole { first, end: end_block.max(first), edges: [head, tail] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_whole_blocks_and_two_edges() {
        let hole = |start, end, size, inline| {
            let h = Hole::of(start, end, size, inline);
            (h.first, h.end, h.edges)
        };
        assert_eq!(hole(0, 8192, 20_000, false), (0, 2, [None, None]));
        assert_eq!(hole(100, 200, 20_000, false), (1, 1, [Some((100, 200)), None]));
        assert_eq!(hole(100, 8300, 20_000, false), (1, 2, [Some((100, 4096)), Some((8192, 8300))]));
        assert_eq!(hole(4096, 9000, 9000, false), (1, 3, [None, None]), "up to the end of the file");
        assert_eq!(hole(0, 500, 500, true), (1, 1, [Some((0, 500)), None]));
        assert_eq!(hole(0, 9000, 9000, true), (1, 3, [Some((0, 4096)), None]));
        assert_eq!(hole(5000, 6000, 20_000, false), (2, 2, [Some((5000, 6000)), None]));
    }
}

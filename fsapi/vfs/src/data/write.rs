//! Writing into the buffer.

use vellum_base::{BLOCK_SIZE, DmaBuf, Ino};
use vellum_client::LockGuard;
use vellum_format::item::{self, MAX_INLINE};
use vellum_format::{Inode, ItemKind, Timestamp};

use crate::attr::without_privileges;
use crate::error::{Result, VfsError};
use crate::file::File;
use crate::handle::Handle;
use crate::types::FileHandle;
use crate::vfs::Vfs;

use super::buffer::{Buffer, Pending};
use super::runs::FRAME_BLOCKS;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Largest file.
pub(crate) const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// Images of the blocks that a write covers in part, as they are on the device; `None` where memory has newer ones.
struct Bases {
    first: Option<DmaBuf>,
    last: Option<DmaBuf>,
}

impl Vfs {
    /// Writes all of `data`; where, is ignored on an append handle. `kill_privileges`: the writer may not keep setuid
    /// and setgid bits of the file. Returns when the data is in memory; a `sync` handle: when it is durable; on a device that
    /// is almost full: when the engine has it, so that ENOSPC is this write's.
    pub async fn write(&self, handle: FileHandle, offset: u64, data: &[u8], kill_privileges: bool) -> Result<usize> {
        let handle = self.handles.get(handle)?;
        if !handle.flags.write {
            return Err(VfsError::BADF);
        }
        if data.is_empty() {
            return Ok(0);
        }
        self.wait_for_room().await?;
        self.client.reserve(8).await?;
        let tight = self.room_is_tight(data.len()).await?;
        self.write_to_buffer(&handle, offset, data, kill_privileges).await?;
        if handle.flags.sync {
            self.fsync_file(&handle.file).await?;
            handle.file.error_since(&handle.seen_error)?;
        } else if tight {
            self.clean(std::slice::from_ref(&handle.file)).await;
            handle.file.error_since(&handle.seen_error)?;
        }
        Ok(data.len())
    }

    async fn write_to_buffer(&self, handle: &Handle, offset: u64, data: &[u8], kill_privileges: bool) -> Result<()> {
        let (ino, file) = (handle.ino, &handle.file);
        let held = self.lock_exclusive(ino).await?;
        let mut inode = self.inode(&held.guard, ino).await?;
        if inode.offline_blocks > 0 {
            return Err(VfsError::NOTSUP);
        }
        let now = Vfs::now();
        if kill_privileges {
            self.kill_privileges(&held.guard, ino, &mut inode, now).await?;
        }
        let committed_size = inode.size;
        self.begin_buffering(file, &inode);
        file.buffer.borrow().overlay(&mut inode);
        let at = if handle.flags.append { inode.size } else { offset };
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= MAX_FILE_SIZE).ok_or(VfsError::FBIG)?;
        self.load_inline(&held.guard, file, &inode, committed_size, at, end).await?;
        let bases = self.bases(&held.guard, file, &inode, at, end).await?;

        // From here on nothing waits.
        let before;
        let dirty_blocks = {
            let mut buffer = file.buffer.borrow_mut();
            before = buffer.dirty.len_blocks();
            copy_in(&mut buffer, at, data, bases, inode.size);
            buffer.pending = Some(Pending {
                size: inode.size.max(end),
                mtime: now,
                ctime: now,
                data_version: inode.data_version + 1,
            });
            buffer.dirty.len_blocks()
        };
        self.became_dirty(file, dirty_blocks - before);
        drop(held);
        if dirty_blocks >= FRAME_BLOCKS {
            self.launch_full_frames(file);
        }
        Ok(())
    }

    /// What must be known of the committed file before the first block becomes dirty.
    pub(crate) fn begin_buffering(&self, file: &File, inode: &Inode) {
        let mut buffer = file.buffer.borrow_mut();
        if buffer.pending.is_none() {
            buffer.mapped = inode.online_blocks + inode.offline_blocks > 0;
        }
    }

    /// A file that grows out of its inline item takes the item's content along: it becomes block 0.
    async fn load_inline(
        &self,
        guard: &LockGuard,
        file: &File,
        inode: &Inode,
        committed_size: u64,
        at: u64,
        end: u64,
    ) -> Result<()> {
        let covered = at == 0 && end >= inode.size.min(BLOCK);
        let has_inline = !file.buffer.borrow().mapped && (1..=MAX_INLINE as u64).contains(&committed_size);
        if !has_inline || covered || file.buffer.borrow().contains(0) {
            return Ok(());
        }
        let content = self.inline_content(guard, file.ino).await?;
        self.buffer_inline(file, &content);
        Ok(())
    }

    pub(crate) fn buffer_inline(&self, file: &File, content: &[u8]) {
        let added = {
            let mut buffer = file.buffer.borrow_mut();
            let before = buffer.dirty.len_blocks();
            let block = buffer.dirty.block_for_write(0, 1);
            let len = content.len().min(block.len());
            block[..len].copy_from_slice(&content[..len]);
            block[len..].fill(0);
            buffer.dirty.len_blocks() - before
        };
        self.count_dirty(added);
    }

    /// The inline item; empty when there is none.
    pub(crate) async fn inline_content(&self, guard: &LockGuard, ino: Ino) -> Result<item::Value> {
        Ok(self.client.get(guard, inline_key(ino)).await?.unwrap_or_default())
    }

    async fn bases(&self, guard: &LockGuard, file: &File, inode: &Inode, at: u64, end: u64) -> Result<Bases> {
        let (first, last) = (at / BLOCK, (end - 1) / BLOCK);
        let first_partial = !at.is_multiple_of(BLOCK) || (first == last && end < (first + 1) * BLOCK);
        let last_partial = last > first && !end.is_multiple_of(BLOCK);
        Ok(Bases {
            first: if first_partial { self.base(guard, file, inode, first, at, end).await? } else { None },
            last: if last_partial { self.base(guard, file, inode, last, at, end).await? } else { None },
        })
    }

    /// The device's image of a block that is written in part.
    async fn base(
        &self,
        guard: &LockGuard,
        file: &File,
        inode: &Inode,
        block: u64,
        at: u64,
        end: u64,
    ) -> Result<Option<DmaBuf>> {
        let content_end = inode.size.min((block + 1) * BLOCK);
        let overwritten = at <= block * BLOCK && end >= content_end;
        let unmapped = !file.buffer.borrow().mapped;
        if block * BLOCK >= inode.size || overwritten || unmapped || file.buffer.borrow().contains(block) {
            return Ok(None); // nothing there, or newer in memory (inline content is, by now)
        }
        self.read_block(guard, file.ino, block).await
    }

    /// setuid, setgid and file capabilities do not survive a change by somebody else.
    pub(crate) async fn kill_privileges(
        &self,
        guard: &LockGuard,
        ino: Ino,
        inode: &mut Inode,
        now: Timestamp,
    ) -> Result<()> {
        let mode = without_privileges(inode.mode);
        let capability = self.capability_keys(guard, ino, inode).await?;
        if mode == inode.mode && capability.is_empty() {
            return Ok(());
        }
        inode.mode = mode;
        inode.ctime = now;
        let mut txn = self.client.begin(guard);
        capability.into_iter().for_each(|key| txn.delete(key));
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        Ok(())
    }
}

pub(crate) fn inline_key(ino: Ino) -> vellum_base::Key {
    vellum_base::Key::fs(ino, ItemKind::Inline as u8, 0, 0, 0)
}

fn copy_in(buffer: &mut Buffer, at: u64, data: &[u8], bases: Bases, size: u64) {
    // Memory taken ahead doubles as the file grows, up to a frame. A write within the file takes none.
    let growth = if at + BLOCK > size { at.div_ceil(BLOCK).clamp(1, FRAME_BLOCKS as u64) as usize } else { 1 };
    let (mut pos, mut rest) = (at, data);
    let within = (pos % BLOCK) as usize;
    if within != 0 || rest.len() < BLOCK_SIZE {
        let now = rest.len().min(BLOCK_SIZE - within);
        patch(buffer, pos / BLOCK, within, &rest[..now], bases.first, growth);
        pos += now as u64;
        rest = &rest[now..];
    }
    let whole = rest.len() / BLOCK_SIZE * BLOCK_SIZE;
    buffer.dirty.write(pos / BLOCK, &rest[..whole], growth);
    if whole < rest.len() {
        patch(buffer, pos / BLOCK + (whole / BLOCK_SIZE) as u64, 0, &rest[whole..], bases.last, growth);
    }
}

/// Changes a part of a block.
fn patch(buffer: &mut Buffer, block: u64, within: usize, data: &[u8], base: Option<DmaBuf>, growth: usize) {
    let Buffer { dirty, flying, .. } = buffer;
    if !dirty.contains(block) {
        let in_flight = flying.iter().rev().flat_map(|f| &f.pieces).find_map(|(first, slice)| {
            let at = usize::try_from(block.checked_sub(*first)?).ok()?.checked_mul(BLOCK_SIZE)?;
            slice.get(at..at + BLOCK_SIZE)
        });
        let image = dirty.block_for_write(block, growth);
        match (in_flight, base.as_deref()) {
            (Some(old), _) | (None, Some(old)) => image.copy_from_slice(old),
            (None, None) => {
                image[..within].fill(0);
                image[within + data.len()..].fill(0);
            }
        }
    }
    if let Some(image) = dirty.get_mut(block) {
        image[within..within + data.len()].copy_from_slice(data);
    }
}

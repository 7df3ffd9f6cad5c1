//! Reading content: memory over device over zeros.

use std::rc::Rc;

use vellum_base::mutant::{self, Mutant};
use vellum_base::{BLOCK_SIZE, DmaBuf, DmaSlice, Ino, crc32c};
use vellum_client::LockGuard;
use vellum_format::Inode;
use vellum_format::item::MAX_INLINE;
use vellum_rt::{self as rt, Class};
use vellum_wire::FilePart;

use crate::error::{Result, VfsError};
use crate::handle::Handle;
use crate::types::FileHandle;
use crate::vfs::Vfs;

use super::extents::Mapped;
use super::read_ahead::{Coming, Found};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Most bytes that one read answers.
const MAX_READ: u64 = 8 << 20;

impl Vfs {
    /// Up to `len` bytes from `offset`; less only at the end of the file. Every block from the device is verified.
    pub async fn read(&self, handle: FileHandle, offset: u64, len: usize) -> Result<Vec<DmaSlice>> {
        let handle = self.handles.get(handle)?;
        if !handle.flags.read {
            return Err(VfsError::BADF);
        }
        handle.was_read.set(true);
        loop {
            let held = self.lock_shared(handle.ino).await?;
            let (inode, seen) = self.content_inode(&held.guard, &handle).await?;
            let end = seen.size.min(offset.saturating_add((len as u64).min(MAX_READ)));
            if offset >= end {
                return Ok(Vec::new());
            }
            match handle.read_ahead.take(offset, end, seen.data_version) {
                Found::Ready(parts) => {
                    self.read_next(&handle, seen.size);
                    return Ok(parts);
                }
                Found::Coming => {
                    drop(held); // a writer may wait for it, and who reads for the writer
                    handle.read_ahead.came().await;
                    continue;
                }
                Found::Missing => {}
            }
            self.handles.make_room();
            let max = self.options.read_ahead_bytes as u64;
            let ahead = handle.read_ahead.window(offset, end, max);
            let until = seen.size.min(end.max(offset.saturating_add(ahead)));
            let coming = (until > end).then(|| Coming::new(&handle, offset, until));
            let (base, all) = self.bytes_of(&held.guard, &handle, &inode, offset, until).await?;
            let asked = (offset - base) as usize..(end - base) as usize;
            handle.read_ahead.add(base, seen.data_version, all.clone(), asked.end, max);
            drop(coming);
            self.read_next(&handle, seen.size);
            return Ok(vec![all.slice(asked)]);
        }
    }

    /// The inode as it is committed, and as a reader sees it.
    async fn content_inode(&self, guard: &LockGuard, handle: &Handle) -> Result<(Inode, Inode)> {
        let inode = self.inode(guard, handle.ino).await?;
        let mut seen = inode.clone();
        handle.file.buffer.borrow().overlay(&mut seen);
        Ok((inode, seen))
    }

    /// Begins to read the next windows of a sequential reader of `size` bytes. An error is nobody's yet: who comes that far
    /// reads again.
    fn read_next(&self, handle: &Rc<Handle>, size: u64) {
        let Some(vfs) = self.rc() else { return };
        while let Some((from, until)) = handle.read_ahead.next(size, self.options.read_ahead_bytes as u64) {
            let (vfs, reader, coming) = (vfs.clone(), handle.clone(), Coming::new(handle, from, until));
            let task = rt::spawn(Class::Request, "read ahead", async move {
                let _ = vfs.read_window(&reader, from, until).await;
                drop(coming);
            });
            handle.read_ahead.add_task(task);
        }
    }

    async fn read_window(&self, handle: &Rc<Handle>, from: u64, until: u64) -> Result<()> {
        let held = self.lock_shared(handle.ino).await?;
        let (inode, seen) = self.content_inode(&held.guard, handle).await?;
        let until = until.min(seen.size);
        if from < until {
            let (base, all) = self.bytes_of(&held.guard, handle, &inode, from, until).await?;
            let max = self.options.read_ahead_bytes as u64;
            handle.read_ahead.add(base, seen.data_version, all, (from - base) as usize, max);
        }
        Ok(())
    }

    /// The bytes up to `until`, from the beginning of the block that `from` is in; with that beginning.
    async fn bytes_of(
        &self,
        guard: &LockGuard,
        handle: &Handle,
        inode: &Inode,
        from: u64,
        until: u64,
    ) -> Result<(u64, DmaSlice)> {
        let (first, end_block) = (from / BLOCK, until.div_ceil(BLOCK));
        let content = self.blocks_of(guard, handle, inode, first, end_block).await?;
        let base = first * BLOCK;
        Ok((base, content.slice(0..(until - base) as usize)))
    }

    /// The blocks `first..end` as a reader sees them. `inode` is the committed one.
    async fn blocks_of(
        &self,
        guard: &LockGuard,
        handle: &Handle,
        inode: &Inode,
        first: u64,
        end: u64,
    ) -> Result<DmaSlice> {
        let (ino, buffer) = (handle.ino, &handle.file.buffer);
        let len = (end - first) as usize * BLOCK_SIZE;
        let mapped = inode.online_blocks + inode.offline_blocks > 0;
        let mut out = if mapped && !(first..end).all(|b| buffer.borrow().contains(b)) {
            self.device_blocks(guard, ino, first, end).await?
        } else {
            DmaBuf::zeroed(len)
        };
        let inline = !mapped && first == 0 && (1..=MAX_INLINE as u64).contains(&inode.size);
        if inline && !buffer.borrow().contains(0) {
            let content = self.inline_content(guard, ino).await?;
            let len = content.len().min(BLOCK_SIZE);
            out[..len].copy_from_slice(&content[..len]);
        }
        // Under the inode lock no block leaves memory for the device, so what is not here was on the device.
        buffer.borrow().for_each_in(first, end, |block, image| {
            let at = (block - first) as usize * BLOCK_SIZE;
            out[at..at + BLOCK_SIZE].copy_from_slice(image);
        });
        Ok(out.freeze())
    }

    /// The blocks `first..end` as they are on the device, zeros where nothing is mapped.
    pub(crate) async fn device_blocks(&self, guard: &LockGuard, ino: Ino, first: u64, end: u64) -> Result<DmaBuf> {
        let extents = self.extents_in(guard, ino, first, end).await?;
        let parts: Vec<Mapped> = extents.iter().filter_map(|m| m.clip(first, end)).collect();
        if parts.iter().any(|m| m.extent.header.offline) {
            return Err(VfsError::NOTSUP); // staging is not here
        }
        let len = (end - first) as usize * BLOCK_SIZE;
        if parts.is_empty() {
            return Ok(DmaBuf::zeroed(len));
        }
        let on_device = |m: &Mapped| Some(FilePart { block: m.first_block, range: m.extent.header.blocks()? });
        let wants: Vec<FilePart> = parts.iter().filter_map(on_device).collect();
        let data = self.client.read_file_blocks(ino, &wants).await?;
        let wanted: usize = wants.iter().map(|part| part.range.len_bytes()).sum();
        if data.len() < wanted {
            return Err(VfsError::IO);
        }
        let mut rest = &data[..wanted];
        for part in &parts {
            let (now, later) = rest.split_at(part.extent.header.len_blocks as usize * BLOCK_SIZE);
            verify(ino, part, now)?;
            rest = later;
        }
        if wanted == len {
            return Ok(data); // nothing is missing, and the parts ascend
        }
        let mut out = DmaBuf::zeroed(len);
        let mut rest = &data[..wanted];
        for part in &parts {
            let (now, later) = rest.split_at(part.extent.header.len_blocks as usize * BLOCK_SIZE);
            let at = (part.first_block - first) as usize * BLOCK_SIZE;
            out[at..at + now.len()].copy_from_slice(now);
            rest = later;
        }
        Ok(out)
    }

    /// One block as it is on the device; `None` when it is a hole.
    pub(crate) async fn read_block(&self, guard: &LockGuard, ino: Ino, block: u64) -> Result<Option<DmaBuf>> {
        if self.extents_in(guard, ino, block, block + 1).await?.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.device_blocks(guard, ino, block, block + 1).await?))
    }
}

fn verify(ino: Ino, part: &Mapped, data: &[u8]) -> Result<()> {
    for (i, (block, expected)) in data.chunks_exact(BLOCK_SIZE).zip(&part.extent.checksums).enumerate() {
        let found = crc32c(block);
        if found != *expected && !mutant::active(Mutant::BelieveBadData) {
            let offset = (part.first_block + i as u64) * BLOCK;
            let place = part.extent.header.start.0 + i as u64;
            tracing::error!(%ino, offset, place, expected, found, "corrupt block of file data");
            return Err(VfsError::IO);
        }
    }
    Ok(())
}

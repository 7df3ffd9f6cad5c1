//! Changing a file's size.
//!
//! Growing commits the size. Shrinking commits, in one transaction with the size, that the extents beyond are gone and
//! that the last block has zeros past the end: for that a block in the middle is written anew first. Very many extents
//! go in several transactions; between two of them the file has its old size and a hole.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, DmaBuf, Ino};
use vellum_client::LockGuard;
use vellum_format::item::MAX_INLINE;
use vellum_format::{Inode, Timestamp};

use crate::error::{Result, VfsError};
use crate::file::File;
use crate::vfs::Vfs;

use super::commit::Remap;
use super::extents::{Mapped, place, scan_range};
use super::write::{MAX_FILE_SIZE, inline_key};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Extents that one transaction deletes.
pub(crate) const DELETE_STEP: usize = 512;

impl Vfs {
    /// Commits the inode with the new size. The exclusive inode lock is held; `inode` is the committed inode with whatever
    /// else is to change.
    pub(crate) async fn resize(
        &self,
        guard: &LockGuard,
        ino: Ino,
        changes: impl Fn(&mut Inode),
        size: u64,
        now: Timestamp,
    ) -> Result<()> {
        if size > MAX_FILE_SIZE {
            return Err(VfsError::FBIG);
        }
        let file = self.files.get_or_new(ino);
        let hold = self.quiesce(guard, &file).await;
        let done = self.resize_quiet(guard, &file, changes, size, now).await;
        drop(hold);
        self.files.forget_if_idle(&file);
        done
    }

    async fn resize_quiet(
        &self,
        guard: &LockGuard,
        file: &Rc<File>,
        changes: impl Fn(&mut Inode),
        size: u64,
        now: Timestamp,
    ) -> Result<()> {
        let ino = file.ino;
        let mut inode = self.inode(guard, ino).await?; // after the flights
        if inode.offline_blocks > 0 {
            return Err(VfsError::NOTSUP);
        }
        self.begin_buffering(file, &inode);
        let mut seen = inode.clone();
        file.buffer.borrow().overlay(&mut seen);
        let committed = inode.size;
        changes(&mut inode);
        inode.mtime = now;
        inode.ctime = now;
        inode.data_version = seen.data_version + 1;
        let new = Sized { size, committed, now };
        if size >= seen.size {
            self.grow(guard, file, inode, new).await
        } else if size <= MAX_INLINE as u64 {
            self.shrink_to_inline(guard, file, inode, new).await
        } else {
            self.shrink(guard, file, inode, new).await
        }
    }

    async fn grow(&self, guard: &LockGuard, file: &Rc<File>, mut inode: Inode, new: Sized) -> Result<()> {
        let ino = file.ino;
        let blocks = inode.online_blocks > 0;
        let inline = !blocks && (1..=MAX_INLINE as u64).contains(&new.committed);
        if inline && new.size > MAX_INLINE as u64 && file.buffer.borrow().pending.is_none() {
            // The content leaves its item: as a dirty block, with the size pending.
            let content = self.inline_content(guard, ino).await?;
            let pending = super::buffer::Pending {
                size: new.size,
                mtime: new.now,
                ctime: new.now,
                data_version: inode.data_version + 1,
            };
            self.put_inode(guard, ino, &inode)?; // the rest of what changes
            self.buffer_inline(file, &content);
            file.buffer.borrow_mut().pending = Some(pending);
            self.note_dirty(file);
            return Ok(());
        }
        if file.buffer.borrow().pending.is_some() {
            self.put_inode(guard, ino, &inode)?;
            self.pend(file, &inode, new);
        } else {
            inode.size = new.size;
            self.put_inode(guard, ino, &inode)?;
        }
        Ok(())
    }

    fn put_inode(&self, guard: &LockGuard, ino: Ino, inode: &Inode) -> Result<()> {
        let mut txn = self.client.begin(guard);
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        Ok(())
    }

    /// The size belongs to content that is still in memory.
    fn pend(&self, file: &File, inode: &Inode, new: Sized) {
        if let Some(pending) = &mut file.buffer.borrow_mut().pending {
            pending.size = new.size;
            pending.mtime = new.now;
            pending.ctime = new.now;
            pending.data_version = inode.data_version + 1; // its commit is one more change of the committed content
        }
    }

    async fn shrink_to_inline(&self, guard: &LockGuard, file: &Rc<File>, mut inode: Inode, new: Sized) -> Result<()> {
        let (ino, size) = (file.ino, new.size as usize);
        let mut content = vec![0; size];
        if size > 0 {
            let in_memory = file.buffer.borrow().get(0).map(|block| content.copy_from_slice(&block[..size]));
            if in_memory.is_none() {
                if inode.online_blocks > 0 {
                    let block = self.device_blocks(guard, ino, 0, 1).await?;
                    content.copy_from_slice(&block[..size]);
                } else {
                    let old = self.inline_content(guard, ino).await?;
                    let len = old.len().min(size);
                    content[..len].copy_from_slice(&old[..len]);
                }
            }
        }
        let rest = self.delete_extents(guard, ino, 0, &mut inode, 0).await?;
        let mut txn = self.client.begin(guard);
        let mut remap = Remap::new(ino, rest);
        remap.remove(0, u64::MAX);
        remap.count(&mut inode);
        remap.write(&mut txn);
        if size > 0 {
            txn.put(inline_key(ino), content.into());
        } else {
            txn.delete(inline_key(ino));
        }
        inode.size = new.size;
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        self.drop_dirty_from(file, 0);
        file.buffer.borrow_mut().mapped = false;
        Ok(())
    }

    async fn shrink(&self, guard: &LockGuard, file: &Rc<File>, mut inode: Inode, new: Sized) -> Result<()> {
        let ino = file.ino;
        let (last, within) = (new.size / BLOCK, (new.size % BLOCK) as usize);
        let keep_blocks = new.size.div_ceil(BLOCK);
        let mut placed = Vec::new();
        let mut zero_dirty = false;
        if within > 0 {
            let on_device = match inode.online_blocks > 0 {
                true => self.read_block(guard, ino, last).await?,
                false => None,
            };
            let dirty = file.buffer.borrow().dirty.get(last).map(|image| DmaBuf::copy_from(image, true));
            zero_dirty = on_device.is_none() && dirty.is_some();
            if let Some(old) = on_device {
                let mut image = dirty.unwrap_or(old);
                image[within..].fill(0);
                let image = image.freeze();
                let ranges = self.client.write_blocks(image.clone()).await?;
                let pieces = std::iter::once((last, &image[..]));
                placed = place(pieces, &ranges).ok_or(VfsError::IO)?.into_iter().flatten().collect::<Vec<Mapped>>();
            }
        }
        let rest = self.delete_extents(guard, ino, keep_blocks, &mut inode, last).await?;
        let mut remap = Remap::new(ino, rest);
        remap.remove(keep_blocks, u64::MAX);
        let rewritten = !placed.is_empty();
        placed.into_iter().for_each(|m| remap.insert(m));
        remap.count(&mut inode);
        let beyond_memory = {
            let buffer = file.buffer.borrow();
            let first = buffer.dirty.span().map(|(first, _)| first);
            let only_last = first == Some(last) && rewritten;
            first.is_none_or(|first| first >= keep_blocks) || only_last
        };
        // A last block that was written anew may hold newer content than the committed size knew of: the size goes with it.
        inode.size = if beyond_memory || rewritten { new.size } else { new.committed.min(new.size) };
        let mut txn = self.client.begin(guard);
        remap.write(&mut txn);
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        if rewritten {
            let before = file.buffer.borrow().dirty.len_blocks();
            file.buffer.borrow_mut().dirty.remove(last);
            self.count_dropped(before - file.buffer.borrow().dirty.len_blocks());
        }
        if zero_dirty && let Some(image) = file.buffer.borrow_mut().dirty.get_mut(last) {
            image[within..].fill(0);
        }
        self.drop_dirty_from(file, keep_blocks);
        self.pend(file, &inode, new);
        Ok(())
    }

    /// Deletes whole extents that begin at or after `from_block` in steps, until what is left fits one transaction;
    /// answers the rest of those that reach beyond `seek` (of all that end after it).
    async fn delete_extents(
        &self,
        guard: &LockGuard,
        ino: Ino,
        from_block: u64,
        inode: &mut Inode,
        seek: u64,
    ) -> Result<Vec<Mapped>> {
        if inode.online_blocks == 0 {
            return Ok(Vec::new());
        }
        loop {
            let page = self.extent_page(guard, ino, seek).await?;
            if page.len() < DELETE_STEP {
                return Ok(page);
            }
            let mut remap = Remap::new(ino, page);
            remap.remove_whole_from(from_block);
            let mut committed = self.inode(guard, ino).await?;
            remap.count(&mut committed);
            committed.data_version = committed.data_version.max(inode.data_version);
            inode.online_blocks = committed.online_blocks;
            let mut txn = self.client.begin(guard);
            remap.write(&mut txn);
            txn.put(Inode::key(ino), committed.encode());
            txn.commit()?;
        }
    }

    /// Up to [`DELETE_STEP`] extents that reach beyond the beginning of `seek`; fewer only when there are no more.
    pub(crate) async fn extent_page(&self, guard: &LockGuard, ino: Ino, seek: u64) -> Result<Vec<Mapped>> {
        let mut range = scan_range(ino, seek);
        let mut found = Vec::new();
        while found.len() < DELETE_STEP {
            let page = self.client.scan(guard, range, DELETE_STEP - found.len()).await?;
            for (key, value) in &page.items {
                found.push(Mapped::decode(key, value).map_err(|e| crate::error::corrupt(ino, e))?);
            }
            match page.next {
                Some(next) => range.first = next,
                None => break,
            }
        }
        Ok(found)
    }
}

#[derive(Clone, Copy)]
struct Sized {
    size: u64,
    /// The committed size before.
    committed: u64,
    now: Timestamp,
}

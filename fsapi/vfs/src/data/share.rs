//! Copies by reference: extents of one file get into another one, and their blocks have an owner more.
//!
//! Nothing is ever written over content in place, so whoever changes either file later gets new blocks for it. The engine
//! takes a reference for one only when the batch says the source's extent once more, as it is: so both files are locked for
//! writing, although the source does not change (its inode is not written, and no index sees it).
//!
//! Only what is durable is shared: undurable blocks have other places after a new leader. The source is written back and
//! synced first when it has to be and the range is long; a short one is copied.

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, Key};
use vellum_client::{LockGuard, is_provisional};
use vellum_format::superblock::SHARED_BLOCKS;
use vellum_format::{Inode, Value};

use crate::error::{Result, VfsError, restarted};
use crate::file::File;
use crate::handle::Handle;
use crate::ino_locks::Mode;
use crate::vfs::Vfs;

use super::commit::Remap;
use super::extents::Mapped;
use super::seek::is_inline;
use super::write::{MAX_FILE_SIZE, inline_key};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Making the source durable costs more than copying less than this.
const WORTH_A_SYNC: u64 = 1 << 20;
/// Extents of the source in one transaction; each stands in it twice.
const STEP: usize = 128;
/// Extents of the target that one transaction replaces, about.
const REPLACED: usize = 512;
const OPS: usize = 3 * STEP + 2 * REPLACED;

/// What one look at the source came to.
enum Shared {
    Bytes(u64),
    /// What is there is in memory, or not durable.
    Unsettled,
}

/// A range of two files, block for block.
#[derive(Clone, Copy)]
struct Blocks {
    from: u64,
    to: u64,
    len: u64,
}

impl Vfs {
    /// Shares as much as one transaction can from the beginning of the ranges; answers the bytes. 0: they are to be copied.
    pub(crate) async fn share(
        &self,
        (source, from_at): (&Rc<Handle>, u64),
        (target, to_at): (&Rc<Handle>, u64),
        len: u64,
        kill_privileges: bool,
    ) -> Result<u64> {
        let aligned = from_at.is_multiple_of(BLOCK) && to_at.is_multiple_of(BLOCK) && len > 0;
        if !aligned || self.client.format() < SHARED_BLOCKS {
            return Ok(0);
        }
        for settled in [false, true] {
            let once = restarted(async || {
                self.client.reserve(OPS).await?;
                let held = self.lock(&[(source.ino, Mode::Exclusive), (target.ino, Mode::Exclusive)]).await?;
                let hold = self.quiesce(&held.guard, &target.file).await;
                let ranges = (from_at, to_at, len);
                let shared = self.share_quiet(&held.guard, &source.file, &target.file, ranges, kill_privileges).await;
                drop(hold);
                shared
            });
            match once.await? {
                Shared::Bytes(bytes) => return Ok(bytes),
                Shared::Unsettled if settled || len < WORTH_A_SYNC => break,
                Shared::Unsettled => self.fsync_file(&source.file).await?,
            }
        }
        Ok(0)
    }

    async fn share_quiet(
        &self,
        guard: &LockGuard,
        source: &Rc<File>,
        target: &Rc<File>,
        (from_at, to_at, len): (u64, u64, u64),
        kill_privileges: bool,
    ) -> Result<Shared> {
        let (theirs, inode) = (self.inode(guard, source.ino).await?, self.inode(guard, target.ino).await?);
        if inode.offline_blocks > 0 {
            return Err(VfsError::NOTSUP);
        }
        let (from_size, to_size) = (seen_size(source, &theirs), seen_size(target, &inode));
        // A part of a block is shared where both files end in it: what is behind is zeros in both.
        let ends = from_at + len >= from_size && to_at + len >= to_size;
        let blocks = if ends { len.div_ceil(BLOCK) } else { len / BLOCK };
        let mut range = Blocks { from: from_at / BLOCK, to: to_at / BLOCK, len: blocks };
        let covers_inline = to_at == 0 && len >= to_size;
        if blocks == 0 || (is_inline(&inode) && !covers_inline) {
            return Ok(Shared::Bytes(0));
        }
        match source.buffer.borrow().next_run(range.from) {
            Some((first, _)) if first <= range.from => return Ok(Shared::Unsettled),
            Some((first, _)) => range.len = range.len.min(first - range.from),
            None => {}
        }
        if theirs.online_blocks == 0 {
            return Ok(Shared::Bytes(0));
        }
        let old = self.extents_in(guard, source.ino, range.from, range.from + range.len).await?;
        let run = run_of(&old, range.from, range.from + range.len);
        range.len = run.iter().map(|mapped| u64::from(mapped.extent.header.len_blocks)).sum();
        if run.first().is_some_and(|mapped| is_provisional(mapped.extent.header.start)) {
            return Ok(Shared::Unsettled);
        }
        if range.len == 0 {
            return Ok(Shared::Bytes(0));
        }
        let end = to_at + len.min(range.len * BLOCK);
        if end > MAX_FILE_SIZE {
            return Err(VfsError::FBIG);
        }
        let replaced = self.extents_in(guard, target.ino, range.to, range.to + range.len).await?;
        if let Some(first) = replaced.get(REPLACED) {
            range.len = first.first_block - range.to; // not 0: there are many before it
        }
        let (end, bytes) = match range.len * BLOCK {
            all if all < end - to_at => (to_at + all, all),
            _ => (end, end - to_at),
        };
        let pieces = run.iter().filter_map(|mapped| mapped.clip(range.from, range.from + range.len));
        let mut remap = Remap::new(target.ino, replaced.into_iter().take(REPLACED));
        pieces.for_each(|piece| remap.insert(moved(piece, range)));
        // Extents that the transaction changes are known to the engine as they were.
        let stated: BTreeMap<Key, Value> = old
            .iter()
            .filter(|mapped| mapped.first_block < range.from + range.len)
            .map(|mapped| (mapped.key(source.ino), mapped.extent.encode()))
            .filter(|(key, _)| !remap.changes(key))
            .collect();
        self.commit_shared(guard, target, (inode, kill_privileges), &remap, stated, (range, to_size.max(end))).await?;
        Ok(Shared::Bytes(bytes))
    }

    async fn commit_shared(
        &self,
        guard: &LockGuard,
        file: &Rc<File>,
        (mut inode, kill_privileges): (Inode, bool),
        remap: &Remap,
        stated: BTreeMap<Key, Value>,
        (range, size): (Blocks, u64),
    ) -> Result<()> {
        let (ino, now) = (file.ino, Vfs::now());
        if kill_privileges {
            self.kill_privileges(guard, ino, &mut inode, now).await?;
        }
        let was_inline = is_inline(&inode);
        self.begin_buffering(file, &inode);
        let mut seen = inode.clone();
        file.buffer.borrow().overlay(&mut seen);
        // From here on nothing waits.
        let end = range.to + range.len;
        let beside = {
            let dirty = &file.buffer.borrow().dirty;
            dirty.next_run(0).is_some_and(|(first, _)| first < range.to) || dirty.next_run(end).is_some()
        };
        remap.count(&mut inode);
        // The size of what is still in memory comes with it.
        inode.size = if beside { inode.size.max(size.min(end * BLOCK)) } else { size };
        inode.mtime = now;
        inode.ctime = now;
        inode.data_version = seen.data_version + 1;
        let mut txn = self.client.begin(guard);
        if was_inline {
            txn.delete(inline_key(ino));
        }
        remap.write(&mut txn);
        stated.into_iter().for_each(|(key, value)| txn.put(key, value));
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        let before = file.buffer.borrow().dirty.len_blocks();
        file.buffer.borrow_mut().dirty.remove_range(range.to, end);
        self.count_dropped(before - file.buffer.borrow().dirty.len_blocks());
        self.after_hole(file, &inode, size, now);
        Ok(())
    }
}

fn seen_size(file: &File, inode: &Inode) -> u64 {
    let mut seen = inode.clone();
    file.buffer.borrow().overlay(&mut seen);
    seen.size
}

/// The content from block `first` on, up to the first hole, or to what is offline or not durable (but where it begins so).
fn run_of(extents: &[Mapped], first: u64, end: u64) -> Vec<Mapped> {
    let mut run = Vec::<Mapped>::new();
    for mapped in extents.iter().take(STEP) {
        let at = run.last().map_or(first, Mapped::end_block);
        let unsettled = is_provisional(mapped.extent.header.start) && !run.is_empty();
        match mapped.clip(first, end).filter(|piece| piece.first_block == at) {
            Some(piece) if !piece.extent.header.offline && !unsettled => run.push(piece),
            _ => break,
        }
    }
    run
}

/// The same blocks at their place in the other file.
fn moved(piece: Mapped, range: Blocks) -> Mapped {
    Mapped { first_block: piece.first_block - range.from + range.to, ..piece }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::BlockRange;

    fn mapped(first: u64, start: u64, len: u32) -> Mapped {
        Mapped::online(first, BlockRange::new(start, len), vec![7; len as usize])
    }

    #[test]
    fn a_run_ends_at_holes_and_before_what_is_not_durable() {
        let blocks = |run: Vec<Mapped>| -> Vec<(u64, u64)> {
            run.iter().map(|m| (m.first_block, m.extent.header.start.0)).collect()
        };
        let all = [mapped(0, 100, 8), mapped(8, 300, 4), mapped(20, 400, 4)];
        assert_eq!(blocks(run_of(&all, 2, 30)), [(2, 102), (8, 300)]);
        assert_eq!(blocks(run_of(&all[2..], 18, 30)), []);
        let undurable = [mapped(0, 100, 8), mapped(8, 1 << 63, 4)];
        assert_eq!(blocks(run_of(&undurable, 0, 30)), [(0, 100)]);
        assert_eq!(blocks(run_of(&undurable[1..], 8, 30)), [(8, 1 << 63)]);
        let piece = moved(mapped(8, 300, 4), Blocks { from: 2, to: 50, len: 10 });
        assert_eq!((piece.first_block, piece.extent.header.start.0), (56, 300));
    }
}

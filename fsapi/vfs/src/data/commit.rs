//! From memory to items: what has landed on the device becomes extents, small content becomes an inline item, and the
//! attributes that belong to it go along in the same transaction.
//!
//! Everything here runs under the exclusive inode lock and a WRITE lease: the caller's guard, the guard of a release, or
//! one taken for the purpose.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use vellum_base::{Ino, Key};
use vellum_client::LockGuard;
use vellum_format::Inode;
use vellum_format::item::MAX_INLINE;
use vellum_wire::{LockMode, LockName};

use crate::error::{Result, VfsError, broken, corrupt};
use crate::file::File;
use crate::vfs::Vfs;

use super::buffer::Pending;
use super::extents::{Mapped, cut, scan_range};
use super::write::inline_key;

/// Extents that one page of a scan brings.
const EXTENT_PAGE: usize = 256;
/// Operations that a commit reserves: most files need a handful.
const COMMIT_OPS: usize = 16;

/// The extents of a range, before and after; the difference is what a transaction must change.
pub(crate) struct Remap {
    ino: Ino,
    old: BTreeMap<Key, Mapped>,
    new: BTreeMap<Key, Mapped>,
    pub online_added: u64,
    pub online_freed: u64,
    pub offline_freed: u64,
}

impl Remap {
    /// `old`: all extents that overlap what is going to change.
    pub fn new(ino: Ino, old: impl IntoIterator<Item = Mapped>) -> Remap {
        let old: BTreeMap<Key, Mapped> = old.into_iter().map(|m| (m.key(ino), m)).collect();
        Remap { ino, new: old.clone(), old, online_added: 0, online_freed: 0, offline_freed: 0 }
    }

    pub fn remove(&mut self, first: u64, end: u64) {
        let overlapping: Vec<Mapped> =
            self.new.values().filter(|m| m.first_block < end && m.end_block() > first).cloned().collect();
        let cut = cut(self.ino, &overlapping, first, end);
        self.online_freed += cut.online_freed;
        self.offline_freed += cut.offline_freed;
        cut.deletes.iter().for_each(|key| drop(self.new.remove(key)));
        cut.puts.into_iter().for_each(|m| drop(self.new.insert(m.key(self.ino), m)));
    }

    /// Removes the extents that begin at or after `first`.
    pub fn remove_whole_from(&mut self, first: u64) {
        let whole: Vec<(u64, u64)> =
            self.new.values().filter(|m| m.first_block >= first).map(|m| (m.first_block, m.end_block())).collect();
        whole.into_iter().for_each(|(first, end)| self.remove(first, end));
    }

    pub fn insert(&mut self, mapped: Mapped) {
        self.remove(mapped.first_block, mapped.end_block());
        self.online_added += u64::from(mapped.extent.header.len_blocks);
        self.new.insert(mapped.key(self.ino), mapped);
    }

    /// Counts the change into the inode.
    pub fn count(&self, inode: &mut Inode) {
        inode.online_blocks = (inode.online_blocks + self.online_added).saturating_sub(self.online_freed);
        inode.offline_blocks = inode.offline_blocks.saturating_sub(self.offline_freed);
    }

    /// The item with this key is written or deleted.
    pub fn changes(&self, key: &Key) -> bool {
        self.old.get(key) != self.new.get(key)
    }

    pub fn write(&self, txn: &mut vellum_client::Txn<'_>) {
        self.old.keys().filter(|key| !self.new.contains_key(key)).for_each(|key| txn.delete(*key));
        let changed = self.new.iter().filter(|(key, m)| self.old.get(key) != Some(m));
        changed.for_each(|(key, m)| txn.put(*key, m.extent.encode()));
    }
}

impl Vfs {
    /// The extents that overlap `first..end`, in order.
    pub(crate) async fn extents_in(&self, guard: &LockGuard, ino: Ino, first: u64, end: u64) -> Result<Vec<Mapped>> {
        let mut range = scan_range(ino, first);
        let mut found = Vec::new();
        loop {
            let page = self.client.scan(guard, range, EXTENT_PAGE.min((end - first) as usize + 1)).await?;
            for (key, value) in &page.items {
                let mapped = Mapped::decode(key, value).map_err(|e| corrupt(ino, e))?;
                if mapped.first_block >= end {
                    return Ok(found);
                }
                found.push(mapped);
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(found),
            }
        }
    }

    /// Commits the flights at the front that have landed. What fails is noted in the file.
    pub(crate) async fn commit_landed(&self, file: &Rc<File>, under: Option<&LockGuard>) -> Result<()> {
        if let Some(guard) = under {
            let _inode = self.acquire_inode(file.ino).await;
            self.commit_front(guard, file).await;
            return Ok(());
        }
        if !file.buffer.borrow().front_landed() {
            return Ok(());
        }
        let locked = async {
            self.client.reserve(COMMIT_OPS).await?;
            self.client.lock(&[(LockName::of(file.ino), LockMode::Write)]).await
        };
        // A release that runs in between commits by itself; the lease is not asked back for nothing.
        let nothing_left = file.changed.until(|| (!file.buffer.borrow().front_landed()).then_some(()));
        match first_of(nothing_left, locked).await {
            None => Ok(()),
            Some(Ok(guard)) => {
                let _inode = self.acquire_inode(file.ino).await;
                self.commit_front(&guard, file).await;
                Ok(())
            }
            Some(Err(error)) => {
                let error = VfsError::from(error);
                self.lose_landed(file, error);
                Err(error)
            }
        }
    }

    /// As [`Vfs::commit_landed`], with the exclusive inode lock held already.
    pub(crate) async fn commit_front(&self, guard: &LockGuard, file: &Rc<File>) {
        loop {
            let (landed, attrs, last) = {
                let buffer = file.buffer.borrow();
                let Some(flight) = buffer.flying.front() else { break };
                let Some(landed) = flight.landed.clone() else { break };
                (landed, flight.attrs, flight.last)
            };
            let committed = match landed {
                Ok(placed) => loop {
                    match self.commit_flight(guard, file, placed.clone(), attrs, last).await {
                        // A new leader tore an extent that was read: it is read again, as it is now.
                        Err(VfsError::RESTART) => continue,
                        other => break other,
                    }
                },
                Err(error) => Err(error),
            };
            if let Err(error) = committed {
                tracing::error!(ino = %file.ino, %error, "file data could not be written");
                file.fail(error);
            }
            self.pop_front(file);
        }
        file.buffer.borrow_mut().settle();
        file.changed.open();
        self.files.forget_if_idle(file);
    }

    fn pop_front(&self, file: &File) {
        let blocks = {
            let mut buffer = file.buffer.borrow_mut();
            let before = buffer.flying_blocks();
            buffer.flying.pop_front();
            before - buffer.flying_blocks()
        };
        self.count_gone(blocks);
    }

    /// The client is beyond help: what has landed will never be referred to.
    fn lose_landed(&self, file: &Rc<File>, error: VfsError) {
        file.fail(error);
        while file.buffer.borrow().front_landed() {
            self.pop_front(file);
        }
        file.buffer.borrow_mut().settle();
        file.changed.open();
        self.files.forget_if_idle(file);
    }

    async fn commit_flight(
        &self,
        guard: &LockGuard,
        file: &File,
        placed: Vec<Mapped>,
        attrs: Pending,
        last: bool,
    ) -> Result<()> {
        let ino = file.ino;
        let seen = self.client.seen();
        let mut inode = self.inode(guard, ino).await?;
        let had_blocks = inode.online_blocks + inode.offline_blocks > 0;
        let mut old = Vec::new();
        if had_blocks {
            let mut at = 0;
            while let Some(first) = placed.get(at) {
                // Neighbours are looked for together.
                let mut end = first.end_block();
                let start = first.first_block;
                while placed.get(at + 1).is_some_and(|m| m.first_block == end) {
                    at += 1;
                    end = placed[at].end_block();
                }
                at += 1;
                old.extend(self.extents_in(guard, ino, start, end).await?);
            }
        }
        let end_block = placed.last().map_or(0, Mapped::end_block);
        let mut remap = Remap::new(ino, old);
        placed.into_iter().for_each(|m| remap.insert(m));
        remap.count(&mut inode);
        let was_inline = !had_blocks && (1..=MAX_INLINE as u64).contains(&inode.size);
        let reached = if last { attrs.size } else { attrs.size.min(end_block * vellum_base::BLOCK_SIZE as u64) };
        inode.size = inode.size.max(reached);
        attrs.stamp(&mut inode);
        let mut txn = self.client.begin_since(guard, seen);
        if was_inline {
            txn.delete(inline_key(ino));
        }
        remap.write(&mut txn);
        txn.put(Inode::key(ino), inode.encode());
        txn.commit()?;
        file.buffer.borrow_mut().mapped = true;
        Ok(())
    }

    /// Content that is small enough goes into the inline item. What fails is noted in the file.
    pub(crate) async fn commit_inline(&self, file: &Rc<File>, under: Option<&LockGuard>) {
        let own;
        let guard = match under {
            Some(guard) => guard,
            None => {
                let locked = async {
                    self.client.reserve(COMMIT_OPS).await?;
                    self.client.lock(&[(LockName::of(file.ino), LockMode::Write)]).await
                };
                let settled = file.changed.until(|| (!file.buffer.borrow().wants_inline()).then_some(()));
                match first_of(settled, locked).await {
                    None => return,
                    Some(Ok(guard)) => {
                        own = guard;
                        &own
                    }
                    Some(Err(error)) => return self.lose_dirty(file, error.into()),
                }
            }
        };
        let _inode = self.acquire_inode(file.ino).await;
        if file.buffer.borrow().wants_inline()
            && let Err(error) = self.commit_inline_locked(guard, file).await
        {
            self.lose_dirty(file, error);
        }
    }

    async fn commit_inline_locked(&self, guard: &LockGuard, file: &Rc<File>) -> Result<()> {
        let ino = file.ino;
        let mut inode = self.inode(guard, ino).await?;
        if inode.online_blocks + inode.offline_blocks > 0 {
            return Err(broken(ino, "an inline file has blocks"));
        }
        {
            let buffer = file.buffer.borrow();
            // Nothing waited under the exclusive lock but for the inode, and that changes no buffer but by flights.
            let (Some(pending), Some(block)) = (buffer.pending, buffer.dirty.get(0)) else { return Ok(()) };
            let size = (pending.size as usize).min(MAX_INLINE);
            let mut txn = self.client.begin(guard);
            txn.put(inline_key(ino), bytes::Bytes::copy_from_slice(&block[..size]));
            inode.size = pending.size;
            pending.stamp(&mut inode);
            txn.put(Inode::key(ino), inode.encode());
            txn.commit()?;
        }
        self.drop_dirty_from(file, 0);
        file.changed.open();
        self.files.forget_if_idle(file);
        Ok(())
    }

    fn lose_dirty(&self, file: &Rc<File>, error: VfsError) {
        tracing::error!(ino = %file.ino, %error, "file data could not be written");
        file.fail(error);
        self.drop_dirty_from(file, 0);
        file.changed.open();
        self.files.forget_if_idle(file);
    }

    /// Forgets dirty blocks from `block` on.
    pub(crate) fn drop_dirty_from(&self, file: &File, block: u64) {
        let dropped = {
            let mut buffer = file.buffer.borrow_mut();
            let before = buffer.dirty.len_blocks();
            buffer.dirty.truncate(block);
            let dropped = before - buffer.dirty.len_blocks();
            buffer.settle();
            dropped
        };
        self.count_dropped(dropped);
    }

    /// Waits until everything that took off before the call is committed.
    pub(crate) async fn settle(&self, file: &Rc<File>, under: Option<&LockGuard>) {
        let through = file.buffer.borrow().next_flight();
        loop {
            let _ = self.commit_landed(file, under).await; // noted in the file
            let over = || file.buffer.borrow().committed_below(through);
            if over() {
                return;
            }
            file.changed.until(|| (over() || file.buffer.borrow().front_landed()).then_some(())).await;
        }
    }

    /// Holds new flights back and commits those that are on their way. The exclusive inode lock is held, and stays held
    /// as long as the answer lives.
    pub(crate) async fn quiesce(&self, guard: &LockGuard, file: &Rc<File>) -> super::writeback::HoldFlights {
        file.buffer.borrow_mut().holds += 1;
        let hold = super::writeback::HoldFlights(file.clone());
        while !file.buffer.borrow().flying.is_empty() {
            file.changed.until(|| file.buffer.borrow().front_landed().then_some(())).await;
            self.commit_front(guard, file).await;
        }
        hold
    }
}

/// The output of `second`, or nothing when `first` is over before it.
async fn first_of<T>(first: impl Future<Output = ()>, second: impl Future<Output = T>) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| {
        if let Poll::Ready(value) = second.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        first.as_mut().poll(cx).map(|()| None)
    })
    .await
}

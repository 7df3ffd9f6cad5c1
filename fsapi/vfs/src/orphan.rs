//! Inodes without a name.
//!
//! An orphan belongs to the client that took its last name away. As long as it has the file open there, it says so by
//! changing the inode now and then: an orphan whose `meta_seq` does not move for [`VfsOptions::orphan_scan`] times
//! [`PATIENCE`] belongs to nobody any more, and any gateway deletes it. No clocks are compared.
//!
//! Deletion goes in steps, each one transaction: extents first, from the front, then the inode with its orphan record.

use std::cell::RefCell;
use std::collections::HashMap;

use bytes::Bytes;
use vellum_base::{Bucket, Ino, Key, KeyRange, View, Zone};
use vellum_format::{Inode, ItemKind};
use vellum_rt::{self as rt, Class, Instant};

use crate::data::commit::Remap;
use crate::data::truncate::DELETE_STEP;
use crate::error::{Result, VfsError, restarted};
use crate::vfs::Vfs;

/// Scans for which an orphan must have been silent.
const PATIENCE: u32 = 6;
/// Buckets looked at in one scan; a round over all takes a few minutes, the first one is done at once.
const BUCKETS_PER_SCAN: u16 = 16;
const SCAN_PAGE: usize = 256;

/// What is known of orphans of others: the sequence seen last, and since when.
#[derive(Default)]
pub(crate) struct Orphans {
    silent_since: RefCell<HashMap<Ino, (u64, Instant)>>,
}

pub(crate) fn orphan_key(ino: Ino) -> Key {
    Key::new(Bucket(ino.bucket()), Zone::Orphan, ino.0, ItemKind::Inode as u8, 0, 0, 0)
}

fn orphans_of(bucket: u8) -> KeyRange {
    let bucket = Bucket(bucket);
    KeyRange {
        first: Key::new(bucket, Zone::Orphan, 0, 0, 0, 0, 0),
        last: Key::new(bucket, Zone::Orphan, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX),
    }
}

impl Vfs {
    pub(crate) fn start_orphan_cleaner(&self) {
        let weak = self.this.clone();
        let period = self.options.orphan_scan;
        rt::spawn(Class::Request, "orphans", async move {
            let (mut next, mut count) = (0u16, 256u16);
            loop {
                {
                    let Some(vfs) = weak.upgrade() else { return };
                    if vfs.stopped.get() {
                        return;
                    }
                    vfs.touch_own_orphans().await;
                    for bucket in next..next + count {
                        if let Err(error) = vfs.scan_orphans(bucket as u8).await {
                            tracing::debug!(%error, "orphans");
                            break;
                        }
                    }
                    next = (next + count) % 256;
                    count = BUCKETS_PER_SCAN;
                }
                rt::sleep(period).await;
            }
        })
        .detach();
    }

    /// Tells other gateways that what is open here is alive.
    async fn touch_own_orphans(&self) {
        for file in self.files.all() {
            if !file.unlinked.get() || file.opens.get() == 0 {
                continue;
            }
            let touched = async {
                self.client.reserve(2).await?;
                let held = self.lock_exclusive(file.ino).await?;
                let inode = self.inode(&held.guard, file.ino).await?;
                let mut txn = self.client.begin(&held.guard);
                txn.put(Inode::key(file.ino), inode.encode());
                txn.commit()?;
                Ok::<(), VfsError>(())
            };
            if let Err(error) = touched.await {
                tracing::warn!(ino = %file.ino, %error, "an open file without a name may be deleted");
            }
        }
    }

    async fn scan_orphans(&self, bucket: u8) -> Result<()> {
        let mut range = orphans_of(bucket);
        loop {
            let page = self.client.scan_at(range, SCAN_PAGE, View::Applied).await?;
            for (key, value) in &page.items {
                let ino = Ino(key.first());
                if self.is_forsaken(ino, value).await? {
                    self.orphans.silent_since.borrow_mut().remove(&ino);
                    restarted(async || self.reap(ino).await).await?;
                }
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(()),
            }
        }
    }

    async fn is_forsaken(&self, ino: Ino, rid: &Bytes) -> Result<bool> {
        if self.files.get(ino).is_some_and(|f| f.opens.get() > 0) {
            return Ok(false);
        }
        if rid[..] == self.client.rid().0.to_le_bytes() {
            return Ok(true); // ours, and not open: left by an earlier life, or on its way
        }
        let value = self.client.get_at(vec![Inode::key(ino)], View::Applied).await?.pop().flatten();
        let Some(seq) = value.and_then(|v| Inode::decode(&v).ok()).map(|inode| inode.meta_seq) else {
            return Ok(true);
        };
        let now = rt::now();
        let mut known = self.orphans.silent_since.borrow_mut();
        let (seen, since) = known.entry(ino).or_insert((seq, now));
        if *seen != seq {
            (*seen, *since) = (seq, now);
        }
        Ok(now.since(*since) >= self.options.orphan_scan * PATIENCE)
    }

    /// Deletes an orphan in the background.
    pub(crate) fn reap_later(&self, ino: Ino) {
        let Some(vfs) = self.rc() else { return };
        rt::spawn(Class::Request, "reap", async move {
            if let Err(error) = restarted(async || vfs.reap(ino).await).await {
                tracing::debug!(%ino, %error, "an orphan stays for the cleaner");
            }
        })
        .detach();
    }

    /// Deletes an inode without names that is not open here, step by step.
    pub(crate) async fn reap(&self, ino: Ino) -> Result<()> {
        loop {
            self.client.reserve(DELETE_STEP + 4).await?;
            let held = self.lock_exclusive(ino).await?;
            let mut inode = match self.inode(&held.guard, ino).await {
                Err(VfsError::STALE) => return self.forget_record(&held.guard, ino).await,
                other => other?,
            };
            if inode.nlink > 0 {
                return self.forget_record(&held.guard, ino).await;
            }
            let mut hold = None;
            if let Some(file) = self.files.get(ino) {
                if file.opens.get() > 0 {
                    return Ok(());
                }
                hold = Some(self.quiesce(&held.guard, &file).await);
                self.drop_dirty_from(&file, 0);
                inode = self.inode(&held.guard, ino).await?;
            }
            let page = self.extent_page(&held.guard, ino, 0).await?;
            let last = page.len() < DELETE_STEP;
            let mut txn = self.client.begin(&held.guard);
            if last {
                page.iter().for_each(|m| txn.delete(m.key(ino)));
                txn.delete(orphan_key(ino));
                txn.delete_inode(ino);
            } else {
                let mut remap = Remap::new(ino, page);
                remap.remove(0, u64::MAX);
                remap.count(&mut inode);
                remap.write(&mut txn);
                txn.put(Inode::key(ino), inode.encode());
            }
            txn.commit()?;
            if let Some(hold) = hold {
                let file = hold.0.clone();
                drop(hold);
                self.files.forget_if_idle(&file);
            }
            if last {
                return Ok(());
            }
        }
    }

    /// A record of an inode that is no orphan.
    async fn forget_record(&self, guard: &vellum_client::LockGuard, ino: Ino) -> Result<()> {
        if self.client.get(guard, orphan_key(ino)).await?.is_some() {
            let mut txn = self.client.begin(guard);
            txn.delete(orphan_key(ino));
            txn.commit()?;
        }
        Ok(())
    }
}

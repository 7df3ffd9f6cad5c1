//! Inodes without a name.
//!
//! An orphan lives as long as somebody in the cluster has it open. Who closes last deletes it: a close here, when this
//! client had taken the name away or had told the engine that the inode is open; else the one who took the last name away,
//! at once. All do it under WRITE on the inode's group, after the engine has said that nobody else has it open; so two never
//! delete the same, and none deletes what is in use. What is left by clients that died is found by the cleaner, which looks
//! at the records of orphans and tries the same.
//!
//! Why none is forgotten: who takes the name away asks who has it open only when its own change is applied; who closes
//! looks at the inode only when the engine has heard of the close. One of the two comes second, and sees both.
//!
//! Deletion goes in steps, each one transaction: extents first, from the front, then the inode with its orphan record.

use std::cell::RefCell;
use std::collections::HashMap;

use bytes::Bytes;
use vellum_base::{Bucket, Ino, Key, KeyRange, View, Zone};
use vellum_client::ClientError;
use vellum_format::{Inode, Orphan};
use vellum_rt::{self as rt, Class};

use crate::data::commit::Remap;
use crate::data::truncate::DELETE_STEP;
use crate::error::{Result, VfsError, corrupt, restarted};
use crate::file::File;
use crate::vfs::Vfs;

/// Buckets looked at in one scan; a round over all takes a few minutes, the first one is done at once.
const BUCKETS_PER_SCAN: u16 = 16;
const SCAN_PAGE: usize = 256;
/// Orphans remembered by the cleaner.
const MAX_SEEN: usize = 65_536;

/// Orphans that the cleaner has seen, and how often. One that is in use is tried at the 1st, 2nd, 4th, 8th.. sight: each try
/// takes its lease from whoever uses it.
#[derive(Default)]
pub(crate) struct Orphans {
    seen: RefCell<HashMap<Ino, u32>>,
    cleaner: RefCell<Option<rt::JoinHandle<()>>>,
}

fn orphans_of(bucket: u8) -> KeyRange {
    let bucket = Bucket(bucket);
    KeyRange {
        first: Key::new(bucket, Zone::Orphan, 0, 0, 0, 0, 0),
        last: Key::new(bucket, Zone::Orphan, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX),
    }
}

impl Vfs {
    /// The record of an inode that loses its last name here, or is made without one.
    pub(crate) fn orphan_record(&self) -> Bytes {
        let root = self.client.is_confined().then(|| self.root());
        Orphan { rid: self.client.rid(), root }.encode()
    }

    pub(crate) fn start_orphan_cleaner(&self) {
        let weak = self.this.clone();
        let period = self.options.orphan_scan;
        let cleaner = rt::spawn(Class::Request, "orphans", async move {
            let (mut next, mut count) = (0u16, 256u16);
            loop {
                {
                    let Some(vfs) = weak.upgrade() else { return };
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
        });
        *self.orphans.cleaner.borrow_mut() = Some(cleaner);
    }

    /// Ends the search, also in the middle of a question: an answer to it would come after the farewell.
    pub(crate) async fn stop_orphan_cleaner(&self) {
        let cleaner = self.orphans.cleaner.borrow_mut().take();
        if let Some(cleaner) = cleaner {
            cleaner.cancel();
            let _ = cleaner.await; // it says that it was cancelled
        }
    }

    async fn scan_orphans(&self, bucket: u8) -> Result<()> {
        let mut range = orphans_of(bucket);
        loop {
            let page = self.client.scan_at(range, SCAN_PAGE, View::Applied).await?;
            for (key, _) in &page.items {
                let ino = Ino(key.first());
                if self.is_due(ino) {
                    restarted(async || self.reap(ino).await).await?;
                }
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(()),
            }
        }
    }

    fn is_due(&self, ino: Ino) -> bool {
        if self.files.get(ino).is_some_and(|f| f.opens.get() > 0) {
            return false;
        }
        let mut seen = self.orphans.seen.borrow_mut();
        if seen.len() >= MAX_SEEN {
            seen.clear(); // they are tried sooner again
        }
        let sights = seen.entry(ino).or_default();
        *sights = sights.saturating_add(1);
        sights.is_power_of_two()
    }

    /// Nobody has the file open here any more.
    pub(crate) fn last_closed(&self, file: &File) {
        let (ino, unlinked) = (file.ino, file.unlinked.get());
        let told = self.client.inode_closed(ino);
        let Some(vfs) = self.rc().filter(|_| unlinked || told.is_some()) else { return };
        rt::spawn(Class::Request, "last close", async move {
            let result = vfs.delete_if_forsaken(ino, unlinked, told).await;
            if let Err(error) = result {
                tracing::info!(%ino, %error, "an orphan stays for the cleaner");
            }
        })
        .detach();
    }

    async fn delete_if_forsaken(
        &self,
        ino: Ino,
        unlinked: bool,
        told: Option<impl Future<Output = std::result::Result<(), ClientError>>>,
    ) -> Result<()> {
        if let Some(told) = told {
            told.await?;
        }
        if !unlinked {
            // Others may have taken its name away. The look takes no lease: most closed files have a name, and are in use.
            let value = self.client.get_at(vec![Inode::key(ino)], View::Applied).await?.pop().flatten();
            let inode = value.map(|value| Inode::decode(&value).map_err(|e| corrupt(ino, e))).transpose()?;
            if inode.is_none_or(|inode| inode.nlink > 0) {
                return Ok(());
            }
        }
        restarted(async || self.reap(ino).await).await
    }

    /// Deletes an orphan in the background.
    pub(crate) fn reap_later(&self, ino: Ino) {
        let Some(vfs) = self.rc() else { return };
        rt::spawn(Class::Request, "reap", async move {
            if let Err(error) = restarted(async || vfs.reap(ino).await).await {
                tracing::info!(%ino, %error, "an orphan stays for the cleaner");
            }
        })
        .detach();
    }

    /// Deletes an inode without names that nobody has open, step by step.
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
            if self.files.get(ino).is_some_and(|file| file.opens.get() > 0) {
                return Ok(());
            }
            if self.client.may_be_open_elsewhere(&held.guard, ino) {
                self.client.sync().await?;
                if self.client.is_open_elsewhere(&held.guard, ino).await? {
                    return Ok(()); // the last of them deletes it
                }
            }
            let mut hold = None;
            if let Some(file) = self.files.get(ino) {
                hold = Some(self.quiesce(&held.guard, &file).await);
                self.drop_dirty_from(&file, 0);
                inode = self.inode(&held.guard, ino).await?;
            }
            let page = self.extent_page(&held.guard, ino, 0).await?;
            let last = page.len() < DELETE_STEP;
            let mut txn = self.client.begin(&held.guard);
            if last {
                page.iter().for_each(|m| txn.delete(m.key(ino)));
                txn.delete(Orphan::key(ino));
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
                self.orphans.seen.borrow_mut().remove(&ino);
                return Ok(());
            }
        }
    }

    /// A record of an inode that is no orphan.
    async fn forget_record(&self, guard: &vellum_client::LockGuard, ino: Ino) -> Result<()> {
        if self.client.get(guard, Orphan::key(ino)).await?.is_some() {
            let mut txn = self.client.begin(guard);
            txn.delete(Orphan::key(ino));
            txn.commit()?;
        }
        Ok(())
    }
}

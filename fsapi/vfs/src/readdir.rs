//! Listing directories in the order in which their names were made.
//!
//! A position is that of the next entry to list: 0 is ".", 1 is "..", then the entries' own positions, which are never
//! used again. A listing may stop anywhere and go on at any time, also in another gateway.

use bytes::Bytes;
use vellum_base::{Ino, Key, KeyRange};
use vellum_client::{LockMode, LockName};
use vellum_format::{Dirent, FileKind, Inode, ItemKind};

use crate::create::FIRST_POS;
use crate::error::{Result, VfsError, corrupt};
use crate::types::{Attr, DirEntry};
use crate::vfs::Vfs;

/// Most entries that one call answers.
const MAX_ENTRIES: usize = 1024;

impl Vfs {
    /// A directory that can be listed: listing itself needs no handle.
    pub async fn opendir(&self, dir: Ino) -> Result<Attr> {
        let found = self.getattr(dir).await?;
        if found.kind() == Some(FileKind::Directory) { Ok(found) } else { Err(VfsError::NOTDIR) }
    }

    /// Up to `max` entries from `pos` on; none at the end. With `plus`, attributes of those whose lock this client holds.
    pub async fn readdir(&self, dir: Ino, pos: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        let max = max.clamp(1, MAX_ENTRIES);
        let mut entries = self.list(dir, pos, max).await?;
        if plus {
            let held: Vec<Ino> =
                entries.iter().map(|e| e.ino).filter(|i| self.client.holds(LockName::of(*i), LockMode::Read)).collect();
            self.fetch_inodes(&held).await;
            for entry in entries.iter_mut().filter(|e| !matches!(&e.name[..], b"." | b"..")) {
                if self.client.holds(LockName::of(entry.ino), LockMode::Read) {
                    entry.attr = self.getattr(entry.ino).await.ok();
                }
            }
        }
        Ok(entries)
    }

    /// Brings inodes into the client's cache, with one request for all that are missing. An error shows where one of them
    /// is used.
    async fn fetch_inodes(&self, inos: &[Ino]) {
        let leases: Vec<_> = inos.iter().map(|ino| (LockName::of(*ino), LockMode::Read)).collect();
        let keys: Vec<Key> = inos.iter().map(|ino| Inode::key(*ino)).collect();
        if let Ok(guard) = self.client.lock(&leases).await {
            let _ = self.client.get_many(&guard, &keys).await;
        }
    }

    async fn list(&self, dir: Ino, pos: u64, max: usize) -> Result<Vec<DirEntry>> {
        let held = self.lock_shared(dir).await?;
        self.directory(&held.guard, dir).await?;
        let mut entries = Vec::with_capacity(max);
        for dots in pos..FIRST_POS {
            if entries.len() < max {
                let (ino, name) = match dots {
                    0 => (dir, Bytes::from_static(b".")),
                    _ => (self.parent_of(&held.guard, dir).await.unwrap_or(dir), Bytes::from_static(b"..")),
                };
                entries.push(DirEntry { ino, kind: FileKind::Directory, name, next_pos: dots + 1, attr: None });
            }
        }
        let mut range = KeyRange {
            first: Dirent::key_by_pos(dir, pos.max(FIRST_POS)),
            last: Key::fs(dir, ItemKind::Readdir as u8, u64::MAX, u64::MAX, u8::MAX),
        };
        while entries.len() < max {
            let page = self.client.scan(&held.guard, range, max - entries.len()).await?;
            for (_, value) in &page.items {
                let dirent = Dirent::decode(value).map_err(|e| corrupt(dir, e))?;
                entries.push(DirEntry {
                    ino: dirent.ino,
                    kind: dirent.kind,
                    name: dirent.name,
                    next_pos: dirent.pos + 1,
                    attr: None,
                });
            }
            match page.next {
                Some(next) => range.first = next,
                None => break,
            }
        }
        Ok(entries)
    }
}

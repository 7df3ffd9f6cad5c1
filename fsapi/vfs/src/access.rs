//! Taking locks, and reading items under them.

use vellum_base::{Ino, Key};
use vellum_client::{ClientError, LockGuard};
use vellum_format::{Dirent, Inode, ItemKind};
use vellum_wire::{ErrorCode, LockMode, LockName};

use crate::error::{Result, VfsError, corrupt};
use crate::ino_locks::{InoLock, Mode};
use crate::vfs::Vfs;

/// Most inodes that one operation locks: both directories and both children of an exchange.
const MAX_LOCKS: usize = 4;
/// Names that share a hash are rare; more of them are read in further pages.
const DIRENT_PAGE: usize = 8;

/// The locks of an operation. The inode locks go first: whoever waits for one has its leases already.
pub(crate) struct Held {
    _inodes: [Option<InoLock>; MAX_LOCKS],
    pub guard: LockGuard,
}

impl From<ClientError> for VfsError {
    fn from(error: ClientError) -> VfsError {
        match error.code() {
            Some(ErrorCode::NoSpace) => VfsError::NOSPC,
            Some(ErrorCode::Interrupted) => VfsError::INTR,
            Some(ErrorCode::Unsupported) => VfsError::NOTSUP,
            Some(ErrorCode::Busy) => VfsError::AGAIN,
            Some(ErrorCode::Outside) if matches!(error, ClientError::Engine(_)) => VfsError::ACCES,
            Some(_) => {
                tracing::error!(%error, "the engine refused");
                VfsError::IO
            }
            None if error == ClientError::Moved => VfsError::RESTART,
            None if matches!(error, ClientError::Stopped | ClientError::Connection(_)) => VfsError::NOTCONN,
            None => {
                tracing::error!(%error, "client");
                VfsError::IO
            }
        }
    }
}

impl Vfs {
    /// Locks up to [`MAX_LOCKS`] inodes, each named once or more; the stronger mode counts. `Ino::NONE` is skipped.
    pub(crate) async fn lock(&self, wants: &[(Ino, Mode)]) -> Result<Held> {
        let mut sorted = [(Ino::NONE, Mode::Shared); MAX_LOCKS];
        let mut len = 0;
        for &(ino, mode) in wants.iter().filter(|w| w.0 != Ino::NONE) {
            if let Some(same) = sorted[..len].iter_mut().find(|s| s.0 == ino) {
                same.1 = same.1.max(mode);
            } else {
                sorted[len] = (ino, mode);
                len += 1;
            }
        }
        let sorted = &mut sorted[..len];
        sorted.sort_unstable_by_key(|s| s.0);
        let mut groups = [(LockName::Rename, LockMode::Null); MAX_LOCKS];
        for (group, &(ino, mode)) in groups.iter_mut().zip(sorted.iter()) {
            let lease = if mode == Mode::Exclusive { LockMode::Write } else { LockMode::Read };
            *group = (LockName::of(ino), lease);
        }
        let guard = self.client.lock(&groups[..len]).await?;
        let mut inodes = [const { None }; MAX_LOCKS];
        for (slot, &(ino, mode)) in inodes.iter_mut().zip(sorted.iter()) {
            *slot = Some(self.ino_locks.acquire(ino, mode).await);
        }
        Ok(Held { _inodes: inodes, guard })
    }

    pub(crate) async fn lock_shared(&self, ino: Ino) -> Result<Held> {
        self.lock(&[(ino, Mode::Shared)]).await
    }

    pub(crate) async fn lock_exclusive(&self, ino: Ino) -> Result<Held> {
        self.lock(&[(ino, Mode::Exclusive)]).await
    }

    /// The inode as committed: without what is only in this gateway's memory. ESTALE when it is gone.
    pub(crate) async fn inode(&self, guard: &LockGuard, ino: Ino) -> Result<Inode> {
        match self.client.get(guard, Inode::key(ino)).await? {
            Some(value) => Inode::decode(&value).map_err(|e| corrupt(ino, e)),
            None => Err(VfsError::STALE),
        }
    }

    /// A directory that names can be found in.
    pub(crate) async fn directory(&self, guard: &LockGuard, ino: Ino) -> Result<Inode> {
        let inode = self.inode(guard, ino).await?;
        if inode.is_dir() { Ok(inode) } else { Err(VfsError::NOTDIR) }
    }

    /// A directory that names can be added to.
    pub(crate) async fn live_directory(&self, guard: &LockGuard, ino: Ino) -> Result<Inode> {
        let inode = self.directory(guard, ino).await?;
        if inode.nlink == 0 { Err(VfsError::NOENT) } else { Ok(inode) }
    }

    pub(crate) async fn find(&self, guard: &LockGuard, dir: Ino, name: &[u8]) -> Result<Option<Dirent>> {
        let mut range = vellum_base::KeyRange {
            first: Dirent::key_by_name(dir, name, 0),
            last: Dirent::key_by_name(dir, name, u64::MAX),
        };
        loop {
            let page = self.client.scan(guard, range, DIRENT_PAGE).await?;
            for (_, value) in &page.items {
                let dirent = Dirent::decode(value).map_err(|e| corrupt(dir, e))?;
                if dirent.name == name {
                    return Ok(Some(dirent));
                }
            }
            match page.next {
                Some(next) => range.first = next,
                None => return Ok(None),
            }
        }
    }

    /// The directory that holds a directory. The root is its own parent, also one that is not the filesystem's.
    pub(crate) async fn parent_of(&self, guard: &LockGuard, dir: Ino) -> Result<Ino> {
        if dir == self.root() {
            return Ok(dir);
        }
        let range = vellum_base::KeyRange {
            first: Key::fs(dir, ItemKind::Backref as u8, 0, 0, 0),
            last: Key::fs(dir, ItemKind::Backref as u8, u64::MAX, u64::MAX, u8::MAX),
        };
        let page = self.client.scan(guard, range, 1).await?;
        page.items.first().map(|(key, _)| Ino(key.second())).ok_or(VfsError::STALE)
    }
}

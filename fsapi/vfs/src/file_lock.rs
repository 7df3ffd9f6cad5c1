//! Advisory locks of files, as applications see them: flock(2), fcntl(2), open file descriptions.
//!
//! The engine keeps them, over all gateways; here its answers become errnos.

use std::future::Future;

use vellum_base::Ino;
use vellum_client::{FileLock, FileLockOutcome, FileLockSpace};

use crate::error::{Result, VfsError};
use crate::vfs::Vfs;

impl Vfs {
    /// Sets or removes a lock. Without `wait` EAGAIN when somebody is in the way; with it EDEADLK when the waiting would close
    /// a circle, and EINTR when `interrupted` resolves first. ENOLCK beyond the client's bounds.
    pub async fn set_file_lock(
        &self,
        ino: Ino,
        lock: FileLock,
        wait: bool,
        interrupted: impl Future<Output = ()>,
    ) -> Result<()> {
        if !lock.is_legal() {
            return Err(VfsError::INVAL);
        }
        match self.client.file_lock(ino, lock, wait, interrupted).await? {
            FileLockOutcome::Done => Ok(()),
            FileLockOutcome::Conflict => Err(VfsError::AGAIN),
            FileLockOutcome::Deadlock => Err(VfsError::DEADLK),
            FileLockOutcome::TooMany => Err(VfsError::NOLCK),
            FileLockOutcome::Cancelled => Err(VfsError::INTR),
            FileLockOutcome::Queued | FileLockOutcome::NotWaiting => Err(VfsError::IO),
        }
    }

    /// The first lock in the way. A process of another gateway has no number here: its pid is 0.
    pub async fn get_file_lock(&self, ino: Ino, lock: FileLock) -> Result<Option<FileLock>> {
        if !lock.is_legal() {
            return Err(VfsError::INVAL);
        }
        let found = self.client.file_lock_test(ino, lock).await?;
        Ok(found.map(|(lock, own)| FileLock { pid: if own { lock.pid } else { 0 }, ..lock }))
    }

    /// All locks of an owner on a file are given up; no message when it has none.
    pub async fn drop_file_locks(&self, ino: Ino, space: FileLockSpace, owner: u64) -> Result<()> {
        Ok(self.client.file_unlock_all(ino, space, owner).await?)
    }
}

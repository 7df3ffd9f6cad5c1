//! Which owners have fcntl locks through which open file.
//!
//! The kernel says when a process closes a file (FLUSH, with the process as owner) and when an open file ends (RELEASE).
//! Locks of open file descriptions belong to an owner that no FLUSH will ever name: they end with RELEASE, and so do all
//! owners that are noted here by then.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use vellum_base::Ino;
use vellum_vfs::{FileLock, FileLockMode, FileLockSpace};

use crate::types::{Errno, FileLockRange, LockRequest};

#[derive(Default)]
pub(super) struct LockOwners {
    by_handle: RefCell<BTreeMap<(Ino, u64), BTreeSet<u64>>>,
}

impl LockOwners {
    pub fn note(&self, ino: Ino, fh: u64, owner: u64) {
        self.by_handle.borrow_mut().entry((ino, fh)).or_default().insert(owner);
    }

    /// The process closed the file: whatever it has through any open file of this inode ends.
    pub fn flushed(&self, ino: Ino, owner: u64) {
        let mut all = self.by_handle.borrow_mut();
        let handles: Vec<_> = all.range((ino, 0)..=(ino, u64::MAX)).map(|(key, _)| *key).collect();
        for key in handles {
            if let Some(owners) = all.get_mut(&key) {
                owners.remove(&owner);
                if owners.is_empty() {
                    all.remove(&key);
                }
            }
        }
    }

    /// The open file ends: the owners that nobody flushed.
    pub fn released(&self, ino: Ino, fh: u64) -> BTreeSet<u64> {
        self.by_handle.borrow_mut().remove(&(ino, fh)).unwrap_or_default()
    }
}

/// The kernel's request in the vfs's words.
pub(super) fn wanted(request: &LockRequest) -> Result<FileLock, Errno> {
    let mode = match request.lock.kind {
        libc::F_RDLCK => FileLockMode::Shared,
        libc::F_WRLCK => FileLockMode::Exclusive,
        libc::F_UNLCK => FileLockMode::Unlocked,
        _ => return Err(Errno::EINVAL),
    };
    let whole = vellum_vfs::FILE_LOCK_MAX;
    let (space, start, end) = if request.flock {
        (FileLockSpace::Flock, 0, whole)
    } else {
        (FileLockSpace::Posix, request.lock.start, request.lock.end.min(whole))
    };
    Ok(FileLock { space, mode, owner: request.owner, pid: request.lock.pid, start, end })
}

/// GETLK's answer; nothing in the way is said by "unlocked".
pub(super) fn found(request: &LockRequest, found: Option<FileLock>) -> FileLockRange {
    match found {
        None => FileLockRange { kind: libc::F_UNLCK, ..request.lock },
        Some(lock) => {
            let kind = if lock.mode == FileLockMode::Exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            FileLockRange { start: lock.start, end: lock.end, kind, pid: lock.pid }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_ends_what_no_flush_has() {
        let owners = LockOwners::default();
        let (process, description, ino) = (1, 2, Ino(9));
        owners.note(ino, 5, process);
        owners.note(ino, 5, description);
        owners.note(ino, 6, process);
        owners.note(Ino(8), 5, process);
        owners.flushed(ino, process);
        assert_eq!(owners.released(ino, 5), BTreeSet::from([description]));
        assert_eq!(owners.released(ino, 6), BTreeSet::new());
        assert_eq!(owners.released(Ino(8), 5), BTreeSet::from([process]), "another file");
    }
}

//! The right to use what some locks cover, while it lives.

use std::rc::Rc;

use vellum_base::Ino;
use vellum_wire::{LockMode, LockName};

use super::{Lock, LockTable};

/// What guards of one span of time share: while one of them lives, provisional block addresses that were in use then
/// can still be translated (see `data`).
/// Numbered in their order.
pub(crate) struct Era(pub u64);

pub(crate) struct Used {
    pub lock: Rc<Lock>,
    pub mode: LockMode,
    /// The guard of a release hook uses the lock without being counted.
    pub counted: bool,
}

/// Locks in use. Dropping it ends the use; the leases stay with the client.
///
/// Block ranges that were read from extents under a guard are good while that guard lives.
pub struct LockGuard {
    pub(crate) used: Vec<Used>,
    pub(crate) table: Rc<LockTable>,
    pub(crate) era: Rc<Era>,
}

impl LockGuard {
    pub fn mode(&self, name: LockName) -> LockMode {
        self.used.iter().find(|u| u.lock.name == name).map_or(LockMode::Null, |u| u.mode)
    }

    /// What it covers, in ascending order.
    pub fn names(&self) -> impl Iterator<Item = (LockName, LockMode)> + '_ {
        self.used.iter().map(|u| (u.lock.name, u.mode))
    }

    pub fn covers(&self, ino: Ino, mode: LockMode) -> bool {
        self.mode(LockName::of(ino)).covers(mode)
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        for used in &self.used {
            if used.counted {
                used.lock.used_at.set(self.table.tick());
                used.lock.drop_user(used.mode);
            }
        }
    }
}

impl std::fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.names()).finish()
    }
}

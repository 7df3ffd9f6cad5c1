//! Renaming.
//!
//! A directory that gets another parent could become its own ancestor. Such renames exclude each other, everywhere, by
//! [`LockName::Rename`], which comes before all other locks; under it the chain of parents cannot change, so that it
//! can be read step by step.

use std::collections::BTreeMap;

use vellum_base::Ino;
use vellum_client::LockGuard;
use vellum_format::{Dirent, FileKind, Inode};
use vellum_wire::{LockMode, LockName};

use crate::access::Held;
use crate::attr::{MAX_NLINK, touch_directory};
use crate::create::{add_name, put_name, remove_name};
use crate::data::truncate::DELETE_STEP;
use crate::error::{Result, VfsError, broken, restarted};
use crate::ino_locks::{InoLock, Mode};
use crate::lookup::check_name;
use crate::types::RenameMode;
use crate::vfs::Vfs;

/// Deepest directory that is followed up to the root.
const MAX_DEPTH: usize = 1 << 16;

/// One side of a rename.
struct Side<'a> {
    dir: Ino,
    name: &'a [u8],
}

/// Nobody else moves directories.
struct Alone {
    _guard: LockGuard,
    _local: InoLock,
}

/// What one pass found.
struct Found {
    held: Held,
    source: Dirent,
    target: Option<Dirent>,
}

impl Vfs {
    pub async fn rename(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        if matches!(name, b"." | b"..") || matches!(new_name, b"." | b"..") {
            return Err(VfsError::BUSY);
        }
        restarted(async || self.rename_once(from, name, to, new_name, mode).await).await
    }

    async fn rename_once(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        self.client.reserve(DELETE_STEP + 32).await?;
        let (from, to) = (Side { dir: from, name }, Side { dir: to, name: new_name });
        let mut alone = None;
        let Found { held, source, target } = loop {
            match self.lock_both(&from, &to, mode, alone.is_some()).await? {
                Some(found) => break found,
                None => alone = Some(self.rename_alone().await?),
            }
        };
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(VfsError::EXIST),
            (RenameMode::Exchange, None) => Err(VfsError::NOENT),
            (RenameMode::Exchange, Some(target)) => self.exchange(&held.guard, &from, &to, source, target).await,
            (_, target) => self.move_name(held, &from, &to, source, target).await,
        }
    }

    async fn rename_alone(&self) -> Result<Alone> {
        let guard = self.client.lock(&[(LockName::Rename, LockMode::Write)]).await?;
        // The client's locks do not exclude its own tasks. Inode 0 exists nowhere, and comes first.
        let local = self.ino_locks.acquire(Ino::NONE, Mode::Exclusive).await;
        Ok(Alone { _guard: guard, _local: local })
    }

    /// Locks both directories and what the names stand for; `None` when a directory changes its parent and this task is not
    /// alone with that.
    async fn lock_both(&self, from: &Side<'_>, to: &Side<'_>, mode: RenameMode, alone: bool) -> Result<Option<Found>> {
        let (mut src, mut dst) = (Ino::NONE, Ino::NONE);
        let mut checked = (Ino::NONE, Ino::NONE);
        loop {
            let x = Mode::Exclusive;
            let held = self.lock(&[(from.dir, x), (to.dir, x), (src, x), (dst, x)]).await?;
            self.directory(&held.guard, from.dir).await?;
            self.live_directory(&held.guard, to.dir).await?;
            let source = self.find(&held.guard, from.dir, from.name).await?.ok_or(VfsError::NOENT)?;
            let target = self.find(&held.guard, to.dir, to.name).await?;
            let target_ino = target.as_ref().map_or(Ino::NONE, |t| t.ino);
            let moves_dir = source.kind == FileKind::Directory
                || (mode == RenameMode::Exchange && target.as_ref().is_some_and(|t| t.kind == FileKind::Directory));
            let across = from.dir != to.dir && moves_dir;
            if across && !alone {
                return Ok(None);
            }
            if (source.ino, target_ino) != (src, dst) {
                (src, dst) = (source.ino, target_ino);
                continue;
            }
            if across && checked != (src, dst) {
                drop(held);
                if source.kind == FileKind::Directory && self.is_inside(to.dir, src).await? {
                    return Err(VfsError::INVAL);
                }
                if dst != Ino::NONE && mode == RenameMode::Exchange && self.is_inside(from.dir, dst).await? {
                    return Err(VfsError::INVAL);
                }
                checked = (src, dst);
                continue;
            }
            return Ok(Some(Found { held, source, target }));
        }
    }

    /// True when `dir` is `ancestor` or somewhere below it. No other lock than [`Alone`] is held.
    async fn is_inside(&self, mut dir: Ino, ancestor: Ino) -> Result<bool> {
        for _ in 0..MAX_DEPTH {
            if dir == ancestor {
                return Ok(true);
            }
            if dir == self.root() {
                return Ok(false);
            }
            let held = self.lock_shared(dir).await?;
            dir = self.parent_of(&held.guard, dir).await?;
        }
        Err(broken(dir, "directories form a loop"))
    }

    async fn move_name(
        &self,
        held: Held,
        from: &Side<'_>,
        to: &Side<'_>,
        source: Dirent,
        target: Option<Dirent>,
    ) -> Result<()> {
        let guard = &held.guard;
        let is_dir = source.kind == FileKind::Directory;
        if let Some(target) = &target {
            if target.ino == source.ino {
                return Ok(()); // two names of one inode: POSIX wants nothing to happen
            }
            match (is_dir, target.kind == FileKind::Directory) {
                (true, false) => return Err(VfsError::NOTDIR),
                (false, true) => return Err(VfsError::ISDIR),
                _ => {}
            }
        }
        let now = Vfs::now();
        let mut death = None;
        let mut dead_inode = None;
        if let Some(target) = &target {
            let inode = self.inode(guard, target.ino).await?;
            if is_dir && inode.size > 0 {
                return Err(VfsError::NOTEMPTY);
            }
            if !is_dir && inode.nlink <= 1 {
                death = Some(self.prepare_death(guard, target.ino).await?);
            }
            dead_inode = Some(self.inode(guard, target.ino).await?);
        }
        let mut dirs = Dirs::default();
        for dir in [from.dir, to.dir] {
            dirs.0.insert(dir, self.directory(guard, dir).await?);
        }
        let mut inode = self.inode(guard, source.ino).await?;
        inode.ctime = now;
        let to_dir = dirs.get(to.dir)?;
        if is_dir && from.dir != to.dir && target.is_none() && to_dir.nlink >= MAX_NLINK {
            return Err(VfsError::MLINK);
        }
        let mut txn = self.client.begin(guard);
        remove_name(&mut txn, from.dir, &source);
        let dir = dirs.get(from.dir)?;
        dir.size = dir.size.saturating_sub(1);
        dir.nlink -= u32::from(is_dir);
        touch_directory(dir, now);
        let dir = dirs.get(to.dir)?;
        dir.nlink += u32::from(is_dir);
        if let Some(target) = &target {
            remove_name(&mut txn, to.dir, target);
            dir.size = dir.size.saturating_sub(1);
            dir.nlink -= u32::from(is_dir);
        }
        add_name(&mut txn, to.dir, dir, source.ino, source.kind, to.name, now);
        match (&death, &target, &mut dead_inode) {
            (Some(death), _, Some(dead)) => self.write_death(&mut txn, death, dead, now),
            (None, Some(target), Some(_)) if is_dir => txn.delete_inode(target.ino),
            (None, Some(target), Some(other)) => {
                other.nlink -= 1;
                other.ctime = now;
                txn.put(Inode::key(target.ino), other.encode());
            }
            _ => {}
        }
        txn.put(Inode::key(source.ino), inode.encode());
        dirs.0.iter().for_each(|(ino, dir)| txn.put(Inode::key(*ino), dir.encode()));
        txn.commit()?;
        drop(held);
        if let Some(death) = death {
            self.finish_death(death);
        }
        Ok(())
    }

    /// Both names stay where they are and stand for the other's inode.
    async fn exchange(
        &self,
        guard: &LockGuard,
        from: &Side<'_>,
        to: &Side<'_>,
        source: Dirent,
        target: Dirent,
    ) -> Result<()> {
        if source.ino == target.ino {
            return Ok(());
        }
        let now = Vfs::now();
        let mut inodes = Dirs::default();
        for ino in [from.dir, to.dir, source.ino, target.ino] {
            inodes.0.insert(ino, self.inode(guard, ino).await?);
        }
        let is_dir = |d: &Dirent| u32::from(d.kind == FileKind::Directory);
        for (dir, leaves, comes) in [(from.dir, &source, &target), (to.dir, &target, &source)] {
            let dir = inodes.get(dir)?;
            dir.nlink = dir.nlink + is_dir(comes) - is_dir(leaves);
            touch_directory(dir, now);
        }
        for ino in [source.ino, target.ino] {
            inodes.get(ino)?.ctime = now;
        }
        let mut txn = self.client.begin(guard);
        remove_name(&mut txn, from.dir, &source);
        remove_name(&mut txn, to.dir, &target);
        put_name(&mut txn, from.dir, source.pos, target.ino, target.kind, &source.name);
        put_name(&mut txn, to.dir, target.pos, source.ino, source.kind, &target.name);
        inodes.0.iter().for_each(|(ino, inode)| txn.put(Inode::key(*ino), inode.encode()));
        txn.commit()?;
        Ok(())
    }
}

/// Inodes that a rename changes, each once.
#[derive(Default)]
struct Dirs(BTreeMap<Ino, Inode>);

impl Dirs {
    fn get(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.0.get_mut(&ino).ok_or(VfsError::IO)
    }
}

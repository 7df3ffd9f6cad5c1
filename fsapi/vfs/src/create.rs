//! New names of new inodes: files, directories, device nodes, symlinks.

use bytes::Bytes;
use vellum_base::{Ino, Key};
use vellum_client::{LockGuard, Txn};
use vellum_format::item::PART_BYTES;
use vellum_format::{Dirent, FileKind, Inode, ItemKind, Timestamp};

use crate::access::Held;
use crate::acl::Inherited;
use crate::attr::{MAX_NLINK, S_ISGID, S_IXGRP, touch_directory};
use crate::error::{Result, VfsError};
use crate::ino_locks::Mode;
use crate::lookup::check_new_name;
use crate::types::{Attr, Caller, FileHandle, OpenFlags};
use crate::vfs::Vfs;

/// A listing begins with "." at 0 and ".." at 1.
pub(crate) const FIRST_POS: u64 = 2;
/// A name that comes and goes between looks is tried again this often.
const RETRIES: usize = 100;

/// What is to be made.
struct New<'a> {
    /// Type and permission bits.
    mode: u32,
    rdev: u32,
    target: &'a [u8],
}

enum Made {
    New(Box<(Held, Ino, Inode)>),
    /// The name is taken.
    Old(Dirent),
}

impl Vfs {
    /// Opens the file of that name, after making it when there is none.
    pub async fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, FileHandle)> {
        let new = New { mode: FileKind::Regular.mode_bits() | (mode & 0o7777), rdev: 0, target: &[] };
        for _ in 0..RETRIES {
            match self.make(caller, parent, name, &new).await? {
                Made::New(new) => {
                    let (held, ino, inode) = *new;
                    let file = self.files.get_or_new(ino);
                    self.client.inode_opened(&held.guard, ino);
                    let handle = self.handles.add(file, flags);
                    drop(held);
                    return Ok((Attr::of(ino, &inode, 0), handle));
                }
                Made::Old(_) if flags.exclusive => return Err(VfsError::EXIST),
                Made::Old(old) => match self.open(old.ino, flags).await {
                    Err(VfsError::STALE) => continue,
                    opened => return opened.map(|(handle, attr)| (attr, handle)),
                },
            }
        }
        Err(VfsError::STALE)
    }

    pub async fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let mode = FileKind::Directory.mode_bits() | (mode & 0o7777);
        self.make_only(caller, parent, name, &New { mode, rdev: 0, target: &[] }).await
    }

    /// A file, a fifo, a socket, or a device: `mode` has type and permissions.
    pub async fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr> {
        let mode = if mode & 0o170_000 == 0 { mode | FileKind::Regular.mode_bits() } else { mode };
        match FileKind::from_mode(mode) {
            None | Some(FileKind::Symlink) => return Err(VfsError::INVAL),
            Some(FileKind::Directory) => return Err(VfsError::PERM),
            Some(_) => {}
        }
        self.make_only(caller, parent, name, &New { mode: mode & 0o177_777, rdev, target: &[] }).await
    }

    /// `target` was checked.
    pub(crate) async fn make_symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        let mode = FileKind::Symlink.mode_bits() | 0o777;
        self.make_only(Caller { umask: 0, ..caller }, parent, name, &New { mode, rdev: 0, target }).await
    }

    async fn make_only(&self, caller: Caller, parent: Ino, name: &[u8], new: &New<'_>) -> Result<Attr> {
        match self.make(caller, parent, name, new).await? {
            Made::New(new) => Ok(Attr::of(new.1, &new.2, 0)),
            Made::Old(_) => Err(VfsError::EXIST),
        }
    }

    async fn make(&self, caller: Caller, parent: Ino, name: &[u8], new: &New<'_>) -> Result<Made> {
        check_new_name(name)?;
        let kind = FileKind::from_mode(new.mode).ok_or(VfsError::INVAL)?;
        let is_dir = kind == FileKind::Directory;
        self.client.reserve(16).await?;
        let ino = self.client.alloc_ino(parent, is_dir).await?;
        let held = self.lock(&[(parent, Mode::Exclusive), (ino, Mode::Exclusive)]).await?;
        let mut dir = self.directory(&held.guard, parent).await?;
        if let Some(old) = self.find(&held.guard, parent, name).await? {
            return Ok(Made::Old(old));
        }
        if dir.nlink == 0 {
            return Err(VfsError::NOENT);
        }
        if is_dir && dir.nlink >= MAX_NLINK {
            return Err(VfsError::MLINK);
        }
        let (mut inode, acls) = self.new_inode(&held.guard, (parent, &dir), caller, new.mode).await?;
        inode.size = new.target.len() as u64;
        inode.rdev = if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) { new.rdev } else { 0 };
        dir.nlink += u32::from(is_dir);
        let mut txn = self.client.begin(&held.guard);
        add_name(&mut txn, parent, &mut dir, ino, kind, name, inode.crtime);
        acls.put(&mut txn, ino, &mut inode);
        for (part, bytes) in new.target.chunks(PART_BYTES).enumerate() {
            txn.put(symlink_key(ino, part as u8), Bytes::copy_from_slice(bytes));
        }
        txn.put(Inode::key(ino), inode.encode());
        txn.put(Inode::key(parent), dir.encode());
        txn.commit()?;
        Ok(Made::New(Box::new((held, ino, inode))))
    }

    /// What is made in `dir` as `mode` says, with one name (a directory with two), and the ACLs that it inherits.
    pub(crate) async fn new_inode(
        &self,
        guard: &LockGuard,
        (dir_ino, dir): (Ino, &Inode),
        caller: Caller,
        mode: u32,
    ) -> Result<(Inode, Inherited)> {
        let now = Vfs::now();
        let is_dir = FileKind::from_mode(mode) == Some(FileKind::Directory);
        let (mode, acls) = self.inherit_acl(guard, (dir_ino, dir), mode, caller.umask).await?;
        let (gid, mode) = inherit(dir, caller, mode, is_dir);
        let inode = Inode {
            mode,
            nlink: if is_dir { 2 } else { 1 },
            uid: caller.uid,
            gid,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            project: dir.project,
            ..Inode::default()
        };
        Ok((inode, acls))
    }
}

/// Group and mode of what is made in `dir`.
fn inherit(dir: &Inode, caller: Caller, mode: u32, is_dir: bool) -> (u32, u32) {
    if dir.mode & S_ISGID == 0 {
        return (caller.gid, mode);
    }
    if is_dir {
        return (dir.gid, mode | S_ISGID);
    }
    // "Run as this group" is not for those who are not of it.
    let foreign = caller.uid != 0 && caller.gid != dir.gid && mode & S_IXGRP != 0;
    (dir.gid, if foreign { mode & !S_ISGID } else { mode })
}

pub(crate) fn symlink_key(ino: Ino, part: u8) -> Key {
    Key::fs(ino, ItemKind::Symlink as u8, 0, 0, part)
}

/// The three items of a name at the directory's next position. The directory's own item is the caller's to put.
pub(crate) fn add_name(
    txn: &mut Txn<'_>,
    dir_ino: Ino,
    dir: &mut Inode,
    ino: Ino,
    kind: FileKind,
    name: &[u8],
    now: Timestamp,
) {
    let pos = dir.next_pos.max(FIRST_POS);
    dir.next_pos = pos + 1;
    dir.size += 1;
    touch_directory(dir, now);
    put_name(txn, dir_ino, pos, ino, kind, name);
}

pub(crate) fn put_name(txn: &mut Txn<'_>, dir: Ino, pos: u64, ino: Ino, kind: FileKind, name: &[u8]) {
    let name_bytes = Bytes::copy_from_slice(name);
    let value = Dirent { ino, pos, kind, name: name_bytes.clone() }.encode();
    txn.put(Dirent::key_by_name(dir, name, pos), value.clone());
    txn.put(Dirent::key_by_pos(dir, pos), value);
    txn.put(Dirent::key_backref(ino, dir, pos), Dirent { ino: dir, pos, kind, name: name_bytes }.encode());
}

/// Takes the three items of a name away.
pub(crate) fn remove_name(txn: &mut Txn<'_>, dir: Ino, dirent: &Dirent) {
    txn.delete(Dirent::key_by_name(dir, &dirent.name, dirent.pos));
    txn.delete(Dirent::key_by_pos(dir, dirent.pos));
    txn.delete(Dirent::key_backref(dirent.ino, dir, dirent.pos));
}

//! An in-memory filesystem on the public crate `fuser`: the ceiling that any filesystem behind FUSE can be held to.
//!
//! It keeps names and contents in hash maps under one lock each and never waits, so what its numbers show is the cost
//! of the kernel's transport and of two server threads with cloned descriptors.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    SessionACL, TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::from_secs(1);
const ROOT: u64 = 1;

struct Node {
    attr: FileAttr,
    content: Vec<u8>,
    /// Entries in creation order, so that readdir positions are stable.
    entries: BTreeMap<u64, (OsString, u64)>,
    names: HashMap<OsString, u64>,
    next_pos: u64,
}

struct Tree {
    nodes: HashMap<u64, Node>,
    next_ino: u64,
}

impl Tree {
    fn find(&self, dir: u64, name: &OsStr) -> Option<u64> {
        let node = self.nodes.get(&dir)?;
        Some(node.entries.get(node.names.get(name)?)?.1)
    }

    fn insert(&mut self, dir: u64, name: &OsStr, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.next_pos += 1;
            node.entries.insert(node.next_pos, (name.to_owned(), ino));
            node.names.insert(name.to_owned(), node.next_pos);
        }
    }

    fn remove(&mut self, dir: u64, name: &OsStr) -> Option<u64> {
        let node = self.nodes.get_mut(&dir)?;
        let pos = node.names.remove(name)?;
        node.entries.remove(&pos).map(|(_, ino)| ino)
    }

    fn make(&mut self, dir: u64, name: &OsStr, kind: FileType, mode: u32, req: &Request) -> FileAttr {
        self.next_ino += 1;
        let ino = self.next_ino;
        let attr = attr(ino, kind, mode, req.uid(), req.gid());
        self.nodes.insert(ino, Node::new(attr));
        self.insert(dir, name, ino);
        attr
    }
}

impl Node {
    fn new(attr: FileAttr) -> Node {
        Node { attr, content: Vec::new(), entries: BTreeMap::new(), names: HashMap::new(), next_pos: 0 }
    }
}

fn attr(ino: u64, kind: FileType, mode: u32, uid: u32, gid: u32) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: UNIX_EPOCH,
        kind,
        perm: (mode & 0o7777) as u16,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The filesystem. See the module's description.
pub struct MemFs {
    tree: Mutex<Tree>,
}

impl MemFs {
    fn new() -> MemFs {
        let mut nodes = HashMap::new();
        nodes.insert(ROOT, Node::new(attr(ROOT, FileType::Directory, 0o755, 0, 0)));
        MemFs { tree: Mutex::new(Tree { nodes, next_ino: ROOT }) }
    }

    fn tree(&self) -> std::sync::MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Mounts a fresh one at `dir` with two server threads. It is unmounted when the session is dropped.
pub fn mount(dir: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("memfs".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    config.clone_fd = true;
    fuser::spawn_mount(MemFs::new(), dir, &config)
}

impl Filesystem for MemFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The same bargain as Vellum's mount: large writes, entries with attributes, no write-back cache.
        let _ = config.set_max_write(1 << 20);
        for wanted in
            [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO, InitFlags::FUSE_PARALLEL_DIROPS]
        {
            let _ = config.add_capabilities(wanted);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.tree();
        match tree.find(parent.0, name).and_then(|ino| tree.nodes.get(&ino)) {
            Some(node) => reply.entry(&TTL, &node.attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree().nodes.get(&ino.0) {
            Some(node) => reply.attr(&TTL, &node.attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree();
        let Some(node) = tree.nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        if let Some(mode) = mode {
            node.attr.perm = (mode & 0o7777) as u16;
        }
        node.attr.uid = uid.unwrap_or(node.attr.uid);
        node.attr.gid = gid.unwrap_or(node.attr.gid);
        if let Some(size) = size {
            node.content.resize(size as usize, 0);
            node.attr.size = size;
        }
        reply.attr(&TTL, &node.attr);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let attr = self.tree().make(parent.0, name, FileType::Directory, mode, req);
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let mut tree = self.tree();
        let mut attr = tree.make(parent.0, name, FileType::Symlink, 0o777, req);
        if let Some(node) = tree.nodes.get_mut(&attr.ino.0) {
            node.content = target.as_os_str().as_bytes().to_vec();
            node.attr.size = node.content.len() as u64;
            attr = node.attr;
        }
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree().nodes.get(&ino.0) {
            Some(node) => reply.data(&node.content),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut tree = self.tree();
        match tree.remove(parent.0, name) {
            Some(ino) => {
                tree.nodes.remove(&ino);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(req, parent, name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut tree = self.tree();
        let Some(ino) = tree.remove(parent.0, name) else { return reply.error(Errno::ENOENT) };
        if let Some(replaced) = tree.remove(newparent.0, newname) {
            tree.nodes.remove(&replaced);
        }
        tree.insert(newparent.0, newname, ino);
        reply.ok();
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let attr = self.tree().make(parent.0, name, FileType::RegularFile, mode, req);
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree().nodes.get(&ino.0) {
            Some(node) => {
                let start = (offset as usize).min(node.content.len());
                let end = (start + size as usize).min(node.content.len());
                reply.data(&node.content[start..end]);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut tree = self.tree();
        let Some(node) = tree.nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        let end = offset as usize + data.len();
        if node.content.len() < end {
            node.content.resize(end, 0);
            node.attr.size = end as u64;
            node.attr.blocks = node.attr.size.div_ceil(512);
        }
        node.content[offset as usize..end].copy_from_slice(data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = self.tree();
        let Some(node) = tree.nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        for (pos, (name, child)) in node.entries.range(offset + 1..) {
            let Some(child) = tree.nodes.get(child) else { continue };
            if reply.add(child.attr.ino, *pos, child.attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let tree = self.tree();
        let Some(node) = tree.nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        for (pos, (name, child)) in node.entries.range(offset + 1..) {
            let Some(child) = tree.nodes.get(child) else { continue };
            if reply.add(child.attr.ino, *pos, name, &TTL, &child.attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}

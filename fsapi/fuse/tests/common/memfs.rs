//! The filesystem in memory: plain maps, one thread, no permission checks. Reading a file whose name begins with
//! "wait" waits until the file is no longer empty, as for data that an archive must bring back.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vellum_base::DmaBuf;
use vellum_fuse::*;
use vellum_rt as rt;

const ROOT: u64 = 1;

struct Node {
    attr: Attr,
    content: Vec<u8>,
    target: Vec<u8>,
    entries: BTreeMap<u64, (Vec<u8>, u64)>,
    names: HashMap<Vec<u8>, u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    waits: bool,
}

/// What a test wants to see from outside.
#[derive(Default)]
pub struct Watch {
    /// Lookups that the kernel holds, over all nodes but the root.
    pub lookups: AtomicU64,
    pub parked: AtomicU64,
    pub dropped: AtomicU64,
    pub lookup_calls: AtomicU64,
}

pub struct MemFs {
    nodes: RefCell<HashMap<u64, Node>>,
    next: Cell<u64>,
    pub watch: Arc<Watch>,
    pub ttl: Duration,
    grown: Rc<rt::local::Notify>,
}

/// Counts a parked read that was dropped without an answer.
struct Parked(Arc<Watch>, bool);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl MemFs {
    pub fn new(watch: Arc<Watch>) -> MemFs {
        let fs = MemFs {
            nodes: RefCell::default(),
            next: Cell::new(ROOT),
            watch,
            ttl: Duration::from_secs(1),
            grown: Rc::new(rt::local::Notify::new()),
        };
        fs.insert(ROOT, libc::S_IFDIR | 0o755, 0, 0);
        fs
    }

    fn insert(&self, ino: u64, mode: u32, uid: u32, gid: u32) -> Attr {
        let now = rt::wall_clock();
        let now = Time { secs: now.secs, nanos: now.nanos };
        let nlink = if mode & libc::S_IFMT == libc::S_IFDIR { 2 } else { 1 };
        let (atime, mtime, ctime) = (now, now, now);
        let attr = Attr { ino, atime, mtime, ctime, mode, nlink, uid, gid, blksize: 4096, ..Attr::default() };
        let node = Node {
            attr,
            content: Vec::new(),
            target: Vec::new(),
            entries: BTreeMap::new(),
            names: HashMap::new(),
            xattrs: BTreeMap::new(),
            waits: false,
        };
        self.nodes.borrow_mut().insert(ino, node);
        attr
    }

    fn add_name(&self, dir: u64, name: &[u8], ino: u64) -> Result<()> {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.get_mut(&dir).ok_or(Errno::ENOENT)?;
        if node.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let pos = self.next.get() + 1;
        self.next.set(pos);
        node.entries.insert(pos, (name.to_vec(), ino));
        node.names.insert(name.to_vec(), pos);
        Ok(())
    }

    fn take_name(&self, dir: u64, name: &[u8]) -> Result<u64> {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.get_mut(&dir).ok_or(Errno::ENOENT)?;
        let pos = node.names.remove(name).ok_or(Errno::ENOENT)?;
        Ok(node.entries.remove(&pos).unwrap().1)
    }

    fn find(&self, dir: u64, name: &[u8]) -> Option<u64> {
        let nodes = self.nodes.borrow();
        let node = nodes.get(&dir)?;
        Some(node.entries[node.names.get(name)?].1)
    }

    fn make(&self, ctx: &Context, dir: u64, name: &[u8], mode: u32) -> Result<Entry> {
        let ino = self.next.get() + 1;
        self.next.set(ino);
        self.add_name(dir, name, ino)?;
        let attr = self.insert(ino, mode, ctx.uid, ctx.gid);
        self.with(ino, |node| node.waits = name.starts_with(b"wait"))?;
        Ok(self.entry(attr))
    }

    fn entry(&self, attr: Attr) -> Entry {
        self.watch.lookups.fetch_add(1, Ordering::SeqCst);
        Entry { nodeid: attr.ino, attr, generation: 1, entry_ttl: self.ttl, attr_ttl: self.ttl }
    }

    fn with<R>(&self, ino: u64, f: impl FnOnce(&mut Node) -> R) -> Result<R> {
        self.nodes.borrow_mut().get_mut(&ino).map(f).ok_or(Errno::ENOENT)
    }
}

impl Filesystem for MemFs {
    fn forget(&self, ino: u64, lookups: u64) {
        if ino != ROOT {
            self.watch.lookups.fetch_sub(lookups, Ordering::SeqCst);
        }
    }

    async fn lookup(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<Entry> {
        self.watch.lookup_calls.fetch_add(1, Ordering::SeqCst);
        let ino = self.find(parent, name).ok_or(Errno::ENOENT)?;
        let attr = self.with(ino, |node| node.attr)?;
        Ok(self.entry(attr))
    }

    async fn getattr(&self, _ctx: &Context, ino: u64, _fh: Option<u64>) -> Result<(Attr, Duration)> {
        Ok((self.with(ino, |node| node.attr)?, self.ttl))
    }

    async fn setattr(&self, _ctx: &Context, ino: u64, set: &SetAttr) -> Result<(Attr, Duration)> {
        let attr = self.with(ino, |node| {
            if let Some(mode) = set.mode {
                node.attr.mode = node.attr.mode & libc::S_IFMT | mode & 0o7777;
            }
            node.attr.uid = set.uid.unwrap_or(node.attr.uid);
            node.attr.gid = set.gid.unwrap_or(node.attr.gid);
            if let Some(size) = set.size {
                node.content.resize(size as usize, 0);
                node.attr.size = size;
            }
            if let Some(SetTime::At(time)) = set.mtime {
                node.attr.mtime = time;
            }
            node.attr
        })?;
        Ok((attr, self.ttl))
    }

    async fn readlink(&self, _ctx: &Context, ino: u64) -> Result<Payload> {
        self.with(ino, |node| Payload::Bytes(node.target.clone()))
    }

    async fn symlink(&self, ctx: &Context, parent: u64, name: &Name, target: &[u8]) -> Result<Entry> {
        let entry = self.make(ctx, parent, name, libc::S_IFLNK | 0o777)?;
        self.with(entry.attr.ino, |node| node.target = target.to_vec())?;
        Ok(entry)
    }

    async fn mknod(&self, ctx: &Context, p: u64, name: &Name, mode: u32, _rdev: u32, _umask: u32) -> Result<Entry> {
        self.make(ctx, p, name, mode)
    }

    async fn mkdir(&self, ctx: &Context, parent: u64, name: &Name, mode: u32, _umask: u32) -> Result<Entry> {
        self.make(ctx, parent, name, libc::S_IFDIR | mode)
    }

    async fn unlink(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<()> {
        let ino = self.take_name(parent, name)?;
        self.with(ino, |node| node.attr.nlink -= 1)
    }

    async fn rmdir(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<()> {
        let ino = self.find(parent, name).ok_or(Errno::ENOENT)?;
        if self.with(ino, |node| !node.entries.is_empty())? {
            return Err(Errno::ENOTEMPTY);
        }
        self.take_name(parent, name)?;
        Ok(())
    }

    async fn rename(&self, _ctx: &Context, from: u64, name: &Name, to: u64, new: &Name, flags: u32) -> Result<()> {
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        if flags != 0 && self.find(to, new).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = self.take_name(from, name)?;
        let _ = self.take_name(to, new);
        self.add_name(to, new, ino)
    }

    async fn link(&self, _ctx: &Context, ino: u64, parent: u64, name: &Name) -> Result<Entry> {
        self.add_name(parent, name, ino)?;
        let attr = self.with(ino, |node| {
            node.attr.nlink += 1;
            node.attr
        })?;
        Ok(self.entry(attr))
    }

    /// What waits is read directly: the kernel would see the end of an empty file by itself.
    async fn open(&self, _ctx: &Context, ino: u64, _request: &OpenRequest) -> Result<Opened> {
        Ok(Opened { direct_io: self.with(ino, |node| node.waits)?, ..Opened::default() })
    }

    async fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &Name,
        mode: u32,
        _umask: u32,
        _request: &OpenRequest,
    ) -> Result<Created> {
        Ok((self.make(ctx, parent, name, libc::S_IFREG | mode)?, Opened::default()))
    }

    async fn read(&self, _ctx: &Context, ino: u64, request: &ReadRequest) -> Result<Payload> {
        if self.with(ino, |node| node.waits && node.content.is_empty())? {
            self.watch.parked.fetch_add(1, Ordering::SeqCst);
            let mut parked = Parked(self.watch.clone(), false);
            while self.with(ino, |node| node.content.is_empty())? {
                self.grown.notified().await;
            }
            parked.1 = true;
        }
        self.with(ino, |node| {
            let start = (request.offset as usize).min(node.content.len());
            let end = (start + request.size as usize).min(node.content.len());
            Payload::Slice(DmaBuf::copy_from(&node.content[start..end], false).freeze())
        })
    }

    async fn write(&self, _ctx: &Context, ino: u64, request: WriteRequest) -> Result<u32> {
        let data = &request.data;
        self.with(ino, |node| {
            let start = request.offset as usize;
            let end = start + data.len();
            node.content.resize(node.content.len().max(end), 0);
            node.content[start..end].copy_from_slice(data);
            node.attr.size = node.content.len() as u64;
            node.attr.blocks = node.attr.size.div_ceil(512);
        })?;
        self.grown.notify_all();
        Ok(data.len() as u32)
    }

    async fn flush(&self, _ctx: &Context, _ino: u64, _fh: u64, _lock_owner: u64) -> Result<()> {
        Ok(())
    }

    async fn fsync(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> Result<()> {
        rt::sleep(Duration::from_millis(1)).await;
        Ok(())
    }

    async fn readdir(&self, _ctx: &Context, ino: u64, _fh: u64, offset: u64, list: &mut Dirents) -> Result<()> {
        if offset == 0 && !(list.push(ino, 1, 4, b".") && list.push(ino, 2, 4, b"..")) {
            return Ok(());
        }
        let nodes = self.nodes.borrow();
        let dir = nodes.get(&ino).ok_or(Errno::ENOENT)?;
        for (&pos, (name, child)) in dir.entries.range(offset.max(2) + 1..) {
            let attr = nodes[child].attr;
            let entry = Entry { nodeid: attr.ino, attr, generation: 1, entry_ttl: self.ttl, attr_ttl: self.ttl };
            if !list.push_entry(&entry, pos, name) {
                break;
            }
            if list.plus() {
                self.watch.lookups.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    async fn fsyncdir(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> Result<()> {
        Ok(())
    }

    async fn statfs(&self, _ctx: &Context, _ino: u64) -> Result<Statfs> {
        let files = self.nodes.borrow().len() as u64;
        let (blocks, bfree, bavail) = (1 << 20, 1 << 19, 1 << 18);
        Ok(Statfs { blocks, bfree, bavail, files, ffree: 1 << 20, bsize: 4096, namelen: 255 })
    }

    async fn syncfs(&self, _ctx: &Context) -> Result<()> {
        Ok(())
    }

    async fn getxattr(&self, _ctx: &Context, ino: u64, name: &Name) -> Result<Payload> {
        let value = self.with(ino, |node| node.xattrs.get(&name[..]).cloned())?;
        value.map(Payload::Bytes).ok_or(Errno::ENODATA)
    }

    async fn listxattr(&self, _ctx: &Context, ino: u64) -> Result<Payload> {
        self.with(ino, |node| Payload::Bytes(node.xattrs.keys().flat_map(|name| [name, &b"\0"[..]].concat()).collect()))
    }

    async fn setxattr(&self, _c: &Context, ino: u64, name: &Name, value: &[u8], _flags: u32, _k: bool) -> Result<()> {
        self.with(ino, |node| node.xattrs.insert(name.to_vec(), value.to_vec()))?;
        Ok(())
    }

    async fn removexattr(&self, _ctx: &Context, ino: u64, name: &Name) -> Result<()> {
        self.with(ino, |node| node.xattrs.remove(&name[..]))?.ok_or(Errno::ENODATA)?;
        Ok(())
    }
}

//! Random operations on two gateways against a plain model, with crashes in between; and many tasks at once.

mod common;
#[path = "model/holes.rs"]
mod holes;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use common::*;
use vellum_base::Ino;
use vellum_base::prng::Prng;
use vellum_client::testing::{FakeEngine, FakeOptions};
use vellum_vfs::{Attr, FileHandle, OpenFlags, RenameMode, SetAttr, Vfs, VfsError, VfsOptions, XattrMode};

type Res<T> = Result<T, VfsError>;

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    File(Vec<u8>),
    Dir(BTreeMap<String, Ino>),
    Link(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq)]
struct Node {
    kind: Kind,
    nlink: u32,
    mode: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    nodes: BTreeMap<Ino, Node>,
}

impl Model {
    fn new() -> Model {
        let root = Node { kind: Kind::Dir(BTreeMap::new()), nlink: 2, mode: 0o755, xattrs: BTreeMap::new() };
        Model { nodes: BTreeMap::from([(Ino::ROOT, root)]) }
    }

    fn dir(&self, ino: Ino) -> Res<&BTreeMap<String, Ino>> {
        match self.nodes.get(&ino).map(|n| &n.kind) {
            Some(Kind::Dir(d)) => Ok(d),
            Some(_) => Err(VfsError::NOTDIR),
            None => Err(VfsError::STALE),
        }
    }

    fn entries(&mut self, ino: Ino) -> &mut BTreeMap<String, Ino> {
        match &mut self.nodes.get_mut(&ino).unwrap().kind {
            Kind::Dir(d) => d,
            _ => unreachable!(),
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.nodes[&ino].kind, Kind::Dir(_))
    }

    fn file(&mut self, ino: Ino) -> &mut Vec<u8> {
        match &mut self.nodes.get_mut(&ino).unwrap().kind {
            Kind::File(data) => data,
            _ => unreachable!(),
        }
    }

    fn add(&mut self, dir: Ino, name: &str, ino: Ino, kind: Kind, mode: u32) {
        let is_dir = matches!(kind, Kind::Dir(_));
        let node = Node { kind, nlink: if is_dir { 2 } else { 1 }, mode, xattrs: BTreeMap::new() };
        assert!(self.nodes.insert(ino, node).is_none(), "an inode number was used twice");
        self.entries(dir).insert(name.into(), ino);
        self.nodes.get_mut(&dir).unwrap().nlink += u32::from(is_dir);
    }

    fn unlink(&mut self, dir: Ino, name: &str, open: Option<Ino>) -> Res<()> {
        let ino = *self.dir(dir)?.get(name).ok_or(VfsError::NOENT)?;
        if self.is_dir(ino) {
            return Err(VfsError::ISDIR);
        }
        self.entries(dir).remove(name);
        self.lose_name(ino, open);
        Ok(())
    }

    fn lose_name(&mut self, ino: Ino, open: Option<Ino>) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.nlink -= 1;
        if node.nlink == 0 && open != Some(ino) {
            self.nodes.remove(&ino);
        }
    }

    fn rmdir(&mut self, dir: Ino, name: &str) -> Res<()> {
        let ino = *self.dir(dir)?.get(name).ok_or(VfsError::NOENT)?;
        if !self.dir(ino)?.is_empty() {
            return Err(VfsError::NOTEMPTY);
        }
        self.entries(dir).remove(name);
        self.nodes.remove(&ino);
        self.nodes.get_mut(&dir).unwrap().nlink -= 1;
        Ok(())
    }

    fn inside(&self, dir: Ino, ancestor: Ino) -> bool {
        dir == ancestor || self.dir(ancestor).is_ok_and(|d| d.values().any(|i| self.is_dir(*i) && self.inside(dir, *i)))
    }

    fn rename(&mut self, a: Ino, an: &str, b: Ino, bn: &str, mode: RenameMode, open: Option<Ino>) -> Res<()> {
        let src = *self.dir(a)?.get(an).ok_or(VfsError::NOENT)?;
        let dst = self.dir(b)?.get(bn).copied();
        let src_dir = self.is_dir(src);
        if a != b && src_dir && self.inside(b, src) {
            return Err(VfsError::INVAL);
        }
        if let (RenameMode::Exchange, Some(dst)) = (mode, dst)
            && a != b
            && self.is_dir(dst)
            && self.inside(a, dst)
        {
            return Err(VfsError::INVAL);
        }
        match (mode, dst) {
            (RenameMode::NoReplace, Some(_)) => return Err(VfsError::EXIST),
            (RenameMode::Exchange, None) => return Err(VfsError::NOENT),
            (_, Some(dst)) if dst == src => return Ok(()),
            (RenameMode::Exchange, Some(dst)) => {
                let dst_dir = self.is_dir(dst);
                self.entries(a).insert(an.into(), dst);
                self.entries(b).insert(bn.into(), src);
                for (dir, gone, come) in [(a, src_dir, dst_dir), (b, dst_dir, src_dir)] {
                    let nlink = &mut self.nodes.get_mut(&dir).unwrap().nlink;
                    *nlink = *nlink + u32::from(come) - u32::from(gone);
                }
                return Ok(());
            }
            (_, Some(dst)) => match (src_dir, self.is_dir(dst)) {
                (true, false) => return Err(VfsError::NOTDIR),
                (false, true) => return Err(VfsError::ISDIR),
                (true, true) => self.rmdir(b, bn)?,
                (false, false) => self.unlink(b, bn, open)?,
            },
            _ => {}
        }
        self.entries(a).remove(an);
        self.entries(b).insert(bn.into(), src);
        self.nodes.get_mut(&a).unwrap().nlink -= u32::from(src_dir);
        self.nodes.get_mut(&b).unwrap().nlink += u32::from(src_dir);
        Ok(())
    }
}

/// What is really there, by asking.
async fn snapshot(vfs: &Vfs) -> Model {
    let mut model = Model::default();
    let mut todo = vec![Ino::ROOT];
    while let Some(ino) = todo.pop() {
        if model.nodes.contains_key(&ino) {
            continue;
        }
        let attr = vfs.getattr(ino).await.expect("a name without an inode");
        let kind = match attr.mode >> 12 {
            4 => {
                let mut entries = BTreeMap::new();
                for name in names(vfs, ino).await {
                    let child = vfs.lookup(ino, name.as_bytes()).await.expect("a listed name");
                    todo.push(child.ino);
                    assert!(entries.insert(name, child.ino).is_none());
                }
                assert_eq!(attr.size, entries.len() as u64);
                Kind::Dir(entries)
            }
            8 => Kind::File(content(vfs, ino).await),
            10 => Kind::Link(vfs.readlink(ino).await.expect("readlink").to_vec()),
            other => panic!("kind {other}"),
        };
        let mut xattrs = BTreeMap::new();
        for name in vfs.listxattr(ino).await.expect("list") {
            let value = vfs.getxattr(ino, &name).await.expect("get");
            xattrs.insert(String::from_utf8(name.to_vec()).unwrap(), value.to_vec());
        }
        model.nodes.insert(ino, Node { kind, nlink: attr.nlink, mode: attr.mode & 0o7777, xattrs });
    }
    model
}

struct Run {
    engine: Rc<FakeEngine>,
    vfs: Vec<Rc<Vfs>>,
    model: Model,
    rng: Prng,
    /// One file that stays open in one gateway.
    held: Option<(usize, FileHandle, Ino)>,
}

fn options(rng: &mut Prng) -> VfsOptions {
    VfsOptions {
        dirty_age: Duration::from_millis(1 + rng.below(300)),
        max_dirty_bytes: 4096 << rng.below(12),
        read_ahead_bytes: [0, 8192, 1 << 20][rng.below(3) as usize],
        read_ahead_total: [0, 2 << 20, 64 << 20][rng.below(3) as usize],
        ..VfsOptions::default()
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Prng::new(seed);
        let fake = FakeOptions {
            max_run_blocks: [1, 3, 256][rng.below(3) as usize],
            available_blocks: [512, 1 << 19][rng.below(2) as usize],
            ..FakeOptions::default()
        };
        let engine = FakeEngine::new(fake);
        let vfs = (0..2).map(|_| vfs_with(&engine, options(&mut rng))).collect();
        Run { engine, vfs, model: Model::new(), rng, held: None }
    }

    fn name(&mut self) -> String {
        ["a", "b", "c", "d", "e", "a-longer-name-than-the-others"][self.rng.below(6) as usize].into()
    }

    fn some(&mut self, f: impl Fn(&Node) -> bool) -> Option<Ino> {
        let all: Vec<Ino> = self.model.nodes.iter().filter(|(_, n)| n.nlink > 0 && f(n)).map(|(i, _)| *i).collect();
        (!all.is_empty()).then(|| all[self.rng.below(all.len() as u64) as usize])
    }

    fn some_dir(&mut self) -> Ino {
        self.some(|n| matches!(n.kind, Kind::Dir(_))).unwrap()
    }

    fn some_file(&mut self) -> Option<Ino> {
        self.some(|n| matches!(n.kind, Kind::File(_)))
    }

    /// Sizes around what changes the way a file is stored.
    fn len(&mut self) -> usize {
        match self.rng.below(6) {
            0 => self.rng.below(20) as usize,
            1 => 1000 + self.rng.below(50) as usize,
            2 => 4090 + self.rng.below(12) as usize,
            3 => 4096 * self.rng.below(5) as usize,
            4 => self.rng.below(30_000) as usize,
            _ => self.rng.below(3) as usize * self.rng.below(800_000) as usize,
        }
    }

    fn data(&mut self) -> Vec<u8> {
        let len = self.len();
        pattern(self.rng.next_u64(), len)
    }

    async fn step(&mut self) {
        let any = self.rng.below(2) as usize;
        // Names are taken away where the file is open: another gateway does not know that it is.
        let closer = self.held.map_or(any, |(at, ..)| at);
        let open = self.held.map(|(_, _, ino)| ino);
        let (vfs, removing) = (self.vfs[any].clone(), self.vfs[closer].clone());
        match self.rng.below(29) {
            0..=2 => {
                let (dir, name, data) = (self.some_dir(), self.name(), self.data());
                let flags = OpenFlags { exclusive: true, ..rw() };
                match (
                    vfs.create(ME, dir, name.as_bytes(), 0o640, flags).await,
                    self.model.dir(dir).unwrap().get(&name),
                ) {
                    (Ok((attr, handle)), None) => {
                        vfs.write(handle, 0, &data, false).await.unwrap();
                        vfs.release(handle).await.unwrap();
                        self.model.add(dir, &name, attr.ino, Kind::File(data), 0o640);
                    }
                    (Err(VfsError::EXIST), Some(_)) => {}
                    (got, there) => panic!("create {got:?} where {there:?}"),
                }
            }
            3 => {
                let (dir, name) = (self.some_dir(), self.name());
                match (vfs.mkdir(ME, dir, name.as_bytes(), 0o750).await, self.model.dir(dir).unwrap().get(&name)) {
                    (Ok(attr), None) => self.model.add(dir, &name, attr.ino, Kind::Dir(BTreeMap::new()), 0o750),
                    (Err(VfsError::EXIST), Some(_)) => {}
                    (got, there) => panic!("mkdir {got:?} where {there:?}"),
                }
            }
            4 => {
                let (dir, name) = (self.some_dir(), self.name());
                let target = pattern(self.rng.next_u64(), 1 + self.rng.below(4000) as usize);
                match (vfs.symlink(ME, dir, name.as_bytes(), &target).await, self.model.dir(dir).unwrap().get(&name)) {
                    (Ok(attr), None) => self.model.add(dir, &name, attr.ino, Kind::Link(target), 0o777),
                    (Err(VfsError::EXIST), Some(_)) => {}
                    (got, there) => panic!("symlink {got:?} where {there:?}"),
                }
            }
            5..=8 => {
                let Some(ino) = self.some_file() else { return };
                let (append, data) = (self.rng.one_in(3), self.data());
                let (handle, _) = vfs.open(ino, OpenFlags { append, ..rw() }).await.unwrap();
                let size = self.model.file(ino).len();
                let offset = self.rng.below(size as u64 + 10_000);
                vfs.write(handle, offset, &data, false).await.unwrap();
                vfs.release(handle).await.unwrap();
                self.write_model(ino, if append { size } else { offset as usize }, &data);
            }
            9..=10 => {
                let Some(ino) = self.some_file() else { return };
                let old = self.model.file(ino).len();
                let size = if self.rng.one_in(2) { self.len() } else { self.rng.below(old as u64 + 1) as usize };
                let attr = vfs.setattr(ino, SetAttr { size: Some(size as u64), ..SetAttr::default() }).await.unwrap();
                self.model.file(ino).resize(size, 0);
                assert_eq!(attr.size, size as u64);
            }
            11..=12 => {
                let (dir, name) = (self.some_dir(), self.name());
                let got = removing.unlink(dir, name.as_bytes()).await;
                assert_eq!(got, self.model.unlink(dir, &name, open));
            }
            13 => {
                let (dir, name) = (self.some_dir(), self.name());
                let got = vfs.rmdir(dir, name.as_bytes()).await;
                assert_eq!(got, self.model.rmdir(dir, &name));
            }
            14..=16 => {
                let (a, an, b, bn) = (self.some_dir(), self.name(), self.some_dir(), self.name());
                let modes = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = modes[self.rng.below(4) as usize];
                let got = removing.rename(a, an.as_bytes(), b, bn.as_bytes(), mode).await;
                assert_eq!(got, self.model.rename(a, &an, b, &bn, mode, open), "{mode:?} {a}/{an} {b}/{bn}");
            }
            17 => {
                let Some(ino) = self.some(|n| !matches!(n.kind, Kind::Dir(_))) else { return };
                let (dir, name) = (self.some_dir(), self.name());
                match (vfs.link(ino, dir, name.as_bytes()).await, self.model.dir(dir).unwrap().contains_key(&name)) {
                    (Ok(attr), false) => {
                        self.model.entries(dir).insert(name, ino);
                        self.model.nodes.get_mut(&ino).unwrap().nlink += 1;
                        assert_eq!(attr.nlink, self.model.nodes[&ino].nlink);
                    }
                    (Err(VfsError::EXIST), true) => {}
                    (got, there) => panic!("link {got:?} where {there:?}"),
                }
            }
            18 => {
                let ino = self.some(|_| true).unwrap();
                let (name, len) = (format!("user.{}", self.name()), self.rng.below(5000) as usize);
                let value = pattern(self.rng.next_u64(), len);
                let node = self.model.nodes.get_mut(&ino).unwrap();
                if self.rng.one_in(3) {
                    let got = vfs.removexattr(ino, name.as_bytes()).await;
                    assert_eq!(got, node.xattrs.remove(&name).map(drop).ok_or(VfsError::NODATA));
                } else {
                    vfs.setxattr(ino, name.as_bytes(), &value, XattrMode::Set).await.unwrap();
                    node.xattrs.insert(name, value);
                }
            }
            19 => {
                let Some(ino) = self.some_file() else { return };
                let data = self.model.file(ino).clone();
                let (handle, attr) = vfs.open(ino, rw()).await.unwrap();
                assert_eq!(attr.size, data.len() as u64);
                let mut at = self.rng.below(data.len() as u64 + 1) as usize;
                for _ in 0..4 {
                    let end = data.len().min(at + self.rng.below(70_000) as usize);
                    assert_eq!(read_handle(&vfs, handle, at as u64, end - at).await, data[at..end]);
                    at = end;
                }
                if self.rng.one_in(2) {
                    vfs.fsync(handle).await.unwrap();
                }
                vfs.release(handle).await.unwrap();
            }
            20 => {
                let dir = self.some_dir();
                let got: BTreeSet<String> = names(&vfs, dir).await.into_iter().collect();
                assert_eq!(got, self.model.dir(dir).unwrap().keys().cloned().collect());
            }
            21 => vellum_rt::sleep(Duration::from_millis(self.rng.below(500))).await,
            22 => self.hold(any).await,
            23..=24 => self.make_hole(&vfs).await,
            25 => self.copy(&vfs).await,
            26 => self.look_for_holes(&vfs).await,
            27 => self.link_nameless(&vfs).await,
            _ => {
                let ino = self.some(|n| !matches!(n.kind, Kind::Link(_))).unwrap();
                let mode = self.rng.below(0o1000) as u32;
                let attr = vfs.setattr(ino, SetAttr { mode: Some(mode), ..SetAttr::default() }).await.unwrap();
                self.model.nodes.get_mut(&ino).unwrap().mode = mode;
                self.expect_attr(ino, &attr);
            }
        }
    }

    fn expect_attr(&mut self, ino: Ino, attr: &Attr) {
        let node = &self.model.nodes[&ino];
        assert_eq!((attr.nlink, attr.mode & 0o7777), (node.nlink, node.mode));
    }

    fn write_model(&mut self, ino: Ino, at: usize, data: &[u8]) {
        let file = self.model.file(ino);
        if !data.is_empty() {
            let end = at + data.len();
            file.resize(file.len().max(end), 0);
            file[at..end].copy_from_slice(data);
        }
    }

    /// Opens a file for long, or uses and perhaps closes the one that is open.
    async fn hold(&mut self, any: usize) {
        let Some((at, handle, ino)) = self.held else {
            if let Some(ino) = self.some_file() {
                let (handle, _) = self.vfs[any].open(ino, rw()).await.unwrap();
                self.held = Some((any, handle, ino));
            }
            return;
        };
        let (data, vfs) = (self.data(), self.vfs[at].clone());
        let offset = self.rng.below(5000) as usize;
        vfs.write(handle, offset as u64, &data, false).await.unwrap();
        self.write_model(ino, offset, &data);
        let expected = self.model.file(ino).clone();
        assert_eq!(read_handle(&vfs, handle, 0, expected.len()).await, expected);
        if self.rng.one_in(2) {
            self.close_held().await;
        }
    }

    async fn close_held(&mut self) {
        if let Some((at, handle, ino)) = self.held.take() {
            self.vfs[at].release(handle).await.unwrap();
            if self.model.nodes[&ino].nlink == 0 {
                self.model.nodes.remove(&ino);
            }
        }
    }

    async fn compare(&mut self) {
        let named: BTreeMap<Ino, Node> =
            self.model.nodes.iter().filter(|(_, n)| n.nlink > 0).map(|(i, n)| (*i, n.clone())).collect();
        for vfs in &self.vfs {
            let found = snapshot(vfs).await;
            for (ino, node) in &named {
                assert!(found.nodes.get(ino) == Some(node), "{ino} differs: {}", differs(found.nodes.get(ino), node));
            }
            assert_eq!(found.nodes.len(), named.len());
        }
    }

    async fn sync(&self) {
        for vfs in &self.vfs {
            vfs.syncfs().await.unwrap();
        }
        fsck::check(&self.engine.durable_items());
    }

    /// Everybody dies. What was not synced may be lost, in order, and nothing is half done.
    async fn crash(&mut self, synced: bool) {
        self.close_held().await;
        if synced {
            self.sync().await;
        }
        self.vfs.iter().for_each(|vfs| vfs.client().abort());
        self.engine.crash();
        fsck::check(&self.engine.durable_items());
        self.vfs = (0..2).map(|_| vfs_with(&self.engine, options(&mut self.rng))).collect();
        if !synced {
            self.model = snapshot(&self.vfs[0]).await;
        }
    }
}

fn differs(found: Option<&Node>, expected: &Node) -> String {
    match found.map(|n| &n.kind) {
        Some(Kind::File(f)) => {
            let Kind::File(e) = &expected.kind else { return "kind".into() };
            let at = f.iter().zip(e).position(|(a, b)| a != b);
            format!("{} bytes, expected {}, first difference {at:?}, names {}", f.len(), e.len(), expected.nlink)
        }
        other => format!("{other:?}, expected {expected:?}"),
    }
}

fn steps(default: usize) -> usize {
    std::env::var("VFS_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    match std::env::var("VFS_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..default,
    }
}

#[test]
fn random_operations_agree_with_a_plain_model() {
    for seed in seeds(12) {
        eprintln!("seed {seed}");
        run(seed, move || async move {
            let mut run = Run::new(seed);
            for step in 0..steps(400) {
                run.step().await;
                if step % 100 == 99 {
                    run.compare().await;
                }
                if run.rng.one_in(150) {
                    let synced = run.rng.one_in(2);
                    run.crash(synced).await;
                }
                if run.rng.one_in(100) {
                    run.engine.crash(); // the clients live, and nothing is lost
                }
            }
            run.sync().await;
            run.compare().await;
            run.close_held().await;
            vellum_rt::sleep(Duration::from_secs(20)).await;
            run.sync().await;
            run.compare().await;
        });
    }
}

#[test]
fn many_tasks_on_two_gateways_leave_a_consistent_filesystem() {
    for seed in seeds(10) {
        eprintln!("seed {seed}");
        run(seed, move || async move {
            let engine = engine();
            let mut rng = Prng::new(seed);
            let mut tasks = Vec::new();
            let gateways: Vec<_> = (0..2).map(|_| vfs_with(&engine, options(&mut rng))).collect();
            for task in 0..10u64 {
                let vfs = gateways[task as usize % 2].clone();
                let mut rng = Prng::new(seed * 100 + task);
                tasks.push(vellum_rt::spawn(vellum_rt::Class::Request, "task", async move {
                    for _ in 0..60 {
                        let doing = std::cell::Cell::new("");
                        let done = vellum_rt::timeout(Duration::from_secs(300), one(&vfs, &mut rng, &doing)).await;
                        assert!(done.is_ok(), "task {task} hangs in {}", doing.get());
                    }
                }));
            }
            for task in tasks {
                assert!(task.await.is_ok());
            }
            for vfs in &gateways {
                vfs.syncfs().await.unwrap();
                assert_eq!(vfs.buffered_bytes(), 0);
                assert_eq!(vfs.open_handles(), 0);
            }
            fsck::check(&engine.durable_items());
            assert_eq!(snapshot(&gateways[0]).await, snapshot(&gateways[1]).await);
        });
    }
}

/// One random operation; what others do at the same time may make it fail, but not with just any error.
async fn one(vfs: &Vfs, rng: &mut Prng, doing: &std::cell::Cell<&'static str>) {
    doing.set("lookup");
    let mut dir = Ino::ROOT;
    for _ in 0..rng.below(4) {
        let name = [b'a' + rng.below(3) as u8];
        match vfs.lookup(dir, &name).await {
            Ok(attr) if attr.mode >> 12 == 4 => dir = attr.ino,
            _ => break,
        }
    }
    let (a, b) = ([b'a' + rng.below(5) as u8], [b'a' + rng.below(5) as u8]);
    let what = rng.below(9);
    doing
        .set(["mkdir", "mkdir", "create", "create", "unlink", "rmdir", "rename", "truncate", "readdir"][what as usize]);
    let result = match what {
        0 | 1 => vfs.mkdir(ME, dir, &a, 0o755).await.map(drop),
        2 | 3 => match vfs.create(ME, dir, &a, 0o644, rw()).await {
            Ok((_, handle)) => {
                let at = rng.below(3) * rng.below(10_000);
                let len = rng.below(200_000) as usize;
                doing.set("write");
                let written = vfs.write(handle, at, &pattern(1, len), false).await.map(drop);
                doing.set("read");
                let read = vfs.read(handle, at / 2, 50_000).await.map(drop);
                doing.set("fsync");
                let synced = if rng.one_in(4) { vfs.fsync(handle).await } else { Ok(()) };
                vfs.release(handle).await.and(written).and(read).and(synced)
            }
            Err(e) => Err(e),
        },
        4 => vfs.unlink(dir, &a).await,
        5 => vfs.rmdir(dir, &a).await,
        6 => {
            let to = match vfs.lookup(Ino::ROOT, &b).await {
                Ok(attr) if attr.mode >> 12 == 4 => attr.ino,
                _ => Ino::ROOT,
            };
            let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            vfs.rename(dir, &a, to, &b, modes[rng.below(3) as usize]).await
        }
        7 => match vfs.lookup(dir, &a).await {
            Ok(attr) if attr.mode >> 12 == 8 => {
                let size = Some(rng.below(2) * rng.below(150_000));
                vfs.setattr(attr.ino, SetAttr { size, ..SetAttr::default() }).await.map(drop)
            }
            other => other.map(drop),
        },
        _ => vfs.readdir(dir, 0, 10, true).await.map(drop),
    };
    if let Err(error) = result {
        assert!(
            ![VfsError::IO, VfsError::NOTCONN, VfsError::BADF].contains(&error),
            "{error} comes from nothing that others do"
        );
    }
}

//! A vfs on the engine in memory, in the simulated world: virtual time, and an order of tasks that the seed decides.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod fsck;

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::Ino;
use vellum_client::ClientOptions;
use vellum_client::testing::{FakeEngine, FakeOptions};
use vellum_rt::sim::{SimConfig, World};
use vellum_vfs::{Caller, FileHandle, OpenFlags, Vfs, VfsOptions};

pub const ME: Caller = Caller { uid: 1000, gid: 100, pid: 1, umask: 0 };

pub fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce() -> F) {
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let task = world.enter(reactor, test);
    assert!(world.block_on(reactor, Duration::from_secs(3600), task).is_some(), "it hangs");
}

pub fn engine() -> Rc<FakeEngine> {
    FakeEngine::new(FakeOptions::default())
}

pub fn vfs_on(engine: &Rc<FakeEngine>) -> Rc<Vfs> {
    vfs_with(engine, VfsOptions::default())
}

pub fn vfs_with(engine: &Rc<FakeEngine>, options: VfsOptions) -> Rc<Vfs> {
    Vfs::new(engine.client(ClientOptions::default()), options)
}

pub fn rw() -> OpenFlags {
    OpenFlags { read: true, write: true, ..OpenFlags::default() }
}

/// Bytes that tell where they come from.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    vellum_base::prng::Prng::new(seed).fill(&mut bytes);
    bytes
}

pub async fn make(vfs: &Vfs, dir: Ino, name: &str, content: &[u8]) -> Ino {
    let (attr, handle) = vfs.create(ME, dir, name.as_bytes(), 0o644, rw()).await.expect("create");
    vfs.write(handle, 0, content, false).await.expect("write");
    vfs.flush(handle).await.expect("flush");
    vfs.release(handle).await.expect("release");
    attr.ino
}

pub async fn read_handle(vfs: &Vfs, handle: FileHandle, offset: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for slice in vfs.read(handle, offset, len).await.expect("read") {
        out.extend_from_slice(&slice);
    }
    out
}

pub async fn content(vfs: &Vfs, ino: Ino) -> Vec<u8> {
    let (handle, attr) = vfs.open(ino, rw()).await.expect("open");
    let mut out = Vec::new();
    while (out.len() as u64) < attr.size {
        let more = read_handle(vfs, handle, out.len() as u64, 300_000).await;
        assert!(!more.is_empty(), "a file of {} bytes ends at {}", attr.size, out.len());
        out.extend(more);
    }
    vfs.release(handle).await.expect("release");
    out
}

pub async fn names(vfs: &Vfs, dir: Ino) -> Vec<String> {
    let (mut pos, mut names) = (0, Vec::new());
    loop {
        let page = vfs.readdir(dir, pos, 3, false).await.expect("readdir");
        let Some(last) = page.last() else { return names };
        pos = last.next_pos;
        names.extend(
            page.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).filter(|n| n != "." && n != ".."),
        );
    }
}

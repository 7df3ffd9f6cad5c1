//! A filesystem in memory with any number of reactors' stores, all on the calling thread.
#![allow(dead_code)] // each test file uses a part

pub mod count;
pub mod crash;
pub mod sparse;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use vellum_base::{Batch, BatchNo, BlockAddr, BlockRange, DmaBuf, Ino, ItemOp, Key, Rid, View, crc32c};
use vellum_format::{Extent, ExtentHeader, Inode, Superblock};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_store::{
    CheckOptions, CommitError, Everyone, MkfsOptions, OpenOptions, PolledQueue, RecoveryReport, Store, StoreError,
    mkfs, open,
};

pub const MIB: u64 = 1 << 20;
pub const RID: Rid = Rid(0x1234_5678_9abc_def0);

pub fn memory(bytes: u64) -> Arc<dyn Device> {
    Arc::new(MemoryDevice::new(bytes))
}

/// A queue that is polled as long as it lives.
pub fn queue(device: &Arc<dyn Device>) -> PolledQueue {
    PolledQueue::open(&**device, 64, "test").unwrap()
}

pub async fn make(device: &Arc<dyn Device>) {
    let queue = queue(device);
    mkfs(device, &queue, MkfsOptions::default()).await.unwrap();
}

/// The filesystem is of format version 1 from now on, as mkfs of an older vellum left it.
pub fn of_format_1(image: &mut Image) {
    let mut block = [0; 4096];
    image.read(0, &mut block);
    let sb = Superblock { format_version: 1, ..Superblock::decode(&block, BlockAddr(0)).unwrap() };
    [BlockAddr(0), sb.copy].into_iter().for_each(|at| image.write(at.bytes(), &sb.encode(at)));
}

pub fn options(reactors: usize) -> OpenOptions {
    // Tests that know where blocks lie want them to stay there.
    let evacuation_bytes_per_s = None;
    OpenOptions {
        reactors,
        cache_bytes: 8 << 20,
        memtable_bytes: 8 << 20,
        evacuation_bytes_per_s,
        ..OpenOptions::default()
    }
}

pub async fn start(
    device: &Arc<dyn Device>,
    options: OpenOptions,
) -> Result<(Vec<Rc<Store>>, RecoveryReport), StoreError> {
    let queue = queue(device);
    let opened = open(device, &queue, options).await?;
    let mut stores = Vec::new();
    for seed in opened.seeds {
        stores.push(Store::start(seed, Rc::new(Everyone)).await?);
    }
    Ok((stores, opened.report))
}

pub fn ino(bucket: u8, n: u64) -> Ino {
    Ino((u64::from(bucket) << 56) | n)
}

pub fn inode(size: u64, data_version: u64) -> Inode {
    // Nameless, so that the checker finds its links right.
    Inode { mode: 0o100644, nlink: 0, size, data_version, ..Inode::default() }
}

pub fn put(key: Key, value: Bytes) -> ItemOp {
    ItemOp::Put { key, value }
}

pub fn put_inode(ino: Ino, inode: &Inode) -> ItemOp {
    put(Inode::key(ino), inode.encode())
}

pub fn inline_key(ino: Ino) -> Key {
    Key::fs(ino, vellum_format::ItemKind::Inline as u8, 0, 0, 0)
}

pub fn batch(number: u64, ops: Vec<ItemOp>) -> Batch {
    Batch { number: BatchNo(number), ops }
}

/// A client that counts its batches.
pub struct Client {
    pub rid: Rid,
    pub next: u64,
}

impl Client {
    pub async fn open(store: &Rc<Store>, rid: Rid) -> Client {
        let state = store.open_rid(rid, b"test").await.unwrap();
        Client { rid, next: state.last_batch.0 + 1 }
    }

    pub async fn commit(&mut self, store: &Rc<Store>, ops: Vec<ItemOp>) -> Result<vellum_base::Epoch, CommitError> {
        let result = store.commit(self.rid, batch(self.next, ops)).await;
        if result.is_ok() {
            self.next += 1;
        }
        result
    }
}

/// An extent item for freshly written blocks.
pub fn extent_op(ino: Ino, first_block: u64, range: BlockRange, data: &[u8]) -> ItemOp {
    let header = ExtentHeader { start: range.start, len_blocks: range.len_blocks, offline: false };
    let checksums = data.chunks(4096).map(crc32c).collect();
    put(Extent::key(ino, first_block, range.len_blocks), Extent { header, checksums }.encode())
}

pub fn blocks(n: usize, byte: u8) -> DmaBuf {
    let mut buf = DmaBuf::new(n * 4096);
    buf.fill(byte);
    buf
}

pub async fn get(store: &Rc<Store>, key: Key) -> Option<Bytes> {
    store.get(&[key], View::Applied).await.unwrap().pop().flatten()
}

/// The operations of a copy by reference: the source's extents once more, and the same ones in the other file. How many
/// blocks.
pub async fn references(store: &Rc<Store>, from: Ino, to: Ino) -> (Vec<ItemOp>, u64) {
    let (mut ops, mut n) = (Vec::new(), 0);
    for (key, extent) in sparse::extents(store, from).await {
        let len = extent.header.len_blocks;
        let copy = Extent::key(to, Extent::first_block(&key, len).unwrap(), len);
        ops.extend([put(key, extent.encode()), put(copy, extent.encode())]);
        n += u64::from(len);
    }
    (ops, n)
}

/// A new file with the blocks of another.
pub async fn share(store: &Rc<Store>, client: &mut Client, from: Ino, to: Ino) {
    let (mut ops, n) = references(store, from, to).await;
    ops.push(put_inode(to, &Inode { online_blocks: n, ..inode(n * 4096, 1) }));
    client.commit(store, ops).await.unwrap();
}

/// A file of three blocks, and how its extent reads.
pub async fn one_file(store: &Rc<Store>, client: &mut Client, ino: Ino, byte: u8) -> (Key, Extent) {
    let data = blocks(3, byte).freeze();
    let range = store.write_data(client.rid, data.clone()).await.unwrap()[0];
    let inode = put_inode(ino, &Inode { online_blocks: 3, ..inode(3 * 4096, 1) });
    client.commit(store, vec![extent_op(ino, 0, range, &data), inode]).await.unwrap();
    sparse::extents(store, ino).await.remove(0)
}

/// The key of that extent.
pub fn three_blocks(ino: Ino) -> Key {
    Extent::key(ino, 0, 3)
}

/// What the checker says of a device that nobody serves.
pub async fn problems(device: &Arc<dyn Device>) -> Vec<String> {
    let q = queue(device);
    let report = vellum_store::check(device, &q, CheckOptions { data: true }).await.unwrap();
    report.problems.iter().map(ToString::to_string).collect()
}

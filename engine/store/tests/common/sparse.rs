//! A population of files whose blocks are found by looking them up, and devices on which they lie far apart.

use std::collections::BTreeMap;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, DmaBuf, Ino, ItemOp, Key, KeyRange, View};
use vellum_format::{Extent, ExtentHeader, Inode, ItemKind};
use vellum_store::{Store, StoreError, StoreStatus};

use super::*;

/// Blocks of a file: a chunk of 1 MiB has room for 16 of them.
pub const FILE_BLOCKS: usize = 16;

/// The first byte of each block of each file.
#[derive(Clone, Default)]
pub struct Files(pub BTreeMap<Ino, Vec<u8>>);

/// A block's content, which differs from block to block.
fn block(ino: Ino, at: usize, byte: u8) -> Vec<u8> {
    let mut out = vec![byte; BLOCK_SIZE];
    out[8..16].copy_from_slice(&ino.0.to_le_bytes());
    out[16..24].copy_from_slice(&(at as u64).to_le_bytes());
    out
}

pub async fn extents(store: &Rc<Store>, ino: Ino) -> Vec<(Key, Extent)> {
    let kind = ItemKind::Extent as u8;
    let range = KeyRange { first: Key::fs(ino, kind, 0, 0, 0), last: Key::fs(ino, kind, u64::MAX, u64::MAX, u8::MAX) };
    let page = store.scan(range, 1024, 1 << 20, View::Applied).await.unwrap();
    page.items.into_iter().map(|(key, value)| (key, Extent::decode(&value).unwrap())).collect()
}

async fn new_blocks(
    store: &Rc<Store>,
    client: &Client,
    ino: Ino,
    first: usize,
    bytes: &[u8],
) -> Result<Vec<ItemOp>, StoreError> {
    let mut data = DmaBuf::new(bytes.len() * BLOCK_SIZE);
    for (i, byte) in bytes.iter().enumerate() {
        data[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].copy_from_slice(&block(ino, first + i, *byte));
    }
    let data = data.freeze();
    let mut at = 0;
    let mut ops = Vec::new();
    for range in store.write_data(client.rid, data.clone()).await? {
        let end = at + range.len_bytes();
        ops.push(extent_op(ino, (first + at / BLOCK_SIZE) as u64, range, &data[at..end]));
        at = end;
    }
    Ok(ops)
}

fn file_inode(version: u64) -> Inode {
    Inode { online_blocks: FILE_BLOCKS as u64, ..inode((FILE_BLOCKS * BLOCK_SIZE) as u64, version) }
}

impl Files {
    pub async fn create(
        &mut self,
        store: &Rc<Store>,
        client: &mut Client,
        ino: Ino,
        byte: u8,
    ) -> Result<(), StoreError> {
        let bytes = vec![byte; FILE_BLOCKS];
        let mut ops = new_blocks(store, client, ino, 0, &bytes).await?;
        ops.push(put_inode(ino, &file_inode(1)));
        client.commit(store, ops).await.unwrap();
        self.0.insert(ino, bytes);
        Ok(())
    }

    pub async fn delete(&mut self, store: &Rc<Store>, client: &mut Client, ino: Ino) {
        let mut ops: Vec<ItemOp> =
            extents(store, ino).await.into_iter().map(|(key, _)| ItemOp::Delete { key }).collect();
        ops.push(ItemOp::DeleteInode { ino });
        client.commit(store, ops).await.unwrap();
        self.0.remove(&ino);
    }

    /// New content for a few blocks in the middle: what is around them keeps its blocks, in extents that are cut. False when
    /// the file's extents have changed meanwhile.
    pub async fn overwrite(
        &mut self,
        store: &Rc<Store>,
        client: &mut Client,
        ino: Ino,
        blocks: std::ops::Range<usize>,
        byte: u8,
    ) -> Result<bool, StoreError> {
        let bytes = vec![byte; blocks.len()];
        let mut ops: BTreeMap<Key, ItemOp> = BTreeMap::new();
        let old = extents(store, ino).await;
        for (key, extent) in &old {
            ops.insert(*key, ItemOp::Delete { key: *key });
            let first = Extent::first_block(key, extent.header.len_blocks).unwrap() as usize;
            let all = first..first + extent.header.len_blocks as usize;
            for part in [all.start..all.end.min(blocks.start), all.start.max(blocks.end)..all.end] {
                if part.is_empty() {
                    continue;
                }
                let skip = part.start - first;
                let header = ExtentHeader {
                    start: BlockRange::new(extent.header.start.0 + skip as u64, 1).start,
                    len_blocks: part.len() as u32,
                    offline: false,
                };
                let checksums = extent.checksums[skip..skip + part.len()].to_vec();
                let key = Extent::key(ino, part.start as u64, part.len() as u32);
                ops.insert(key, put(key, Extent { header, checksums }.encode()));
            }
        }
        for op in new_blocks(store, client, ino, blocks.start, &bytes).await? {
            let ItemOp::Put { key, .. } = &op else { unreachable!() };
            ops.insert(*key, op);
        }
        let mut ops: Vec<ItemOp> = ops.into_values().collect();
        ops.push(put_inode(ino, &file_inode(2)));
        match client.commit(store, ops).await {
            Ok(_) => {
                self.0.get_mut(&ino).unwrap()[blocks].fill(byte);
                Ok(true)
            }
            Err(CommitError::Blocks { .. }) => {
                store.forget_pending(client.rid).await.unwrap();
                Ok(false)
            }
            Err(e) => panic!("{e}"),
        }
    }

    /// Every file has its content.
    pub async fn verify(&self, store: &Rc<Store>) {
        for (ino, bytes) in &self.0 {
            let mut found = 0;
            for (key, extent) in extents(store, *ino).await {
                let range = extent.header.blocks().unwrap();
                let first = Extent::first_block(&key, range.len_blocks).unwrap() as usize;
                let data = store.read_data(&[range]).await.unwrap();
                for (i, content) in data.chunks(BLOCK_SIZE).enumerate() {
                    assert!(content == block(*ino, first + i, bytes[first + i]), "inode {ino} block {}", first + i);
                    found += 1;
                }
            }
            assert_eq!(found, bytes.len(), "inode {ino}");
        }
    }

    /// Fills the device with files, and deletes all but one in `keep`: free blocks are everywhere, whole chunks nowhere.
    /// How many there were.
    pub async fn scatter(&mut self, stores: &[Rc<Store>], client: &mut Client, keep: usize) -> usize {
        let mut all = Vec::new();
        loop {
            let n = all.len() as u64;
            let at = ino((n * 37 % 256) as u8, 2 + n);
            match self.create(&stores[n as usize % stores.len()], client, at, n as u8).await {
                Ok(()) => all.push(at),
                Err(StoreError::NoSpace) => break,
                Err(e) => panic!("{e}"),
            }
        }
        let count = all.len();
        for (i, at) in all.into_iter().enumerate() {
            if !(i / stores.len()).is_multiple_of(keep) {
                self.delete(&stores[0], client, at).await;
            }
        }
        settle(&stores[0]).await;
        count
    }
}

/// What was applied is durable, and what was freed is free.
pub async fn settle(store: &Rc<Store>) -> StoreStatus {
    loop {
        store.wait_durable(store.status().await.unwrap().open_epoch).await.unwrap();
        let status = store.status().await.unwrap();
        if status.reactors.iter().all(|r| r.waiting_blocks == 0 && r.pending_blocks == 0) {
            return status;
        }
        vellum_rt::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Waits until free chunks are not short any more; for devices with enough sparse ones.
pub async fn until_enough(store: &Rc<Store>) -> StoreStatus {
    loop {
        let status = store.status().await.unwrap();
        assert_eq!(status.failed, None);
        if status.free_chunks >= 2 * status.reserve_chunks && !status.evacuation.running {
            return settle(store).await;
        }
        vellum_rt::sleep(std::time::Duration::from_millis(5)).await;
    }
}

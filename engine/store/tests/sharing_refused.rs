//! Shares that are refused: of blocks that are not what the batch says, that have as many owners as can be counted, and in a
//! filesystem of format version 1.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::sparse::{extents, settle};
use common::*;
use vellum_base::batch::MAX_BATCH_OPS;
use vellum_base::{BlockAddr, ItemOp, Rid};
use vellum_format::log::{records, verify_part};
use vellum_format::owners::MAX_EXTRA;
use vellum_format::{Extent, Inode, Owners, PartBuilder, PartPlace, Record, Seal, Superblock};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::native::block_on;
use vellum_store::CommitError;

#[test]
fn nobody_gets_blocks_whose_extent_is_not_in_the_batch_as_it_is() {
    for reactors in [1, 3] {
        block_on(async {
            let device = memory(96 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, options(reactors)).await.unwrap();
            let store = &stores[0];
            let mut client = Client::open(store, RID).await;
            let (a, b, c) = (ino(3, 2), ino(120, 2), ino(240, 2));
            let (key, extent) = one_file(store, &mut client, a, 7).await;
            let data = blocks(1, 9).freeze();
            store.write_data(Rid(2), data.clone()).await.unwrap(); // what is behind them is another client's
            let pending = store.write_data(client.rid, data.clone()).await.unwrap()[0];
            let at =
                |ino, first, extent: &Extent| put(Extent::key(ino, first, extent.header.len_blocks), extent.encode());
            let with = |change: &dyn Fn(&mut Extent)| {
                let mut other = extent.clone();
                change(&mut other);
                other
            };
            let wrong = with(&|e| e.checksums[2] ^= 1);
            let longer = with(&|e| {
                e.header.len_blocks = 4;
                e.checksums.push(5);
            });
            let restated = put(key, extent.encode());
            let not_so = [
                ("with a wrong checksum", vec![restated.clone(), at(b, 0, &wrong)]),
                ("where its owner is to have a wrong one", vec![put(key, wrong.encode()), at(b, 0, &extent)]),
            ];
            for (what, ops) in not_so {
                let error = client.commit(store, ops).await.expect_err(what);
                assert!(matches!(error, CommitError::NotShared { .. }), "{what}: {error}");
            }
            let refused = [
                ("a block in use, by its number", vec![at(b, 0, &extent)]),
                ("twice", vec![at(b, 0, &extent), at(c, 0, &extent)]),
                ("one block more", vec![restated.clone(), at(b, 0, &longer)]),
                ("a new block in two places", vec![extent_op(b, 0, pending, &data), extent_op(c, 0, pending, &data)]),
                (
                    "a new block in two places of a file",
                    vec![extent_op(b, 0, pending, &data), extent_op(b, 5, pending, &data)],
                ),
            ];
            for (what, ops) in refused {
                let error = client.commit(store, ops).await.expect_err(what);
                assert!(matches!(error, CommitError::Blocks { .. }), "{what}: {error}");
            }
            // After the source's end, and when it has other blocks.
            client
                .commit(
                    store,
                    vec![restated.clone(), at(b, 0, &extent), put_inode(b, &Inode { online_blocks: 3, ..inode(9, 1) })],
                )
                .await
                .unwrap();
            client.commit(store, vec![ItemOp::Delete { key }, put_inode(a, &inode(0, 2))]).await.unwrap();
            for ops in [vec![restated.clone()], vec![restated, at(c, 0, &extent)]] {
                let error = client.commit(store, ops).await.unwrap_err();
                assert!(matches!(error, CommitError::Blocks { .. }), "{error}");
            }
            let (_, left) = extents(store, b).await.remove(0);
            let data = store.read_data(&[left.header.blocks().unwrap()]).await.unwrap();
            assert!(data.iter().all(|byte| *byte == 7));
            store.shutdown().await.unwrap();
            drop(stores);
            assert_eq!(problems(&device).await, Vec::<String>::new());
        });
    }
}

#[test]
fn in_format_version_1_every_block_has_one_owner() {
    let memory = MemoryDevice::new(96 * MIB);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    block_on(async {
        make(&device).await;
        let mut image = memory.snapshot();
        of_format_1(&mut image);
        memory.restore(image);
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        let (a, b) = (ino(3, 2), ino(240, 2));
        let (key, extent) = one_file(store, &mut client, a, 7).await;
        let (mut ops, n) = references(store, a, b).await;
        ops.extend([put_inode(b, &Inode { online_blocks: n, ..inode(n * 4096, 1) }), put(inline_key(a), "x".into())]);
        let error = client.commit(store, ops).await.unwrap_err();
        assert!(matches!(error, CommitError::NotShared { .. }), "{error:?}");
        assert!(error.to_string().ends_with("has one owner, as in format version 1"), "{error}");
        assert_eq!(extents(store, a).await, [(key, extent.clone())]);
        for nothing in [Inode::key(b), inline_key(a)] {
            assert_eq!(get(store, nothing).await, None);
        }
        assert!(extents(store, b).await.is_empty());
        // They move to another file, as ever, and are free after that one.
        let moved = put(three_blocks(b), extent.encode());
        let inode_of_b = put_inode(b, &Inode { online_blocks: 3, ..inode(3 * 4096, 1) });
        client
            .commit(store, vec![ItemOp::Delete { key }, put_inode(a, &inode(0, 2)), moved, inode_of_b])
            .await
            .unwrap();
        let used = async || settle(store).await.reactors.iter().map(|r| r.used_blocks).sum::<u64>();
        assert_eq!(used().await, 3);
        client
            .commit(store, vec![ItemOp::Delete { key: three_blocks(b) }, ItemOp::DeleteInode { ino: b }])
            .await
            .unwrap();
        assert_eq!(used().await, 0);
        store.shutdown().await.unwrap();
        drop(stores);
        assert_eq!(problems(&device).await, Vec::<String>::new());
    });
}

/// In the newest epoch every block that has further owners has so many: nobody makes four thousand million copies.
fn with_extra_owners(image: &mut Image, extra: u32) {
    let mut block = [0; 4096];
    image.read(0, &mut block);
    let fsid = Superblock::decode(&block, BlockAddr(0)).unwrap().fsid;
    let mut newest: Option<(u64, BlockAddr, Seal)> = None;
    for at in (0..image.len_bytes() / 4096).map(BlockAddr) {
        image.read(at.bytes(), &mut block);
        match Seal::decode(&block, at, &fsid) {
            Ok((seal, _)) if newest.as_ref().is_none_or(|(number, ..)| seal.number > *number) => {
                newest = Some((seal.number, at, seal));
            }
            _ => {}
        }
    }
    let (_, at, mut seal) = newest.unwrap();
    let mut changed = 0;
    for part in &mut seal.parts {
        let place = PartPlace { log: part.log, epoch: seal.epoch, term: seal.term, place: part.place, addr: part.addr };
        let mut bytes = vec![0; part.len_blocks as usize * 4096];
        image.read(part.addr.bytes(), &mut bytes);
        let body = Bytes::copy_from_slice(verify_part(&bytes, &place, &fsid).unwrap());
        let mut again = PartBuilder::default();
        for record in records(&body) {
            match record.unwrap() {
                Record::Put { key, value } if Owners::place(&key).is_some() => {
                    let mut owners = Owners::default();
                    for run in Owners::decode(&value).unwrap().runs() {
                        owners.add(run.first.into(), run.len.into(), extra);
                    }
                    again.put(&key, &owners.encode());
                    changed += 1;
                }
                record => again.push(&record),
            }
        }
        part.crc = again.finish(&mut bytes, &place, &fsid);
        image.write(part.addr.bytes(), &bytes);
    }
    assert_eq!(changed, 1);
    image.write(at.bytes(), &seal.encode(at, &fsid).0);
}

/// Before a count would overflow, and blocks be free that files have.
#[test]
fn blocks_with_as_many_owners_as_can_be_counted_get_no_more() {
    let (a, name) = (ino(3, 2), |n: u64| ino(240, 2 + n));
    let memory = MemoryDevice::new(96 * MIB);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    let mut image = block_on(async {
        make(&device).await;
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        one_file(&stores[0], &mut client, a, 7).await;
        share(&stores[0], &mut client, a, name(0)).await;
        settle(&stores[0]).await;
        memory.snapshot()
    });
    // One more, and the next batch might be one of nothing but shares.
    with_extra_owners(&mut image, MAX_EXTRA - MAX_BATCH_OPS as u32 - 1);
    let memory = MemoryDevice::from_image(image);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    block_on(async {
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        share(store, &mut client, a, name(1)).await;
        let refused = async |store, client: &mut Client| {
            let (mut ops, _) = references(store, a, name(2)).await;
            ops.push(put_inode(name(2), &inode(0, 1)));
            let error = client.commit(store, ops).await.unwrap_err();
            assert!(matches!(error, CommitError::NotShared { .. }), "{error:?}");
            assert!(error.to_string().ends_with("they have as many owners as can be counted"), "{error}");
            assert_eq!(get(store, Inode::key(name(2))).await, None);
        };
        refused(store, &mut client).await; // the epoch of the one before is open
        settle(store).await;
        refused(store, &mut client).await;
        // One goes, one may come.
        let ops = vec![ItemOp::Delete { key: three_blocks(name(0)) }, ItemOp::DeleteInode { ino: name(0) }];
        client.commit(store, ops).await.unwrap();
        settle(store).await;
        share(store, &mut client, a, name(0)).await;
        settle(store).await;
        refused(store, &mut client).await;
        // After a crash it is the same.
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(memory.snapshot()));
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        refused(&stores[0], &mut client).await;
        for file in [a, name(0), name(1)] {
            let (_, extent) = extents(&stores[0], file).await.remove(0);
            let data = stores[0].read_data(&[extent.header.blocks().unwrap()]).await.unwrap();
            assert!(data.iter().all(|byte| *byte == 7));
        }
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let found = problems(&device).await;
        assert_eq!(found.len(), 3, "{found:#?}");
        let count = MAX_EXTRA - MAX_BATCH_OPS as u32 + 1;
        let said = format!("it has {count} owners, and 3 extents name it");
        assert!(found.iter().all(|what| what.contains(&said)), "{found:#?}");
    });
}

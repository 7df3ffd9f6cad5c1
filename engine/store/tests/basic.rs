//! The store's promises in small stories, on one and several reactors.

mod common;

use common::*;
use vellum_base::{Epoch, ItemOp, KeyRange, Rid, View};
use vellum_format::{IndexKind, Inode};
use vellum_rt::native::block_on;
use vellum_store::{CommitError, StoreError};

#[test]
fn what_was_committed_is_read_and_survives_a_clean_restart() {
    for reactors in 1..=3 {
        block_on(async {
            let device = memory(128 * MIB);
            make(&device).await;
            let (stores, report) = start(&device, options(reactors)).await.unwrap();
            assert!(report.clean);
            let mut client = Client::open(&stores[0], RID).await;
            let mut last = Epoch::NONE;
            for i in 0..50u64 {
                let ops = (0..5).map(|j| put_inode(ino((i * 5 + j) as u8, 7 + i), &inode(i, 1))).collect();
                last = client.commit(&stores[i as usize % reactors], ops).await.unwrap();
            }
            stores[reactors - 1].wait_durable(last).await.unwrap();
            let value = get(&stores[0], Inode::key(ino(9, 8))).await.unwrap();
            let found = Inode::decode(&value).unwrap();
            assert_eq!(found.size, 1);
            assert!(found.meta_seq > 0 && found.meta_seq == found.data_seq);
            stores[0].shutdown().await.unwrap();
            drop(stores);
            let (stores, report) = start(&device, options(reactors % 3 + 1)).await.unwrap();
            assert!(report.clean, "{report:?}");
            for i in 0..50u64 {
                for j in 0..5 {
                    assert!(get(&stores[0], Inode::key(ino((i * 5 + j) as u8, 7 + i))).await.is_some(), "{i} {j}");
                }
            }
            let client = Client::open(&stores[0], RID).await;
            assert_eq!(client.next, 51);
        });
    }
}

#[test]
fn what_was_durable_survives_a_stop_without_shutdown_and_any_number_of_reactors_reads_it() {
    block_on(async {
        let device = memory(128 * MIB);
        make(&device).await;
        let mut client_next = 1;
        for (round, reactors) in [1, 3, 2, 1].into_iter().enumerate() {
            let (stores, report) = start(&device, options(reactors)).await.unwrap();
            assert_eq!(report.clean, round == 0);
            let mut client = Client::open(&stores[0], RID).await;
            assert_eq!(client.next, client_next);
            for i in 0..20u64 {
                let ops = (0..8).map(|j| put_inode(ino((i * 8 + j) as u8, round as u64 * 100 + i + 2), &inode(i, 1)));
                client.commit(&stores[0], ops.collect()).await.unwrap();
            }
            client_next = client.next;
            let open = Epoch(stores[0].status().await.unwrap().open_epoch.0);
            stores[0].wait_durable(open).await.unwrap();
            for r in 0..=round as u64 {
                for i in 0..20u64 {
                    for j in 0..8 {
                        let key = Inode::key(ino((i * 8 + j) as u8, r * 100 + i + 2));
                        assert!(get(&stores[0], key).await.is_some(), "round {round}: {r} {i} {j}");
                    }
                }
            }
        }
    });
}

#[test]
fn batches_are_admitted_in_order_and_once() {
    block_on(async {
        let device = memory(64 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let store = &stores[0];
        let op = |n: u64| vec![put_inode(ino(1, n), &inode(n, 1))];
        assert!(matches!(store.commit(RID, batch(1, op(2))).await, Err(CommitError::UnknownClient { .. })));
        store.open_rid(RID, b"me").await.unwrap();
        assert!(matches!(store.commit(RID, batch(2, op(2))).await, Err(CommitError::OutOfOrder { .. })));
        // Pipelined, without waiting in between.
        let calls: Vec<_> = (1..=20).map(|n| store.commit(RID, batch(n, op(n + 1)))).collect();
        let mut epochs = Vec::new();
        for call in calls {
            epochs.push(call.await.unwrap());
        }
        assert!(epochs.is_sorted());
        let again = store.commit(RID, batch(7, vec![ItemOp::DeleteInode { ino: ino(1, 3) }])).await.unwrap();
        assert!(again >= epochs[6]);
        assert!(get(store, Inode::key(ino(1, 3))).await.is_some(), "a duplicate is not applied");
        assert_eq!(store.rids().await.unwrap().len(), 1);
        store.close_rid(RID).await.unwrap();
        assert!(store.rids().await.unwrap().is_empty());
    });
}

#[test]
fn an_index_has_one_entry_per_inode_and_a_walk_is_bounded_by_what_is_durable() {
    for reactors in [1, 3] {
        block_on(async {
            let device = memory(64 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, options(reactors)).await.unwrap();
            let store = &stores[0];
            let mut client = Client::open(store, RID).await;
            for round in 1..=3u64 {
                let mut last = Epoch::NONE;
                for i in 0..40u64 {
                    // Metadata changes each round, data in the first alone.
                    let op = put_inode(ino((i * 13) as u8, 5), &inode(round, 1));
                    last = client.commit(store, vec![op]).await.unwrap();
                }
                store.wait_durable(last).await.unwrap();
            }
            let mut seen = Vec::new();
            let mut from = (0, vellum_base::Ino::NONE);
            loop {
                let page = store.walk(IndexKind::MetaSeq, from, u64::MAX, 7).await.unwrap();
                assert!(page.entries.iter().all(|(seq, _)| *seq <= page.through.0));
                seen.extend(page.entries);
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
            assert!(seen.is_sorted());
            assert_eq!(seen.len(), 40);
            let data = store.walk(IndexKind::DataSeq, (0, vellum_base::Ino::NONE), u64::MAX, 100).await.unwrap();
            assert_eq!(data.entries.len(), 40);
            assert!(data.entries[39].0 < seen[0].0, "data changed in the first round only");
            let ops = (0..40).map(|i| ItemOp::DeleteInode { ino: ino((i * 13) as u8, 5) }).collect();
            let e = client.commit(store, ops).await.unwrap();
            store.wait_durable(e).await.unwrap();
            let gone = store.walk(IndexKind::MetaSeq, (0, vellum_base::Ino::NONE), u64::MAX, 100).await.unwrap();
            assert_eq!(gone.entries, vec![]);
        });
    }
}

#[test]
fn e14_data_goes_to_pending_blocks_and_only_the_writer_may_name_them() {
    for reactors in [1, 2] {
        block_on(async {
            let device = memory(64 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, options(reactors)).await.unwrap();
            let store = &stores[reactors - 1];
            let (mut a, mut b) = (Client::open(store, RID).await, Client::open(store, Rid(77)).await);
            let data = blocks(4, 0xaa).freeze();
            let ranges = store.write_data(RID, data.clone()).await.unwrap();
            assert_eq!(ranges.len(), 1);
            let op = extent_op(ino(3, 5), 0, ranges[0], &data);
            let with_inode = |op: &ItemOp| vec![put_inode(ino(3, 5), &inode(4 * 4096, 1)), op.clone()];
            assert!(matches!(b.commit(store, with_inode(&op)).await, Err(CommitError::Blocks { .. })));
            let e = a.commit(store, with_inode(&op)).await.unwrap();
            assert!(matches!(
                a.commit(store, vec![extent_op(ino(3, 6), 0, ranges[0], &data)]).await,
                Err(CommitError::Blocks { .. })
            ));
            store.wait_durable(e).await.unwrap();
            let back = store.read_data(&ranges).await.unwrap();
            assert!(back[..] == data[..]);
            // Moved to another inode in one batch: neither freed nor allocated.
            let vellum_base::ItemOp::Put { key: old_key, .. } = &op else { unreachable!() };
            let moved = extent_op(ino(200, 6), 0, ranges[0], &data);
            a.commit(store, vec![ItemOp::Delete { key: *old_key }, moved.clone()]).await.unwrap();
            // An inode with extents does not die; with them it does, and the blocks come back.
            let death = ItemOp::DeleteInode { ino: ino(200, 6) };
            assert!(matches!(a.commit(store, vec![death.clone()]).await, Err(CommitError::Malformed { .. })));
            let vellum_base::ItemOp::Put { key, .. } = moved else { unreachable!() };
            let used = store.statfs().await.unwrap().used_data_blocks;
            let e = a.commit(store, vec![ItemOp::Delete { key }, death]).await.unwrap();
            store.wait_durable(e).await.unwrap();
            vellum_rt::sleep(std::time::Duration::from_millis(20)).await;
            assert_eq!(store.statfs().await.unwrap().used_data_blocks, used - 4);
        });
    }
}

#[test]
fn groups_are_never_given_twice_also_after_a_crash() {
    block_on(async {
        let device = memory(64 * MIB);
        make(&device).await;
        let mut seen = std::collections::BTreeSet::new();
        for reactors in [1, 2] {
            let (stores, _) = start(&device, options(reactors)).await.unwrap();
            for i in 0..600 {
                let group = stores[i % reactors].alloc_group(None, None).await.unwrap();
                assert!(group != 0 && seen.insert(group));
            }
        }
    });
}

#[test]
fn a_scan_crosses_reactors_and_views_differ_until_durable() {
    block_on(async {
        let device = memory(64 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(3)).await.unwrap();
        let store = &stores[1];
        let mut client = Client::open(store, RID).await;
        let ops = (0..=255).map(|b| put_inode(ino(b, 9), &inode(1, 1))).collect();
        let e = client.commit(store, ops).await.unwrap();
        store.wait_durable(e).await.unwrap();
        let count = async |view| {
            let (mut range, mut n) = (KeyRange::ALL, 0);
            loop {
                let page = store.scan(range, 50, 1 << 20, view).await.unwrap();
                n += page.items.iter().filter(|(k, _)| k.zone() == Some(vellum_base::Zone::Fs)).count();
                match page.next {
                    Some(next) => range.first = next,
                    None => return n,
                }
            }
        };
        assert_eq!(count(View::Durable).await, 256);
        client.commit(store, vec![ItemOp::DeleteInode { ino: ino(0, 9) }]).await.unwrap();
        assert_eq!(count(View::Applied).await, 255);
    });
}

#[test]
fn devices_that_are_too_small_or_hold_something_are_refused() {
    block_on(async {
        let small = memory(63 * MIB);
        let q = queue(&small);
        let result = vellum_store::mkfs(&small, &q, Default::default()).await;
        assert!(matches!(result, Err(StoreError::TooSmall { .. })));
        assert!(matches!(start(&small, options(1)).await, Err(StoreError::NotVellum { .. })));
        let device = memory(64 * MIB);
        make(&device).await;
        let q = queue(&device);
        let again = vellum_store::mkfs(&device, &q, Default::default()).await;
        assert!(matches!(again, Err(StoreError::Exists { .. })));
    });
}

//! What a wall around a client stands on: changes of names are counted, a batch has a judge, and blocks can be held.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::*;
use vellum_base::{Ino, ItemOp, View};
use vellum_format::{Dirent, FileKind, Inode, system};
use vellum_rt::native::block_on;
use vellum_store::{CommitError, Judge};

fn of_kind(kind: FileKind) -> Inode {
    Inode { mode: kind.mode_bits() | 0o755, ..inode(0, 1) }
}

fn backref(ino: Ino, dir: Ino, pos: u64) -> ItemOp {
    let name = Dirent { ino: dir, pos, kind: FileKind::Regular, name: "name".into() };
    put(Dirent::key_backref(ino, dir, pos), name.encode())
}

fn no_backref(ino: Ino, dir: Ino, pos: u64) -> ItemOp {
    ItemOp::Delete { key: Dirent::key_backref(ino, dir, pos) }
}

#[test]
fn changes_of_names_are_counted_on_all_reactors_and_nothing_else_is() {
    for reactors in [1, 3] {
        block_on(async {
            let device = memory(128 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, options(reactors)).await.unwrap();
            let mut client = Client::open(&stores[0], RID).await;
            let (dir, file, other) = (ino(1, 2), ino(100, 2), ino(200, 2));
            let (a_dir, a_file) = (of_kind(FileKind::Directory), of_kind(FileKind::Regular));
            let steps: Vec<(&str, bool, Vec<ItemOp>)> = vec![
                ("made", false, vec![put_inode(dir, &a_dir), put_inode(file, &a_file), backref(file, dir, 2)]),
                ("written", false, vec![put_inode(file, &Inode { size: 9, ..a_file.clone() })]),
                ("linked", true, vec![backref(file, dir, 3)]),
                ("renamed", true, vec![no_backref(file, dir, 2), backref(file, dir, 4)]),
                ("a name less", true, vec![no_backref(file, dir, 3)]),
                ("unlinked", false, vec![no_backref(file, dir, 4), ItemOp::DeleteInode { ino: file }]),
                ("made elsewhere", false, vec![put_inode(other, &a_dir), backref(other, dir, 5)]),
                ("a directory less", true, vec![no_backref(other, dir, 5), ItemOp::DeleteInode { ino: other }]),
            ];
            for (what, counts, ops) in steps {
                let before = stores[0].names();
                client.commit(&stores[0], ops).await.unwrap();
                // Applied everywhere: a read of what was changed comes behind the change.
                stores[0].get(&[Inode::key(file), Inode::key(other)], View::Applied).await.unwrap();
                let after: Vec<u64> = stores.iter().map(|store| store.names()).collect();
                assert!(after.iter().all(|n| (*n > before) == counts), "{what}: {before}, then {after:?}");
            }
            stores[0].shutdown().await.unwrap();
        });
    }
}

#[test]
fn a_batch_is_judged_in_its_turn_and_applied_whole_or_not_at_all() {
    block_on(async {
        let device = memory(128 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let home = stores[usize::from(stores[0].home_of(RID).0)].clone();
        Client::open(&home, RID).await;
        let (one, two) = (ino(1, 2), ino(200, 2));
        let seen = Rc::new(RefCell::new(Vec::new()));
        let judge = |verdict: Result<(), &'static str>| -> Judge {
            let (store, seen) = (home.clone(), seen.clone());
            Rc::new(move || {
                let (store, seen) = (store.clone(), seen.clone());
                Box::pin(async move {
                    let is_there = get(&store, Inode::key(one)).await.is_some();
                    seen.borrow_mut().push(is_there);
                    verdict.map_err(|reason| CommitError::Outside { reason: reason.into() })
                })
            })
        };
        let ops = || vec![put_inode(one, &inode(1, 1)), put_inode(two, &inode(1, 1))];
        let refused = home.commit_judged(RID, batch(1, ops()), Some(judge(Err("no")))).await;
        assert!(matches!(refused, Err(CommitError::Outside { reason }) if reason == "no"));
        assert_eq!(home.get(&[Inode::key(one), Inode::key(two)], View::Applied).await.unwrap(), [None, None]);
        // Both at once: the second is judged when the first is there.
        let first = home.commit_judged(RID, batch(1, ops()), Some(judge(Ok(()))));
        let second = home.commit_judged(RID, batch(2, ops()), Some(judge(Ok(()))));
        second.await.unwrap();
        first.await.unwrap();
        assert_eq!(*seen.borrow(), [false, false, true]);
        // One that was applied is not judged again.
        home.commit_judged(RID, batch(2, ops()), Some(judge(Err("never asked")))).await.unwrap();
        home.shutdown().await.unwrap();
    });
}

#[test]
fn freed_blocks_are_nobodys_while_they_are_held() {
    const BLOCKS: u64 = 64;
    block_on(async {
        let device = memory(64 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(1)).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        let (file, data) = (ino(1, 2), blocks(BLOCKS as usize, 7).freeze());
        let ranges = store.write_data(RID, data.clone()).await.unwrap();
        let mut ops: Vec<ItemOp> = Vec::new();
        let mut at = 0;
        for range in ranges {
            ops.push(extent_op(file, at, range, &data[..range.len_bytes()]));
            at += u64::from(range.len_blocks);
        }
        let mut death: Vec<ItemOp> = ops.iter().map(|op| ItemOp::Delete { key: key_of(op) }).collect();
        death.push(ItemOp::DeleteInode { ino: file });
        ops.push(put_inode(file, &inode(BLOCKS * 4096, 1)));
        client.commit(store, ops).await.unwrap();
        let waiting = async || store.status().await.unwrap().reactors[0].waiting_blocks;
        let held = store.hold_blocks();
        let epoch = client.commit(store, death).await.unwrap();
        store.wait_durable(epoch).await.unwrap();
        vellum_rt::sleep(Duration::from_millis(50)).await;
        assert_eq!(waiting().await, BLOCKS);
        drop(held);
        while waiting().await > 0 {
            vellum_rt::sleep(Duration::from_millis(1)).await; // a hang is the failure
        }
        store.shutdown().await.unwrap();
    });
}

fn key_of(op: &ItemOp) -> vellum_base::Key {
    match op {
        ItemOp::Put { key, .. } | ItemOp::Delete { key } => *key,
        ItemOp::DeleteInode { ino } => Inode::key(*ino),
    }
}

#[test]
fn whose_group_it_is_survives_a_crash() {
    block_on(async {
        let device = memory(128 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let (given, free) = (
            stores[0].alloc_group(None, Some(Ino(77))).await.unwrap(),
            stores[0].alloc_group(None, None).await.unwrap(),
        );
        drop(stores);
        let (stores, report) = start(&device, options(3)).await.unwrap();
        assert!(!report.clean);
        let root = get(&stores[0], system::root_key(given)).await.unwrap();
        assert_eq!(system::decode_counter(&root), Ok(77));
        assert_eq!(get(&stores[0], system::root_key(free)).await, None);
    });
}

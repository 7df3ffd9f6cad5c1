//! Copies by reference: which blocks are shared, what either file holds after more changes, and after a crash.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use common::{ME, content, engine, fsck, make, pattern, run, rw, vfs_on};
use vellum_base::Ino;
use vellum_client::testing::{FakeEngine, FakeOptions};
use vellum_format::{Extent, ItemKind};
use vellum_vfs::{Allocate, FileHandle, SetAttr, Vfs, VfsError};

const BLOCK: u64 = 4096;
const ROOT: Ino = Ino::ROOT;

/// Where a file's blocks are, in the durable state.
fn places(engine: &FakeEngine, ino: Ino) -> BTreeMap<u64, u64> {
    let mut places = BTreeMap::new();
    for (key, value) in engine.durable_items() {
        if key.first() == ino.0 && key.kind() == ItemKind::Extent as u8 {
            let header = Extent::decode_header(&value).unwrap();
            let first = Extent::first_block(&key, header.len_blocks).unwrap();
            places.extend((0..u64::from(header.len_blocks)).map(|i| (first + i, header.start.0 + i)));
        }
    }
    places
}

async fn open(vfs: &Vfs, ino: Ino) -> FileHandle {
    vfs.open(ino, rw()).await.unwrap().0
}

/// All of `from`, in as many calls as it takes.
async fn copy(vfs: &Vfs, from: (FileHandle, u64), to: (FileHandle, u64), len: u64) {
    let mut done = 0;
    while done < len {
        let copied = vfs.copy_range((from.0, from.1 + done), (to.0, to.1 + done), len - done, false).await.unwrap();
        assert!(copied > 0, "at {done} of {len}");
        done += copied;
    }
}

#[test]
fn a_long_file_is_shared_to_its_last_byte_and_each_copy_goes_its_own_way() {
    for max_run_blocks in [1, 256] {
        run(1, move || async move {
            let engine = FakeEngine::new(FakeOptions { max_run_blocks, ..FakeOptions::default() });
            let vfs = vfs_on(&engine);
            let len = 700 * BLOCK + 123;
            let mut old = pattern(1, len as usize);
            let a = make(&vfs, ROOT, "a", &old).await;
            let b = vfs.create(ME, ROOT, b"b", 0o644, rw()).await.unwrap().0.ino;
            let (from, to) = (open(&vfs, a).await, open(&vfs, b).await);
            copy(&vfs, (from, 0), (to, 0), len).await;
            assert_eq!(vfs.getattr(b).await.unwrap().blocks, 701 * 8);
            vfs.fsync(to).await.unwrap();
            let before = places(&engine, a);
            assert_eq!(before.len(), 701);
            assert!(places(&engine, b) == before, "other places");
            // Each is changed, and the other one is as it was.
            let mut new = old.clone();
            for (at, bytes) in [(100u64, 50u64), (300 * BLOCK, 4 * BLOCK), (699 * BLOCK + 9, 9000)] {
                let data = pattern(at, bytes as usize);
                vfs.write(to, at, &data, false).await.unwrap();
                new.resize(new.len().max((at + bytes) as usize), 0);
                new[at as usize..(at + bytes) as usize].copy_from_slice(&data);
            }
            vfs.fallocate(from, Allocate::PunchHole, 10 * BLOCK, 5 * BLOCK, false).await.unwrap();
            old[10 * BLOCK as usize..15 * BLOCK as usize].fill(0);
            let size = SetAttr { size: Some(600 * BLOCK + 1), ..SetAttr::default() };
            vfs.setattr(a, size).await.unwrap();
            old.truncate(600 * BLOCK as usize + 1);
            assert!(content(&vfs, a).await == old && content(&vfs, b).await == new);
            vfs.fsync(to).await.unwrap();
            let (left, now) = (places(&engine, a), places(&engine, b));
            assert_eq!(left.iter().filter(|(block, place)| now.get(block) == Some(place)).count(), 600 - 1 - 4 - 5);
            fsck::check(&engine.durable_items());
            vfs.client().abort();
            engine.crash();
            let vfs = vfs_on(&engine);
            assert!(content(&vfs, a).await == old && content(&vfs, b).await == new);
            vfs.unlink(ROOT, b"a").await.unwrap();
            assert!(content(&vfs, b).await == new);
        });
    }
}

async fn two(vfs: &Rc<Vfs>, a: &[u8], b: &[u8]) -> (Ino, Ino, FileHandle, FileHandle) {
    let (a, b) = (make(vfs, ROOT, "a", a).await, make(vfs, ROOT, "b", b).await);
    (a, b, open(vfs, a).await, open(vfs, b).await)
}

#[test]
fn parts_of_blocks_are_copied_and_whole_ones_between_them_are_shared() {
    run(2, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        let (old, mut new) = (pattern(1, 400 * BLOCK as usize), pattern(2, 500 * BLOCK as usize));
        let (a, b, from, to) = two(&vfs, &old, &new).await;
        let (start, end) = (BLOCK + 100, 390 * BLOCK + 50);
        copy(&vfs, (from, start), (to, 7 * BLOCK + 100), end - start).await;
        new[7 * BLOCK as usize + 100..][..(end - start) as usize].copy_from_slice(&old[start as usize..end as usize]);
        assert!(content(&vfs, b).await == new);
        vfs.fsync(to).await.unwrap();
        let (theirs, ours) = (places(&engine, a), places(&engine, b));
        let shared = ours.iter().filter(|(block, place)| theirs.get(&(**block - 6.min(**block))) == Some(place));
        assert_eq!(shared.count(), 388, "but the first block and the last one");
        // Where nothing lies alike, nothing is shared.
        copy(&vfs, (from, 1), (to, 0), 2000 * 512).await;
        new[..2000 * 512].copy_from_slice(&old[1..][..2000 * 512]);
        assert!(content(&vfs, b).await == new);
        // Within one file, onto what is not in the range.
        copy(&vfs, (to, 300 * BLOCK), (to, 20 * BLOCK), 100 * BLOCK).await;
        new.copy_within(300 * BLOCK as usize..400 * BLOCK as usize, 20 * BLOCK as usize);
        assert!(content(&vfs, b).await == new);
        vfs.fsync(to).await.unwrap();
        let ours = places(&engine, b);
        assert!((0..100).all(|i| ours[&(20 + i)] == ours[&(300 + i)]));
        fsck::check(&engine.durable_items());
    });
}

#[test]
fn what_the_target_had_in_memory_or_in_its_item_gives_way() {
    run(3, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        let old = pattern(1, 300 * BLOCK as usize);
        let (_, b, from, to) = two(&vfs, &old, b"small").await;
        vfs.fsync(from).await.unwrap();
        copy(&vfs, (from, 0), (to, 0), 2 * BLOCK).await;
        assert!(content(&vfs, b).await == old[..2 * BLOCK as usize]);
        vfs.write(to, 0, &pattern(3, 20 * BLOCK as usize), false).await.unwrap();
        copy(&vfs, (from, 5 * BLOCK), (to, BLOCK), 10 * BLOCK).await;
        let mut new = pattern(3, 20 * BLOCK as usize);
        new[BLOCK as usize..11 * BLOCK as usize].copy_from_slice(&old[5 * BLOCK as usize..15 * BLOCK as usize]);
        assert!(content(&vfs, b).await == new);
        vfs.fsync(to).await.unwrap();
        assert!(content(&vfs, b).await == new);
        let c = make(&vfs, ROOT, "c", b"left where it is").await;
        let third = open(&vfs, c).await;
        copy(&vfs, (from, 0), (third, BLOCK), BLOCK).await;
        assert_eq!(content(&vfs, c).await[..20], [&b"left where it is"[..], &[0; 4]].concat());
        assert_eq!(vfs.copy_range((from, 0), (from, BLOCK), 2 * BLOCK, false).await, Err(VfsError::INVAL));
        vfs.fsync(third).await.unwrap();
        fsck::check(&engine.durable_items());
    });
}

#[test]
fn in_format_version_1_all_of_it_is_copied() {
    run(4, || async {
        let engine = FakeEngine::new(FakeOptions { format: 1, ..FakeOptions::default() });
        let vfs = vfs_on(&engine);
        let len = 300 * BLOCK + 123;
        let old = pattern(1, len as usize);
        let (a, b, from, to) = two(&vfs, &old, b"").await;
        vfs.fsync(from).await.unwrap();
        copy(&vfs, (from, 0), (to, 0), len).await;
        assert!(content(&vfs, b).await == old);
        // Within one file, too.
        copy(&vfs, (to, 0), (to, 400 * BLOCK), 100 * BLOCK).await;
        let new = [&old[..], &vec![0; 100 * BLOCK as usize - 123], &old[..100 * BLOCK as usize]].concat();
        vfs.fsync(to).await.unwrap();
        vfs.client().abort();
        engine.crash();
        let vfs = vfs_on(&engine);
        assert!(content(&vfs, a).await == old && content(&vfs, b).await == new);
        let (theirs, ours) = (places(&engine, a), places(&engine, b));
        let all: BTreeSet<u64> = theirs.values().chain(ours.values()).copied().collect();
        assert_eq!((theirs.len(), ours.len(), all.len()), (301, 401, 702), "each block has one owner");
        fsck::check(&engine.durable_items());
    });
}

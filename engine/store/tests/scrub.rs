//! P3: what rots while nobody reads it is found by the scrub of a running store, repaired where a good copy is left, and
//! named with its file where none is.

mod common;

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use vellum_base::{BlockAddr, BlockRange, Ino, KeyRange, Rid, View};
use vellum_format::{Dirent, FileKind, Inode, Owners, Superblock};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, MkfsOptions, OpenOptions, ScrubStatus, Store, StoreError, mkfs};

const BLOCK: u64 = 4096;
const SEGMENT_MAGIC: u32 = 0x314b_5356;
const BLOCK_MAGIC: u32 = 0x4d4c_4c56;
const SEAL: u16 = 4;

async fn made(bytes: u64, metadata_copies: u8) -> (MemoryDevice, Arc<dyn Device>) {
    let memory = MemoryDevice::new(bytes);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    let q = queue(&device);
    mkfs(&device, &q, MkfsOptions { metadata_copies, ..MkfsOptions::default() }).await.unwrap();
    (memory, device)
}

async fn scrub(store: &Rc<Store>) -> ScrubStatus {
    let mut status = store.start_scrub(0).await.unwrap();
    while status.running {
        vellum_rt::sleep(Duration::from_millis(1)).await;
        status = store.scrub_status().await.unwrap();
    }
    assert_eq!(status.ended_early, None);
    status
}

fn flip(image: &mut Image, block: u64) {
    let mut byte = [0];
    image.read(block * BLOCK + 2000, &mut byte);
    image.write(block * BLOCK + 2000, &[byte[0] ^ 0x10]);
}

fn rot(memory: &MemoryDevice, blocks: impl IntoIterator<Item = u64>) {
    let mut image = memory.snapshot();
    blocks.into_iter().for_each(|block| flip(&mut image, block));
    memory.restore(image);
}

/// Blocks that begin with `magic` and what `wanted` says of their first bytes.
fn find(memory: &MemoryDevice, magic: u32, at: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let image = memory.snapshot();
    let mut head = [0; 40];
    let mut found = Vec::new();
    for block in 0..image.len_bytes() / BLOCK {
        image.read(block * BLOCK, &mut head);
        if head[at..at + 4] == magic.to_le_bytes() && wanted(&head) {
            found.push(block);
        }
    }
    found
}

async fn write(store: &Rc<Store>, client: &mut Client, ino: Ino, byte: u8) -> Vec<BlockRange> {
    let data = blocks(8, byte).freeze();
    let ranges = store.write_data(client.rid, data.clone()).await.unwrap();
    let mut ops = vec![put_inode(ino, &Inode { online_blocks: 8, ..inode(8 * BLOCK, u64::from(byte)) })];
    let mut at = 0;
    for range in &ranges {
        let end = at + range.len_blocks as usize;
        ops.push(extent_op(ino, at as u64, *range, &data[at * 4096..end * 4096]));
        at = end;
    }
    client.commit(store, ops).await.unwrap();
    ranges
}

/// Small memtables and caches: much goes to segments, and little stays in memory.
fn small(reactors: usize) -> OpenOptions {
    OpenOptions { memtable_bytes: 256 << 10, cache_bytes: 64 << 10, ..options(reactors) }
}

#[test]
fn what_memory_still_has_is_written_again() {
    block_on(async {
        let (memory, device) = made(128 * MIB, 1).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        for n in 0..40u8 {
            write(&stores[usize::from(n % 2)], &mut client, ino(n * 6, 2), n).await;
            let open = stores[0].durable_epoch().next();
            stores[0].wait_durable(open).await.unwrap();
        }
        assert_eq!(scrub(&stores[1]).await.problems, 0);
        let mut block = vec![0; 4096];
        memory.snapshot().read(0, &mut block);
        let sb = Superblock::decode(&block, BlockAddr(0)).unwrap();
        let term = stores[0].term().0;
        let seals = find(&memory, BLOCK_MAGIC, 4, |head| {
            head[8..10] == SEAL.to_le_bytes() && head[32..40] == term.to_le_bytes()
        });
        assert!(seals.len() > 20);
        // Both superblocks, both copies of both manifest areas, and a seal in the middle of those that a replay needs.
        let manifests = sb.manifest.iter().flatten().map(|area| area.start.0);
        rot(&memory, [0, sb.copy.0, seals[seals.len() / 2]].into_iter().chain(manifests));
        let status = scrub(&stores[0]).await;
        assert!(status.problems >= 4 && status.problems == status.repaired, "{status:#?}");
        for what in ["superblock at block 0", "manifest", "log"] {
            assert!(status.findings.iter().any(|f| f.place == what && f.repaired), "{what}: {status:#?}");
        }
        assert_eq!(scrub(&stores[0]).await.problems, 0, "all is well again");
        // And so a crash now loses nothing.
        let crashed: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(memory.snapshot()));
        let (stores, report) = start(&crashed, options(1)).await.unwrap();
        assert!(report.repaired.is_empty());
        for n in 0..40u8 {
            assert!(get(&stores[0], Inode::key(ino(n * 6, 2))).await.is_some());
        }
    });
}

#[test]
fn a_rotten_block_of_a_file_is_named_with_its_path() {
    block_on(async {
        let (memory, device) = made(128 * MIB, 1).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        let (dir, file) = (ino(200, 5), ino(7, 9));
        let mut names = Vec::new();
        for (ino, above, name) in [(dir, Ino::ROOT, "letters"), (file, dir, "old.txt")] {
            let entry = Dirent { ino: above, pos: 3, kind: FileKind::Directory, name: name.as_bytes().to_vec().into() };
            names.push(put(Dirent::key_backref(ino, above, 3), entry.encode()));
        }
        names.push(put_inode(dir, &inode(0, 1)));
        let ranges = write(&stores[1], &mut client, file, 1).await;
        client.commit(&stores[0], names).await.unwrap();
        write(&stores[1], &mut client, ino(90, 9), 2).await;
        rot(&memory, [ranges[0].start.0 + 1]);
        let status = scrub(&stores[0]).await;
        assert_eq!((status.problems, status.repaired), (1, 0), "{status:#?}");
        let found = &status.findings[0];
        assert_eq!(found.place, format!("block {}", ranges[0].start.0 + 1));
        assert!(found.affects.starts_with("/letters/old.txt (inode "), "{found:?}");
        assert!(found.affects.ends_with("from byte 4096") && found.advice.contains("restore the file"), "{found:?}");
    });
}

#[test]
fn a_rotten_segment_block_names_what_is_lost_and_the_rest_is_verified() {
    block_on(async {
        let (memory, device) = made(128 * MIB, 1).await;
        let (stores, _) = start(&device, small(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        for n in 0..600u64 {
            write(&stores[0], &mut client, ino(7, 2 + n), n as u8).await;
        }
        let elsewhere = write(&stores[0], &mut client, ino(90, 5), 1).await;
        stores[0].shutdown().await.unwrap();
        drop(stores);
        let data = find(&memory, SEGMENT_MAGIC, 0, |head| head[8] == 1);
        assert!(data.len() > 8, "{} blocks", data.len());
        // One of a file in another shard, and one of items that is not of a segment merged away by now. Each time a fresh
        // store: it must not have the block in memory. (One before a gap of many empty buckets names a piece for each zone
        // in it, and the list of findings ends before the rest.)
        rot(&memory, [elsewhere[0].start.0]);
        let mut status = ScrubStatus::default();
        for block in data[data.len() / 4..].iter().copied() {
            rot(&memory, [block]);
            // (With a block of bitmaps it would not start.)
            let Ok((stores, _)) = start(&device, small(1)).await else {
                rot(&memory, [block]);
                continue;
            };
            status = scrub(&stores[0]).await;
            if status.problems < 40 && status.findings.iter().any(|f| f.place == "segment") {
                break;
            }
            rot(&memory, [block]); // as it was
            stores[0].shutdown().await.unwrap();
        }
        assert!(status.problems >= 3 && status.repaired == 0, "{status:#?}");
        let segment = status.findings.iter().find(|f| f.place == "segment").expect("the segment's block");
        assert!(segment.affects.starts_with("inodes") && segment.advice.contains("restore"), "{segment:?}");
        assert!(status.findings.iter().any(|f| f.place == format!("block {}", elsewhere[0].start.0)), "{status:#?}");
        let unread = status.findings.iter().filter(|f| f.place.starts_with("items from")).count();
        assert!(unread > 0 && unread < 40, "{unread} pieces were left out");
        // The checker, too, goes on behind it.
        let q = queue(&device);
        let report = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
        assert!(report.problems.iter().any(|p| p.detail.contains("cannot be read")), "{:#?}", report.problems);
        assert!(report.problems.iter().any(|p| p.detail.contains("checksum")), "{:#?}", report.problems);
        assert!(report.inodes > 100, "{} of 600 inodes were checked", report.inodes);
    });
}

/// The first of two equal blocks of segments, and the second.
fn copies(memory: &MemoryDevice) -> (Vec<u64>, Vec<u64>) {
    let image = memory.snapshot();
    let (mut seen, mut firsts, mut seconds) = (HashSet::new(), Vec::new(), Vec::new());
    for block in find(memory, SEGMENT_MAGIC, 0, |_| true) {
        let mut bytes = vec![0; 4096];
        image.read(block * BLOCK, &mut bytes);
        if seen.insert(bytes) { firsts.push(block) } else { seconds.push(block) }
    }
    (firsts, seconds)
}

#[test]
fn with_two_copies_a_rotten_one_is_written_again() {
    for offline in [false, true] {
        block_on(async {
            let (memory, device) = made(128 * MIB, 2).await;
            let (stores, _) = start(&device, small(1)).await.unwrap();
            let mut client = Client::open(&stores[0], RID).await;
            for n in 0..300u64 {
                write(&stores[0], &mut client, ino(7, 2 + n), n as u8).await;
            }
            stores[0].compact_all().await.unwrap();
            stores[0].shutdown().await.unwrap();
            drop(stores);
            let (firsts, seconds) = copies(&memory);
            assert!(seconds.len() > 4 && firsts.len() >= seconds.len());
            // Now in one copy, now in the other; some are of segments that are no more.
            let bad: Vec<u64> = seconds.iter().copied().step_by(2).collect();
            rot(&memory, bad.iter().copied());
            if offline {
                rot(&memory, [0]);
                let q = queue(&device);
                let report = vellum_store::repair(&device, &q).await.unwrap();
                assert!(report.left.is_empty() && report.repaired.len() > 1, "{report:#?}");
            } else {
                let (stores, _) = start(&device, small(1)).await.unwrap();
                let status = scrub(&stores[0]).await;
                assert!(status.problems > 0 && status.repaired == status.problems, "{status:#?}");
                assert_eq!(scrub(&stores[0]).await.problems, 0);
                stores[0].shutdown().await.unwrap();
            }
            // What is left when the other copies go is what was repaired.
            rot(&memory, firsts.iter().copied().filter(|block| !seconds.contains(block)).take(1));
            let q = queue(&device);
            let report = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
            assert!(report.problems.is_empty(), "{:#?}", report.problems);
            assert_eq!(report.inodes, 300);
        });
    }
}

/// Blocks are freed and used again, segments merged and the log trimmed under the eyes of a scrub: it must not cry wolf.
#[test]
fn under_load_nothing_is_found_that_is_not_there() {
    block_on(async {
        let (_memory, device) = made(96 * MIB, 1).await;
        let (stores, _) = start(&device, small(2)).await.unwrap();
        let scrubs = {
            let store = stores[1].clone();
            vellum_rt::spawn(vellum_rt::Class::Request, "scrubs", async move {
                let mut read = 0;
                for _ in 0..6 {
                    let status = scrub(&store).await;
                    assert_eq!(status.problems, 0, "{status:#?}");
                    read += status.read_bytes;
                }
                read
            })
        };
        let mut client = Client::open(&stores[0], RID).await;
        let mut old = std::collections::HashMap::new();
        for n in 0..4000u64 {
            let (store, at) = (&stores[(n % 2) as usize], ino((n * 37 % 256) as u8, 2 + n % 300 / 100));
            let ranges = write_over(store, &mut client, at, n as u8, old.remove(&at)).await;
            old.insert(at, ranges);
            if n % 500 == 499 {
                stores[0].compact_all().await.unwrap();
            }
        }
        assert!(scrubs.await.unwrap() > 10 * MIB);
        assert_eq!(scrub(&stores[0]).await.completed, 7);
        stores[0].shutdown().await.unwrap();
    });
}

/// As `write`, for a file that has blocks already: they are freed.
async fn write_over(
    store: &Rc<Store>,
    client: &mut Client,
    ino: Ino,
    byte: u8,
    old: Option<Vec<vellum_base::Key>>,
) -> Vec<vellum_base::Key> {
    let data = blocks(8, byte).freeze();
    let ranges = store.write_data(client.rid, data.clone()).await.unwrap();
    let mut ops: std::collections::BTreeMap<_, _> =
        old.into_iter().flatten().map(|key| (key, vellum_base::ItemOp::Delete { key })).collect();
    let mut at = 0;
    let mut keys = Vec::new();
    for range in &ranges {
        let end = at + range.len_blocks as usize;
        let op = extent_op(ino, at as u64, *range, &data[at * 4096..end * 4096]);
        let vellum_base::ItemOp::Put { key, .. } = &op else { unreachable!() };
        keys.push(*key);
        ops.insert(*key, op);
        at = end;
    }
    let mut ops: Vec<_> = ops.into_values().collect();
    ops.push(put_inode(ino, &Inode { online_blocks: 8, ..inode(8 * BLOCK, u64::from(byte)) }));
    client.commit(store, ops).await.unwrap();
    keys
}

#[test]
fn a_scrub_is_slowed_watched_and_stopped() {
    block_on(async {
        let (_memory, device) = made(96 * MIB, 1).await;
        let (stores, _) = start(&device, small(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        for n in 0..64u64 {
            write(&stores[0], &mut client, ino((n * 4) as u8, 2), n as u8).await;
        }
        let status = stores[0].start_scrub(1).await.unwrap(); // a byte per second
        assert!(status.running && status.expected_bytes >= 64 * 8 * BLOCK, "{status:?}");
        while stores[0].scrub_status().await.unwrap().read_bytes == 0 {
            vellum_rt::sleep(Duration::from_millis(1)).await;
        }
        assert!(stores[0].stop_scrub().await.unwrap().running, "it is in its pause");
        while stores[0].scrub_status().await.unwrap().running {
            vellum_rt::sleep(Duration::from_millis(1)).await;
        }
        let status = stores[0].scrub_status().await.unwrap();
        assert_eq!((status.ended_early.as_deref(), status.completed), (Some("it was stopped"), 0));
        stores[0].start_scrub(1).await.unwrap();
        assert_eq!(stores[0].start_scrub(0).await.unwrap().rate_bytes_per_s, 0, "a running one takes the rate");
        assert_eq!(scrub(&stores[0]).await.completed, 1);
    });
}

/// Items of other kinds stand in most blocks of a small filesystem; a bucket with many chunks has blocks of nothing but
/// bitmaps. Those are found out from the extents again.
#[test]
fn rotten_bitmaps_refuse_the_start_and_are_rebuilt_from_the_extents() {
    rotten_bitmaps(false);
}

/// The rebuilt ones as well, for the versions before.
#[test]
fn format_version_1_has_no_counts_of_owners() {
    rotten_bitmaps(true);
}

fn rotten_bitmaps(format_1: bool) {
    block_on(async {
        let (memory, device) = made(192 * MIB, 1).await;
        if format_1 {
            let mut image = memory.snapshot();
            of_format_1(&mut image);
            memory.restore(image);
        }
        // Each start grants the first chunks to the first bucket.
        let mut n = 0;
        for _ in 0..16 {
            let (stores, _) = start(&device, small(1)).await.unwrap();
            let mut client = Client::open(&stores[0], RID).await;
            for _ in 0..224 {
                let at = ino((n % 250) as u8 + 3, 2 + n);
                // Some have blocks of the one before, so that there are counts of owners among the bitmaps.
                if n % 4 == 3 && !format_1 {
                    share(&stores[0], &mut client, ino(((n - 1) % 250) as u8 + 3, 1 + n), at).await;
                } else {
                    write(&stores[0], &mut client, at, n as u8).await;
                }
                n += 1;
            }
            stores[0].compact_all().await.unwrap();
            stores[0].shutdown().await.unwrap();
        }
        let whole = memory.snapshot();
        let (mut refused, mut mended) = (0, 0);
        for block in find(&memory, SEGMENT_MAGIC, 0, |head| head[8] == 1) {
            let memory = MemoryDevice::from_image(whole.clone());
            let device: Arc<dyn Device> = Arc::new(memory.clone());
            rot(&memory, [block]);
            let Err(error) = start(&device, small(1)).await else { continue };
            refused += 1;
            assert!(matches!(error, StoreError::Bitmaps { .. }), "{error}");
            assert!(error.to_string().contains("vellum check --repair"), "{error}");
            let q = queue(&device);
            let report = match vellum_store::repair(&device, &q).await {
                Ok(report) => report,
                // Extents were in it as well: who has their blocks is lost.
                Err(StoreError::Extents { .. }) => continue,
                Err(e) => panic!("{e}"),
            };
            assert!(report.repaired.iter().any(|what| what.starts_with("bitmaps of bucket")), "{report:#?}");
            let (stores, _) = start(&device, small(1)).await.unwrap();
            if format_1 {
                assert_eq!(counts_of_owners(&stores[0]).await, 0);
            }
            let mut client = Client::open(&stores[0], Rid(77)).await;
            write(&stores[0], &mut client, ino(1, 99), 9).await;
            stores[0].compact_all().await.unwrap();
            stores[0].shutdown().await.unwrap();
            drop(stores);
            let report_of = vellum_store::check(&device, &q, CheckOptions { data: true }).await.unwrap();
            if report.left.is_empty() {
                mended += 1;
                assert!(report_of.problems.is_empty(), "{:#?}", report_of.problems);
                assert_eq!(report_of.inodes, n + 1);
            }
        }
        println!("{refused} blocks refuse the start, {mended} are as if nothing had been");
        assert!(mended > 0 && refused >= mended);
    });
}

async fn counts_of_owners(store: &Rc<Store>) -> usize {
    let (mut range, mut found) = (KeyRange::ALL, 0);
    loop {
        let page = store.scan(range, 1000, 1 << 20, View::Applied).await.unwrap();
        found += page.items.iter().filter(|(key, _)| Owners::place(key).is_some()).count();
        match page.next {
            Some(next) => range.first = next,
            None => return found,
        }
    }
}

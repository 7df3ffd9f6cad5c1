//! Holes of many extents, room on the device, nameless files of gateways that die, and listings that fill the cache.

mod common;

use std::time::Duration;

use common::{ME, content, engine, fsck, pattern, read_handle, run, rw, vfs_on};
use vellum_base::Ino;
use vellum_client::ClientOptions;
use vellum_client::testing::{FakeEngine, FakeOptions};
use vellum_vfs::{Allocate, Seek, Vfs, VfsError, VfsOptions};

const BLOCK: u64 = 4096;

/// More extents than one transaction takes: the hole is made in steps, and a crash between two leaves a whole file.
#[test]
fn a_hole_of_many_extents_is_made_in_steps() {
    for crash in [false, true] {
        run(3, move || async move {
            let fake = FakeOptions { max_run_blocks: 1, ..FakeOptions::default() };
            let engine = FakeEngine::new(fake);
            let vfs = vfs_on(&engine);
            let (attr, handle) = vfs.create(ME, Ino::ROOT, b"f", 0o644, rw()).await.unwrap();
            let mut expected = pattern(1, 2000 * BLOCK as usize);
            vfs.write(handle, 0, &expected, false).await.unwrap();
            vfs.fsync(handle).await.unwrap();
            let (start, end) = (10 * BLOCK + 100, 1900 * BLOCK + 7);
            vfs.fallocate(handle, Allocate::PunchHole, start, end - start, false).await.unwrap();
            let whole = expected.clone();
            expected[start as usize..end as usize].fill(0);
            assert!(read_handle(&vfs, handle, 0, expected.len()).await == expected);
            assert_eq!(vfs.seek(handle, 0, Seek::Hole).await, Ok(11 * BLOCK));
            assert_eq!(vfs.seek(handle, 11 * BLOCK, Seek::Data).await, Ok(1900 * BLOCK));
            if crash {
                vfs.client().abort();
                engine.crash();
                fsck::check(&engine.durable_items());
                // Nothing of the hole was waited for: each block is as before or zero.
                let found = content(&vfs_on(&engine), attr.ino).await;
                assert_eq!(found.len(), whole.len());
                for (i, block) in found.chunks(BLOCK as usize).enumerate() {
                    let at = i * BLOCK as usize..i * BLOCK as usize + block.len();
                    let same = block == &whole[at.clone()] || block == &expected[at];
                    assert!(same || block.iter().all(|b| *b == 0), "block {i}");
                }
            } else {
                vfs.fsync(handle).await.unwrap();
                assert_eq!(vfs.getattr(attr.ino).await.unwrap().blocks, (2000 - 1889) * 8);
                fsck::check(&engine.durable_items());
                assert!(content(&vfs, attr.ino).await == expected);
            }
        });
    }
}

/// With hardly any room a write returns when the engine has its data, and what is too much for fallocate is said.
#[test]
fn near_the_end_of_the_device_nothing_waits_in_memory() {
    run(4, || async {
        let fake = FakeOptions { available_blocks: 100, ..FakeOptions::default() };
        let engine = FakeEngine::new(fake);
        let vfs = vfs_on(&engine);
        let (attr, handle) = vfs.create(ME, Ino::ROOT, b"f", 0o644, rw()).await.unwrap();
        for i in 0..20u64 {
            vfs.write(handle, i * 10_000, &pattern(i, 10_000), false).await.unwrap();
            assert_eq!(vfs.buffered_bytes(), 0);
        }
        let room = |blocks: u64| vfs.fallocate(handle, Allocate::Room { keep_size: false }, 0, blocks * BLOCK, false);
        assert_eq!(room(1000).await, Err(VfsError::NOSPC));
        assert_eq!(vfs.getattr(attr.ino).await.unwrap().size, 200_000);
        room(100).await.unwrap();
        assert_eq!(vfs.getattr(attr.ino).await.unwrap().size, 100 * BLOCK);
    });
}

/// Its maker dies: another gateway's cleaner takes a nameless file away, with its blocks.
#[test]
fn a_nameless_file_dies_with_its_gateway() {
    run(5, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        let (attr, handle) = vfs.tmpfile(ME, Ino::ROOT, 0o600, rw()).await.unwrap();
        vfs.write(handle, 0, &pattern(1, 100_000), false).await.unwrap();
        vfs.fsync(handle).await.unwrap();
        fsck::check(&engine.durable_items());
        vfs.client().abort();
        engine.crash();
        let other = vfs_on(&engine);
        vellum_rt::sleep(Duration::from_secs(600)).await;
        assert_eq!(other.getattr(attr.ino).await, Err(VfsError::STALE));
        other.syncfs().await.unwrap();
        fsck::check(&engine.durable_items());
    });
}

/// A listing reads nothing but ranges of one directory: those must make room for each other, or memory grows with it.
#[test]
fn a_listing_stays_within_the_cache() {
    run(6, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        for i in 0..20_000 {
            vfs.mknod(ME, Ino::ROOT, format!("name-{i:05}").as_bytes(), 0o644, 0).await.unwrap();
        }
        vfs.syncfs().await.unwrap();
        vfs.shutdown().await.unwrap();
        vfs.client().farewell().await.unwrap();
        let options = ClientOptions { cache_bytes: 64 << 10, ..ClientOptions::default() };
        let vfs = Vfs::new(engine.client(options), VfsOptions::default());
        let (mut pos, mut count, mut most) = (2, 0, 0);
        loop {
            let page = vfs.readdir(Ino::ROOT, pos, 200, false).await.unwrap();
            let Some(last) = page.last() else { break };
            pos = last.next_pos;
            count += page.len();
            most = most.max(vfs.client().stats().cached_bytes);
        }
        assert_eq!(count, 20_000);
        assert!(most < 512 << 10, "{most} bytes in the cache");
    });
}

/// Which names a directory does not have is remembered when its items are not: making one asks the engine for next to nothing.
#[test]
fn a_name_that_never_was_is_not_asked_for_again() {
    run(7, || async {
        let engine = engine();
        let options = ClientOptions { cache_bytes: 512 << 10, large_group_items: 512, ..ClientOptions::default() };
        let vfs = Vfs::new(engine.client(options), VfsOptions::default());
        let dir = vfs.mkdir(ME, Ino::ROOT, b"large", 0o755).await.unwrap().ino;
        let name = |i: u64| format!("name-{i:05}").into_bytes();
        const NAMES: u64 = 8000;
        for i in 0..NAMES {
            vfs.mknod(ME, dir, &name(i), 0o644, 0).await.unwrap();
            if i % 200 == 0 {
                vfs.syncfs().await.unwrap(); // changes stay until they are durable
            }
        }
        let stats = vfs.client().stats();
        assert!(stats.evictions > 20 && stats.cached_bytes < 1 << 20, "{stats:?}");
        // One in two hundred is taken for one that was there, and the end of the cache's bound may come first.
        assert!(stats.scan_misses < NAMES / 20, "{} questions for {NAMES} new names", stats.scan_misses);
        // What is there is found, what was removed is not, and comes back.
        for i in (0..NAMES).step_by(97) {
            assert_eq!(vfs.mknod(ME, dir, &name(i), 0o644, 0).await.unwrap_err(), VfsError::EXIST);
            assert_eq!(vfs.lookup(dir, &name(i + NAMES)).await, Err(VfsError::NOENT));
            vfs.unlink(dir, &name(i)).await.unwrap();
        }
        for i in 0..1000 {
            vfs.mknod(ME, dir, &name(i + 2 * NAMES), 0o644, 0).await.unwrap();
        }
        for i in (0..NAMES).step_by(97) {
            assert_eq!(vfs.lookup(dir, &name(i)).await, Err(VfsError::NOENT));
            vfs.mknod(ME, dir, &name(i), 0o644, 0).await.unwrap();
        }
        let (mut pos, mut count) = (2, 0);
        while let [.., last] = &vfs.readdir(dir, pos, 500, false).await.unwrap()[..] {
            pos = last.next_pos;
            count += 1;
        }
        assert_eq!(count, (NAMES + 1000).div_ceil(500), "pages");
        vfs.syncfs().await.unwrap();
        fsck::check(&engine.durable_items());
    });
}

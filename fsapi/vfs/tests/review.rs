//! Stories of faults that a review of the code found, each once real.

mod common;

use std::time::Duration;

use common::{ME, content, engine, make, pattern, run, rw, vfs_on, vfs_with};
use vellum_base::{Ino, View};
use vellum_client::ClientOptions;
use vellum_client::testing::{FakeEngine, FakeOptions};
use vellum_format::Inode;
use vellum_rt as rt;
use vellum_vfs::{SetAttr, Vfs, VfsOptions};

async fn committed_version(vfs: &Vfs, ino: Ino) -> u64 {
    let values = vfs.client().get_at(vec![Inode::key(ino)], View::Applied).await.unwrap();
    Inode::decode(values[0].as_ref().unwrap()).unwrap().data_version
}

/// The size was committed under the version that the content in memory was to get: the engine took the later commit of that
/// content for no change, and agents that followed the data index missed it.
#[test]
fn content_that_is_committed_after_a_truncation_is_one_more_version() {
    for size in [10_000, 30_000] {
        run(1, move || async move {
            let engine = engine();
            let vfs = vfs_on(&engine);
            let (attr, handle) = vfs.create(ME, Ino::ROOT, b"f", 0o644, rw()).await.unwrap();
            vfs.write(handle, 0, &pattern(1, 20_000), false).await.unwrap();
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            let seen = vfs.setattr(attr.ino, set).await.unwrap().data_version;
            vfs.client().sync().await.unwrap();
            let truncated = committed_version(&vfs, attr.ino).await;
            vfs.fsync(handle).await.unwrap();
            let written = committed_version(&vfs, attr.ino).await;
            assert!(truncated < written, "{size}: {truncated} and {written} are different contents");
            assert_eq!(written, seen, "{size}: nothing changed for those who looked through this gateway");
        });
    }
}

/// Shrinking wrote the last block anew, from memory, under a committed size that ended before it: after a crash, bytes past
/// the file's end were on the device, and growing the file showed them.
#[test]
fn scenario_45_a_truncation_leaves_nothing_past_the_end_when_the_rest_is_lost() {
    run(1, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        let (attr, handle) = vfs.create(ME, Ino::ROOT, b"f", 0o644, rw()).await.unwrap();
        vfs.write(handle, 0, &[1; 4097], false).await.unwrap();
        vfs.fsync(handle).await.unwrap();
        vfs.write(handle, 0, &[2; 12_288], false).await.unwrap();
        vfs.setattr(attr.ino, SetAttr { size: Some(4_200), ..SetAttr::default() }).await.unwrap();
        vfs.client().sync().await.unwrap(); // the truncation is durable, block 0 is not
        vfs.client().abort();
        engine.crash();
        let vfs = vfs_on(&engine);
        let size = vfs.getattr(attr.ino).await.unwrap().size as usize;
        vfs.setattr(attr.ino, SetAttr { size: Some(8_192), ..SetAttr::default() }).await.unwrap();
        let content = content(&vfs, attr.ino).await;
        assert!(content[size..].iter().all(|byte| *byte == 0), "old bytes after {size}");
    });
}

/// A drain that found nothing but files under truncation asked again at once, for ever: the truncation waited for a frame
/// that the spinning reactor could not receive.
#[test]
fn scenario_45_a_drain_lets_truncations_come_to_their_end() {
    let (alive, watched) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        // A task that spins cannot be timed out from within.
        if watched.recv_timeout(Duration::from_secs(120)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("a drain spins");
            std::process::abort();
        }
    });
    for seed in 0..40 {
        run(seed, || async {
            let engine = FakeEngine::new(FakeOptions { latency: Duration::from_millis(20), ..FakeOptions::default() });
            let options = VfsOptions { max_dirty_bytes: 1 << 20, ..VfsOptions::default() };
            let vfs = vfs_with(&engine, options);
            let (attr, handle) = vfs.create(ME, Ino::ROOT, b"f", 0o644, rw()).await.unwrap();
            for round in 0..6u64 {
                // In flight, then dirty again, then truncated while more than the limit is dirty.
                vfs.write(handle, 0, &pattern(round, 100 << 12), false).await.unwrap();
                rt::sleep(Duration::from_micros(rt::random_u64() % 200)).await;
                vfs.write(handle, 0, &pattern(round, 100 << 12), false).await.unwrap();
                let set = SetAttr { size: Some(99 << 12), ..SetAttr::default() };
                vfs.setattr(attr.ino, set).await.unwrap();
            }
            vfs.fsync(handle).await.unwrap();
            assert_eq!(vfs.getattr(attr.ino).await.unwrap().size, 99 << 12);
        });
    }
    drop(alive);
}

/// With the lease held but the items not cached, each entry's attributes cost a round trip of their own.
#[test]
fn listing_with_attributes_asks_once_for_many_inodes() {
    run(1, || async {
        let engine = engine();
        let first = vfs_on(&engine);
        let dir = first.mkdir(ME, Ino::ROOT, b"d", 0o755).await.unwrap().ino;
        for i in 0..400 {
            make(&first, dir, &format!("file{i:03}"), b"content").await;
        }
        first.syncfs().await.unwrap();
        let second = Vfs::new(engine.client(ClientOptions::default()), VfsOptions::default());
        for name in [b"file007", b"file399"] {
            second.lookup(dir, name).await.unwrap(); // takes the leases of the directory's two groups
        }
        second.readdir(dir, 0, 1000, false).await.unwrap();
        let before = engine.requests();
        let entries = second.readdir(dir, 0, 1000, true).await.unwrap();
        let with_attr = entries.iter().filter(|e| e.attr.is_some()).count();
        assert!(with_attr >= 300, "{with_attr}");
        assert!(engine.requests() - before < 20, "{} requests", engine.requests() - before);
    });
}

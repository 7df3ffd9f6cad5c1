//! A change of leaders in the middle of an operation is no error to anybody.

mod common;

use std::time::Duration;

use common::*;
use vellum_base::{BLOCK_SIZE, Ino};
use vellum_client::testing::{FakeEngine, FakeOptions};
use vellum_rt::{Class, sleep, spawn};
use vellum_vfs::{RenameMode, SetAttr, Vfs, VfsOptions};

const ROOT: Ino = Ino::ROOT;
const LEN: usize = 40 * BLOCK_SIZE + 10;

/// The new leader has no place in one piece for data that is not durable: the extents that name it are torn when it is sent
/// again, while an operation works with what it has read of them. (It was EIO, and for data on its way lost data.)
fn in_the_middle(operation: impl AsyncFn(&Vfs, Ino) -> usize + Copy + 'static) {
    for step in 0..40u64 {
        run(step, move || async move {
            let engine = FakeEngine::new(FakeOptions {
                latency: Duration::from_millis(1),
                epoch_delay: Duration::from_secs(10),
                max_resent_run_blocks: 3,
                ..FakeOptions::default()
            });
            let vfs = vfs_with(&engine, VfsOptions { dirty_age: Duration::from_millis(5), ..VfsOptions::default() });
            let ino = make(&vfs, ROOT, "f", &pattern(1, LEN)).await;
            while vfs.buffered_bytes() > 0 {
                sleep(Duration::from_millis(1)).await; // committed, and not durable
            }
            let crash = {
                let engine = engine.clone();
                spawn(Class::Request, "new leader", async move {
                    sleep(Duration::from_micros(step * 200)).await;
                    engine.crash();
                })
            };
            let len = operation(&vfs, ino).await;
            assert!(crash.await.is_ok());
            vfs.syncfs().await.expect("everything arrives");
            fsck::check(&engine.durable_items());
            let found = if len > 0 { content(&vfs, ino).await } else { Vec::new() };
            assert_eq!(found, pattern(1, LEN)[..len], "crash at step {step}");
        });
    }
}

#[test]
fn a_truncation_reads_again_what_the_new_leader_has_torn() {
    in_the_middle(async |vfs, ino| {
        let size = 7 * BLOCK_SIZE + 100;
        vfs.setattr(ino, SetAttr { size: Some(size as u64), ..SetAttr::default() }).await.expect("no error");
        size
    });
}

#[test]
fn a_replaced_file_dies_with_all_its_parts() {
    in_the_middle(async |vfs, ino| {
        make(vfs, ROOT, "g", b"").await;
        let other = vfs.lookup(ROOT, b"g").await.expect("it is there").ino;
        vfs.rename(ROOT, b"g", ROOT, b"f", RenameMode::Replace).await.expect("no error");
        assert_eq!(vfs.lookup(ROOT, b"f").await.expect("it is there").ino, other);
        assert!(vfs.getattr(ino).await.is_err());
        0
    });
}

#[test]
fn data_on_its_way_arrives() {
    in_the_middle(async |vfs, ino| {
        let (handle, _) = vfs.open(ino, rw()).await.expect("open");
        let bytes = pattern(1, LEN);
        for at in [3, 9, 21] {
            let at = at * BLOCK_SIZE;
            vfs.write(handle, at as u64, &bytes[at..at + 2 * BLOCK_SIZE], false).await.expect("write");
            vfs.fsync(handle).await.expect("no error");
        }
        vfs.release(handle).await.expect("release");
        LEN
    });
}

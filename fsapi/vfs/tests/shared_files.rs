//! Two and three gateways on one engine: files that outlive their names, and advisory locks.

mod common;

use std::cell::{Cell, RefCell};
use std::future::{pending, ready};
use std::rc::Rc;
use std::time::Duration;

use common::*;
use vellum_base::Ino;
use vellum_rt::{Class, sleep, spawn};
use vellum_vfs::FileLockMode::{Exclusive, Shared, Unlocked};
use vellum_vfs::{FILE_LOCK_MAX, FileLock, FileLockMode, FileLockSpace, RenameMode, Vfs, VfsError, VfsOptions};

const ROOT: Ino = Ino::ROOT;
/// Longer than anything takes that is not waited for.
const SOON: Duration = Duration::from_secs(2);

/// No gateway looks for orphans: who closes last must delete.
fn without_cleaner() -> VfsOptions {
    VfsOptions { orphan_scan: Duration::from_secs(1 << 30), ..VfsOptions::default() }
}

async fn is_gone(vfs: &Vfs, ino: Ino) -> bool {
    vfs.getattr(ino).await == Err(VfsError::STALE)
}

/// A file is open in one gateway; another takes its only name away. It can be read and written through the open
/// descriptor, by its opener alone, until that is closed; then it is deleted, though nobody looks for orphans.
#[test]
fn a_file_open_here_and_unlinked_there_lives_until_its_close() {
    run(1, || async {
        let engine = engine();
        let (a, b) = (vfs_with(&engine, without_cleaner()), vfs_with(&engine, without_cleaner()));
        let ino = make(&a, ROOT, "f", &pattern(1, 30_000)).await;
        let (handle, _) = a.open(ino, rw()).await.unwrap();
        b.unlink(ROOT, b"f").await.unwrap();
        assert_eq!(a.lookup(ROOT, b"f").await, Err(VfsError::NOENT));
        assert_eq!(read_handle(&a, handle, 0, 30_000).await, pattern(1, 30_000));
        a.write(handle, 10_000, &pattern(2, 30_000), false).await.unwrap();
        a.fsync(handle).await.unwrap();
        sleep(SOON).await;
        assert_eq!(read_handle(&a, handle, 10_000, 30_000).await, pattern(2, 30_000));
        assert_eq!(a.getattr(ino).await.unwrap().nlink, 0);
        a.release(handle).await.unwrap();
        sleep(SOON).await;
        assert!(is_gone(&b, ino).await, "the last close deletes");
        b.syncfs().await.unwrap();
        fsck::check(&engine.durable_items());
    });
}

/// The same, and the name goes by a rename over it; three have it open, and close in any order.
#[test]
fn the_last_of_several_openers_deletes() {
    for last in 0..3 {
        run(10 + last as u64, move || async move {
            let engine = engine();
            let all: Vec<_> = (0..3).map(|_| vfs_with(&engine, without_cleaner())).collect();
            let ino = make(&all[0], ROOT, "f", &pattern(1, 5_000)).await;
            let mut open = Vec::new();
            for vfs in &all {
                open.push(vfs.open(ino, rw()).await.unwrap().0);
            }
            make(&all[1], ROOT, "g", b"new").await;
            all[2].rename(ROOT, b"g", ROOT, b"f", RenameMode::Replace).await.unwrap();
            for n in (0..3).filter(|n| *n != last) {
                all[n].release(open[n]).await.unwrap();
                sleep(SOON).await;
                assert_eq!(read_handle(&all[last], open[last], 0, 5_000).await, pattern(1, 5_000));
            }
            all[last].release(open[last]).await.unwrap();
            sleep(SOON).await;
            for vfs in &all {
                assert!(is_gone(vfs, ino).await);
                assert_eq!(content(vfs, vfs.lookup(ROOT, b"f").await.unwrap().ino).await, b"new");
            }
            all[0].syncfs().await.unwrap();
            fsck::check(&engine.durable_items());
        });
    }
}

/// Scenario 42: the last close on one gateway and the orphan scan of another delete one inode. Both may only under the
/// lease of its group; the second finds it gone. Nothing is freed twice (the engine refuses that, and fsck would see it).
#[test]
fn scenario_42_two_deleters_of_one_inode() {
    for seed in 0..30 {
        run(1000 + seed, move || async move {
            let engine = engine();
            let busy = VfsOptions { orphan_scan: Duration::from_millis(1), ..VfsOptions::default() };
            let (a, b) = (vfs_with(&engine, without_cleaner()), vfs_with(&engine, busy.clone()));
            let mut open = Vec::new();
            for n in 0..8 {
                let name = format!("f{n}");
                let ino = make(&a, ROOT, &name, &pattern(n, 20_000)).await;
                open.push((ino, a.open(ino, rw()).await.unwrap().0));
                b.unlink(ROOT, name.as_bytes()).await.unwrap();
            }
            let scanner = vfs_with(&engine, busy);
            for (n, (_, handle)) in open.iter().enumerate() {
                sleep(Duration::from_micros(300 * seed)).await;
                assert_eq!(read_handle(&a, *handle, 0, 20_000).await, pattern(n as u64, 20_000), "seed {seed}");
                a.release(*handle).await.unwrap();
            }
            sleep(SOON).await;
            for (ino, _) in &open {
                assert!(is_gone(&b, *ino).await, "seed {seed}");
            }
            for vfs in [&a, &b, &scanner] {
                vfs.syncfs().await.unwrap();
            }
            fsck::check(&engine.durable_items());
            assert_eq!(engine.durable_items().len(), 1, "seed {seed}: only the root is left");
        });
    }
}

/// [L11] The engine dies while a file is open in one gateway and has been unlinked in another, and one that was unlinked
/// where it is open. The next engine knows what is open before anybody may delete.
#[test]
fn l11_unlinked_files_that_are_open_survive_a_new_engine() {
    run(3, || async {
        let engine = engine();
        let fast = VfsOptions { orphan_scan: Duration::from_millis(50), ..VfsOptions::default() };
        let (a, b) = (vfs_with(&engine, fast.clone()), vfs_with(&engine, fast));
        let mut open = Vec::new();
        for (name, by) in [("there", &b), ("here", &a)] {
            let ino = make(&a, ROOT, name, &pattern(5, 9_000)).await;
            open.push((ino, a.open(ino, rw()).await.unwrap().0));
            by.unlink(ROOT, name.as_bytes()).await.unwrap();
            by.syncfs().await.unwrap();
        }
        for round in 0..3 {
            engine.crash();
            sleep(SOON).await;
            for (ino, handle) in &open {
                assert_eq!(read_handle(&a, *handle, 0, 9_000).await, pattern(5, 9_000), "round {round}");
                assert_eq!(b.getattr(*ino).await.unwrap().nlink, 0, "round {round}");
            }
        }
        for (_, handle) in &open {
            a.release(*handle).await.unwrap();
        }
        sleep(SOON).await;
        for (ino, _) in &open {
            assert!(is_gone(&b, *ino).await);
        }
    });
}

/// The opener dies: its descriptor with it, and the content goes to whoever looks.
#[test]
fn a_dead_opener_keeps_nothing() {
    run(4, || async {
        let engine = engine();
        let (a, b) = (vfs_on(&engine), vfs_with(&engine, without_cleaner()));
        let ino = make(&a, ROOT, "f", &pattern(1, 30_000)).await;
        a.open(ino, rw()).await.unwrap();
        b.unlink(ROOT, b"f").await.unwrap();
        b.syncfs().await.unwrap();
        sleep(SOON).await;
        assert!(!is_gone(&b, ino).await);
        a.client().abort();
        let cleaner = vfs_on(&engine);
        sleep(SOON).await;
        assert!(is_gone(&cleaner, ino).await);
    });
}

/// What nobody else touches costs no message to open and to close, and an unlinked temporary file none to delete.
#[test]
fn opening_and_closing_under_a_lease_is_memory_only() {
    run(5, || async {
        let engine = engine();
        let vfs = vfs_with(&engine, without_cleaner());
        let ino = make(&vfs, ROOT, "f", b"x").await;
        vfs.syncfs().await.unwrap();
        sleep(SOON).await;
        let before = engine.requests();
        for _ in 0..100 {
            let (handle, _) = vfs.open(ino, rw()).await.unwrap();
            vfs.flush(handle).await.unwrap();
            vfs.release(handle).await.unwrap();
        }
        assert_eq!(engine.requests(), before);
        let (handle, _) = vfs.open(ino, rw()).await.unwrap();
        vfs.unlink(ROOT, b"f").await.unwrap();
        vfs.release(handle).await.unwrap();
        sleep(SOON).await;
        assert!(is_gone(&vfs, ino).await);
        assert!(engine.requests() <= before + 3, "its batches, no questions");
    });
}

// ---- advisory locks

fn posix(owner: u64, mode: FileLockMode, start: u64, end: u64) -> FileLock {
    FileLock { space: FileLockSpace::Posix, mode, owner, pid: owner as u32, start, end }
}

fn flock(owner: u64, mode: FileLockMode) -> FileLock {
    FileLock { space: FileLockSpace::Flock, mode, owner, pid: 0, start: 0, end: FILE_LOCK_MAX }
}

async fn set(vfs: &Vfs, ino: Ino, lock: FileLock) -> Result<(), VfsError> {
    vfs.set_file_lock(ino, lock, false, pending()).await
}

type Outcome = Rc<RefCell<Option<Result<(), VfsError>>>>;

/// A task that waits for a lock; what it got, and what interrupts it.
fn wait_for(vfs: &Rc<Vfs>, ino: Ino, lock: FileLock) -> (Outcome, Rc<Cell<bool>>, vellum_rt::JoinHandle<()>) {
    let (outcome, signal) = (Outcome::default(), Rc::new(Cell::new(false)));
    let (vfs, out, told) = (vfs.clone(), outcome.clone(), signal.clone());
    let task = spawn(Class::Request, "waiter", async move {
        let interrupted = async move {
            while !told.get() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let result = vfs.set_file_lock(ino, lock, true, interrupted).await;
        *out.borrow_mut() = Some(result);
    });
    (outcome, signal, task)
}

#[test]
fn locks_exclude_across_gateways_and_say_who_is_in_the_way() {
    run(20, || async {
        let engine = engine();
        let (a, b) = (vfs_on(&engine), vfs_on(&engine));
        let ino = make(&a, ROOT, "f", b"x").await;
        set(&a, ino, posix(1, Exclusive, 10, 19)).await.unwrap();
        assert_eq!(set(&b, ino, posix(1, Shared, 19, 30)).await, Err(VfsError::AGAIN));
        set(&b, ino, posix(1, Shared, 20, 30)).await.unwrap();
        set(&b, ino, flock(1, Exclusive)).await.unwrap();
        assert_eq!(set(&a, ino, flock(1, Shared)).await, Err(VfsError::AGAIN));
        let found = b.get_file_lock(ino, posix(1, Shared, 0, 100)).await.unwrap().unwrap();
        assert_eq!((found.start, found.end, found.mode, found.pid), (10, 19, Exclusive, 0), "a process elsewhere");
        let found = a.get_file_lock(ino, posix(7, Exclusive, 0, 12)).await.unwrap().unwrap();
        assert_eq!((found.start, found.end, found.pid), (10, 19, 1));
        assert_eq!(a.get_file_lock(ino, posix(1, Exclusive, 0, 12)).await, Ok(None));
        a.drop_file_locks(ino, FileLockSpace::Posix, 1).await.unwrap();
        set(&b, ino, posix(1, Exclusive, 0, FILE_LOCK_MAX)).await.unwrap();
        assert_eq!(set(&a, ino, posix(1, Shared, 0, FILE_LOCK_MAX + 1)).await, Err(VfsError::INVAL));
    });
}

#[test]
fn a_waiter_is_granted_interrupted_or_gone_without_a_trace() {
    run(21, || async {
        let engine = engine();
        let (a, b) = (vfs_on(&engine), vfs_on(&engine));
        let ino = make(&a, ROOT, "f", b"x").await;
        set(&a, ino, posix(1, Exclusive, 0, 9)).await.unwrap();
        let (granted, _, _t1) = wait_for(&b, ino, posix(2, Exclusive, 0, 9));
        sleep(SOON).await;
        let (interrupted, signal, _t2) = wait_for(&b, ino, posix(3, Exclusive, 0, 9));
        sleep(SOON).await;
        let (gone, _, killed) = wait_for(&b, ino, posix(4, Exclusive, 0, 9));
        sleep(SOON).await;
        assert!(granted.borrow().is_none() && interrupted.borrow().is_none() && gone.borrow().is_none());
        signal.set(true);
        killed.cancel();
        sleep(SOON).await;
        assert_eq!(*interrupted.borrow(), Some(Err(VfsError::INTR)));
        assert!(granted.borrow().is_none());
        set(&a, ino, posix(1, Unlocked, 0, 9)).await.unwrap();
        sleep(SOON).await;
        assert_eq!(*granted.borrow(), Some(Ok(())));
        set(&b, ino, posix(2, Unlocked, 0, 9)).await.unwrap();
        sleep(SOON).await;
        // Neither the interrupted nor the killed one got it.
        set(&a, ino, posix(1, Exclusive, 0, 9)).await.unwrap();
        assert!(gone.borrow().is_none());
    });
}

#[test]
fn a_circle_over_two_gateways_is_refused() {
    run(22, || async {
        let engine = engine();
        let (a, b) = (vfs_on(&engine), vfs_on(&engine));
        let (f, g) = (make(&a, ROOT, "f", b"x").await, make(&b, ROOT, "g", b"x").await);
        set(&a, f, posix(1, Exclusive, 0, 0)).await.unwrap();
        set(&b, g, posix(1, Exclusive, 0, 0)).await.unwrap();
        let (first, _, _t) = wait_for(&a, g, posix(1, Shared, 0, 0));
        sleep(SOON).await;
        let second = b.set_file_lock(f, posix(1, Shared, 0, 0), true, pending()).await;
        assert_eq!(second, Err(VfsError::DEADLK));
        assert!(first.borrow().is_none());
        b.drop_file_locks(g, FileLockSpace::Posix, 1).await.unwrap();
        sleep(SOON).await;
        assert_eq!(*first.borrow(), Some(Ok(())));
    });
}

/// [L11] The engine dies: locks that are held stay held, who waits goes on waiting, and what was being given up or asked
/// for in that moment ends as if it had been before or after.
#[test]
fn l11_file_locks_survive_a_new_engine() {
    for seed in 0..20 {
        run(2000 + seed, move || async move {
            let engine = engine();
            let (a, b) = (vfs_on(&engine), vfs_on(&engine));
            let ino = make(&a, ROOT, "f", b"x").await;
            a.syncfs().await.unwrap();
            set(&a, ino, posix(1, Exclusive, 0, 9)).await.unwrap();
            set(&a, ino, posix(1, Shared, 3, 5)).await.unwrap();
            set(&b, ino, posix(1, Shared, 4, 4)).await.unwrap();
            set(&a, ino, flock(1, Exclusive)).await.unwrap();
            let (waiter, _, _t1) = wait_for(&b, ino, posix(9, Exclusive, 0, 0));
            let (convert, _, _t2) = wait_for(&b, ino, flock(9, Exclusive));
            sleep(SOON).await;
            let (going, _, _t3) = wait_for(&a, ino, posix(1, Unlocked, 8, 9));
            sleep(Duration::from_micros(seed * 7)).await;
            engine.crash();
            assert_eq!(set(&b, ino, posix(5, Shared, 1, 1)).await, Err(VfsError::AGAIN), "seed {seed}");
            assert_eq!(set(&b, ino, flock(5, Shared)).await, Err(VfsError::AGAIN), "seed {seed}");
            assert_eq!(set(&a, ino, posix(2, Exclusive, 4, 4)).await, Err(VfsError::AGAIN), "seed {seed}");
            sleep(SOON).await;
            assert_eq!(*going.borrow(), Some(Ok(())), "seed {seed}");
            set(&b, ino, posix(5, Exclusive, 8, 9)).await.unwrap();
            assert!(waiter.borrow().is_none() && convert.borrow().is_none(), "seed {seed}");
            set(&a, ino, posix(1, Unlocked, 0, 0)).await.unwrap();
            set(&a, ino, flock(1, Unlocked)).await.unwrap();
            sleep(SOON).await;
            assert_eq!(*waiter.borrow(), Some(Ok(())), "seed {seed}");
            assert_eq!(*convert.borrow(), Some(Ok(())), "seed {seed}");
        });
    }
}

/// A gateway dies: what it held is free, and nobody waits for it.
#[test]
fn a_dead_gateway_holds_no_file_lock() {
    run(23, || async {
        let engine = engine();
        let (a, b) = (vfs_on(&engine), vfs_on(&engine));
        let ino = make(&a, ROOT, "f", b"x").await;
        set(&a, ino, posix(1, Exclusive, 0, 9)).await.unwrap();
        let (waiter, _, _t) = wait_for(&b, ino, posix(1, Exclusive, 5, 5));
        sleep(SOON).await;
        assert!(waiter.borrow().is_none());
        a.client().abort();
        sleep(SOON).await;
        assert_eq!(*waiter.borrow(), Some(Ok(())));
        assert_eq!(a.set_file_lock(ino, posix(1, Shared, 0, 0), true, ready(())).await, Err(VfsError::NOTCONN));
    });
}

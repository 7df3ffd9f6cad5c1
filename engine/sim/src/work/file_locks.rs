//! Locks of files, as applications take them through two or more gateways: flock(2) and fcntl(2), exclusive and shared, of
//! overlapping ranges, waiting and not; told to [`crate::check::file_locks`].

use std::rc::Rc;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{Ino, Rid};
use vellum_rt::{random_u64, sleep};
use vellum_vfs::{FileLock, FileLockMode, FileLockSpace, Vfs, VfsError};

use super::Shared;
use super::mount::{CALLER, End, Mount, READ_WRITE, lives, tolerate};

const FILES: u64 = 2;
/// Bytes that are fought for.
const BYTES: u64 = 12;
/// Nobody waits longer for a lock.
const PATIENCE: Duration = Duration::from_millis(300);

/// Its task for the whole run.
pub async fn live(shared: Rc<Shared>, machine: usize) {
    lives(shared, machine, "file locks", one_life).await;
}

async fn one_life(shared: &Rc<Shared>, machine: usize) -> Result<(), End> {
    let mut prng = Prng::new(random_u64());
    let mount = Mount::new(shared, machine, &mut prng).await?;
    let locker = Locker { rid: mount.rid, vfs: mount.vfs.clone(), shared: shared.clone() };
    let worked = locker.work(&mut prng).await;
    mount.end(worked).await
}

struct Locker {
    rid: Rid,
    vfs: Rc<Vfs>,
    shared: Rc<Shared>,
}

impl Locker {
    async fn files(&self) -> Result<Vec<Ino>, VfsError> {
        self.vfs.make_root(CALLER).await?;
        let mut files = Vec::new();
        for n in 0..FILES {
            let name = format!("locked {n}").into_bytes();
            if let Some((_, handle)) = tolerate(self.vfs.create(CALLER, Ino::ROOT, &name, 0o644, READ_WRITE).await)? {
                self.vfs.release(handle).await?;
            }
            files.push(self.vfs.lookup(Ino::ROOT, &name).await?.ino);
        }
        Ok(files)
    }

    async fn work(&self, prng: &mut Prng) -> Result<(), VfsError> {
        let files = self.files().await?;
        for _ in 0..5 + prng.below(80) {
            if self.shared.stop.get() {
                break;
            }
            let ino = files[prng.below(FILES) as usize];
            let owner = 1 + prng.below(2);
            let space = if prng.one_in(3) { FileLockSpace::Flock } else { FileLockSpace::Posix };
            // Two ranges may be held at once: circles of waiters close, and are refused.
            for _ in 0..1 + prng.below(2) {
                let lock = some_lock(space, owner, prng);
                self.take(ino, lock, prng).await?;
            }
            let holds = if prng.one_in(6) { 300_000 } else { 8000 };
            sleep(Duration::from_micros(prng.below(holds))).await;
            // What the application does not believe to have any more may be anybody's at once.
            self.shared.checks.borrow_mut().file_locks.gives_up(self.rid, ino, owner);
            self.vfs.drop_file_locks(ino, FileLockSpace::Posix, owner).await?;
            self.vfs.drop_file_locks(ino, FileLockSpace::Flock, owner).await?;
        }
        Ok(())
    }

    async fn take(&self, ino: Ino, lock: FileLock, prng: &mut Prng) -> Result<(), VfsError> {
        let wait = prng.one_in(2);
        if lock.space == FileLockSpace::Flock || lock.mode == FileLockMode::Shared {
            // Weaker before the answer is here; and a conversion of flock gives up what it has before it has the new.
            self.shared.checks.borrow_mut().file_locks.weakens(self.rid, ino, lock);
        }
        match self.vfs.set_file_lock(ino, lock, wait, sleep(PATIENCE)).await {
            Ok(()) => self.shared.checks.borrow_mut().file_locks.granted(self.rid, ino, lock),
            Err(VfsError::AGAIN | VfsError::DEADLK | VfsError::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn some_lock(space: FileLockSpace, owner: u64, prng: &mut Prng) -> FileLock {
    let mode = if prng.one_in(2) { FileLockMode::Exclusive } else { FileLockMode::Shared };
    let (start, end) = match space {
        FileLockSpace::Flock => (0, vellum_vfs::FILE_LOCK_MAX),
        FileLockSpace::Posix => {
            let start = prng.below(BYTES);
            (start, start + prng.below(BYTES - start))
        }
    };
    FileLock { space, mode, owner, pid: owner as u32, start, end }
}

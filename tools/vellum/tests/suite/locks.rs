//! Advisory locks over several mounts. One process takes part through all of them: on each mount it is another owner.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::posix_lock::{self, Kind, Of, set, test, wait};
use super::{A_WHILE, Mounts, eventually, fails, pairs};

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The file as each mount has it open.
fn open_all(dirs: &[PathBuf], name: &str) -> Vec<File> {
    dirs.iter().map(|dir| rw(&dir.join(name))).collect()
}

pub fn locks_exclude(m: &Mounts) {
    let dirs = m.fresh("locks");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        // A file of its own: the kernel lets go of a closed file in its own time.
        let f = format!("f{round}");
        let (a, b) = (rw(&one.join(&f)), rw(&other.join(&f)));
        // flock, with its conversions.
        flock(&a, FlockOperation::LockShared).unwrap();
        flock(&b, FlockOperation::LockShared).unwrap();
        assert_eq!(flock(&a, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        flock(&b, FlockOperation::Unlock).unwrap();
        flock(&a, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(flock(&b, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        // fcntl is another family: the flock is not in its way.
        set(&b, Of::Process, Kind::Write, 0, 0).unwrap();
        fails(set(&a, Of::Process, Kind::Read, 5, 1), Errno::AGAIN);
        // Locks of an open file exclude those of the process, also the same one's.
        fails(set(&a, Of::Description, Kind::Read, 5, 1), Errno::AGAIN);
        set(&b, Of::Process, Kind::Unlock, 0, 0).unwrap();
        set(&a, Of::Description, Kind::Read, 5, 1).unwrap();
        fails(set(&a, Of::Process, Kind::Write, 0, 0), Errno::AGAIN);
        fails(set(&b, Of::Description, Kind::Write, 0, 0), Errno::AGAIN);
        set(&b, Of::Description, Kind::Read, 0, 0).unwrap();
        flock(&a, FlockOperation::Unlock).unwrap();
        flock(&b, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}

pub fn ranges_are_told_apart(m: &Mounts) {
    let dirs = m.fresh("ranges");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        // A file of its own: the kernel lets go of a closed file in its own time.
        let f = format!("f{round}");
        let (a, b) = (rw(&one.join(&f)), rw(&other.join(&f)));
        set(&a, Of::Process, Kind::Write, 100, 100).unwrap();
        set(&a, Of::Process, Kind::Read, 150, 10).unwrap();
        set(&a, Of::Process, Kind::Unlock, 120, 10).unwrap();
        // 100..120 write, 120..130 free, 130..150 write, 150..160 read, 160..200 write.
        let found = test(&b, Of::Process, Kind::Read, 0, 0).unwrap().unwrap();
        assert_eq!((found.kind, found.start, found.len), (Kind::Write, 100, 20));
        let found = test(&b, Of::Process, Kind::Write, 150, 5).unwrap().unwrap();
        assert_eq!((found.kind, found.start, found.len), (Kind::Read, 150, 10));
        assert_eq!(test(&b, Of::Process, Kind::Read, 150, 10).unwrap(), None);
        set(&b, Of::Process, Kind::Write, 120, 10).unwrap();
        set(&b, Of::Process, Kind::Read, 150, 10).unwrap();
        set(&b, Of::Process, Kind::Write, 200, 0).unwrap();
        fails(set(&a, Of::Process, Kind::Read, i64::MAX - 10, 5), Errno::AGAIN);
        fails(set(&b, Of::Process, Kind::Write, 159, 1), Errno::AGAIN);
        // The same process on the same mount is never in its own way.
        set(&rw(&one.join(&f)), Of::Process, Kind::Write, 100, 20).unwrap();
    }
}

pub fn waiters_are_woken_and_interrupted(m: &Mounts) {
    posix_lock::handle_interruptions();
    let dirs = m.fresh("waiters");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        // A file of its own: the kernel lets go of a closed file in its own time.
        let f = format!("f{round}");
        let (a, b) = (rw(&one.join(&f)), rw(&other.join(&f)));
        for of in [Of::Process, Of::Description] {
            set(&a, of, Kind::Write, 10, 10).unwrap();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| wait(&b, of, Kind::Read, 0, 20));
                std::thread::sleep(A_WHILE);
                assert!(!waiter.is_finished(), "a lock that is held was granted");
                set(&a, of, Kind::Unlock, 0, 0).unwrap();
                waiter.join().unwrap().unwrap();
            });
            // Interrupted: nothing of it stays, and it does not come later.
            fails(set(&a, of, Kind::Write, 10, 10), Errno::AGAIN);
            let thread = AtomicI32::new(0);
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    thread.store(posix_lock::this_thread(), Ordering::Relaxed);
                    wait(&a, of, Kind::Write, 10, 10)
                });
                std::thread::sleep(A_WHILE);
                assert!(!waiter.is_finished());
                eventually("a waiter is interrupted", || {
                    posix_lock::interrupt(thread.load(Ordering::Relaxed));
                    waiter.is_finished()
                });
                fails(waiter.join().unwrap(), Errno::INTR);
            });
            set(&b, of, Kind::Unlock, 0, 0).unwrap();
            set(&b, of, Kind::Write, 0, 0).unwrap();
            set(&b, of, Kind::Unlock, 0, 0).unwrap();
        }
        flock(&a, FlockOperation::LockExclusive).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| flock(&b, FlockOperation::LockExclusive));
            std::thread::sleep(A_WHILE);
            assert!(!waiter.is_finished());
            flock(&a, FlockOperation::Unlock).unwrap();
            waiter.join().unwrap().unwrap();
        });
    }
}

/// Each mount holds a file and waits for the next one's. Whose wait closes the circle is refused, and gives up what it holds:
/// then all others get what they wait for. (A new leader hears of the waits in an order of its own.)
pub fn a_circle_of_waiters_is_refused(m: &Mounts) {
    let dirs = m.fresh("deadlock");
    let n = dirs.len();
    let files: Vec<Vec<File>> = (0..n).map(|f| open_all(&dirs, &format!("f{f}"))).collect();
    for _round in 0..3 {
        for (mount, file) in files.iter().enumerate() {
            set(&file[mount], Of::Process, Kind::Write, 0, 10).unwrap();
        }
        let turn = &|mount: usize| {
            let (own, next) = (&files[mount][mount], &files[(mount + 1) % n][mount]);
            let (kind, start, len) = if mount + 1 < n { (Kind::Read, 0, 10) } else { (Kind::Write, 5, 1) };
            let waited = wait(next, Of::Process, kind, start, len);
            set(own, Of::Process, Kind::Unlock, 0, 0).unwrap();
            match waited {
                Ok(()) => {
                    set(next, Of::Process, Kind::Unlock, 0, 0).unwrap();
                    false
                }
                refused => {
                    fails(refused, Errno::DEADLK);
                    true
                }
            }
        };
        let refused: usize = std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..n).map(|mount| scope.spawn(move || turn(mount))).collect();
            waiters.into_iter().map(|waiter| usize::from(waiter.join().unwrap())).sum()
        });
        assert_eq!(refused, 1, "one wait closes the circle");
    }
}

pub fn locks_end_with_their_files(m: &Mounts) {
    let dirs = m.fresh("closing");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        // A file of its own: the kernel lets go of a closed file in its own time.
        let f = format!("f{round}");
        let b = rw(&other.join(&f));
        // A process loses its locks with the first descriptor of the file that it closes.
        let (a, second) = (rw(&one.join(&f)), rw(&one.join(&f)));
        set(&a, Of::Process, Kind::Write, 0, 0).unwrap();
        fails(set(&b, Of::Process, Kind::Read, 0, 0), Errno::AGAIN);
        drop(second);
        set(&b, Of::Process, Kind::Read, 0, 0).unwrap();
        set(&b, Of::Process, Kind::Unlock, 0, 0).unwrap();
        // An open file's locks end with the last descriptor of that open file.
        let (copy, second) = (a.try_clone().unwrap(), rw(&one.join(&f)));
        set(&a, Of::Description, Kind::Write, 0, 0).unwrap();
        flock(&a, FlockOperation::LockExclusive).unwrap();
        drop((a, second));
        std::thread::sleep(A_WHILE);
        fails(set(&b, Of::Description, Kind::Read, 0, 0), Errno::AGAIN);
        assert_eq!(flock(&b, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        drop(copy);
        // The kernel tells the gateway of it in its own time.
        eventually("an open file's lock ends", || set(&b, Of::Description, Kind::Write, 0, 0).is_ok());
        eventually("a flock ends", || flock(&b, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}

/// A process with a lock, or waiting for one. See [`be_a_holder`].
struct Holder(Child);

impl Holder {
    fn start(path: &Path, how: &str) -> Holder {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder_of_a_lock", "--ignored", "--nocapture"])
            .env("VELLUM_HOLDER", format!("{how}:{}", path.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let said = BufReader::new(out).lines().map_while(Result::ok).find(|line| line.contains("holder is ready"));
        assert!(said.is_some(), "the holder did not begin");
        Holder(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What the helper process does: takes a lock and keeps it, or waits for one, until it is killed.
pub fn be_a_holder() {
    let Ok(order) = std::env::var("VELLUM_HOLDER") else { return };
    let (how, path) = order.split_once(':').unwrap();
    let file = rw(Path::new(path));
    match how {
        "fcntl" => set(&file, Of::Process, Kind::Write, 0, 0).unwrap(),
        "ofd" => set(&file, Of::Description, Kind::Write, 0, 0).unwrap(),
        "flock" => flock(&file, FlockOperation::LockExclusive).unwrap(),
        _ => {}
    }
    println!("holder is ready");
    match how {
        "wait-fcntl" => wait(&file, Of::Process, Kind::Write, 0, 0).unwrap(),
        "wait-flock" => flock(&file, FlockOperation::LockExclusive).unwrap(),
        _ => {}
    }
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// A holder is killed: its lock is free. A waiter is killed: it never gets it.
pub fn locks_end_with_their_process(m: &Mounts) {
    let dirs = m.fresh("killed");
    let (one, other) = (dirs[0].join("f"), dirs[1].join("f"));
    let file = rw(&one);
    for how in ["fcntl", "ofd", "flock"] {
        let try_lock = |kind| match how {
            "flock" if kind == Kind::Unlock => flock(&file, FlockOperation::Unlock).is_ok(),
            "flock" => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
            _ => set(&file, Of::Process, kind, 0, 0).is_ok(),
        };
        let holder = Holder::start(&other, how);
        assert!(!try_lock(Kind::Write), "{how}: not held");
        holder.kill();
        eventually("the lock of a killed process is free", || try_lock(Kind::Write));
        if how != "ofd" {
            let waiter = Holder::start(&other, &format!("wait-{how}"));
            std::thread::sleep(A_WHILE);
            waiter.kill();
        }
        assert!(try_lock(Kind::Unlock));
        std::thread::sleep(A_WHILE);
        assert!(try_lock(Kind::Write), "{how}: a killed waiter has it");
        assert!(try_lock(Kind::Unlock));
    }
}

/// A number in a file, read, added to and written under a lock, by two threads of each mount.
pub fn locks_make_a_counter_count(m: &Mounts) {
    const ROUNDS: u64 = 40;
    let dirs = m.fresh("counter");
    for how in [Some(Of::Description), None] {
        fs::write(dirs[0].join("n"), 0u64.to_le_bytes()).unwrap();
        std::thread::scope(|scope| {
            for dir in dirs.iter().chain(&dirs) {
                scope.spawn(move || {
                    let file = rw(&dir.join("n"));
                    for _ in 0..ROUNDS {
                        match how {
                            Some(of) => wait(&file, of, Kind::Write, 0, 8).unwrap(),
                            None => flock(&file, FlockOperation::LockExclusive).unwrap(),
                        }
                        let mut number = [0; 8];
                        file.read_exact_at(&mut number, 0).unwrap();
                        file.write_all_at(&(u64::from_le_bytes(number) + 1).to_le_bytes(), 0).unwrap();
                        match how {
                            Some(of) => set(&file, of, Kind::Unlock, 0, 8).unwrap(),
                            None => flock(&file, FlockOperation::Unlock).unwrap(),
                        }
                    }
                });
            }
        });
        let found = fs::read(dirs[1].join("n")).unwrap();
        assert_eq!(found, (2 * ROUNDS * dirs.len() as u64).to_le_bytes(), "{how:?}");
    }
}

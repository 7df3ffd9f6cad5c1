//! Files without a name.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;

use super::{Mounts, bytes, eventually, fails, pairs};

const LEN: usize = 8 << 20;
/// Blocks that metadata may take meanwhile, and less than the content of a file here. (While leaders die, 256 blocks more
/// stay now and then: a flush takes them at once.)
pub const METADATA: u64 = 1000;

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn read(file: &File, len: usize) -> Vec<u8> {
    let mut found = vec![0; len];
    file.read_exact_at(&mut found, 0).unwrap();
    found
}

/// Blocks in use, when all that was done is on the device.
pub fn used(dir: &Path) -> u64 {
    File::open(dir).unwrap().sync_all().unwrap();
    let stat = rustix::fs::statvfs(dir).unwrap();
    stat.f_blocks - stat.f_bfree
}

pub fn unlinked_files_live_until_they_are_closed(m: &Mounts) {
    let dirs = m.fresh("unlinked");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        let before = used(one);
        let name = format!("f{round}");
        let content = bytes(round as u64, LEN);
        fs::write(one.join(&name), &content).unwrap();
        let open = rw(&one.join(&name));
        fs::remove_file(other.join(&name)).unwrap();
        fails(fs::metadata(one.join(&name)), Errno::NOENT);
        // The name is somebody else's now.
        fs::write(other.join(&name), "another").unwrap();
        assert!(read(&open, LEN) == content);
        open.write_all_at(b"still", 1_000_000).unwrap();
        open.sync_all().unwrap();
        let meta = open.metadata().unwrap();
        assert_eq!((meta.nlink(), meta.len()), (0, LEN as u64));
        let mut found = [0; 5];
        open.read_exact_at(&mut found, 1_000_000).unwrap();
        assert_eq!(&found, b"still");
        open.set_len(LEN as u64 + 5).unwrap();
        assert_eq!(fs::read(one.join(&name)).unwrap(), b"another");
        drop(open);
        fs::remove_file(one.join(&name)).unwrap();
        eventually("the space comes back", || used(other) < before + METADATA);
    }
}

pub fn replaced_files_live_until_they_are_closed(m: &Mounts) {
    let dirs = m.fresh("replaced");
    let before = used(&dirs[0]);
    let content = bytes(1, LEN);
    fs::write(dirs[0].join("f"), &content).unwrap();
    let open: Vec<File> = dirs.iter().map(|dir| rw(&dir.join("f"))).collect();
    let last = dirs.len() - 1;
    fs::write(dirs[last].join("new"), "new").unwrap();
    fs::rename(dirs[last].join("new"), dirs[last].join("f")).unwrap();
    for (n, file) in open.into_iter().enumerate() {
        assert!(read(&file, LEN) == content, "mount {n}");
        assert_eq!(fs::read(dirs[n].join("f")).unwrap(), b"new");
    }
    eventually("the space comes back", || used(&dirs[last]) < before + METADATA);
}

/// Each file is open on all mounts and closed on all at once, while its name goes on one: one of them deletes it. What is
/// freed twice, or not at all, is found by the check of the device that follows a run.
pub fn racing_deleters(m: &Mounts) {
    let dirs = m.fresh("deleters");
    let before = used(&dirs[0]);
    for round in 0..20 {
        let name = format!("f{round}");
        fs::write(dirs[round % dirs.len()].join(&name), bytes(round as u64, 800_000)).unwrap();
        let open: Vec<File> = dirs.iter().map(|dir| rw(&dir.join(&name))).collect();
        std::thread::scope(|scope| {
            let dir = &dirs[(round + 1) % dirs.len()];
            scope.spawn(move || fs::remove_file(dir.join(name)).unwrap());
            for file in open {
                scope.spawn(move || drop(file));
            }
        });
    }
    eventually("the space comes back", || used(&dirs[0]) < before + METADATA);
}

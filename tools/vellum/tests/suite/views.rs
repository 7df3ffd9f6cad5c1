//! What one mount changes, the others see at once: nothing is polled for.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Mounts, bytes, fails, names, pairs};

/// Fills the caches of a mount with what must not be believed later.
fn look(dir: &Path) {
    for name in names(dir) {
        let path = dir.join(name);
        let _ = (fs::symlink_metadata(&path), fs::read(&path), fs::read_link(&path));
    }
}

pub fn what_one_makes_the_others_see(m: &Mounts) {
    let dirs = m.fresh("views");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        let at = |dir: &Path, name: &str| dir.join(format!("{name}{round}"));
        let content = bytes(round as u64, 30_000);
        fs::write(at(one, "f"), &content).unwrap();
        assert!(fs::read(at(other, "f")).unwrap() == content);
        look(one);
        // Shrinking and growing, by the other.
        let f = OpenOptions::new().write(true).open(at(other, "f")).unwrap();
        f.set_len(10_001).unwrap();
        assert_eq!(fs::metadata(at(one, "f")).unwrap().len(), 10_001);
        f.set_len(20_000).unwrap();
        let found = fs::read(at(one, "f")).unwrap();
        assert!(
            found[..10_001] == content[..10_001] && found[10_001..].iter().all(|b| *b == 0) && found.len() == 20_000
        );
        // Attributes.
        look(one);
        fs::set_permissions(at(other, "f"), fs::Permissions::from_mode(0o2640)).unwrap();
        std::os::unix::fs::chown(at(other, "f"), Some(12), Some(34)).unwrap();
        let time = Timespec { tv_sec: 1_000_000 + round as i64, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, at(other, "f"), &times, AtFlags::empty()).unwrap();
        let seen = fs::metadata(at(one, "f")).unwrap();
        assert_eq!((seen.uid(), seen.gid(), seen.mtime(), seen.mtime_nsec()), (12, 34, time.tv_sec, 123_456_789));
        assert_eq!(seen.mode() & 0o777, 0o640);
        // Extended attributes.
        rustix::fs::setxattr(at(one, "f"), "user.k", b"one", XattrFlags::CREATE).unwrap();
        let mut buf = [0; 16];
        assert_eq!(rustix::fs::getxattr(at(other, "f"), "user.k", &mut buf).unwrap(), 3);
        rustix::fs::setxattr(at(other, "f"), "user.k", b"other", XattrFlags::REPLACE).unwrap();
        assert_eq!(rustix::fs::getxattr(at(one, "f"), "user.k", &mut buf).unwrap(), 5);
        rustix::fs::removexattr(at(one, "f"), "user.k").unwrap();
        assert_eq!(rustix::fs::getxattr(at(other, "f"), "user.k", &mut buf).err(), Some(Errno::NODATA));
        // Links of both kinds.
        look(other);
        fs::hard_link(at(one, "f"), at(one, "hard")).unwrap();
        symlink("target", at(one, "soft")).unwrap();
        assert_eq!(fs::metadata(at(other, "f")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(at(other, "hard")).unwrap().ino(), fs::metadata(at(one, "f")).unwrap().ino());
        assert_eq!(fs::read_link(at(other, "soft")).unwrap(), Path::new("target"));
        fs::remove_file(at(other, "soft")).unwrap();
        symlink("changed", at(other, "soft")).unwrap();
        assert_eq!(fs::read_link(at(one, "soft")).unwrap(), Path::new("changed"));
        // Names go, and come back as something else.
        look(other);
        fs::remove_file(at(one, "hard")).unwrap();
        fails(fs::metadata(at(other, "hard")), Errno::NOENT);
        assert_eq!(fs::metadata(at(other, "f")).unwrap().nlink(), 1);
        fs::create_dir(at(other, "hard")).unwrap();
        assert!(fs::metadata(at(one, "hard")).unwrap().is_dir());
        fs::write(at(one, "hard").join("inner"), "x").unwrap();
        fails(fs::remove_dir(at(other, "hard")), Errno::NOTEMPTY);
        fs::remove_file(at(other, "hard").join("inner")).unwrap();
        fs::remove_dir(at(one, "hard")).unwrap();
        fails(fs::metadata(at(other, "hard")), Errno::NOENT);
        // A rename, and one over another file.
        look(other);
        fs::rename(at(one, "f"), at(one, "g")).unwrap();
        fails(fs::metadata(at(other, "f")), Errno::NOENT);
        assert!(fs::read(at(other, "g")).unwrap()[..10_001] == content[..10_001]);
        fs::write(at(other, "h"), "over").unwrap();
        look(one);
        fs::rename(at(other, "h"), at(other, "g")).unwrap();
        assert_eq!(fs::read(at(one, "g")).unwrap(), b"over");
        assert_eq!(names(one), names(other));
    }
}

/// Descriptors that stay open on both sides.
pub fn open_files_see_what_others_write(m: &Mounts) {
    let dirs = m.fresh("open");
    let open = |dir: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("f"));
    let files: Vec<File> = dirs.iter().map(|dir| open(dir).unwrap()).collect();
    for round in 0..400 {
        let writer = &files[round % files.len()];
        let (at, len) = ((round * 1777) as u64 % 20_000, 1 + (round * 977) % 9_000);
        let data = bytes(round as u64, len);
        writer.write_all_at(&data, at).unwrap();
        for (n, file) in files.iter().enumerate() {
            let mut found = vec![0; len];
            file.read_exact_at(&mut found, at).unwrap();
            assert!(found == data, "round {round}: mount {n} reads something else");
        }
        if round % 10 == 9 {
            files[(round + 1) % files.len()].set_len(at).unwrap();
            for file in &files {
                assert_eq!(file.metadata().unwrap().len(), at);
                assert_eq!(file.read_at(&mut [0; 10], at).unwrap(), 0);
            }
        }
    }
}

/// "No such name" is not believed for longer than it is true, nor is a name.
pub fn names_that_were_missed_appear(m: &Mounts) {
    let dirs = m.fresh("names");
    for round in 0..30 {
        for (one, other) in pairs(&dirs) {
            fails(fs::metadata(other.join("n")), Errno::NOENT);
            File::create(one.join("n")).unwrap();
            assert!(fs::metadata(other.join("n")).is_ok(), "round {round}: a new name is not seen");
            fails(OpenOptions::new().write(true).create_new(true).open(other.join("n")), Errno::EXIST);
            fs::remove_file(other.join("n")).unwrap();
            fails(fs::metadata(one.join("n")), Errno::NOENT);
        }
    }
}

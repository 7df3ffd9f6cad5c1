//! Holes, copies and access control lists: what one mount does to them, the others see.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags, fallocate, seek};
use rustix::io::Errno;

use super::{Mounts, bytes, pairs};

pub fn holes_and_copies_are_seen(mounts: &Mounts) {
    let dirs = mounts.fresh("holes");
    for (round, (a, b)) in pairs(&dirs).enumerate() {
        let name = format!("f{round}");
        let mut expected = bytes(round as u64, 300_000);
        fs::write(a.join(&name), &expected).unwrap();
        let reader = File::open(b.join(&name)).unwrap();
        let read = |what: &str, expected: &[u8]| {
            let mut found = vec![0; expected.len()];
            reader.read_exact_at(&mut found, 0).unwrap();
            assert!(found == expected, "{what}, round {round}");
            assert_eq!(reader.metadata().unwrap().len(), expected.len() as u64, "{what}");
        };
        read("written", &expected);
        let writer = OpenOptions::new().read(true).write(true).open(a.join(&name)).unwrap();
        fallocate(&writer, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 5000, 100_000).unwrap();
        expected[5000..105_000].fill(0);
        read("punched", &expected);
        assert_eq!(seek(&reader, SeekFrom::Hole(0)), Ok(8192));
        let (mut from, mut to) = (200_000, 300_000);
        let copied = rustix::fs::copy_file_range(&writer, Some(&mut from), &writer, Some(&mut to), 50_000).unwrap();
        assert_eq!(copied, 50_000);
        expected.extend_from_within(200_000..250_000);
        read("copied", &expected);
        fallocate(&writer, FallocateFlags::ZERO_RANGE, 340_000, 20_000).unwrap();
        expected.resize(360_000, 0);
        expected[340_000..].fill(0);
        read("zeroed", &expected);
    }
}

pub fn access_control_lists_are_seen(mounts: &Mounts) {
    const NAME: &str = "system.posix_acl_access";
    // Owner, user 1000, group, mask, others.
    let acl: Vec<u8> =
        [(1u16, 6u16, u32::MAX), (2, 6, 1000), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)]
            .iter()
            .flat_map(|(tag, perm, id)| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat())
            .collect();
    let acl = [&2u32.to_le_bytes()[..], &acl].concat();
    let dirs = mounts.fresh("acls");
    for (round, (a, b)) in pairs(&dirs).enumerate() {
        let (ours, theirs) = (a.join(format!("f{round}")), b.join(format!("f{round}")));
        let get = || {
            let mut value = vec![0u8; 4096];
            rustix::fs::getxattr(&theirs, NAME, &mut value[..]).map(|n| value[..n].to_vec())
        };
        fs::write(&ours, "x").unwrap();
        assert_eq!(get(), Err(Errno::NODATA));
        rustix::fs::setxattr(&ours, NAME, &acl, XattrFlags::empty()).unwrap();
        assert_eq!((get().as_ref(), fs::metadata(&theirs).unwrap().mode() & 0o777), (Ok(&acl), 0o660));
        rustix::fs::removexattr(&ours, NAME).unwrap();
        assert_eq!(get(), Err(Errno::NODATA));
    }
}

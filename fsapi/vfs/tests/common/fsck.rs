//! Are the items of a filesystem consistent with each other? Panics where they are not.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use vellum_base::{Ino, Key, Zone};
use vellum_format::{Dirent, Extent, Inode, ItemKind};

#[derive(Default)]
struct Counts {
    entries: u64,
    subdirs: u32,
    backrefs: u32,
    online: u64,
    last_end: u64,
    inline: Option<usize>,
}

pub fn check(items: &[(Key, Bytes)]) {
    let all: BTreeMap<Key, Bytes> = items.iter().cloned().collect();
    let mut inodes = BTreeMap::new();
    let mut counts: BTreeMap<Ino, Counts> = BTreeMap::new();
    let mut orphans = BTreeSet::new();
    let mut parents = BTreeMap::new();
    for (key, value) in &all {
        let ino = Ino(key.first());
        if key.zone() == Some(Zone::Orphan) {
            orphans.insert(ino);
            continue;
        }
        let c = counts.entry(ino).or_default();
        match ItemKind::from_u8(key.kind()).expect("kind") {
            ItemKind::Inode => drop(inodes.insert(ino, Inode::decode(value).expect("inode"))),
            ItemKind::Dirent => {
                let d = Dirent::decode(value).expect("dirent");
                c.entries += 1;
                c.subdirs += u32::from(d.kind as u8 == 4);
                assert_eq!(*key, Dirent::key_by_name(ino, &d.name, d.pos));
                assert_eq!(all.get(&Dirent::key_by_pos(ino, d.pos)), Some(value), "{ino} lacks a position");
                let back = all.get(&Dirent::key_backref(d.ino, ino, d.pos)).expect("backref");
                let back = Dirent::decode(back).expect("backref");
                assert_eq!((back.ino, &back.name), (ino, &d.name));
                if d.kind as u8 == 4 {
                    assert!(parents.insert(d.ino, ino).is_none(), "directory {} has two names", d.ino);
                }
            }
            ItemKind::Readdir => {
                let d = Dirent::decode(value).expect("dirent");
                assert!(all.contains_key(&Dirent::key_by_name(ino, &d.name, d.pos)), "{ino} lacks a name");
            }
            ItemKind::Backref => {
                c.backrefs += 1;
                let d = Dirent::decode(value).expect("backref");
                assert!(all.contains_key(&Dirent::key_by_name(d.ino, &d.name, d.pos)), "{ino}: a backref to nothing");
            }
            ItemKind::Inline => c.inline = Some(value.len()),
            ItemKind::Extent => {
                let e = Extent::decode(value).expect("extent");
                assert!(e.header.start.0 < 1 << 63, "a provisional address became durable");
                let first = Extent::first_block(key, e.header.len_blocks).expect("extent");
                assert!(first >= c.last_end, "{ino}: extents overlap");
                c.last_end = first + u64::from(e.header.len_blocks);
                c.online += u64::from(e.header.len_blocks);
            }
            ItemKind::Symlink | ItemKind::Xattr => {}
        }
    }
    for (ino, c) in &counts {
        let inode = inodes.get(ino).unwrap_or_else(|| panic!("items of {ino}, which is no inode"));
        assert_eq!(c.online, inode.online_blocks, "{ino}: online blocks");
        assert!(c.last_end <= inode.size.div_ceil(4096), "{ino}: extents beyond {}", inode.size);
        if let Some(len) = c.inline {
            assert!(
                c.online == 0 && len as u64 <= inode.size && inode.size <= 1024,
                "{ino}: inline {len} of {inode:?}"
            );
        }
        assert_eq!(inode.nlink == 0, orphans.contains(ino), "{ino}: {} names, orphan record?", inode.nlink);
        if inode.is_dir() {
            assert_eq!((c.entries, c.subdirs + 2), (inode.size, inode.nlink), "{ino}: entries and names");
            let (mut up, mut depth) = (*ino, 0);
            while up != Ino::ROOT {
                up = *parents.get(&up).unwrap_or_else(|| panic!("{ino} hangs nowhere"));
                depth += 1;
                assert!(depth < 10_000, "{ino} is in a loop");
            }
        } else {
            assert_eq!(c.backrefs, inode.nlink, "{ino}: names");
        }
    }
}

//! One operation at a time: what POSIX says at the edges.

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::*;
use vellum_base::Ino;
use vellum_vfs::{OpenFlags, RenameMode, SetAttr, SetTime, VfsError, VfsOptions, XattrMode};

const ROOT: Ino = Ino::ROOT;

#[test]
fn names_are_refused_where_posix_refuses_them() {
    run(1, || async {
        let vfs = vfs_on(&engine());
        let long = [b'x'; 256];
        assert_eq!(vfs.lookup(ROOT, b"none").await, Err(VfsError::NOENT));
        assert_eq!(vfs.lookup(ROOT, &long).await, Err(VfsError::NAMETOOLONG));
        assert_eq!(vfs.mkdir(ME, ROOT, &long, 0o755).await, Err(VfsError::NAMETOOLONG));
        let dir = vfs.mkdir(ME, ROOT, &long[..255], 0o755).await.unwrap();
        assert_eq!(vfs.lookup(ROOT, &long[..255]).await.unwrap().ino, dir.ino);
        assert_eq!(vfs.mkdir(ME, ROOT, b".", 0o755).await, Err(VfsError::EXIST));
        assert_eq!(vfs.mkdir(ME, ROOT, &long[..255], 0o755).await, Err(VfsError::EXIST));
        let file = make(&vfs, dir.ino, "f", b"1").await;
        assert_eq!(vfs.lookup(file, b"x").await, Err(VfsError::NOTDIR));
        assert_eq!(vfs.create(ME, file, b"x", 0o644, rw()).await.unwrap_err(), VfsError::NOTDIR);
        assert_eq!(vfs.rmdir(ROOT, &long[..255]).await, Err(VfsError::NOTEMPTY));
        assert_eq!(vfs.rmdir(dir.ino, b"f").await, Err(VfsError::NOTDIR));
        assert_eq!(vfs.unlink(ROOT, &long[..255]).await, Err(VfsError::ISDIR));
        assert_eq!(vfs.open(dir.ino, rw()).await.unwrap_err(), VfsError::ISDIR);
        assert_eq!(vfs.lookup(dir.ino, b"..").await.unwrap().ino, ROOT);
        assert_eq!(vfs.lookup(dir.ino, b".").await.unwrap().ino, dir.ino);
        let flags = OpenFlags { exclusive: true, ..rw() };
        assert_eq!(vfs.create(ME, dir.ino, b"f", 0o644, flags).await.unwrap_err(), VfsError::EXIST);
        assert_eq!(vfs.create(ME, dir.ino, b"f", 0o644, rw()).await.unwrap().0.ino, file);
    });
}

#[test]
fn link_counts_follow_names_and_subdirectories() {
    run(2, || async {
        let vfs = vfs_on(&engine());
        let nlink = async |ino| vfs.getattr(ino).await.map(|a| a.nlink);
        let a = vfs.mkdir(ME, ROOT, b"a", 0o755).await.unwrap().ino;
        let b = vfs.mkdir(ME, a, b"b", 0o755).await.unwrap().ino;
        assert_eq!((nlink(ROOT).await, nlink(a).await, nlink(b).await), (Ok(3), Ok(3), Ok(2)));
        let f = make(&vfs, a, "f", b"content").await;
        assert_eq!(vfs.link(f, b, b"g").await.unwrap().nlink, 2);
        assert_eq!(vfs.link(f, b, b"g").await.unwrap_err(), VfsError::EXIST);
        assert_eq!(vfs.link(a, b, b"d").await.unwrap_err(), VfsError::PERM);
        vfs.unlink(a, b"f").await.unwrap();
        assert_eq!(nlink(f).await, Ok(1));
        assert_eq!(content(&vfs, f).await, b"content");
        vfs.rename(a, b"b", ROOT, b"c", RenameMode::Replace).await.unwrap();
        assert_eq!((nlink(ROOT).await, nlink(a).await, nlink(b).await), (Ok(4), Ok(2), Ok(2)));
        assert_eq!(vfs.lookup(b, b"..").await.unwrap().ino, ROOT);
        vfs.unlink(b, b"g").await.unwrap();
        assert_eq!(nlink(f).await, Err(VfsError::STALE));
        vfs.rmdir(ROOT, b"c").await.unwrap();
        assert_eq!((nlink(ROOT).await, nlink(b).await), (Ok(3), Err(VfsError::STALE)));
        assert_eq!(vfs.create(ME, b, b"x", 0o644, rw()).await.unwrap_err(), VfsError::STALE);
    });
}

#[test]
fn renames_replace_refuse_exchange_and_never_make_loops() {
    run(3, || async {
        let vfs = vfs_on(&engine());
        let a = vfs.mkdir(ME, ROOT, b"a", 0o755).await.unwrap().ino;
        let b = vfs.mkdir(ME, a, b"b", 0o755).await.unwrap().ino;
        let c = vfs.mkdir(ME, b, b"c", 0o755).await.unwrap().ino;
        let plain = RenameMode::Replace;
        assert_eq!(vfs.rename(ROOT, b"a", c, b"x", plain).await, Err(VfsError::INVAL));
        assert_eq!(vfs.rename(ROOT, b"a", a, b"x", plain).await, Err(VfsError::INVAL));
        assert_eq!(vfs.rename(ROOT, b"a", b, b"c", RenameMode::Exchange).await, Err(VfsError::INVAL));
        assert_eq!(vfs.rename(b, b"c", ROOT, b"a", plain).await, Err(VfsError::NOTEMPTY));
        let (f, g) = (make(&vfs, ROOT, "f", b"f").await, make(&vfs, a, "g", &pattern(1, 9000)).await);
        assert_eq!(vfs.rename(ROOT, b"f", a, b"b", plain).await, Err(VfsError::ISDIR));
        assert_eq!(vfs.rename(a, b"b", ROOT, b"f", plain).await, Err(VfsError::NOTDIR));
        assert_eq!(vfs.rename(ROOT, b"f", a, b"g", RenameMode::NoReplace).await, Err(VfsError::EXIST));
        assert_eq!(vfs.rename(ROOT, b"f", a, b"h", RenameMode::Exchange).await, Err(VfsError::NOENT));
        vfs.rename(ROOT, b"f", a, b"g", RenameMode::Exchange).await.unwrap();
        assert_eq!((vfs.lookup(ROOT, b"f").await.unwrap().ino, vfs.lookup(a, b"g").await.unwrap().ino), (g, f));
        vfs.rename(ROOT, b"f", a, b"g", plain).await.unwrap();
        assert_eq!(vfs.lookup(a, b"g").await.unwrap().ino, g);
        assert_eq!(vfs.getattr(f).await, Err(VfsError::STALE), "what was replaced is gone");
        assert_eq!(names(&vfs, ROOT).await, ["a"]);
        assert_eq!(names(&vfs, a).await, ["b", "g"]);
        vfs.link(g, ROOT, b"same").await.unwrap();
        vfs.rename(ROOT, b"same", a, b"g", plain).await.unwrap();
        assert_eq!(names(&vfs, ROOT).await, ["a", "same"], "two names of one inode stay");
        let d = vfs.mkdir(ME, ROOT, b"d", 0o755).await.unwrap().ino;
        vfs.rename(b, b"c", ROOT, b"d", plain).await.unwrap();
        assert_eq!(vfs.getattr(d).await, Err(VfsError::STALE));
        assert_eq!(vfs.getattr(ROOT).await.unwrap().nlink, 4);
        assert_eq!(vfs.getattr(b).await.unwrap().nlink, 2);
        vfs.rename(ROOT, b"d", a, b"b", RenameMode::Exchange).await.unwrap();
        assert_eq!(vfs.lookup(b, b"..").await.unwrap().ino, ROOT);
        assert_eq!(vfs.lookup(c, b"..").await.unwrap().ino, a);
    });
}

#[test]
fn content_of_every_size_comes_back_before_and_after_it_left_memory() {
    run(4, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        let mut files = Vec::new();
        for (i, len) in
            [0usize, 1, 1023, 1024, 1025, 4095, 4096, 4097, 100_000, 1 << 20, 3_500_001].into_iter().enumerate()
        {
            let data = pattern(i as u64, len);
            let ino = make(&vfs, ROOT, &format!("f{i}"), &data).await;
            assert_eq!(content(&vfs, ino).await, data, "in memory, {len}");
            files.push((ino, data));
        }
        vfs.syncfs().await.unwrap();
        assert_eq!(vfs.buffered_bytes(), 0);
        assert_eq!(vfs.known_files(), 0);
        let other = vfs_on(&engine);
        for (ino, data) in &files {
            for vfs in [&vfs, &other] {
                assert_eq!(content(vfs, *ino).await, *data, "{}", data.len());
                let attr = vfs.getattr(*ino).await.unwrap();
                assert_eq!(attr.blocks, data.len().div_ceil(4096) as u64 * 8);
            }
        }
    });
}

#[test]
fn truncation_both_ways_never_shows_old_bytes() {
    run(5, || async {
        let vfs = vfs_on(&engine());
        for (written, down, up) in [
            (500, 100, 900),
            (500, 100, 9000),
            (900, 0, 2000),
            (9000, 5000, 20000),
            (9000, 100, 5000),
            (9000, 4096, 9000),
            (3 << 20, 70_001, 2 << 20),
        ] {
            for sync in [false, true] {
                let data = pattern(7, written);
                let ino = make(&vfs, ROOT, "f", &data).await;
                let size = |size: usize| SetAttr { size: Some(size as u64), ..SetAttr::default() };
                let mut expected = data.clone();
                for to in [down, up] {
                    if sync {
                        vfs.syncfs().await.unwrap();
                    }
                    let attr = vfs.setattr(ino, size(to)).await.unwrap();
                    expected.resize(to, 0);
                    assert_eq!(attr.size, to as u64);
                    assert_eq!(content(&vfs, ino).await, expected, "{written} {down} {up} to {to}, sync {sync}");
                }
                vfs.syncfs().await.unwrap();
                assert_eq!(content(&vfs, ino).await, expected);
                vfs.unlink(ROOT, b"f").await.unwrap();
            }
        }
        assert_eq!(vfs.setattr(ROOT, SetAttr { size: Some(1), ..SetAttr::default() }).await, Err(VfsError::ISDIR));
        let huge = SetAttr { size: Some(1 << 63), ..SetAttr::default() };
        let ino = make(&vfs, ROOT, "f", b"x").await;
        assert_eq!(vfs.setattr(ino, huge).await, Err(VfsError::FBIG));
    });
}

#[test]
fn appends_go_to_the_end_and_holes_are_zeros() {
    run(6, || async {
        let vfs = vfs_on(&engine());
        let ino = make(&vfs, ROOT, "f", b"abc").await;
        let (append, _) = vfs.open(ino, OpenFlags { append: true, ..rw() }).await.unwrap();
        vfs.write(append, 0, b"def", false).await.unwrap();
        assert_eq!(content(&vfs, ino).await, b"abcdef");
        vfs.fsync(append).await.unwrap();
        vfs.write(append, 0, &pattern(1, 5000), false).await.unwrap();
        let (plain, _) = vfs.open(ino, rw()).await.unwrap();
        vfs.write(plain, 100_000, b"end", false).await.unwrap();
        let mut expected = b"abcdef".to_vec();
        expected.extend(pattern(1, 5000));
        expected.resize(100_000, 0);
        expected.extend(b"end");
        assert_eq!(content(&vfs, ino).await, expected);
        vfs.fsync(plain).await.unwrap();
        assert_eq!(content(&vfs, ino).await, expected);
        assert_eq!(vfs.getattr(ino).await.unwrap().blocks, 3 * 8);
        let (read_only, _) = vfs.open(ino, OpenFlags { read: true, ..OpenFlags::default() }).await.unwrap();
        assert_eq!(vfs.write(read_only, 0, b"x", false).await, Err(VfsError::BADF));
        let (trunc, attr) = vfs.open(ino, OpenFlags { truncate: true, ..rw() }).await.unwrap();
        assert_eq!(attr.size, 0);
        for handle in [append, plain, read_only, trunc] {
            vfs.release(handle).await.unwrap();
        }
        assert_eq!(vfs.release(plain).await, Err(VfsError::BADF));
    });
}

#[test]
fn privileges_and_groups() {
    run(7, || async {
        let vfs = vfs_on(&engine());
        let dir = vfs.mkdir(ME, ROOT, b"d", 0o2775).await.unwrap().ino;
        vfs.setattr(dir, SetAttr { gid: Some(77), ..SetAttr::default() }).await.unwrap();
        let sub = vfs.mkdir(ME, dir, b"s", 0o755).await.unwrap();
        assert_eq!((sub.gid, sub.mode), (77, 0o042755));
        let (file, handle) = vfs.create(ME, dir, b"f", 0o644, rw()).await.unwrap();
        assert_eq!(file.gid, 77);
        let ino = file.ino;
        vfs.setattr(ino, SetAttr { mode: Some(0o6755), ..SetAttr::default() }).await.unwrap();
        vfs.setxattr(ino, b"security.capability", b"caps", XattrMode::Set).await.unwrap();
        vfs.write(handle, 0, b"x", false).await.unwrap();
        assert_eq!(vfs.getattr(ino).await.unwrap().mode, 0o106755);
        vfs.write(handle, 0, b"x", true).await.unwrap();
        assert_eq!(vfs.getattr(ino).await.unwrap().mode, 0o100755);
        assert_eq!(vfs.getxattr(ino, b"security.capability").await, Err(VfsError::NODATA));
        vfs.setattr(ino, SetAttr { mode: Some(0o6755), ..SetAttr::default() }).await.unwrap();
        vfs.setattr(ino, SetAttr { uid: Some(5), ..SetAttr::default() }).await.unwrap();
        assert_eq!(vfs.getattr(ino).await.unwrap().mode, 0o100755);
        vfs.setattr(ino, SetAttr { mode: Some(0o4755), ..SetAttr::default() }).await.unwrap();
        vfs.setattr(ino, SetAttr { size: Some(9), kill_privileges: true, ..SetAttr::default() }).await.unwrap();
        assert_eq!(vfs.getattr(ino).await.unwrap().mode, 0o100755);
        let time = vellum_format::Timestamp { secs: -5, nanos: 7 };
        vfs.setattr(ino, SetAttr { mtime: Some(SetTime::To(time)), ..SetAttr::default() }).await.unwrap();
        vfs.fsync(handle).await.unwrap();
        assert_eq!(vfs.getattr(ino).await.unwrap().mtime, time, "written back later, not newer");
        let umask = vellum_vfs::Caller { umask: 0o077, ..ME };
        assert_eq!(vfs.mkdir(umask, ROOT, b"u", 0o777).await.unwrap().mode & 0o777, 0o700);
    });
}

#[test]
fn an_open_file_outlives_its_name() {
    run(8, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        for (name, len) in [("small", 10), ("large", 3 << 20)] {
            let data = pattern(3, len);
            let ino = make(&vfs, ROOT, name, &data).await;
            let (handle, _) = vfs.open(ino, rw()).await.unwrap();
            vfs.unlink(ROOT, name.as_bytes()).await.unwrap();
            assert_eq!(vfs.getattr(ino).await.unwrap().nlink, 0);
            assert_eq!(vfs.link(ino, ROOT, b"again").await, Err(VfsError::NOENT));
            assert_eq!(read_handle(&vfs, handle, 0, len).await, data);
            vfs.write(handle, 5, b"later", false).await.unwrap();
            vfs.syncfs().await.unwrap();
            assert_eq!(read_handle(&vfs, handle, 5, 5).await, b"later");
            vfs.release(handle).await.unwrap();
            vellum_rt::sleep(Duration::from_secs(1)).await;
            assert_eq!(vfs.getattr(ino).await, Err(VfsError::STALE));
        }
        vfs.syncfs().await.unwrap();
        assert_eq!(engine.durable_items().len(), 1, "only the root is left");
    });
}

#[test]
fn orphans_of_the_dead_are_deleted_and_those_of_the_living_are_not() {
    run(9, || async {
        let engine = engine();
        let (alive, dead) = (vfs_on(&engine), vfs_on(&engine));
        let mut inos = Vec::new();
        for (vfs, name) in [(&alive, "alive"), (&dead, "dead")] {
            let ino = make(vfs, ROOT, name, &pattern(1, 50_000)).await;
            vfs.open(ino, rw()).await.unwrap();
            vfs.unlink(ROOT, name.as_bytes()).await.unwrap();
            vfs.syncfs().await.unwrap();
            inos.push(ino);
        }
        dead.client().abort();
        drop(dead);
        let cleaner = vfs_on(&engine);
        vellum_rt::sleep(Duration::from_secs(1200)).await;
        assert_eq!(cleaner.getattr(inos[1]).await, Err(VfsError::STALE));
        assert_eq!(cleaner.getattr(inos[0]).await.unwrap().nlink, 0);
        assert_eq!(alive.getattr(inos[0]).await.unwrap().size, 50_000);
    });
}

#[test]
fn extended_attributes_of_every_size() {
    run(10, || async {
        let vfs = vfs_on(&engine());
        let ino = make(&vfs, ROOT, "f", b"").await;
        assert!(vfs.listxattr(ino).await.unwrap().is_empty());
        assert_eq!(vfs.getxattr(ino, b"user.a").await, Err(VfsError::NODATA));
        assert_eq!(vfs.setxattr(ino, b"user.a", b"", XattrMode::Replace).await, Err(VfsError::NODATA));
        for len in [0, 1, 1024, 1025, 65_535, 3000, 5] {
            let value = pattern(len as u64, len);
            vfs.setxattr(ino, b"user.a", &value, XattrMode::Set).await.unwrap();
            assert_eq!(vfs.getxattr(ino, b"user.a").await.unwrap(), value);
        }
        assert_eq!(vfs.setxattr(ino, b"user.a", b"", XattrMode::Create).await, Err(VfsError::EXIST));
        assert_eq!(vfs.setxattr(ino, b"user.b", &vec![0; 65_536], XattrMode::Set).await, Err(VfsError::TOOBIG));
        assert_eq!(vfs.setxattr(ino, &[b'n'; 256], b"", XattrMode::Set).await, Err(VfsError::RANGE));
        vfs.setxattr(ino, b"user.b", &pattern(1, 9999), XattrMode::Create).await.unwrap();
        let mut names = vfs.listxattr(ino).await.unwrap();
        names.sort();
        assert_eq!(names, [&b"user.a"[..], b"user.b"]);
        vfs.removexattr(ino, b"user.b").await.unwrap();
        assert_eq!(vfs.removexattr(ino, b"user.b").await, Err(VfsError::NODATA));
        assert_eq!(vfs.listxattr(ino).await.unwrap().len(), 1);
    });
}

#[test]
fn symlinks_and_nodes() {
    run(11, || async {
        let vfs = vfs_on(&engine());
        let target = vec![b't'; 4095];
        let link = vfs.symlink(ME, ROOT, b"l", &target).await.unwrap();
        assert_eq!((link.size, link.mode), (4095, 0o120777));
        assert_eq!(vfs.readlink(link.ino).await.unwrap(), target);
        assert_eq!(vfs.symlink(ME, ROOT, b"m", &[b't'; 4096]).await, Err(VfsError::NAMETOOLONG));
        assert_eq!(vfs.symlink(ME, ROOT, b"m", b"").await, Err(VfsError::NOENT));
        assert_eq!(vfs.readlink(ROOT).await, Err(VfsError::INVAL));
        let node = vfs.mknod(ME, ROOT, b"n", 0o020_600, 0x103).await.unwrap();
        assert_eq!((node.mode, node.rdev), (0o020_600, 0x103));
        assert_eq!(vfs.mknod(ME, ROOT, b"d", 0o040_755, 0).await, Err(VfsError::PERM));
        assert_eq!(vfs.mknod(ME, ROOT, b"r", 0o600, 0).await.unwrap().mode, 0o100_600);
        vfs.unlink(ROOT, b"l").await.unwrap();
        assert_eq!(vfs.readlink(link.ino).await, Err(VfsError::STALE));
    });
}

#[test]
fn listings_go_on_while_the_directory_changes() {
    run(12, || async {
        let vfs = vfs_on(&engine());
        let dir = vfs.mkdir(ME, ROOT, b"d", 0o755).await.unwrap().ino;
        for i in 0..1000 {
            make(&vfs, dir, &format!("{i}"), b"").await;
        }
        let (mut pos, mut seen) = (0, Vec::new());
        loop {
            let page = vfs.readdir(dir, pos, 7, true).await.unwrap();
            let Some(last) = page.last() else { break };
            pos = last.next_pos;
            for e in page.iter().skip_while(|e| e.name.starts_with(b".")) {
                assert_eq!(e.attr.as_ref().map(|a| a.ino), Some(e.ino), "our own lease: attributes come along");
                vfs.unlink(dir, &e.name).await.unwrap();
                seen.push(String::from_utf8_lossy(&e.name).into_owned());
            }
        }
        assert_eq!(seen, (0..1000).map(|i| i.to_string()).collect::<Vec<_>>());
        assert_eq!(vfs.getattr(dir).await.unwrap().size, 0);
        vfs.rmdir(ROOT, b"d").await.unwrap();
    });
}

#[test]
fn small_files_in_an_own_directory_cost_no_round_trip() {
    run(13, || async {
        let engine = engine();
        let vfs = vfs_with(&engine, VfsOptions { dirty_age: Duration::from_secs(3600), ..VfsOptions::default() });
        let dir = vfs.mkdir(ME, ROOT, b"d", 0o755).await.unwrap().ino;
        make(&vfs, dir, "first", &[1; 4096]).await;
        vellum_rt::sleep(Duration::from_secs(5)).await; // the orphan scan of the start
        let before = (engine.requests(), vfs.client().stats());
        for i in 0..50 {
            make(&vfs, dir, &format!("{i}"), &[1; 4096]).await;
        }
        assert_eq!(vfs.client().stats().item_misses, before.1.item_misses);
        assert_eq!(vfs.client().stats().scan_misses, before.1.scan_misses);
        assert_eq!(vfs.client().stats().lock_requests, before.1.lock_requests);
        let commits = engine.requests() - before.0;
        assert!(commits <= 3, "batches only: {commits}");
        let blocks = vfs.client().stats().data_blocks_written;
        vfs.syncfs().await.unwrap();
        assert_eq!(vfs.client().stats().data_blocks_written - blocks, 51);
    });
}

#[test]
fn two_gateways_are_one_filesystem() {
    run(14, || async {
        let engine = engine();
        let (a, b) = (vfs_on(&engine), vfs_on(&engine));
        let dir = a.mkdir(ME, ROOT, b"d", 0o755).await.unwrap().ino;
        for round in 0..20u64 {
            let (w, r): (&Rc<_>, &Rc<_>) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
            let name = format!("f{round}");
            let data = pattern(round, 1 + (round as usize * 977) % 40_000);
            let ino = make(w, dir, &name, &data).await;
            assert_eq!(r.lookup(dir, name.as_bytes()).await.unwrap().size, data.len() as u64);
            assert_eq!(content(r, ino).await, data);
            let (handle, _) = r.open(ino, OpenFlags { append: true, ..rw() }).await.unwrap();
            r.write(handle, 0, b"more", false).await.unwrap();
            assert_eq!(content(w, ino).await, [&data[..], b"more"].concat());
            r.release(handle).await.unwrap();
            w.setattr(ino, SetAttr { size: Some(3), ..SetAttr::default() }).await.unwrap();
            assert_eq!(r.getattr(ino).await.unwrap().size, 3);
            r.rename(dir, name.as_bytes(), ROOT, b"moved", RenameMode::Replace).await.unwrap();
            assert_eq!(w.lookup(dir, name.as_bytes()).await, Err(VfsError::NOENT));
            assert_eq!(names(w, ROOT).await, ["d", "moved"]);
        }
    });
}

#[test]
fn what_was_fsynced_survives_a_crash() {
    run(15, || async {
        let engine = engine();
        let vfs = vfs_on(&engine);
        let (attr, handle) = vfs.create(ME, ROOT, b"f", 0o644, rw()).await.unwrap();
        let mut data = pattern(1, 5 << 20);
        vfs.write(handle, 0, &data, false).await.unwrap();
        vfs.fsync(handle).await.unwrap();
        vfs.write(handle, 1_000_000, b"never synced by anybody", false).await.unwrap();
        engine.crash();
        vellum_rt::sleep(Duration::from_millis(10)).await;
        let fresh = vfs_on(&engine);
        data[1_000_000..1_000_023].copy_from_slice(b"never synced by anybody");
        assert_eq!(content(&fresh, attr.ino).await, data, "the writer is alive and brings it again");
        vfs.client().abort();
        engine.crash();
        let third = vfs_on(&engine);
        assert_eq!(third.getattr(attr.ino).await.unwrap().size, data.len() as u64);
    });
}

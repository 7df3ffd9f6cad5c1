//! What the checker says of items that do not belong together: the place, for each kind of damage, and nothing else.

mod common;

use common::*;
use vellum_base::{Ino, ItemOp, Key};
use vellum_format::{Dirent, FileKind, Inode};
use vellum_rt::native::block_on;

fn dir() -> Ino {
    ino(7, 2)
}

/// Each in a bucket of its own.
fn file(n: u64) -> Ino {
    ino(20 + n as u8, 2)
}

fn entry(n: u64) -> Dirent {
    Dirent { ino: file(n), pos: 2 + n, kind: FileKind::Regular, name: format!("file {n}").into_bytes().into() }
}

fn backref(of: &Dirent) -> Dirent {
    Dirent { ino: dir(), ..of.clone() }
}

fn by_name(e: &Dirent) -> ItemOp {
    put(Dirent::key_by_name(dir(), &e.name, e.pos), e.encode())
}

fn by_position(e: &Dirent) -> ItemOp {
    put(Dirent::key_by_pos(dir(), e.pos), e.encode())
}

fn with_backref(e: &Dirent) -> ItemOp {
    put(Dirent::key_backref(e.ino, dir(), e.pos), backref(e).encode())
}

fn of_kind(kind: FileKind, nlink: u32, size: u64) -> Inode {
    Inode { mode: kind.mode_bits() | 0o755, nlink, ..inode(size, 1) }
}

fn gone(key: Key) -> ItemOp {
    ItemOp::Delete { key }
}

/// Problems of a directory with three files after `damage`.
fn told(damage: Vec<ItemOp>) -> Vec<String> {
    block_on(async {
        let device = memory(128 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, options(2)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        let mut ops = vec![put_inode(dir(), &of_kind(FileKind::Directory, 2, 3))];
        for e in (0..3).map(entry) {
            ops.push(put_inode(e.ino, &of_kind(FileKind::Regular, 1, 0)));
            ops.extend([by_name(&e), by_position(&e), with_backref(&e)]);
        }
        client.commit(&stores[0], ops).await.unwrap();
        if !damage.is_empty() {
            client.commit(&stores[0], damage).await.unwrap();
        }
        stores[0].shutdown().await.unwrap();
        problems(&device).await
    })
}

#[test]
fn a_sound_directory_has_no_problem() {
    assert_eq!(told(Vec::new()), Vec::<String>::new());
}

#[test]
fn items_without_their_counterparts_are_named() {
    let e = entry(1);
    let (name_key, pos_key) = (Dirent::key_by_name(dir(), &e.name, e.pos), Dirent::key_by_pos(dir(), e.pos));
    let back_key = Dirent::key_backref(e.ino, dir(), e.pos);
    let other_kind = Dirent { kind: FileKind::Symlink, ..e.clone() };
    let other_name = Dirent { name: "another".into(), ..backref(&e) };
    let cases: Vec<(Vec<ItemOp>, Vec<&str>)> = vec![
        (vec![gone(pos_key)], vec!["by position there is no such entry", "directory"]),
        (vec![gone(name_key)], vec!["by name there is no such entry", "size 3, and it has 2 entries"]),
        (vec![gone(back_key)], vec!["has no backref to it", "1 links, and 0 were found"]),
        (vec![ItemOp::DeleteInode { ino: e.ino }], vec!["is not there", "has no backref to it"]),
        (vec![by_name(&other_kind), by_position(&other_kind)], vec!["is of another kind"]),
        (vec![put(back_key, other_name.encode())], vec!["has no backref to it", "has no such entry"]),
        (vec![put(Dirent::key_by_pos(dir(), 99), e.encode())], vec!["its key is not its position's"]),
        (
            vec![gone(back_key), put(Dirent::key_backref(e.ino, dir(), 99), backref(&e).encode())],
            vec!["its key is not its entry's", "has no backref to it"],
        ),
        (
            vec![gone(name_key), put(Dirent::key_by_name(dir(), b"elsewhere", e.pos), e.encode())],
            vec!["its key is not its name's", "by name there is no such entry"],
        ),
    ];
    for (damage, expected) in cases {
        let what = format!("{damage:?}");
        let found = told(damage);
        for part in &expected {
            assert!(found.iter().any(|problem| problem.contains(part)), "{what}: no {part:?} in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{what}: {found:#?}");
    }
}

//! A small tree made by a client that sees everything, and the operations on names that gateways make of items.
//!
//! ```text
//!  /            pub/lab/        the directory of the confined client
//!               pub/lab/file    two blocks of 'f'
//!               pub/lab/sub/deep
//!               secret/         outside
//!               secret/key      two blocks of 's'
//!               secret/shared   is pub/lab/shared too
//! ```

use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{BlockRange, DmaBuf, Ino, ItemOp, Rid, crc32c};
use vellum_format::{Dirent, Extent, ExtentHeader, FileKind, Inode};
use vellum_link::LinkError;
use vellum_wire::{LockMode, Request, Response};

use crate::fake::TestClient;

pub struct Tree {
    pub admin: Rc<TestClient>,
    pub group: u64,
    pub lab: Ino,
    pub file: Ino,
    pub sub: Ino,
    pub deep: Ino,
    pub secret: Ino,
    pub key: Ino,
    pub shared: Ino,
    /// Where the contents of `file` and `key` are.
    pub file_blocks: BlockRange,
    pub key_blocks: BlockRange,
}

pub fn inode(kind: FileKind, nlink: u32) -> Inode {
    Inode { mode: kind.mode_bits() | 0o755, nlink, ..Inode::default() }
}

pub fn put_inode(ino: Ino, inode: &Inode) -> ItemOp {
    ItemOp::Put { key: Inode::key(ino), value: inode.encode() }
}

pub fn entry_items(dir: Ino, pos: u64, name: &str, ino: Ino, kind: FileKind) -> [ItemOp; 2] {
    let value = Dirent { ino, pos, kind, name: Bytes::copy_from_slice(name.as_bytes()) }.encode();
    [
        ItemOp::Put { key: Dirent::key_by_name(dir, name.as_bytes(), pos), value: value.clone() },
        ItemOp::Put { key: Dirent::key_by_pos(dir, pos), value },
    ]
}

pub fn backref(ino: Ino, dir: Ino, pos: u64, name: &str, kind: FileKind) -> ItemOp {
    let value = Dirent { ino: dir, pos, kind, name: Bytes::copy_from_slice(name.as_bytes()) }.encode();
    ItemOp::Put { key: Dirent::key_backref(ino, dir, pos), value }
}

/// The three items of a name.
pub fn name(dir: Ino, pos: u64, text: &str, ino: Ino, kind: FileKind) -> Vec<ItemOp> {
    let mut ops = entry_items(dir, pos, text, ino, kind).to_vec();
    ops.push(backref(ino, dir, pos, text, kind));
    ops
}

pub fn no_name(dir: Ino, pos: u64, text: &str, ino: Ino) -> Vec<ItemOp> {
    let keys = [
        Dirent::key_by_name(dir, text.as_bytes(), pos),
        Dirent::key_by_pos(dir, pos),
        Dirent::key_backref(ino, dir, pos),
    ];
    keys.map(|key| ItemOp::Delete { key }).to_vec()
}

/// Two blocks of a letter.
pub fn content(letter: u8) -> DmaBuf {
    DmaBuf::copy_from(&[letter; 8192], true)
}

/// Writes two blocks of a letter; where they are, and the item that gives them to a file.
pub async fn write(client: &TestClient, ino: Ino, letter: u8) -> (BlockRange, ItemOp) {
    let reply = client.conn.call(Request::WriteData, Some(content(letter).freeze())).await.unwrap();
    let Response::Written { ranges } = reply.body else { panic!() };
    (ranges[0], extent(ino, ranges[0], letter))
}

/// The item that gives a file two blocks of a letter.
pub fn extent(ino: Ino, blocks: BlockRange, letter: u8) -> ItemOp {
    let header = ExtentHeader { start: blocks.start, len_blocks: 2, offline: false };
    let extent = Extent { header, checksums: vec![crc32c(&[letter; 4096]); 2] };
    ItemOp::Put { key: Extent::key(ino, 0, 2), value: extent.encode() }
}

impl Tree {
    pub async fn new(admin: Rc<TestClient>) -> Tree {
        let reply = admin.conn.call(Request::AllocGroup { near: None }, None).await.unwrap();
        let Response::Group { group } = reply.body else { panic!() };
        let ino = |slot| Ino(Ino::first_of_group(group).0 + slot);
        let [open, lab, file, sub, deep, secret, key, shared] = [0, 1, 2, 3, 4, 5, 6, 7].map(ino);
        let (dir, regular) = (FileKind::Directory, FileKind::Regular);
        let mut ops = vec![put_inode(Ino::ROOT, &inode(dir, 4))];
        for (above, pos, text, ino, kind, nlink) in [
            (Ino::ROOT, 2, "pub", open, dir, 3),
            (open, 2, "lab", lab, dir, 3),
            (lab, 2, "file", file, regular, 1),
            (lab, 3, "sub", sub, dir, 2),
            (sub, 2, "deep", deep, regular, 1),
            (Ino::ROOT, 3, "secret", secret, dir, 2),
            (secret, 2, "key", key, regular, 1),
            (secret, 3, "shared", shared, regular, 2),
        ] {
            ops.extend(name(above, pos, text, ino, kind));
            ops.push(put_inode(ino, &inode(kind, nlink)));
        }
        ops.extend(name(lab, 4, "shared", shared, regular));
        let (file_blocks, extent) = write(&admin, file, b'f').await;
        ops.push(extent);
        let (key_blocks, extent) = write(&admin, key, b's').await;
        ops.push(extent);
        let tree = Tree { admin, group, lab, file, sub, deep, secret, key, shared, file_blocks, key_blocks };
        tree.commit(ops).await;
        tree
    }

    /// By the one who sees everything, durably.
    pub async fn commit(&self, ops: Vec<ItemOp>) {
        self.admin.lock(&[(Ino::ROOT.group(), LockMode::Write), (self.group, LockMode::Write)]).await.unwrap();
        self.admin.commit(ops).await.unwrap();
        self.admin.sync().await.unwrap();
    }

    /// Moves a name; positions are those of [`Tree::new`], or any free one.
    pub async fn rename(&self, ino: Ino, kind: FileKind, from: (Ino, u64, &str), to: (Ino, u64, &str)) {
        let mut ops = no_name(from.0, from.1, from.2, ino);
        ops.extend(name(to.0, to.1, to.2, ino, kind));
        self.commit(ops).await;
    }

    /// The directory above the confined client's.
    pub fn open(&self) -> Ino {
        Ino::first_of_group(self.group)
    }

    /// A number that nobody used yet, of a group that is not the confined client's.
    pub fn free_number(&self) -> Ino {
        Ino(Ino::first_of_group(self.group).0 + 900)
    }
}

/// Of a batch that may be refused: the number counts only when it is applied.
pub async fn try_commit(client: &TestClient, ops: Vec<ItemOp>) -> Result<(), LinkError> {
    let number = vellum_base::BatchNo(client.next_batch.get());
    let batch = vellum_base::Batch { number, ops };
    client.conn.call(Request::Commit { batch }, None).await?;
    client.next_batch.set(number.0 + 1);
    Ok(())
}

pub fn orphan(root: Option<Ino>, ino: Ino) -> ItemOp {
    let record = vellum_format::Orphan { rid: Rid(1), root };
    ItemOp::Put { key: vellum_format::Orphan::key(ino), value: record.encode() }
}

//! Whether items that stand for each other are all there, from one look at each.
//!
//! A directory entry is kept three ways, each inode has an entry in both indexes, and an entry says its inode's kind. Each side
//! of such a pair adds the hash of what the other must say, or takes it off; in the end nothing is left over. (The scan sees to
//! it that an item's key is the one that its value should have.) The hash is keyed with secrets of this run, so that damage
//! comes out as nothing once in 2^64 runs, whoever made it. A sum says that something is wrong, not where: then every
//! item's counterparts are looked up ([`super::lookups`]).

use std::hash::{BuildHasher, Hash, RandomState};

use vellum_base::Ino;
use vellum_format::{Dirent, FileKind, IndexKind};

/// By position, as backrefs, by kind, in the indexes.
const PAIRS: usize = 4;

#[derive(Default)]
pub(super) struct Balance {
    hashing: RandomState,
    sums: [u64; PAIRS],
}

impl Balance {
    fn hash(&self, what: impl Hash) -> u64 {
        self.hashing.hash_one(what)
    }

    fn add(&mut self, pair: usize, what: impl Hash) {
        self.sums[pair] = self.sums[pair].wrapping_add(self.hash(what));
    }

    fn take(&mut self, pair: usize, times: u32, what: impl Hash) {
        self.sums[pair] = self.sums[pair].wrapping_sub(self.hash(what).wrapping_mul(times.into()));
    }

    /// An entry of `dir` by name.
    pub fn by_name(&mut self, dir: Ino, entry: &Dirent) {
        self.add(0, (dir, entry.ino, entry.pos, entry.kind, &entry.name));
        self.add(1, (dir, entry.ino, entry.pos, &entry.name));
        self.add(2, (entry.ino, entry.kind));
    }

    /// An entry of `dir` by position.
    pub fn by_position(&mut self, dir: Ino, entry: &Dirent) {
        self.take(0, 1, (dir, entry.ino, entry.pos, entry.kind, &entry.name));
    }

    /// A backref of `ino`.
    pub fn backref(&mut self, ino: Ino, back: &Dirent) {
        self.take(1, 1, (back.ino, ino, back.pos, &back.name));
    }

    /// An inode of `kind` has so many backrefs, and so is named by as many entries.
    pub fn named(&mut self, ino: Ino, kind: Option<FileKind>, backrefs: u32) {
        if let Some(kind) = kind {
            self.take(2, backrefs, (ino, kind));
        }
    }

    pub fn inode_seq(&mut self, kind: IndexKind, seq: u64, ino: Ino) {
        self.add(3, (kind, seq, ino));
    }

    /// An entry of no index that there is has no counterpart.
    pub fn index_entry(&mut self, kind: Option<IndexKind>, seq: u64, ino: Ino) {
        match kind {
            Some(kind) => self.take(3, 1, (kind, seq, ino)),
            None => self.take(3, 1, ino),
        }
    }

    pub fn is_even(&self) -> bool {
        self.sums == [0; PAIRS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Ino = Ino(1 << 10);

    fn entry(n: u64) -> Dirent {
        Dirent {
            ino: Ino(5000 + n),
            pos: 10 + n,
            kind: FileKind::Regular,
            name: format!("name {n}").into_bytes().into(),
        }
    }

    fn backref(entry: &Dirent) -> Dirent {
        Dirent { ino: DIR, ..entry.clone() }
    }

    fn whole() -> Balance {
        let mut balance = Balance::default();
        for e in (0..100).map(entry) {
            balance.by_name(DIR, &e);
            balance.by_position(DIR, &e);
            balance.backref(e.ino, &backref(&e));
            balance.named(e.ino, Some(FileKind::Regular), 1);
            balance.inode_seq(IndexKind::MetaSeq, e.pos, e.ino);
            balance.index_entry(Some(IndexKind::MetaSeq), e.pos, e.ino);
        }
        balance
    }

    #[test]
    fn what_belongs_together_cancels_out_and_nothing_else_does() {
        assert!(whole().is_even());
        let e = entry(100);
        type Damage = fn(&mut Balance, &Dirent);
        let wrong: [(&str, Damage); 9] = [
            ("only by name", |b, e| b.by_name(DIR, e)),
            ("only by position", |b, e| b.by_position(DIR, e)),
            ("only a backref", |b, e| b.backref(e.ino, &backref(e))),
            ("another kind", |b, e| {
                b.named(e.ino, Some(FileKind::Regular), 1);
                b.add(2, (e.ino, FileKind::Directory));
            }),
            ("another sequence number", |b, e| {
                b.inode_seq(IndexKind::DataSeq, 7, e.ino);
                b.index_entry(Some(IndexKind::DataSeq), 8, e.ino);
            }),
            ("the other index", |b, e| {
                b.inode_seq(IndexKind::DataSeq, 7, e.ino);
                b.index_entry(Some(IndexKind::MetaSeq), 7, e.ino);
            }),
            ("at another position", |b, e| {
                whole_entry(b, e);
                b.by_position(DIR, &Dirent { pos: 7, ..e.clone() });
                b.by_name(DIR, &Dirent { pos: 8, ..e.clone() });
            }),
            ("two for one", |b, e| {
                whole_entry(b, e);
                whole_entry(b, e);
                b.named(e.ino, Some(FileKind::Regular), 1);
            }),
            ("a backref to another directory", |b, e| {
                b.by_name(DIR, e);
                b.by_position(DIR, e);
                b.backref(e.ino, &Dirent { ino: Ino(9), ..e.clone() });
                b.named(e.ino, Some(FileKind::Regular), 1);
            }),
        ];
        for (what, damage) in wrong {
            let mut balance = whole();
            damage(&mut balance, &e);
            assert!(!balance.is_even(), "{what}");
        }
    }

    fn whole_entry(b: &mut Balance, e: &Dirent) {
        b.by_name(DIR, e);
        b.by_position(DIR, e);
        b.backref(e.ino, &backref(e));
        b.named(e.ino, Some(FileKind::Regular), 1);
    }
}

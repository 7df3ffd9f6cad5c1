//! Every item's counterparts, looked up one by one: where the damage is that a sum has told of.

use std::rc::Rc;

use vellum_base::{Ino, Key, View, Zone};
use vellum_format::{Dirent, IndexKind, Inode, ItemKind, Value};

use super::CheckReport;
use super::pages::{Page, Pages};
use crate::error::StoreError;
use crate::store::Store;

pub(super) struct Lookups<'a> {
    store: Rc<Store>,
    report: &'a mut CheckReport,
}

pub(super) fn entry_place(key: &Key, kind: ItemKind, entry: &Dirent) -> String {
    format!("{kind:?} {key:?} ({:?})", String::from_utf8_lossy(&entry.name))
}

pub(super) fn inode_place(ino: Ino) -> String {
    format!("inode {ino:?} ({ino})")
}

/// What the indexes must have of an inode.
pub(super) fn index_entries(inode: &Inode) -> [(IndexKind, u64); 2] {
    [(IndexKind::MetaSeq, inode.meta_seq), (IndexKind::DataSeq, inode.data_seq)]
}

pub(super) async fn inode(store: &Rc<Store>, ino: Ino) -> Result<Option<Inode>, StoreError> {
    let value = one(store, Inode::key(ino)).await?;
    Ok(value.and_then(|v| Inode::decode(&v).ok()))
}

async fn one(store: &Rc<Store>, key: Key) -> Result<Option<Value>, StoreError> {
    Ok(store.get(&[key], View::Applied).await?.pop().flatten())
}

impl Lookups<'_> {
    pub fn new<'a>(store: &Rc<Store>, report: &'a mut CheckReport) -> Lookups<'a> {
        Lookups { store: store.clone(), report }
    }

    /// Gaps and items that make no sense the scan has told of.
    pub async fn all_items(&mut self) {
        let mut pages = Pages::new(&self.store);
        while let Some(page) = pages.next().await {
            let Page::Items(items) = page else { continue };
            for (key, value) in items {
                if let Err(e) = self.item(&key, &value).await {
                    self.report.add(format!("item {key:?}"), e);
                }
            }
        }
    }

    async fn item(&mut self, key: &Key, value: &Value) -> Result<(), StoreError> {
        match key.zone() {
            Some(Zone::Fs) => match ItemKind::from_u8(key.kind()) {
                Some(ItemKind::Inode) => match Inode::decode(value) {
                    Ok(inode) => self.inode(Ino(key.first()), &inode).await,
                    Err(_) => Ok(()),
                },
                Some(kind @ (ItemKind::Dirent | ItemKind::Readdir | ItemKind::Backref)) => {
                    match Dirent::decode(value) {
                        Ok(entry) => self.entry(key, value, kind, &entry).await,
                        Err(_) => Ok(()),
                    }
                }
                _ => Ok(()),
            },
            Some(Zone::Index) => self.index_entry(key).await,
            _ => Ok(()),
        }
    }

    async fn one(&self, key: Key) -> Result<Option<Value>, StoreError> {
        one(&self.store, key).await
    }

    async fn inode(&mut self, ino: Ino, inode: &Inode) -> Result<(), StoreError> {
        for (kind, seq) in index_entries(inode) {
            if self.one(kind.key(seq, ino)).await?.is_none() {
                self.report.add(inode_place(ino), format!("{kind:?} has no entry for it at {seq}"));
            }
        }
        Ok(())
    }

    async fn index_entry(&mut self, key: &Key) -> Result<(), StoreError> {
        let (seq, ino) = IndexKind::entry(key);
        let kind = IndexKind::from_u8(key.first() as u8);
        let seqs = inode(&self.store, ino).await?.map(|i| (i.meta_seq, i.data_seq));
        let ok = match (kind, seqs) {
            (Some(IndexKind::MetaSeq), Some((meta, _))) => meta == seq,
            (Some(IndexKind::DataSeq), Some((_, data))) => data == seq,
            _ => false,
        };
        if !ok {
            self.report.add(format!("index entry {key:?}"), format!("inode {ino} has (meta, data) {seqs:?}"));
        }
        Ok(())
    }

    async fn entry(&mut self, key: &Key, value: &Value, kind: ItemKind, d: &Dirent) -> Result<(), StoreError> {
        let owner = Ino(key.first());
        let place = || entry_place(key, kind, d);
        match kind {
            ItemKind::Dirent => {
                if self.one(Dirent::key_by_pos(owner, d.pos)).await?.as_ref() != Some(value) {
                    self.report.add(place(), "by position there is no such entry");
                }
                match inode(&self.store, d.ino).await? {
                    None => self.report.add(place(), format!("inode {} is not there", d.ino)),
                    Some(inode) if inode.kind() != Some(d.kind) => {
                        self.report.add(place(), format!("inode {} is of another kind", d.ino));
                    }
                    Some(_) => {}
                }
                let back = self.one(Dirent::key_backref(d.ino, owner, d.pos)).await?;
                let back = back.and_then(|v| Dirent::decode(&v).ok());
                if back.is_none_or(|b| b.ino != owner || b.name != d.name) {
                    self.report.add(place(), format!("inode {} has no backref to it", d.ino));
                }
            }
            ItemKind::Readdir => {
                if self.one(Dirent::key_by_name(owner, &d.name, d.pos)).await?.as_ref() != Some(value) {
                    self.report.add(place(), "by name there is no such entry");
                }
            }
            _ => {
                let entry = self.one(Dirent::key_by_pos(d.ino, d.pos)).await?;
                let entry = entry.and_then(|v| Dirent::decode(&v).ok());
                if entry.is_none_or(|e| e.ino != owner || e.name != d.name) {
                    self.report.add(place(), format!("directory {} has no such entry", d.ino));
                }
            }
        }
        Ok(())
    }
}

//! The batch that still takes transactions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use vellum_base::{Ino, ItemOp, Key, KeyRange};
use vellum_format::ItemKind;

/// Changes of one batch, each key once, the last change counting.
#[derive(Default)]
pub(crate) struct OpenBatch {
    /// `None` deletes.
    items: BTreeMap<Key, Option<Bytes>>,
    deaths: BTreeSet<Ino>,
    bytes: usize,
    /// When the first change came, in the runtime's time.
    pub since_ns: u64,
}

fn cost(value: &Option<Bytes>) -> usize {
    Key::LEN + 4 + value.as_ref().map_or(0, Bytes::len)
}

impl OpenBatch {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.deaths.is_empty()
    }

    pub fn ops(&self) -> usize {
        self.items.len() + self.deaths.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes + self.deaths.len() * (Key::LEN + 4)
    }

    pub fn add(&mut self, op: ItemOp) {
        match op {
            ItemOp::Put { key, value } => self.set(key, Some(value)),
            ItemOp::Delete { key } => self.set(key, None),
            ItemOp::DeleteInode { ino } => self.kill(ino),
        }
    }

    pub fn set(&mut self, key: Key, value: Option<Bytes>) {
        self.bytes += cost(&value);
        if let Some(old) = self.items.insert(key, value) {
            self.bytes -= cost(&old);
        }
    }

    /// Its operations as they stand, deaths last.
    pub fn ops_now(&self) -> Vec<ItemOp> {
        let items = self.items.iter().map(|(key, value)| match value {
            Some(value) => ItemOp::Put { key: *key, value: value.clone() },
            None => ItemOp::Delete { key: *key },
        });
        items.chain(self.deaths.iter().map(|ino| ItemOp::DeleteInode { ino: *ino })).collect()
    }

    /// Puts other operations in the place of its own.
    pub fn replace(&mut self, ops: &[ItemOp]) {
        let since_ns = self.since_ns;
        *self = OpenBatch { since_ns, ..OpenBatch::default() };
        ops.iter().for_each(|op| self.add(op.clone()));
    }

    /// The inode's own changes are void, but for the deletions of extents: they are what frees its blocks.
    fn kill(&mut self, ino: Ino) {
        let range = KeyRange::of_inode(ino);
        let void: Vec<Key> = self
            .items
            .range(range.first..=range.last)
            .filter(|(key, value)| value.is_some() || key.kind() != ItemKind::Extent as u8)
            .map(|(key, _)| *key)
            .collect();
        for key in void {
            if let Some(old) = self.items.remove(&key) {
                self.bytes -= cost(&old);
            }
        }
        self.deaths.insert(ino);
    }

    /// Its operations: deaths come last, after the deletions of the extents that they need.
    pub fn take(&mut self) -> Vec<ItemOp> {
        let OpenBatch { items, deaths, .. } = std::mem::take(self);
        let mut ops = Vec::with_capacity(items.len() + deaths.len());
        ops.extend(items.into_iter().map(|(key, value)| match value {
            Some(value) => ItemOp::Put { key, value },
            None => ItemOp::Delete { key },
        }));
        ops.extend(deaths.into_iter().map(|ino| ItemOp::DeleteInode { ino }));
        ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_once_and_its_last_change_counts() {
        let mut open = OpenBatch::default();
        let key = Key::fs(Ino(3), 1, 0, 0, 0);
        open.set(key, Some(Bytes::from_static(b"long value")));
        open.set(key, None);
        open.set(key, Some(Bytes::from_static(b"x")));
        assert_eq!((open.ops(), open.bytes()), (1, Key::LEN + 5));
        assert_eq!(open.take(), vec![ItemOp::Put { key, value: Bytes::from_static(b"x") }]);
        assert!(open.is_empty() && open.bytes() == 0);
    }

    #[test]
    fn a_death_voids_the_inodes_changes_and_follows_the_freeing_of_its_extents() {
        let mut open = OpenBatch::default();
        let extent = Key::fs(Ino(3), ItemKind::Extent as u8, 7, 0, 0);
        let other = Key::fs(Ino(4), 1, 0, 0, 0);
        open.set(Key::fs(Ino(3), 1, 0, 0, 0), Some(Bytes::new()));
        open.set(extent, None);
        open.set(other, None);
        open.add(ItemOp::DeleteInode { ino: Ino(3) });
        let expected =
            vec![ItemOp::Delete { key: extent }, ItemOp::Delete { key: other }, ItemOp::DeleteInode { ino: Ino(3) }];
        assert_eq!(open.take(), expected);
    }
}

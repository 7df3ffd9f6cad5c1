//! Extents that are torn because their data was sent again and did not find one place.
//!
//! An extent over several places becomes several items: its last part keeps the key, the others get keys that no change
//! which was made before knew of. So every change in the batches that are sent again, and in the open one, is rewritten:
//! what deletes or replaces the extent deletes the other parts too. A transaction of a guard that was taken before may
//! or may not know of the parts: it is refused when it changes extents of such an inode, and its user reads again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{BatchNo, BlockAddr, Ino, ItemOp, Key, Zone};
use vellum_format::{Extent, ExtentHeader, ItemKind};

use super::{Runs, provisional_extent};
use crate::txn::Seen;
use crate::{Client, ClientError};

/// Which keys the other parts of a torn extent have.
type Parts = HashMap<Key, Vec<Key>>;

/// What was torn since this client began: nothing, in nearly every life.
#[derive(Default)]
pub(crate) struct Splits {
    /// Some data was sent again and lies in more pieces.
    pub any: bool,
    /// Inodes with torn extents. Guards of this era and older ones may have read them whole.
    inos: HashMap<u64, u64>,
}

fn is_extent(key: &Key) -> bool {
    key.zone() == Some(Zone::Fs) && key.kind() == ItemKind::Extent as u8
}

/// The parts of a provisional extent that is not whole on the device.
fn tear(key: &Key, value: &Bytes, runs: &Runs) -> Option<Vec<(Key, Bytes)>> {
    let (start, len_blocks) = provisional_extent(key, value)?;
    let lengths = runs.parts(start, len_blocks);
    if lengths.len() < 2 {
        return None;
    }
    let extent = Extent::decode(value).ok()?;
    let mut first_block = Extent::first_block(key, len_blocks)?;
    let (mut at, mut parts) = (0usize, Vec::with_capacity(lengths.len()));
    for len in lengths {
        let header = ExtentHeader { start: BlockAddr(start + at as u64), len_blocks: len, offline: false };
        let checksums = extent.checksums.get(at..at + len as usize)?.to_vec();
        parts.push((Extent::key(Ino(key.first()), first_block, len), Extent { header, checksums }.encode()));
        at += len as usize;
        first_block += u64::from(len);
    }
    Some(parts)
}

/// The operations as they must be now; `None` when nothing is torn. `parts` is what is torn before and after them.
fn rewrite(ops: &[ItemOp], parts: &mut Parts, runs: &Runs) -> Option<Vec<ItemOp>> {
    let (mut items, mut deaths) = (BTreeMap::new(), Vec::new());
    for op in ops {
        match op {
            ItemOp::Put { key, value } => drop(items.insert(*key, Some(value.clone()))),
            ItemOp::Delete { key } => drop(items.insert(*key, None)),
            ItemOp::DeleteInode { .. } => deaths.push(op.clone()),
        }
    }
    // First what these operations end: all parts of what they change, before any of them is torn itself.
    let mut gone: Vec<Key> = items.keys().filter(|key| is_extent(key)).copied().collect();
    let mut removed = BTreeSet::new();
    while let Some(whole) = gone.pop() {
        let ended = parts.remove(&whole).unwrap_or_default();
        removed.extend(ended.iter().copied());
        gone.extend(ended);
    }
    let mut added = Vec::new();
    for (key, value) in &items {
        if let Some(value) = value
            && let Some(torn) = tear(key, value, runs)
        {
            parts.insert(*key, torn.iter().map(|(part, _)| *part).filter(|part| part != key).collect());
            added.extend(torn);
        }
    }
    if added.is_empty() && removed.is_empty() {
        return None;
    }
    // What is put at a part's key is newer than the part; a part is newer than what was deleted at its key.
    for key in removed {
        items.entry(key).or_insert(None);
    }
    items.extend(added.into_iter().map(|(key, value)| (key, Some(value))));
    let items = items.into_iter().map(|(key, value)| match value {
        Some(value) => ItemOp::Put { key, value },
        None => ItemOp::Delete { key },
    });
    Some(items.chain(deaths).collect())
}

impl Client {
    /// Rewrites all that is not durable, after its data was sent again.
    pub(crate) fn split_torn_extents(self: &Rc<Self>) {
        let runs = self.data.runs.borrow();
        let mut splits = self.data.splits.borrow_mut();
        let mut parts = Parts::new();
        let mut rewritten: Vec<(BatchNo, Rc<Vec<ItemOp>>, bool)> = Vec::new();
        for batch in self.batches.retained.borrow_mut().iter_mut() {
            let new = rewrite(&batch.ops, &mut parts, &runs);
            let torn = new.is_some();
            if let Some(ops) = new {
                batch.ops = Rc::new(ops);
            }
            rewritten.push((batch.number, batch.ops.clone(), torn));
        }
        let mut open = self.batches.open.borrow_mut();
        let ops = open.ops_now();
        let new = rewrite(&ops, &mut parts, &runs);
        let torn = new.is_some();
        if let Some(ops) = &new {
            open.replace(ops);
        }
        rewritten.push((self.batches.next.get(), Rc::new(new.unwrap_or(ops)), torn));
        if !rewritten.iter().any(|(_, _, torn)| *torn) {
            return;
        }
        tracing::info!(extents = parts.len(), "extents whose data was sent again lie in more pieces");
        let inos: BTreeSet<u64> = rewritten
            .iter()
            .filter(|(_, _, torn)| *torn)
            .flat_map(|(_, ops, _)| ops.iter())
            .filter_map(|op| match op {
                ItemOp::Put { key, .. } | ItemOp::Delete { key } => is_extent(key).then_some(key.first()),
                ItemOp::DeleteInode { .. } => None,
            })
            .collect();
        splits.inos.extend(inos.iter().map(|ino| (*ino, self.data.era().0)));
        drop(runs);
        self.data.new_era();
        // Batch by batch in their order: the newest state of every extent of these inodes, parts included.
        let mut cache = self.cache.borrow_mut();
        for (number, ops, _) in &rewritten {
            for op in ops.iter() {
                let concerned = match op {
                    ItemOp::Put { key, .. } | ItemOp::Delete { key } => is_extent(key) && inos.contains(&key.first()),
                    ItemOp::DeleteInode { ino } => inos.contains(&ino.0),
                };
                if concerned {
                    cache.apply(op, *number);
                }
            }
        }
    }

    /// A transaction's operations, with the extents in parts whose data was sent again before anything referred to it.
    ///
    /// Errors: [`ClientError::Moved`] when its user may know extents as they were before they were torn.
    pub(crate) fn split_txn(&self, seen: Seen, ops: Vec<ItemOp>) -> Result<Vec<ItemOp>, ClientError> {
        let mut splits = self.data.splits.borrow_mut();
        if !splits.any {
            return Ok(ops);
        }
        let extents = ops.iter().filter_map(|op| match op {
            ItemOp::Put { key, .. } | ItemOp::Delete { key } => is_extent(key).then_some(key.first()),
            ItemOp::DeleteInode { ino } => Some(ino.0),
        });
        let inos: BTreeSet<u64> = extents.collect();
        if inos.iter().any(|ino| splits.inos.get(ino).is_some_and(|era| seen.0 <= *era)) {
            return Err(ClientError::Moved);
        }
        let Some(torn) = rewrite(&ops, &mut Parts::new(), &self.data.runs.borrow()) else { return Ok(ops) };
        splits.inos.extend(inos.into_iter().map(|ino| (ino, self.data.era().0)));
        self.data.new_era();
        Ok(torn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::{BLOCK_SIZE, BlockRange, DmaBuf};

    fn extent(start: u64, len: u32) -> Bytes {
        let header = ExtentHeader { start: BlockAddr(start), len_blocks: len, offline: false };
        Extent { header, checksums: vec![0; len as usize] }.encode()
    }

    #[test]
    fn who_replaces_or_deletes_a_torn_extent_deletes_its_parts_too() {
        let mut runs = Runs::default();
        let whole = runs.add(DmaBuf::zeroed(8 * BLOCK_SIZE).freeze(), &[BlockRange::new(100, 8)])[0].start.0;
        runs.moved(whole, &[BlockRange::new(10, 3), BlockRange::new(20, 5)]);
        let (ino, mut parts) = (Ino(9), Parts::new());
        let (key, part) = (Extent::key(ino, 0, 8), Extent::key(ino, 0, 3));
        let put = |key, value| ItemOp::Put { key, value };
        // The key of the new part was that of an older extent, which this batch replaced.
        let first = [ItemOp::Delete { key: part }, put(key, extent(whole, 8))];
        let first = rewrite(&first, &mut parts, &runs);
        assert_eq!(first, Some(vec![put(part, extent(whole, 3)), put(key, extent(whole + 3, 5))]));
        // A later batch cut its front off: what is left is whole.
        let mut later = parts.clone();
        let cut = rewrite(&[put(key, extent(whole + 4, 4))], &mut later, &runs);
        assert_eq!(cut, Some(vec![ItemOp::Delete { key: part }, put(key, extent(whole + 4, 4))]));
        assert!(later.is_empty());
        // Or it put something new where the part is.
        let ops = [put(part, extent(7, 3)), put(key, extent(whole + 3, 5))];
        assert_eq!(rewrite(&ops, &mut parts.clone(), &runs), Some(ops.to_vec()));
        // And that is torn as well.
        let new = runs.add(DmaBuf::zeroed(3 * BLOCK_SIZE).freeze(), &[BlockRange::new(30, 3)])[0].start.0;
        runs.moved(new, &[BlockRange::new(30, 1), BlockRange::new(40, 2)]);
        let ops = [put(part, extent(new, 3)), put(key, extent(whole + 3, 5))];
        let torn = vec![put(Extent::key(ino, 0, 1), extent(new, 1)), put(part, extent(new + 1, 2)), ops[1].clone()];
        assert_eq!(rewrite(&ops, &mut parts.clone(), &runs), Some(torn));
        // Or the inode died.
        let ops = [ItemOp::Delete { key }, ItemOp::DeleteInode { ino }];
        let dead = rewrite(&ops, &mut parts, &runs);
        assert_eq!(dead, Some(vec![ItemOp::Delete { key: part }, ops[0].clone(), ops[1].clone()]));
        assert_eq!(rewrite(&ops, &mut parts, &runs), None);
    }
}

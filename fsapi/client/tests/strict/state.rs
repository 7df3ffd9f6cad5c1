//! Items, blocks and epochs of the fake engine: sequential, no waiting.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use vellum_base::{
    BLOCK_SIZE, Batch, BatchNo, BlockRange, DmaBuf, DmaSlice, Epoch, Ino, ItemOp, Key, KeyRange, Rid, Term, Zone,
};
use vellum_format::{Extent, IndexKind, Inode, ItemKind};
use vellum_wire::{ErrorCode, LockMode, LockName, WireError};

/// What one batch did, resolved.
struct Applied {
    epoch: Epoch,
    rid: Rid,
    number: BatchNo,
    items: Vec<(Key, Option<Bytes>)>,
    freed: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct RidState {
    pub last_batch: BatchNo,
    durable_batch: BatchNo,
    pending: BTreeSet<u64>,
    /// Batches that came before their predecessor, and who waits for the answer.
    pub early: BTreeMap<BatchNo, (Batch, u64)>,
    /// Epochs of applied batches that are not durable yet.
    epochs: BTreeMap<BatchNo, Epoch>,
}

pub(crate) struct State {
    pub term: Term,
    pub open: Epoch,
    pub durable: Epoch,
    pub applied: BTreeMap<Key, Bytes>,
    pub kept: BTreeMap<Key, Bytes>,
    undurable: VecDeque<Applied>,
    pub rids: BTreeMap<Rid, RidState>,
    blocks: HashMap<u64, DmaSlice>,
    /// Blocks that must not be allocated: referred to, pending, or freed by an undurable epoch.
    used: BTreeSet<u64>,
    pub total_blocks: u64,
    pub locks: BTreeMap<LockName, BTreeMap<Rid, LockMode>>,
    pub write_seq: u64,
    pub next_group: u64,
}

fn refuse<T>(code: ErrorCode, message: String) -> Result<T, WireError> {
    Err(WireError { code, message })
}

fn extent_blocks(key: &Key, value: &[u8]) -> Result<Option<BlockRange>, WireError> {
    if key.zone() != Some(Zone::Fs) || key.kind() != ItemKind::Extent as u8 {
        return Ok(None);
    }
    match Extent::decode_header(value) {
        Ok(header) => Ok(header.blocks()),
        Err(e) => refuse(ErrorCode::Malformed, format!("{key:?}: {e}")),
    }
}

fn blocks_of(range: BlockRange) -> std::ops::Range<u64> {
    range.start.0..range.start.0 + u64::from(range.len_blocks)
}

impl State {
    pub fn new(total_blocks: u64) -> State {
        let root = Inode { mode: 0o40755, nlink: 2, next_pos: 2, meta_seq: 1, data_seq: 1, ..Inode::default() };
        let items = BTreeMap::from([(Inode::key(Ino::ROOT), root.encode())]);
        State {
            term: Term(1),
            open: Epoch(2),
            durable: Epoch(1),
            applied: items.clone(),
            kept: items,
            undurable: VecDeque::new(),
            rids: BTreeMap::new(),
            blocks: HashMap::new(),
            used: BTreeSet::new(),
            total_blocks,
            locks: BTreeMap::new(),
            write_seq: 0,
            next_group: 0,
        }
    }

    /// Takes a batch that is next in order.
    pub fn commit(&mut self, rid: Rid, batch: &Batch) -> Result<Epoch, WireError> {
        let known = self.rids.entry(rid).or_default();
        if batch.number <= known.last_batch {
            return Ok(known.epochs.get(&batch.number).copied().unwrap_or(self.durable));
        }
        assert_eq!(batch.number, known.last_batch.next(), "the caller keeps early ones");
        let (mut items, mut old_blocks, mut new_blocks) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut seen = BTreeSet::new();
        for op in &batch.ops {
            let (key, value) = match op {
                ItemOp::Put { key, value } => (*key, Some(value.clone())),
                ItemOp::Delete { key } => (*key, None),
                ItemOp::DeleteInode { ino } => {
                    self.check_lock(rid, ino.group())?;
                    self.delete_inode(*ino, &mut items)?;
                    continue;
                }
            };
            if !matches!(key.zone(), Some(Zone::Fs | Zone::Orphan)) || !seen.insert(key) {
                return refuse(ErrorCode::NotPermitted, format!("{key:?} twice, or not a client's"));
            }
            self.check_lock(rid, Ino(key.first()).group())?;
            if let Some(old) = self.applied.get(&key)
                && let Some(range) = extent_blocks(&key, old)?
            {
                old_blocks.extend(blocks_of(range));
            }
            if let Some(new) = &value
                && let Some(range) = extent_blocks(&key, new)?
            {
                for block in blocks_of(range) {
                    if !new_blocks.insert(block) {
                        return refuse(ErrorCode::NotPermitted, format!("block {block} is referred to twice"));
                    }
                }
            }
            items.push((key, value.map(|v| self.stamped(&key, v))));
        }
        let pending = &mut self.rids.entry(rid).or_default().pending;
        if let Some(foreign) = new_blocks.iter().find(|b| !old_blocks.contains(b) && !pending.contains(b)) {
            return refuse(ErrorCode::NotPermitted, format!("block {foreign} is neither pending nor moved"));
        }
        pending.retain(|b| !new_blocks.contains(b));
        let freed = old_blocks.difference(&new_blocks).copied().collect();
        for (key, value) in &items {
            match value {
                Some(value) => self.applied.insert(*key, value.clone()),
                None => self.applied.remove(key),
            };
        }
        let state = self.rids.entry(rid).or_default();
        state.last_batch = batch.number;
        state.epochs.insert(batch.number, self.open);
        self.undurable.push_back(Applied { epoch: self.open, rid, number: batch.number, items, freed });
        Ok(self.open)
    }

    fn delete_inode(&self, ino: Ino, items: &mut Vec<(Key, Option<Bytes>)>) -> Result<(), WireError> {
        let range = KeyRange::of_inode(ino);
        for (key, _) in self.applied.range(range.first..=range.last) {
            let deleted = items.iter().any(|(k, v)| k == key && v.is_none());
            if key.kind() == ItemKind::Extent as u8 && !deleted {
                return refuse(ErrorCode::NotPermitted, format!("{ino:?} dies with {key:?}"));
            }
            items.push((*key, None));
        }
        Ok(())
    }

    fn check_lock(&self, rid: Rid, group: u64) -> Result<(), WireError> {
        let mode = self.locks.get(&LockName::Group(group)).and_then(|holders| holders.get(&rid)).copied();
        match mode {
            Some(LockMode::Write) => Ok(()),
            _ => refuse(ErrorCode::NotPermitted, format!("{rid} writes group {group} with {mode:?}")),
        }
    }

    /// The engine's own fields of an inode.
    fn stamped(&self, key: &Key, value: Bytes) -> Bytes {
        if key.zone() != Some(Zone::Fs) || key.kind() != ItemKind::Inode as u8 {
            return value;
        }
        let Ok(new) = Inode::decode(&value) else { return value };
        let old = self.applied.get(key).and_then(|v| Inode::decode(v).ok());
        let same = old.filter(|old| old.data_version == new.data_version);
        let mut stamped = value.to_vec();
        Inode::stamp(&mut stamped, self.open.0, same.map_or(self.open.0, |old| old.data_seq));
        stamped.into()
    }

    /// Everything up to `epoch` is on the device.
    pub fn make_durable(&mut self, epoch: Epoch) {
        while self.undurable.front().is_some_and(|a| a.epoch <= epoch) {
            let Some(applied) = self.undurable.pop_front() else { break };
            for (key, value) in applied.items {
                match value {
                    Some(value) => self.kept.insert(key, value),
                    None => self.kept.remove(&key),
                };
            }
            applied.freed.iter().for_each(|block| {
                self.used.remove(block);
            });
            let rid = self.rids.entry(applied.rid).or_default();
            rid.durable_batch = applied.number;
            rid.epochs.remove(&applied.number);
        }
        self.durable = self.durable.max(epoch);
    }

    /// Power fails and comes back: what was not durable is gone, and another leader serves.
    pub fn crash(&mut self) {
        self.term = Term(self.term.0 + 1);
        self.undurable.clear();
        self.applied = self.kept.clone();
        self.locks.clear();
        self.open = Epoch(self.open.0 + 1000);
        self.durable = Epoch(self.open.0 - 1);
        for rid in self.rids.values_mut() {
            rid.last_batch = rid.durable_batch;
            rid.epochs.clear();
            rid.pending.clear();
            rid.early.clear();
        }
        let ranges = self.kept.iter().filter_map(|(key, value)| extent_blocks(key, value).ok().flatten());
        self.used = ranges.flat_map(blocks_of).collect();
        let used = &self.used;
        self.blocks.retain(|block, _| used.contains(block));
    }

    /// Allocates the lowest free blocks; `torn` in two runs if it can.
    pub fn write_data(&mut self, rid: Rid, data: DmaSlice, torn: bool) -> Result<Vec<BlockRange>, WireError> {
        let want = data.len() / BLOCK_SIZE;
        let mut got: Vec<u64> = Vec::with_capacity(want);
        let mut block = 1;
        while got.len() < want && block <= self.total_blocks {
            if !self.used.contains(&block) {
                got.push(block);
                if torn && got.len() == want / 2 {
                    block += 1;
                }
            }
            block += 1;
        }
        if got.len() < want {
            return refuse(ErrorCode::NoSpace, "no free blocks".into());
        }
        let mut ranges: Vec<BlockRange> = Vec::new();
        for (i, block) in got.iter().enumerate() {
            self.blocks.insert(*block, data.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE));
            self.used.insert(*block);
            match ranges.last_mut() {
                Some(last) if last.end().is_some_and(|end| end.0 == *block) => last.len_blocks += 1,
                _ => ranges.push(BlockRange::new(*block, 1)),
            }
        }
        self.rids.entry(rid).or_default().pending.extend(got);
        Ok(ranges)
    }

    pub fn read_data(&self, ranges: &[BlockRange]) -> Result<DmaBuf, WireError> {
        let mut out = DmaBuf::zeroed(ranges.iter().map(|r| r.len_bytes()).sum());
        let blocks = ranges.iter().flat_map(|r| blocks_of(*r));
        for (chunk, block) in out.chunks_mut(BLOCK_SIZE).zip(blocks) {
            match self.blocks.get(&block) {
                Some(data) => chunk.copy_from_slice(data),
                None => return refuse(ErrorCode::Io, format!("block {block} was never written")),
            }
        }
        Ok(out)
    }

    pub fn free_blocks(&self) -> u64 {
        self.total_blocks - self.used.len() as u64
    }

    pub fn forget_pending(&mut self, rid: Rid) {
        if let Some(state) = self.rids.get_mut(&rid) {
            for block in std::mem::take(&mut state.pending) {
                self.used.remove(&block);
            }
        }
    }

    /// Index entries of the durable items.
    pub fn walk(&self, index: IndexKind, from: (u64, Ino), to: u64) -> Vec<(u64, Ino)> {
        let inodes = self.kept.iter().filter(|(k, _)| k.zone() == Some(Zone::Fs) && k.kind() == ItemKind::Inode as u8);
        let entries = inodes.filter_map(|(key, value)| {
            let inode = Inode::decode(value).ok()?;
            let seq = if index == IndexKind::MetaSeq { inode.meta_seq } else { inode.data_seq };
            let entry = (seq, Ino(key.first()));
            (entry >= from && seq <= to).then_some(entry)
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable();
        entries
    }
}

//! Items, data and batches of the fake engine.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use vellum_base::{
    BLOCK_SIZE, Batch, BatchNo, BlockRange, DmaBuf, DmaSlice, Epoch, Ino, ItemOp, Key, KeyRange, Rid, Term, View,
};
use vellum_format::{Inode, ItemKind};
use vellum_wire::{ErrorCode, Request, Response};

use super::files::FakeFiles;
use super::locks::FakeLock;

#[derive(Default, Clone)]
struct Tree {
    items: BTreeMap<Key, Bytes>,
    last_batch: HashMap<Rid, BatchNo>,
}

pub(super) struct State {
    pub term: Term,
    pub durable: Epoch,
    epoch: Epoch,
    applied: Tree,
    safe: Tree,
    /// Applied and not durable.
    pending: Vec<(Rid, Batch, Epoch)>,
    blocks: HashMap<u64, Vec<u8>>,
    /// Blocks written in this term: a crash loses those that no durable extent names.
    next_block: u64,
    next_group: u64,
    pub locks: HashMap<vellum_wire::LockName, FakeLock>,
    pub write_seq: u64,
    pub files: FakeFiles,
}

impl State {
    pub fn new() -> State {
        let mut applied = Tree::default();
        let root = Inode { mode: 0o040755, nlink: 2, ..Inode::default() };
        applied.items.insert(Inode::key(Ino::ROOT), root.encode());
        State {
            term: Term(1),
            durable: Epoch(0),
            epoch: Epoch(1),
            safe: applied.clone(),
            applied,
            pending: Vec::new(),
            blocks: HashMap::new(),
            next_block: 1000,
            next_group: 1,
            locks: HashMap::new(),
            write_seq: 0,
            files: FakeFiles::default(),
        }
    }

    pub fn last_batch(&self, rid: Rid) -> BatchNo {
        self.applied.last_batch.get(&rid).copied().unwrap_or_default()
    }

    pub fn durable_batch(&self, rid: Rid) -> BatchNo {
        self.safe.last_batch.get(&rid).copied().unwrap_or_default()
    }

    pub fn durable_items(&self) -> Vec<(Key, Bytes)> {
        self.safe.items.iter().map(|(k, v)| (*k, v.clone())).collect()
    }

    /// True when something became durable.
    pub fn make_durable(&mut self) -> bool {
        let pending = std::mem::take(&mut self.pending);
        for (rid, batch, epoch) in &pending {
            apply(&mut self.safe, *rid, batch, *epoch);
            self.durable = *epoch;
        }
        !pending.is_empty()
    }

    pub fn crash(&mut self) {
        self.term = Term(self.term.0 + 1);
        self.pending.clear();
        self.applied = self.safe.clone();
        self.locks.clear();
        self.files = FakeFiles::default();
        // Sequences jump beyond any that was ever shown.
        self.epoch = Epoch(self.epoch.0 + 1000);
        let mut kept = HashMap::new();
        for (key, value) in &self.safe.items {
            let Some(range) = extent_blocks(key, value) else { continue };
            for block in range.start.0..range.start.0 + u64::from(range.len_blocks) {
                let data = self.blocks.get(&block).cloned();
                kept.insert(block, data.expect("an extent was durable before its data was written"));
            }
        }
        self.blocks = kept;
    }

    pub fn handle(
        &mut self,
        rid: Rid,
        request: Request,
        payload: Option<&DmaSlice>,
        max_run: u32,
    ) -> (Response, Option<DmaSlice>) {
        let body = match request {
            Request::Get { keys, view } => {
                let tree = self.tree(view);
                Response::Items { values: keys.iter().map(|k| tree.items.get(k).cloned()).collect() }
            }
            Request::Scan { range, max_items, view, .. } => self.scan(range, max_items as usize, view),
            Request::WriteData => return (self.write(payload, max_run), None),
            Request::ReadData { ranges } => return self.read(&ranges),
            Request::Commit { batch } => self.commit(rid, batch),
            Request::AllocGroup { .. } => {
                self.next_group += 1;
                // Spread over the buckets, as the engine does.
                let group = ((self.next_group % 256) << 46) | self.next_group;
                Response::Group { group }
            }
            Request::Walk { index, from_seq, from_ino, to_seq, max } => {
                self.walk(index, (from_seq, from_ino), to_seq, max as usize)
            }
            Request::Status | Request::Admin { .. } => Response::Status { json: "{}".into() },
            Request::Keepalive => Response::Alive,
            _ => Response::error(ErrorCode::Unsupported, "the fake engine has no such request"),
        };
        (body, None)
    }

    fn tree(&self, view: View) -> &Tree {
        match view {
            View::Applied => &self.applied,
            View::Durable => &self.safe,
        }
    }

    fn scan(&self, range: KeyRange, max: usize, view: View) -> Response {
        let mut found = self.tree(view).items.range(range.first..=range.last);
        let items: Vec<_> = found.by_ref().take(max).map(|(k, v)| (*k, v.clone())).collect();
        Response::Scanned { items, next: found.next().map(|(k, _)| *k) }
    }

    fn write(&mut self, payload: Option<&DmaSlice>, max_run: u32) -> Response {
        let Some(data) = payload.filter(|d| d.is_block_aligned() && !d.is_empty()) else {
            return Response::error(ErrorCode::Malformed, "data comes in whole blocks");
        };
        let mut ranges: Vec<BlockRange> = Vec::new();
        for block in data.chunks(BLOCK_SIZE) {
            let full = ranges.last().is_none_or(|r| r.len_blocks == max_run);
            if full {
                self.next_block += 1; // a gap, so that runs are no neighbours
                ranges.push(BlockRange::new(self.next_block, 0));
            }
            if let Some(last) = ranges.last_mut() {
                last.len_blocks += 1;
            }
            self.blocks.insert(self.next_block, block.to_vec());
            self.next_block += 1;
        }
        Response::Written { ranges }
    }

    fn read(&self, ranges: &[BlockRange]) -> (Response, Option<DmaSlice>) {
        let mut out = DmaBuf::new(ranges.iter().map(|r| r.len_bytes()).sum());
        let blocks = ranges.iter().flat_map(|r| r.start.0..r.start.0 + u64::from(r.len_blocks));
        for (place, block) in out.chunks_mut(BLOCK_SIZE).zip(blocks) {
            match self.blocks.get(&block) {
                Some(data) => place.copy_from_slice(data),
                None => return (Response::error(ErrorCode::Io, "nothing was ever written there"), None),
            }
        }
        (Response::Data, Some(out.freeze()))
    }

    fn commit(&mut self, rid: Rid, batch: Batch) -> Response {
        let number = batch.number;
        let last = self.last_batch(rid);
        if number > last.next() {
            return Response::error(ErrorCode::NotPermitted, "a batch was skipped");
        }
        if number <= last {
            return Response::Committed { number, epoch: self.epoch };
        }
        for op in &batch.ops {
            if let Err(why) = self.check(rid, op, &batch) {
                return Response::error(ErrorCode::NotPermitted, why);
            }
        }
        self.epoch = self.epoch.next();
        apply(&mut self.applied, rid, &batch, self.epoch);
        self.pending.push((rid, batch, self.epoch));
        Response::Committed { number, epoch: self.epoch }
    }

    fn check(&self, rid: Rid, op: &ItemOp, batch: &Batch) -> Result<(), String> {
        let ino = match op {
            ItemOp::Put { key, .. } | ItemOp::Delete { key } => Ino(key.first()),
            ItemOp::DeleteInode { ino } => *ino,
        };
        let lock = self.locks.get(&vellum_wire::LockName::of(ino));
        if lock.is_none_or(|l| l.mode_of(rid) != vellum_wire::LockMode::Write) {
            return Err(format!("{op:?} without its lock"));
        }
        if let ItemOp::Put { key, value } = op
            && let Some(range) = extent_blocks(key, value)
            && !self.blocks.contains_key(&range.start.0)
        {
            return Err(format!("{key:?} names blocks that were not written"));
        }
        if let ItemOp::DeleteInode { ino } = op {
            let range = KeyRange::of_inode(*ino);
            let left = self.applied.items.range(range.first..=range.last).any(|(key, _)| {
                let freed = batch.ops.iter().any(|o| matches!(o, ItemOp::Delete { key: k } if k == key));
                key.kind() == ItemKind::Extent as u8 && !freed
            });
            if left {
                return Err(format!("{ino:?} still has extents"));
            }
        }
        Ok(())
    }

    fn walk(&self, index: u8, from: (u64, Ino), to_seq: u64, max: usize) -> Response {
        let mut entries: Vec<_> = self
            .safe
            .items
            .iter()
            .filter(|(key, _)| key.kind() == ItemKind::Inode as u8 && key.zone() == Some(vellum_base::Zone::Fs))
            .filter_map(|(key, value)| Some((Ino(key.first()), Inode::decode(value).ok()?)))
            .map(|(ino, inode)| (if index == 1 { inode.meta_seq } else { inode.data_seq }, ino))
            .filter(|entry| *entry >= from && entry.0 <= to_seq && entry.0 > 0)
            .collect();
        entries.sort_unstable();
        let next = entries.get(max).copied();
        entries.truncate(max);
        Response::Walked { entries, next, through: self.durable }
    }
}

fn extent_blocks(key: &Key, value: &[u8]) -> Option<BlockRange> {
    if key.kind() != ItemKind::Extent as u8 || key.zone() != Some(vellum_base::Zone::Fs) {
        return None;
    }
    vellum_format::Extent::decode_header(value).ok()?.blocks()
}

fn apply(tree: &mut Tree, rid: Rid, batch: &Batch, epoch: Epoch) {
    tree.last_batch.insert(rid, batch.number);
    for op in &batch.ops {
        match op {
            ItemOp::Put { key, value } => {
                let value = stamped(tree, key, value, epoch);
                tree.items.insert(*key, value);
            }
            ItemOp::Delete { key } => drop(tree.items.remove(key)),
            ItemOp::DeleteInode { ino } => {
                let range = KeyRange::of_inode(*ino);
                let dead: Vec<_> = tree.items.range(range.first..=range.last).map(|(k, _)| *k).collect();
                dead.iter().for_each(|k| drop(tree.items.remove(k)));
            }
        }
    }
}

/// Inodes get their sequences from the engine.
fn stamped(tree: &Tree, key: &Key, value: &Bytes, epoch: Epoch) -> Bytes {
    if key.kind() != ItemKind::Inode as u8 || key.zone() != Some(vellum_base::Zone::Fs) {
        return value.clone();
    }
    let Ok(inode) = Inode::decode(value) else { return value.clone() };
    let old = tree.items.get(key).and_then(|v| Inode::decode(v).ok());
    let data_seq = match old {
        Some(old) if old.data_version == inode.data_version => old.data_seq,
        _ => epoch.0,
    };
    Inode { meta_seq: epoch.0, data_seq, ..inode }.encode()
}

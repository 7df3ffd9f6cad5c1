//! The manifest's content in memory: what the edits add up to. Pure; nothing here does IO.

use std::collections::BTreeMap;

use vellum_base::{BlockRange, Bucket, ChunkIndex, Epoch, KeyRange, LogId, SegmentId, ShardId, Term};
use vellum_format::manifest::MAX_LEVELS;
use vellum_format::{ChunkUse, ManifestEdit, Run, SegmentMeta};

#[derive(Clone, Debug, PartialEq)]
pub struct ShardState {
    pub first_bucket: u8,
    pub last_bucket: u8,
    pub flushed_through: Epoch,
    /// Level 0 newest first, the others by first key.
    pub levels: Vec<Vec<SegmentMeta>>,
}

impl ShardState {
    pub fn range(&self) -> KeyRange {
        KeyRange::of_buckets(Bucket(self.first_bucket), Bucket(self.last_bucket))
    }

    pub fn segments(&self) -> impl Iterator<Item = &SegmentMeta> {
        self.levels.iter().flatten()
    }

    /// What is left of it in the buckets `first..=last`: the segments that reach into them.
    fn part(&self, first_bucket: u8, last_bucket: u8) -> ShardState {
        let mut part =
            ShardState { first_bucket, last_bucket, flushed_through: self.flushed_through, levels: Vec::new() };
        let range = part.range();
        let inside = |meta: &&SegmentMeta| range.overlaps(&KeyRange { first: meta.first, last: meta.last });
        part.levels = self.levels.iter().map(|list| list.iter().filter(inside).cloned().collect()).collect();
        part
    }
}

#[derive(Clone, Debug, PartialEq, Default)]
pub struct ManifestState {
    pub term: Term,
    pub next_segment: SegmentId,
    pub next_log: LogId,
    /// Last seal and greatest epoch of the runs that are over.
    pub base_number: u64,
    pub base_hash: u64,
    pub base_epoch: Epoch,
    pub chunks: Vec<ChunkUse>,
    pub shards: BTreeMap<ShardId, ShardState>,
    /// Oldest first; the last is the current one.
    pub runs: Vec<Run>,
}

impl ManifestState {
    /// Applies an edit; what does not fit the state is an error (a manifest that contradicts itself).
    pub fn apply(&mut self, edit: &ManifestEdit) -> Result<(), String> {
        match edit {
            ManifestEdit::Term(term) => self.term = *term,
            ManifestEdit::NextIds { segment, log } => {
                self.next_segment = self.next_segment.max(*segment);
                self.next_log = self.next_log.max(*log);
            }
            ManifestEdit::Base { number, hash, epoch } => {
                (self.base_number, self.base_hash, self.base_epoch) = (*number, *hash, *epoch);
            }
            ManifestEdit::Chunks { first, count, used_for } => {
                let start = first.0 as usize;
                let end = start.checked_add(*count as usize).filter(|end| *end <= 1 << 20);
                let end = end.ok_or_else(|| format!("chunks {start}+{count} are out of range"))?;
                if self.chunks.len() < end {
                    self.chunks.resize(end, ChunkUse::Free);
                }
                self.chunks[start..end].fill(*used_for);
            }
            ManifestEdit::Shard { id, first_bucket, last_bucket, flushed_through } => {
                if first_bucket > last_bucket {
                    return Err(format!("shard {id} covers no bucket"));
                }
                let shard = ShardState {
                    first_bucket: *first_bucket,
                    last_bucket: *last_bucket,
                    flushed_through: *flushed_through,
                    levels: Vec::new(),
                };
                self.shards.insert(*id, shard);
            }
            ManifestEdit::FlushedThrough { shard, epoch } => {
                let shard = self.shard(*shard)?;
                shard.flushed_through = shard.flushed_through.max(*epoch);
            }
            ManifestEdit::SegmentAdd { shard, level, meta } => {
                let level = usize::from(*level);
                let shard = self.shard(*shard)?;
                if level >= usize::from(MAX_LEVELS) || shard.segments().any(|s| s.id == meta.id) {
                    return Err(format!("segment {} cannot be added to level {level}", meta.id));
                }
                if shard.levels.len() <= level {
                    shard.levels.resize(level + 1, Vec::new());
                }
                let list = &mut shard.levels[level];
                list.push(meta.clone());
                if level == 0 {
                    list.sort_by_key(|m| (std::cmp::Reverse(m.run), m.first, m.id));
                } else {
                    list.sort_by_key(|m| (m.first, m.id));
                }
                self.next_segment = self.next_segment.max(SegmentId(meta.id.0 + 1));
            }
            ManifestEdit::SegmentRemove { shard, segment } => {
                let shard = self.shard(*shard)?;
                let before = shard.segments().count();
                shard.levels.iter_mut().for_each(|l| l.retain(|m| m.id != *segment));
                if shard.segments().count() + 1 != before {
                    return Err(format!("segment {segment} is removed and was not there"));
                }
            }
            ManifestEdit::Run(run) => {
                self.term = self.term.max(run.term);
                self.runs.push(run.clone());
            }
            ManifestEdit::SealFloor { term, number, hash, durable_number } => {
                let run = self.run(*term)?;
                (run.floor_number, run.floor_hash) = (*number, *hash);
                run.durable_number = run.durable_number.max(*durable_number);
            }
            ManifestEdit::LogFloor { log, place } => {
                let log = self.runs.iter_mut().flat_map(|r| &mut r.logs).find(|l| l.id == *log);
                let log = log.ok_or("a floor for a log that is not there")?;
                log.floor = log.floor.max(*place);
            }
            ManifestEdit::Cut { term, number } => self.run(*term)?.cut = Some(*number),
            ManifestEdit::RunDrop { term } => {
                self.run(*term)?;
                self.runs.retain(|r| r.term != *term);
            }
            ManifestEdit::Split { shard, at, new } => self.split(*shard, *at, *new)?,
        }
        Ok(())
    }

    fn split(&mut self, id: ShardId, at: u8, new: ShardId) -> Result<(), String> {
        if self.shards.contains_key(&new) {
            return Err(format!("shard {id} is split and {new} is there"));
        }
        let shard = self.shard(id)?;
        let (first, last) = (shard.first_bucket, shard.last_bucket);
        if at <= first || at > last {
            return Err(format!("shard {id} of buckets {first}..={last} is split at {at}"));
        }
        let upper = shard.part(at, last);
        *shard = shard.part(first, at - 1);
        self.shards.insert(new, upper);
        Ok(())
    }

    /// An id that no shard has or had: none ever goes.
    pub fn next_shard(&self) -> ShardId {
        ShardId(self.shards.last_key_value().map_or(0, |(id, _)| id.0 + 1))
    }

    /// Every segment once, though two shards may name it.
    pub fn segments(&self) -> impl Iterator<Item = &SegmentMeta> {
        let all: BTreeMap<SegmentId, &SegmentMeta> =
            self.shards.values().flat_map(ShardState::segments).map(|meta| (meta.id, meta)).collect();
        all.into_values()
    }

    /// What contradicts: segments that do not reach into their shard, or that two shards describe differently.
    pub fn shard_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut known: BTreeMap<SegmentId, (ShardId, &SegmentMeta)> = BTreeMap::new();
        for (id, shard) in &self.shards {
            let range = shard.range();
            for meta in shard.segments() {
                if !range.overlaps(&KeyRange { first: meta.first, last: meta.last }) {
                    problems.push(format!("shard {id} names segment {} and none of its keys is the shard's", meta.id));
                }
                let (first, same) = known.entry(meta.id).or_insert((*id, meta));
                if (SegmentMeta { run: meta.run, ..(*same).clone() }) != *meta {
                    problems.push(format!("shards {first} and {id} describe segment {} differently", meta.id));
                }
            }
        }
        problems
    }

    /// How many shards name each segment; more than one after a split.
    pub fn holders(&self) -> BTreeMap<SegmentId, usize> {
        let mut holders = BTreeMap::new();
        for meta in self.shards.values().flat_map(ShardState::segments) {
            *holders.entry(meta.id).or_insert(0) += 1;
        }
        holders
    }

    /// What no manifest of a filesystem says: places outside of it, or in chunks that are for something else, and buckets of no
    /// shard (who asked for an item there would wait for ever) or of two.
    pub fn contradiction(&self, blocks: u64) -> Option<String> {
        let of = |chunk: ChunkIndex| self.chunks.get(chunk.0 as usize).copied().unwrap_or_default();
        let seals = self.runs.iter().flat_map(|run| run.seal_chunks.iter().map(|c| (*c, ChunkUse::SealLog)));
        let logs = self.runs.iter().flat_map(|run| &run.logs);
        let logs = logs.flat_map(|log| log.chunks.iter().map(|c| (*c, ChunkUse::Log)));
        for (chunk, used_for) in seals.chain(logs) {
            if of(chunk) != used_for {
                return Some(format!("a run has chunk {} as {used_for:?}, and it is {:?}", chunk.0, of(chunk)));
            }
        }
        let outside = |range: &&BlockRange| range.end().is_none_or(|end| end.0 > blocks);
        let segment = self.segments().find(|meta| meta.ranges.iter().chain(&meta.mirror).any(|r| outside(&r)));
        if let Some(meta) = segment {
            return Some(format!("segment {} lies outside of the filesystem", meta.id));
        }
        let mut owners: Vec<Vec<u32>> = vec![Vec::new(); 256];
        for (id, shard) in &self.shards {
            (shard.first_bucket..=shard.last_bucket).for_each(|bucket| owners[usize::from(bucket)].push(id.0));
        }
        let wrong = owners.iter().enumerate().find(|(_, owners)| owners.len() != 1);
        wrong.map(|(bucket, owners)| format!("bucket {bucket} is of the shards {owners:?}: it must be of one"))
    }

    fn shard(&mut self, id: ShardId) -> Result<&mut ShardState, String> {
        self.shards.get_mut(&id).ok_or_else(|| format!("shard {id} is not there"))
    }

    fn run(&mut self, term: Term) -> Result<&mut Run, String> {
        self.runs.iter_mut().find(|r| r.term == term).ok_or_else(|| format!("no run of term {term} is there"))
    }

    /// The edits that build this state from nothing.
    pub fn checkpoint(&self) -> Vec<ManifestEdit> {
        let mut edits = vec![
            ManifestEdit::NextIds { segment: self.next_segment, log: self.next_log },
            ManifestEdit::Base { number: self.base_number, hash: self.base_hash, epoch: self.base_epoch },
        ];
        edits.extend(chunk_edits(&self.chunks));
        for (id, s) in &self.shards {
            edits.push(ManifestEdit::Shard {
                id: *id,
                first_bucket: s.first_bucket,
                last_bucket: s.last_bucket,
                flushed_through: s.flushed_through,
            });
            for (level, list) in s.levels.iter().enumerate() {
                edits.extend(list.iter().map(|meta| ManifestEdit::SegmentAdd {
                    shard: *id,
                    level: level as u8,
                    meta: meta.clone(),
                }));
            }
        }
        edits.extend(self.runs.iter().cloned().map(ManifestEdit::Run));
        edits.push(ManifestEdit::Term(self.term));
        edits
    }

    pub fn free_chunks(&self) -> usize {
        self.chunks.iter().filter(|c| **c == ChunkUse::Free).count()
    }

    /// Up to `count` free chunks from `cursor` on, cycling through the device; adjacent ones when there are.
    pub fn pick_free(&self, count: usize, cursor: usize) -> Vec<ChunkIndex> {
        let len = self.chunks.len();
        (0..len)
            .map(|i| (cursor + i) % len.max(1))
            .filter(|i| self.chunks[*i] == ChunkUse::Free)
            .take(count)
            .map(|i| ChunkIndex(i as u32))
            .collect()
    }

    /// Epochs up to this are in segments, for every shard.
    pub fn flushed_through(&self) -> Epoch {
        self.shards.values().map(|s| s.flushed_through).min().unwrap_or_default()
    }
}

/// Run-length edits for a whole table.
fn chunk_edits(chunks: &[ChunkUse]) -> Vec<ManifestEdit> {
    let mut edits: Vec<ManifestEdit> = Vec::new();
    for (i, used) in chunks.iter().enumerate() {
        match edits.last_mut() {
            Some(ManifestEdit::Chunks { count, used_for, .. }) if used_for == used => *count += 1,
            _ => edits.push(ManifestEdit::Chunks { first: ChunkIndex(i as u32), count: 1, used_for: *used }),
        }
    }
    edits
}

/// Edits that give `list` one use, adjacent chunks together.
pub fn use_chunks(list: &[ChunkIndex], used_for: ChunkUse) -> Vec<ManifestEdit> {
    let mut edits: Vec<ManifestEdit> = Vec::new();
    for c in list {
        match edits.last_mut() {
            Some(ManifestEdit::Chunks { first, count, .. }) if first.0 + *count == c.0 => *count += 1,
            _ => edits.push(ManifestEdit::Chunks { first: *c, count: 1, used_for }),
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_builds_the_same_state() {
        let mut state = ManifestState::default();
        let shard = ShardId(1);
        let meta = |id, run| SegmentMeta { id: SegmentId(id), run: Epoch(run), ..SegmentMeta::default() };
        for edit in [
            ManifestEdit::Chunks { first: ChunkIndex(0), count: 10, used_for: ChunkUse::Free },
            ManifestEdit::Chunks { first: ChunkIndex(3), count: 2, used_for: ChunkUse::Data(1) },
            ManifestEdit::Shard { id: shard, first_bucket: 0, last_bucket: 255, flushed_through: Epoch(1) },
            ManifestEdit::SegmentAdd { shard, level: 0, meta: meta(1, 5) },
            ManifestEdit::SegmentAdd { shard, level: 0, meta: meta(2, 7) },
            ManifestEdit::SegmentAdd { shard, level: 2, meta: meta(3, 0) },
            ManifestEdit::Term(Term(4)),
        ] {
            state.apply(&edit).unwrap();
        }
        assert_eq!(state.shards[&shard].levels[0][0].id, SegmentId(2), "newest first");
        let mut again = ManifestState::default();
        state.checkpoint().iter().for_each(|e| again.apply(e).unwrap());
        assert_eq!(again, state);
        assert_eq!(state.pick_free(3, 9), vec![ChunkIndex(9), ChunkIndex(0), ChunkIndex(1)]);
        state.apply(&ManifestEdit::SegmentRemove { shard, segment: SegmentId(1) }).unwrap();
        assert!(state.apply(&ManifestEdit::SegmentRemove { shard, segment: SegmentId(1) }).is_err());
    }

    #[test]
    fn the_halves_of_a_split_name_what_reaches_into_them() {
        let (mut state, shard, new) = (ManifestState::default(), ShardId(3), ShardId(4));
        let meta = |id, first, last| {
            let range = KeyRange::of_buckets(Bucket(first), Bucket(last));
            let meta =
                SegmentMeta { id: SegmentId(id), first: range.first, last: range.last, ..SegmentMeta::default() };
            ManifestEdit::SegmentAdd { shard, level: 1, meta }
        };
        let (low, both, high) = (meta(1, 10, 19), meta(2, 20, 60), meta(3, 61, 61));
        let whole = ManifestEdit::Shard { id: shard, first_bucket: 10, last_bucket: 99, flushed_through: Epoch(7) };
        for edit in [whole, low, both, high] {
            state.apply(&edit).unwrap();
        }
        for at in [10, 100, 255] {
            assert!(state.apply(&ManifestEdit::Split { shard, at, new }).is_err(), "nothing would be left of a half");
        }
        assert!(state.apply(&ManifestEdit::Split { shard, at: 40, new: shard }).is_err());
        assert_eq!(state.next_shard(), new);
        state.apply(&ManifestEdit::Split { shard, at: 40, new }).unwrap();
        let ids = |shard| state.shards[&shard].segments().map(|m| m.id.0).collect::<Vec<_>>();
        assert_eq!((ids(shard), ids(new)), (vec![1, 2], vec![2, 3]));
        assert_eq!(state.shards[&new].flushed_through, Epoch(7));
        assert_eq!(state.holders().into_values().collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(state.segments().map(|m| m.id.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(state.shard_problems(), Vec::<String>::new());
        let mut bad = state.clone();
        bad.shards.get_mut(&new).unwrap().first_bucket = 62; // segment 2 ends below
        bad.shards.get_mut(&shard).unwrap().levels[1][1].entries = 9;
        assert_eq!(bad.shard_problems().len(), 2 + 1, "segments 2 and 3 outside, segment 2 described twice");
        let mut again = ManifestState::default();
        state.checkpoint().iter().for_each(|e| again.apply(e).unwrap());
        assert_eq!(again, state);
    }
}

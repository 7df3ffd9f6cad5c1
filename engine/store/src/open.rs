//! Opening a filesystem: find it, recover it, begin a new run. Done once, on one reactor; what it gives goes to all.
//!
//! Order: flush the device (what is read may else not be durable) - superblock - manifest - runs and their cut - one new
//! manifest checkpoint that makes the cut, the new term and the fresh log chunks durable together. Nothing of an old log
//! is ever appended to.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use vellum_base::{
    BlockAddr, Bucket, ChunkIndex, DmaBuf, Epoch, KeyRange, LogId, Mutant, ReactorId, SegmentId, ShardId, Term, mutant,
    probe,
};
use vellum_format::seal::MAX_PARTS;
use vellum_format::{ChunkUse, LogMeta, ManifestEdit, Run, SegmentMeta, Superblock};
use vellum_nvme::{Device, Queue};
use vellum_rt::channel;

use crate::epoch::Start;
use crate::epoch::coordinator::EPOCH_GAP;
use crate::error::StoreError;
use crate::fact::Fact;
use crate::grow::{fit_table, forget_unfinished, share};
use crate::manifest::{self, FoundManifest, ManifestSeed, ManifestState, ShardState, use_chunks};
use crate::mesh::{MAILBOX, MeshSeed};
use crate::neighbours::Writes;
use crate::options::OpenOptions;
use crate::recovery::{ReplayPart, RunEnd, read_run};
use crate::superblock;

/// What recovery did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    pub term: Term,
    /// True when the last run was shut down and nothing had to be replayed.
    pub clean: bool,
    pub epochs: u64,
    pub parts: u64,
    pub bytes: u64,
    pub time: Duration,
    /// The last epoch that counts.
    pub last_epoch: Epoch,
    /// Why the last run's chain of seals ended.
    pub end: String,
    /// Places that did not verify and were made good from a copy.
    pub repaired: Vec<String>,
}

pub struct Opened {
    /// One per reactor, in order.
    pub seeds: Vec<ReactorSeed>,
    pub report: RecoveryReport,
    pub superblock: Superblock,
}

pub(crate) struct ShardSeed {
    pub id: ShardId,
    pub range: KeyRange,
    pub levels: Vec<Vec<SegmentMeta>>,
    pub flushed_through: Epoch,
}

pub(crate) struct CoordinatorSeed {
    pub manifest: ManifestSeed,
    pub seal_chunks: Vec<ChunkIndex>,
    pub start: Start,
    pub reserve_chunks: usize,
}

/// Everything one reactor needs to start its store.
pub struct ReactorSeed {
    pub(crate) reactor: ReactorId,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) options: OpenOptions,
    pub(crate) superblock: Superblock,
    pub(crate) term: Term,
    pub(crate) first_epoch: Epoch,
    /// Reactor of each bucket.
    pub(crate) routes: [ReactorId; 256],
    pub(crate) shards: Vec<ShardSeed>,
    pub(crate) replay: Arc<Vec<ReplayPart>>,
    pub(crate) data_chunks: Vec<(ChunkIndex, Bucket)>,
    pub(crate) log: Option<LogMeta>,
    pub(crate) first_segment: SegmentId,
    pub(crate) mesh: MeshSeed,
    pub(crate) coordinator: Option<CoordinatorSeed>,
}

/// Segment ids that one reactor may use in one run.
const SEGMENT_IDS: u64 = 1 << 32;
/// What a shard weighs besides its segments, when shards are given to reactors: short ones are counted.
const SHARD_BYTES: u64 = 64 << 20;
const MIN_RING_BYTES: u64 = 4 << 20;

pub async fn open(device: &Arc<dyn Device>, queue: &Rc<dyn Queue>, options: OpenOptions) -> Result<Opened, StoreError> {
    if options.reactors == 0 || options.reactors > MAX_PARTS {
        return Err(StoreError::Options(format!("{} reactors: 1 to {MAX_PARTS}", options.reactors)));
    }
    let begun = vellum_rt::now();
    if !options.read_only {
        queue.flush().await?;
    }
    let found = superblock::read(queue).await?;
    let mut sb = found.superblock;
    if !options.read_only
        && let Some(e) = superblock::forbids_writing(&sb)
    {
        return Err(e);
    }
    let mut report = RecoveryReport::default();
    report.repaired.extend(found.bad.iter().map(|(_, e)| e.to_string()));
    if !options.read_only {
        for (at, _) in &found.bad {
            repair_superblock(queue, &sb, *at).await?;
        }
        forget_unfinished(queue, &sb).await?;
    }
    let FoundManifest { mut file, mut state, bad, .. } = manifest::read(queue, &sb).await?;
    report.repaired.extend(bad.iter().map(|(_, e)| e.to_string()));
    let unfinished_growth = fit_table(&state, &sb)?;
    apply_all(&mut state, &unfinished_growth)?;

    let mut replay = Vec::new();
    let (mut number, mut hash, mut epoch) = (state.base_number, state.base_hash, state.base_epoch);
    let mut recovered = epoch.max(state.flushed_through());
    report.clean = state.runs.is_empty();
    let mut edits = Vec::new();
    for run in state.runs.clone() {
        let end = read_run(queue, &sb, &run).await?;
        report.epochs += end.epochs;
        report.parts += end.parts.len() as u64;
        report.bytes += end.bytes;
        report.end.clone_from(&end.end);
        (number, hash) = (end.last_number, end.last_hash);
        if end.epochs > 0 {
            recovered = recovered.max(end.last_epoch);
        }
        epoch = epoch.max(end.last_epoch).max(run.first_epoch);
        if !options.read_only {
            release_rest(&mut state, &run, &end, sb.chunk_blocks);
        }
        if run.cut.is_none() && state.runs.iter().any(|kept| kept.term == run.term) {
            edits.push(ManifestEdit::Cut { term: run.term, number });
        }
        replay.extend(end.parts);
    }
    report.last_epoch = epoch;
    let least = Term(state.term.0 + 1);
    let term = options.term.unwrap_or(least);
    if term < least && !options.read_only {
        return Err(StoreError::Options(format!("term {term} was had before; {least} or later is needed")));
    }
    let gap = if mutant::active(Mutant::NoEpochGap) { 1 } else { EPOCH_GAP };
    let first_epoch = Epoch(epoch.0 + gap);
    let start = Start { term, fsid: sb.fsid, first_epoch, first_number: number + 1, base_hash: hash };
    let first_segment = state.next_segment;
    let mut seal_chunks = Vec::new();
    let mut logs = Vec::new();
    let mut reserve_chunks = 0;
    if !options.read_only {
        drop_flushed_runs(&state, &replay, &mut edits);
        apply_all(&mut state, &edits)?;
        let rings = plan_rings(&sb, &state, &options)?;
        reserve_chunks = rings.reserve;
        let run = new_run(&state, &options, &rings, &start);
        seal_chunks.clone_from(&run.seal_chunks);
        logs.clone_from(&run.logs);
        let mut fresh = use_chunks(&seal_chunks, ChunkUse::SealLog);
        logs.iter().for_each(|log| fresh.extend(use_chunks(&log.chunks, ChunkUse::Log)));
        fresh.push(ManifestEdit::NextIds {
            segment: SegmentId(first_segment.0 + SEGMENT_IDS * options.reactors as u64),
            log: LogId(state.next_log.0 + options.reactors as u64),
        });
        fresh.push(ManifestEdit::Term(term));
        fresh.push(ManifestEdit::Run(run));
        apply_all(&mut state, &fresh)?;
        file.checkpoint(queue, &mut sb, &state).await?;
    }
    if !options.read_only {
        probe::tell(|| Fact::Opened { term, first_epoch, recovered });
    }
    report.term = term;
    report.time = vellum_rt::now() - begun;
    let manifest = ManifestSeed { superblock: sb.clone(), file, state };
    let coordinator = CoordinatorSeed { manifest, seal_chunks, start, reserve_chunks };
    let seeds = make_seeds(device, &options, coordinator, replay, logs, first_segment);
    Ok(Opened { seeds, report, superblock: sb })
}

/// The term of the last run, for whoever gives terms from now on. Reads only; nobody may be serving.
pub async fn newest_term(queue: &Rc<dyn Queue>) -> Result<Term, StoreError> {
    let sb = superblock::look(queue).await?;
    Ok(manifest::read(queue, &sb).await?.state.term)
}

fn apply_all(state: &mut ManifestState, edits: &[ManifestEdit]) -> Result<(), StoreError> {
    edits.iter().try_for_each(|e| state.apply(e)).map_err(|e| StoreError::corrupt("manifest", e))
}

async fn repair_superblock(queue: &Rc<dyn Queue>, sb: &Superblock, at: BlockAddr) -> Result<(), StoreError> {
    queue.write(at.bytes(), DmaBuf::copy_from(&sb.encode(at), true).freeze(), false).await?;
    Ok(queue.flush().await?)
}

/// The chunks that an ended run does not need go at once, all of them when it left nothing to replay. A process that dies
/// again and again while it recovers would else lay ring beside ring until no room is left for one more.
fn release_rest(state: &mut ManifestState, run: &Run, end: &RunEnd, chunk_blocks: u32) {
    let chunk_blocks = u64::from(chunk_blocks);
    // A ring that went round is needed whole: positions are counted in rounds of its length.
    let rest = |chunks: &[ChunkIndex], used_blocks: u64| match used_blocks.div_ceil(chunk_blocks).max(1) as usize {
        used if used < chunks.len() => used,
        _ => chunks.len(),
    };
    let Some(kept) = state.runs.iter_mut().find(|kept| kept.term == run.term) else { return };
    let mut free = Vec::new();
    let seals = (end.last_number + 1).saturating_sub(run.first_number);
    free.extend(kept.seal_chunks.split_off(rest(&run.seal_chunks, seals)));
    for log in &mut kept.logs {
        // The ends of parts that no seal above the floor names lie below the floor.
        let used = end.log_ends.get(&log.id).copied().unwrap_or(0).max(log.floor);
        free.extend(log.chunks.split_off(rest(&log.chunks, used)));
    }
    if end.parts.is_empty() {
        free.append(&mut kept.seal_chunks);
        kept.logs.iter_mut().for_each(|log| free.append(&mut log.chunks));
        state.runs.retain(|kept| kept.term != run.term);
        if end.epochs > 0 {
            state.base_epoch = state.base_epoch.max(end.last_epoch);
        }
    }
    for chunk in free {
        state.chunks[chunk.0 as usize] = ChunkUse::Free;
    }
}

/// Runs that left nothing to replay go at once.
fn drop_flushed_runs(state: &ManifestState, replay: &[ReplayPart], edits: &mut Vec<ManifestEdit>) {
    if !replay.is_empty() {
        return;
    }
    for run in &state.runs {
        edits.extend(drop_run(run));
    }
}

/// Edits that forget a run and free its chunks.
pub(crate) fn drop_run(run: &Run) -> Vec<ManifestEdit> {
    let mut edits = vec![ManifestEdit::RunDrop { term: run.term }];
    edits.extend(use_chunks(&run.seal_chunks, ChunkUse::Free));
    run.logs.iter().for_each(|log| edits.extend(use_chunks(&log.chunks, ChunkUse::Free)));
    edits
}

struct Rings {
    /// Chunks of one ring.
    chunks: usize,
    reserve: usize,
}

/// How long logs can be: what was asked for, at most an eighth of the device together, and what is free.
fn plan_rings(sb: &Superblock, state: &ManifestState, options: &OpenOptions) -> Result<Rings, StoreError> {
    let chunk = sb.chunk_bytes();
    let rings = options.reactors as u64 + 1;
    let total = u64::from(sb.chunks()) * chunk;
    let wanted = options.log_bytes.min(total / 8 / rings).max(MIN_RING_BYTES);
    let wanted = wanted.div_ceil(chunk).max(2);
    let least = MIN_RING_BYTES.div_ceil(chunk).max(2);
    let free = state.free_chunks() as u64;
    // A tenth of what is free stays for segments: recovery flushes before it drops old logs.
    let affordable = (free - free / 10) / rings;
    if affordable < least {
        return Err(StoreError::NoSpace);
    }
    let chunks = wanted.min(affordable) as usize;
    // The next open needs fresh rings beside these.
    let spare = least as usize * rings as usize;
    let reserve = spare + share(sb.chunks());
    Ok(Rings { chunks, reserve })
}

fn new_run(state: &ManifestState, options: &OpenOptions, rings: &Rings, start: &Start) -> Run {
    let picked = state.pick_free(rings.chunks * (options.reactors + 1), 0);
    let mut lists = picked.chunks(rings.chunks).map(<[ChunkIndex]>::to_vec);
    let seal_chunks = lists.next().unwrap_or_default();
    let logs = lists
        .enumerate()
        .map(|(i, chunks)| LogMeta { id: LogId(state.next_log.0 + i as u64), chunks, floor: 0 })
        .collect();
    let base = start.first_number - 1;
    Run {
        term: start.term,
        first_number: start.first_number,
        first_epoch: start.first_epoch,
        seal_chunks,
        floor_number: base,
        floor_hash: start.base_hash,
        durable_number: base,
        cut: None,
        logs,
    }
}

/// By id they are in the order of their making.
fn in_key_order(state: &ManifestState) -> Vec<(ShardId, &ShardState)> {
    let mut shards: Vec<_> = state.shards.iter().map(|(id, shard)| (*id, shard)).collect();
    shards.sort_by_key(|(_, shard)| shard.first_bucket);
    shards
}

/// Shards go to reactors in contiguous runs of about equal weight, and none has nothing while another has two.
fn route(state: &ManifestState, reactors: usize) -> [ReactorId; 256] {
    let mut routes = [ReactorId(0); 256];
    let shards = in_key_order(state);
    let weight = |shard: &ShardState| SHARD_BYTES + shard.segments().map(|meta| meta.len_bytes).sum::<u64>();
    let all: u64 = shards.iter().map(|(_, shard)| weight(shard)).sum();
    let (mut below, mut next) = (0, 0);
    for (i, (_, shard)) in shards.iter().enumerate() {
        let middle = u128::from(below + weight(shard) / 2);
        let mut reactor = (middle * reactors as u128 / u128::from(all)) as usize;
        if shards.len() >= reactors {
            reactor = reactor.min(next).max((reactors + i).saturating_sub(shards.len()));
        }
        routes[usize::from(shard.first_bucket)..=usize::from(shard.last_bucket)].fill(ReactorId(reactor as u16));
        (below, next) = (below + weight(shard), reactor + 1);
    }
    routes
}

fn make_seeds(
    device: &Arc<dyn Device>,
    options: &OpenOptions,
    coordinator: CoordinatorSeed,
    replay: Vec<ReplayPart>,
    logs: Vec<LogMeta>,
    first_segment: SegmentId,
) -> Vec<ReactorSeed> {
    let n = options.reactors;
    let state = &coordinator.manifest.state;
    let routes = route(state, n);
    let mut shards: BTreeMap<ReactorId, Vec<ShardSeed>> = BTreeMap::new();
    for (id, s) in in_key_order(state) {
        let seed = ShardSeed { id, range: s.range(), levels: s.levels.clone(), flushed_through: s.flushed_through };
        shards.entry(routes[usize::from(s.first_bucket)]).or_default().push(seed);
    }
    let data: Vec<(ChunkIndex, Bucket)> = state
        .chunks
        .iter()
        .enumerate()
        .filter_map(|(i, used)| match used {
            ChunkUse::Data(bucket) => Some((ChunkIndex(i as u32), Bucket(*bucket))),
            _ => None,
        })
        .collect();
    let replay = Arc::new(replay);
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..n).map(|_| channel::bounded(MAILBOX)).unzip();
    let start = coordinator.start.clone();
    let superblock = coordinator.manifest.superblock.clone();
    let mut coordinator = Some(coordinator);
    let (names, handovers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writes = Arc::new(Writes::new(superblock.chunk_blocks));
    receivers
        .into_iter()
        .enumerate()
        .map(|(i, inbox)| {
            let reactor = ReactorId(i as u16);
            ReactorSeed {
                reactor,
                device: device.clone(),
                options: options.clone(),
                superblock: superblock.clone(),
                term: start.term,
                first_epoch: start.first_epoch,
                routes,
                shards: shards.remove(&reactor).unwrap_or_default(),
                replay: replay.clone(),
                data_chunks: data.iter().filter(|(_, b)| routes[usize::from(b.0)] == reactor).copied().collect(),
                log: logs.get(i).cloned(),
                first_segment: SegmentId(first_segment.0 + SEGMENT_IDS * i as u64),
                mesh: MeshSeed {
                    me: reactor,
                    senders: senders.clone(),
                    inbox,
                    names: names.clone(),
                    handovers: handovers.clone(),
                    writes: writes.clone(),
                },
                coordinator: coordinator.take(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filesystem with shards of four buckets and so many MiB; how many shards each reactor gets.
    fn shared(mib: &[u64], reactors: usize) -> Vec<usize> {
        let mut state = ManifestState::default();
        // Made in another order than that of their keys, as by splits.
        for (i, mib) in mib.iter().enumerate().rev() {
            let id = ShardId((mib + i as u64 * 7919) as u32);
            let (first_bucket, flushed_through) = (4 * i as u8, Epoch::NONE);
            let edit = ManifestEdit::Shard { id, first_bucket, last_bucket: first_bucket + 3, flushed_through };
            state.apply(&edit).unwrap();
            let meta = SegmentMeta { id: SegmentId(i as u64), len_bytes: mib << 20, ..SegmentMeta::default() };
            state.apply(&ManifestEdit::SegmentAdd { shard: id, level: 1, meta }).unwrap();
        }
        let routes = route(&state, reactors);
        let owners: Vec<usize> = (0..mib.len()).map(|i| usize::from(routes[4 * i].0)).collect();
        assert!(owners.is_sorted(), "{owners:?}");
        (0..reactors).map(|reactor| owners.iter().filter(|owner| **owner == reactor).count()).collect()
    }

    #[test]
    fn reactors_share_by_weight() {
        assert_eq!(shared(&[0; 8], 3), [3, 2, 3]);
        assert_eq!(shared(&[1, 3, 2, 0, 1, 2, 1, 4], 2), [4, 4], "short ones are counted");
        assert_eq!(shared(&[5000, 5000, 100, 100, 100, 100], 2), [1, 5]);
        assert_eq!(shared(&[100, 100, 100, 100, 9000], 3), [3, 1, 1]);
        assert_eq!(shared(&[9000, 1, 1], 3), [1, 1, 1]);
        assert_eq!(shared(&[0, 0], 4).iter().sum::<usize>(), 2);
    }
}

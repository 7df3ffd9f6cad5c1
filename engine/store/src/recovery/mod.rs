//! From the manifest to the last whole epoch: which seals and parts count.
//!
//! For each run of the engine, oldest first: the seals above its floor, in order, as long as each is intact, follows the
//! one before by number, term and hash, and all its parts are intact (a part below its log's floor is in segments and is
//! not needed). The first that fails ends the run, unless something says that it was durable: a later seal's durable number,
//! the manifest's, or a cut that an earlier recovery made. Then it is corruption and never the end. The last few, of which
//! nothing says that they were durable, count as far as the file data that they list is there too (`new_data`).

mod new_data;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{BLOCK_SIZE, BlockAddr, DmaBuf, DmaSlice, Epoch, Fsid, LogId, Mutant, mutant};
use vellum_format::log::verify_part;
use vellum_format::{PartPlace, PartRef, Run, Seal, Superblock};
use vellum_nvme::Queue;

use crate::epoch::Ring;
use crate::error::{StoreError, lost_seal};

/// Seals that are looked at after the end for one that says that the end was durable.
const LOOK_AHEAD: u64 = 64;
const WINDOW_SEALS: u64 = 64;

/// The records of one part, to be applied by whoever owns their keys.
#[derive(Clone, Debug)]
pub struct ReplayPart {
    pub epoch: Epoch,
    pub records: Bytes,
}

/// What a run left.
#[derive(Debug)]
pub struct RunEnd {
    pub last_number: u64,
    pub last_hash: u64,
    pub last_epoch: Epoch,
    pub parts: Vec<ReplayPart>,
    /// Where the last part of each log ends.
    pub log_ends: HashMap<LogId, u64>,
    pub epochs: u64,
    pub bytes: u64,
    /// Why the chain ended.
    pub end: String,
}

/// Memory of a device read, kept alive by the values in it.
struct Shared(DmaSlice);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

pub async fn read_run(queue: &Rc<dyn Queue>, sb: &Superblock, run: &Run) -> Result<RunEnd, StoreError> {
    walk_run(queue, sb, run, true).await
}

/// As [`read_run`], without keeping the parts.
pub async fn verify_run(queue: &Rc<dyn Queue>, sb: &Superblock, run: &Run) -> Result<RunEnd, StoreError> {
    walk_run(queue, sb, run, false).await
}

/// An epoch whose seal and parts are whole.
struct Whole {
    seal: Seal,
    hash: u64,
    parts: Vec<ReplayPart>,
}

async fn walk_run(queue: &Rc<dyn Queue>, sb: &Superblock, run: &Run, keep: bool) -> Result<RunEnd, StoreError> {
    let mut reader = SealReader::new(queue, sb, run);
    let rings: HashMap<LogId, (Ring, u64)> =
        run.logs.iter().map(|log| (log.id, (Ring::new(log.chunks.clone(), sb.chunk_blocks), log.floor))).collect();
    let mut out = RunEnd {
        last_number: run.floor_number,
        last_hash: run.floor_hash,
        last_epoch: Epoch(run.first_epoch.0.saturating_sub(1)),
        parts: Vec::new(),
        log_ends: HashMap::new(),
        epochs: 0,
        bytes: 0,
        end: String::new(),
    };
    // A durable number that a seal of the chain itself tells counts as well, so it is collected on the way.
    let mut durable = run.durable_number.max(run.cut.unwrap_or(0));
    // Those that nobody says were durable. They need their file data to count.
    let mut tail: VecDeque<Whole> = VecDeque::new();
    loop {
        while tail.front().is_some_and(|whole| whole.seal.number <= durable) {
            tail.pop_front().into_iter().for_each(|whole| out.take(whole, keep));
        }
        let before = tail.back().map_or((out.last_number, out.last_hash, out.last_epoch), |last| {
            (last.seal.number, last.hash, last.seal.epoch)
        });
        let number = before.0 + 1;
        if run.cut.is_some_and(|cut| number > cut) {
            out.end = "cut by an earlier recovery".into();
            return Ok(out);
        }
        let reason = match next_epoch(queue, sb, run, &rings, &mut reader, before).await? {
            Ok(whole) => {
                durable = durable.max(whole.seal.durable_number);
                tail.push_back(whole);
                continue;
            }
            Err(reason) => reason,
        };
        let mut told = durable;
        for later in number..number + LOOK_AHEAD {
            if let Ok(Ok((seal, _))) = reader.seal(later).await
                && seal.number == later
                && seal.term == run.term
            {
                told = told.max(seal.durable_number);
            }
        }
        if number <= told {
            return Err(lost_seal(number, before.2.next(), reason));
        }
        let proven = tail.iter().take_while(|whole| whole.seal.number <= told).count();
        tail.drain(..proven).for_each(|whole| out.take(whole, keep));
        let (count, missing) = new_data::whole_prefix(queue, sb.chunk_blocks, &tail).await?;
        tail.drain(..count).for_each(|whole| out.take(whole, keep));
        out.end = missing.unwrap_or(reason);
        return Ok(out);
    }
}

impl RunEnd {
    fn take(&mut self, whole: Whole, keep: bool) {
        let Whole { seal, hash, parts } = whole;
        for part in &seal.parts {
            let end = self.log_ends.entry(part.log).or_default();
            *end = (*end).max(part.place + u64::from(part.len_blocks));
        }
        self.bytes += parts.iter().map(|p| p.records.len() as u64).sum::<u64>();
        if keep {
            self.parts.extend(parts);
        }
        (self.last_number, self.last_hash, self.last_epoch) = (seal.number, hash, seal.epoch);
        self.epochs += 1;
    }
}

/// The seal after the one with this number, hash and epoch, with its parts, or why it does not count.
async fn next_epoch(
    queue: &Rc<dyn Queue>,
    sb: &Superblock,
    run: &Run,
    rings: &HashMap<LogId, (Ring, u64)>,
    reader: &mut SealReader<'_>,
    (last_number, last_hash, last_epoch): (u64, u64, Epoch),
) -> Result<Result<Whole, String>, StoreError> {
    let number = last_number + 1;
    let (seal, hash) = match reader.seal(number).await? {
        Ok(found) => found,
        Err(reason) => return Ok(Err(reason)),
    };
    let follows = seal.term == run.term && seal.prev_hash == last_hash;
    if seal.number != number || !follows {
        return Ok(Err(format!("seal {} of term {} is in its place, or does not follow", seal.number, seal.term)));
    }
    if seal.epoch <= last_epoch && last_number > run.floor_number {
        return Ok(Err(format!("its epoch {} is not later than {last_epoch}", seal.epoch)));
    }
    let mut parts = Vec::new();
    for part in &seal.parts {
        let Some((ring, floor)) = rings.get(&part.log) else {
            return Ok(Err(format!("it names log {}, which is not there", part.log)));
        };
        if part.place < *floor {
            continue; // flushed and trimmed; the floor was durable before
        }
        match read_part(queue, &sb.fsid, ring, &seal, part).await? {
            Ok(records) => parts.push(ReplayPart { epoch: seal.epoch, records }),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(Whole { seal, hash, parts }))
}

async fn read_part(
    queue: &Rc<dyn Queue>,
    fsid: &Fsid,
    ring: &Ring,
    seal: &Seal,
    part: &PartRef,
) -> Result<Result<Bytes, String>, StoreError> {
    let blocks = u64::from(part.len_blocks);
    if blocks > ring.capacity() || ring.addr(part.place) != Some(part.addr) {
        return Ok(Err(format!("its part of log {} cannot lie at {}", part.log, part.addr)));
    }
    let mut whole = DmaBuf::new(blocks as usize * BLOCK_SIZE);
    for (addr, at, len) in ring.pieces(part.place, blocks) {
        let (from, to) = (at as usize * BLOCK_SIZE, (at + len) as usize * BLOCK_SIZE);
        let piece = queue.read(addr.bytes(), DmaBuf::new(to - from)).await?;
        if from == 0 && to == whole.len() {
            whole = piece;
        } else {
            whole[from..to].copy_from_slice(&piece);
        }
    }
    let place = PartPlace { log: part.log, epoch: seal.epoch, term: seal.term, place: part.place, addr: part.addr };
    let crc = whole.first_chunk::<4>().map_or(0, |c| u32::from_le_bytes(*c));
    if crc != part.crc {
        if mutant::active(Mutant::BelieveBadPart) {
            return Ok(Ok(Bytes::new()));
        }
        return Ok(Err(format!(
            "part of log {} at {}: checksum {crc:#x} is not the seal's {:#x}",
            part.log, part.addr, part.crc
        )));
    }
    let slice = whole.freeze();
    let range = match verify_part(&slice, &place, fsid) {
        Ok(records) => {
            let start = records.as_ptr() as usize - slice.as_ptr() as usize;
            start..start + records.len()
        }
        Err(e) => return Ok(Err(e.to_string())),
    };
    Ok(Ok(Bytes::from_owner(Shared(slice)).slice(range)))
}

/// Reads seals in windows of many.
struct SealReader<'a> {
    queue: &'a Rc<dyn Queue>,
    fsid: Fsid,
    ring: Ring,
    first_number: u64,
    window: Option<(BlockAddr, DmaSlice)>,
}

impl<'a> SealReader<'a> {
    fn new(queue: &'a Rc<dyn Queue>, sb: &Superblock, run: &Run) -> Self {
        SealReader {
            queue,
            fsid: sb.fsid,
            ring: Ring::new(run.seal_chunks.clone(), sb.chunk_blocks),
            first_number: run.first_number,
            window: None,
        }
    }

    async fn seal(&mut self, number: u64) -> Result<Result<(Seal, u64), String>, StoreError> {
        let place = number.saturating_sub(self.first_number);
        let Some(addr) = self.ring.addr(place) else { return Ok(Err("the run has no seal log".into())) };
        let inside = |(start, data): &(BlockAddr, DmaSlice)| {
            *start <= addr && ((addr.0 - start.0) as usize) < data.len() / BLOCK_SIZE
        };
        if !self.window.as_ref().is_some_and(inside) {
            let run = self.ring.pieces(place, WINDOW_SEALS.min(self.ring.capacity())).first().map_or(1, |p| p.2);
            let data = self.queue.read(addr.bytes(), DmaBuf::new(run as usize * BLOCK_SIZE)).await?.freeze();
            self.window = Some((addr, data));
        }
        let Some((start, data)) = &self.window else { return Ok(Err("not read".into())) };
        let at = (addr.0 - start.0) as usize * BLOCK_SIZE;
        Ok(Seal::decode(&data[at..at + BLOCK_SIZE], addr, &self.fsid).map_err(|e| e.to_string()))
    }
}

//! The manifest on the device: two areas, each kept twice, written in turn.
//!
//! An area holds a checkpoint and the records after it. A record goes to both copies of the area and is durable before
//! the next one is written; so at most the last record can be torn, and a bad record before an intact one is corruption.
//! When an area is full, a checkpoint with the next generation goes to the other one, and then the superblock says that
//! no older generation may be believed.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, DmaBuf, DmaSlice};
use vellum_format::block::{self, BlockKind};
use vellum_format::manifest::MANIFEST_VERSION;
use vellum_format::{BlockError, ManifestEdit, ManifestRecord, RecordBody, Superblock};
use vellum_nvme::Queue;

use super::state::ManifestState;
use crate::error::StoreError;
use crate::superblock;

/// Where the next record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    area: usize,
    pub generation: u64,
    next_block: u32,
    sequence: u64,
    prev_hash: u64,
}

/// What reading found.
#[derive(Debug)]
pub struct FoundManifest {
    pub file: ManifestFile,
    pub state: ManifestState,
    /// Records read.
    pub records: u64,
    /// Places that did not verify and were made up for by the other copy.
    pub bad: Vec<(BlockAddr, BlockError)>,
    /// The same of the last record, where it may be what a crash left. While the filesystem is served it is damage.
    pub bad_last: Vec<(BlockAddr, BlockError)>,
}

impl ManifestFile {
    /// Before the first checkpoint.
    pub fn unwritten() -> ManifestFile {
        ManifestFile { area: 1, generation: 0, next_block: 0, sequence: 0, prev_hash: 0 }
    }

    /// Records that this one has and `shorter` has not.
    pub fn records_after(&self, shorter: &ManifestFile) -> u64 {
        self.sequence.saturating_sub(shorter.sequence)
    }

    /// Appends a record; false when the area has no room for it.
    pub async fn append(
        &mut self,
        queue: &Rc<dyn Queue>,
        sb: &Superblock,
        edits: &[ManifestEdit],
    ) -> Result<bool, StoreError> {
        let body = RecordBody::new(self.sequence, self.prev_hash, edits);
        let blocks = (body.padded_len() / BLOCK_SIZE) as u32;
        let areas = &sb.manifest[self.area];
        if self.next_block + blocks > areas[0].len_blocks.min(areas[1].len_blocks) {
            return Ok(false);
        }
        write_copies(queue, sb, areas, self.next_block, &body, self.generation).await?;
        self.next_block += blocks;
        self.sequence += 1;
        self.prev_hash = body.hash();
        Ok(true)
    }

    /// Writes the whole state to the other area and makes it the only one that counts.
    pub async fn checkpoint(
        &mut self,
        queue: &Rc<dyn Queue>,
        sb: &mut Superblock,
        state: &ManifestState,
    ) -> Result<(), StoreError> {
        let body = RecordBody::new(0, 0, &state.checkpoint());
        let area = 1 - self.area;
        let room = sb.manifest[area][0].len_bytes().min(sb.manifest[area][1].len_bytes());
        if body.padded_len() > room {
            return Err(StoreError::ManifestFull { needed: body.padded_len(), area: room });
        }
        let generation = self.generation + 1;
        write_copies(queue, sb, &sb.manifest[area], 0, &body, generation).await?;
        sb.manifest_generation = generation;
        sb.generation += 1;
        superblock::write(queue, sb).await?;
        *self = ManifestFile {
            area,
            generation,
            next_block: (body.padded_len() / BLOCK_SIZE) as u32,
            sequence: 1,
            prev_hash: body.hash(),
        };
        Ok(())
    }
}

async fn write_copies(
    queue: &Rc<dyn Queue>,
    sb: &Superblock,
    areas: &[BlockRange; 2],
    at_block: u32,
    body: &RecordBody,
    generation: u64,
) -> Result<(), StoreError> {
    let write = |area: &BlockRange| {
        let addr = BlockAddr(area.start.0 + u64::from(at_block));
        let mut buf = DmaBuf::new(body.padded_len());
        body.finish(&mut buf, addr, &sb.fsid, generation);
        queue.write(addr.bytes(), buf.freeze(), false)
    };
    let (first, second) = (write(&areas[0]), write(&areas[1]));
    first.await?;
    second.await?;
    Ok(queue.flush().await?)
}

/// Reads the newest manifest that the superblock allows.
pub async fn read(queue: &Rc<dyn Queue>, sb: &Superblock) -> Result<FoundManifest, StoreError> {
    let mut best: Option<(usize, u64)> = None;
    let mut errors = Vec::new();
    for (area, copies) in sb.manifest.iter().enumerate() {
        for copy in copies {
            let mut reader = AreaReader::new(queue, sb, *copy);
            match reader.record(0).await? {
                Ok((record, ..)) if record.sequence != 0 => {}
                Ok((record, ..)) if best.is_none_or(|(_, g)| record.generation > g) => {
                    best = Some((area, record.generation));
                }
                Ok(_) => {}
                Err(e) => errors.push(e),
            }
        }
    }
    let Some((area, generation)) = best.filter(|(_, g)| *g >= sb.manifest_generation) else {
        let detail = errors.first().map_or("an older generation alone is intact".into(), BlockError::to_string);
        return Err(StoreError::corrupt(format!("manifest generation {}", sb.manifest_generation), detail));
    };
    read_area(queue, sb, area, generation).await
}

async fn read_area(
    queue: &Rc<dyn Queue>,
    sb: &Superblock,
    area: usize,
    generation: u64,
) -> Result<FoundManifest, StoreError> {
    let mut copies = sb.manifest[area].map(|range| AreaReader::new(queue, sb, range));
    let mut file = ManifestFile { area, generation, next_block: 0, sequence: 0, prev_hash: 0 };
    let mut state = ManifestState::default();
    let mut bad = Vec::new();
    let mut last_bad: Vec<(BlockAddr, BlockError)> = Vec::new();
    loop {
        let mut next = None;
        let mut reasons = Vec::new();
        for reader in &mut copies {
            let follows = |r: &ManifestRecord| {
                r.generation == generation && r.sequence == file.sequence && r.prev_hash == file.prev_hash
            };
            match reader.record(file.next_block).await? {
                Ok((record, hash, blocks)) if follows(&record) => next = next.or(Some((record, hash, blocks))),
                Ok(_) => reasons.push((reader.addr(file.next_block), None)),
                Err(e) => reasons.push((reader.addr(file.next_block), Some(e))),
            }
        }
        let Some((record, hash, blocks)) = next else {
            // A record that is whole and says nothing that can be was not torn by a crash.
            let nonsense = reasons.iter().find_map(|(addr, reason)| match reason {
                Some(e @ BlockError::Content { .. }) => Some((addr, e)),
                _ => None,
            });
            if let Some((addr, e)) = nonsense {
                return Err(StoreError::corrupt(format!("manifest record {} at {addr}", file.sequence), e));
            }
            // The end, unless a later record is there: each was durable before the next was written.
            for reader in &mut copies {
                if let Some(at) = reader.later_record(file.next_block, generation, file.sequence).await? {
                    let place = format!("manifest record {} at {}", file.sequence, reader.addr(file.next_block));
                    let reason = reasons.iter().find_map(|(_, e)| e.clone());
                    let detail = reason.map_or("another record is there".into(), |e| e.to_string());
                    return Err(StoreError::corrupt(place, format!("{detail}; a later record is at {at}")));
                }
            }
            break;
        };
        bad.append(&mut last_bad);
        for (addr, reason) in reasons {
            let stale = BlockError::Content { kind: BlockKind::Manifest, addr, what: "a stale record".into() };
            last_bad.push((addr, reason.unwrap_or(stale)));
        }
        for edit in &record.edits {
            state.apply(edit).map_err(|e| StoreError::corrupt(format!("manifest record {}", record.sequence), e))?;
        }
        file.next_block += blocks;
        file.sequence += 1;
        file.prev_hash = hash;
    }
    if let Some(detail) = state.contradiction(sb.blocks) {
        return Err(StoreError::corrupt("manifest", detail));
    }
    // One copy of the last record alone may be what a crash left; of a checkpoint that the superblock knows it is rot.
    if file.sequence == 1 && generation == sb.manifest_generation {
        bad.append(&mut last_bad);
    }
    Ok(FoundManifest { records: file.sequence, file, state, bad, bad_last: last_bad })
}

/// Reads one copy of an area in large pieces.
struct AreaReader<'a> {
    queue: &'a Rc<dyn Queue>,
    sb: &'a Superblock,
    range: BlockRange,
    window: Option<(u32, DmaSlice)>,
}

const WINDOW_BLOCKS: u32 = 256;
/// How far past a bad record a later one is looked for: further than any record but a checkpoint is long.
const LOOK_AHEAD_BLOCKS: u32 = 1024;

impl<'a> AreaReader<'a> {
    fn new(queue: &'a Rc<dyn Queue>, sb: &'a Superblock, range: BlockRange) -> Self {
        AreaReader { queue, sb, range, window: None }
    }

    fn addr(&self, block: u32) -> BlockAddr {
        BlockAddr(self.range.start.0 + u64::from(block))
    }

    /// `len` blocks from `at`, as many as there are.
    async fn blocks(&mut self, at: u32, len: u32) -> Result<DmaSlice, StoreError> {
        let len = len.min(self.range.len_blocks.saturating_sub(at));
        if let Some((start, data)) = &self.window
            && *start <= at
            && (at + len - start) as usize * BLOCK_SIZE <= data.len()
        {
            let from = (at - start) as usize * BLOCK_SIZE;
            return Ok(data.slice(from..from + len as usize * BLOCK_SIZE));
        }
        let read_len = len.max(WINDOW_BLOCKS).min(self.range.len_blocks - at);
        let buf = DmaBuf::new(read_len as usize * BLOCK_SIZE);
        let data = self.queue.read(self.addr(at).bytes(), buf).await?.freeze();
        self.window = Some((at, data.clone()));
        Ok(data.slice(0..len as usize * BLOCK_SIZE))
    }

    /// The record at `block`: itself, its hash, its blocks.
    async fn record(&mut self, block: u32) -> Result<Result<(ManifestRecord, u64, u32), BlockError>, StoreError> {
        let addr = self.addr(block);
        if block >= self.range.len_blocks {
            return Ok(Err(BlockError::Length { kind: BlockKind::Manifest, addr, found: 0 }));
        }
        let first = self.blocks(block, 1).await?;
        let max_len = (self.range.len_blocks - block) as usize * BLOCK_SIZE;
        let fsid = self.sb.fsid;
        let header = match block::peek(&first, BlockKind::Manifest, MANIFEST_VERSION, addr, Some(&fsid), max_len) {
            Ok(header) => header,
            Err(e) => return Ok(Err(e)),
        };
        let blocks = (block::padded_len(header.body_len) / BLOCK_SIZE) as u32;
        let whole = self.blocks(block, blocks).await?;
        Ok(ManifestRecord::decode(&whole, addr, &fsid).map(|(record, hash, _)| (record, hash, blocks)))
    }

    /// Where an intact record of this generation lies that is later than `sequence`.
    async fn later_record(
        &mut self,
        from: u32,
        generation: u64,
        sequence: u64,
    ) -> Result<Option<BlockAddr>, StoreError> {
        for block in from + 1..self.range.len_blocks.min(from + LOOK_AHEAD_BLOCKS) {
            if let Ok((record, ..)) = self.record(block).await?
                && record.generation == generation
                && record.sequence > sequence
            {
                return Ok(Some(self.addr(block)));
            }
        }
        Ok(None)
    }
}

//! One step of a scrub on the reactor that owns the shard: a segment, or some megabytes of file data.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, DmaBuf, Epoch, Ino, Key, KeyRange, SegmentId, View, Zone, crc32c};
use vellum_format::{Dirent, Extent, ItemKind};

use super::Finding;
use crate::beyond::{Beyond, Next, left_out};
use crate::error::StoreError;
use crate::lsm::{BadBlock, Shard};
use crate::store::Store;

/// File data of one step, about.
const STEP_BYTES: u64 = 4 << 20;
/// Directories above a file that its path is looked up for.
const MAX_DEPTH: usize = 256;

const RESTORE_FILE: &str =
    "restore the file from its archive, or remove it: reading it gives an error and never wrong data";
const RESTORE_KEYS: &str =
    "keep an image of the device; what is named cannot be read: restore those files from their archive";
const WATCH: &str = "nothing is lost; watch the device";

/// Where a scrub goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    Shard {
        shard: usize,
    },
    /// Segments of the shard that are left, the next one last.
    Segments {
        shard: usize,
        left: Vec<SegmentId>,
    },
    Data {
        shard: usize,
        from: Key,
        beyond: Beyond,
    },
}

impl Cursor {
    pub fn phase(&self) -> &'static str {
        match self {
            Cursor::Shard { .. } | Cursor::Segments { .. } => "segments",
            Cursor::Data { .. } => "file data",
        }
    }
}

#[derive(Debug, Default)]
pub struct Step {
    pub bytes: u64,
    pub findings: Vec<Finding>,
    pub next: Option<Cursor>,
}

impl Store {
    pub(crate) async fn scrub_step(self: &Rc<Self>, cursor: Cursor) -> Result<Step, StoreError> {
        self.check_failed()?;
        let at = match &cursor {
            Cursor::Shard { shard } | Cursor::Segments { shard, .. } | Cursor::Data { shard, .. } => *shard,
        };
        let Some(shard) = self.shards().get(at).cloned() else { return Ok(Step::default()) };
        match cursor {
            Cursor::Shard { .. } => {
                let mut left = shard.segment_ids();
                left.reverse();
                Ok(Step { next: Some(Cursor::Segments { shard: at, left }), ..Step::default() })
            }
            Cursor::Segments { mut left, .. } => {
                let Some(id) = left.pop() else {
                    let from = shard.range().first;
                    let next = Some(Cursor::Data { shard: at, from, beyond: Beyond::default() });
                    return Ok(Step { next, ..Step::default() });
                };
                let rewritten = self.rewritten.borrow().clone();
                let scrub = shard.scrub_segment(id, &rewritten).await.unwrap_or_default();
                let findings = scrub.bad.iter().map(segment_finding).collect();
                Ok(Step { bytes: scrub.bytes, findings, next: Some(Cursor::Segments { shard: at, left }) })
            }
            Cursor::Data { from, beyond, .. } => self.scrub_data(&shard, at, from, beyond).await,
        }
    }

    async fn scrub_data(
        self: &Rc<Self>,
        shard: &Shard,
        at: usize,
        from: Key,
        mut beyond: Beyond,
    ) -> Result<Step, StoreError> {
        // From before the extents are looked up: their blocks are not used again while this runs.
        let _reading = self.reads.begin();
        let range = KeyRange { first: from, last: shard.range().last };
        let page = match shard.scan(range, Epoch(u64::MAX), beyond.items(), 1 << 20).await {
            Ok(page) => page,
            // A segment's bad block was told of already, with its keys. Behind them it goes on, if anywhere.
            Err(e) => return Ok(skip_unreadable(at, &range, beyond, &e.to_string())),
        };
        beyond.succeeded();
        let mut step = Step { next: Some(Cursor::Shard { shard: at + 1 }), ..Step::default() };
        if let Some(next) = page.next {
            step.next = Some(Cursor::Data { shard: at, from: next, beyond });
        }
        for (key, value) in &page.items {
            if step.bytes >= STEP_BYTES {
                step.next = Some(Cursor::Data { shard: at, from: *key, beyond });
                break;
            }
            if key.zone() != Some(Zone::Fs) || key.kind() != ItemKind::Extent as u8 {
                continue;
            }
            match Extent::decode(value) {
                Ok(extent) => {
                    step.bytes += extent.header.blocks().map_or(0, |blocks| blocks.len_bytes() as u64);
                    step.findings.extend(self.verify_extent(key, &extent).await);
                }
                Err(e) => step.findings.push(Finding {
                    place: format!("item {key:?}"),
                    detail: e.to_string(),
                    affects: self.path_of(Ino(key.first())).await,
                    repaired: false,
                    advice: RESTORE_FILE,
                }),
            }
        }
        Ok(step)
    }

    /// What of an extent's content is not as it says, with the file.
    pub(crate) async fn verify_extent(self: &Rc<Self>, key: &Key, extent: &Extent) -> Vec<Finding> {
        let Some(blocks) = extent.header.blocks() else { return Vec::new() };
        let bad = self.bad_blocks(blocks, &extent.checksums).await;
        if bad.is_empty() {
            return Vec::new();
        }
        let first = Extent::first_block(key, blocks.len_blocks).unwrap_or_default();
        let path = self.path_of(Ino(key.first())).await;
        bad.iter().map(|bad| data_finding(bad, blocks, first, &path)).collect()
    }

    /// Blocks whose content is not what the extent says, twice in a row: index, and what is wrong.
    async fn bad_blocks(&self, blocks: BlockRange, checksums: &[u32]) -> Vec<(u32, String)> {
        let mut bad = self.bad_blocks_once(blocks, checksums).await;
        if !bad.is_empty() {
            bad = self.bad_blocks_once(blocks, checksums).await;
        }
        bad
    }

    async fn bad_blocks_once(&self, blocks: BlockRange, checksums: &[u32]) -> Vec<(u32, String)> {
        let and_the_rest = |detail: String| vec![(0, format!("and the {} after it: {detail}", blocks.len_blocks - 1))];
        if blocks.end().is_none() {
            return and_the_rest("beyond all addresses".to_owned()); // a damaged extent may say anything
        }
        let data = match self.queue.read(blocks.start.bytes(), DmaBuf::new(blocks.len_bytes())).await {
            Ok(data) => data,
            Err(e) => return and_the_rest(e.to_string()),
        };
        let found = data.chunks(BLOCK_SIZE).map(crc32c).zip(checksums).enumerate();
        let bad = found.filter(|(_, (found, expected))| found != *expected);
        bad.map(|(i, (found, expected))| (i as u32, format!("checksum {found:#010x}, expected {expected:#010x}")))
            .collect()
    }

    /// A path of an inode, for people: by its first backref and that of each directory above.
    async fn path_of(self: &Rc<Self>, ino: Ino) -> String {
        let (mut at, mut path) = (ino, String::new());
        for _ in 0..MAX_DEPTH {
            if at == Ino::ROOT {
                return format!("{} (inode {ino})", if path.is_empty() { "/" } else { &path });
            }
            let key = |second, third, fourth| Key::fs(at, ItemKind::Backref as u8, second, third, fourth);
            let range = KeyRange { first: key(0, 0, 0), last: key(u64::MAX, u64::MAX, u8::MAX) };
            let page = self.scan(range, 1, 4096, View::Applied).await.ok();
            let entry = page.and_then(|page| Dirent::decode(&page.items.first()?.1).ok());
            let Some(entry) = entry else { break };
            path = format!("/{}{path}", String::from_utf8_lossy(&entry.name));
            at = entry.ino;
        }
        if path.is_empty() { format!("inode {ino}") } else { format!("..{path} (inode {ino})") }
    }
}

fn segment_finding(bad: &BadBlock) -> Finding {
    let affects = if bad.repaired { String::new() } else { keys(&bad.keys) };
    let advice = if bad.repaired { WATCH } else { RESTORE_KEYS };
    Finding { place: "segment".into(), detail: bad.error.to_string(), affects, repaired: bad.repaired, advice }
}

/// A key range as an operator can use it.
fn keys(range: &KeyRange) -> String {
    let (first, last) = (&range.first, &range.last);
    match (first.zone(), last.zone()) {
        (Some(Zone::Fs), Some(Zone::Fs)) if first.first() == last.first() => format!("inode {}", first.first()),
        (Some(Zone::Fs), Some(Zone::Fs)) => format!("inodes {} to {}", first.first(), last.first()),
        (Some(Zone::Fs), _) => format!("inodes {} and above, in the items up to {last:?}", first.first()),
        _ => format!("items {first:?} to {last:?}"),
    }
}

fn data_finding((index, detail): &(u32, String), blocks: BlockRange, first_block: u64, path: &str) -> Finding {
    // A forged extent may begin beyond what any file has.
    let byte = (u128::from(first_block) + u128::from(*index)) * BLOCK_SIZE as u128;
    Finding {
        place: format!("block {}", blocks.start.0 + u64::from(*index)),
        detail: detail.clone(),
        affects: format!("{path}, 4096 bytes from byte {byte}"),
        repaired: false,
        advice: RESTORE_FILE,
    }
}

/// Goes on behind what cannot be listed.
fn skip_unreadable(at: usize, range: &KeyRange, mut beyond: Beyond, why: &str) -> Step {
    let from = range.first;
    let next = match beyond.failed(&from, &range.last) {
        Next::Again => {
            let next = Some(Cursor::Data { shard: at, from, beyond });
            return Step { next, ..Step::default() };
        }
        Next::From(next) => Some(next),
        Next::End => None,
    };
    let finding = Finding {
        place: format!("items from {from:?}"),
        detail: why.into(),
        affects: format!("{}: not read, and their data not verified", left_out(&from, next.as_ref())),
        repaired: false,
        advice: RESTORE_KEYS,
    };
    let next = match next {
        Some(from) => Cursor::Data { shard: at, from, beyond },
        None => Cursor::Shard { shard: at + 1 },
    };
    Step { bytes: 0, findings: vec![finding], next: Some(next) }
}

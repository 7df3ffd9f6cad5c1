//! Reading, verifying, repairing and writing the superblock and its copy.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockAddr, DmaBuf};
use vellum_format::superblock::{FORMAT_VERSION, KNOWN};
use vellum_format::{BlockError, Superblock};
use vellum_nvme::{Device, Geometry, Queue};

use crate::error::StoreError;
use crate::layout::{Layout, MIN_BYTES, MIN_CHUNK};

/// Reads in flight while the copy is searched for.
const SEARCH_DEPTH: usize = 64;

/// What was found, and whether one of the two had to be written again.
#[derive(Debug)]
pub struct FoundSuperblock {
    pub superblock: Superblock,
    /// Places whose block did not verify, with the reason.
    pub bad: Vec<(BlockAddr, BlockError)>,
}

pub(crate) async fn read_at(
    queue: &Rc<dyn Queue>,
    at: BlockAddr,
) -> Result<Result<Superblock, BlockError>, StoreError> {
    let buf = queue.read(at.bytes(), DmaBuf::new(BLOCK_SIZE)).await?;
    Ok(Superblock::decode(&buf, at))
}

/// The superblock, also of a device that is served: each copy is verified by itself.
pub async fn look(queue: &Rc<dyn Queue>) -> Result<Superblock, StoreError> {
    Ok(read(queue).await?.superblock)
}

/// Finds the newest intact superblock. The copy's place follows from the first one, or, when that is bad, from the
/// device's size; and when it is not there, the filesystem is smaller than its device, and every place where a chunk may
/// end is looked at.
pub async fn read(queue: &Rc<dyn Queue>) -> Result<FoundSuperblock, StoreError> {
    // It may have grown since it was opened.
    let geometry = Geometry { size_bytes: queue.look_at_size()?, ..queue.geometry().clone() };
    let first = read_at(queue, BlockAddr(0)).await?;
    let copy_at = match &first {
        Ok(sb) => Some(sb.copy),
        Err(BlockError::Magic { .. }) => by_rule(geometry.size_bytes),
        Err(_) => match by_rule(geometry.size_bytes) {
            Some(at) if read_at(queue, at).await?.is_ok() => Some(at),
            at => search(queue, geometry.size_bytes).await?.or(at),
        },
    };
    let Some(copy_at) = copy_at.filter(|at| at.bytes() < geometry.size_bytes) else {
        return Err(match first {
            Ok(sb) => truncated(&sb, &geometry.name, geometry.size_bytes),
            Err(e @ BlockError::Magic { .. }) => StoreError::NotVellum { device: geometry.name, detail: e.to_string() },
            Err(e) => e.into(),
        });
    };
    let copy = read_at(queue, copy_at).await?;
    let mut bad = Vec::new();
    let superblock = match (first, copy) {
        (Ok(a), Ok(b)) if a.fsid != b.fsid => {
            return Err(StoreError::corrupt("superblock", "the two copies belong to different filesystems"));
        }
        (Ok(a), Ok(b)) => {
            if a.generation >= b.generation {
                a
            } else {
                b
            }
        }
        (Ok(a), Err(e)) => {
            bad.push((copy_at, e));
            a
        }
        (Err(e), Ok(b)) => {
            bad.push((BlockAddr(0), e));
            b
        }
        (Err(e), Err(_)) if matches!(e, BlockError::Magic { .. }) => {
            return Err(StoreError::NotVellum { device: geometry.name, detail: e.to_string() });
        }
        (Err(e), Err(_)) => return Err(e.into()),
    };
    check(&superblock, &geometry.name, geometry.size_bytes)?;
    Ok(FoundSuperblock { superblock, bad })
}

fn by_rule(size_bytes: u64) -> Option<BlockAddr> {
    Layout::of(size_bytes).ok().map(|l| l.copy)
}

/// The newest copy on the whole device. Chunks end at multiples of the smallest chunk.
async fn search(queue: &Rc<dyn Queue>, size_bytes: u64) -> Result<Option<BlockAddr>, StoreError> {
    let place = |i: u64| BlockAddr(i * (MIN_CHUNK / BLOCK_SIZE as u64) - 1);
    let mut best: Option<((u64, u64), BlockAddr)> = None;
    let last = size_bytes / MIN_CHUNK;
    for from in (1..=last).step_by(SEARCH_DEPTH) {
        let places = (from..=last).take(SEARCH_DEPTH).map(place);
        let reads: Vec<_> = places.map(|at| (at, queue.read(at.bytes(), DmaBuf::new(BLOCK_SIZE)))).collect();
        for (at, read) in reads {
            if let Ok(sb) = Superblock::decode(&read.await?, at) {
                best = best.max(Some(((sb.created, sb.generation), at)));
            }
        }
    }
    Ok(best.map(|(_, at)| at))
}

fn check(sb: &Superblock, device: &str, size_bytes: u64) -> Result<(), StoreError> {
    if sb.areas_overlap() {
        return Err(StoreError::corrupt("superblock", "an area lies on another one, or on a superblock"));
    }
    if sb.format_version > FORMAT_VERSION || sb.format_version == 0 {
        return Err(StoreError::FormatVersion { found: sb.format_version, known: FORMAT_VERSION });
    }
    let unknown = sb.features.incompatible & !KNOWN.incompatible;
    if unknown != 0 {
        return Err(StoreError::Features { bits: unknown, forbid: "opening" });
    }
    if sb.blocks * BLOCK_SIZE as u64 > size_bytes {
        return Err(truncated(sb, device, size_bytes));
    }
    Ok(())
}

pub(crate) fn truncated(sb: &Superblock, device: &str, size_bytes: u64) -> StoreError {
    let needed = sb.blocks.saturating_mul(BLOCK_SIZE as u64);
    StoreError::Truncated { device: device.into(), found: size_bytes, needed }
}

/// Which filesystem is on the device.
pub async fn fsid(queue: &Rc<dyn Queue>) -> Result<vellum_base::Fsid, StoreError> {
    Ok(read(queue).await?.superblock.fsid)
}

/// Bits that forbid writing.
pub fn forbids_writing(sb: &Superblock) -> Option<StoreError> {
    let unknown = sb.features.read_only & !KNOWN.read_only;
    (unknown != 0).then_some(StoreError::Features { bits: unknown, forbid: "writing" })
}

/// Writes both, one after the other with a flush between, so that at every instant one of them is whole.
pub async fn write(queue: &Rc<dyn Queue>, sb: &Superblock) -> Result<(), StoreError> {
    write_in_order(queue, sb, [BlockAddr(0), sb.copy]).await
}

/// As [`write`], for a copy at a new place: it is there before block 0 names it.
pub async fn write_copy_first(queue: &Rc<dyn Queue>, sb: &Superblock) -> Result<(), StoreError> {
    write_in_order(queue, sb, [sb.copy, BlockAddr(0)]).await
}

async fn write_in_order(queue: &Rc<dyn Queue>, sb: &Superblock, places: [BlockAddr; 2]) -> Result<(), StoreError> {
    for at in places {
        queue.write(at.bytes(), DmaBuf::copy_from(&sb.encode(at), true).freeze(), false).await?;
        queue.flush().await?;
    }
    Ok(())
}

/// Refuses to overwrite a filesystem by mistake, also one that is damaged, truncated, or of a newer version: only where
/// no superblock begins is there none.
pub async fn refuse_existing(device: &dyn Device, queue: &Rc<dyn Queue>) -> Result<(), StoreError> {
    if device.geometry().size_bytes < MIN_BYTES {
        return Ok(()); // the layout says so better
    }
    let fsid = match read(queue).await {
        Ok(found) => found.superblock.fsid.to_string(),
        Err(StoreError::NotVellum { .. }) => return Ok(()),
        Err(StoreError::Device(e)) => return Err(e.into()),
        Err(StoreError::FormatVersion { .. } | StoreError::Features { .. }) => "of a newer version".into(),
        Err(e) => format!("unknown: {e}"),
    };
    Err(StoreError::Exists { device: device.geometry().name.clone(), fsid })
}

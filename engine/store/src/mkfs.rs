//! Makes an empty filesystem: superblocks, the first manifest, nothing else. The root directory is the first client's.
//!
//! The old superblocks are wiped first and the new ones come last, so a crash on the way leaves no filesystem rather
//! than a mixture of two.

use std::rc::Rc;
use std::sync::Arc;

use vellum_base::{BLOCK_SIZE, BlockAddr, ChunkIndex, DmaBuf, Epoch, Fsid, LogId, SegmentId, ShardId};
use vellum_format::superblock::{FORMAT_VERSION, Features, MAX_SLOTS, SLOT_BYTES, SPLIT_SHARDS};
use vellum_format::{ChunkUse, ManifestEdit, Superblock};
use vellum_nvme::{Device, Queue};

use crate::error::StoreError;
use crate::layout::Layout;
use crate::manifest::{ManifestFile, ManifestState, use_chunks};
use crate::options::MkfsOptions;
use crate::superblock;

pub async fn mkfs(
    device: &Arc<dyn Device>,
    queue: &Rc<dyn Queue>,
    options: MkfsOptions,
) -> Result<Superblock, StoreError> {
    check(&options)?;
    let device_bytes = device.geometry().size_bytes;
    let size = options.size.unwrap_or(device_bytes);
    if size > device_bytes {
        return Err(StoreError::Options(format!("the device has {device_bytes} bytes, not {size}")));
    }
    let layout = Layout::of(size)?;
    if !options.force {
        superblock::refuse_existing(&**device, queue).await?;
    }
    let mut fsid = [0u8; 16];
    fsid[..8].copy_from_slice(&vellum_rt::random_u64().to_le_bytes());
    fsid[8..].copy_from_slice(&vellum_rt::random_u64().to_le_bytes());
    let mut sb = Superblock {
        fsid: Fsid(fsid),
        generation: 0,
        format_version: FORMAT_VERSION,
        features: Features { incompatible: SPLIT_SHARDS, ..Features::default() },
        blocks: u64::from(layout.chunks) * u64::from(layout.chunk_blocks),
        chunk_blocks: layout.chunk_blocks,
        copy: layout.copy,
        slots_area: layout.slots_area,
        manifest: layout.manifest,
        manifest_generation: 0,
        metadata_copies: options.metadata_copies,
        created: vellum_rt::wall_clock().secs.max(0) as u64,
        slots: options.slots.iter().map(|s| s.clone().into_bytes()).collect(),
    };
    sb.slots.resize(MAX_SLOTS, Vec::new());
    wipe(queue, &sb).await?;
    let state = first_state(&layout, options.shards)?;
    ManifestFile::unwritten().checkpoint(queue, &mut sb, &state).await?;
    Ok(sb)
}

fn check(options: &MkfsOptions) -> Result<(), StoreError> {
    if !options.shards.is_power_of_two() || options.shards > 256 {
        return Err(StoreError::Options(format!("{} shards: a power of two up to 256 is needed", options.shards)));
    }
    if !matches!(options.metadata_copies, 1 | 2) {
        return Err(StoreError::Options(format!("{} metadata copies: 1 or 2", options.metadata_copies)));
    }
    if options.slots.len() > MAX_SLOTS || options.slots.iter().any(|s| s.len() >= SLOT_BYTES) {
        return Err(StoreError::Options(format!("at most {MAX_SLOTS} slots of less than {SLOT_BYTES} bytes")));
    }
    Ok(())
}

/// Old superblocks and old manifests go, and with a random fsid nothing else of an old filesystem verifies.
async fn wipe(queue: &Rc<dyn Queue>, sb: &Superblock) -> Result<(), StoreError> {
    let old_copy = superblock::read(queue).await.ok().map(|found| found.superblock.copy);
    let zeros = DmaBuf::zeroed(BLOCK_SIZE).freeze();
    let manifests = sb.manifest.iter().flatten().map(|area| area.start);
    let slots = sb.slots_area;
    let slots = (0..u64::from(slots.len_blocks)).map(|i| BlockAddr(slots.start.0 + i));
    for at in [BlockAddr(0), sb.copy].into_iter().chain(old_copy).chain(manifests).chain(slots) {
        queue.write(at.bytes(), zeros.clone(), false).await?;
    }
    Ok(queue.flush().await?)
}

fn first_state(layout: &Layout, shards: u32) -> Result<ManifestState, StoreError> {
    let mut state = ManifestState::default();
    let mut edits = vec![ManifestEdit::Chunks { first: ChunkIndex(0), count: layout.chunks, used_for: ChunkUse::Free }];
    edits.extend(use_chunks(&layout.fixed_chunks().collect::<Vec<_>>(), ChunkUse::Fixed));
    edits.push(ManifestEdit::NextIds { segment: SegmentId(1), log: LogId(1) });
    let width = 256 / shards;
    edits.extend((0..shards).map(|i| ManifestEdit::Shard {
        id: ShardId(i),
        first_bucket: (i * width) as u8,
        last_bucket: ((i + 1) * width - 1) as u8,
        flushed_through: Epoch::NONE,
    }));
    for edit in &edits {
        state.apply(edit).map_err(|e| StoreError::corrupt("first manifest", e))?;
    }
    Ok(state)
}

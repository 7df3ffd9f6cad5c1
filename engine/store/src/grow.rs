//! A device became larger: the filesystem takes in the new space while it is served.
//!
//! ```text
//!  1 superblock, new copy first: more blocks, the copy's new place    (the chunk table is shorter: the rest is nobody's)
//!  2 manifest edit: the new chunks, free; the copy's, fixed           (now there is more space)
//!  3 where the chunk table could outgrow the manifest: a checkpoint into larger areas in the new space, then the
//!    superblock that names them; an edit frees the old ones
//! ```
//! Invariant: the chunk table follows the superblock, never the other way. A crash after any write leaves a superblock
//! that is the old or the new one; [`fit_table`] makes the table fit it at the next open, as step 2 does.

use std::collections::BTreeSet;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockAddr, BlockRange, ChunkIndex, DmaBuf};
use vellum_format::{ChunkUse, ManifestEdit, Superblock};
use vellum_nvme::Queue;

use crate::central::Central;
use crate::env::COORDINATOR;
use crate::error::StoreError;
use crate::layout::{Grown, Layout};
use crate::manifest::{ManifestState, use_chunks};
use crate::mesh::{Answer, Request};
use crate::store::Store;
use crate::superblock::truncated;

/// What taking in a larger device came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub before_bytes: u64,
    /// The same when the device has not a whole chunk more.
    pub after_bytes: u64,
    pub device_bytes: u64,
}

fn chunk_indexes(range: &BlockRange, chunk_blocks: u32) -> impl Iterator<Item = u32> + use<> {
    let of = move |block: u64| (block / u64::from(chunk_blocks)) as u32;
    of(range.start.0)..of(range.start.0 + u64::from(range.len_blocks) - 1) + 1
}

/// Chunks that hold a structure that the superblock names, or itself.
fn fixed_chunks(sb: &Superblock) -> BTreeSet<u32> {
    let alone = |addr| BlockRange { start: addr, len_blocks: 1 };
    let places = [alone(BlockAddr(0)), sb.slots_area, alone(sb.copy)];
    let places = places.iter().chain(sb.manifest.iter().flatten());
    places.flat_map(|place| chunk_indexes(place, sb.chunk_blocks)).collect()
}

/// Edits that make the chunk table fit the superblock: as long as the device, and fixed where the superblock says so and
/// nowhere else. None on a filesystem whose growth was not interrupted.
pub(crate) fn fit_table(state: &ManifestState, sb: &Superblock) -> Result<Vec<ManifestEdit>, StoreError> {
    let (known, chunks) = (state.chunks.len() as u32, sb.chunks());
    if known > chunks {
        let detail = format!("it has {known} chunks, and the superblock {chunks}");
        return Err(StoreError::corrupt("chunk table", detail));
    }
    let fixed = fixed_chunks(sb);
    let used = |chunk: &u32| state.chunks.get(*chunk as usize).copied().unwrap_or_default();
    if let Some(chunk) = fixed.iter().find(|chunk| !matches!(used(chunk), ChunkUse::Fixed | ChunkUse::Free)) {
        let detail = format!("the superblock has a structure there, and the table says {:?}", used(chunk));
        return Err(StoreError::corrupt(format!("chunk {chunk}"), detail));
    }
    let mut edits = Vec::new();
    if known < chunks {
        let (first, count) = (ChunkIndex(known), chunks - known);
        edits.push(ManifestEdit::Chunks { first, count, used_for: ChunkUse::Free });
    }
    let left: Vec<ChunkIndex> =
        (0..known).filter(|chunk| used(chunk) == ChunkUse::Fixed && !fixed.contains(chunk)).map(ChunkIndex).collect();
    let new: Vec<ChunkIndex> =
        fixed.iter().filter(|chunk| used(chunk) != ChunkUse::Fixed).map(|chunk| ChunkIndex(*chunk)).collect();
    edits.extend(use_chunks(&left, ChunkUse::Free));
    edits.extend(use_chunks(&new, ChunkUse::Fixed));
    Ok(edits)
}

/// A growth that ended between its two superblocks left one beyond the filesystem's end, just where the copy of a damaged
/// block 0 is looked for. It goes, before it is older than what it would be taken for.
pub(crate) async fn forget_unfinished(queue: &Rc<dyn Queue>, sb: &Superblock) -> Result<(), StoreError> {
    let Ok(layout) = Layout::of(queue.look_at_size()?) else { return Ok(()) };
    if layout.copy.0 < sb.blocks {
        return Ok(());
    }
    let found = queue.read(layout.copy.bytes(), DmaBuf::new(BLOCK_SIZE)).await?;
    if Superblock::decode(&found, layout.copy).is_ok_and(|left| left.fsid == sb.fsid) {
        queue.write(layout.copy.bytes(), DmaBuf::zeroed(BLOCK_SIZE).freeze(), false).await?;
    }
    Ok(())
}

impl Central {
    async fn take_in(&self, grown: &Grown) -> Result<(), StoreError> {
        let (before, chunk_blocks) = (self.manifest.superblock().chunks(), self.manifest.chunk_blocks());
        let sb = self.manifest.enlarge(grown.blocks, grown.copy).await?;
        let mut edits = fit_table(&self.manifest.state(), &sb)?;
        if let Some(areas) = &grown.manifest {
            let chunks = areas.iter().flatten().flat_map(|area| chunk_indexes(area, chunk_blocks));
            edits.extend(use_chunks(&chunks.map(ChunkIndex).collect::<Vec<_>>(), ChunkUse::Fixed));
        }
        self.manifest.edit(edits).await?;
        if let Some(areas) = grown.manifest {
            let sb = self.manifest.move_areas(areas).await?;
            let edits = fit_table(&self.manifest.state(), &sb)?;
            self.manifest.edit(edits).await?;
        }
        let reserve = self.reserve_chunks.get() + share(sb.chunks()) - share(before);
        self.reserve_chunks.set(reserve);
        Ok(())
    }
}

/// Chunks of the reserve that depend on the device's size.
pub(crate) fn share(chunks: u32) -> usize {
    (u64::from(chunks) / 32).max(4) as usize
}

impl Store {
    /// Takes in what the device has become larger by. May be asked of any reactor. Nothing changes, and that is no error,
    /// when there is not a whole chunk more; [`StoreError::Truncated`] when the device is smaller than the filesystem.
    pub async fn grow(self: &Rc<Self>) -> Result<Growth, StoreError> {
        match self.ask(COORDINATOR, Request::Grow).await? {
            Answer::Grown(growth) => Ok(growth),
            _ => Err(StoreError::Closed),
        }
    }

    pub(crate) async fn grow_here(self: &Rc<Self>, central: &Rc<Central>) -> Result<Growth, StoreError> {
        self.check_writable()?;
        let _turn = central.growing.lock().await;
        let device_bytes = self.queue.look_at_size()?;
        let sb = central.manifest.superblock();
        let before_bytes = sb.blocks * BLOCK_SIZE as u64;
        if device_bytes < before_bytes {
            return Err(truncated(&sb, &self.queue.geometry().name, device_bytes));
        }
        let Some(grown) = Grown::of(&sb, device_bytes) else {
            return Ok(Growth { before_bytes, after_bytes: before_bytes, device_bytes });
        };
        // Whoever reads or frees blocks there knows of them before anybody is given one.
        for reactor in self.mesh.all() {
            self.ask(reactor, Request::Extend { blocks: grown.blocks }).await?;
        }
        if let Err(e) = central.take_in(&grown).await {
            self.fail(format!("grow: {e}")); // what is on the device is not known: the next open looks
            return Err(e);
        }
        self.room.notify_all();
        Ok(Growth { before_bytes, after_bytes: grown.blocks * BLOCK_SIZE as u64, device_bytes })
    }
}

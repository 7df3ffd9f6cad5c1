//! The manifest: which chunks, shards, segments, logs and runs there are. Owned by the coordinator (reactor 0).
//!
//! `state` is what the edits add up to, `file` how they lie on the device, and [`Manifest`] takes edits from tasks and
//! makes them durable in order, many in one record. Neither it nor a flush ever waits for an epoch.

mod file;
mod state;

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use vellum_base::{BlockAddr, BlockRange, ChunkIndex, DmaBuf};
use vellum_format::{ChunkUse, ManifestEdit, Superblock};
use vellum_nvme::Queue;
use vellum_rt::local::{Mutex, OneshotSender, oneshot};
use vellum_rt::{Class, spawn};

pub use file::{FoundManifest, ManifestFile, read};
pub use state::{ManifestState, ShardState, use_chunks};

use crate::error::StoreError;
use crate::superblock;

/// What one reactor hands to another: everything of an open manifest but its queue.
#[derive(Debug, Clone)]
pub struct ManifestSeed {
    pub superblock: Superblock,
    pub file: ManifestFile,
    pub state: ManifestState,
}

type Done = OneshotSender<Result<(), StoreError>>;

pub struct Manifest {
    queue: Rc<dyn Queue>,
    superblock: RefCell<Superblock>,
    /// With every edit that was handed in; the device follows.
    state: RefCell<ManifestState>,
    file: Cell<ManifestFile>,
    pending: RefCell<Vec<(Vec<ManifestEdit>, Done)>>,
    writing: Cell<bool>,
    /// Whoever writes the manifest or the superblock; taken before `pending` is.
    turn: Mutex<()>,
    failed: RefCell<Option<StoreError>>,
    cursor: Cell<usize>,
}

impl Manifest {
    pub fn new(queue: Rc<dyn Queue>, seed: ManifestSeed) -> Rc<Manifest> {
        Rc::new(Manifest {
            queue,
            superblock: RefCell::new(seed.superblock),
            state: RefCell::new(seed.state),
            file: Cell::new(seed.file),
            pending: RefCell::default(),
            writing: Cell::new(false),
            turn: Mutex::new(()),
            failed: RefCell::default(),
            cursor: Cell::new(0),
        })
    }

    pub fn state(&self) -> Ref<'_, ManifestState> {
        self.state.borrow()
    }

    pub fn generation(&self) -> u64 {
        self.file.get().generation
    }

    /// The superblock with other slots, durable in both copies. Checkpoints write the same superblock: one at a time.
    pub async fn change_slots(&self, slots: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let before = self.superblock();
        let sb = Superblock { slots, generation: before.generation + 1, ..before };
        let written = superblock::write(&self.queue, &sb).await;
        self.settle(written, sb)
    }

    /// Applies `edits` in memory at once and ends when they, and all before them, are durable.
    pub async fn edit(self: &Rc<Self>, edits: Vec<ManifestEdit>) -> Result<(), StoreError> {
        if let Some(failed) = &*self.failed.borrow() {
            return Err(failed.clone());
        }
        {
            let mut state = self.state.borrow_mut();
            for edit in &edits {
                state.apply(edit).map_err(|e| StoreError::corrupt("manifest", e))?;
            }
        }
        let (done, wait) = oneshot();
        self.pending.borrow_mut().push((edits, done));
        if !self.writing.replace(true) {
            // A task of its own: who asked may go away, the record is written all the same.
            spawn(Class::Commit, "manifest", self.clone().write_pending()).detach();
        }
        wait.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn write_pending(self: Rc<Self>) {
        loop {
            let _turn = self.turn.lock().await;
            let batch = self.pending.take();
            if batch.is_empty() {
                break;
            }
            let (edits, waiters): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let result = match self.failed.borrow().clone() {
                Some(failed) => Err(failed),
                None => Ok(()),
            };
            let result = match result {
                Ok(()) => self.write(&edits.concat()).await,
                failed => failed,
            };
            if let Err(e) = &result {
                self.failed.borrow_mut().get_or_insert_with(|| e.clone());
            }
            for waiter in waiters {
                let _ = waiter.send(result.clone()); // the asker may be gone
            }
        }
        self.writing.set(false);
    }

    async fn write(&self, edits: &[ManifestEdit]) -> Result<(), StoreError> {
        let (mut file, sb) = (self.file.get(), self.superblock());
        if !file.append(&self.queue, &sb, edits).await? {
            return self.checkpoint(file, sb).await;
        }
        self.file.set(file);
        Ok(())
    }

    /// Who calls it has the turn.
    async fn checkpoint(&self, mut file: ManifestFile, mut sb: Superblock) -> Result<(), StoreError> {
        // The state may hold edits that are still pending: they come again as records, so those must be harmless.
        // They would not be (a segment added twice): everything pending is part of this checkpoint instead.
        let state = self.state.borrow().clone();
        let covered = self.pending.take();
        let result = file.checkpoint(&self.queue, &mut sb, &state).await;
        for (_, waiter) in covered {
            let _ = waiter.send(result.clone());
        }
        self.settle(result, sb)?;
        self.file.set(file);
        Ok(())
    }

    /// After a write of the superblock. When it failed the device may have the new one, the old one or both, and what is
    /// written by either could be lost: nothing is written any more.
    fn settle(&self, written: Result<(), StoreError>, sb: Superblock) -> Result<(), StoreError> {
        match &written {
            Ok(()) => *self.superblock.borrow_mut() = sb,
            Err(e) => drop(self.failed.borrow_mut().get_or_insert_with(|| e.clone())),
        }
        written
    }

    /// Makes the superblock say, durably, that the filesystem has so many blocks, and its copy a new place.
    pub async fn enlarge(&self, blocks: u64, copy: BlockAddr) -> Result<Superblock, StoreError> {
        let _turn = self.turn.lock().await;
        let before = self.superblock();
        let sb = Superblock { blocks, copy, generation: before.generation + 1, ..before };
        let written = superblock::write_copy_first(&self.queue, &sb).await;
        self.settle(written, sb.clone())?;
        Ok(sb)
    }

    /// A checkpoint to other areas; the old ones are nobody's afterwards.
    pub async fn move_areas(&self, areas: [[BlockRange; 2]; 2]) -> Result<Superblock, StoreError> {
        let _turn = self.turn.lock().await;
        let sb = Superblock { manifest: areas, ..self.superblock() };
        self.checkpoint(self.file.get(), sb).await?;
        Ok(self.superblock())
    }

    /// Reads both superblocks and writes again what is not as it is here; those places, and what was wrong.
    pub async fn verify_superblocks(&self) -> Result<Vec<(BlockAddr, String)>, StoreError> {
        let _turn = self.turn.lock().await;
        let sb = self.superblock();
        let mut bad = Vec::new();
        for at in [BlockAddr(0), sb.copy] {
            let error = match superblock::read_at(&self.queue, at).await {
                Ok(Ok(found)) if found == sb => continue,
                Ok(Ok(found)) => format!("it is of generation {}, and {} was written", found.generation, sb.generation),
                Ok(Err(e)) => e.to_string(),
                Err(e) => e.to_string(),
            };
            self.queue.write(at.bytes(), DmaBuf::copy_from(&sb.encode(at), true).freeze(), false).await?;
            self.queue.flush().await?;
            bad.push((at, error));
        }
        Ok(bad)
    }

    /// Reads both copies of the manifest; when not every record of both is what was written, a checkpoint takes their
    /// place. What was wrong.
    pub async fn verify(&self) -> Result<Vec<String>, StoreError> {
        let _turn = self.turn.lock().await;
        let sb = self.superblock();
        let bad: Vec<String> = match file::read(&self.queue, &sb).await {
            Ok(found) => {
                let damage = found.bad.iter().chain(&found.bad_last).map(|(_, e)| e.to_string());
                let short = (found.file != self.file.get())
                    .then(|| format!("its last {} records are lost", self.file.get().records_after(&found.file)));
                damage.chain(short).collect()
            }
            Err(e) => vec![e.to_string()],
        };
        if !bad.is_empty() {
            self.checkpoint(self.file.get(), sb).await?;
        }
        Ok(bad)
    }

    pub fn superblock(&self) -> Superblock {
        self.superblock.borrow().clone()
    }

    /// Takes up to `count` free chunks, leaving `keep` of them free; durable before it answers. At least one, or
    /// [`StoreError::NoSpace`].
    pub async fn alloc_chunks(
        self: &Rc<Self>,
        used_for: ChunkUse,
        count: usize,
        keep: usize,
    ) -> Result<Vec<ChunkIndex>, StoreError> {
        let picked = {
            let state = self.state.borrow();
            let count = count.min(state.free_chunks().saturating_sub(keep));
            state.pick_free(count, self.cursor.get())
        };
        let Some(last) = picked.last() else { return Err(StoreError::NoSpace) };
        self.cursor.set(last.0 as usize + 1);
        self.edit(use_chunks(&picked, used_for)).await?;
        Ok(picked)
    }

    pub fn chunk_blocks(&self) -> u32 {
        self.superblock.borrow().chunk_blocks
    }
}

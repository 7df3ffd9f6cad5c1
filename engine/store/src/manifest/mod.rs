//! The manifest: which chunks, shards, segments, logs and runs there are. Owned by the coordinator (reactor 0).
//!
//! `state` is what the edits add up to, `file` how they lie on the device, and [`Manifest`] takes edits from tasks and
//! makes them durable in order, many in one record. Neither it nor a flush ever waits for an epoch.

mod file;
mod state;

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use vellum_base::ChunkIndex;
use vellum_format::{ChunkUse, ManifestEdit, Superblock};
use vellum_nvme::Queue;
use vellum_rt::local::{Mutex, OneshotSender, oneshot};
use vellum_rt::{Class, spawn};

pub use file::{FoundManifest, ManifestFile, read};
pub use state::{ManifestState, use_chunks};

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
    superblock_turn: Mutex<()>,
    /// With every edit that was handed in; the device follows.
    state: RefCell<ManifestState>,
    file: Cell<ManifestFile>,
    pending: RefCell<Vec<(Vec<ManifestEdit>, Done)>>,
    writing: Cell<bool>,
    failed: RefCell<Option<StoreError>>,
    cursor: Cell<usize>,
}

impl Manifest {
    pub fn new(queue: Rc<dyn Queue>, seed: ManifestSeed) -> Rc<Manifest> {
        Rc::new(Manifest {
            queue,
            superblock: RefCell::new(seed.superblock),
            superblock_turn: Mutex::new(()),
            state: RefCell::new(seed.state),
            file: Cell::new(seed.file),
            pending: RefCell::default(),
            writing: Cell::new(false),
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
        let _turn = self.superblock_turn.lock().await;
        let mut sb = self.superblock.borrow().clone();
        sb.slots = slots;
        sb.generation += 1;
        superblock::write(&self.queue, &sb).await?;
        *self.superblock.borrow_mut() = sb;
        Ok(())
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
        let _turn = self.superblock_turn.lock().await;
        let (mut file, mut sb) = (self.file.get(), self.superblock.borrow().clone());
        if !file.append(&self.queue, &sb, edits).await? {
            // The state may hold edits that are still pending: they come again as records, so those must be harmless.
            // They would not be (a segment added twice): everything pending is part of this checkpoint instead.
            let state = self.state.borrow().clone();
            let covered = self.pending.take();
            let result = file.checkpoint(&self.queue, &mut sb, &state).await;
            for (_, waiter) in covered {
                let _ = waiter.send(result.clone());
            }
            result?;
            *self.superblock.borrow_mut() = sb;
        }
        self.file.set(file);
        Ok(())
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

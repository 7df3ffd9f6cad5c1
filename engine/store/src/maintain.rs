//! Background work of one reactor: freezing and flushing memtables, trimming the log. (Merging is in `compactions`, splitting
//! in `split`.)

use std::rc::Rc;

use vellum_base::{Epoch, Mutant, mutant};
use vellum_format::ManifestEdit;

use crate::error::StoreError;
use crate::lsm::{Edit, Shard};
use crate::store::Store;

impl Store {
    /// Runs until the store stops; woken when an epoch is durable, when room is short, and on demand.
    pub(crate) async fn maintenance(self: Rc<Self>) {
        while !self.stopped.get() && self.failed.borrow().is_none() {
            self.maintain.notified().await;
            if self.stopping.get() {
                continue; // the shutdown does it itself
            }
            match self.maintain_once().await {
                Ok(()) => {}
                Err(StoreError::NoSpace) => {
                    self.give_up_split(); // what it holds back could make room
                    tracing::warn!(reactor = self.me.0, "no space to flush a memtable; trying again later");
                    vellum_rt::sleep(std::time::Duration::from_millis(20)).await;
                    self.maintain.notify_one();
                }
                Err(e) => self.fail(e),
            }
        }
        self.give_up_split(); // who asked for it is told
    }

    async fn maintain_once(self: &Rc<Self>) -> Result<(), StoreError> {
        loop {
            let pressing = self.log.borrow().as_ref().and_then(|log| log.pressing_epoch()).unwrap_or_default();
            let through = self.flush_through.get().max(pressing);
            self.freeze(through);
            let mut worked = self.flush_frozen().await?;
            worked |= self.advance_idle(through).await?;
            worked |= self.trim_log(pressing > Epoch::NONE).await?;
            worked |= self.split_if_wanted().await?;
            self.start_compactions();
            if !worked {
                return Ok(());
            }
            self.room.notify_all();
        }
    }

    /// Freezes what is full and what holds anything at or before `through`.
    fn freeze(&self, through: Epoch) {
        let open = mutant::active(Mutant::FreezeOpenEpoch);
        let closed = if open { self.epochs.borrow().open() } else { self.epochs.borrow().closed() };
        for shard in &*self.shards() {
            if shard.wants_freeze() || shard.unflushed_from().is_some_and(|from| from <= through) {
                shard.freeze(closed);
            }
        }
    }

    async fn flush_frozen(self: &Rc<Self>) -> Result<bool, StoreError> {
        let mut worked = false;
        for shard in &*self.shards() {
            while let Some(edit) = shard.flush(self.durable.get()).await? {
                self.commit_edit(shard, edit).await?;
                worked = true;
            }
        }
        Ok(worked)
    }

    /// Makes a shard's edit durable, then visible. Its segments are on the medium: the manifest must not name what is still
    /// in a volatile cache.
    pub(crate) async fn commit_edit(self: &Rc<Self>, shard: &Rc<Shard>, edit: Edit) -> Result<(), StoreError> {
        let id = shard.id();
        // Removals first: a segment that moves to another level is in both lists.
        let mut edits: Vec<ManifestEdit> =
            edit.removed.iter().map(|segment| ManifestEdit::SegmentRemove { shard: id, segment: *segment }).collect();
        edits.extend(edit.added.iter().map(|(level, meta)| ManifestEdit::SegmentAdd {
            shard: id,
            level: *level as u8,
            meta: meta.clone(),
        }));
        edits.push(ManifestEdit::FlushedThrough { shard: id, epoch: edit.flushed_through });
        match self.edit_manifest(edits).await {
            Ok(()) => {
                shard.install(&edit);
                Ok(())
            }
            Err(e) => {
                shard.abandon(edit);
                Err(e)
            }
        }
    }

    /// Shards that hold nothing in memory say so, where somebody waits for them.
    async fn advance_idle(self: &Rc<Self>, through: Epoch) -> Result<bool, StoreError> {
        let durable = self.durable.get();
        let mut edits = Vec::new();
        let mut moved = Vec::new();
        let shards = self.shards();
        for shard in &*shards {
            let until = shard.unflushed_from().map_or(durable, |from| durable.min(Epoch(from.0.saturating_sub(1))));
            if shard.flushed_through() < through.min(durable) && until > shard.flushed_through() {
                edits.push(ManifestEdit::FlushedThrough { shard: shard.id(), epoch: until });
                moved.push((shard, until));
            }
        }
        if edits.is_empty() {
            return Ok(false);
        }
        self.edit_manifest(edits).await?;
        for (shard, flushed_through) in moved {
            shard.advance(flushed_through);
        }
        Ok(true)
    }

    /// Lets the log go on where its records are in segments: durably first.
    async fn trim_log(self: &Rc<Self>, pressing: bool) -> Result<bool, StoreError> {
        let hasty = mutant::active(Mutant::TrimUnflushed);
        let oldest = self.shards().iter().filter_map(|s| s.unflushed_from()).min().filter(|_| !hasty);
        let (id, floor, worth) = {
            let log = self.log.borrow();
            let Some(log) = log.as_ref() else { return Ok(false) };
            let floor = log.new_floor(oldest, self.durable.get());
            let won = floor.saturating_sub(log.floor());
            (log.id, floor, won > log.ring.capacity() / 8 || (pressing && won > 0))
        };
        if !worth {
            return Ok(false);
        }
        self.edit_manifest(vec![ManifestEdit::LogFloor { log: id, place: floor }]).await?;
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.set_floor(floor);
        }
        Ok(true)
    }

    /// Puts everything durable into segments: the node shuts down. Nothing new comes.
    pub(crate) async fn drain(self: &Rc<Self>) -> Result<(), StoreError> {
        self.end_compactions().await?;
        self.end_split().await?;
        let through = self.durable.get();
        self.freeze(through);
        self.flush_frozen().await?;
        // The maintenance may have begun a flush before the node stopped.
        while self.shards().iter().any(|shard| shard.frozen_tables() > 0) {
            self.check_failed()?;
            vellum_rt::sleep(std::time::Duration::from_micros(200)).await;
            self.flush_frozen().await?;
        }
        self.advance_idle(through).await?;
        Ok(())
    }
}

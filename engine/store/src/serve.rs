//! What a store does for another reactor's, and how the node stops.

use std::rc::Rc;

use vellum_base::ReactorId;
use vellum_format::{ChunkUse, ManifestEdit};

use crate::central::Central;
use crate::env::COORDINATOR;
use crate::epoch::Coordinator;
use crate::error::StoreError;
use crate::lsm::{ScanPage, Shard};
use crate::mesh::{Answer, Message, Request};
use crate::open::drop_run;
use crate::status::{CentralStatus, ReactorStatus, ShardStatus, StatFs, StoreStatus};
use crate::store::Store;

fn shard_status(shard: &Shard) -> ShardStatus {
    let (range, extent) = (shard.range(), shard.extent());
    ShardStatus {
        id: shard.id(),
        first_bucket: range.first.bucket(),
        last_bucket: range.last.bucket(),
        segments: extent.segments,
        segment_bytes: extent.bytes,
        clipped: extent.clipped,
        memtable_bytes: shard.memtable_bytes(),
    }
}

impl Store {
    pub(crate) async fn serve(self: Rc<Self>, _from: ReactorId, request: Request) -> Result<Answer, StoreError> {
        Ok(match request {
            Request::Get { keys, at } => Answer::Values(self.get_here(&keys, at).await?),
            Request::Scan { range, at, max_items, max_bytes } => {
                let ScanPage { items, next } = self.scan_here(range, at, max_items, max_bytes).await?;
                Answer::Page { items, next }
            }
            Request::Walk { index, from, to, max, at, buckets } => {
                let (entries, more) = self.walk_here(index, (from, to), max, at, &buckets).await?;
                Answer::Entries { entries, more }
            }
            Request::Commit { rid, batch } => Answer::Committed(self.commit_here(rid, batch, None).await),
            Request::Reserve { rid, ops } => Answer::Reserved(self.reserve(rid, &ops).await?),
            Request::ReserveSpace { rid, change } => Answer::Token(self.reserve_space(rid, change)),
            Request::ReserveLast { rid, number } => Answer::Token(self.reserve_last(rid, number)),
            Request::CommitRecords { records } => Answer::Epoch(self.commit_own(&records).await?),
            Request::AllocGroup { bucket, root } => Answer::Group(self.alloc_group_here(bucket, root).await?),
            Request::OpenRid { rid, identity } => Answer::Rid(self.open_rid_here(rid, identity).await?),
            Request::CloseRid { rid } => {
                self.close_rid_here(rid).await?;
                Answer::Done
            }
            Request::ForgetPending { rid } => {
                self.space.borrow_mut().forget_rid(rid);
                Answer::Done
            }
            Request::Discard { rid, ranges } => {
                self.discard_here(rid, &ranges)?;
                Answer::Done
            }
            Request::WriteData { rid, data } => Answer::Ranges(self.write_here(rid, data).await?),
            Request::Quiesce => {
                self.reads.quiesce().await;
                Answer::Done
            }
            Request::Extend { blocks } => {
                self.blocks.set(self.blocks.get().max(blocks));
                Answer::Done
            }
            Request::Status => Answer::Status(Box::new(self.reactor_status())),
            Request::Stop => {
                self.stop_admission().await;
                Answer::Done
            }
            Request::Drain => {
                self.drain().await?;
                Answer::Done
            }
            Request::ScrubStep { cursor } => Answer::Scrubbed(Box::new(self.scrub_step(cursor).await?)),
            Request::NoteScrub { last } => {
                self.note_scrub_here(last).await?;
                Answer::Done
            }
            Request::DrainSparse { most, sparse } => self.drain_sparse_here(most, sparse),
            Request::EvacuationStep { cursor, chunks } => {
                Answer::Evacuated(Box::new(self.evacuation_step(cursor, &chunks).await?))
            }
            Request::CallOffDraining { tried } => self.call_off_draining_here(tried).await,
            Request::CompactAll => {
                self.compact_all_here().await?;
                Answer::Done
            }
            Request::SplitAt { bucket } => Answer::Changed(self.split_here(bucket).await?),
            Request::MoveAway { bucket, to } => Answer::Changed(self.move_away(bucket, to).await?),
            Request::TakeOver(cargo) => {
                self.take_over(*cargo);
                Answer::Done
            }
            Request::Route { first, last, to } => {
                self.set_route(first, last, to);
                Answer::Done
            }
            Request::Loads => Answer::Loads(self.loads()),
            central => self.serve_central(central).await?,
        })
    }

    async fn serve_central(self: &Rc<Self>, request: Request) -> Result<Answer, StoreError> {
        let Some(central) = self.central.clone() else { return Err(StoreError::Closed) };
        Ok(match request {
            Request::Edit { edits } => {
                self.edit_manifest(edits).await?;
                Answer::Done
            }
            Request::AllocChunks { used_for, count } => {
                self.check_failed()?;
                Answer::Chunks(central.manifest.alloc_chunks(used_for, count, central.reserve_chunks.get()).await?)
            }
            Request::ReturnChunks { chunks } => {
                central.free_chunks(chunks);
                Answer::Done
            }
            Request::ChunkUse { chunk } => {
                let state = central.manifest.state();
                Answer::Use(state.chunks.get(chunk.0 as usize).copied().unwrap_or(ChunkUse::Fixed))
            }
            Request::AllocSegment { least, most } => {
                let space = self.env.local_space.borrow().clone();
                match space {
                    Some(space) => Answer::Ranges(space.alloc(least, most).await?),
                    None => return Err(StoreError::Closed),
                }
            }
            Request::MoveShard { bucket, to } => Answer::Changed(self.move_central(&central, bucket, to).await?),
            Request::HoldSegments { shard } => {
                self.hold_segments(&central, shard);
                Answer::Done
            }
            Request::Split { shard, at } => Answer::NewShard(self.split_central(&central, shard, at).await?),
            Request::Scrub(command) => {
                self.scrub_here(&central, command)?;
                Answer::Scrub(Box::new(central.scrub.borrow().clone()))
            }
            Request::Grow => Answer::Grown(self.grow_here(&central).await?),
            Request::ReleaseWithheld => {
                central.release_withheld();
                Answer::Done
            }
            Request::ChangeSlots { slots } => {
                central.manifest.change_slots(slots).await?;
                Answer::Done
            }
            Request::Central => Answer::Central(Box::new(self.central_status(&central))),
            Request::Shutdown => {
                self.shut_all().await?;
                Answer::Done
            }
            _ => return Err(StoreError::Closed),
        })
    }

    fn central_status(&self, central: &Central) -> CentralStatus {
        let state = central.manifest.state();
        let chunk_blocks = u64::from(self.superblock.chunk_blocks);
        let count = |f: fn(&ChunkUse) -> bool| state.chunks.iter().filter(|c| f(c)).count() as u64 * chunk_blocks;
        let free = state.free_chunks().saturating_sub(central.reserve_chunks.get()) as u64 * chunk_blocks;
        let (seals_used, seals_bound) = central.machine.borrow().ring_used();
        CentralStatus {
            manifest_generation: central.manifest.generation(),
            segments: state.shards.values().map(|s| s.segments().count()).sum(),
            runs: state.runs.len(),
            seals_used,
            seals_bound,
            withheld_blocks: central.withheld_blocks(),
            scrub: central.scrub.borrow().without_findings(),
            evacuation: central.evacuation.status(),
            free_chunks: state.free_chunks(),
            reserve_chunks: central.reserve_chunks.get(),
            space: StatFs {
                block_bytes: vellum_base::BLOCK_SIZE as u32,
                total_blocks: self.blocks.get(),
                free_blocks: free,
                used_data_blocks: 0,
                metadata_blocks: count(|c| !matches!(c, ChunkUse::Free | ChunkUse::Data(_))),
            },
        }
    }

    /// No new batch or data; those that are admitted end first, and a shard that is on its way arrives.
    async fn stop_admission(&self) {
        self.stopping.set(true);
        self.room.notify_all();
        while (self.home.running.get() > 0 || self.is_changing_shards()) && self.failed.borrow().is_none() {
            vellum_rt::sleep(std::time::Duration::from_micros(200)).await;
        }
    }

    /// Stops the whole node: everything is durable and in segments, and the next open replays nothing. May be called on
    /// any reactor, and on several.
    pub async fn shutdown(self: &Rc<Self>) -> Result<(), StoreError> {
        if self.stopped.get() {
            return Ok(());
        }
        match self.ask(COORDINATOR, Request::Shutdown).await {
            Err(StoreError::Closed) => Ok(()), // another one's shutdown came first
            done => done.map(|_| ()),
        }
    }

    async fn shut_all(self: &Rc<Self>) -> Result<(), StoreError> {
        if self.stopping.get() {
            while !self.stopped.get() {
                vellum_rt::sleep(std::time::Duration::from_millis(1)).await;
            }
            return Ok(());
        }
        let result = if self.options.read_only { Ok(()) } else { self.finish_run().await };
        for other in self.mesh.others() {
            self.mesh.post(other, Message::Stop);
        }
        self.stop_here();
        result
    }

    async fn finish_run(self: &Rc<Self>) -> Result<(), StoreError> {
        let Some(central) = self.central.clone() else { return Err(StoreError::Closed) };
        for reactor in self.mesh.all() {
            self.ask(reactor, Request::Stop).await?;
        }
        // The last members of a cluster may leave together: nobody is left then who could confirm, or be told.
        self.central_step(Coordinator::ungate);
        loop {
            let open = central.machine.borrow().open();
            self.wait_durable(open).await?;
            if central.machine.borrow().is_idle() {
                break;
            }
        }
        // A seal that confirms the last one would make an epoch durable which no reactor drained.
        central.machine.borrow_mut().ends();
        // Reactors learn of the durable epoch by message, which comes before the next request.
        for reactor in self.mesh.all() {
            self.ask(reactor, Request::Drain).await?;
        }
        let (number, hash) = central.machine.borrow().durable_seal();
        let epoch = central.machine.borrow().open();
        if central.manifest.state().flushed_through() < self.durable.get() {
            tracing::warn!("memtables could not be flushed: the next open replays the log");
            return Ok(());
        }
        let mut edits = vec![ManifestEdit::Base { number, hash, epoch }];
        let runs = central.manifest.state().runs.clone();
        runs.iter().for_each(|run| edits.extend(drop_run(run)));
        central.run_ended.set(true);
        central.manifest.edit(edits).await
    }

    fn reactor_status(&self) -> ReactorStatus {
        let space = self.space.borrow();
        let log = self.log.borrow();
        let shards = self.shards();
        let pressure = shards.iter().map(|s| s.pressure()).fold(0.0, f32::max);
        ReactorStatus {
            reactor: self.me,
            shards: shards.iter().map(|shard| shard_status(shard)).collect(),
            memtable_bytes: shards.iter().map(|s| s.memtable_bytes()).sum(),
            memtable_bound_bytes: self.options.memtable_bytes / self.options.reactors,
            frozen_tables: shards.iter().map(|s| s.frozen_tables()).sum(),
            pressure,
            compaction_debt: self.debt(),
            write_bound_bytes_per_s: crate::admission::rate(self.pace.debt()).map(|rate| rate as u64),
            slowed_batches: self.pace.slowed().0,
            slowed: self.pace.slowed().1,
            compactions: self.compactions.status(),
            log_used_bytes: log.as_ref().map_or(0, |l| l.used_bytes()),
            log_bound_bytes: log.as_ref().map_or(0, |l| l.capacity_bytes()),
            open_part_bytes: self.epochs.borrow().open_bytes(),
            data_chunks: space.chunks(),
            free_blocks: space.free_blocks(),
            used_blocks: space.used_blocks(),
            pending_blocks: space.pending_blocks(),
            waiting_blocks: space.waiting_blocks(),
            draining_chunks: space.draining().0,
            emptied_chunks: self.emptied_chunks.get(),
            reservations: self.reservations.len(),
            clients: self.home.len(),
            io_in_flight: self.queue.in_flight(),
            cache: self.cache.stats(),
            cache_bound_bytes: self.options.cache_bytes / self.options.reactors,
            batches: self.batches.get(),
            epochs_with_changes: self.full_epochs.get(),
            shard_bound_bytes: self.options.shard_bytes,
            splits: self.splits.done(),
            moves: self.moves.status(),
        }
    }

    /// Figures of all reactors. Complete on the coordinator; elsewhere without what only that one knows.
    pub async fn status(self: &Rc<Self>) -> Result<StoreStatus, StoreError> {
        let mut status = StoreStatus {
            term: self.term,
            open_epoch: self.epochs.borrow().open(),
            durable_epoch: self.durable.get(),
            failed: self.failed.borrow().as_ref().map(|r| r.to_string()),
            memory: self.memory_status(),
            ..StoreStatus::default()
        };
        for reactor in self.mesh.all() {
            if let Answer::Status(one) = self.ask(reactor, Request::Status).await? {
                status.reactors.push(*one);
            }
        }
        if let Answer::Central(c) = self.ask(COORDINATOR, Request::Central).await? {
            status.manifest_generation = c.manifest_generation;
            status.segments = c.segments;
            status.runs = c.runs;
            (status.seals_used, status.seals_bound) = (c.seals_used, c.seals_bound);
            status.withheld_blocks = c.withheld_blocks;
            status.scrub = c.scrub;
            status.evacuation = c.evacuation;
            (status.free_chunks, status.reserve_chunks) = (c.free_chunks, c.reserve_chunks);
            status.space = c.space;
        }
        for r in &status.reactors {
            status.space.free_blocks += r.free_blocks + r.waiting_blocks;
            status.space.used_data_blocks += r.used_blocks + r.pending_blocks;
        }
        Ok(status)
    }

    pub async fn statfs(self: &Rc<Self>) -> Result<StatFs, StoreError> {
        Ok(self.status().await?.space)
    }
}

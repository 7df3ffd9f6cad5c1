//! When to evacuate, how much, and how fast. One pass at a time, driven by the coordinator.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, ChunkIndex};
use vellum_rt::{Class, now, sleep, spawn, timeout};

use super::{Cursor, Step};
use crate::central::Central;
use crate::error::StoreError;
use crate::mesh::{Answer, Request};
use crate::store::Store;

/// One block in so many may be in use in a chunk that is emptied: while they are short, and when the reserve is used.
const SPARSE: u64 = 4;
const LESS_SPARSE: u64 = 2;
/// Least time between two looks at the table.
const LOOK: Duration = Duration::from_millis(100);
/// Rest between two passes; longer after one that emptied nothing.
const REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// The chunks of one pass.
struct Chosen {
    chunks: Arc<BTreeSet<ChunkIndex>>,
    used_blocks: u64,
}

impl Central {
    fn room(&self) -> (usize, usize) {
        (self.manifest.state().free_chunks(), self.reserve_chunks.get())
    }

    fn is_short(&self) -> bool {
        let (free, reserve) = self.room();
        free < self.evacuation.short_of * reserve
    }

    /// Chunks that are to become free: a little more than would end the shortage, so that it does not begin again at once.
    fn wanted(&self) -> usize {
        let (free, reserve) = self.room();
        (self.evacuation.short_of * reserve + reserve / 4 + 1).saturating_sub(free)
    }

    fn uses_reserve(&self) -> bool {
        let (free, reserve) = self.room();
        free < reserve
    }

    /// How far evacuation is behind, as a debt that slows writers: 0 while the reserve is whole, 1 when half of it is used.
    /// Nothing while there is nothing to move.
    pub fn room_debt(&self) -> f32 {
        if !self.evacuation.is_moving() {
            return 0.0;
        }
        let (free, reserve) = self.room();
        let used = reserve.saturating_sub(free) as f32;
        (used * 2.0 / reserve.max(1) as f32).min(1.0)
    }
}

impl Store {
    /// Begins to evacuate when free chunks are short.
    pub(crate) fn look_at_room(self: &Rc<Self>, central: &Rc<Central>) {
        let evacuation = &central.evacuation;
        if self.options.evacuation_bytes_per_s.is_none() || evacuation.awake.get() || self.check_writable().is_err() {
            return;
        }
        if evacuation.looked.get().is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        evacuation.looked.set(Some(now()));
        if central.is_short() {
            evacuation.awake.set(true);
            let (store, central) = (self.clone(), central.clone());
            spawn(Class::Scrub, "evacuation", async move { store.evacuate_while_short(&central).await }).detach();
        }
    }

    async fn evacuate_while_short(self: Rc<Self>, central: &Rc<Central>) {
        let mut rest = REST;
        while self.check_writable().is_ok() && central.is_short() {
            let began = now();
            let passed = self.evacuate_once(central).await;
            central.evacuation.status.borrow_mut().running = false;
            match passed {
                // As long as it took: half of the time is others' even on a device that has nothing else to do.
                Ok(true) => rest = began.elapsed().clamp(REST, LONGEST_REST),
                Ok(false) => rest = (rest * 2).min(LONGEST_REST),
                Err(StoreError::Closed) => break,
                Err(e) => {
                    tracing::warn!(error = %e, "an evacuation ended early");
                    central.evacuation.status.borrow_mut().last_error = Some(e.to_string());
                    rest = (rest * 2).min(LONGEST_REST);
                }
            }
            sleep(REST).await;
            if !central.uses_reserve() {
                let _ = timeout(rest - REST, central.evacuation.wake.notified()).await; // either way: look
            }
        }
        central.evacuation.awake.set(false);
    }

    /// One pass. True when a chunk has become free.
    async fn evacuate_once(self: &Rc<Self>, central: &Rc<Central>) -> Result<bool, StoreError> {
        // Shards and their chunks stay where they are meanwhile, and so do the locks that it takes.
        let _turn = central.balance.turn.lock().await;
        let chosen = self.choose(central).await?;
        let count = chosen.chunks.len();
        if count == 0 {
            return Ok(false);
        }
        {
            let mut status = central.evacuation.status.borrow_mut();
            status.running = true;
            status.passes += 1;
        }
        let (free, reserve) = central.room();
        tracing::info!(
            free,
            reserve,
            count,
            used_blocks = chosen.used_blocks,
            "few free chunks: sparse ones are emptied"
        );
        let moved = self.move_out_of(central, &chosen).await;
        let tried = matches!(moved, Ok(true));
        let mut left = 0;
        for reactor in self.mesh.all() {
            if let Answer::Draining { chunks, .. } = self.ask(reactor, Request::CallOffDraining { tried }).await? {
                left += chunks.len();
            }
        }
        moved?;
        tracing::info!(emptied = count.saturating_sub(left), left, "the pass has ended");
        Ok(left < count)
    }

    async fn choose(self: &Rc<Self>, central: &Central) -> Result<Chosen, StoreError> {
        let sparse = if central.uses_reserve() { LESS_SPARSE } else { SPARSE };
        let (mut all, mut used_blocks) = (BTreeSet::new(), 0);
        let reactors = self.options.reactors;
        for (i, reactor) in self.mesh.all().enumerate() {
            let most = central.wanted().saturating_sub(all.len()).div_ceil(reactors - i);
            match self.ask(reactor, Request::DrainSparse { most, sparse }).await? {
                Answer::Draining { chunks, used_blocks: used } => {
                    all.extend(chunks);
                    used_blocks += used;
                }
                _ => return Err(StoreError::Closed),
            }
        }
        Ok(Chosen { chunks: Arc::new(all), used_blocks })
    }

    /// True when all extents were looked at, or as many blocks moved as there were to move.
    async fn move_out_of(self: &Rc<Self>, central: &Central, chosen: &Chosen) -> Result<bool, StoreError> {
        let (mut moved_blocks, mut complete) = (0, true);
        for reactor in self.mesh.all() {
            let mut next = Some(Cursor::default());
            while let Some(cursor) = next {
                self.check_writable()?;
                if moved_blocks >= chosen.used_blocks {
                    return Ok(true);
                }
                if central.wanted() == 0 {
                    return Ok(false);
                }
                let request = Request::EvacuationStep { cursor, chunks: chosen.chunks.clone() };
                let Answer::Evacuated(step) = self.ask(reactor, request).await? else {
                    return Err(StoreError::Closed);
                };
                moved_blocks += step.emptied_blocks;
                complete &= !step.skipped;
                next = self.note_step(central, *step).await?;
            }
        }
        Ok(complete)
    }

    /// Where to go on, when it is time to.
    async fn note_step(&self, central: &Central, step: Step) -> Result<Option<Cursor>, StoreError> {
        {
            let mut status = central.evacuation.status.borrow_mut();
            status.moved_bytes += step.moved_blocks * BLOCK_SIZE as u64;
            status.moved_extents += step.moved_extents;
            status.problems += step.findings.len() as u64;
        }
        step.findings.into_iter().for_each(|finding| central.scrub.borrow_mut().add(finding));
        if let Some(error) = step.error {
            return Err(error);
        }
        // When the reserve is used, writers wait for it.
        let rate = self.options.evacuation_bytes_per_s.filter(|rate| *rate > 0 && !central.uses_reserve());
        if let Some(rate) = rate {
            let bytes = step.scanned_bytes + step.moved_blocks * BLOCK_SIZE as u64;
            let pause = Duration::from_secs_f64(bytes as f64 / rate as f64);
            let _ = timeout(pause, central.evacuation.wake.notified()).await; // woken: it is urgent, or the end
        }
        Ok(step.next)
    }
}

//! What only reactor 0 does: drives the epochs' state machine, keeps the manifest, the chunk table and the space of
//! segments.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use vellum_base::{BlockRange, ChunkIndex, DmaBuf, Epoch, Mutant, ReactorId, SegmentId, mutant, probe};
use vellum_format::{ChunkUse, ManifestEdit};
use vellum_nvme::Queue;
use vellum_rt::local::{Mutex, Notify};
use vellum_rt::{Class, Instant, now, spawn, timeout};

use crate::env::{LocalSpace, holds_all};
use crate::epoch::{Command, Coordinator, Ring};
use crate::error::StoreError;
use crate::evacuate::Evacuation;
use crate::fact::Fact;
use crate::gate::Gate;
use crate::holders::Holders;
use crate::lsm::LocalFuture;
use crate::manifest::{Manifest, use_chunks};
use crate::mesh::Message;
use crate::moves::Balance;
use crate::open::{CoordinatorSeed, drop_run};
use crate::options::OpenOptions;
use crate::scrub::ScrubStatus;
use crate::space::SegmentSpace;
use crate::store::Store;

/// Segment chunks taken from the table at once.
const SEGMENT_CHUNKS: usize = 4;

pub(crate) struct Central {
    pub machine: RefCell<Coordinator>,
    running: Cell<bool>,
    armed: Cell<Option<Instant>>,
    pub wake: Notify,
    pub manifest: Rc<Manifest>,
    segments: RefCell<SegmentSpace>,
    /// Of segments that several shards name.
    pub holders: RefCell<Holders>,
    /// One at a time asks the table for more.
    segment_refill: Mutex<()>,
    /// Chunks that file data never gets.
    pub reserve_chunks: Cell<usize>,
    /// One growth at a time.
    pub growing: Mutex<()>,
    pub scrub: RefCell<ScrubStatus>,
    pub stop_scrub: Cell<bool>,
    /// A scrub has ended, or the store stops.
    pub scrub_wake: Notify,
    pub evacuation: Evacuation,
    pub balance: Balance,
    oldest_readers: RefCell<Vec<Epoch>>,
    /// How far each reactor's compactions are behind.
    debts: RefCell<Vec<f32>>,
    floor_running: Cell<bool>,
    /// The manifest forgets the runs: there are no floors any more.
    pub run_ended: Cell<bool>,
    gate: Option<Arc<dyn Gate>>,
}

impl Central {
    pub fn new(seed: CoordinatorSeed, queue: Rc<dyn Queue>, options: &OpenOptions) -> Result<Rc<Central>, StoreError> {
        let chunk_blocks = seed.manifest.superblock.chunk_blocks;
        let mut segments = SegmentSpace::new(chunk_blocks);
        for (i, used) in seed.manifest.state.chunks.iter().enumerate() {
            if *used == ChunkUse::Segment {
                segments.add_chunk(ChunkIndex(i as u32));
            }
        }
        holds_all(&mut segments, seed.manifest.state.segments())?;
        let holders = Holders::of(seed.manifest.state.holders());
        if options.withhold {
            segments.withhold_free();
        }
        let ring = Ring::new(seed.seal_chunks, chunk_blocks);
        let volatile_cache = queue.geometry().volatile_write_cache;
        let before = Epoch(seed.start.first_epoch.0 - 1);
        let gated = options.gate.is_some();
        let machine = Coordinator::new(options.reactors, volatile_cache, gated, ring, &seed.start);
        Ok(Rc::new(Central {
            machine: RefCell::new(machine),
            running: Cell::new(false),
            armed: Cell::new(None),
            wake: Notify::new(),
            manifest: Manifest::new(queue, seed.manifest),
            segments: RefCell::new(segments),
            holders: RefCell::new(holders),
            segment_refill: Mutex::new(()),
            reserve_chunks: Cell::new(seed.reserve_chunks),
            growing: Mutex::new(()),
            scrub: RefCell::default(),
            stop_scrub: Cell::new(false),
            scrub_wake: Notify::new(),
            evacuation: Evacuation::new(options.evacuation_short_of),
            balance: Balance::default(),
            oldest_readers: RefCell::new(vec![before; options.reactors]),
            debts: RefCell::new(vec![0.0; options.reactors]),
            floor_running: Cell::new(false),
            run_ended: Cell::new(false),
            gate: options.gate.clone(),
        }))
    }

    /// `most` blocks, or what there is when the device has no more, but never less than `least`.
    async fn alloc_segment(&self, least: u64, most: u64) -> Result<Vec<BlockRange>, StoreError> {
        let _turn = self.segment_refill.lock().await;
        loop {
            if let Some(ranges) = self.segments.borrow_mut().take(most, most) {
                return Ok(ranges);
            }
            let missing = most.saturating_sub(self.segments.borrow().free_blocks());
            let chunk_blocks = u64::from(self.manifest.chunk_blocks());
            let count = (missing.div_ceil(chunk_blocks) as usize).max(1) + SEGMENT_CHUNKS;
            match self.manifest.alloc_chunks(ChunkUse::Segment, count, 0).await {
                Ok(chunks) => {
                    let mut segments = self.segments.borrow_mut();
                    chunks.into_iter().for_each(|c| segments.add_chunk(c));
                }
                Err(StoreError::NoSpace) => {
                    self.evacuation.wake.notify_one();
                    return self.segments.borrow_mut().take(least, most).ok_or(StoreError::NoSpace);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn release_segment_space(self: &Rc<Self>, space: &[BlockRange]) {
        let empty = {
            let mut segments = self.segments.borrow_mut();
            space.iter().for_each(|r| segments.release(r));
            segments.give_back(2 * SEGMENT_CHUNKS)
        };
        self.free_chunks(empty);
    }

    /// See [`OpenOptions::withhold`].
    pub fn release_withheld(self: &Rc<Self>) {
        if self.segments.borrow_mut().release_withheld() {
            self.release_segment_space(&[]);
        }
    }

    pub fn withheld_blocks(&self) -> u64 {
        self.segments.borrow().withheld_blocks()
    }

    /// The table has them again when the edit is durable; nobody waits for it.
    pub fn free_chunks(self: &Rc<Self>, chunks: Vec<ChunkIndex>) {
        if chunks.is_empty() {
            return;
        }
        let manifest = self.manifest.clone();
        let task = async move {
            let _ = manifest.edit(use_chunks(&chunks, ChunkUse::Free)).await; // a failure is everybody's at the next edit
        };
        spawn(Class::Commit, "free chunks", task).detach();
    }
}

/// The coordinator's own way to segment space.
impl LocalSpace for Rc<Central> {
    fn alloc(&self, least: u64, most: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, StoreError>> {
        Box::pin(self.alloc_segment(least, most))
    }

    fn release(&self, space: &[BlockRange]) {
        self.release_segment_space(space);
    }

    fn release_segment(&self, segment: SegmentId, space: &[BlockRange]) {
        if self.holders.borrow_mut().release(segment) {
            self.release_segment_space(space);
        }
    }
}

impl Store {
    /// Messages that only the coordinator gets.
    pub(crate) fn handle_central(self: &Rc<Self>, message: Message) {
        let Some(central) = self.central.clone() else { return };
        match message {
            Message::Dirty { epoch } => central.machine.borrow_mut().dirty(epoch, now()),
            Message::Want { epoch } => central.machine.borrow_mut().want(epoch),
            Message::PartReady { from, epoch, part, new_data, oldest_reader, debt } => {
                if let Some(known) = central.debts.borrow_mut().get_mut(usize::from(from.0)) {
                    *known = debt;
                }
                if let Some(oldest) = central.oldest_readers.borrow_mut().get_mut(usize::from(from.0)) {
                    *oldest = oldest_reader.max(*oldest);
                }
                central.machine.borrow_mut().part_ready(epoch, part, new_data);
            }
            Message::PartWritten { epoch } => central.machine.borrow_mut().part_written(epoch),
            Message::ReleaseSpace { space } => return central.release_segment_space(&space),
            Message::ReleaseSegment { segment, space } => return central.release_segment(segment, &space),
            _ => return,
        }
        self.drive();
    }

    /// Does what the state machine wants done.
    pub(crate) fn drive(self: &Rc<Self>) {
        let Some(central) = &self.central else { return };
        if self.failed.borrow().is_some() || central.running.replace(true) {
            return; // the outer call goes on
        }
        loop {
            let command = central.machine.borrow_mut().next(now());
            let Some(command) = command else { break };
            self.execute(command);
            if self.failed.borrow().is_some() {
                break;
            }
        }
        central.running.set(false);
        let deadline = central.machine.borrow().deadline();
        if let Some(deadline) = deadline
            && central.armed.get().is_none_or(|armed| deadline < armed)
        {
            central.wake.notify_one();
        }
    }

    fn execute(self: &Rc<Self>, command: Command) {
        match command {
            Command::Close(epoch) => {
                for other in self.mesh.others() {
                    self.mesh.post(other, Message::Close { epoch });
                }
                self.close_epoch(epoch);
            }
            Command::FlushData(epoch) => {
                let flush = self.queue.flush();
                let store = self.clone();
                let task = async move {
                    match flush.await {
                        Ok(()) => store.central_input(|m| m.data_flushed(epoch)),
                        Err(e) => store.fail(format!("flush: {e}")),
                    }
                };
                spawn(Class::Commit, "flush", task).detach();
            }
            Command::Seal { number, addr, block } => {
                let write = self.queue.write(addr.bytes(), DmaBuf::copy_from(&block[..], true).freeze(), false);
                let store = self.clone();
                let task = async move {
                    match write.await {
                        Ok(()) => store.central_input(|m| m.seal_written(number)),
                        Err(e) => store.fail(format!("seal {number}: {e}")),
                    }
                };
                spawn(Class::Commit, "seal", task).detach();
            }
            Command::Flush => {
                let flush = self.queue.flush();
                self.stay_awake_if_waited_for();
                let store = self.clone();
                let task = async move {
                    let flushed = if mutant::active(Mutant::SkipFlush) { Ok(()) } else { flush.await };
                    match flushed {
                        Ok(()) => store.central_step(Coordinator::flushed),
                        Err(e) => store.fail(format!("flush: {e}")),
                    }
                };
                spawn(Class::Commit, "flush", task).detach();
            }
            Command::Confirm => {
                let Some(gate) = self.central.as_ref().and_then(|c| c.gate.clone()) else { return };
                let (confirmed, store) = (gate.confirm(), self.clone());
                let task = async move {
                    match confirmed.await {
                        Ok(()) => store.central_step(Coordinator::confirmed),
                        Err(deposed) if store.is_gated() => store.fail(deposed),
                        Err(_) => {} // nobody is told of anything any more
                    }
                };
                spawn(Class::Commit, "gate", task).detach();
            }
            Command::Durable(epoch) => {
                let Some(central) = &self.central else { return };
                probe::tell(|| Fact::Durable { term: self.term, epoch });
                let oldest = central.oldest_readers.borrow().iter().min().copied().unwrap_or_default();
                let debt = central.debts.borrow().iter().copied().fold(central.room_debt(), f32::max);
                for other in self.mesh.others() {
                    self.mesh.post(other, Message::Durable { epoch, oldest_reader: oldest, debt });
                }
                self.pace.note_debt(self.me, debt);
                self.became_durable(epoch, oldest);
                self.look_at_room(central);
            }
            Command::FlushThrough(epoch) => {
                for other in self.mesh.others() {
                    self.mesh.post(other, Message::FlushThrough { epoch });
                }
                self.handle(Message::FlushThrough { epoch });
            }
        }
    }

    fn is_gated(&self) -> bool {
        self.central.as_ref().is_some_and(|central| central.machine.borrow().is_gated())
    }

    /// An input that may have its command at once.
    pub(crate) fn central_step(self: &Rc<Self>, f: impl FnOnce(&mut Coordinator) -> Option<Command>) {
        let command = match &self.central {
            // Nothing is acknowledged after a failure, also not what was on its way.
            Some(central) if self.failed.borrow().is_none() => f(&mut central.machine.borrow_mut()),
            _ => None,
        };
        if let Some(command) = command {
            self.execute(command);
        }
        self.drive();
    }

    fn central_input(self: &Rc<Self>, f: impl FnOnce(&mut Coordinator)) {
        if let Some(central) = &self.central {
            f(&mut central.machine.borrow_mut());
        }
        self.drive();
    }

    /// Drives the state machine when a deadline passes.
    pub(crate) async fn epoch_timer(self: Rc<Self>) {
        let Some(central) = self.central.clone() else { return };
        while !self.stopped.get() && self.failed.borrow().is_none() {
            let deadline = central.machine.borrow().deadline();
            central.armed.set(deadline);
            match deadline {
                Some(at) => {
                    let left = at - now();
                    let _ = timeout(left, central.wake.notified()).await; // either way: look
                }
                None => central.wake.notified().await,
            }
            central.armed.set(Some(Instant(0))); // awake: it looks for itself before it sleeps again
            self.drive();
        }
    }

    /// Makes manifest edits durable, from any reactor, and follows up what they allow.
    pub(crate) async fn edit_manifest(self: &Rc<Self>, edits: Vec<ManifestEdit>) -> Result<(), StoreError> {
        if self.central.is_none() {
            self.ask(ReactorId(0), crate::mesh::Request::Edit { edits }).await?;
            return Ok(());
        }
        let Some(central) = &self.central else { return Err(StoreError::Closed) };
        let flushed = edits.iter().any(|e| matches!(e, ManifestEdit::FlushedThrough { .. }));
        if let Err(e) = central.manifest.edit(edits).await {
            self.fail(format!("manifest: {e}"));
            return Err(e);
        }
        if flushed && !central.floor_running.replace(true) {
            let store = self.clone();
            spawn(Class::Commit, "floors", async move { store.move_floors().await }).detach();
        }
        Ok(())
    }

    /// Drops runs whose epochs are all in segments, and lets the ring of seals go on.
    async fn move_floors(self: Rc<Self>) {
        let Some(central) = self.central.clone().filter(|central| !central.run_ended.get()) else { return };
        let (flushed, drops) = {
            let state = central.manifest.state();
            let flushed = state.flushed_through();
            let old = state.runs.windows(2).filter(|w| flushed.0 + 1 >= w[1].first_epoch.0);
            (flushed, old.flat_map(|w| drop_run(&w[0])).collect::<Vec<_>>())
        };
        let mut edits = drops;
        let floor = {
            let machine = central.machine.borrow();
            machine.new_floor(flushed, machine.ring_used().1 / 8)
        };
        if let Some((number, hash)) = floor {
            let durable_number = central.machine.borrow().durable_seal().0;
            edits.push(ManifestEdit::SealFloor { term: self.term, number, hash, durable_number });
        }
        central.floor_running.set(false);
        if edits.is_empty() {
            return;
        }
        if let Err(e) = central.manifest.edit(edits).await {
            return self.fail(format!("manifest: {e}"));
        }
        if let Some((number, _)) = floor {
            self.central_input(|m| m.set_floor(number));
        }
    }
}

//! File data: where it goes, writing and reading it, and when freed blocks may be used again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use vellum_base::{BLOCK_SIZE, BlockRange, Bucket, ChunkIndex, DmaBuf, DmaSlice, ReactorId, Rid, probe};
use vellum_format::ChunkUse;
use vellum_rt::{Class, spawn};

use crate::env::COORDINATOR;
use crate::error::StoreError;
use crate::fact::Fact;
use crate::mesh::{Answer, Request};
use crate::neighbours::Source;
use crate::reads::HeldBlocks;
use crate::store::Store;

/// Most bytes of one [`Store::write_data`].
pub const MAX_WRITE_BYTES: usize = 4 << 20;
/// Free space below which a reactor asks for more, and above which it gives back, in chunks.
pub(crate) const LOW_CHUNKS: u64 = 2;
const HIGH_CHUNKS: u64 = 16;
/// Bytes of chunks asked for at once, about.
const REFILL_BYTES: u64 = 8 << 20;
/// Attempts to find space while something that was freed is on its way.
const SPACE_ATTEMPTS: usize = 8;

impl Store {
    /// Writes `data` (whole blocks) to fresh space. The ranges are pending for `rid`: a batch of it may refer to them.
    /// One range when there is a free run that is long enough.
    pub async fn write_data(self: &Rc<Self>, rid: Rid, data: DmaSlice) -> Result<Vec<BlockRange>, StoreError> {
        self.check_writable()?;
        if data.is_empty() || !data.is_block_aligned() || data.len() > MAX_WRITE_BYTES {
            return Err(StoreError::Options(format!("{} bytes are no data to write", data.len())));
        }
        match self.write_here(rid, data.clone()).await {
            Err(StoreError::NoSpace) => {}
            done => return done,
        }
        // The table is empty; others may hold what is free.
        for other in self.mesh.others() {
            match self.ask(other, Request::WriteData { rid, data: data.clone() }).await {
                Ok(Answer::Ranges(ranges)) => return Ok(ranges),
                Ok(_) | Err(StoreError::NoSpace) => {}
                Err(e) => return Err(e),
            }
        }
        Err(StoreError::NoSpace)
    }

    pub(crate) async fn write_here(self: &Rc<Self>, rid: Rid, data: DmaSlice) -> Result<Vec<BlockRange>, StoreError> {
        let blocks = (data.len() / BLOCK_SIZE) as u64;
        let ranges = self.take_space(rid, blocks).await?;
        let mut at = 0;
        let mut writes = Vec::with_capacity(ranges.len());
        self.neighbours.writes().note(&ranges);
        for r in &ranges {
            let end = at + r.len_bytes();
            writes.push(self.queue.write(r.start.bytes(), data.slice(at..end), false));
            at = end;
        }
        let store = self.clone();
        let written = ranges.clone();
        // A task: also when the client goes away, the blocks stay taken until the device has answered.
        let task = async move {
            let mut result = Ok(());
            for write in writes {
                result = result.and(write.await);
            }
            store.neighbours.writes().note(&written);
            if result.is_ok() {
                store.space.borrow_mut().written(rid, &written);
            }
            result
        };
        spawn(Class::Request, "data write", task).await.map_err(|_| StoreError::Closed)??;
        Ok(ranges)
    }

    async fn take_space(self: &Rc<Self>, rid: Rid, blocks: u64) -> Result<Vec<BlockRange>, StoreError> {
        for _ in 0..SPACE_ATTEMPTS {
            self.until_admitting().await;
            self.check_writable()?;
            let taken = self.space.borrow_mut().take(rid, blocks);
            let low = self.space.borrow().ready_blocks() < LOW_CHUNKS * u64::from(self.superblock.chunk_blocks);
            if let Some(ranges) = taken {
                for r in &ranges {
                    probe::tell(|| Fact::Taken { term: self.term, start: r.start.0, len: r.len_blocks.into() });
                }
                if low && !self.refilling.get() && rid != Rid::ENGINE {
                    let store = self.clone();
                    // Ahead of need; that there is none is found when it is needed.
                    spawn(Class::Request, "space refill", async move { store.refill(0).await.ok() }).detach();
                }
                return Ok(ranges);
            }
            if rid == Rid::ENGINE {
                return Err(StoreError::NoSpace); // what it moves must not cost a chunk
            }
            match self.refill(blocks).await {
                Ok(()) => {}
                // Who writes goes before the evacuation.
                Err(StoreError::NoSpace) if !self.space.borrow_mut().call_off_draining(false).is_empty() => {}
                Err(StoreError::NoSpace) if self.has_waiting_space() => {
                    // What was freed comes back when its epoch is durable and no read is left.
                    let open = self.epochs.borrow().open();
                    self.wait_durable(open).await?;
                    vellum_rt::sleep(std::time::Duration::from_micros(200)).await;
                }
                Err(e) => return Err(e),
            }
        }
        Err(StoreError::NoSpace)
    }

    /// Something was freed and is not yet reusable: by an open epoch, by one that is not durable, or under a read.
    fn has_waiting_space(&self) -> bool {
        self.space.borrow().has_waiting() || self.epochs.borrow().frees_blocks()
    }

    /// Asks the table for chunks: for `blocks` at least.
    async fn refill(self: &Rc<Self>, blocks: u64) -> Result<(), StoreError> {
        self.refilling.set(true);
        let result = self.refill_once(blocks).await;
        self.refilling.set(false);
        result
    }

    async fn refill_once(self: &Rc<Self>, blocks: u64) -> Result<(), StoreError> {
        if self.moves.paused.get() {
            return Err(StoreError::NoSpace); // ahead of need; the next one asks again
        }
        let _busy = self.moves.busy(); // the chunk's bucket stays here until it has come
        let chunk_bytes = self.superblock.chunk_bytes();
        let count = (REFILL_BYTES.max(blocks * BLOCK_SIZE as u64)).div_ceil(chunk_bytes).max(1);
        let mine: Vec<u8> = (0..=255).filter(|b| self.reactor_of(Bucket(*b)) == self.me).collect();
        let at = self.next_bucket.get();
        self.next_bucket.set(at + 1);
        let Some(bucket) = mine.get(at % mine.len().max(1)).copied() else { return Err(StoreError::NoSpace) };
        let request = Request::AllocChunks { used_for: ChunkUse::Data(bucket), count: count as usize };
        let Answer::Chunks(chunks) = self.ask(COORDINATOR, request).await? else { return Err(StoreError::Closed) };
        let mut space = self.space.borrow_mut();
        for chunk in chunks {
            space.add_chunk(chunk, Bucket(bucket), BTreeMap::new(), BTreeMap::new());
        }
        Ok(())
    }

    /// Which reactor keeps the bitmap of a block; `None` when its chunk is not for data.
    pub(crate) async fn owner_of_block(self: &Rc<Self>, block: u64) -> Result<Option<ReactorId>, StoreError> {
        if self.space.borrow().owns(block) {
            return Ok(Some(self.me));
        }
        let chunk = ChunkIndex((block / u64::from(self.superblock.chunk_blocks)) as u32);
        if let Some(owner) = self.owners.borrow().get(&chunk) {
            return Ok(Some(*owner));
        }
        match self.ask(COORDINATOR, Request::ChunkUse { chunk }).await? {
            Answer::Use(ChunkUse::Data(bucket)) => {
                let owner = self.reactor_of(Bucket(bucket));
                self.owners.borrow_mut().insert(chunk, owner);
                Ok(Some(owner))
            }
            _ => Ok(None),
        }
    }

    /// Reads blocks one after the other into one buffer. Checksums are the client's: it has the extents.
    pub async fn read_data(self: &Rc<Self>, ranges: &[BlockRange]) -> Result<DmaSlice, StoreError> {
        let len: usize = ranges.iter().map(|r| r.len_bytes()).sum();
        let inside = |r: &BlockRange| r.end().is_some_and(|end| end.0 <= self.blocks.get());
        if len == 0 || len > MAX_WRITE_BYTES || !ranges.iter().all(inside) {
            return Err(StoreError::Options("these are no blocks to read".into()));
        }
        let _reading = self.reads.begin();
        if let [one] = ranges {
            if let Some(data) = self.read_from_neighbours(one).await {
                return Ok(data);
            }
            return Ok(self.queue.read(one.start.bytes(), DmaBuf::new(len)).await?.freeze());
        }
        let reads: Vec<_> =
            ranges.iter().map(|r| self.queue.read(r.start.bytes(), DmaBuf::new(r.len_bytes()))).collect();
        let mut out = DmaBuf::new(len);
        let mut at = 0;
        for read in reads {
            let piece = read.await?;
            out[at..at + piece.len()].copy_from_slice(&piece);
            at += piece.len();
        }
        Ok(out.freeze())
    }

    /// What a small read finds in memory, or brings with what lies behind it. `None`: it is read by itself.
    async fn read_from_neighbours(self: &Rc<Self>, range: &BlockRange) -> Option<DmaSlice> {
        if self.options.read_only {
            return None; // somebody else may write
        }
        let window = match self.neighbours.source(range, self.blocks.get()) {
            Source::Device => return None,
            Source::Window(window) => window,
            Source::New(window) => {
                let (store, window_read) = (self.clone(), window.clone());
                let at = window.blocks.start.bytes();
                let read = self.queue.read(at, DmaBuf::new(window.blocks.len_bytes()));
                // A task: others may wait for it when the one who asked goes away.
                let task = async move {
                    let data = read.await.ok();
                    if data.is_none() {
                        store.neighbours.forget(&window_read);
                    }
                    window_read.bring(data.map(DmaBuf::freeze));
                };
                spawn(Class::Request, "neighbours", task).detach();
                window
            }
        };
        self.neighbours.part(&window, range).await
    }

    /// Keeps blocks that are freed from now on from being used again: who looks up where a file is and then reads there
    /// begins with this.
    pub fn hold_blocks(&self) -> HeldBlocks {
        self.reads.hold()
    }

    /// Gives back data that was written and that no batch will refer to.
    pub async fn discard_data(self: &Rc<Self>, rid: Rid, ranges: &[BlockRange]) -> Result<(), StoreError> {
        for r in ranges {
            while let Some(owner) = self.owner_of_block(r.start.0).await? {
                match self.ask(owner, Request::Discard { rid, ranges: vec![*r] }).await {
                    Err(StoreError::Moved) => {
                        self.owners.borrow_mut().clear();
                        self.until_moved().await;
                    }
                    done => {
                        done?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn discard_here(&self, rid: Rid, ranges: &[BlockRange]) -> Result<(), StoreError> {
        let mut space = self.space.borrow_mut();
        if ranges.iter().any(|range| !space.owns(range.start.0)) {
            return Err(StoreError::Moved);
        }
        space.discard(rid, ranges);
        Ok(())
    }

    /// Gives back everything that is pending for a client, on all reactors: it is fenced, or has said farewell.
    pub async fn forget_pending(self: &Rc<Self>, rid: Rid) -> Result<(), StoreError> {
        loop {
            let before = self.handovers.load(Ordering::SeqCst);
            for reactor in self.mesh.all() {
                self.ask(reactor, Request::ForgetPending { rid }).await?;
            }
            // Else a chunk may have passed behind the question.
            if before.is_multiple_of(2) && self.handovers.load(Ordering::SeqCst) == before {
                return Ok(());
            }
            self.until_moved().await;
        }
    }

    /// Frees what durable epochs freed once the reads that run now have ended, on every reactor.
    pub(crate) fn cool(self: &Rc<Self>) {
        if self.cooling.replace(true) {
            return; // the running one takes it along
        }
        let store = self.clone();
        let task = async move {
            loop {
                let ranges = store.space.borrow_mut().take_cooling();
                if ranges.is_empty() {
                    break;
                }
                for reactor in store.mesh.all() {
                    if store.ask(reactor, Request::Quiesce).await.is_err() {
                        return; // shutting down: what is not free now is free after the next open
                    }
                }
                store.space.borrow_mut().cooled(&ranges);
                store.give_back_chunks(HIGH_CHUNKS);
            }
            store.cooling.set(false);
        };
        spawn(Class::Commit, "cooling", task).detach();
    }

    /// Returns chunks that were emptied, and those without a block in use while more than `keep` chunks' worth is free.
    pub(crate) fn give_back_chunks(self: &Rc<Self>, keep: u64) {
        if self.stopping.get() {
            return;
        }
        let chunks = {
            let mut space = self.space.borrow_mut();
            let mut chunks = space.take_drained();
            self.emptied_chunks.set(self.emptied_chunks.get() + chunks.len() as u64);
            chunks.extend(space.give_back(keep * u64::from(self.superblock.chunk_blocks)));
            chunks
        };
        if chunks.is_empty() {
            return;
        }
        let store = self.clone();
        let task = async move { store.ask(COORDINATOR, Request::ReturnChunks { chunks }).await.map(|_| ()) };
        spawn(Class::Commit, "return chunks", task).detach();
    }
}

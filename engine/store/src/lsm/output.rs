//! Segments that a flush or a compaction writes: cut at a size, written while the next is being built.
//!
//! A few writes of moderate length are in flight at a time ([`DEPTH`]): a segment that goes to the device at once would
//! stand before every commit and every read that comes after it.
//! What was taken is given back unless the whole job ends well, and only when the device writes there no more.

use std::collections::VecDeque;
use std::rc::Rc;

use vellum_base::{BlockRange, DmaBuf, DmaSlice, Epoch, Key, Mutant, SegmentId, mutant};
use vellum_format::SegmentMeta;
use vellum_nvme::{DeviceError, Queue};
use vellum_rt::{Class, JoinHandle, spawn};

use super::builder::{Built, SegmentBuilder};
use super::cache::BlockCache;
use super::segment::space_of;
use super::{LocalFuture, LsmConfig, LsmError, ShardEnv};

/// Writes in flight of one job, and the length of each in bytes.
const DEPTH: usize = 4;
const WRITE_BYTES: usize = 256 << 10;

/// Where an output's ids and space come from.
pub trait OutputSpace {
    fn next_id(&self) -> Result<SegmentId, LsmError>;
    fn take(&self, len_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>>;
    /// Nothing came of it.
    fn give_back(&self, space: Vec<BlockRange>);
}

/// Asked of the store as it is needed.
pub struct EnvSpace(pub Rc<dyn ShardEnv>);

impl OutputSpace for EnvSpace {
    fn next_id(&self) -> Result<SegmentId, LsmError> {
        Ok(self.0.next_segment_ids(1))
    }

    fn take(&self, len_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>> {
        self.0.alloc_segment_space(len_bytes, len_bytes)
    }

    fn give_back(&self, space: Vec<BlockRange>) {
        self.0.release_space(space);
    }
}

/// How segments are cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    pub segment_bytes: u32,
    pub block_bytes: u32,
    /// 1 or 2.
    pub copies: u8,
}

impl Shape {
    pub fn of(cfg: &LsmConfig) -> Shape {
        Shape {
            segment_bytes: cfg.segment_bytes as u32,
            block_bytes: cfg.block_bytes as u32,
            copies: cfg.copies.clamp(1, 2),
        }
    }
}

pub struct Output {
    space: Rc<dyn OutputSpace>,
    queue: Rc<dyn Queue>,
    shape: Shape,
    run: Epoch,
    /// Bounds of the epochs of all inputs.
    epochs: (Epoch, Epoch),
    builder: Option<SegmentBuilder>,
    /// The segment before, on its way to the device.
    writing: Option<JoinHandle<Result<(), DeviceError>>>,
    done: Vec<SegmentMeta>,
    /// Gets a copy of what is written.
    warms: Option<Rc<BlockCache>>,
}

impl Output {
    pub fn new(
        space: Rc<dyn OutputSpace>,
        queue: Rc<dyn Queue>,
        shape: Shape,
        run: Epoch,
        epochs: (Epoch, Epoch),
    ) -> Output {
        Output { space, queue, shape, run, epochs, builder: None, writing: None, done: Vec::new(), warms: None }
    }

    /// What is written is also put into `cache`: it was changed just now, and is likely to be asked for. What no read asks for
    /// again leaves before what one did.
    pub fn warming(mut self, cache: Rc<BlockCache>) -> Output {
        self.warms = Some(cache);
        self
    }

    fn builder(&mut self) -> Result<&mut SegmentBuilder, LsmError> {
        if self.builder.is_none() {
            let mut builder = SegmentBuilder::new(self.space.next_id()?, self.run, self.shape.block_bytes as usize);
            builder.epochs(self.epochs.0, self.epochs.1);
            self.builder = Some(builder);
        }
        self.builder.as_mut().ok_or(LsmError::Ids)
    }

    pub fn add(&mut self, key: &Key, epoch: Epoch, value: Option<&[u8]>) -> Result<(), LsmError> {
        self.builder()?.add(key, epoch, value);
        Ok(())
    }

    pub fn add_range(&mut self, first: &Key, last: &Key, epochs: &[Epoch]) -> Result<(), LsmError> {
        if !epochs.is_empty() {
            self.builder()?.add_range(first, last, epochs);
        }
        Ok(())
    }

    /// True when the segment is long enough: the caller cuts it at the next key boundary.
    pub fn is_full(&self) -> bool {
        self.builder.as_ref().is_some_and(|builder| builder.len_bytes() >= self.shape.segment_bytes as usize)
    }

    /// Ends the segment, if one was begun, and starts to write it.
    pub async fn cut(&mut self) -> Result<(), LsmError> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let built = builder.finish();
        vellum_rt::yield_if_needed().await;
        self.warm(&built).await;
        let Built { meta, chunks, .. } = built;
        let chunks: Vec<DmaSlice> = chunks.into_iter().map(DmaBuf::freeze).collect();
        let len_bytes = meta.len_bytes;
        let index = self.done.len();
        self.done.push(meta); // at once: what is taken for it is given back whatever happens
        for copy in 0..self.shape.copies {
            let ranges = self.space.take(len_bytes).await?;
            let meta = &mut self.done[index];
            if copy == 0 { meta.ranges = ranges } else { meta.mirror = ranges }
        }
        self.wait().await?;
        let meta = &self.done[index];
        let mut pieces = VecDeque::new();
        for ranges in [&meta.ranges, &meta.mirror] {
            cut_writes(ranges, &chunks, &mut pieces);
        }
        self.writing = Some(spawn(Class::Compaction, "segment", write_all(self.queue.clone(), pieces)));
        Ok(())
    }

    /// Chunk by chunk: requests have their turns between.
    async fn warm(&self, built: &Built) {
        let Some(cache) = &self.warms else { return };
        let mut blocks = built.blocks.iter().peekable();
        let mut at = 0;
        for chunk in &built.chunks {
            let end = at + chunk.len() as u64;
            let inside = std::iter::from_fn(|| blocks.next_if(|block| block.place.at_bytes() < end));
            cache.warm(built.meta.id, at, chunk, inside);
            at = end;
            vellum_rt::yield_if_needed().await;
        }
    }

    async fn wait(&mut self) -> Result<(), LsmError> {
        match &mut self.writing {
            None => Ok(()),
            Some(writing) => {
                let result = writing.await;
                self.writing = None;
                Ok(result.map_err(|_| LsmError::Cancelled)??)
            }
        }
    }

    /// Ends the job: everything is on the medium. The caller owns the segments' space now.
    pub async fn finish(&mut self) -> Result<Vec<SegmentMeta>, LsmError> {
        self.cut().await?;
        self.wait().await?;
        if !self.done.is_empty() && !mutant::active(Mutant::NameUnflushedSegment) {
            self.queue.flush().await?;
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// After a failure: returns when the device writes nothing of it any more.
    pub async fn settle(&mut self) {
        self.builder = None;
        let _ = self.wait().await; // it has failed already
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let (space, done) = (self.space.clone(), std::mem::take(&mut self.done));
        let release = move || {
            for meta in done.iter().filter(|meta| !meta.ranges.is_empty()) {
                space.give_back(space_of(meta));
            }
        };
        match self.writing.take() {
            None => release(),
            Some(writing) if vellum_rt::has_reactor() => {
                // The device still writes there: the space is free only when it has answered.
                let task = async move {
                    let _ = writing.await;
                    release(); // and lets go of `space`
                };
                spawn(Class::Compaction, "abandoned segments", task).detach();
            }
            Some(_) => {} // the reactor has ended, and with it whoever would use the space
        }
    }
}

/// Writes with [`DEPTH`] in flight. All that were begun are waited for, whatever the first says: their space must not be
/// reused under them.
async fn write_all(queue: Rc<dyn Queue>, mut pieces: VecDeque<(u64, DmaSlice)>) -> Result<(), DeviceError> {
    let mut running = VecDeque::with_capacity(DEPTH);
    let mut result = Ok(());
    loop {
        while running.len() < DEPTH && result.is_ok() {
            let Some((at, data)) = pieces.pop_front() else { break };
            running.push_back(queue.write(at, data, false));
        }
        let Some(oldest) = running.pop_front() else { return result };
        let outcome = oldest.await;
        result = result.and(outcome);
    }
}

fn cut_writes(ranges: &[BlockRange], chunks: &[DmaSlice], out: &mut VecDeque<(u64, DmaSlice)>) {
    let mut runs = ranges.iter();
    let (mut device_at, mut room) = (0u64, 0usize);
    for chunk in chunks {
        let mut done = 0;
        while done < chunk.len() {
            if room == 0 {
                let Some(run) = runs.next() else { return };
                (device_at, room) = (run.start.bytes(), run.len_bytes());
            }
            let len = room.min(chunk.len() - done).min(WRITE_BYTES);
            out.push_back((device_at, chunk.slice(done..done + len)));
            (device_at, room, done) = (device_at + len as u64, room - len, done + len);
        }
    }
}

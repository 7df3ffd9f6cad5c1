//! Segments that a flush or a compaction writes: cut at a size, written in large writes while the next is being built.
//!
//! What was allocated is given back unless the whole job ends well (a worker that dies leaks nothing).

use std::rc::Rc;

use vellum_base::{BlockRange, DmaBuf, DmaSlice, Epoch, Key};
use vellum_format::SegmentMeta;
use vellum_nvme::{OpFuture, Queue};

use super::builder::SegmentBuilder;
use super::{LsmConfig, LsmError, ShardEnv};

pub struct Output {
    env: Rc<dyn ShardEnv>,
    queue: Rc<dyn Queue>,
    run: Epoch,
    /// Bounds of the epochs of all inputs.
    epochs: (Epoch, Epoch),
    segment_bytes: usize,
    block_bytes: usize,
    copies: u8,
    builder: Option<SegmentBuilder>,
    /// Writes of the segment before.
    writing: Vec<OpFuture>,
    done: Vec<SegmentMeta>,
}

impl Output {
    pub fn new(env: &Rc<dyn ShardEnv>, cfg: &LsmConfig, run: Epoch, epochs: (Epoch, Epoch)) -> Output {
        Output {
            env: env.clone(),
            queue: env.queue(),
            run,
            epochs,
            segment_bytes: cfg.segment_bytes,
            block_bytes: cfg.block_bytes,
            copies: cfg.copies,
            builder: None,
            writing: Vec::new(),
            done: Vec::new(),
        }
    }

    fn builder(&mut self) -> &mut SegmentBuilder {
        let (env, run, block_bytes, epochs) = (&self.env, self.run, self.block_bytes, self.epochs);
        self.builder.get_or_insert_with(|| {
            let mut builder = SegmentBuilder::new(env.next_segment_id(), run, block_bytes);
            builder.epochs(epochs.0, epochs.1);
            builder
        })
    }

    pub fn add(&mut self, key: &Key, epoch: Epoch, value: Option<&[u8]>) {
        self.builder().add(key, epoch, value);
    }

    pub fn add_range(&mut self, first: &Key, last: &Key, epochs: &[Epoch]) {
        if !epochs.is_empty() {
            self.builder().add_range(first, last, epochs);
        }
    }

    /// True when the segment is long enough: the caller cuts it at the next key boundary.
    pub fn is_full(&self) -> bool {
        self.builder.as_ref().is_some_and(|builder| builder.len_bytes() >= self.segment_bytes)
    }

    /// Ends the segment, if one was begun, and starts to write it.
    pub async fn cut(&mut self) -> Result<(), LsmError> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let (meta, chunks) = builder.finish();
        let chunks: Vec<DmaSlice> = chunks.into_iter().map(DmaBuf::freeze).collect();
        let len_bytes = meta.len_bytes;
        let index = self.done.len();
        self.done.push(meta); // at once: what is allocated for it is given back whatever happens
        for copy in 0..self.copies.clamp(1, 2) {
            let ranges = self.env.alloc_segment_space(len_bytes).await?;
            let meta = &mut self.done[index];
            if copy == 0 { meta.ranges = ranges } else { meta.mirror = ranges }
        }
        self.wait().await?;
        let meta = &self.done[index];
        for ranges in [&meta.ranges, &meta.mirror] {
            start_writes(&self.queue, ranges, &chunks, &mut self.writing);
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), LsmError> {
        // All are waited for, whatever the first says: their space must not be reused under them.
        let mut result = Ok(());
        while let Some(write) = self.writing.last_mut() {
            let outcome = write.await;
            self.writing.pop();
            result = result.and(outcome);
        }
        Ok(result?)
    }

    /// Ends the job: everything is on the medium. The caller owns the segments' space now.
    pub async fn finish(mut self) -> Result<Vec<SegmentMeta>, LsmError> {
        self.cut().await?;
        self.wait().await?;
        if !self.done.is_empty() {
            self.queue.flush().await?;
        }
        Ok(std::mem::take(&mut self.done))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let (env, done) = (self.env.clone(), std::mem::take(&mut self.done));
        let writing = std::mem::take(&mut self.writing);
        let release = move || {
            for meta in done.into_iter().filter(|meta| !meta.ranges.is_empty()) {
                env.release_segment_space(meta);
            }
        };
        if writing.is_empty() {
            release();
        } else if vellum_rt::has_reactor() {
            // The device still writes there: the space is free only when it has answered.
            let task = async move {
                for write in writing {
                    let _ = write.await;
                }
                release();
            };
            vellum_rt::spawn(vellum_rt::Class::Compaction, "abandoned segments", task).detach();
        }
    }
}

fn start_writes(queue: &Rc<dyn Queue>, ranges: &[BlockRange], chunks: &[DmaSlice], out: &mut Vec<OpFuture>) {
    let mut runs = ranges.iter();
    let (mut device_at, mut room) = (0u64, 0usize);
    for chunk in chunks {
        let mut done = 0;
        while done < chunk.len() {
            if room == 0 {
                let Some(run) = runs.next() else { return };
                (device_at, room) = (run.start.bytes(), run.len_bytes());
            }
            let len = room.min(chunk.len() - done);
            out.push(queue.write(device_at, chunk.slice(done..done + len), false));
            (device_at, room, done) = (device_at + len as u64, room - len, done + len);
        }
    }
}

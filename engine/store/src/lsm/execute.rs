//! The second step of a compaction: a function of a job and a device, run by anybody.
//!
//! It reads the inputs and writes into the space of the job, and nothing else. It ends, well or badly, only when the device
//! has answered all its writes: with the answer the space is its owner's again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, Epoch, SegmentId};
use vellum_format::segment::BlockKind;
use vellum_nvme::Queue;

use super::job::{CompactionJob, Outcome};
use super::merge::{Merge, Tally};
use super::output::{Output, OutputSpace};
use super::plan::Space;
use super::segment::Segment;
use super::stream::Stream;
use super::{LocalFuture, LsmError};

/// Ends a job from outside; it notices within a block of input.
#[derive(Clone, Default)]
pub struct Cancel(Rc<Cell<bool>>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.set(true);
    }

    pub fn check(&self) -> Result<(), LsmError> {
        if self.0.get() { Err(LsmError::Cancelled) } else { Ok(()) }
    }
}

/// Merges. On success the outputs are on the medium.
pub async fn execute(queue: &Rc<dyn Queue>, job: &CompactionJob, cancel: &Cancel) -> Result<Outcome, LsmError> {
    execute_in(queue, job, cancel, None).await
}

/// `held` is let go when the last write has been answered, also if this future is dropped.
pub(super) async fn execute_in(
    queue: &Rc<dyn Queue>,
    job: &CompactionJob,
    cancel: &Cancel,
    held: Option<Rc<Space>>,
) -> Result<Outcome, LsmError> {
    let space = Rc::new(SetAside::of(job, held));
    let mut output = Output::new(space, queue.clone(), job.shape.clone(), Epoch::NONE, job.epochs());
    let done = match merge(queue, job, cancel, &mut output).await {
        Ok(read) => output.finish().await.map(|segments| Outcome { segments, read }),
        Err(e) => Err(e),
    };
    output.settle().await;
    done
}

async fn merge(
    queue: &Rc<dyn Queue>,
    job: &CompactionJob,
    cancel: &Cancel,
    output: &mut Output,
) -> Result<Tally, LsmError> {
    let runs: Vec<Vec<Rc<Segment>>> =
        job.sources.iter().map(|run| run.iter().cloned().map(Segment::borrowed).collect()).collect();
    let streams = |kind| runs.iter().map(|run| Stream::new(queue.clone(), kind, run)).collect();
    let (points, ranges) = (streams(BlockKind::Data), streams(BlockKind::Tombstones));
    Merge::open(points, ranges, job, output, cancel).await?.run().await
}

/// The ids and blocks that were set aside for a job.
struct SetAside {
    ids: Cell<(u64, u64)>,
    space: RefCell<VecDeque<BlockRange>>,
    _held: Option<Rc<Space>>,
}

impl SetAside {
    fn of(job: &CompactionJob, held: Option<Rc<Space>>) -> SetAside {
        SetAside {
            ids: Cell::new((job.first_id.0, job.first_id.0.saturating_add(job.ids))),
            space: RefCell::new(job.space.iter().copied().collect()),
            _held: held,
        }
    }

    fn cut(&self, len_bytes: u64) -> Result<Vec<BlockRange>, LsmError> {
        let mut space = self.space.borrow_mut();
        let mut left = u32::try_from(len_bytes / BLOCK_SIZE as u64).map_err(|_| LsmError::Ids)?;
        let mut out = Vec::new();
        while left > 0 {
            let Some(front) = space.front_mut() else { return Err(LsmError::Ids) };
            let len = left.min(front.len_blocks);
            out.push(BlockRange { start: front.start, len_blocks: len });
            if len == front.len_blocks {
                space.pop_front();
            } else {
                *front = BlockRange::new(front.start.0 + u64::from(len), front.len_blocks - len);
            }
            left -= len;
        }
        Ok(out)
    }
}

impl OutputSpace for SetAside {
    fn next_id(&self) -> Result<SegmentId, LsmError> {
        let (next, end) = self.ids.get();
        if next >= end {
            return Err(LsmError::Ids);
        }
        self.ids.set((next + 1, end));
        Ok(SegmentId(next))
    }

    fn take(&self, len_bytes: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>> {
        let cut = self.cut(len_bytes);
        Box::pin(async move { cut })
    }

    fn give_back(&self, _: Vec<BlockRange>) {
        // All of it belongs to the one who planned the job.
    }
}

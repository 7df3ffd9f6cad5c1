//! What the store gives its shards: the queue, ids, space for segments, and which versions somebody may still read.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, Epoch, ReactorId, SegmentId};
use vellum_format::SegmentMeta;
use vellum_nvme::Queue;

use crate::error::StoreError;
use crate::lsm::{LocalFuture, LsmError, ShardEnv};
use crate::mesh::{Answer, Mesh, Message, Request};
use crate::space::SegmentSpace;

/// The reactor that coordinates epochs and keeps the manifest.
pub(crate) const COORDINATOR: ReactorId = ReactorId(0);

pub(crate) struct Env {
    queue: Rc<dyn Queue>,
    mesh: Rc<Mesh>,
    next_segment: Cell<u64>,
    pub oldest_reader: Cell<Epoch>,
    pub closed: Cell<Epoch>,
    /// In a read-only store, and on the coordinator itself, space is given without a message.
    pub local_space: RefCell<Option<Rc<dyn LocalSpace>>>,
}

/// Segment space of the coordinator, for its own shards.
pub(crate) trait LocalSpace {
    fn alloc(&self, least: u64, most: u64) -> LocalFuture<'_, Result<Vec<BlockRange>, StoreError>>;
    fn release(&self, space: &[BlockRange]);
    fn release_segment(&self, segment: SegmentId, space: &[BlockRange]);
}

impl Env {
    pub fn new(queue: Rc<dyn Queue>, mesh: Rc<Mesh>, first_segment: SegmentId, closed: Epoch) -> Rc<Env> {
        Rc::new(Env {
            queue,
            mesh,
            next_segment: Cell::new(first_segment.0),
            oldest_reader: Cell::new(closed),
            closed: Cell::new(closed),
            local_space: RefCell::default(),
        })
    }
}

impl ShardEnv for Env {
    fn queue(&self) -> Rc<dyn Queue> {
        self.queue.clone()
    }

    fn next_segment_ids(&self, count: u64) -> SegmentId {
        let id = self.next_segment.get();
        self.next_segment.set(id + count);
        SegmentId(id)
    }

    fn alloc_segment_space(
        &self,
        least_bytes: u64,
        most_bytes: u64,
    ) -> LocalFuture<'_, Result<Vec<BlockRange>, LsmError>> {
        Box::pin(async move {
            let blocks = |bytes: u64| bytes.div_ceil(BLOCK_SIZE as u64);
            let (least, most) = (blocks(least_bytes), blocks(most_bytes));
            let local = self.local_space.borrow().clone();
            let got = match local {
                Some(space) => space.alloc(least, most).await,
                None => match self.mesh.call(COORDINATOR, Request::AllocSegment { least, most }).await {
                    Ok(Ok(Answer::Ranges(ranges))) => Ok(ranges),
                    Ok(Err(e)) => Err(e),
                    _ => Err(StoreError::Closed),
                },
            };
            got.map_err(|e| match e {
                StoreError::NoSpace => LsmError::NoSpace { wanted_bytes: least_bytes },
                StoreError::Device(e) => LsmError::Device(e),
                e => LsmError::Space(e.to_string()),
            })
        })
    }

    fn release_space(&self, space: Vec<BlockRange>) {
        let local = self.local_space.borrow().clone();
        match local {
            Some(local) => local.release(&space),
            None => self.mesh.post(COORDINATOR, Message::ReleaseSpace { space }),
        }
    }

    fn release_segment(&self, segment: SegmentId, space: Vec<BlockRange>) {
        let local = self.local_space.borrow().clone();
        match local {
            Some(local) => local.release_segment(segment, &space),
            None => self.mesh.post(COORDINATOR, Message::ReleaseSegment { segment, space }),
        }
    }

    fn oldest_reader(&self) -> Epoch {
        self.oldest_reader.get()
    }

    fn closed_epoch(&self) -> Epoch {
        self.closed.get()
    }
}

/// Space of a store that is open for reading: what `SegmentSpace` would give is never asked for.
pub(crate) fn holds_all<'a>(
    space: &mut SegmentSpace,
    segments: impl Iterator<Item = &'a SegmentMeta>,
) -> Result<(), StoreError> {
    for meta in segments {
        for range in meta.ranges.iter().chain(&meta.mirror) {
            if !space.hold(range) {
                let place = format!("segment {} at {}+{}", meta.id, range.start, range.len_blocks);
                return Err(StoreError::corrupt(
                    place,
                    "another segment holds blocks of it, or no chunk for segments does",
                ));
            }
        }
    }
    Ok(())
}

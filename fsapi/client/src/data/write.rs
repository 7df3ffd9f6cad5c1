//! Sending file data.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, DmaSlice};
use vellum_format::item::MAX_EXTENT_BLOCKS;
use vellum_wire::{ErrorCode, Request, Response};

use super::RetainedData;
use crate::port::Reply;
use crate::stats::count;
use crate::{Client, ClientError, env};

/// Longest payload of one request, in bytes.
pub const MAX_FRAME_DATA: usize = MAX_EXTENT_BLOCKS as usize * BLOCK_SIZE;
const BUSY_DELAY: std::time::Duration = std::time::Duration::from_millis(2);

struct Writing<'a>(&'a RetainedData, usize);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.set(self.0.writing.get() - self.1);
    }
}

impl Client {
    /// Writes whole blocks to newly allocated places. The answer's ranges, in order, hold the data; they may be put
    /// into extents (whole or in parts, each block once) and be read. None is longer than an extent may be.
    ///
    /// Waits when much data is on its way to durability: commit the extents of what was written before writing more
    /// than some tens of MiB. Errors: NoSpace (nothing was written that costs space), Io.
    pub async fn write_blocks(self: &Rc<Self>, data: DmaSlice) -> Result<Vec<BlockRange>, ClientError> {
        assert!(data.is_block_aligned() && !data.is_empty(), "data is written in whole blocks");
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let end = (at + MAX_FRAME_DATA).min(data.len());
            ranges.extend(self.write_frame(data.slice(at..end)).await?);
            at = end;
        }
        Ok(ranges)
    }

    async fn write_frame(self: &Rc<Self>, data: DmaSlice) -> Result<Vec<BlockRange>, ClientError> {
        self.data_room(data.len()).await?;
        self.data.writing.set(self.data.writing.get() + data.len());
        let _writing = Writing(&self.data, data.len());
        loop {
            self.check_alive()?;
            let reply = self.port.call(Request::WriteData, Some(data.clone())).await?;
            if reply.term != self.port.durable().0 && matches!(reply.body, Response::Written { .. }) {
                continue; // pending with a leader that is gone
            }
            match written(reply, data.len()) {
                Err(e) if e.code() == Some(ErrorCode::Busy) => env::sleep(BUSY_DELAY).await,
                Err(e) => return Err(e),
                Ok(places) => {
                    count(&self.counters.data_blocks_written, (data.len() / BLOCK_SIZE) as u64);
                    return Ok(self.data.add(data, &places));
                }
            }
        }
    }

    /// Back-pressure: waits while data that batches refer to fills the bound. What nobody refers to yet cannot be
    /// waited for: its owner may be the one who waits.
    async fn data_room(self: &Rc<Self>, len: usize) -> Result<(), ClientError> {
        loop {
            self.check_alive()?;
            let (retained, referred) = {
                let runs = self.data.runs.borrow();
                (runs.retained_bytes() + self.data.writing.get(), runs.referred_bytes())
            };
            if retained + len <= self.options.max_retained_data_bytes || referred == 0 {
                return Ok(());
            }
            self.sync().await?;
        }
    }
}

/// The places in the answer to a write of `len` bytes.
pub(crate) fn written(reply: Reply, len: usize) -> Result<Vec<BlockRange>, ClientError> {
    match reply.body {
        Response::Written { ranges } => {
            let total: usize = ranges.iter().map(|r| r.len_bytes()).sum();
            let sane = ranges.iter().all(|r| r.len_blocks > 0 && r.start.0 > 0 && r.start.0 < super::PROVISIONAL >> 1);
            if total == len && sane { Ok(ranges) } else { Err(ClientError::Protocol { request: "WriteData" }) }
        }
        Response::Error(e) => Err(ClientError::Engine(e)),
        _ => Err(ClientError::Protocol { request: "WriteData" }),
    }
}

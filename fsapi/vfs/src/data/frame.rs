//! A data frame: blocks of one or many files that go to the engine in one request.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, DmaBuf, DmaSlice};

use crate::error::VfsError;
use crate::file::File;

use super::extents::place;
use super::runs::FRAME_BLOCKS;

struct Part {
    file: Rc<File>,
    flight: u64,
    pieces: Vec<(u64, DmaSlice)>,
}

#[derive(Default)]
pub(crate) struct Frame {
    parts: Vec<Part>,
    len_blocks: usize,
}

impl Frame {
    pub fn is_empty(&self) -> bool {
        self.len_blocks == 0
    }

    pub fn room_blocks(&self) -> usize {
        FRAME_BLOCKS - self.len_blocks
    }

    /// Takes what fits of the file's dirty blocks; answers the number of blocks.
    pub fn board(&mut self, file: &Rc<File>) -> usize {
        let Some((flight, pieces)) = file.buffer.borrow_mut().take_off(self.room_blocks()) else { return 0 };
        let blocks = pieces.iter().map(|(_, slice)| slice.len() / BLOCK_SIZE).sum();
        self.len_blocks += blocks;
        self.parts.push(Part { file: file.clone(), flight, pieces });
        blocks
    }

    /// The frame's bytes: the very memory of a single piece, else one copy.
    pub fn payload(&self) -> DmaSlice {
        let mut pieces = self.parts.iter().flat_map(|p| &p.pieces);
        if let (Some((_, only)), None) = (pieces.next(), pieces.next()) {
            return only.clone();
        }
        let mut buf = DmaBuf::new(self.len_blocks * BLOCK_SIZE);
        let mut at = 0;
        for (_, slice) in self.parts.iter().flat_map(|p| &p.pieces) {
            buf[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        buf.freeze()
    }

    /// Tells each file where its blocks are now; answers the files.
    pub fn land(self, result: Result<Vec<BlockRange>, VfsError>) -> Vec<Rc<File>> {
        let all = self.parts.iter().flat_map(|p| &p.pieces).map(|(first, slice)| (*first, &slice[..]));
        let mut placed = result.and_then(|ranges| {
            place(all, &ranges).map(Vec::into_iter).ok_or_else(|| {
                tracing::error!("the engine returned fewer blocks than were written");
                VfsError::IO
            })
        });
        for part in &self.parts {
            let landed = match &mut placed {
                Ok(placed) => Ok(placed.by_ref().take(part.pieces.len()).flatten().collect()),
                Err(error) => Err(*error),
            };
            let mut buffer = part.file.buffer.borrow_mut();
            if let Some(flight) = buffer.flying.iter_mut().find(|f| f.number == part.flight) {
                flight.landed = Some(landed);
            }
        }
        self.parts.into_iter().map(|p| p.file).collect()
    }
}

//! Reading file data: from memory while it is not durable, else from the engine.

use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockRange, DmaBuf, DmaSlice, Ino};
use vellum_wire::{FilePart, Request, Response};

use super::Piece;
use super::write::MAX_FRAME_DATA;
use crate::stats::count;
use crate::{Client, ClientError};

/// Most ranges in one request.
const MAX_RANGES: usize = 256;

impl Client {
    /// The blocks of all ranges, in order, whosever they are; not for a confined client, which reads files.
    pub async fn read_blocks(self: &Rc<Self>, ranges: &[BlockRange]) -> Result<DmaBuf, ClientError> {
        let mut block = 0;
        let part = |range: &BlockRange| {
            let part = FilePart { block, range: *range };
            block += u64::from(range.len_blocks);
            part
        };
        let parts: Vec<FilePart> = ranges.iter().map(part).collect();
        self.read_file_blocks(Ino::NONE, &parts).await
    }

    /// The blocks of a file's parts, in order. Parts ascend by block, and the guard under which they were read from extents
    /// must live. Checksums are the caller's to verify: they are in the extents.
    pub async fn read_file_blocks(self: &Rc<Self>, ino: Ino, parts: &[FilePart]) -> Result<DmaBuf, ClientError> {
        self.check_alive()?;
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            let mut block = part.block;
            for piece in self.data.pieces(part.range)? {
                let len_blocks = piece.len_blocks();
                pieces.push((block, piece));
                block += len_blocks;
            }
        }
        let total: usize = parts.iter().map(|part| part.range.len_bytes()).sum();
        let requests = requests(&pieces);
        let pieces: Vec<Piece> = pieces.into_iter().map(|(_, piece)| piece).collect();
        count(&self.counters.data_blocks_read, (total / BLOCK_SIZE) as u64);
        // All are sent before the first answer is awaited.
        let calls: Vec<_> = requests.iter().map(|parts| self.port.call(self.read_request(ino, parts), None)).collect();
        let mut answers = Vec::with_capacity(calls.len());
        for (call, parts) in calls.into_iter().zip(&requests) {
            let reply = call.await?;
            let len: usize = parts.iter().map(|part| part.range.len_bytes()).sum();
            match (reply.body, reply.payload) {
                (Response::Data, Some(payload)) if payload.len() == len => answers.push(payload),
                (Response::Error(e), _) => return Err(ClientError::Engine(e)),
                _ => return Err(ClientError::Protocol { request: "ReadData" }),
            }
        }
        let from_memory = pieces.iter().any(|p| matches!(p, Piece::Memory(_)));
        if !from_memory && answers.len() == 1 {
            let only = answers.pop().ok_or(ClientError::Protocol { request: "ReadData" })?;
            return Ok(only.into_buf());
        }
        Ok(self.assemble(total, &pieces, answers))
    }

    /// Whose blocks they are costs the engine a look; only of a confined client it wants to know.
    fn read_request(&self, ino: Ino, parts: &[FilePart]) -> Request {
        if self.is_confined() {
            Request::ReadFile { ino, parts: parts.to_vec() }
        } else {
            Request::ReadData { ranges: parts.iter().map(|part| part.range).collect() }
        }
    }

    fn assemble(&self, total: usize, pieces: &[Piece], answers: Vec<DmaSlice>) -> DmaBuf {
        let mut out = DmaBuf::new(total);
        let mut device: std::collections::VecDeque<DmaSlice> = answers.into();
        let mut at = 0;
        for piece in pieces {
            match piece {
                Piece::Memory(data) => {
                    out[at..at + data.len()].copy_from_slice(data);
                    at += data.len();
                    count(&self.counters.data_blocks_from_memory, (data.len() / BLOCK_SIZE) as u64);
                }
                Piece::Device(range) => {
                    let mut left = range.len_bytes();
                    while left > 0 {
                        let Some(front) = device.front_mut() else { break };
                        let take = left.min(front.len());
                        out[at..at + take].copy_from_slice(&front[..take]);
                        at += take;
                        left -= take;
                        if take == front.len() {
                            device.pop_front();
                        } else {
                            *front = front.slice(take..front.len());
                        }
                    }
                }
            }
        }
        out
    }
}

/// What is on the device of the pieces, each with its first block in the file, in requests that fit a frame.
fn requests(pieces: &[(u64, Piece)]) -> Vec<Vec<FilePart>> {
    let max_blocks = (MAX_FRAME_DATA / BLOCK_SIZE) as u32;
    let mut requests: Vec<Vec<FilePart>> = Vec::new();
    let mut room = 0;
    for (first_block, piece) in pieces {
        let Piece::Device(range) = piece else { continue };
        let (mut block, mut rest) = (*first_block, *range);
        while rest.len_blocks > 0 {
            let open = requests.last().is_some_and(|r| r.len() < MAX_RANGES) && room > 0;
            if !open {
                requests.push(Vec::new());
                room = max_blocks;
            }
            let take = rest.len_blocks.min(room);
            if let Some(last) = requests.last_mut() {
                last.push(FilePart { block, range: BlockRange { start: rest.start, len_blocks: take } });
            }
            block += u64::from(take);
            rest = BlockRange::new(rest.start.0 + u64::from(take), rest.len_blocks - take);
            room -= take;
        }
    }
    requests
}

//! Sending frames into a byte stream: what is pending goes out together.
//!
//! A peer that reads too slowly is given up: what waits for it is bounded by its credits, but held for ever.

use std::time::Duration;

use vellum_proto::Timers;
use vellum_rt::timeout;
use vellum_wire::Frame;

use crate::carrier::Carrier;
use crate::error::SocketError;

/// Payloads up to this length are copied behind their header, so that they don't cost a send of their own.
const COPIED_PAYLOAD: usize = 8 << 10;
/// One send carries about so many bytes of headers and control parts.
const HEAD_BYTES: usize = 256 << 10;
/// A head that one long message blew up is not kept.
const KEPT_HEAD_BYTES: usize = 1 << 20;

pub(crate) struct StreamWriter {
    stream: Carrier,
    /// One send (a frame of the greatest length at most, behind [`HEAD_BYTES`] of others) takes no longer.
    pub(crate) stall: Duration,
    head: Vec<u8>,
}

impl StreamWriter {
    pub(crate) fn new(stream: Carrier) -> StreamWriter {
        StreamWriter { stream, stall: Timers::DEFAULT.send_stall, head: Vec::new() }
    }

    /// Sends everything that `next` gives.
    pub(crate) async fn send(&mut self, mut next: impl FnMut() -> Option<Frame>) -> Result<(), SocketError> {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        while let Some(frame) = next() {
            frame.encode_head(&mut head);
            let payload = frame.payload.filter(|p| {
                let copied = p.len() <= COPIED_PAYLOAD;
                if copied {
                    head.extend_from_slice(p);
                }
                !copied
            });
            if payload.is_some() || head.len() >= HEAD_BYTES {
                head = self.flush(head, payload).await?;
            }
        }
        if !head.is_empty() {
            head = self.flush(head, None).await?;
        }
        if head.capacity() <= KEPT_HEAD_BYTES {
            self.head = head;
        }
        Ok(())
    }

    async fn flush(&mut self, head: Vec<u8>, payload: Option<vellum_base::DmaSlice>) -> Result<Vec<u8>, SocketError> {
        let sent = timeout(self.stall, self.stream.send_all(head, payload)).await;
        let (sent, mut head) = sent.map_err(|_| SocketError::Stalled(self.stall))?;
        sent?;
        head.clear();
        Ok(head)
    }
}

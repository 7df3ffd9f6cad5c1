//! Futures over a queue: `queue.read(..)`, `write`, `flush`, `discard` on `Rc<dyn Queue>`.
//!
//! The operation is submitted by the call, not by the first poll, so a caller may start many and then wait. Dropping a
//! future forgets the operation: the device still does it, and its memory lives until then.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use vellum_base::{DmaBuf, DmaSlice};

use crate::{DeviceError, IoDone, IoOp, Queue, Ticket};

/// One submitted operation.
pub struct IoFuture {
    queue: Rc<dyn Queue>,
    ticket: Option<Ticket>,
}

impl Future for IoFuture {
    type Output = IoDone;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoDone> {
        let ticket = self.ticket.expect("polled again after its end");
        let poll = self.queue.poll_done(ticket, cx);
        if poll.is_ready() {
            self.ticket = None;
        }
        poll
    }
}

impl Drop for IoFuture {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.queue.forget(ticket);
        }
    }
}

/// One operation, or the pieces of one that is longer than a transfer; ends with the first error in order of address.
pub struct OpFuture {
    parts: Parts,
}

enum Parts {
    One(IoFuture),
    /// Those still running are `Some`; the first error in order of position.
    Many(Vec<Option<IoFuture>>, Option<(usize, DeviceError)>),
}

impl Future for OpFuture {
    type Output = Result<(), DeviceError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.parts {
            Parts::One(io) => Pin::new(io).poll(cx).map(|(result, _)| result),
            Parts::Many(parts, error) => poll_parts(parts, error, cx, |_, _| {}),
        }
    }
}

/// Polls every running part; `each` gets the buffer of each that ends.
fn poll_parts(
    parts: &mut [Option<IoFuture>],
    error: &mut Option<(usize, DeviceError)>,
    cx: &mut Context<'_>,
    mut each: impl FnMut(usize, DmaBuf),
) -> Poll<Result<(), DeviceError>> {
    let mut running = false;
    for (index, part) in parts.iter_mut().enumerate() {
        let Some(io) = part else { continue };
        let Poll::Ready((result, buf)) = Pin::new(io).poll(cx) else {
            running = true;
            continue;
        };
        *part = None;
        match result {
            Ok(()) => {
                if let Some(buf) = buf {
                    each(index, buf);
                }
            }
            Err(err) if error.as_ref().is_none_or(|(first, _)| index < *first) => *error = Some((index, err)),
            Err(_) => {}
        }
    }
    if running {
        return Poll::Pending;
    }
    Poll::Ready(error.take().map_or(Ok(()), |(_, err)| Err(err)))
}

/// Gives the buffer back, filled. A read that was split is gathered by copying: the caller's buffer cannot be given to
/// two operations, and only reads longer than a transfer pay.
pub struct ReadFuture {
    whole: Option<DmaBuf>,
    piece_bytes: usize,
    parts: Parts,
}

impl Future for ReadFuture {
    type Output = Result<DmaBuf, DeviceError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ReadFuture { whole, piece_bytes, parts } = &mut *self;
        match parts {
            Parts::One(io) => Pin::new(io).poll(cx).map(|(result, buf)| {
                result?;
                Ok(buf.expect("a successful read has its buffer"))
            }),
            Parts::Many(parts, error) => {
                let out = whole.as_mut().expect("polled again after its end");
                let poll = poll_parts(parts, error, cx, |index, piece| {
                    let at = index * *piece_bytes;
                    out[at..at + piece.len()].copy_from_slice(&piece);
                });
                match poll {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(whole.take().expect("checked above"))),
                    Poll::Ready(Err(err)) => Poll::Ready(Err(err)),
                }
            }
        }
    }
}

/// The pieces of `0..len`, each at most `step` long.
fn pieces(len: usize, step: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..len).step_by(step).map(move |at| at..(at + step).min(len))
}

impl dyn Queue {
    /// Submits `op` as it is (not split).
    pub fn start(self: &Rc<Self>, op: IoOp) -> IoFuture {
        IoFuture { ticket: Some(self.submit(op)), queue: self.clone() }
    }

    /// Fills `buf` (its whole length) from `at_bytes`.
    pub fn read(self: &Rc<Self>, at_bytes: u64, buf: DmaBuf) -> ReadFuture {
        let step = self.geometry().max_transfer_bytes;
        if buf.len() <= step {
            let parts = Parts::One(self.start(IoOp::Read { at_bytes, buf }));
            return ReadFuture { whole: None, piece_bytes: 0, parts };
        }
        let parts = pieces(buf.len(), step)
            .map(|range| {
                let piece = DmaBuf::new(range.len());
                Some(self.start(IoOp::Read { at_bytes: at_bytes.saturating_add(range.start as u64), buf: piece }))
            })
            .collect();
        ReadFuture { whole: Some(buf), piece_bytes: step, parts: Parts::Many(parts, None) }
    }

    /// Writes `data` at `at_bytes`. A split write is not atomic in any sense (nor is one that is not split).
    pub fn write(self: &Rc<Self>, at_bytes: u64, data: DmaSlice, fua: bool) -> OpFuture {
        let step = self.geometry().max_transfer_bytes;
        if data.len() <= step {
            return OpFuture { parts: Parts::One(self.start(IoOp::Write { at_bytes, data, fua })) };
        }
        let parts = pieces(data.len(), step)
            .map(|range| {
                let at_bytes = at_bytes.saturating_add(range.start as u64);
                Some(self.start(IoOp::Write { at_bytes, data: data.slice(range), fua }))
            })
            .collect();
        OpFuture { parts: Parts::Many(parts, None) }
    }

    /// Ends when all writes that were complete at the time of the call are on the medium. An error is final.
    pub fn flush(self: &Rc<Self>) -> OpFuture {
        OpFuture { parts: Parts::One(self.start(IoOp::Flush)) }
    }

    pub fn discard(self: &Rc<Self>, at_bytes: u64, len_bytes: u64) -> OpFuture {
        OpFuture { parts: Parts::One(self.start(IoOp::Discard { at_bytes, len_bytes })) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::memory::MemoryDevice;
    use crate::testing::block_on;

    #[test]
    fn long_transfers_are_split_and_gathered() {
        let device = MemoryDevice::new(8 << 20);
        let q = device.open_queue(2).unwrap();
        let mut data = DmaBuf::new((3 << 20) + 4096);
        vellum_base::prng::Prng::new(1).fill(&mut data);
        let data = data.freeze();
        block_on(&q, q.write(4096, data.clone(), false)).unwrap();
        let back = block_on(&q, q.read(4096, DmaBuf::new(data.len()))).unwrap();
        assert!(back[..] == data[..]);
        let past_end = block_on(&q, q.write(7 << 20, data, false));
        assert!(matches!(past_end, Err(DeviceError::OutOfRange { at_bytes, .. }) if at_bytes == 8 << 20));
    }

    #[test]
    fn a_dropped_future_forgets_but_the_write_happens() {
        let device = MemoryDevice::new(1 << 20);
        let q = device.open_queue(1).unwrap();
        drop(q.write(0, DmaBuf::copy_from(&[7; 4096], true).freeze(), false));
        drop(q.read(0, DmaBuf::new(4096)));
        assert_eq!(q.in_flight(), 2);
        assert_eq!(q.process_completions(), 2);
        assert_eq!(q.in_flight(), 0);
        assert_eq!(block_on(&q, q.read(0, DmaBuf::new(4096))).unwrap()[..], [7; 4096]);
    }
}

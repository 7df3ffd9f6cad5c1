//! The buffer that requests are read into, laid out so that WRITE's data starts at a block boundary.
//!
//! ```text
//!   0        4016                       4096                       4096 + max_write
//!   | unused | header (40) WriteIn (40) | data ...                 |
//! ```
//! Every message starts at 4016. Large data leaves with the buffer, without a copy; small data is copied, since a
//! small write that waits would pin the whole buffer.

use std::ops::Range;

use vellum_base::{BLOCK_SIZE, DmaBuf, DmaSlice};

use crate::abi::{InHeader, MIN_READ_BUFFER, WriteIn};

/// Data from here on leaves with the buffer. A waiting write then pins 2 MiB at most for each 128 KiB of it.
const GIVE_AWAY_MIN: usize = 128 << 10;
const MESSAGE_START: usize = BLOCK_SIZE - size_of::<InHeader>() - size_of::<WriteIn>();

pub fn new(max_write: usize) -> DmaBuf {
    DmaBuf::new(BLOCK_SIZE + max_write.max(MIN_READ_BUFFER))
}

/// Where a message is read to.
pub fn room(buf: &DmaBuf) -> Range<usize> {
    MESSAGE_START..buf.len()
}

pub fn message(buf: &DmaBuf, len: usize) -> &[u8] {
    buf.get(MESSAGE_START..MESSAGE_START.saturating_add(len)).unwrap_or_default()
}

/// The `size` bytes of a WRITE's data, and a buffer for the next message. `size` was compared with the message's length.
pub fn take_data(buf: DmaBuf, size: usize, max_write: usize) -> (DmaSlice, DmaBuf) {
    if size >= GIVE_AWAY_MIN {
        (buf.freeze().slice(BLOCK_SIZE..BLOCK_SIZE + size), new(max_write))
    } else {
        (DmaBuf::copy_from(&buf[BLOCK_SIZE..BLOCK_SIZE + size], false).freeze(), buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_and_copied_only_when_small() {
        let max = 1 << 20;
        let mut buf = new(max);
        let (header, data) = (MESSAGE_START, BLOCK_SIZE);
        assert_eq!(data - header, 80);
        buf[data] = 7;
        let at = buf.as_ptr() as usize;
        let (small, buf) = take_data(buf, 4096, max);
        assert!(small[0] == 7 && small.is_block_aligned() && buf.as_ptr() as usize == at);
        let (large, buf) = take_data(buf, max, max);
        assert!(large[0] == 7 && large.len() == max && large.is_block_aligned());
        assert!(large.as_ptr() as usize == at + BLOCK_SIZE && buf.as_ptr() as usize != at);
        assert!(message(&buf, usize::MAX).is_empty());
    }
}

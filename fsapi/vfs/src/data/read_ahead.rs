//! Read-ahead of one open file: a window of content that was read beyond what was asked for.
//!
//! The window carries the data version that it was read at; whoever asks holds the inode's lock and compares, so a
//! window is never stale, whichever client wrote in between.

use std::cell::{Cell, RefCell};

use vellum_base::DmaSlice;

/// First window of a sequential reader; each next one is twice as large.
const FIRST_WINDOW: u64 = 128 << 10;

struct Window {
    /// Offset of the first byte.
    base: u64,
    data_version: u64,
    data: DmaSlice,
}

#[derive(Default)]
pub(crate) struct ReadAhead {
    /// Where the next read of a sequential reader begins.
    expected: Cell<u64>,
    size: Cell<u64>,
    window: RefCell<Option<Window>>,
}

impl ReadAhead {
    /// The bytes `from..to`, when the window holds them all.
    pub fn get(&self, from: u64, to: u64, data_version: u64) -> Option<DmaSlice> {
        let window = self.window.borrow();
        let w = window.as_ref().filter(|w| w.data_version == data_version)?;
        let start = from.checked_sub(w.base)?;
        let end = to - w.base;
        if end > w.data.len() as u64 {
            return None;
        }
        self.expected.set(to);
        Some(w.data.slice(start as usize..end as usize))
    }

    /// Bytes to read from `from` on, for a reader that wants up to `to`.
    pub fn window(&self, from: u64, to: u64, max: u64) -> u64 {
        let sequential = from == self.expected.get() && from > 0;
        let size = if sequential { (self.size.get() * 2).max(FIRST_WINDOW).min(max) } else { 0 };
        self.size.set(size);
        size.max(to - from)
    }

    /// What was read: `data` holds `base..until`, of which the reader took up to `to`.
    pub fn keep(&self, base: u64, until: u64, to: u64, data_version: u64, data: &DmaSlice) {
        self.expected.set(to);
        let more = until > to;
        *self.window.borrow_mut() = more.then(|| Window { base, data_version, data: data.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_base::DmaBuf;

    #[test]
    fn only_sequential_readers_get_growing_windows() {
        let ra = ReadAhead::default();
        let max = 1 << 20;
        assert_eq!(ra.window(0, 100, max), 100, "a first read may be the only one");
        ra.keep(0, 100, 100, 1, &DmaBuf::zeroed(100).freeze());
        assert_eq!(ra.window(100, 200, max), FIRST_WINDOW);
        ra.keep(0, 300, 200, 1, &DmaBuf::zeroed(300).freeze());
        assert_eq!(ra.get(200, 300, 1).map(|s| s.len()), Some(100));
        assert!(ra.get(200, 300, 2).is_none(), "the file has changed");
        assert!(ra.get(200, 301, 1).is_none());
        assert_eq!(ra.window(300, 301, max), 2 * FIRST_WINDOW);
        assert_eq!(ra.window(300, 301, 0), 1, "turned off");
        assert_eq!(ra.window(77, 78, max), 1);
    }
}

//! Read-ahead of one open file: windows of content that were read beyond what was asked for.
//!
//! A sequential reader has one window that it takes from and one that is on its way, so the device works while the kernel
//! copies. A window carries the data version that it was read at; whoever asks holds the inode's lock and compares, so a
//! window is never stale, whichever client wrote in between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use vellum_base::DmaSlice;
use vellum_rt::JoinHandle;
use vellum_rt::local::Notify;

use crate::handle::Handle;

/// First window of a sequential reader; each next one is twice as large.
const FIRST_WINDOW: u64 = 128 << 10;
/// Windows in memory: the one that is taken from, and the next.
const WINDOWS: usize = 2;

struct Window {
    /// Offset of the first byte.
    base: u64,
    data_version: u64,
    data: DmaSlice,
}

impl Window {
    fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }
}

#[derive(Default)]
pub(crate) struct ReadAhead {
    /// Where the next read of a sequential reader begins.
    expected: Cell<u64>,
    size: Cell<u64>,
    windows: RefCell<VecDeque<Window>>,
    /// Ranges that are being read.
    coming: RefCell<Vec<(u64, u64)>>,
    came: Notify,
    /// Reads the next window.
    task: RefCell<Option<JoinHandle<()>>>,
}

impl ReadAhead {
    /// The bytes `from..to`, when a window holds them all.
    pub fn get(&self, from: u64, to: u64, data_version: u64) -> Option<DmaSlice> {
        let mut windows = self.windows.borrow_mut();
        windows.retain(|w| w.data_version == data_version);
        let at = windows.iter().position(|w| w.base <= from && to <= w.end())?;
        let w = &windows[at];
        let found = w.data.slice((from - w.base) as usize..(to - w.base) as usize);
        if to == w.end() {
            windows.drain(..=at);
        }
        self.expected.set(to);
        Some(found)
    }

    /// Bytes to read from `from` on, for a reader that wants up to `to`.
    pub fn window(&self, from: u64, to: u64, max: u64) -> u64 {
        let sequential = from == self.expected.get() && from > 0;
        let size = if sequential { (self.size.get() * 2).max(FIRST_WINDOW).min(max) } else { 0 };
        self.size.set(size);
        size.max(to - from)
    }

    /// What was read: `data` holds the bytes from `base` on, of which the reader took up to `to`.
    pub fn keep(&self, base: u64, to: u64, data_version: u64, data: &DmaSlice) {
        self.expected.set(to);
        let window = Window { base, data_version, data: data.clone() };
        if window.end() > to {
            self.add(window);
        }
    }

    /// A window that nobody has taken from yet.
    pub fn add_next(&self, base: u64, data_version: u64, data: DmaSlice) {
        self.add(Window { base, data_version, data });
    }

    fn add(&self, window: Window) {
        let mut windows = self.windows.borrow_mut();
        windows.push_back(window);
        if windows.len() > WINDOWS {
            windows.pop_front();
        }
    }

    /// The range to read next for a sequential reader of a file of `size` bytes that has its last window before it.
    pub fn next(&self, size: u64, max: u64) -> Option<(u64, u64)> {
        let reach = self.windows.borrow().back().map_or(self.expected.get(), Window::end);
        let enough = self.windows.borrow().len() >= WINDOWS || !self.coming.borrow().is_empty();
        if self.size.get() == 0 || enough || reach >= size {
            return None;
        }
        self.size.set((self.size.get() * 2).min(max));
        Some((reach, size.min(reach + self.size.get())))
    }

    /// These bytes are being read.
    pub fn is_coming(&self, from: u64, to: u64) -> bool {
        self.coming.borrow().iter().any(|(base, until)| *base <= from && to <= *until)
    }

    /// Ends when something that was being read has come, or could not be read.
    pub async fn came(&self) {
        self.came.notified().await;
    }

    pub fn set_task(&self, task: JoinHandle<()>) {
        *self.task.borrow_mut() = Some(task);
    }

    /// Nothing is read ahead any more when this ends.
    pub async fn stop(&self) {
        let task = self.task.borrow_mut().take();
        if let Some(task) = task {
            task.cancel();
            let _ = task.await; // cancelled, or done already
        }
    }
}

/// A range that is being read; over when it is dropped.
pub(crate) struct Coming {
    handle: Rc<Handle>,
    range: (u64, u64),
}

impl Coming {
    pub fn new(handle: &Rc<Handle>, from: u64, until: u64) -> Coming {
        handle.read_ahead.coming.borrow_mut().push((from, until));
        Coming { handle: handle.clone(), range: (from, until) }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let ra = &self.handle.read_ahead;
        let mut coming = ra.coming.borrow_mut();
        if let Some(at) = coming.iter().position(|range| *range == self.range) {
            coming.swap_remove(at);
        }
        ra.came.notify_all();
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
        ra.keep(0, 100, 1, &DmaBuf::zeroed(100).freeze());
        assert_eq!(ra.window(100, 200, max), FIRST_WINDOW);
        ra.keep(0, 200, 1, &DmaBuf::zeroed(300).freeze());
        assert!(ra.get(200, 301, 1).is_none());
        assert_eq!(ra.get(200, 300, 1).map(|s| s.len()), Some(100));
        ra.keep(300, 301, 1, &DmaBuf::zeroed(2).freeze());
        assert!(ra.get(301, 302, 2).is_none(), "the file has changed");
        ra.keep(0, 300, 1, &DmaBuf::zeroed(300).freeze());
        assert_eq!(ra.window(300, 301, max), 2 * FIRST_WINDOW);
        assert_eq!(ra.window(300, 301, 0), 1, "turned off");
        assert_eq!(ra.window(77, 78, max), 1);
    }

    #[test]
    fn one_window_is_read_beyond_the_one_that_is_taken_from() {
        let (ra, size, max) = (ReadAhead::default(), 1 << 20, 1 << 18);
        ra.keep(0, 100, 1, &DmaBuf::zeroed(100).freeze());
        assert_eq!(ra.next(size, max), None, "nobody is sequential yet");
        let first = 100 + ra.window(100, 200, max);
        ra.keep(100, 200, 1, &DmaBuf::zeroed(first as usize - 100).freeze());
        let (from, until) = ra.next(size, max).unwrap();
        assert_eq!((from, until), (first, first + 2 * FIRST_WINDOW));
        ra.add_next(from, 1, DmaBuf::zeroed((until - from) as usize).freeze());
        assert_eq!(ra.next(size, max), None, "two windows are enough");
        assert!(ra.get(200, first, 1).is_some(), "the first is used up");
        assert_eq!(ra.next(size, max), Some((until, until + max)));
        assert_eq!(ra.next(until, max), None, "the file ends there");
    }
}

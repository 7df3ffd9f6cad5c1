//! Read-ahead of one open file: windows of content that are read beyond what was asked for.
//!
//! A sequential reader's windows double until they are as long as one frame from the engine, which needs no gathering; from then
//! on as many are on their way as the bound allows, so that the device always has work while the kernel copies. The
//! kernel asks ahead too, in several requests at once, and windows may come in any order. A window carries the data
//! version that it was read at; whoever asks holds the inode's lock and compares, so a window is never stale, whichever
//! client wrote in between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, DmaSlice};
use vellum_format::item::MAX_EXTENT_BLOCKS;
use vellum_rt::JoinHandle;
use vellum_rt::local::Notify;

use crate::handle::Handle;

/// First window of a sequential reader; each next one is twice as large.
const FIRST_WINDOW: u64 = 128 << 10;
/// What one frame from the engine carries.
const MAX_WINDOW: u64 = MAX_EXTENT_BLOCKS as u64 * BLOCK_SIZE as u64;
/// Reads in other files after which the windows of one that is not read count as left behind.
const IDLE_READS: u64 = 1024;

/// The memory that all files' windows share. Who finds none left reads what is asked for and no more.
#[derive(Debug)]
pub(crate) struct Budget {
    max_bytes: u64,
    used_bytes: Cell<u64>,
    /// Reads, over all files, and how many there had been when idle windows were last looked for.
    reads: Cell<u64>,
    swept: Cell<u64>,
}

impl Budget {
    pub fn new(max_bytes: usize) -> Rc<Budget> {
        let max_bytes = max_bytes as u64;
        Rc::new(Budget { max_bytes, used_bytes: Cell::default(), reads: Cell::default(), swept: Cell::default() })
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        self.used_bytes.get() + bytes <= self.max_bytes
    }

    fn read(&self) -> u64 {
        self.reads.set(self.reads.get() + 1);
        self.reads.get()
    }

    /// True when there is no room, and it is time to take it from those that do not use it.
    pub fn wants_sweep(&self) -> bool {
        let due = !self.has_room_for(MAX_WINDOW) && self.reads.get() >= self.swept.get() + IDLE_READS;
        if due {
            self.swept.set(self.reads.get());
        }
        due
    }
}

/// The part of a window, here or on its way.
struct Share(Rc<Budget>, u64);

impl Share {
    fn new(budget: &Rc<Budget>, bytes: u64) -> Share {
        budget.used_bytes.set(budget.used_bytes.get() + bytes);
        Share(budget.clone(), bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.used_bytes.set(self.0.used_bytes.get() - self.1);
    }
}

struct Window {
    /// Offset of the first byte.
    base: u64,
    data_version: u64,
    data: DmaSlice,
    /// Bytes that were given out: when all were, the window goes.
    taken: usize,
    _share: Share,
}

impl Window {
    fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }
}

/// What windows have of a range.
pub(crate) enum Found {
    Ready(Vec<DmaSlice>),
    /// The rest of it is being read.
    Coming,
    Missing,
}

pub(crate) struct ReadAhead {
    budget: Rc<Budget>,
    /// Number of the last read, over all files.
    last_read: Cell<u64>,
    /// Where the next read of a sequential reader begins.
    expected: Cell<u64>,
    /// The last window of a sequential reader; 0 for any other.
    size: Cell<u64>,
    /// In the order in which they came.
    windows: RefCell<VecDeque<Window>>,
    /// Ranges that are being read.
    coming: RefCell<Vec<(u64, u64)>>,
    came: Notify,
    /// Read windows.
    tasks: RefCell<Vec<JoinHandle<()>>>,
}

impl ReadAhead {
    pub fn new(budget: &Rc<Budget>) -> ReadAhead {
        ReadAhead {
            budget: budget.clone(),
            last_read: Cell::default(),
            expected: Cell::default(),
            size: Cell::default(),
            windows: RefCell::default(),
            coming: RefCell::default(),
            came: Notify::default(),
            tasks: RefCell::default(),
        }
    }

    /// Gives up the windows when nobody has read for long.
    pub fn leave_if_idle(&self) {
        if self.budget.reads.get() > self.last_read.get() + IDLE_READS {
            self.windows.borrow_mut().clear();
        }
    }

    /// The bytes `from..to`. What was found is taken from the windows.
    pub fn take(&self, from: u64, to: u64, data_version: u64) -> Found {
        let mut windows = self.windows.borrow_mut();
        windows.retain(|w| w.data_version == data_version);
        let coming = self.coming.borrow();
        let (mut at, mut parts) = (from, Vec::new());
        let mut all_here = true;
        while at < to {
            if let Some(which) = windows.iter().position(|w| w.base <= at && at < w.end()) {
                let end = windows[which].end().min(to);
                parts.push((which, at, end));
                at = end;
            } else if let Some((_, until)) = coming.iter().find(|(base, until)| *base <= at && at < *until) {
                (at, all_here) = (*until, false);
            } else {
                return Found::Missing;
            }
        }
        if !all_here {
            return Found::Coming;
        }
        let take = |(which, from, to): (usize, u64, u64)| {
            let w = &mut windows[which];
            let range = (from - w.base) as usize..(to - w.base) as usize;
            w.taken += range.len();
            w.data.slice(range)
        };
        let found = parts.into_iter().map(take).collect();
        windows.retain(|w| w.taken < w.data.len());
        self.expected.set(to);
        self.last_read.set(self.budget.read());
        Found::Ready(found)
    }

    /// A reader asks for `from..to`, which no window has: the bytes to read for it from `from` on.
    pub fn window(&self, from: u64, to: u64, max: u64) -> u64 {
        let sequential = from == self.expected.get() && from > 0;
        self.last_read.set(self.budget.read());
        let largest = if self.budget.has_room_for(MAX_WINDOW) { MAX_WINDOW.min(max) } else { 0 };
        let size = if sequential { (self.size.get() * 2).max(FIRST_WINDOW).max(to - from).min(largest) } else { 0 };
        self.size.set(size);
        self.expected.set(to);
        size.max(to - from)
    }

    /// What was read from `base` on, of which a reader took `taken` bytes already.
    pub fn add(&self, base: u64, data_version: u64, data: DmaSlice, taken: usize, max: u64) {
        if taken >= data.len() {
            return;
        }
        let mut windows = self.windows.borrow_mut();
        let share = Share::new(&self.budget, data.len() as u64);
        windows.push_back(Window { base, data_version, data, taken, _share: share });
        // Those of a reader that has gone elsewhere.
        let bytes = |windows: &VecDeque<Window>| windows.iter().map(|w| w.data.len() as u64).sum::<u64>();
        while windows.len() > 1 && bytes(&windows) > max + MAX_WINDOW {
            windows.pop_front();
        }
    }

    /// The range to read next for a sequential reader of a file of `size` bytes. While windows grow one is ahead of the reader,
    /// then as many as `max` bytes are.
    pub fn next(&self, size: u64, max: u64) -> Option<(u64, u64)> {
        let expected = self.expected.get();
        let windows = self.windows.borrow();
        let coming = self.coming.borrow();
        // Without a gap from where the reader is: others are of a place that it has left.
        let ranges = || windows.iter().map(|w| (w.base, w.end())).chain(coming.iter().copied());
        let mut reach = expected;
        while let Some((_, until)) = ranges().find(|(base, until)| *base <= reach && reach < *until) {
            reach = until;
        }
        let (last, ahead) = (self.size.get(), reach - expected);
        let next = (last * 2).min(MAX_WINDOW).min(max);
        let room = if last < MAX_WINDOW.min(max) { coming.is_empty() && ahead <= last } else { ahead + next <= max };
        if last == 0 || !room || reach >= size || !self.budget.has_room_for(next) {
            return None;
        }
        self.size.set(next);
        Some((reach, size.min(reach + next)))
    }

    /// Ends when something that was being read has come, or could not be read.
    pub async fn came(&self) {
        self.came.notified().await;
    }

    pub fn add_task(&self, task: JoinHandle<()>) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Nothing is read ahead any more when this ends.
    pub async fn stop(&self) {
        let tasks = self.tasks.take();
        tasks.iter().for_each(JoinHandle::cancel);
        for task in tasks {
            let _ = task.await; // cancelled, or done already
        }
    }
}

/// A range that is being read; over when it is dropped.
pub(crate) struct Coming {
    handle: Rc<Handle>,
    range: (u64, u64),
    _share: Share,
}

impl Coming {
    pub fn new(handle: &Rc<Handle>, from: u64, until: u64) -> Coming {
        let ra = &handle.read_ahead;
        ra.coming.borrow_mut().push((from, until));
        Coming { handle: handle.clone(), range: (from, until), _share: Share::new(&ra.budget, until - from) }
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

    const MAX: u64 = 4 << 20;

    fn zeros(len: u64) -> DmaSlice {
        DmaBuf::zeroed(len as usize).freeze()
    }

    fn taken(ra: &ReadAhead, from: u64, to: u64, version: u64) -> Option<Vec<usize>> {
        match ra.take(from, to, version) {
            Found::Ready(parts) => Some(parts.iter().map(|part| part.len()).collect()),
            Found::Coming | Found::Missing => None,
        }
    }

    #[test]
    fn only_sequential_readers_get_growing_windows() {
        let ra = ReadAhead::new(&Budget::new(64 << 20));
        assert_eq!(ra.window(0, 100, MAX), 100, "a first read may be the only one");
        assert_eq!(ra.window(100, 200, MAX), FIRST_WINDOW);
        ra.add(100, 1, zeros(200), 100, MAX);
        assert_eq!(taken(&ra, 200, 301, 1), None);
        assert_eq!(taken(&ra, 200, 300, 1), Some(vec![100]));
        assert_eq!(taken(&ra, 200, 300, 1), None, "it was used up");
        ra.add(300, 1, zeros(2), 1, MAX);
        assert_eq!(taken(&ra, 301, 302, 2), None, "the file has changed");
        assert_eq!(ra.window(300, 301, MAX), 2 * FIRST_WINDOW);
        assert_eq!(ra.window(301, 302, 0), 1, "turned off");
        assert_eq!(ra.window(302, 302 + (3 << 20), MAX), 3 << 20, "never less than what is asked for");
        assert_eq!(ra.window(77, 78, MAX), 1);
        assert_eq!(ra.next(u64::MAX, MAX), None, "nobody is sequential any more");
    }

    #[test]
    fn windows_grow_one_at_a_time_and_then_fill_the_bound() {
        let ra = ReadAhead::new(&Budget::new(64 << 20));
        ra.window(0, 100, MAX);
        let mut reach = 100 + ra.window(100, 200, MAX);
        ra.coming.borrow_mut().push((100, reach));
        assert_eq!(ra.next(u64::MAX, MAX), None, "the reader's own is on its way");
        ra.coming.borrow_mut().clear();
        ra.add(100, 1, zeros(reach - 100), 100, MAX);
        for times in [2, 4, 8] {
            let (from, until) = ra.next(u64::MAX, MAX).unwrap();
            assert_eq!((from, until), (reach, reach + times * FIRST_WINDOW));
            ra.coming.borrow_mut().push((from, until));
            if times < 8 {
                assert_eq!(ra.next(u64::MAX, MAX), None);
            }
            ra.coming.borrow_mut().clear();
            ra.add(from, 1, zeros(until - from), 0, MAX);
            assert_eq!(taken(&ra, ra.expected.get(), from, 1).map(|parts| parts.len()), Some(1));
            reach = until;
        }
        let mut more = Vec::new();
        while let Some(range) = ra.next(u64::MAX, MAX) {
            ra.coming.borrow_mut().push(range);
            more.push(range);
        }
        let whole: Vec<_> = (0..3).map(|i| (reach + i * MAX_WINDOW, reach + (i + 1) * MAX_WINDOW)).collect();
        assert_eq!(more, whole, "with the one that is here 4 MiB");
        assert_eq!(ra.next(reach + 3 * MAX_WINDOW, MAX), None, "the file ends there");
    }

    #[test]
    fn a_read_takes_from_several_windows_and_waits_for_those_that_come() {
        let ra = ReadAhead::new(&Budget::new(64 << 20));
        ra.add(2000, 1, zeros(1000), 0, MAX);
        ra.coming.borrow_mut().push((1000, 2000));
        assert!(matches!(ra.take(500, 2500, 1), Found::Missing));
        assert!(matches!(ra.take(1500, 2500, 1), Found::Coming));
        ra.coming.borrow_mut().clear();
        ra.add(1000, 1, zeros(1000), 0, MAX);
        assert_eq!(taken(&ra, 1500, 2500, 1), Some(vec![500, 500]));
        assert_eq!(taken(&ra, 1000, 1500, 1), Some(vec![500]), "a request that was overtaken");
        assert_eq!(taken(&ra, 1000, 1500, 1), None);
    }

    #[test]
    fn windows_of_another_place_are_not_ahead_of_the_reader() {
        let ra = ReadAhead::new(&Budget::new(64 << 20));
        ra.add(100 << 20, 1, zeros(4 << 20), 0, MAX);
        ra.window(0, 100, MAX);
        let reach = 100 + ra.window(100, 200, MAX);
        ra.add(100, 1, zeros(reach - 100), 100, MAX);
        assert_eq!(ra.next(u64::MAX, MAX), Some((reach, reach + 2 * FIRST_WINDOW)));
    }

    #[test]
    fn windows_that_nobody_comes_for_go() {
        let ra = ReadAhead::new(&Budget::new(64 << 20));
        for i in 0..10 {
            ra.add(i << 30, 1, zeros(1 << 20), 0, 2 << 20);
        }
        let bytes: usize = ra.windows.borrow().iter().map(|w| w.data.len()).sum();
        assert_eq!(bytes, 3 << 20);
        assert_eq!(taken(&ra, 9 << 30, (9 << 30) + 1, 1), Some(vec![1]));
    }

    #[test]
    fn all_files_share_one_budget_and_idle_ones_leave_it() {
        let budget = Budget::new(3 << 20);
        let (left, reader) = (ReadAhead::new(&budget), ReadAhead::new(&budget));
        for i in 0..3 {
            left.add(i << 20, 1, zeros(1 << 20), 0, MAX);
        }
        reader.window(0, 100, MAX);
        assert_eq!(reader.window(100, 200, MAX), 100, "no room for a window");
        assert_eq!(reader.next(u64::MAX, MAX), None);
        let mut at = 200;
        while !budget.wants_sweep() {
            left.leave_if_idle();
            assert_eq!(reader.window(at, at + 100, MAX), 100);
            at += 100;
        }
        for ra in [&left, &reader] {
            ra.leave_if_idle();
        }
        assert_eq!(budget.used_bytes.get(), 3 << 20, "just as many reads ago it was used");
        reader.window(at, at + 100, MAX);
        left.leave_if_idle();
        assert_eq!(budget.used_bytes.get(), 0);
        assert_eq!(reader.window(at + 100, at + 200, MAX), FIRST_WINDOW);
    }
}

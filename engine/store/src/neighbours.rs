//! Read-ahead on the device: small files that were written one after the other are most often read so, too.
//!
//! A small read that follows another brings a window of what lies behind it; reads that fall into a window are parts of it and
//! take no time of the device. Which file a block belongs to plays no part: blocks beside those asked for may be of anybody, or
//! free, and what is in a window leaves it only for whoever asks for these very blocks.
//!
//! Invariant: what a window gives is what the device has. File data are written to blocks that nobody refers to, by any reactor
//! of the node ([`Writes`] counts them before they begin and when they have ended), so a window counts as long as its chunk has
//! seen no write since before the window was read.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vellum_base::{BLOCK_SIZE, BlockRange, DmaSlice, Mutant, mutant};
use vellum_rt::local::Event;

/// Reads up to this long are small, in blocks. Longer ones are read ahead of by gateways, who know the file.
const SMALL_BLOCKS: u32 = 8;
/// The length of a window: a transfer of which takes less than two of one block.
const WINDOW_BLOCKS: u32 = 32;
/// How far behind the end of one read the next may begin to follow it, in blocks.
const GAP_BLOCKS: u64 = 16;
/// Windows kept, and single reads remembered: as many readers at a time.
const WINDOWS: usize = 16;
/// What all windows take.
pub(crate) const BYTES: usize = WINDOWS * WINDOW_BLOCKS as usize * BLOCK_SIZE;
/// Counters; chunks share them.
const COUNTERS: usize = 4096;

/// Counts writes of file data by chunk, for all reactors of a node.
#[derive(Debug)]
pub(crate) struct Writes {
    counters: Box<[AtomicU32]>,
    chunk_blocks: u64,
}

impl Writes {
    pub fn new(chunk_blocks: u32) -> Writes {
        Writes { counters: (0..COUNTERS).map(|_| AtomicU32::new(0)).collect(), chunk_blocks: u64::from(chunk_blocks) }
    }

    fn of_chunk(&self, chunk: u64) -> &AtomicU32 {
        &self.counters[chunk as usize % COUNTERS]
    }

    /// To be called before a write to these blocks begins, and when it has ended, however it did.
    pub fn note(&self, ranges: &[BlockRange]) {
        for range in ranges {
            let last = range.start.0 + u64::from(range.len_blocks).saturating_sub(1);
            for chunk in range.start.0 / self.chunk_blocks..=last / self.chunk_blocks {
                self.of_chunk(chunk).fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn count(&self, block: u64) -> u32 {
        self.of_chunk(block / self.chunk_blocks).load(Ordering::Acquire)
    }
}

/// Blocks that are being read, or were.
pub(crate) struct Window {
    pub blocks: BlockRange,
    /// [`Writes::count`] before it was read.
    seen: u32,
    came: Event,
    data: RefCell<Option<DmaSlice>>,
}

impl Window {
    fn covers(&self, range: &BlockRange) -> bool {
        range.start >= self.blocks.start && range.end() <= self.blocks.end()
    }

    fn offset_bytes(&self, range: &BlockRange) -> usize {
        (range.start.0 - self.blocks.start.0) as usize * BLOCK_SIZE
    }

    /// The read has ended; `None`: it failed, perhaps because of a block that nobody asked for.
    pub fn bring(&self, data: Option<DmaSlice>) {
        self.data.replace(data);
        self.came.set();
    }
}

/// Where a small read gets its blocks.
pub(crate) enum Source {
    Window(Rc<Window>),
    /// The caller reads it, and brings it.
    New(Rc<Window>),
    Device,
}

/// The windows of one reactor.
pub(crate) struct Neighbours {
    writes: Arc<Writes>,
    /// The one used last is at the end.
    windows: RefCell<VecDeque<Rc<Window>>>,
    /// First blocks behind small reads that brought no window.
    ends: RefCell<VecDeque<u64>>,
}

impl Neighbours {
    pub fn new(writes: Arc<Writes>) -> Neighbours {
        Neighbours { writes, windows: RefCell::default(), ends: RefCell::default() }
    }

    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    fn is_current(&self, window: &Window) -> bool {
        mutant::active(Mutant::BelieveOldNeighbours) || self.writes.count(window.blocks.start.0) == window.seen
    }

    /// For a read of `range`, on a device of `device_blocks`.
    pub fn source(&self, range: &BlockRange, device_blocks: u64) -> Source {
        if range.len_blocks > SMALL_BLOCKS {
            return Source::Device;
        }
        let mut windows = self.windows.borrow_mut();
        windows.retain(|window| self.is_current(window));
        if let Some(at) = windows.iter().position(|window| window.covers(range))
            && let Some(window) = windows.remove(at)
        {
            windows.push_back(window.clone());
            return Source::Window(window);
        }
        let start = range.start.0;
        let follows = |end: u64| (end..=end + GAP_BLOCKS).contains(&start);
        let mut ends = self.ends.borrow_mut();
        let before = ends.len();
        ends.retain(|end| !follows(*end));
        let is_next = |window: &Rc<Window>| {
            let end = window.blocks.start.0 + u64::from(window.blocks.len_blocks);
            start >= window.blocks.start.0 && start <= end + GAP_BLOCKS
        };
        if ends.len() == before && !windows.iter().any(is_next) {
            ends.push_back(start + u64::from(range.len_blocks));
            if ends.len() > WINDOWS {
                ends.pop_front();
            }
            return Source::Device;
        }
        let chunk_end = (start / self.writes.chunk_blocks + 1) * self.writes.chunk_blocks;
        let room = chunk_end.min(device_blocks) - start;
        let len = u64::from(WINDOW_BLOCKS).min(room) as u32;
        if len <= range.len_blocks {
            return Source::Device;
        }
        let window = Rc::new(Window {
            blocks: BlockRange::new(start, len),
            seen: self.writes.count(start),
            came: Event::new(),
            data: RefCell::new(None),
        });
        if windows.len() == WINDOWS {
            windows.pop_front();
        }
        windows.push_back(window.clone());
        Source::New(window)
    }

    /// What a window has of `range`, once it has come; `None` where that is nothing to rely on.
    pub async fn part(&self, window: &Window, range: &BlockRange) -> Option<DmaSlice> {
        window.came.wait().await;
        let at = window.offset_bytes(range);
        let data = window.data.borrow();
        let data = data.as_ref().filter(|_| self.is_current(window))?;
        Some(data.slice(at..at + range.len_bytes()))
    }

    /// A window whose read failed is not asked again.
    pub fn forget(&self, window: &Rc<Window>) {
        self.windows.borrow_mut().retain(|other| !Rc::ptr_eq(other, window));
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::DmaBuf;

    use super::*;

    const DEVICE: u64 = 4096;

    fn neighbours() -> Neighbours {
        Neighbours::new(Arc::new(Writes::new(1024)))
    }

    fn one(block: u64) -> BlockRange {
        BlockRange::new(block, 1)
    }

    /// Reads a block, and says which window it brought, if one; every block's content is its number.
    fn read(neighbours: &Neighbours, range: BlockRange) -> (Option<BlockRange>, Option<u64>) {
        let (window, new) = match neighbours.source(&range, DEVICE) {
            Source::Device => return (None, None),
            Source::Window(window) => (window, None),
            Source::New(window) => {
                let mut data = DmaBuf::zeroed(window.blocks.len_bytes());
                for (i, block) in data.chunks_mut(BLOCK_SIZE).enumerate() {
                    block[..8].copy_from_slice(&(window.blocks.start.0 + i as u64).to_le_bytes());
                }
                window.bring(Some(data.freeze()));
                let blocks = window.blocks;
                (window, Some(blocks))
            }
        };
        let part = vellum_rt::native::block_on(neighbours.part(&window, &range));
        (new, part.map(|data| u64::from_le_bytes(data[..8].try_into().unwrap())))
    }

    #[test]
    fn the_second_of_two_reads_in_a_row_brings_a_window() {
        let n = neighbours();
        assert_eq!(read(&n, one(100)), (None, None));
        assert_eq!(read(&n, one(500)), (None, None), "somewhere else");
        assert_eq!(read(&n, one(90)), (None, None), "before it");
        assert_eq!(read(&n, one(103)), (Some(BlockRange::new(103, 32)), Some(103)));
        assert_eq!(read(&n, one(134)), (None, Some(134)));
        assert_eq!(read(&n, BlockRange::new(120, 8)), (None, Some(120)));
        assert_eq!(read(&n, BlockRange::new(120, 9)), (None, None), "that is no small read");
        assert_eq!(
            read(&n, BlockRange::new(133, 4)),
            (Some(BlockRange::new(133, 32)), Some(133)),
            "half of it is behind"
        );
        assert_eq!(read(&n, one(502)), (Some(BlockRange::new(502, 32)), Some(502)), "two readers at a time");
    }

    #[test]
    fn a_window_ends_with_its_chunk_and_with_the_device() {
        let n = neighbours();
        read(&n, one(1010));
        assert_eq!(read(&n, one(1011)).0, Some(BlockRange::new(1011, 13)));
        read(&n, one(DEVICE - 3));
        assert_eq!(read(&n, one(DEVICE - 2)), (Some(BlockRange::new(DEVICE - 2, 2)), Some(DEVICE - 2)));
        read(&n, one(2046));
        assert_eq!(read(&n, one(2047)), (None, None), "it would be the read itself");
    }

    #[test]
    fn a_write_in_the_chunk_ends_its_windows_and_no_others() {
        let n = neighbours();
        read(&n, one(10));
        read(&n, one(2010));
        assert!(read(&n, one(11)).0.is_some() && read(&n, one(2011)).0.is_some());
        n.writes().note(&[one(900)]);
        assert_eq!((read(&n, one(12)), read(&n, one(2012))), ((None, None), (None, Some(2012))));
        // Begun while a write was on its way: it ends with that.
        assert!(read(&n, one(13)).0.is_some());
        n.writes().note(&[one(900)]);
        assert_eq!(read(&n, one(14)), (None, None));
    }

    #[test]
    fn a_window_that_failed_or_went_old_under_way_gives_nothing() {
        let n = neighbours();
        read(&n, one(10));
        let Source::New(window) = n.source(&one(11), DEVICE) else { panic!("the second in a row") };
        n.writes().note(&[one(12)]);
        window.bring(Some(DmaBuf::zeroed(window.blocks.len_bytes()).freeze()));
        assert!(vellum_rt::native::block_on(n.part(&window, &one(11))).is_none());
        read(&n, one(3000));
        let Source::New(window) = n.source(&one(3001), DEVICE) else { panic!("the second in a row") };
        window.bring(None);
        assert!(vellum_rt::native::block_on(n.part(&window, &one(3001))).is_none());
        n.forget(&window);
        assert!(matches!(n.source(&one(3001), DEVICE), Source::Device));
    }

    #[test]
    fn there_are_never_more_windows_than_their_bound() {
        let n = Neighbours::new(Arc::new(Writes::new(1 << 20)));
        for reader in 0..100u64 {
            read(&n, one(reader * 1000));
            assert!(matches!(n.source(&one(reader * 1000 + 1), 1 << 20), Source::New(_)));
        }
        assert_eq!(n.windows.borrow().len(), WINDOWS);
    }
}

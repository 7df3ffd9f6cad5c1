//! One span of address space for all memory that a device addresses itself.
//!
//! Why one span: a buffer's device address is then its offset plus a constant of the transport, with no lookup per IO.
//! It is grown by granules, each a sealed memory file of its own (huge pages when the machine has some), never shrunk or
//! moved, so that what was mapped for a device stays true. Freed memory goes back to lists by size class.
//!
//! Nothing is set up until the first [`activate`]: a process without such a device keeps its buffers on the heap.
//!
//! Invariants: `committed_bytes` only grows, by whole granules, and after it has grown the memory below is mapped
//! readable and writable for ever; a piece of memory has one owner, or is in one list.
#![allow(unsafe_code)] // mmap; every block below states its argument

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::buf::{CLASSES, class_of};

/// Address space reserved; the bound of this memory.
pub const SPAN_BYTES: usize = 64 << 30;
/// Growth at a time. A multiple of a huge page, and of the largest class, so that no buffer crosses a border.
pub const GRANULE_BYTES: usize = 32 << 20;
const HUGE_PAGE_BYTES: usize = 2 << 20;
const _: () = assert!(GRANULE_BYTES.is_multiple_of(HUGE_PAGE_BYTES) && SPAN_BYTES.is_multiple_of(GRANULE_BYTES));

/// A committed part of the span.
#[derive(Debug)]
pub struct Granule {
    /// Of its first byte in the span; that byte is also the first of the file.
    pub offset_bytes: usize,
    /// Made of huge pages.
    pub huge: bool,
    file: OwnedFd,
}

impl Granule {
    /// The memory file, which another process may map. It can be neither shortened nor lengthened.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

struct Inner {
    granules: Vec<Arc<Granule>>,
    /// First byte that was never handed out.
    next: usize,
    free: [Vec<usize>; CLASSES],
    /// Huge pages ran out (or there never were any).
    no_huge: bool,
    refused: bool,
}

pub struct Arena {
    base: NonNull<u8>,
    committed_bytes: AtomicUsize,
    inner: Mutex<Inner>,
}

// SAFETY: `base` is an address that never changes; what is behind it is handed out under the lock, to one owner each.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

static ARENA: OnceLock<Arena> = OnceLock::new();

/// The arena, made by the first call. From then on buffers come from it.
pub fn activate() -> io::Result<&'static Arena> {
    if let Some(arena) = ARENA.get() {
        return Ok(arena);
    }
    let arena = Arena::reserve()?;
    // A second thread may have been faster; its arena stays, and the unused span costs address space only.
    Ok(ARENA.get_or_init(|| arena))
}

pub fn active() -> Option<&'static Arena> {
    ARENA.get()
}

impl Arena {
    fn reserve() -> io::Result<Arena> {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing; nobody can touch it (PROT_NONE).
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                SPAN_BYTES + HUGE_PAGE_BYTES,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // Huge pages want an aligned address; the slack of one page makes room for it.
        let aligned = base.cast::<u8>().map_addr(|at| at.next_multiple_of(HUGE_PAGE_BYTES));
        let base = NonNull::new(aligned).ok_or(io::ErrorKind::OutOfMemory)?;
        let inner = Inner {
            granules: Vec::new(),
            next: 0,
            free: [const { Vec::new() }; CLASSES],
            no_huge: false,
            refused: false,
        };
        Ok(Arena { base, committed_bytes: AtomicUsize::new(0), inner: Mutex::new(inner) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory below this offset can be used; it only grows.
    pub fn committed_bytes(&self) -> usize {
        self.committed_bytes.load(Ordering::Acquire)
    }

    /// The address of the span's first byte, for a transport that maps it.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// What is committed now, in order of offset.
    pub fn granules(&self) -> Vec<Arc<Granule>> {
        self.lock().granules.clone()
    }

    /// Where `memory` is in the span; None when it is elsewhere.
    pub fn offset_of(&self, memory: &[u8]) -> Option<usize> {
        let offset = (memory.as_ptr() as usize).checked_sub(self.base.as_ptr() as usize)?;
        (offset.checked_add(memory.len())? <= self.committed_bytes()).then_some(offset)
    }

    pub(super) fn contains(&self, at: NonNull<u8>) -> bool {
        let offset = (at.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        offset < SPAN_BYTES
    }

    /// Initialised memory of a size class. None: larger than any class, or no more memory to be had.
    pub(super) fn alloc(&self, capacity: usize) -> Option<NonNull<u8>> {
        let class = class_of(capacity)?;
        let mut inner = self.lock();
        if let Some(offset) = inner.free[class].pop() {
            return Some(self.at(offset));
        }
        let room_in_granule = GRANULE_BYTES - inner.next % GRANULE_BYTES;
        if room_in_granule < capacity {
            // No buffer crosses granules: a peer sees each as a mapping of its own.
            inner.next += room_in_granule;
        }
        let offset = inner.next;
        if offset + capacity > self.committed_bytes() {
            self.grow(&mut inner)?;
        }
        inner.next = offset + capacity;
        Some(self.at(offset))
    }

    /// Takes back what `alloc` gave.
    pub(super) fn free(&self, at: NonNull<u8>, capacity: usize) {
        let offset = at.as_ptr() as usize - self.base.as_ptr() as usize;
        if let Some(class) = class_of(capacity) {
            self.lock().free[class].push(offset);
        }
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < SPAN_BYTES);
        // SAFETY: within the one mapping that `reserve` made.
        unsafe { self.base.add(offset) }
    }

    fn grow(&self, inner: &mut Inner) -> Option<()> {
        let offset_bytes = self.committed_bytes();
        if offset_bytes + GRANULE_BYTES > SPAN_BYTES {
            return None;
        }
        let huge = if inner.no_huge { None } else { memory_file(true).ok() };
        inner.no_huge = huge.is_none();
        let made = match huge {
            Some(file) => Ok((file, true)),
            None => memory_file(false).map(|file| (file, false)),
        };
        let mapped = made.and_then(|(file, huge)| self.map(offset_bytes, &file).map(|()| (file, huge)));
        match mapped {
            Ok((file, huge)) => {
                inner.granules.push(Arc::new(Granule { offset_bytes, huge, file }));
                self.committed_bytes.store(offset_bytes + GRANULE_BYTES, Ordering::Release);
                Some(())
            }
            Err(_) => {
                inner.refused = true;
                None
            }
        }
    }

    fn map(&self, offset_bytes: usize, file: &OwnedFd) -> io::Result<()> {
        let at = self.at(offset_bytes).as_ptr().cast();
        // SAFETY: replaces a part of our own reserved span that nobody has been given; the file is as long as the
        // mapping and sealed, so that no page of it can vanish.
        unsafe {
            rustix::mm::mmap(
                at,
                GRANULE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE,
                file,
                0,
            )?;
        }
        // A child after fork has no business in memory that a device writes, and shares it otherwise.
        // SAFETY: changes nothing about the memory in this process.
        unsafe { rustix::mm::madvise(at, GRANULE_BYTES, Advice::LinuxDontFork)? };
        Ok(())
    }

    /// Growth has failed at least once: buffers came from the heap instead.
    pub fn has_been_refused(&self) -> bool {
        self.lock().refused
    }

    /// What a device in this process does: reads memory that was lent to it. False: not (all) committed memory.
    ///
    /// # Safety
    /// Nobody writes these bytes meanwhile, but through atomics.
    pub unsafe fn device_read(&self, offset: u64, out: &mut [u8]) -> bool {
        let Some(at) = self.device_range(offset, out.len()) else { return false };
        // SAFETY: committed memory, checked; no writer, by the caller's promise; `out` is not in the lent memory.
        unsafe { std::ptr::copy_nonoverlapping(self.at(at).as_ptr(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// What a device in this process does: writes memory that was lent to it. False: not (all) committed memory.
    ///
    /// # Safety
    /// Nobody reads or writes these bytes meanwhile, but through atomics.
    pub unsafe fn device_write(&self, offset: u64, data: &[u8]) -> bool {
        let Some(at) = self.device_range(offset, data.len()) else { return false };
        // SAFETY: committed memory, checked; no other access, by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at(at).as_ptr(), data.len()) };
        true
    }

    /// A word that both sides use through atomics. None: not committed memory, or not aligned.
    ///
    /// # Safety
    /// While the reference lives nobody accesses the word but through atomics.
    pub unsafe fn device_word(&self, offset: u64) -> Option<&std::sync::atomic::AtomicU32> {
        let at = self.device_range(offset, 4).filter(|at| at.is_multiple_of(4))?;
        // SAFETY: committed (so mapped for ever), aligned, and atomic by the caller's promise.
        Some(unsafe { std::sync::atomic::AtomicU32::from_ptr(self.at(at).as_ptr().cast()) })
    }

    fn device_range(&self, offset: u64, len: usize) -> Option<usize> {
        let at = usize::try_from(offset).ok()?;
        (at.checked_add(len)? <= self.committed_bytes()).then_some(at)
    }
}

/// A granule's file: its memory is there already, and its length is fixed.
fn memory_file(huge: bool) -> io::Result<OwnedFd> {
    let kind = if huge { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
    let file = rustix::fs::memfd_create("vellum-dma", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind)?;
    rustix::fs::ftruncate(&file, GRANULE_BYTES as u64)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, GRANULE_BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::DmaBuf;

    #[test]
    fn buffers_come_from_the_arena_once_it_is_active() {
        let (before, late) = (DmaBuf::new(4096), active().is_some());
        let arena = activate().expect("a span of address space");
        assert!(late || arena.offset_of(&before).is_none(), "the heap is not the arena");
        drop(before);
        let mut buf = DmaBuf::new(12288);
        buf.fill(7);
        let offset = arena.offset_of(&buf).expect("in the arena") as u64;
        let mut seen = [0; 3];
        // SAFETY: nobody else has the buffer.
        assert!(unsafe { arena.device_read(offset, &mut seen) });
        assert_eq!(seen, [7; 3]);
        // SAFETY: as above; the second is refused.
        unsafe {
            assert!(arena.device_write(offset, b"device"));
            assert!(!arena.device_write(arena.committed_bytes() as u64 - 1, b"beyond"));
            assert!(arena.device_word(u64::MAX - 1).is_none());
        }
        assert_eq!(&buf[..6], b"device");
    }

    #[test]
    fn no_buffer_crosses_a_granule_and_freed_memory_is_used_again() {
        let arena = activate().expect("a span of address space");
        let mut bufs = Vec::new();
        for i in 0..40 {
            bufs.push(DmaBuf::new(if i % 3 == 0 { 4096 } else { 2 << 20 }));
        }
        for buf in &bufs {
            let at = arena.offset_of(buf).expect("in the arena");
            assert_eq!(at / GRANULE_BYTES, (at + buf.capacity() - 1) / GRANULE_BYTES);
        }
        assert!(arena.granules().len() >= 2);
        let committed = arena.committed_bytes();
        drop(bufs);
        std::thread::spawn(|| drop((0..13).map(|_| DmaBuf::new(2 << 20)).collect::<Vec<_>>())).join().expect("runs");
        let again: Vec<_> = (0..13).map(|_| DmaBuf::new(2 << 20)).collect();
        assert!(arena.committed_bytes() <= committed + 2 * GRANULE_BYTES, "{} buffers", again.len());
    }
}

//! Aligned memory that devices and sockets read and write directly.
//!
//! A [`DmaBuf`] is owned and writable; [`DmaBuf::freeze`] turns it into a [`DmaSlice`], which is shared, read-only and
//! cheap to clone, so that one copy of file data serves the socket, the device and the client's retained batch.
//! Buffers of a size class come from the arena once that is active, else from slabs; larger ones always from the heap.
//! Invariant: the pointer is valid for `capacity` bytes, aligned to [`BLOCK_SIZE`], and initialised (zeroed once).
#![allow(unsafe_code)] // the home of aligned allocation; every block below states its argument

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{arena, slabs};
use crate::units::BLOCK_SIZE;

/// Freed buffers kept per thread, in bytes of capacity.
pub const KEPT_BYTES: usize = 8 << 20;
/// Size classes: 4 KiB << i, up to 2 MiB. Larger buffers go back to the allocator at once.
pub(super) const CLASSES: usize = 10;

/// A thread's freed buffers, by class.
struct Cache {
    lists: [Vec<NonNull<u8>>; CLASSES],
    bytes: usize,
}

impl Cache {
    fn take(&mut self, class: usize) -> Option<NonNull<u8>> {
        let ptr = self.lists[class].pop()?;
        self.bytes -= BLOCK_SIZE << class;
        Some(ptr)
    }

    /// False when there is no room for it.
    fn keep(&mut self, ptr: NonNull<u8>, class: usize) -> bool {
        let room = self.bytes + (BLOCK_SIZE << class) <= KEPT_BYTES;
        if room {
            self.lists[class].push(ptr);
            self.bytes += BLOCK_SIZE << class;
        }
        room
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        for (class, list) in self.lists.iter_mut().enumerate() {
            for ptr in list.drain(..) {
                release(ptr, BLOCK_SIZE << class);
            }
        }
    }
}

thread_local! {
    static FREE: RefCell<Cache> = const { RefCell::new(Cache { lists: [const { Vec::new() }; CLASSES], bytes: 0 }) };
}

pub(super) fn class_of(capacity: usize) -> Option<usize> {
    let class = (capacity / BLOCK_SIZE).trailing_zeros() as usize;
    (class < CLASSES && capacity == BLOCK_SIZE << class).then_some(class)
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, BLOCK_SIZE).expect("capacity is bounded by isize::MAX")
}

/// A buffer of this thread's cache. Those from before the arena's time are given back, so that their use ends.
fn take_cached(capacity: usize) -> Option<NonNull<u8>> {
    let class = class_of(capacity)?;
    loop {
        let ptr = FREE.try_with(|free| free.borrow_mut().take(class)).ok().flatten()?;
        match arena::active() {
            Some(arena) if !arena.contains(ptr) => release(ptr, capacity),
            _ => return Some(ptr),
        }
    }
}

/// Gives memory back to where it came from.
fn release(ptr: NonNull<u8>, capacity: usize) {
    match (arena::active(), class_of(capacity)) {
        (Some(arena), _) if arena.contains(ptr) => arena.free(ptr, capacity),
        (_, Some(_)) => slabs::free(ptr),
        // SAFETY: of no class, so it came from alloc_zeroed with this very layout, and has no other owner.
        (_, None) => unsafe { dealloc(ptr.as_ptr(), layout(capacity)) },
    }
}

/// Owned memory: block-aligned, capacity a multiple of the block size, `len` bytes in use.
pub struct DmaBuf {
    ptr: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: the memory is owned by exactly one DmaBuf and has no thread affinity.
unsafe impl Send for DmaBuf {}
// SAFETY: shared access is read-only.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// A buffer of `len` bytes whose content is unspecified (zeros, or what an earlier buffer left).
    pub fn new(len: usize) -> DmaBuf {
        let blocks = len.div_ceil(BLOCK_SIZE).max(1);
        let capacity = if blocks <= 1 << (CLASSES - 1) { blocks.next_power_of_two() } else { blocks } * BLOCK_SIZE;
        let fresh = || match (arena::active().and_then(|arena| arena.alloc(capacity)), class_of(capacity)) {
            (Some(ptr), _) => Some(ptr),
            (None, Some(class)) => slabs::alloc(class),
            // SAFETY: the layout's size is at least one block.
            (None, None) => NonNull::new(unsafe { alloc_zeroed(layout(capacity)) }),
        };
        let ptr = take_cached(capacity).or_else(fresh).unwrap_or_else(|| handle_alloc_error(layout(capacity)));
        DmaBuf { ptr, capacity, len }
    }

    pub fn zeroed(len: usize) -> DmaBuf {
        let mut buf = DmaBuf::new(len);
        buf.fill(0);
        buf
    }

    /// Copies `data`, padded with zeros to whole blocks when `pad_to_block`.
    pub fn copy_from(data: &[u8], pad_to_block: bool) -> DmaBuf {
        let len = if pad_to_block { data.len().next_multiple_of(BLOCK_SIZE) } else { data.len() };
        let mut buf = DmaBuf::new(len);
        buf[..data.len()].copy_from_slice(data);
        buf[data.len()..].fill(0);
        buf
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the length within the capacity; bytes past the old length have unspecified content.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "length {len} passes the capacity {}", self.capacity);
        self.len = len;
    }

    /// The address given to the kernel or the device.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub fn freeze(self) -> DmaSlice {
        let end = self.len;
        DmaSlice { buf: Arc::new(self), start: 0, end }
    }
}

impl Deref for DmaBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: ptr is valid and initialised for capacity >= len bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and the buffer is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Empty, and without memory.
impl Default for DmaBuf {
    #[inline]
    fn default() -> DmaBuf {
        DmaBuf { ptr: NonNull::dangling(), capacity: 0, len: 0 }
    }
}

impl Drop for DmaBuf {
    #[inline]
    fn drop(&mut self) {
        if self.capacity > 0 {
            self.give_back();
        }
    }
}

impl DmaBuf {
    fn give_back(&mut self) {
        let kept = class_of(self.capacity)
            .is_some_and(|class| FREE.try_with(|free| free.borrow_mut().keep(self.ptr, class)).unwrap_or(false));
        if !kept {
            release(self.ptr, self.capacity);
        }
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuf({} of {} bytes)", self.len, self.capacity)
    }
}

/// A shared, read-only part of a frozen [`DmaBuf`].
#[derive(Clone)]
pub struct DmaSlice {
    buf: Arc<DmaBuf>,
    start: usize,
    end: usize,
}

impl DmaSlice {
    /// The part `range` (bytes relative to this slice).
    pub fn slice(&self, range: std::ops::Range<usize>) -> DmaSlice {
        assert!(range.start <= range.end && range.end <= self.end - self.start, "slice out of bounds");
        DmaSlice { buf: self.buf.clone(), start: self.start + range.start, end: self.start + range.end }
    }

    /// True when it can be given to a device as it is: whole blocks at a block boundary.
    pub fn is_block_aligned(&self) -> bool {
        self.start.is_multiple_of(BLOCK_SIZE) && self.len().is_multiple_of(BLOCK_SIZE)
    }

    /// The buffer itself when nothing else shares it, else a copy.
    pub fn into_buf(self) -> DmaBuf {
        if self.start == 0 {
            let end = self.end;
            match Arc::try_unwrap(self.buf) {
                Ok(mut buf) => {
                    buf.set_len(end);
                    return buf;
                }
                Err(shared) => return DmaBuf::copy_from(&shared[..end], false),
            }
        }
        DmaBuf::copy_from(&self, false)
    }
}

impl Deref for DmaSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }
}

impl From<DmaBuf> for DmaSlice {
    fn from(buf: DmaBuf) -> DmaSlice {
        buf.freeze()
    }
}

impl fmt::Debug for DmaSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaSlice({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_recycled() {
        let mut a = DmaBuf::new(5000);
        assert_eq!((a.len(), a.capacity()), (5000, 8192));
        assert_eq!(a.as_mut_ptr() as usize % BLOCK_SIZE, 0);
        let at = a.as_mut_ptr() as usize;
        drop(a);
        assert_eq!(DmaBuf::new(8192).as_mut_ptr() as usize, at, "the freed buffer is used again");
        assert_eq!(DmaBuf::new(3 << 20).capacity(), 3 << 20);
    }

    #[test]
    fn slices_share_until_they_must_copy() {
        let mut buf = DmaBuf::copy_from(b"hello world", true);
        assert_eq!(buf.len(), BLOCK_SIZE);
        let at = buf.as_mut_ptr() as usize;
        let slice = buf.freeze();
        assert_eq!(&slice.slice(6..11)[..], b"world");
        assert!(slice.is_block_aligned() && !slice.slice(1..2).is_block_aligned());
        let copy = slice.clone().into_buf();
        assert_ne!(copy.as_ptr() as usize, at);
        drop(copy);
        assert_eq!(slice.into_buf().as_ptr() as usize, at, "the last owner gets the memory itself");
    }

    #[test]
    #[should_panic(expected = "passes the capacity")]
    fn a_length_beyond_the_capacity_is_our_bug() {
        DmaBuf::new(1).set_len(5000);
    }
}

//! Pages that this process and a device use at the same time: queues, doorbell buffers, what a controller writes.
//!
//! All access is by atomics, because the device may write at any moment. Words that announce other words (a completion's
//! phase, a doorbell) are released and acquired; the rest is relaxed.
#![allow(unsafe_code)] // atomics over raw memory

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{Arena, DmaBuf, arena};

/// Zeroed pages in the arena. Offsets are in bytes and must be aligned and inside, which is our own matter: asserted.
pub struct SharedPages {
    /// Only its address and capacity are used: the content belongs to both sides.
    buf: DmaBuf,
    base: *mut u8,
    offset: usize,
}

// SAFETY: the memory is owned, and every access is atomic.
unsafe impl Send for SharedPages {}
// SAFETY: as above.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// None: larger than 2 MiB, or the arena has no more memory.
    pub fn new(len_bytes: usize) -> Option<SharedPages> {
        let arena: &Arena = arena::activate().ok()?;
        let mut buf = DmaBuf::zeroed(len_bytes);
        let offset = arena.offset_of(&buf)?;
        let base = buf.as_mut_ptr();
        Some(SharedPages { buf, base, offset })
    }

    /// Where it is in the arena's span.
    pub fn arena_offset(&self) -> usize {
        self.offset
    }

    pub fn len(&self) -> usize {
        self.buf.capacity()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    #[inline]
    fn word32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.buf.capacity());
        // SAFETY: inside the owned memory and aligned; every access to it is atomic.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast()) }
    }

    #[inline]
    fn word64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.buf.capacity());
        // SAFETY: as in word32.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    /// Acquires what the device wrote before this word.
    #[inline]
    pub fn load32(&self, at: usize) -> u32 {
        self.word32(at).load(Acquire)
    }

    /// Releases what was written here before to who sees this word.
    #[inline]
    pub fn store32(&self, at: usize, value: u32) {
        self.word32(at).store(value, Release);
    }

    #[inline]
    pub fn store64(&self, at: usize, value: u64) {
        self.word64(at).store(value, Relaxed);
    }

    #[inline]
    pub fn load_words<const N: usize>(&self, at: usize) -> [u64; N] {
        assert!(at + 8 * N <= self.buf.capacity()); // once, and not for each word
        std::array::from_fn(|i| self.word64(at + 8 * i).load(Relaxed))
    }

    #[inline]
    pub fn store_words<const N: usize>(&self, at: usize, words: [u64; N]) {
        assert!(at + 8 * N <= self.buf.capacity()); // once, and not for each word
        for (i, word) in words.into_iter().enumerate() {
            self.word64(at + 8 * i).store(word, Relaxed);
        }
    }

    /// Copies the beginning out; `out` is a multiple of 8 long.
    pub fn copy_to(&self, out: &mut [u8]) {
        for (i, chunk) in out.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.word64(8 * i).load(Relaxed).to_ne_bytes());
        }
    }

    pub fn clear(&self) {
        for at in (0..self.buf.capacity()).step_by(8) {
            self.word64(at).store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_words() {
        let pages = SharedPages::new(8192).expect("memory");
        pages.store_words(64, [1, 2, 3]);
        assert_eq!(pages.load_words::<3>(64), [1, 2, 3]);
        let arena = arena::active().expect("active by now");
        // SAFETY: both sides use atomics.
        let word = unsafe { arena.device_word(pages.arena_offset() as u64 + 8188) }.expect("inside");
        word.store(9, Release);
        assert_eq!(pages.load32(8188), 9);
        pages.clear();
        let mut out = [1; 8192];
        pages.copy_to(&mut out);
        assert_eq!(out, [0; 8192]);
    }

    #[test]
    #[should_panic]
    fn outside_is_our_bug() {
        SharedPages::new(4096).expect("memory").load32(4096);
    }
}

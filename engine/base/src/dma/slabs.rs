//! Memory of the size classes for a process without an arena: slabs from the kernel, each cut into pieces of one class.
//!
//! Why not the allocator: glibc keeps a header before each piece, so that aligned pieces of 8 KiB lie 12 KiB apart, and what
//! is freed between two of them fits no other. A block cache of 256 MiB took 384 that way, and grew as its blocks changed
//! their lengths. In a slab pieces lie side by side, and a slab without a piece in use goes back to the kernel.
//!
//! Invariants: a slab is aligned to its length, so that a piece's address tells its slab; the bits of a slab's pieces say
//! which are in use; `open` has exactly the slabs that have both a free piece and a used one.
#![allow(unsafe_code)] // mmap; every block below states its argument

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use super::buf::CLASSES;
use crate::units::BLOCK_SIZE;

/// One piece of the largest class.
const SLAB_BYTES: usize = BLOCK_SIZE << (CLASSES - 1);
/// Slabs that nobody uses are kept, up to this many: a segment that is built takes and gives back so much each time.
const SPARE_SLABS: usize = 8;
pub const SPARE_BYTES: usize = SPARE_SLABS * SLAB_BYTES;
const WORDS: usize = SLAB_BYTES / BLOCK_SIZE / 64;
const _: () = assert!(WORDS * 64 * BLOCK_SIZE == SLAB_BYTES);

/// What has been taken from the kernel, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabStats {
    /// All slabs.
    pub mapped_bytes: usize,
    /// Their pieces that were handed out and not given back.
    pub used_bytes: usize,
}

struct Slab {
    class: usize,
    used: usize,
    /// A bit for each piece in use.
    bits: [u64; WORDS],
}

impl Slab {
    fn new(class: usize) -> Slab {
        Slab { class, used: 0, bits: [0; WORDS] }
    }

    fn pieces(&self) -> usize {
        SLAB_BYTES / (BLOCK_SIZE << self.class)
    }

    /// The lowest free piece.
    fn take(&mut self) -> Option<usize> {
        let word = self.bits.iter().position(|word| *word != u64::MAX)?;
        let piece = word * 64 + self.bits[word].trailing_ones() as usize;
        if piece >= self.pieces() {
            return None;
        }
        self.bits[word] |= 1 << (piece % 64);
        self.used += 1;
        Some(piece)
    }

    fn give_back(&mut self, piece: usize) {
        let (word, bit) = (piece / 64, 1 << (piece % 64));
        assert!(self.bits[word] & bit != 0, "a buffer is given back twice");
        self.bits[word] &= !bit;
        self.used -= 1;
    }
}

/// By the address of their first byte.
pub(super) struct Slabs {
    slabs: BTreeMap<usize, Slab>,
    /// The lowest is taken from first, so that others become empty.
    open: [BTreeSet<usize>; CLASSES],
    /// Of no class.
    spare: Vec<usize>,
    used_bytes: usize,
}

static SLABS: Mutex<Slabs> = Mutex::new(Slabs::new());

fn with<T>(f: impl FnOnce(&mut Slabs) -> T) -> T {
    f(&mut SLABS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Initialised memory of a size class. `None`: the kernel has no more.
pub(super) fn alloc(class: usize) -> Option<NonNull<u8>> {
    let at = with(|slabs| slabs.alloc(class))?;
    NonNull::new(std::ptr::with_exposed_provenance_mut(at))
}

/// Takes back what `alloc` gave.
pub(super) fn free(at: NonNull<u8>) {
    with(|slabs| slabs.free(at.as_ptr().expose_provenance()));
}

pub fn stats() -> SlabStats {
    with(|slabs| slabs.stats())
}

impl Slabs {
    const fn new() -> Slabs {
        Slabs { slabs: BTreeMap::new(), open: [const { BTreeSet::new() }; CLASSES], spare: Vec::new(), used_bytes: 0 }
    }

    fn stats(&self) -> SlabStats {
        SlabStats { mapped_bytes: (self.slabs.len() + self.spare.len()) * SLAB_BYTES, used_bytes: self.used_bytes }
    }

    fn alloc(&mut self, class: usize) -> Option<usize> {
        let base = match self.open[class].first() {
            Some(base) => *base,
            None => {
                let base = self.spare.pop().or_else(map)?;
                self.slabs.insert(base, Slab::new(class));
                self.open[class].insert(base);
                base
            }
        };
        let slab = self.slabs.get_mut(&base)?;
        let piece = slab.take()?;
        if slab.used == slab.pieces() {
            self.open[class].remove(&base);
        }
        self.used_bytes += BLOCK_SIZE << class;
        Some(base + piece * (BLOCK_SIZE << class))
    }

    fn free(&mut self, at: usize) {
        let base = at & !(SLAB_BYTES - 1);
        let slab = self.slabs.get_mut(&base).expect("a buffer of a size class is in a slab");
        let class = slab.class;
        slab.give_back((at - base) / (BLOCK_SIZE << class));
        self.used_bytes -= BLOCK_SIZE << class;
        if slab.used > 0 {
            self.open[class].insert(base);
            return;
        }
        self.slabs.remove(&base);
        self.open[class].remove(&base);
        if self.spare.len() < SPARE_SLABS {
            self.spare.push(base);
        } else {
            unmap(base, SLAB_BYTES);
        }
    }
}

/// A new slab: twice its length is mapped, and what is not aligned given back.
fn map() -> Option<usize> {
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let whole = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            2 * SLAB_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    let from = whole.ok()?.expose_provenance();
    let base = from.next_multiple_of(SLAB_BYTES);
    unmap(from, base - from);
    unmap(base + SLAB_BYTES, from + SLAB_BYTES - base);
    Some(base)
}

/// Gives memory back to the kernel that is nobody's.
fn unmap(at: usize, len: usize) {
    if len > 0 {
        // SAFETY: a part of a mapping that `map` made, none of which is handed out: the bits say so of a slab, and what is
        // beside one never was. A failure leaves it mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(at), len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slabs of this test's own, without memory behind them given back at the end.
    fn drained(mut slabs: Slabs) {
        assert!(slabs.slabs.is_empty(), "all pieces were given back");
        slabs.spare.drain(..).for_each(|base| unmap(base, SLAB_BYTES));
    }

    #[test]
    fn pieces_of_a_class_lie_side_by_side_and_are_used_again() {
        let mut slabs = Slabs::new();
        let mut pieces: Vec<usize> = (0..300).map(|_| slabs.alloc(1).unwrap()).collect();
        pieces.sort_unstable();
        pieces.dedup();
        assert_eq!(pieces.len(), 300, "none is given out twice");
        assert!(pieces.iter().all(|at| at % BLOCK_SIZE == 0));
        assert_eq!(slabs.stats(), SlabStats { mapped_bytes: 2 * SLAB_BYTES, used_bytes: 300 * 8192 });
        let (freed, kept) = pieces.split_at(150);
        freed.iter().for_each(|at| slabs.free(*at));
        let again: Vec<usize> = (0..150).map(|_| slabs.alloc(1).unwrap()).collect();
        assert_eq!(slabs.stats(), SlabStats { mapped_bytes: 2 * SLAB_BYTES, used_bytes: 300 * 8192 });
        again.iter().chain(kept).for_each(|at| slabs.free(*at));
        assert_eq!(slabs.stats().used_bytes, 0);
        drained(slabs);
    }

    #[test]
    fn an_empty_slab_serves_another_class_or_goes_back() {
        let mut slabs = Slabs::new();
        let many: Vec<usize> = (0..3 * SPARE_SLABS).map(|_| slabs.alloc(CLASSES - 1).unwrap()).collect();
        assert_eq!(slabs.stats().mapped_bytes, 3 * SPARE_SLABS * SLAB_BYTES);
        many.into_iter().for_each(|at| slabs.free(at));
        assert_eq!(slabs.stats(), SlabStats { mapped_bytes: SPARE_SLABS * SLAB_BYTES, used_bytes: 0 });
        let small = slabs.alloc(0).unwrap();
        assert_eq!(slabs.stats().mapped_bytes, SPARE_SLABS * SLAB_BYTES);
        slabs.free(small);
        drained(slabs);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_piece_that_is_given_back_twice_is_our_bug() {
        let mut slabs = Slabs::new();
        let (one, _other) = (slabs.alloc(0).unwrap(), slabs.alloc(0).unwrap());
        slabs.free(one);
        slabs.free(one);
    }
}

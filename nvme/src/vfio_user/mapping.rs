//! Memory that another process shares by a file. All access is by atomics or by copies of bytes that nobody here refers
//! to: the other side may change it at any time.
#![allow(unsafe_code)] // mmap of another's file; each block states its argument

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is valid until drop, and every access is atomic or a copy of plain bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` at `offset` (both multiples of a page), if the file has them.
    pub fn new(file: impl AsFd, offset: u64, len: usize, writable: bool) -> io::Result<Mapping> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= size);
        if len == 0 || !inside || !offset.is_multiple_of(4096) || !len.is_multiple_of(4096) {
            return Err(invalid("memory that the file does not have"));
        }
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset)? };
        let base = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // A child after fork has no business here. Where it cannot be said, nothing is lost.
        // SAFETY: changes nothing about the memory in this process.
        let _ = unsafe { rustix::mm::madvise(at, len, rustix::mm::Advice::LinuxDontFork) };
        Ok(Mapping { base, len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn at(&self, at: usize, len: usize) -> Option<*mut u8> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        // SAFETY: inside the mapping.
        inside.then(|| unsafe { self.base.as_ptr().add(at) })
    }

    #[inline]
    fn word(&self, at: usize) -> Option<&AtomicU32> {
        let word = self.at(at, 4).filter(|_| at.is_multiple_of(4))?;
        // SAFETY: mapped and aligned; this process uses shared words by atomics only. (The other process is outside of the
        // language; it uses atomics too, or harms itself.)
        Some(unsafe { AtomicU32::from_ptr(word.cast()) })
    }

    /// False: not inside.
    #[inline]
    pub fn read(&self, at: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(at, out.len()) else { return false };
        // SAFETY: mapped for that length; `out` is memory of our own. A concurrent change gives other bytes, not undefined
        // ones: nothing is inferred from two reads being equal.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }

    /// False: not inside. The mapping must be writable.
    #[inline]
    pub fn write(&self, at: usize, data: &[u8]) -> bool {
        let Some(to) = self.at(at, data.len()) else { return false };
        // SAFETY: mapped writable (the owner checks before) for that length; no reference of ours points there.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        true
    }

    #[inline]
    pub fn load32(&self, at: usize) -> Option<u32> {
        Some(self.word(at)?.load(Ordering::Acquire))
    }

    #[inline]
    pub fn store32(&self, at: usize, value: u32) -> bool {
        self.word(at).map(|word| word.store(value, Ordering::Release)).is_some()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this address and length, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert!(Mapping::new(&file, 4096, 8192, true).is_err(), "longer than the file");
        assert!(Mapping::new(&file, u64::MAX - 4095, 4096, true).is_err());
        assert!(Mapping::new(&file, 0, 0, true).is_err());
        let mapping = Mapping::new(&file, 4096, 4096, true).unwrap();
        assert!(mapping.write(4090, b"inside") && !mapping.write(4091, b"beyond"));
        assert!(mapping.store32(4092, 7) && !mapping.store32(4096, 7) && !mapping.store32(1, 7));
        assert_eq!((mapping.load32(4092), mapping.load32(usize::MAX)), (Some(7), None));
        assert!(!mapping.read(usize::MAX, &mut [0; 2]));
    }
}

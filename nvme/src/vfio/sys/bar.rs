//! The registers of BAR0, mapped.
#![allow(unsafe_code)] // mmap, volatile registers; each block states its argument

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::unsupported;
use crate::spec::GONE_32;

/// The least that a controller needs: registers and the first page of doorbells.
const MIN_BYTES: u64 = 0x2000;

/// The mapped registers.
pub(in crate::vfio) struct Bar {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is valid until drop; registers may be accessed from any thread, each access being one instruction.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
    /// The first `size_bytes` of `file` from `offset` on, which the kernel says are BAR0 and can be mapped.
    pub(super) fn map(file: &File, offset: u64, size_bytes: u64) -> io::Result<Bar> {
        if size_bytes < MIN_BYTES {
            return Err(unsupported("its BAR0 is too small for a controller's registers"));
        }
        let map = |len: usize| {
            let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
            unsafe {
                rustix::mm::mmap(std::ptr::null_mut(), len, protection, rustix::mm::MapFlags::SHARED, file, offset)
            }
        };
        // An old kernel does not map a BAR whole when the interrupt table is in it.
        let mut len = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        let at = map(len).or_else(|_| {
            len = MIN_BYTES as usize;
            map(len)
        })?;
        let base = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Bar { base, len })
    }

    fn word(&self, at: u32) -> Option<*mut u32> {
        let at = at as usize;
        let inside = at.is_multiple_of(4) && at + 4 <= self.len;
        // SAFETY: inside the mapping.
        inside.then(|| unsafe { self.base.as_ptr().add(at) }.cast())
    }

    /// All ones outside of what is mapped.
    #[inline]
    pub fn read32(&self, at: u32) -> u32 {
        let Some(word) = self.word(at) else { return GONE_32 };
        // SAFETY: a mapped, aligned register; the volatile access is one load.
        u32::from_le(unsafe { word.read_volatile() })
    }

    #[inline]
    pub fn write32(&self, at: u32, value: u32) {
        let Some(word) = self.word(at) else { return };
        // What was stored to memory before must be seen by the device when it sees this. On x86 stores are not reordered and
        // this costs nothing; elsewhere it must be a barrier that also orders device memory.
        if cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
            fence(Ordering::Release);
        } else {
            fence(Ordering::SeqCst);
        }
        // SAFETY: a mapped, aligned register; the volatile access is one store.
        unsafe { word.write_volatile(value.to_le()) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

//! The seam under the driver: how registers, doorbells and memory of one controller are reached.

use super::TransportError;
use crate::spec::Register;

/// One controller's function. Implementations: [`crate::emu::EmuTransport`], [`crate::vfio`], [`crate::vfio_user`].
pub trait Transport: Send + Sync + 'static {
    /// As the user named it.
    fn name(&self) -> String;

    /// How it is reached, for people.
    fn reached_by(&self) -> String;

    /// A register of BAR0. All ones when nobody answers any more.
    fn read32(&self, at: u32) -> u32;

    /// A register or doorbell of BAR0. Releases what was written to shared memory before.
    fn write32(&self, at: u32, value: u32);

    /// The device address of `len` bytes of the arena at `arena_offset`, contiguous; maps them first when the arena has
    /// grown. None: they cannot be mapped.
    fn address_of(&self, arena_offset: usize, len: usize) -> Option<u64>;

    /// Lets a controller that has no thread of its own act on queue `qid`. Hardware acts by itself.
    fn turn(&self, _qid: u16) {}

    /// Whoever owns the function waits for it to be closed. Asked now and then; a system call at most.
    fn is_wanted_back(&self) -> bool {
        false
    }

    /// Stops all DMA of the function, by force (function level reset or the like).
    fn reset(&self) -> Result<(), TransportError>;

    /// Registers are 64 bits long in places; every controller allows two halves (NVMe over PCIe 3.1.1).
    fn read64(&self, at: u32) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    fn write64(&self, at: u32, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }

    fn register(&self, register: Register) -> u32 {
        self.read32(register as u32)
    }

    fn set_register(&self, register: Register, value: u32) {
        self.write32(register as u32, value);
    }
}

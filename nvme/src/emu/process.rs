//! A host in the same process: the arena is its memory, and the driver's thread lets the controller act.
#![allow(unsafe_code)] // the model's DMA: copies into memory that the driver has lent

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use vellum_base::dma::{Arena, arena};

use super::{Bus, BusFault, Controller};
use crate::driver::{Transport, TransportError};

pub struct ProcessBus {
    arena: &'static Arena,
    doorbells: Vec<AtomicU32>,
}

impl ProcessBus {
    /// Device address of the arena's first byte: far from what could be a pointer or an offset.
    pub const DEVICE_BASE: u64 = 1 << 40;

    /// Doorbells for the admin queue and `io_queues` more.
    pub fn new(io_queues: u16) -> Result<ProcessBus, TransportError> {
        let arena = arena::activate().map_err(|err| TransportError::io("reserve memory for", "emu", &err))?;
        let doorbells = (0..2 * (usize::from(io_queues) + 1)).map(|_| AtomicU32::new(0)).collect();
        Ok(ProcessBus { arena, doorbells })
    }

    fn offset(at: u64) -> Result<u64, BusFault> {
        at.checked_sub(Self::DEVICE_BASE).ok_or(BusFault)
    }

    fn word(&self, at: u64) -> Result<&AtomicU32, BusFault> {
        let offset = Self::offset(at)?;
        // SAFETY: the driver uses queues and doorbell buffers (SharedPages) by atomics only; an address of anything else
        // is a command that a driver of ours does not build.
        unsafe { self.arena.device_word(offset) }.ok_or(BusFault)
    }
}

impl Bus for ProcessBus {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), BusFault> {
        let offset = Self::offset(at)?;
        // SAFETY: the driver lends the memory of a command until its completion, and doesn't touch it meanwhile; the
        // model does what a command says before it completes it, and nothing after a reset.
        if unsafe { self.arena.device_read(offset, out) } { Ok(()) } else { Err(BusFault) }
    }

    fn write(&self, at: u64, data: &[u8]) -> Result<(), BusFault> {
        let offset = Self::offset(at)?;
        // SAFETY: as in read.
        if unsafe { self.arena.device_write(offset, data) } { Ok(()) } else { Err(BusFault) }
    }

    fn load32(&self, at: u64) -> Result<u32, BusFault> {
        Ok(self.word(at)?.load(Ordering::Acquire))
    }

    fn store32(&self, at: u64, value: u32) -> Result<(), BusFault> {
        self.word(at)?.store(value, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn doorbell(&self, index: usize) -> u32 {
        self.doorbells.get(index).map_or(0, |bell| bell.load(Ordering::Acquire))
    }

    #[inline]
    fn set_doorbell(&self, index: usize, value: u32) {
        if let Some(bell) = self.doorbells.get(index) {
            bell.store(value, Ordering::Release);
        }
    }
}

/// The driver's side of a controller in this process.
pub struct EmuTransport {
    controller: Arc<Controller<ProcessBus>>,
    /// Doorbell registers written: what a real controller would see on its bus.
    doorbell_writes: AtomicUsize,
}

impl EmuTransport {
    /// Where the doorbells begin in BAR0.
    pub const DOORBELLS: u32 = 0x1000;

    pub fn new(controller: Arc<Controller<ProcessBus>>) -> EmuTransport {
        EmuTransport { controller, doorbell_writes: AtomicUsize::new(0) }
    }

    pub fn doorbell_writes(&self) -> usize {
        self.doorbell_writes.load(Ordering::Relaxed)
    }
}

impl Transport for EmuTransport {
    fn name(&self) -> String {
        "emu".to_owned()
    }

    fn reached_by(&self) -> String {
        "calls: a model in this process".to_owned()
    }

    fn read32(&self, at: u32) -> u32 {
        self.controller.read_register(at)
    }

    #[inline]
    fn write32(&self, at: u32, value: u32) {
        match at.checked_sub(Self::DOORBELLS) {
            Some(bell) => {
                // One thread rings a queue's bells, so that plain loads and stores would do; the counter is shared by
                // all queues, and need not be exact.
                let count = self.doorbell_writes.load(Ordering::Relaxed);
                self.doorbell_writes.store(count.wrapping_add(1), Ordering::Relaxed);
                self.controller.bus().set_doorbell(bell as usize / 4, value);
            }
            None => self.controller.write_register(at, value),
        }
    }

    #[inline]
    fn address_of(&self, arena_offset: usize, _len: usize) -> Option<u64> {
        Some(ProcessBus::DEVICE_BASE + arena_offset as u64)
    }

    #[inline]
    fn turn(&self, qid: u16) {
        self.controller.run_queue(qid);
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.controller.function_reset();
        Ok(())
    }
}

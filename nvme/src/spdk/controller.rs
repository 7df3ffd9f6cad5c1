//! A controller of SPDK's, a namespace of it, and queue pairs with the memory that their commands use.
#![allow(unsafe_code)] // calls of SPDK's functions; each block states its argument

use std::ffi::{CString, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::library::Api;
use crate::spec::{DsmRange, Status};

/// More than any version's struct spdk_nvme_transport_id.
const TRANSPORT_ID_BYTES: usize = 4096;
const MALLOC_DMA: u32 = 1;
const ANY_NUMA_NODE: i32 = -1;
const DSM_DEALLOCATE: u32 = 1 << 2;
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// A command that was not answered yet.
const PENDING: u32 = u32::MAX;

pub(super) struct Controller {
    api: Arc<Api>,
    at: NonNull<c_void>,
}

// SAFETY: what is called on it (queue pairs taken and given back, admin completions) takes the controller's own lock.
unsafe impl Send for Controller {}
// SAFETY: as above.
unsafe impl Sync for Controller {}

#[derive(Clone, Copy)]
pub(super) struct Namespace {
    at: NonNull<c_void>,
    pub nsid: u32,
    pub lba_bytes: u32,
    pub lbas: u64,
}

// SAFETY: SPDK only reads it; it lives as long as its controller, which whoever has one keeps.
unsafe impl Send for Namespace {}
// SAFETY: as above.
unsafe impl Sync for Namespace {}

impl Controller {
    pub fn connect(api: Arc<Api>, transport: &str) -> Result<Controller, String> {
        let text = CString::new(transport).map_err(|_| "a zero byte in the transport id".to_owned())?;
        let mut id = vec![0u64; TRANSPORT_ID_BYTES / 8];
        // SAFETY: a zeroed, aligned struct that is large enough, and a string with a zero at its end.
        if unsafe { (api.spdk_nvme_transport_id_parse)(id.as_mut_ptr().cast(), text.as_ptr()) } != 0 {
            return Err(
                "SPDK does not understand this transport id: want such as trtype:PCIe traddr:0000:00:10.0".into()
            );
        }
        // SAFETY: a transport id that was parsed; no options.
        let at = unsafe { (api.spdk_nvme_connect)(id.as_ptr().cast(), std::ptr::null(), 0) };
        let failed = "SPDK cannot attach the controller: is it there, bound to vfio-pci (vellum nvme setup), and free?";
        Ok(Controller { at: NonNull::new(at).ok_or(failed)?, api })
    }

    /// None: the first that is active.
    pub fn namespace(&self, nsid: Option<u32>) -> Result<Namespace, String> {
        let (api, controller) = (&self.api, self.at.as_ptr());
        // SAFETY: a controller that is attached.
        let nsid = nsid.unwrap_or_else(|| unsafe { (api.spdk_nvme_ctrlr_get_first_active_ns)(controller) });
        // SAFETY: as above; an id that there is not gives null.
        let at = NonNull::new(unsafe { (api.spdk_nvme_ctrlr_get_ns)(controller, nsid) });
        let at = at.filter(|_| nsid > 0).ok_or(format!("it has no active namespace {nsid}"))?;
        // SAFETY: a namespace of an attached controller.
        let lba_bytes = unsafe { (api.spdk_nvme_ns_get_sector_size)(at.as_ptr()) };
        // SAFETY: as above.
        let lbas = unsafe { (api.spdk_nvme_ns_get_num_sectors)(at.as_ptr()) };
        if !matches!(lba_bytes, 512 | 4096) || lbas == 0 {
            return Err(format!("namespace {nsid} is not active, or has LBAs of neither 512 nor 4096 bytes"));
        }
        Ok(Namespace { at, nsid, lba_bytes, lbas })
    }

    /// Keep-alive, events, and whatever else SPDK does for its controller. False: the controller is lost.
    pub fn tend(&self) -> bool {
        // SAFETY: a controller that is attached.
        unsafe { (self.api.spdk_nvme_ctrlr_process_admin_completions)(self.at.as_ptr()) >= 0 }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // SAFETY: attached, and the last reference: every queue pair of it is gone.
        if unsafe { (self.api.spdk_nvme_detach)(self.at.as_ptr()) } != 0 {
            tracing::error!("SPDK could not detach its controller");
        }
    }
}

/// Memory that SPDK's controllers can address.
struct Memory {
    api: Arc<Api>,
    at: NonNull<u8>,
    len: usize,
}

impl Memory {
    fn new(api: &Arc<Api>, len: usize) -> Option<Memory> {
        // SAFETY: any size; null when there is none.
        let at = unsafe { (api.spdk_zmalloc)(len, 4096, std::ptr::null_mut(), ANY_NUMA_NODE, MALLOC_DMA) };
        Some(Memory { api: api.clone(), at: NonNull::new(at.cast())?, len })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by spdk_zmalloc; no command uses it any more (the queue pair is gone, or has answered).
        unsafe { (self.api.spdk_free)(self.at.as_ptr().cast()) };
    }
}

/// What is to be done; lengths of data are whole LBAs.
pub(super) enum Command<'a> {
    Read { lba: u64, lbas: u32, len: usize },
    Write { lba: u64, lbas: u32, data: &'a [u8], fua: bool },
    Flush,
    Deallocate { lba: u64, lbas: u32 },
}

/// A queue pair of one thread, with a slot for each command that may be on its way: its memory and its outcome.
pub(super) struct QueuePair {
    at: NonNull<c_void>,
    /// Written by callbacks; read and written through shared references only.
    outcomes: Box<[AtomicU32]>,
    memory: Vec<Option<Memory>>,
    controller: Arc<Controller>,
    namespace: Namespace,
}

/// Runs within `process` or `submit`, on the queue's thread.
unsafe extern "C" fn answered(context: *mut c_void, completion: *const [u8; 16]) {
    // SAFETY: the context is an outcome of a queue pair that is not gone: it is freed only after SPDK has freed its own,
    // which answers every command first. The completion is valid during the call.
    let (outcome, [.., low, high]) = unsafe { (&*context.cast::<AtomicU32>(), *completion) };
    outcome.store(u32::from(u16::from_le_bytes([low, high]) >> 1), Ordering::Relaxed);
}

impl QueuePair {
    pub fn new(controller: Arc<Controller>, namespace: Namespace, slots: usize) -> Option<QueuePair> {
        // SAFETY: an attached controller; default options.
        let at =
            unsafe { (controller.api.spdk_nvme_ctrlr_alloc_io_qpair)(controller.at.as_ptr(), std::ptr::null(), 0) };
        let outcomes = (0..slots).map(|_| AtomicU32::new(PENDING)).collect();
        let memory = (0..slots).map(|_| None).collect();
        Some(QueuePair { at: NonNull::new(at)?, outcomes, memory, controller, namespace })
    }

    /// The memory of `slot`, at least `len` bytes. The slot has no command on its way.
    fn memory(&mut self, slot: usize, len: usize) -> Result<*mut u8, i32> {
        let place = &mut self.memory[slot];
        if place.as_ref().is_none_or(|memory| memory.len < len) {
            *place = None;
            *place = Memory::new(&self.controller.api, len.next_power_of_two());
        }
        place.as_ref().map(|memory| memory.at.as_ptr()).ok_or(-libc::ENOMEM)
    }

    /// Gives a command to SPDK for `slot`, which has none on its way. An error: SPDK's negative errno; nothing is on its way.
    pub fn submit(&mut self, slot: usize, command: Command<'_>) -> Result<(), i32> {
        let data = match &command {
            Command::Read { len, .. } => self.memory(slot, *len)?,
            Command::Write { data, .. } => {
                let memory = self.memory(slot, data.len())?;
                // SAFETY: at least so many bytes of our own, which no command uses.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), memory, data.len()) };
                memory
            }
            _ => std::ptr::null_mut(),
        };
        let outcome = &self.outcomes[slot];
        outcome.store(PENDING, Ordering::Relaxed);
        let context = std::ptr::from_ref(outcome).cast_mut().cast::<c_void>();
        let (api, ns, at, data) = (&self.controller.api, self.namespace.at.as_ptr(), self.at.as_ptr(), data.cast());
        // SAFETY: namespace and queue pair of one attached controller, on the queue's thread. Memory and outcome stay where
        // they are until the command is answered: a slot is used again, and the queue pair freed, only then. The ranges of
        // a deallocation are copied by SPDK before it returns.
        let result = unsafe {
            match command {
                Command::Read { lba, lbas, .. } => {
                    (api.spdk_nvme_ns_cmd_read)(ns, at, data, lba, lbas, answered, context, 0)
                }
                Command::Write { lba, lbas, fua, .. } => {
                    let flags = if fua { FORCE_UNIT_ACCESS } else { 0 };
                    (api.spdk_nvme_ns_cmd_write)(ns, at, data, lba, lbas, answered, context, flags)
                }
                Command::Flush => (api.spdk_nvme_ns_cmd_flush)(ns, at, answered, context),
                Command::Deallocate { lba, lbas } => {
                    let range = DsmRange { attributes: 0.into(), len_lbas: lbas.into(), start_lba: lba.into() };
                    let ranges = std::ptr::from_ref(&range).cast();
                    (api.spdk_nvme_ns_cmd_dataset_management)(ns, at, DSM_DEALLOCATE, ranges, 1, answered, context)
                }
            }
        };
        if result == 0 { Ok(()) } else { Err(result) }
    }

    /// Lets SPDK reap. The number of commands answered; negative when the queue pair is lost.
    pub fn process(&mut self) -> i32 {
        // SAFETY: a queue pair on its thread; 0: as many as there are.
        unsafe { (self.controller.api.spdk_nvme_qpair_process_completions)(self.at.as_ptr(), 0) }
    }

    /// The status of the command in `slot`, when it was answered.
    pub fn outcome(&self, slot: usize) -> Option<Status> {
        let value = self.outcomes[slot].load(Ordering::Relaxed);
        (value != PENDING).then_some(Status(value as u16))
    }

    /// What a read of `slot` brought.
    pub fn copy_to(&self, slot: usize, out: &mut [u8]) {
        if let Some(memory) = self.memory[slot].as_ref().filter(|memory| memory.len >= out.len()) {
            // SAFETY: so many bytes of our own, whose command was answered.
            unsafe { std::ptr::copy_nonoverlapping(memory.at.as_ptr(), out.as_mut_ptr(), out.len()) };
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: on its thread, not within a callback. SPDK answers what is on its way (as aborted) before it returns.
        if unsafe { (self.controller.api.spdk_nvme_ctrlr_free_io_qpair)(self.at.as_ptr()) } != 0 {
            // Its commands may be answered yet: what they write to stays for ever.
            tracing::error!("SPDK could not free a queue pair: its memory is kept");
            Vec::leak(std::mem::take(&mut self.memory));
            Box::leak(std::mem::take(&mut self.outcomes));
        }
    }
}

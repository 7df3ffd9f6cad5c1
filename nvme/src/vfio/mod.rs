//! NVMe controllers on the PCI bus, handed to this process by the kernel's VFIO.
//!
//! - [`pci`]: what sysfs knows of the functions, and binding them to vfio-pci;
//! - `sys`: ioctls, BAR mapping: the home of unsafe; here: which way in, device addresses, the [`Transport`].
//!
//! The kernel resets the function when the last descriptor is closed, also after kill -9, and undoes its mappings: memory
//! of a dead process is never written. The IOMMU confines the function to the arena.

pub mod pci;
mod sys;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use vellum_base::dma::arena::GRANULE_BYTES;
use vellum_base::dma::{Arena, arena};

use crate::driver::{Transport, TransportError};
use pci::PciAddress;
use sys::{Bar, Container, Function};

/// Device address of the arena's first byte: above what machines reserve below 4 GiB (interrupts, firmware), and with the
/// whole span within the 39 bits that every IOMMU has.
const IOVA_BASE: u64 = 1 << 32;
const _: () = assert!(IOVA_BASE + arena::SPAN_BYTES as u64 <= 1 << 39);

pub struct VfioTransport {
    name: String,
    /// Before the container: closing the function stops its DMA.
    bar: Bar,
    function: Function,
    container: Container,
    arena: &'static Arena,
    /// Bytes of the arena that are mapped.
    mapped_bytes: AtomicUsize,
    mapping: Mutex<()>,
}

impl VfioTransport {
    /// The controller must be bound to vfio-pci (`vellum nvme setup`).
    pub fn open(address: PciAddress) -> Result<VfioTransport, TransportError> {
        let name = format!("nvme:{address}");
        let refused = |detail: String| TransportError::refused(&name, detail);
        let io = |what| move |err: io::Error| TransportError::io(what, &format!("nvme:{address}"), &err);
        let info = pci::Info::of(address).map_err(io("look at"))?;
        if !info.is_nvme() {
            return Err(refused("it is no NVMe controller".to_owned()));
        }
        if info.driver.as_deref() != Some("vfio-pci") {
            let driver = info.driver.as_deref().unwrap_or("no driver");
            return Err(refused(format!(
                "it is bound to {driver}: `vellum nvme setup {address}` hands it to vfio-pci"
            )));
        }
        let arena = arena::activate().map_err(io("reserve memory for"))?;
        let (container, function) = match info.vfio_device() {
            Some(path) if sys::has_iommufd() => sys::open_by_iommufd(&path).map_err(io("open (iommufd)"))?,
            _ => {
                let group = info.iommu_group.ok_or_else(|| {
                    refused("the machine has no IOMMU, or it is off (intel_iommu=on or the like)".to_owned())
                })?;
                sys::open_by_group(group, address).map_err(|err| match err.raw_os_error() {
                    Some(libc::EBUSY) => refused("it is in use by another process".to_owned()),
                    _ => io("open (group)")(err),
                })?
            }
        };
        function.enable_bus_master().map_err(io("enable DMA of"))?;
        let bar = function.map_bar().map_err(io("map the registers of"))?;
        Ok(VfioTransport {
            name,
            bar,
            function,
            container,
            arena,
            mapped_bytes: AtomicUsize::new(0),
            mapping: Mutex::new(()),
        })
    }

    /// Maps what the arena has grown by.
    #[cold]
    fn map_more(&self) -> io::Result<()> {
        let _one_at_a_time = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        let mapped = self.mapped_bytes.load(Ordering::Acquire);
        for granule in self.arena.granules().iter().filter(|granule| granule.offset_bytes >= mapped) {
            let iova = IOVA_BASE + granule.offset_bytes as u64;
            self.container.map(self.arena, granule.offset_bytes, GRANULE_BYTES, iova)?;
            self.mapped_bytes.store(granule.offset_bytes + GRANULE_BYTES, Ordering::Release);
        }
        Ok(())
    }
}

impl Transport for VfioTransport {
    fn name(&self) -> String {
        self.name.clone()
    }

    #[inline]
    fn read32(&self, at: u32) -> u32 {
        self.bar.read32(at)
    }

    #[inline]
    fn write32(&self, at: u32, value: u32) {
        self.bar.write32(at, value);
    }

    #[inline]
    fn address_of(&self, arena_offset: usize, len: usize) -> Option<u64> {
        let end = arena_offset.checked_add(len)?;
        if end > self.mapped_bytes.load(Ordering::Acquire) {
            if let Err(err) = self.map_more() {
                tracing::error!(device = self.name, %err, "memory cannot be mapped for the device (RLIMIT_MEMLOCK?)");
            }
            if end > self.mapped_bytes.load(Ordering::Acquire) {
                return None;
            }
        }
        Some(IOVA_BASE + arena_offset as u64)
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.function.reset().map_err(|err| TransportError::io("reset", &self.name, &err))
    }
}

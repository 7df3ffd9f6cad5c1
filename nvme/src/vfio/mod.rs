//! NVMe controllers on the PCI bus, handed to this process by the kernel's VFIO.
//!
//! - [`pci`]: what sysfs knows of the functions, and binding them to vfio-pci;
//! - [`Way`]: by iommufd or by group, the one place where this is decided;
//! - `iova`: where in a function's address space the arena is;
//! - `sys`: ioctls, BAR mapping: the home of unsafe; here: the [`Transport`].
//!
//! The kernel resets the function when the last descriptor is closed, also after kill -9, and undoes its mappings: memory
//! of a dead process is never written. The IOMMU confines the function to the arena.

mod iova;
pub mod pci;
mod sys;
mod way;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use vellum_base::dma::arena::GRANULE_BYTES;
use vellum_base::dma::{Arena, arena};

pub use self::way::Way;
use self::way::{CONTAINER_NODE, IOMMUFD_NODE};
use crate::driver::{Transport, TransportError};
use pci::PciAddress;
use sys::{Bar, Container, Function};

/// Why a function could not be opened.
enum OpenError {
    /// A device node could not.
    Node {
        path: PathBuf,
        err: io::Error,
    },
    InUse,
    Io(&'static str, io::Error),
}

impl OpenError {
    fn on(self, name: &str, address: PciAddress) -> TransportError {
        let detail = match self {
            OpenError::Io(what, err) => return TransportError::io(what, name, &err),
            OpenError::InUse => "it is in use by another process".to_owned(),
            OpenError::Node { path, err } => {
                let path = path.display();
                let hint = match err.kind() {
                    io::ErrorKind::PermissionDenied => {
                        format!(": as root, `vellum nvme setup {address} --owner UID --yes` gives it to a user")
                    }
                    _ => String::new(),
                };
                format!("cannot open {path}: {err}{hint}")
            }
        };
        TransportError::refused(name, detail)
    }
}

/// Whether a process has the function, or another of its group. For a moment this opens it: one that nobody has is reset.
pub fn is_in_use(info: &pci::Info) -> bool {
    Way::of(info).is_ok_and(|way| matches!(sys::open(&way, info.address), Err(OpenError::InUse)))
}

pub struct VfioTransport {
    name: String,
    /// Before the container: closing the function stops its DMA.
    bar: Bar,
    function: Function,
    container: Container,
    way: Way,
    arena: &'static Arena,
    /// Device address of the arena's first byte.
    iova_base: u64,
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
        let way = Way::of(&info).map_err(refused)?;
        let arena = arena::activate().map_err(io("reserve memory for"))?;
        let (container, function) = sys::open(&way, address).map_err(|err| err.on(&name, address))?;
        let allowed = container.allowed().map_err(io("ask for the device addresses of"))?;
        let iova_base = iova::base(&allowed).ok_or_else(|| {
            let gib = arena::SPAN_BYTES >> 30;
            refused(format!("its IOMMU has no {gib} GiB of device addresses in one piece, only {allowed:x?}"))
        })?;
        tracing::debug!(name, %way, iova_base, "opened");
        function.enable_bus_master().map_err(io("enable DMA of"))?;
        let bar = function.map_bar().map_err(io("map the registers of"))?;
        Ok(VfioTransport {
            name,
            bar,
            function,
            container,
            way,
            arena,
            iova_base,
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
            let iova = self.iova_base + granule.offset_bytes as u64;
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

    fn reached_by(&self) -> String {
        format!("VFIO, by {}", self.way)
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
        Some(self.iova_base + arena_offset as u64)
    }

    fn is_wanted_back(&self) -> bool {
        self.function.is_wanted_back()
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.function.reset().map_err(|err| TransportError::io("reset", &self.name, &err))
    }
}

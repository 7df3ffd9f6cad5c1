//! VFIO's and iommufd's system calls (linux/vfio.h, linux/iommufd.h) and the mapped registers: the home of unsafe.
//!
//! - [`group`], [`iommufd`]: the two ways to a function, and to map memory for it;
//! - [`bar`]: its registers; here: what both ways end in.
#![allow(unsafe_code)] // ioctl; each block states its argument

mod bar;
mod group;
mod iommufd;

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::event::EventfdFlags;
use vellum_base::dma::Arena;

pub(super) use self::bar::Bar;
use self::group::Group;
use self::iommufd::Iommufd;
use super::pci::PciAddress;
use super::{OpenError, Way};

/// `_IO(';', 100 + n)`.
const fn vfio(n: u64) -> u64 {
    0x3b64 + n
}
const GET_REGION_INFO: u64 = vfio(8);
const SET_IRQS: u64 = vfio(10);
const DEVICE_RESET: u64 = vfio(11);

const REGION_CAN_MMAP: u32 = 1 << 2;
const BAR0_REGION: u32 = 0;
const CONFIG_REGION: u32 = 7;

#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}
const _: () = assert!(size_of::<RegionInfo>() == 32);

/// Data is an event descriptor; it is to be signalled.
const IRQ_SIGNALS_EVENT: u32 = 1 << 2 | 1 << 5;
/// Not an interrupt of the function: the kernel's, when it wants the function back.
const REQUEST_IRQ: u32 = 4;

#[repr(C)]
#[derive(Default)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    event_fd: i32,
}
const _: () = assert!(size_of::<IrqSet>() == 24);

/// The length of a struct, as it begins with it.
const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

/// An ioctl whose argument is a number, or none.
fn ioctl_value(fd: &impl AsRawFd, request: u64, value: u64) -> io::Result<i32> {
    // SAFETY: these requests take no pointer; a wrong descriptor is an error.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ioctl that reads and perhaps writes `argument`.
///
/// # Safety
/// `request` expects exactly a `T`, and what `T` points to is valid as the request says.
unsafe fn ioctl_struct<T>(fd: &impl AsRawFd, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: a valid, exclusive T, which the request expects by the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn open_node(path: &Path) -> Result<File, OpenError> {
    File::options().read(true).write(true).open(path).map_err(|err| OpenError::Node { path: path.to_owned(), err })
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_owned())
}

/// Where memory is mapped for the function. Its mappings end, and the memory is unpinned, when it and the function are
/// closed: the arena never gives memory back, so nothing is unmapped before.
pub(super) enum Container {
    Group(Group),
    Iommufd(Iommufd),
}

impl Container {
    /// Device addresses that may be mapped; what is missing is reserved by the machine, or beyond the IOMMU.
    pub fn allowed(&self) -> io::Result<Vec<RangeInclusive<u64>>> {
        match self {
            Container::Group(group) => group.allowed(),
            Container::Iommufd(iommufd) => iommufd.allowed(),
        }
    }

    /// Maps `len` bytes of the arena at `offset` for DMA, at device address `iova`. The arena's pages are pinned.
    pub fn map(&self, arena: &Arena, offset: usize, len: usize, iova: u64) -> io::Result<()> {
        // What both calls rely on: committed memory is never unmapped or moved, and only they use it with a device who
        // were lent it.
        assert!(offset + len <= arena.committed_bytes(), "only committed memory is mapped");
        let vaddr = arena.base() as u64 + offset as u64;
        match self {
            // SAFETY: the arena's committed memory, as above.
            Container::Group(group) => unsafe { group.map(vaddr, len as u64, iova) },
            // SAFETY: as above.
            Container::Iommufd(iommufd) => unsafe { iommufd.map(vaddr, len as u64, iova) },
        }
    }
}

/// The function's descriptor.
pub(super) struct Function {
    file: File,
    /// Counts the kernel's requests to have it back. None: this kernel makes none.
    requests: Option<OwnedFd>,
}

pub(super) fn open(way: &Way, address: PciAddress) -> Result<(Container, Function), OpenError> {
    match way {
        Way::Iommufd { device } => {
            let (iommufd, file) = Iommufd::open(device)?;
            Ok((Container::Iommufd(iommufd), Function::new(file)))
        }
        Way::Group { group } => {
            let (group, file) = Group::open(*group, address)?;
            Ok((Container::Group(group), Function::new(file)))
        }
    }
}

impl Function {
    fn new(file: File) -> Function {
        let requests = listen_for_requests(&file)
            .inspect_err(|err| tracing::warn!(%err, "a request to give the controller back will not be noticed"))
            .ok();
        Function { file, requests }
    }

    /// The kernel waits for the function to be closed: it is being removed, or its driver is to change. True once for each
    /// request; the kernel repeats them.
    pub fn is_wanted_back(&self) -> bool {
        let mut count = [0; 8];
        self.requests.as_ref().is_some_and(|event| rustix::io::read(event, &mut count).is_ok())
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        let mut info = RegionInfo { argsz: argsz::<RegionInfo>(), index, ..RegionInfo::default() };
        // SAFETY: GET_REGION_INFO takes this struct.
        unsafe { ioctl_struct(&self.file, GET_REGION_INFO, &mut info) }?;
        Ok(info)
    }

    /// Memory space and bus master in the command register (PCI 3.0, 6.2.2).
    pub fn enable_bus_master(&self) -> io::Result<()> {
        const COMMAND: u64 = 4;
        const MEMORY_AND_MASTER: u16 = 1 << 1 | 1 << 2;
        let at = self.region(CONFIG_REGION)?.offset + COMMAND;
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at)?;
        let command = u16::from_le_bytes(bytes) | MEMORY_AND_MASTER;
        self.file.write_all_at(&command.to_le_bytes(), at)
    }

    pub fn map_bar(&self) -> io::Result<Bar> {
        let info = self.region(BAR0_REGION)?;
        if info.flags & REGION_CAN_MMAP == 0 {
            return Err(unsupported("its registers cannot be mapped"));
        }
        Bar::map(&self.file, info.offset, info.size)
    }

    pub fn reset(&self) -> io::Result<()> {
        ioctl_value(&self.file, DEVICE_RESET, 0).map(|_| ())
    }
}

fn listen_for_requests(function: &File) -> io::Result<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let mut set = IrqSet {
        argsz: argsz::<IrqSet>(),
        flags: IRQ_SIGNALS_EVENT,
        index: REQUEST_IRQ,
        count: 1,
        event_fd: event.as_raw_fd(),
        ..IrqSet::default()
    };
    // SAFETY: SET_IRQS takes this struct, followed by `count` descriptors for these flags, which is one. The kernel takes a
    // reference of its own to the event.
    unsafe { ioctl_struct(function, SET_IRQS, &mut set) }?;
    Ok(event)
}

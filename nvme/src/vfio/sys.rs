//! VFIO's and iommufd's system calls (linux/vfio.h, linux/iommufd.h) and the mapped registers.
#![allow(unsafe_code)] // ioctl, mmap, volatile registers; each block states its argument

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use vellum_base::dma::Arena;

use super::pci::PciAddress;
use crate::spec::GONE_32;

/// `_IO(';', 100 + n)`.
const fn vfio(n: u64) -> u64 {
    0x3b64 + n
}
const GET_API_VERSION: u64 = vfio(0);
const CHECK_EXTENSION: u64 = vfio(1);
const SET_IOMMU: u64 = vfio(2);
const GROUP_GET_STATUS: u64 = vfio(3);
const GROUP_SET_CONTAINER: u64 = vfio(4);
const GROUP_GET_DEVICE_FD: u64 = vfio(6);
const GET_REGION_INFO: u64 = vfio(8);
const DEVICE_RESET: u64 = vfio(11);
const MAP_DMA: u64 = vfio(13);
const BIND_IOMMUFD: u64 = vfio(18);
const ATTACH_IOMMUFD_PT: u64 = vfio(19);
const IOAS_ALLOC: u64 = 0x3b81;
const IOAS_MAP: u64 = 0x3b85;

const TYPE1V2_IOMMU: u64 = 3;
const GROUP_VIABLE: u32 = 1;
const MAP_READ_WRITE: u32 = 3;
/// Fixed address, writable, readable.
const IOAS_MAP_FLAGS: u32 = 1 | 2 | 4;
const REGION_CAN_MMAP: u32 = 1 << 2;
const BAR0_REGION: u32 = 0;
const CONFIG_REGION: u32 = 7;
/// The least that a controller needs: registers and the first page of doorbells.
const MIN_BAR_BYTES: u64 = 0x2000;

#[repr(C)]
#[derive(Default)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

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

#[repr(C)]
struct MapDma {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

#[repr(C)]
struct AttachPt {
    argsz: u32,
    flags: u32,
    pt_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
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

fn open_read_write(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_owned())
}

/// Where memory is mapped for the function.
pub(super) enum Container {
    /// A group keeps its container; both are open as long as this.
    Group {
        container: File,
        _group: File,
    },
    Iommufd {
        iommufd: File,
        ioas: u32,
    },
}

impl Container {
    /// Maps `len` bytes of the arena at `offset` for DMA, at device address `iova`.
    pub fn map(&self, arena: &Arena, offset: usize, len: usize, iova: u64) -> io::Result<()> {
        assert!(offset + len <= arena.committed_bytes(), "only committed memory is mapped");
        let vaddr = arena.base() as u64 + offset as u64;
        match self {
            Container::Group { container, .. } => {
                let mut map =
                    MapDma { argsz: size_of::<MapDma>() as u32, flags: MAP_READ_WRITE, vaddr, iova, size: len as u64 };
                // SAFETY: MAP_DMA takes this struct. The memory is the arena's: committed, never unmapped or moved, and
                // used with a device by those only who were lent it.
                unsafe { ioctl_struct(container, MAP_DMA, &mut map) }?;
            }
            Container::Iommufd { iommufd, ioas } => {
                let mut map = IoasMap {
                    size: size_of::<IoasMap>() as u32,
                    flags: IOAS_MAP_FLAGS,
                    ioas_id: *ioas,
                    reserved: 0,
                    user_va: vaddr,
                    length: len as u64,
                    iova,
                };
                // SAFETY: IOAS_MAP takes this struct; the memory as above.
                unsafe { ioctl_struct(iommufd, IOAS_MAP, &mut map) }?;
            }
        }
        Ok(())
    }
}

/// The function's descriptor.
pub(super) struct Function {
    file: File,
}

pub(super) fn has_iommufd() -> bool {
    Path::new("/dev/iommu").exists()
}

pub(super) fn open_by_group(group: u32, address: PciAddress) -> io::Result<(Container, Function)> {
    let container = open_read_write(Path::new("/dev/vfio/vfio"))?;
    if ioctl_value(&container, GET_API_VERSION, 0)? != 0
        || ioctl_value(&container, CHECK_EXTENSION, TYPE1V2_IOMMU)? != 1
    {
        return Err(unsupported("this kernel's VFIO has no type 1 IOMMU"));
    }
    let group = open_read_write(Path::new(&format!("/dev/vfio/{group}")))?;
    let mut status = GroupStatus { argsz: size_of::<GroupStatus>() as u32, flags: 0 };
    // SAFETY: GROUP_GET_STATUS takes this struct.
    unsafe { ioctl_struct(&group, GROUP_GET_STATUS, &mut status) }?;
    if status.flags & GROUP_VIABLE == 0 {
        return Err(unsupported("other devices of its IOMMU group are bound to drivers of the kernel"));
    }
    let mut container_fd = container.as_raw_fd();
    // SAFETY: GROUP_SET_CONTAINER takes a pointer to a descriptor.
    unsafe { ioctl_struct(&group, GROUP_SET_CONTAINER, &mut container_fd) }?;
    ioctl_value(&container, SET_IOMMU, TYPE1V2_IOMMU)?;
    let name = CString::new(address.to_string()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: GROUP_GET_DEVICE_FD takes a string that ends with a zero, which outlives the call.
    let fd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD as libc::Ioctl, name.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((Container::Group { container, _group: group }, Function { file }))
}

pub(super) fn open_by_iommufd(device: &Path) -> io::Result<(Container, Function)> {
    let iommufd = open_read_write(Path::new("/dev/iommu"))?;
    let file = open_read_write(device)?;
    let argsz = |size: usize| size as u32;
    let mut bind =
        BindIommufd { argsz: argsz(size_of::<BindIommufd>()), flags: 0, iommufd: iommufd.as_raw_fd(), out_devid: 0 };
    // SAFETY: BIND_IOMMUFD takes this struct.
    unsafe { ioctl_struct(&file, BIND_IOMMUFD, &mut bind) }?;
    let mut alloc = IoasAlloc { size: argsz(size_of::<IoasAlloc>()), ..IoasAlloc::default() };
    // SAFETY: IOAS_ALLOC takes this struct.
    unsafe { ioctl_struct(&iommufd, IOAS_ALLOC, &mut alloc) }?;
    let mut attach = AttachPt { argsz: argsz(size_of::<AttachPt>()), flags: 0, pt_id: alloc.out_ioas_id };
    // SAFETY: ATTACH_IOMMUFD_PT takes this struct.
    unsafe { ioctl_struct(&file, ATTACH_IOMMUFD_PT, &mut attach) }?;
    Ok((Container::Iommufd { iommufd, ioas: alloc.out_ioas_id }, Function { file }))
}

impl Function {
    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        let mut info = RegionInfo { argsz: size_of::<RegionInfo>() as u32, index, ..RegionInfo::default() };
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
        if info.flags & REGION_CAN_MMAP == 0 || info.size < MIN_BAR_BYTES {
            return Err(unsupported("its registers cannot be mapped"));
        }
        let map = |len: usize| {
            let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
            unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    len,
                    protection,
                    rustix::mm::MapFlags::SHARED,
                    &self.file,
                    info.offset,
                )
            }
        };
        // An old kernel does not map a BAR whole when the interrupt table is in it.
        let mut len = usize::try_from(info.size).map_err(|_| io::ErrorKind::InvalidData)?;
        let at = map(len).or_else(|_| {
            len = MIN_BAR_BYTES as usize;
            map(len)
        })?;
        let base = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Bar { base, len })
    }

    pub fn reset(&self) -> io::Result<()> {
        ioctl_value(&self.file, DEVICE_RESET, 0).map(|_| ())
    }
}

/// The mapped registers.
pub(super) struct Bar {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is valid until drop; registers may be accessed from any thread, each access being one instruction.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
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

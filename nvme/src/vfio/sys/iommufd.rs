//! By its own character device, bound to an iommufd (linux/iommufd.h; Linux 6.6 and later, where it is built in).
#![allow(unsafe_code)] // ioctl; each block states its argument

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{argsz, ioctl_struct, open_node, unsupported, vfio};
use crate::vfio::{IOMMUFD_NODE, OpenError};

const BIND_IOMMUFD: u64 = vfio(18);
const ATTACH_IOMMUFD_PT: u64 = vfio(19);
/// `_IO(';', 0x80 + n)`.
const fn iommufd(n: u64) -> u64 {
    0x3b80 + n
}
const IOAS_ALLOC: u64 = iommufd(1);
const IOAS_IOVA_RANGES: u64 = iommufd(4);
const IOAS_MAP: u64 = iommufd(5);

/// The address is ours to choose; writable; readable.
const MAP_FLAGS: u32 = 1 | 2 | 4;
/// More ranges than any machine reports.
const MAX_RANGES: usize = 4096;
/// No larger than a page of any architecture: every address that we map is a multiple.
const MAX_ALIGNMENT: u64 = 64 << 10;

#[repr(C)]
#[derive(Default)]
struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}
const _: () = assert!(size_of::<BindIommufd>() == 16);

#[repr(C)]
#[derive(Default)]
struct AttachPt {
    argsz: u32,
    flags: u32,
    pt_id: u32,
}
const _: () = assert!(size_of::<AttachPt>() == 12);

#[repr(C)]
#[derive(Default)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}
const _: () = assert!(size_of::<IoasAlloc>() == 12);

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IovaRange {
    start: u64,
    last: u64,
}

#[repr(C)]
#[derive(Default)]
struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}
const _: () = assert!(size_of::<IoasIovaRanges>() == 32);

#[repr(C)]
#[derive(Default)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}
const _: () = assert!(size_of::<IoasMap>() == 40);

/// An address space for devices of this process alone.
pub(in crate::vfio) struct Iommufd {
    file: File,
    ioas: u32,
}

impl Iommufd {
    /// The function is bound, and reaches what is mapped in the new address space from now on: nothing yet.
    pub fn open(device: &Path) -> Result<(Iommufd, File), OpenError> {
        let file = open_node(Path::new(IOMMUFD_NODE))?;
        let function = open_node(device)?;
        let mut bind =
            BindIommufd { argsz: argsz::<BindIommufd>(), iommufd: file.as_raw_fd(), ..BindIommufd::default() };
        // SAFETY: BIND_IOMMUFD takes this struct.
        unsafe { ioctl_struct(&function, BIND_IOMMUFD, &mut bind) }.map_err(|err| match err.raw_os_error() {
            // The kernel's words for a function that is open already, by this way and by its group.
            Some(libc::EINVAL | libc::EBUSY) => OpenError::InUse,
            _ => OpenError::Io("bind (iommufd)", err),
        })?;
        let mut alloc = IoasAlloc { size: argsz::<IoasAlloc>(), ..IoasAlloc::default() };
        // SAFETY: IOAS_ALLOC takes this struct.
        unsafe { ioctl_struct(&file, IOAS_ALLOC, &mut alloc) }
            .map_err(|err| OpenError::Io("make an address space (iommufd) for", err))?;
        let mut attach = AttachPt { argsz: argsz::<AttachPt>(), pt_id: alloc.out_ioas_id, ..AttachPt::default() };
        // SAFETY: ATTACH_IOMMUFD_PT takes this struct.
        unsafe { ioctl_struct(&function, ATTACH_IOMMUFD_PT, &mut attach) }
            .map_err(|err| OpenError::Io("attach (iommufd)", err))?;
        Ok((Iommufd { file, ioas: alloc.out_ioas_id }, function))
    }

    pub fn allowed(&self) -> io::Result<Vec<RangeInclusive<u64>>> {
        let mut ranges = vec![IovaRange::default(); 16];
        loop {
            let mut ask = IoasIovaRanges {
                size: argsz::<IoasIovaRanges>(),
                ioas_id: self.ioas,
                num_iovas: ranges.len() as u32,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..IoasIovaRanges::default()
            };
            // SAFETY: IOAS_IOVA_RANGES takes this struct, and writes at most `num_iovas` ranges to the array, which is that
            // long and outlives the call.
            let asked = unsafe { ioctl_struct(&self.file, IOAS_IOVA_RANGES, &mut ask) };
            let count = ask.num_iovas as usize;
            match asked {
                // There are more than fit, and it says how many.
                Err(err)
                    if err.raw_os_error() == Some(libc::EMSGSIZE) && count > ranges.len() && count <= MAX_RANGES =>
                {
                    ranges.resize(count, IovaRange::default());
                }
                Err(err) => return Err(err),
                Ok(_) if ask.out_iova_alignment > MAX_ALIGNMENT => {
                    return Err(unsupported("its IOMMU wants addresses aligned to more than 64 KiB"));
                }
                Ok(_) => return Ok(ranges.iter().take(count).map(|range| range.start..=range.last).collect()),
            }
        }
    }

    /// # Safety
    /// The memory stays mapped in this process as long as `self` lives, and it is nobody's concern what the function does
    /// with it.
    pub unsafe fn map(&self, vaddr: u64, len: u64, iova: u64) -> io::Result<()> {
        let mut map = IoasMap {
            size: argsz::<IoasMap>(),
            flags: MAP_FLAGS,
            ioas_id: self.ioas,
            user_va: vaddr,
            length: len,
            iova,
            ..IoasMap::default()
        };
        // SAFETY: IOAS_MAP takes this struct; the memory by the caller's promise.
        unsafe { ioctl_struct(&self.file, IOAS_MAP, &mut map) }.map(|_| ())
    }
}

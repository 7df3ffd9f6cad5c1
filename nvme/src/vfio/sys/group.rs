//! By its IOMMU group and a type 1 container (linux/vfio.h): the older way, which every kernel with VFIO had until it could
//! be left out, and which iommufd can imitate.
#![allow(unsafe_code)] // ioctl; each block states its argument

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{argsz, ioctl_struct, ioctl_value, open_node, unsupported, vfio};
use crate::vfio::pci::PciAddress;
use crate::vfio::{CONTAINER_NODE, OpenError};

const GET_API_VERSION: u64 = vfio(0);
const CHECK_EXTENSION: u64 = vfio(1);
const SET_IOMMU: u64 = vfio(2);
const GROUP_GET_STATUS: u64 = vfio(3);
const GROUP_SET_CONTAINER: u64 = vfio(4);
const GROUP_GET_DEVICE_FD: u64 = vfio(6);
const IOMMU_GET_INFO: u64 = vfio(12);
const MAP_DMA: u64 = vfio(13);

const TYPE1V2_IOMMU: u64 = 3;
const GROUP_VIABLE: u32 = 1;
const MAP_READ_WRITE: u32 = 3;
const INFO_HAS_CAPABILITIES: u32 = 1 << 1;
const CAPABILITY_IOVA_RANGES: u16 = 1;
/// Of the answer to IOMMU_GET_INFO: room for more ranges than any machine reports.
const INFO_BYTES: usize = 16 << 10;

#[repr(C)]
#[derive(Default)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapDma {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}
const _: () = assert!(size_of::<MapDma>() == 32);

#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct IommuInfo {
    argsz: u32,
    flags: u32,
    page_sizes: u64,
    /// Where in the answer the first capability is.
    capabilities_at: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct Capability {
    id: u16,
    version: u16,
    /// Where in the answer the next one is; 0: nowhere.
    next_at: u32,
}

/// The answer to IOMMU_GET_INFO, with what follows its struct.
#[repr(C, align(8))]
#[derive(FromZeros, IntoBytes, Immutable)]
struct InfoAnswer {
    words: [u32; INFO_BYTES / 4],
}

/// A group with its container; both are open as long as this.
pub(in crate::vfio) struct Group {
    container: File,
    _group: File,
}

impl Group {
    pub fn open(group: u32, address: PciAddress) -> Result<(Group, File), OpenError> {
        let container = open_node(Path::new(CONTAINER_NODE))?;
        let io = |err| OpenError::Io("open (group)", err);
        if ioctl_value(&container, GET_API_VERSION, 0).map_err(io)? != 0
            || ioctl_value(&container, CHECK_EXTENSION, TYPE1V2_IOMMU).map_err(io)? != 1
        {
            return Err(io(unsupported("this kernel's VFIO has no type 1 IOMMU")));
        }
        let group = open_node(Path::new(&format!("/dev/vfio/{group}"))).map_err(|err| match err {
            OpenError::Node { err, .. } if err.raw_os_error() == Some(libc::EBUSY) => OpenError::InUse,
            other => other,
        })?;
        let file = Group::connect(&container, &group, address).map_err(|err| match err.raw_os_error() {
            Some(libc::EBUSY) => OpenError::InUse,
            _ => io(err),
        })?;
        Ok((Group { container, _group: group }, file))
    }

    /// The group into the container, and the function out of the group.
    fn connect(container: &File, group: &File, address: PciAddress) -> io::Result<File> {
        let mut status = GroupStatus { argsz: argsz::<GroupStatus>(), flags: 0 };
        // SAFETY: GROUP_GET_STATUS takes this struct.
        unsafe { ioctl_struct(group, GROUP_GET_STATUS, &mut status) }?;
        if status.flags & GROUP_VIABLE == 0 {
            return Err(unsupported("other devices of its IOMMU group are bound to drivers of the kernel"));
        }
        let mut container_fd = container.as_raw_fd();
        // SAFETY: GROUP_SET_CONTAINER takes a pointer to a descriptor.
        unsafe { ioctl_struct(group, GROUP_SET_CONTAINER, &mut container_fd) }?;
        ioctl_value(container, SET_IOMMU, TYPE1V2_IOMMU)?;
        let name = CString::new(address.to_string()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: GROUP_GET_DEVICE_FD takes a string that ends with a zero, which outlives the call.
        let fd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD as libc::Ioctl, name.as_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn allowed(&self) -> io::Result<Vec<RangeInclusive<u64>>> {
        let mut answer = InfoAnswer::new_zeroed();
        answer.words[0] = INFO_BYTES as u32;
        // SAFETY: IOMMU_GET_INFO takes a struct that begins with the length of what it may write to, which is all of it.
        unsafe { ioctl_struct(&self.container, IOMMU_GET_INFO, &mut answer) }?;
        Ok(allowed_in(answer.as_bytes()).unwrap_or_else(|| vec![0..=u64::MAX]))
    }

    /// # Safety
    /// The memory stays mapped in this process as long as `self` lives, and it is nobody's concern what the function does
    /// with it.
    pub unsafe fn map(&self, vaddr: u64, len: u64, iova: u64) -> io::Result<()> {
        let mut map = MapDma { argsz: argsz::<MapDma>(), flags: MAP_READ_WRITE, vaddr, iova, size: len };
        // SAFETY: MAP_DMA takes this struct; the memory by the caller's promise.
        unsafe { ioctl_struct(&self.container, MAP_DMA, &mut map) }.map(|_| ())
    }
}

/// None: the kernel does not say (before 5.4).
fn allowed_in(answer: &[u8]) -> Option<Vec<RangeInclusive<u64>>> {
    let (info, _) = IommuInfo::read_from_prefix(answer).ok()?;
    let mut at = if info.flags & INFO_HAS_CAPABILITIES == 0 { 0 } else { info.capabilities_at as usize };
    // Each capability is further on than the one before.
    let mut last = 0;
    while at > last {
        last = at;
        let (capability, rest) = Capability::read_from_prefix(answer.get(at..)?).ok()?;
        if capability.id == CAPABILITY_IOVA_RANGES {
            // The count and a reserved word, then pairs of the first and the last address.
            let ([count, _], rest) = <[u32; 2]>::read_from_prefix(rest).ok()?;
            let pairs = rest.chunks_exact(16).take(count as usize);
            let ranges = pairs.filter_map(|pair| <[u64; 2]>::read_from_bytes(pair).ok());
            return Some(ranges.map(|[first, last]| first..=last).collect());
        }
        at = capability.next_at as usize;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with a capability of another kind, and then `ranges`.
    fn answer(flags: u32, ranges: &[(u64, u64)], second_at: u32) -> Vec<u8> {
        let mut words: Vec<u32> = vec![0, flags, 0x1000, 0, 24, 0];
        words.extend([3 | 1 << 16, second_at, 7, 0]);
        words.extend([u32::from(CAPABILITY_IOVA_RANGES) | 1 << 16, 0, ranges.len() as u32, 0]);
        for (first, last) in ranges {
            words.extend([*first, *last].iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]));
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_list_of_addresses_is_read() {
        let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];
        let read = allowed_in(&answer(3, &ranges, 40)).unwrap();
        assert_eq!(read, [0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1]);
        assert_eq!(allowed_in(&answer(1, &ranges, 40)), None, "an old kernel has no list");
        assert_eq!(allowed_in(&answer(3, &ranges, 0)), None, "nor one whose chain ends before");
        assert_eq!(allowed_in(&answer(3, &ranges, 24)), None, "a chain that turns back ends");
        assert_eq!(allowed_in(&answer(3, &ranges, 4000)), None, "a chain that leaves the answer ends");
    }
}

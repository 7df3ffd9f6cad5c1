//! Messages of the vfio-user protocol (libvfio-user, docs/vfio-user.rst). Any bytes are a value of each; what is said in
//! them is checked where it is used.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest message that either side accepts, in bytes: region data and the version's JSON are small.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Descriptors with one message.
pub const MAX_FDS: usize = 8;
pub const MAJOR: u16 = 0;
pub const MINOR: u16 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    GetInfo = 4,
    GetRegionInfo = 5,
    GetIrqInfo = 7,
    SetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    Reset = 13,
}

impl Command {
    pub fn from_id(id: u16) -> Option<Command> {
        use Command::*;
        [Version, DmaMap, DmaUnmap, GetInfo, GetRegionInfo, GetIrqInfo, SetIrqs, RegionRead, RegionWrite, Reset]
            .into_iter()
            .find(|command| *command as u16 == id)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Header {
    pub id: U16,
    pub command: U16,
    /// Of the whole message, this header included.
    pub size: U32,
    /// Type in 3:0 (0 command, 1 reply), no reply wanted in bit 4, error in bit 5.
    pub flags: U32,
    pub errno: U32,
}
pub const HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(HEADER_BYTES == 16);
pub const FLAG_REPLY: u32 = 1;
pub const FLAG_NO_REPLY: u32 = 1 << 4;
pub const FLAG_ERROR: u32 = 1 << 5;

/// A JSON object with the capabilities follows, ended by a zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Version {
    pub major: U16,
    pub minor: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct DmaMap {
    pub argsz: U32,
    /// 1 readable, 2 writable by the device.
    pub flags: U32,
    /// In the file that comes with the message.
    pub offset: U64,
    /// Device address.
    pub address: U64,
    pub size: U64,
}
const _: () = assert!(size_of::<DmaMap>() == 32);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct DmaUnmap {
    pub argsz: U32,
    pub flags: U32,
    pub address: U64,
    pub size: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct DeviceInfo {
    pub argsz: U32,
    /// 1 can be reset, 2 a PCI function.
    pub flags: U32,
    pub regions: U32,
    pub irqs: U32,
}
pub const INFO_RESET: u32 = 1;
pub const INFO_PCI: u32 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct RegionInfo {
    pub argsz: U32,
    pub flags: U32,
    pub index: U32,
    /// Where the capabilities begin, from the beginning of this structure; 0: none.
    pub cap_offset: U32,
    pub size: U64,
    /// In the file that comes with the message.
    pub offset: U64,
}
pub const REGION_READ: u32 = 1;
pub const REGION_WRITE: u32 = 2;
pub const REGION_MMAP: u32 = 4;
pub const REGION_CAPS: u32 = 8;
pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;
/// BARs, ROM, configuration, VGA; INTx, MSI, MSI-X, error, request.
pub const REGIONS: u32 = 9;
pub const IRQS: u32 = 5;

/// VFIO_REGION_INFO_CAP_SPARSE_MMAP: areas follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct SparseMmap {
    pub id: U16,
    pub version: U16,
    pub next: U32,
    pub areas: U32,
    pub reserved: U32,
}
pub const CAP_SPARSE_MMAP: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Area {
    pub offset: U64,
    pub size: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct IrqInfo {
    pub argsz: U32,
    pub flags: U32,
    pub index: U32,
    pub count: U32,
}

/// Data follows a write and the reply of a read.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct RegionAccess {
    pub offset: U64,
    pub region: U32,
    pub count: U32,
}
/// Longest access: a register is at most 8 bytes, configuration space is read in one go by some.
pub const MAX_ACCESS_BYTES: usize = 4096;

/// What we can do, as JSON with its final zero.
pub fn capabilities() -> Vec<u8> {
    let text = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MAX_FDS},\"max_data_xfer_size\":{MAX_ACCESS_BYTES},\"pgsizes\":4096}}}}\0"
    );
    text.into_bytes()
}

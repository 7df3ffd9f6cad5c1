//! Identify data structures (5.17.2 and NVM 4.1.5).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Every Identify structure is this long.
pub const IDENTIFY_BYTES: usize = 4096;

/// Controller or Namespace Structure (figure 273).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Cns {
    Namespace = 0x00,
    Controller = 0x01,
    ActiveNamespaces = 0x02,
    NamespaceDescriptors = 0x03,
}

impl Cns {
    pub fn from_id(id: u32) -> Option<Cns> {
        [Cns::Namespace, Cns::Controller, Cns::ActiveNamespaces, Cns::NamespaceDescriptors]
            .into_iter()
            .find(|cns| *cns as u32 == id)
    }
}

/// Identify Controller (5.17.2.1, figure 275).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct IdentifyController {
    /// Bytes 1:0, PCI vendor.
    pub vid: U16,
    pub ssvid: U16,
    /// 23:4, serial number, ASCII padded with spaces.
    pub sn: [u8; 20],
    /// 63:24, model.
    pub mn: [u8; 40],
    /// 71:64, firmware.
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    /// 76, multipath: bit 1 says that the subsystem may have more controllers.
    pub cmic: u8,
    /// 77, MDTS: log2 of the longest transfer in pages of CAP.MPSMIN; 0 is unlimited.
    pub mdts: u8,
    /// 79:78, this controller within its subsystem.
    pub cntlid: U16,
    pub ver: U32,
    pub rtd3r: U32,
    pub rtd3e: U32,
    /// 95:92, OAES: bit 8 namespace attribute notices.
    pub oaes: U32,
    /// 99:96, CTRATT: bit 0 host identifiers of 128 bits.
    pub ctratt: U32,
    pub reserved_100: [u8; 156],
    /// 257:256, OACS: bit 1 format, bit 8 doorbell buffers.
    pub oacs: U16,
    /// 258, ACL: concurrent aborts, zero-based.
    pub acl: u8,
    /// 259, AERL: concurrent event requests, zero-based.
    pub aerl: u8,
    pub frmw: u8,
    /// 261, LPA.
    pub lpa: u8,
    /// 262, ELPE: error log entries, zero-based.
    pub elpe: u8,
    pub npss: u8,
    pub avscc: u8,
    pub apsta: u8,
    pub wctemp: U16,
    pub cctemp: U16,
    pub reserved_270: [u8; 242],
    /// 512, SQES: sizes of submission entries, log2: required in 3:0.
    pub sqes: u8,
    /// 513, CQES.
    pub cqes: u8,
    pub maxcmd: U16,
    /// 519:516, NN: the highest namespace id.
    pub nn: U32,
    /// 521:520, ONCS: bit 2 dataset management, bit 3 write zeroes, bit 5 reservations.
    pub oncs: U16,
    pub fuses: U16,
    pub fna: u8,
    /// 525, VWC: bit 0 a volatile write cache is present.
    pub vwc: u8,
    pub awun: U16,
    pub awupf: U16,
    pub icsvscc: u8,
    pub nwpc: u8,
    pub acwu: U16,
    pub reserved_534: U16,
    /// 539:536, SGLS: bits 1:0 SGL support in the NVM command set.
    pub sgls: U32,
    pub mnan: U32,
    pub reserved_544: [u8; 224],
    /// 1023:768, the subsystem's qualified name, UTF-8, ended by a zero.
    pub subnqn: [u8; 256],
    pub reserved_1024: [u8; 3072],
}
const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(std::mem::offset_of!(IdentifyController, vwc) == 525);
const _: () = assert!(std::mem::offset_of!(IdentifyController, sgls) == 536);
const _: () = assert!(std::mem::offset_of!(IdentifyController, subnqn) == 768);

impl IdentifyController {
    pub const OACS_FORMAT: u16 = 1 << 1;
    pub const OACS_DOORBELL_BUFFERS: u16 = 1 << 8;
    pub const ONCS_DSM: u16 = 1 << 2;
    pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
    pub const ONCS_RESERVATIONS: u16 = 1 << 5;
    pub const CTRATT_LONG_HOST_ID: u32 = 1;
    pub const VWC_PRESENT: u8 = 1;
    pub const OAES_NAMESPACES: u32 = 1 << 8;

    pub fn has_doorbell_buffers(&self) -> bool {
        self.oacs.get() & Self::OACS_DOORBELL_BUFFERS != 0
    }

    pub fn has_dsm(&self) -> bool {
        self.oncs.get() & Self::ONCS_DSM != 0
    }

    pub fn has_write_zeroes(&self) -> bool {
        self.oncs.get() & Self::ONCS_WRITE_ZEROES != 0
    }

    /// Reservations, with the long host identifiers and the extended status that go with them (7.8).
    pub fn has_reservations(&self) -> bool {
        self.oncs.get() & Self::ONCS_RESERVATIONS != 0 && self.ctratt.get() & Self::CTRATT_LONG_HOST_ID != 0
    }

    pub fn has_volatile_write_cache(&self) -> bool {
        self.vwc & Self::VWC_PRESENT != 0
    }

    /// SGLs in IO commands, without a rule of alignment that 4 KiB blocks could break.
    pub fn has_sgl(&self) -> bool {
        matches!(self.sgls.get() & 3, 1 | 2)
    }
}

/// An LBA format (NVM 4.1.5.1, figure 98).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LbaFormat {
    /// MS: bytes of metadata for each LBA.
    pub metadata_bytes: U16,
    /// LBADS: log2 of the data bytes.
    pub data_shift: u8,
    /// RP, in 1:0.
    pub relative_performance: u8,
}

/// Identify Namespace of the NVM command set (NVM 4.1.5.1, figure 97).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// NSZE: size in LBAs.
    pub nsze: U64,
    pub ncap: U64,
    pub nuse: U64,
    /// 24, NSFEAT.
    pub nsfeat: u8,
    /// 25, NLBAF: formats, zero-based.
    pub nlbaf: u8,
    /// 26, FLBAS: the format in use, in 3:0.
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    /// 29, DPS: protection information, in 2:0.
    pub dps: u8,
    /// 30, NMIC: bit 0 the namespace may be attached to more than one controller.
    pub nmic: u8,
    /// 31, RESCAP: bit n the reservation type n, bit 0 persistence over power loss.
    pub rescap: u8,
    pub fpi: u8,
    pub dlfeat: u8,
    pub nawun: U16,
    pub nawupf: U16,
    pub nacwu: U16,
    pub nabsn: U16,
    pub nabo: U16,
    pub nabspf: U16,
    pub noiob: U16,
    pub nvmcap: [u8; 16],
    pub reserved_64: [u8; 40],
    /// 119:104.
    pub nguid: [u8; 16],
    /// 127:120.
    pub eui64: [u8; 8],
    pub formats: [LbaFormat; 16],
    pub reserved_192: [u8; 3904],
}
const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, formats) == 128);

impl IdentifyNamespace {
    /// The LBA format in use.
    pub fn format(&self) -> LbaFormat {
        let index = usize::from(self.flbas & 0xf);
        self.formats.get(index).copied().unwrap_or_default()
    }

    pub fn is_shared(&self) -> bool {
        self.nmic & 1 != 0
    }

    /// The formats that it could be given.
    pub fn known_formats(&self) -> &[LbaFormat] {
        self.formats.get(..=usize::from(self.nlbaf)).unwrap_or(&self.formats)
    }
}

/// Active Namespace ID list (5.17.2.2): ascending, ended by a zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct NamespaceList {
    pub ids: [U32; 1024],
}
const _: () = assert!(size_of::<NamespaceList>() == IDENTIFY_BYTES);

/// The namespace identification descriptors (5.17.2.3): type (1 EUI64, 2 NGUID, 3 UUID) and value.
pub fn descriptors(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (&[kind, len, _, _], tail) = rest.split_first_chunk::<4>()?;
        if kind == 0 || usize::from(len) > tail.len() {
            return None;
        }
        let (value, tail) = tail.split_at(usize::from(len));
        rest = tail;
        Some((kind, value))
    })
}

/// An ASCII field for people: without padding, and without anything that a terminal would obey.
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let clean = |byte: &u8| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '?' };
    field.iter().take(end).map(clean).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_end_where_they_would_lie() {
        let list = [3, 2, 0, 0, 7, 8, 1, 200, 0, 0, 1];
        assert_eq!(descriptors(&list).collect::<Vec<_>>(), [(3, &[7u8, 8][..])]);
        assert_eq!(descriptors(&[0; 16]).count(), 0);
        assert_eq!(descriptors(&[1, 0]).count(), 0);
    }

    #[test]
    fn text_from_a_controller_is_harmless() {
        assert_eq!(text(b"LAB0 \x1b[31m\xff   "), "LAB0 ?[31m?");
        assert_eq!(text(b"nqn\0junk"), "nqn");
    }
}

//! A namespace as the controller describes it, checked before anything is believed.

use zerocopy::FromBytes;

use super::ControllerError;
use crate::spec::{IDENTIFY_BYTES, IdentifyNamespace, descriptors};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceInfo {
    pub nsid: u32,
    pub size_lbas: u64,
    /// 9 or 12.
    pub lba_shift: u32,
    /// May be attached to other controllers too.
    pub shared: bool,
    /// Reservation types that it supports: bit n is type n.
    pub reservation_types: u8,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    /// LBA sizes that it can be formatted with, by format index; 0 for what this driver cannot use.
    pub formats: Vec<u32>,
    pub format: u8,
}

impl NamespaceInfo {
    pub fn lba_bytes(&self) -> u32 {
        1 << self.lba_shift
    }

    /// In whole 4 KiB blocks.
    pub fn size_bytes(&self) -> u64 {
        (self.size_lbas << self.lba_shift) / 4096 * 4096
    }

    /// From Identify's answer and (when the controller knows them) the identification descriptors.
    pub fn parse(
        nsid: u32,
        identity: &[u8; IDENTIFY_BYTES],
        descriptor_list: Option<&[u8]>,
    ) -> Result<NamespaceInfo, ControllerError> {
        let wrong = |what| ControllerError::Namespace { nsid, what };
        let id = IdentifyNamespace::read_from_bytes(identity).map_err(|_| wrong("has no description"))?;
        let (size_lbas, format) = (id.nsze.get(), id.format());
        if size_lbas == 0 {
            return Err(wrong("is not active"));
        }
        if format.metadata_bytes.get() != 0 {
            return Err(wrong("is formatted with metadata: format it without (vellum nvme format)"));
        }
        if id.dps & 7 != 0 {
            return Err(wrong("uses protection information: format it without (vellum nvme format)"));
        }
        let lba_shift = u32::from(format.data_shift);
        if !matches!(lba_shift, 9 | 12) {
            return Err(wrong("has LBAs of neither 512 nor 4096 bytes"));
        }
        if size_lbas.leading_zeros() <= lba_shift {
            return Err(wrong("claims to be larger than any device"));
        }
        let usable = |format: &crate::spec::LbaFormat| match (format.metadata_bytes.get(), format.data_shift) {
            (0, 9) => 512,
            (0, 12) => 4096,
            _ => 0,
        };
        let mut nguid = id.nguid;
        for (kind, value) in descriptors(descriptor_list.unwrap_or_default()) {
            if let (2, Ok(value)) = (kind, value.try_into()) {
                nguid = value;
            }
        }
        Ok(NamespaceInfo {
            nsid,
            size_lbas,
            lba_shift,
            shared: id.is_shared(),
            reservation_types: id.rescap & !1,
            nguid,
            eui64: id.eui64,
            formats: id.known_formats().iter().map(usable).collect(),
            format: id.flbas & 0xf,
        })
    }
}

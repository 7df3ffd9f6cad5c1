//! What an operator asks of an engine, and its encoding.

use vellum_base::Rid;

use crate::codec::WireFault;
use crate::reader::Reader;
use crate::writer;

/// Most locks or clients that one answer lists; the rest is counted.
pub const MAX_LISTED: u32 = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminRequest {
    /// Locks held and waited for, by whom and since when, those that are waited for longest first.
    Locks {
        max: u32,
    },
    Clients {
        max: u32,
    },
    /// Gives a client up as if it had died: it loses its socket now, and what it held when its lease is over.
    Evict {
        rid: Rid,
    },
}

pub(crate) fn put(out: &mut Vec<u8>, what: &AdminRequest) {
    let (tag, value) = match what {
        AdminRequest::Locks { max } => (1, u64::from(*max)),
        AdminRequest::Clients { max } => (2, u64::from(*max)),
        AdminRequest::Evict { rid } => (3, rid.0),
    };
    writer::u8(out, tag);
    writer::u64(out, value);
}

pub(crate) fn get(r: &mut Reader) -> Result<AdminRequest, WireFault> {
    let (tag, value) = (r.u8("admin request")?, r.u64("admin request")?);
    let max = value.min(MAX_LISTED.into()) as u32;
    match tag {
        1 => Ok(AdminRequest::Locks { max }),
        2 => Ok(AdminRequest::Clients { max }),
        3 => Ok(AdminRequest::Evict { rid: Rid(value) }),
        found => Err(WireFault::Value { what: "admin request", found: found.into() }),
    }
}

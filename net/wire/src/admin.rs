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
    /// Take in what the device has become larger by.
    Grow,
    /// Verify everything in the background, or change the rate of the scrub that runs; 0 is no bound.
    Scrub {
        rate_bytes_per_s: u64,
    },
    StopScrub,
    /// What the scrub has read and found so far.
    ScrubStatus,
}

impl AdminRequest {
    /// Whether only root, the engine's own user, and nodes may ask.
    pub fn is_restricted(&self) -> bool {
        !matches!(self, AdminRequest::Locks { .. } | AdminRequest::Clients { .. } | AdminRequest::ScrubStatus)
    }
}

pub(crate) fn put(out: &mut Vec<u8>, what: &AdminRequest) {
    let (tag, value) = match what {
        AdminRequest::Locks { max } => (1, u64::from(*max)),
        AdminRequest::Clients { max } => (2, u64::from(*max)),
        AdminRequest::Evict { rid } => (3, rid.0),
        AdminRequest::Grow => (4, 0),
        AdminRequest::Scrub { rate_bytes_per_s } => (5, *rate_bytes_per_s),
        AdminRequest::StopScrub => (6, 0),
        AdminRequest::ScrubStatus => (7, 0),
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
        4 => Ok(AdminRequest::Grow),
        5 => Ok(AdminRequest::Scrub { rate_bytes_per_s: value }),
        6 => Ok(AdminRequest::StopScrub),
        7 => Ok(AdminRequest::ScrubStatus),
        found => Err(WireFault::Value { what: "admin request", found: found.into() }),
    }
}

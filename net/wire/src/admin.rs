//! What an operator asks of an engine, and its encoding.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

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
    /// The quorum's slot gets that address, or none. Answered when the members' next elections go by it.
    SetSlot {
        slot: u8,
        address: Option<SocketAddr>,
        /// The operator knows that nothing of the member that had the slot can write to the device any more.
        dead: bool,
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
    /// Give the shard that holds a bucket to a reactor.
    MoveShard {
        bucket: u8,
        reactor: u16,
    },
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
        AdminRequest::SetSlot { slot, address, dead } => {
            let (has, port) = (address.is_some(), address.map_or(0, |address| address.port()));
            (4, u64::from(*slot) | u64::from(*dead) << 8 | u64::from(has) << 9 | u64::from(port) << 16)
        }
        AdminRequest::Grow => (5, 0),
        AdminRequest::Scrub { rate_bytes_per_s } => (6, *rate_bytes_per_s),
        AdminRequest::StopScrub => (7, 0),
        AdminRequest::ScrubStatus => (8, 0),
        AdminRequest::MoveShard { bucket, reactor } => (9, u64::from(*bucket) | u64::from(*reactor) << 8),
    };
    writer::u8(out, tag);
    writer::u64(out, value);
    if let AdminRequest::SetSlot { address, .. } = what {
        let ip = match address.map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => ip.to_ipv6_mapped(),
            Some(IpAddr::V6(ip)) => ip,
            None => Ipv6Addr::UNSPECIFIED,
        };
        out.extend_from_slice(&ip.octets());
    }
}

pub(crate) fn get(r: &mut Reader) -> Result<AdminRequest, WireFault> {
    let (tag, value) = (r.u8("admin request")?, r.u64("admin request")?);
    let max = value.min(MAX_LISTED.into()) as u32;
    match tag {
        1 => Ok(AdminRequest::Locks { max }),
        2 => Ok(AdminRequest::Clients { max }),
        3 => Ok(AdminRequest::Evict { rid: Rid(value) }),
        4 => {
            let ip = Ipv6Addr::from(r.array16("address")?).to_canonical();
            if value >> 32 != 0 || value & 0xfc00 != 0 {
                return Err(WireFault::Value { what: "slot", found: value });
            }
            let (slot, port) = (value as u8, (value >> 16) as u16);
            let address = (value >> 9 & 1 == 1).then(|| SocketAddr::new(ip, port));
            Ok(AdminRequest::SetSlot { slot, address, dead: value >> 8 & 1 == 1 })
        }
        5 => Ok(AdminRequest::Grow),
        6 => Ok(AdminRequest::Scrub { rate_bytes_per_s: value }),
        7 => Ok(AdminRequest::StopScrub),
        8 => Ok(AdminRequest::ScrubStatus),
        9 if value >> 24 == 0 => Ok(AdminRequest::MoveShard { bucket: value as u8, reactor: (value >> 8) as u16 }),
        9 => Err(WireFault::Value { what: "shard and reactor", found: value }),
        found => Err(WireFault::Value { what: "admin request", found: found.into() }),
    }
}

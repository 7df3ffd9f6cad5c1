//! The frame header: fixed size, little-endian, covered together with the control part by one crc32c.
//!
//! ```text
//!  0       4    5    6     8         10      12        16    24    32      40      48           52
//!  | magic | v. |kind|flags|message  |  0    | crc32c  | id  | seq | ack   |durable| control_len| payload_len |
//! ```
//! The payload has no checksum here: the blocks of file data carry theirs, end to end, in the extents that name them.

use vellum_base::checksum::crc32c_append;
use vellum_base::{Epoch, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::WireFault;

/// Longest control part in bytes: a batch of `MAX_BATCH_BYTES` with its lengths, or a page of a scan.
pub const MAX_CONTROL: usize = 4 << 20;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Longest control part of a greeting: all that a stranger may make us hold.
pub const MAX_GREETING: usize = 256;
/// Bytes of every header.
pub const HEADER_LEN: usize = 56;

const MAGIC: u32 = u32::from_le_bytes(*b"vlm\x01");
const VERSION: u8 = 1;
const CRC_AT: usize = 12;
const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);
const _: () = assert!(MAX_CONTROL >= 2 * vellum_base::batch::MAX_BATCH_BYTES);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    Request = 1,
    Response = 2,
    /// Only as the first frame of a socket.
    Greeting = 3,
    Greeted = 4,
    Refused = 5,
    /// Carries ack and durable epoch, no message and no sequence number.
    Note = 6,
}

impl FrameKind {
    fn from_u8(value: u8) -> Option<FrameKind> {
        Some(match value {
            1 => FrameKind::Request,
            2 => FrameKind::Response,
            3 => FrameKind::Greeting,
            4 => FrameKind::Greeted,
            5 => FrameKind::Refused,
            6 => FrameKind::Note,
            _ => return None,
        })
    }
}

/// A header whose fields are legal and bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    pub kind: FrameKind,
    /// None is defined; a receiver refuses what it does not know.
    pub flags: u16,
    /// [`crate::Request::code`] or [`crate::Response::code`].
    pub message: u16,
    /// The sender's number of a request; of the request that a response answers.
    pub id: u64,
    /// Per direction and term, gapless from 1; 0 on frames that are not requests or responses.
    pub seq: u64,
    /// The last `seq` that the sender of this frame has received.
    pub ack: u64,
    /// The engine's durable epoch (0 from clients).
    pub durable: Epoch,
    pub control_len: u32,
    pub payload_len: u32,
    /// Of the header (this field as zeros) and the control part.
    pub crc: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    version: u8,
    kind: u8,
    flags: U16,
    message: U16,
    reserved: U16,
    crc: U32,
    id: U64,
    seq: U64,
    ack: U64,
    durable: U64,
    control_len: U32,
    payload_len: U32,
}

impl FrameHeader {
    /// Appends the header, then the control part that `put_control` writes, then fixes lengths and checksum.
    /// Returns the length of the control part.
    pub fn encode_with(mut self, out: &mut Vec<u8>, put_control: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        put_control(out);
        let control_len = out.len() - start - HEADER_LEN;
        assert!(
            control_len <= MAX_CONTROL && self.payload_len as usize <= MAX_PAYLOAD,
            "a message of ours is too long"
        );
        self.control_len = control_len as u32;
        self.crc = 0;
        out[start..start + HEADER_LEN].copy_from_slice(self.raw().as_bytes());
        let crc = crc32c(&out[start..]);
        out[start + CRC_AT..start + CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        control_len
    }

    fn raw(&self) -> RawHeader {
        RawHeader {
            magic: MAGIC.into(),
            version: VERSION,
            kind: self.kind as u8,
            flags: self.flags.into(),
            message: self.message.into(),
            reserved: 0.into(),
            crc: self.crc.into(),
            id: self.id.into(),
            seq: self.seq.into(),
            ack: self.ack.into(),
            durable: self.durable.0.into(),
            control_len: self.control_len.into(),
            payload_len: self.payload_len.into(),
        }
    }

    /// Reads a header and bounds its lengths. The checksum can be checked only with the control part: [`Self::verify`].
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<FrameHeader, WireFault> {
        let raw = zerocopy::transmute_ref!(bytes);
        let raw: &RawHeader = raw;
        if raw.magic.get() != MAGIC {
            return Err(WireFault::Magic { found: raw.magic.get() });
        }
        if raw.version != VERSION {
            return Err(WireFault::Version { found: raw.version, ours: VERSION });
        }
        let kind =
            FrameKind::from_u8(raw.kind).ok_or(WireFault::Value { what: "frame kind", found: raw.kind.into() })?;
        if raw.flags.get() != 0 || raw.reserved.get() != 0 {
            return Err(WireFault::Value { what: "frame flags", found: raw.flags.get().into() });
        }
        let (control_bound, payload_bound) = match kind {
            FrameKind::Request | FrameKind::Response => (MAX_CONTROL, MAX_PAYLOAD),
            FrameKind::Greeting | FrameKind::Greeted | FrameKind::Refused => (MAX_GREETING, 0),
            FrameKind::Note => (0, 0),
        };
        let bounded = |what, found: u32, bound: usize| {
            if found as usize > bound {
                return Err(WireFault::Bound { what, found: found.into(), bound: bound as u64 });
            }
            Ok(found)
        };
        Ok(FrameHeader {
            kind,
            flags: raw.flags.get(),
            message: raw.message.get(),
            id: raw.id.get(),
            seq: raw.seq.get(),
            ack: raw.ack.get(),
            durable: Epoch(raw.durable.get()),
            control_len: bounded("control length", raw.control_len.get(), control_bound)?,
            payload_len: bounded("payload length", raw.payload_len.get(), payload_bound)?,
            crc: raw.crc.get(),
        })
    }

    /// Checks the checksum over this header and `control`.
    pub fn verify(&self, control: &[u8]) -> Result<(), WireFault> {
        let mut plain = *self;
        plain.crc = 0;
        let expected = crc32c_append(crc32c(plain.raw().as_bytes()), control);
        if expected != self.crc {
            return Err(WireFault::Checksum { expected, found: self.crc });
        }
        Ok(())
    }
}

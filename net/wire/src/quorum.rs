//! What quorum members say to each other: one datagram, one message, of one size.
//!
//! ```text
//!  0       4    6    7     8      24     32      40    48   49 50  52           56  60    64
//!  | magic | v. |kind|flags| fsid | term | round | rid |from|to|0 | written_ago | 0 | crc | tag ...
//! ```
//! Little-endian; the crc32c covers everything before it. The tag is what [`DatagramAuth`] appends; without one (on
//! loopback) there is none. Nothing here is believed before the tag, the crc and every field are right: whatever else
//! comes in is dropped, and counted by the receiver.

use vellum_base::{Fsid, Rid, Slot, Term, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::WireFault;

/// Bytes of a datagram without its tag.
pub const DATAGRAM_LEN: usize = 64;
/// Longest tag that an authenticator may append.
pub const MAX_TAG: usize = 64;
/// What a receiver must have room for; a longer datagram is none of ours.
pub const MAX_DATAGRAM: usize = DATAGRAM_LEN + MAX_TAG;

const MAGIC: u32 = u32::from_le_bytes(*b"vlq\x01");
const VERSION: u16 = 1;
const GRANTED: u8 = 1;
const CRC_AT: usize = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum QuorumKind {
    RequestVote = 1,
    Vote = 2,
    /// "Would you vote for me in `term`?" Promises nothing and changes nothing.
    PreVote = 3,
    PreVoteAnswer = 4,
    Heartbeat = 5,
    HeartbeatAnswer = 6,
    /// The leader of `term` has given up: elect another at once.
    Resignation = 7,
    /// "May I leave?" To the leader of `term`.
    Leave = 8,
    LeaveAnswer = 9,
}

impl QuorumKind {
    fn from_u8(value: u8) -> Option<QuorumKind> {
        use QuorumKind::*;
        Some(match value {
            1 => RequestVote,
            2 => Vote,
            3 => PreVote,
            4 => PreVoteAnswer,
            5 => Heartbeat,
            6 => HeartbeatAnswer,
            7 => Resignation,
            8 => Leave,
            9 => LeaveAnswer,
            _ => return None,
        })
    }

    /// Whether `term` is the sender's own: only its slot can be elected in it.
    fn of_senders_term(self) -> bool {
        use QuorumKind::*;
        matches!(self, RequestVote | PreVote | Heartbeat | Resignation | LeaveAnswer)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuorumMessage {
    pub kind: QuorumKind,
    /// The sender's term; of a PRE_VOTE, the term that it would stand in.
    pub term: Term,
    /// HEARTBEAT: its number, growing over the sender's run; PRE_VOTE: number of the attempt. Answers repeat it.
    pub round: u64,
    /// The sender's run.
    pub rid: Rid,
    /// In answers to votes, pre-votes and who would leave; of a leader: nobody is mounted.
    pub granted: bool,
    /// Microseconds since the sender's last write of its own block was durable; `u32::MAX` is longer, or never.
    pub written_ago_us: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuorumDatagram {
    pub fsid: Fsid,
    pub from: Slot,
    pub to: Slot,
    pub message: QuorumMessage,
}

/// Proves that a datagram comes from a member.
pub trait DatagramAuth {
    /// Appends a tag of at most [`MAX_TAG`] bytes over all of `datagram`.
    fn seal(&self, datagram: &mut Vec<u8>);
    /// What the tag of `datagram` covers, if the tag is right.
    fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]>;
}

/// No tag: for sockets on loopback, and the simulation.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAuth;

impl DatagramAuth for NoAuth {
    fn seal(&self, _: &mut Vec<u8>) {}

    fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        Some(datagram)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: U16,
    kind: u8,
    flags: u8,
    fsid: [u8; 16],
    term: U64,
    round: U64,
    rid: U64,
    from: u8,
    to: u8,
    reserved: U16,
    written_ago_us: U32,
    reserved2: U32,
    crc: U32,
}
const _: () = assert!(size_of::<Raw>() == DATAGRAM_LEN && std::mem::offset_of!(Raw, crc) == CRC_AT);

impl QuorumDatagram {
    pub fn encode(&self, auth: &dyn DatagramAuth) -> Vec<u8> {
        let message = &self.message;
        let mut raw = Raw {
            magic: MAGIC.into(),
            version: VERSION.into(),
            kind: message.kind as u8,
            flags: if message.granted { GRANTED } else { 0 },
            fsid: self.fsid.0,
            term: message.term.0.into(),
            round: message.round.into(),
            rid: message.rid.0.into(),
            from: self.from.0,
            to: self.to.0,
            reserved: 0.into(),
            written_ago_us: message.written_ago_us.into(),
            reserved2: 0.into(),
            crc: 0.into(),
        };
        raw.crc = crc32c(&raw.as_bytes()[..CRC_AT]).into();
        let mut out = Vec::with_capacity(MAX_DATAGRAM);
        out.extend_from_slice(raw.as_bytes());
        auth.seal(&mut out);
        out
    }

    pub fn decode(bytes: &[u8], auth: &dyn DatagramAuth) -> Result<QuorumDatagram, WireFault> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(WireFault::Bound { what: "datagram", found: bytes.len() as u64, bound: MAX_DATAGRAM as u64 });
        }
        let Some(bytes) = auth.open(bytes) else {
            return Err(WireFault::Value { what: "datagram tag", found: 0 });
        };
        if bytes.len() > DATAGRAM_LEN {
            return Err(WireFault::Trailing { what: "datagram", left: bytes.len() - DATAGRAM_LEN });
        }
        let Ok(raw) = Raw::read_from_bytes(bytes) else {
            return Err(WireFault::Short { what: "datagram", needed: DATAGRAM_LEN - bytes.len() });
        };
        if raw.magic.get() != MAGIC {
            return Err(WireFault::Magic { found: raw.magic.get() });
        }
        if raw.version.get() != VERSION {
            return Err(WireFault::Version { found: raw.version.get() as u8, ours: VERSION as u8 });
        }
        let (expected, found) = (crc32c(&raw.as_bytes()[..CRC_AT]), raw.crc.get());
        if expected != found {
            return Err(WireFault::Checksum { expected, found });
        }
        let illegal = |what, found: u64| WireFault::Value { what, found };
        let kind = QuorumKind::from_u8(raw.kind).ok_or(illegal("message kind", raw.kind.into()))?;
        if raw.flags & !GRANTED != 0 || raw.reserved.get() != 0 || raw.reserved2.get() != 0 {
            return Err(illegal("datagram flags", raw.flags.into()));
        }
        for slot in [raw.from, raw.to] {
            if usize::from(slot) >= Slot::COUNT {
                return Err(illegal("slot", slot.into()));
            }
        }
        let (from, term) = (Slot(raw.from), Term(raw.term.get()));
        if term >= Term::LIMIT || (kind.of_senders_term() && term.slot() != from) {
            return Err(illegal("term", term.0));
        }
        Ok(QuorumDatagram {
            fsid: Fsid(raw.fsid),
            from,
            to: Slot(raw.to),
            message: QuorumMessage {
                kind,
                term,
                round: raw.round.get(),
                rid: Rid(raw.rid.get()),
                granted: raw.flags & GRANTED != 0,
                written_ago_us: raw.written_ago_us.get(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Appends the length and refuses another: enough to see that tags are made and taken off.
    struct LengthTag;

    impl DatagramAuth for LengthTag {
        fn seal(&self, datagram: &mut Vec<u8>) {
            datagram.push(datagram.len() as u8);
        }

        fn open<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
            let (tag, rest) = datagram.split_last()?;
            (usize::from(*tag) == rest.len()).then_some(rest)
        }
    }

    fn datagram() -> impl Strategy<Value = QuorumDatagram> {
        (1u8..=7, any::<[u8; 16]>(), 0u64..1 << 50, any::<(u64, u64, bool, u32)>(), 0u8..15, 0u8..15).prop_map(
            |(kind, fsid, round_of_term, (round, rid, granted, written_ago_us), from, to)| QuorumDatagram {
                fsid: Fsid(fsid),
                from: Slot(from),
                to: Slot(to),
                message: QuorumMessage {
                    kind: QuorumKind::from_u8(kind).unwrap(),
                    term: Term::of_round(round_of_term, Slot(from)),
                    round,
                    rid: Rid(rid),
                    granted,
                    written_ago_us,
                },
            },
        )
    }

    proptest! {
        #[test]
        fn datagrams_survive_their_encoding(datagram in datagram()) {
            for auth in [&NoAuth as &dyn DatagramAuth, &LengthTag] {
                let bytes = datagram.encode(auth);
                prop_assert_eq!(QuorumDatagram::decode(&bytes, auth), Ok(datagram));
                prop_assert!(bytes.len() <= MAX_DATAGRAM);
            }
            prop_assert!(QuorumDatagram::decode(&datagram.encode(&NoAuth), &LengthTag).is_err());
        }

        #[test]
        fn a_flipped_bit_a_cut_and_a_longer_datagram_are_errors(datagram in datagram(), at in 0usize..512, len in 0usize..DATAGRAM_LEN) {
            let bytes = datagram.encode(&NoAuth);
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            prop_assert!(QuorumDatagram::decode(&bad, &NoAuth).is_err());
            prop_assert!(QuorumDatagram::decode(&bytes[..len], &NoAuth).is_err());
            prop_assert!(QuorumDatagram::decode(&[bytes, vec![0]].concat(), &NoAuth).is_err());
        }

        #[test]
        fn random_bytes_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(QuorumDatagram::decode(&bytes, &NoAuth).is_err());
        }
    }

    #[test]
    fn nobody_speaks_for_another_slots_term() {
        let message = QuorumMessage {
            kind: QuorumKind::Heartbeat,
            term: Term::of_round(1, Slot(2)),
            round: 1,
            rid: Rid(1),
            granted: false,
            written_ago_us: 0,
        };
        let datagram = QuorumDatagram { fsid: Fsid([1; 16]), from: Slot(1), to: Slot(0), message };
        assert!(QuorumDatagram::decode(&datagram.encode(&NoAuth), &NoAuth).is_err());
        let datagram = QuorumDatagram { from: Slot(2), ..datagram };
        assert!(QuorumDatagram::decode(&datagram.encode(&NoAuth), &NoAuth).is_ok());
    }
}

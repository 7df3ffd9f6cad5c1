//! A quorum member's own block: the events of its life, each in a sector of its own.
//!
//! ```text
//!  0       512    1024    1536    2048    2560    3072                4096
//!  | BEGIN | TERM | ELECT | FENCE | STOP  | END   |       zeros       |
//! ```
//! The member in that slot is the only writer (Q3); it writes the block whole. A sector that has not changed is written
//! again byte for byte, so of a torn write each event is there as it was before or after, never mixed. A sector of
//! zeros is an event that never happened. The crc is seeded with the slot and the fsid: a block of another filesystem,
//! or of another slot, does not verify.
//!
//! An ELECT is over when STOP names the same run and term (its own process stopped, or a later run of the slot has
//! made sure that it is dead), or when any member's FENCE has a greater term.

use thiserror::Error;
use vellum_base::{BLOCK_SIZE, Fsid, Rid, Slot, Term, crc32c_seeded};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::fsid_tag;

/// "VLQM", little-endian.
pub const QUORUM_MAGIC: u32 = 0x4d51_4c56;
pub const QUORUM_VERSION: u16 = 1;
/// What a device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// Events of a block, in this order from its start.
pub const EVENTS: usize = 6;

/// What happened to a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// A run of the member has started.
    Begin = 1,
    /// The newest term that it knows, and its vote in it.
    Term = 2,
    /// It won the election of a term.
    Elect = 3,
    /// As the leader of this term it has seen all leaders before it stopped or fenced.
    Fence = 4,
    /// A leadership is over, its last device write done.
    Stop = 5,
    /// The run has ended in order.
    End = 6,
}

impl EventKind {
    pub const ALL: [EventKind; EVENTS] =
        [EventKind::Begin, EventKind::Term, EventKind::Elect, EventKind::Fence, EventKind::Stop, EventKind::End];

    fn index(self) -> usize {
        self as usize - 1
    }
}

/// The process behind a run, for a fencer on the same host. All zeros where there is none (simulation).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ProcessIdentity {
    pub pid: u32,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: [u8; 16],
    /// Field 22 of /proc/PID/stat, clock ticks after boot: a pid that was reused has another.
    pub start_ticks: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotEvent {
    /// Number of the block write that brought it; grows over all runs of the slot.
    pub write: u64,
    /// The run that it is about.
    pub rid: Rid,
    pub term: Term,
    /// TERM only: for whom the member voted in `term`.
    pub vote: Option<Slot>,
    /// Milliseconds since 1970 by the writer's clock: for people.
    pub time_ms: u64,
    pub process: ProcessIdentity,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskSector {
    crc: U32,
    magic: U32,
    version: U16,
    kind: u8,
    slot: u8,
    pid: U32,
    fsid: [u8; 16],
    write: U64,
    rid: U64,
    term: U64,
    time_ms: U64,
    start_ticks: U64,
    boot_id: [u8; 16],
    /// Slot + 1; 0 is no vote.
    vote: u8,
    padding: [u8; SECTOR_BYTES - 89],
}
const _: () = assert!(size_of::<DiskSector>() == SECTOR_BYTES);
const _: () = assert!(EVENTS * SECTOR_BYTES <= BLOCK_SIZE);

/// Why a member's block cannot be believed.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum SlotError {
    #[error("slot {slot}'s block has {found} bytes")]
    Length { slot: Slot, found: usize },
    #[error("slot {slot}, {kind:?}: magic is {found:#x}")]
    Magic { slot: Slot, kind: EventKind, found: u32 },
    #[error("slot {slot}, {kind:?}: version {found} is not {QUORUM_VERSION}; a newer vellum wrote it?")]
    Version { slot: Slot, kind: EventKind, found: u16 },
    #[error("slot {slot}, {kind:?}: checksum is {found:#010x}, expected {expected:#010x}")]
    Checksum { slot: Slot, kind: EventKind, expected: u32, found: u32 },
    #[error("slot {slot}, {kind:?}: it belongs to another filesystem, {found}")]
    Fsid { slot: Slot, kind: EventKind, found: Fsid },
    #[error("slot {slot}, {kind:?}: it says that it is {what} {found}")]
    Place { slot: Slot, kind: EventKind, what: &'static str, found: u8 },
    #[error("slot {slot}, {kind:?}: {what} {found} is no legal value")]
    Value { slot: Slot, kind: EventKind, what: &'static str, found: u64 },
    #[error("slot {slot}: what follows its events is not zero")]
    Tail { slot: Slot },
    #[error("slot {slot}'s block cannot be read: {why}")]
    Read { slot: Slot, why: String },
}

/// The events of one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotBlock {
    pub slot: Slot,
    events: [Option<SlotEvent>; EVENTS],
}

/// What a reader makes of a slot's block.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are fifteen of them, and nearly all are written")]
pub enum SlotState {
    /// No member was ever started here.
    Empty,
    Written(SlotBlock),
    /// Read again and still not whole: its member counts as elected.
    Unreadable(SlotError),
}

impl SlotState {
    pub fn decode(buf: &[u8], slot: Slot, fsid: &Fsid) -> SlotState {
        match SlotBlock::decode(buf, slot, fsid) {
            Ok(block) if block.events.iter().all(Option::is_none) => SlotState::Empty,
            Ok(block) => SlotState::Written(block),
            Err(error) => SlotState::Unreadable(error),
        }
    }

    pub fn block(&self) -> Option<&SlotBlock> {
        match self {
            SlotState::Written(block) => Some(block),
            _ => None,
        }
    }
}

impl SlotBlock {
    pub fn new(slot: Slot) -> SlotBlock {
        SlotBlock { slot, events: [None; EVENTS] }
    }

    pub fn get(&self, kind: EventKind) -> Option<&SlotEvent> {
        self.events[kind.index()].as_ref()
    }

    pub fn set(&mut self, kind: EventKind, event: SlotEvent) {
        self.events[kind.index()] = Some(event);
    }

    /// The election that no STOP has ended.
    pub fn unstopped(&self) -> Option<&SlotEvent> {
        let elect = self.get(EventKind::Elect)?;
        let over = self.get(EventKind::Stop).is_some_and(|s| s.term == elect.term && s.rid == elect.rid);
        (!over).then_some(elect)
    }

    /// The greatest term of any event.
    pub fn newest_term(&self) -> Term {
        self.events.iter().flatten().map(|e| e.term).max().unwrap_or_default()
    }

    /// Number of the newest block write.
    pub fn newest_write(&self) -> u64 {
        self.events.iter().flatten().map(|e| e.write).max().unwrap_or(0)
    }

    /// The run that holds the slot now: started and not ended.
    pub fn running(&self) -> Option<&SlotEvent> {
        let begin = self.get(EventKind::Begin)?;
        self.get(EventKind::End).is_none_or(|end| end.rid != begin.rid).then_some(begin)
    }

    pub fn encode(&self, fsid: &Fsid) -> [u8; BLOCK_SIZE] {
        let mut out = [0u8; BLOCK_SIZE];
        for (kind, sector) in EventKind::ALL.into_iter().zip(out.chunks_exact_mut(SECTOR_BYTES)) {
            if let Some(event) = self.get(kind) {
                sector.copy_from_slice(self.sector(kind, event, fsid).as_bytes());
            }
        }
        out
    }

    fn sector(&self, kind: EventKind, event: &SlotEvent, fsid: &Fsid) -> DiskSector {
        let mut sector = DiskSector {
            crc: U32::new(0),
            magic: QUORUM_MAGIC.into(),
            version: QUORUM_VERSION.into(),
            kind: kind as u8,
            slot: self.slot.0,
            pid: event.process.pid.into(),
            fsid: fsid.0,
            write: event.write.into(),
            rid: event.rid.0.into(),
            term: event.term.0.into(),
            time_ms: event.time_ms.into(),
            start_ticks: event.process.start_ticks.into(),
            boot_id: event.process.boot_id,
            vote: event.vote.map_or(0, |slot| slot.0 + 1),
            padding: [0; SECTOR_BYTES - 89],
        };
        sector.crc = crc(self.slot, fsid, sector.as_bytes()).into();
        sector
    }

    pub fn decode(buf: &[u8], slot: Slot, fsid: &Fsid) -> Result<SlotBlock, SlotError> {
        if buf.len() != BLOCK_SIZE {
            return Err(SlotError::Length { slot, found: buf.len() });
        }
        let mut block = SlotBlock::new(slot);
        let (events, tail) = buf.split_at(EVENTS * SECTOR_BYTES);
        for (kind, bytes) in EventKind::ALL.into_iter().zip(events.chunks_exact(SECTOR_BYTES)) {
            if bytes.iter().any(|b| *b != 0) {
                block.events[kind.index()] = Some(decode_sector(bytes, slot, kind, fsid)?);
            }
        }
        if tail.iter().any(|b| *b != 0) {
            return Err(SlotError::Tail { slot });
        }
        Ok(block)
    }
}

fn crc(slot: Slot, fsid: &Fsid, sector: &[u8]) -> u32 {
    crc32c_seeded(slot.0.into(), fsid_tag(fsid), &sector[4..])
}

fn decode_sector(bytes: &[u8], slot: Slot, kind: EventKind, fsid: &Fsid) -> Result<SlotEvent, SlotError> {
    let Ok(s) = DiskSector::read_from_bytes(bytes) else {
        return Err(SlotError::Length { slot, found: bytes.len() });
    };
    if s.magic.get() != QUORUM_MAGIC {
        return Err(SlotError::Magic { slot, kind, found: s.magic.get() });
    }
    if s.version.get() != QUORUM_VERSION {
        return Err(SlotError::Version { slot, kind, found: s.version.get() });
    }
    if s.fsid != fsid.0 {
        return Err(SlotError::Fsid { slot, kind, found: Fsid(s.fsid) });
    }
    if s.slot != slot.0 {
        return Err(SlotError::Place { slot, kind, what: "slot", found: s.slot });
    }
    if s.kind != kind as u8 {
        return Err(SlotError::Place { slot, kind, what: "event", found: s.kind });
    }
    let (expected, found) = (crc(slot, fsid, bytes), s.crc.get());
    if expected != found {
        return Err(SlotError::Checksum { slot, kind, expected, found });
    }
    let vote = match s.vote {
        0 => None,
        vote if usize::from(vote) <= Slot::COUNT && kind == EventKind::Term => Some(Slot(vote - 1)),
        found => return Err(SlotError::Value { slot, kind, what: "vote", found: found.into() }),
    };
    let term = Term(s.term.get());
    if term >= Term::LIMIT {
        return Err(SlotError::Value { slot, kind, what: "term", found: term.0 });
    }
    if s.padding.iter().any(|b| *b != 0) {
        return Err(SlotError::Tail { slot });
    }
    Ok(SlotEvent {
        write: s.write.get(),
        rid: Rid(s.rid.get()),
        term,
        vote,
        time_ms: s.time_ms.get(),
        process: ProcessIdentity { pid: s.pid.get(), boot_id: s.boot_id, start_ticks: s.start_ticks.get() },
    })
}

#[cfg(test)]
mod tests {
    use vellum_base::prng::Prng;

    use super::*;

    const FSID: Fsid = Fsid([9; 16]);

    fn event(n: u64) -> SlotEvent {
        let process = ProcessIdentity { pid: 77, boot_id: [3; 16], start_ticks: 5 };
        SlotEvent { write: n, rid: Rid(n * 7), term: Term(16 * n + 3), vote: None, time_ms: 1000 + n, process }
    }

    fn random_block(prng: &mut Prng) -> SlotBlock {
        let mut block = SlotBlock::new(Slot(3));
        for kind in EventKind::ALL {
            if prng.one_in(2) {
                let vote = (kind == EventKind::Term && prng.one_in(2)).then(|| Slot(prng.below(15) as u8));
                block.set(kind, SlotEvent { vote, ..event(prng.below(1 << 40)) });
            }
        }
        block
    }

    #[test]
    fn blocks_survive_their_encoding_and_every_flipped_bit_is_found() {
        let mut prng = Prng::new(1);
        for _ in 0..300 {
            let block = random_block(&mut prng);
            let bytes = block.encode(&FSID);
            assert_eq!(SlotBlock::decode(&bytes, Slot(3), &FSID), Ok(block));
            let mut bad = bytes;
            let at = prng.below(BLOCK_SIZE as u64) as usize;
            bad[at] ^= 1 << prng.below(8);
            assert!(SlotBlock::decode(&bad, Slot(3), &FSID).is_err(), "byte {at}");
        }
    }

    #[test]
    fn random_bytes_and_another_place_are_errors() {
        let mut prng = Prng::new(2);
        let mut bytes = [0u8; BLOCK_SIZE];
        for _ in 0..200 {
            prng.fill(&mut bytes);
            assert!(matches!(SlotState::decode(&bytes, Slot(0), &FSID), SlotState::Unreadable(_)));
        }
        let mut block = SlotBlock::new(Slot(3));
        block.set(EventKind::Begin, event(1));
        let bytes = block.encode(&FSID);
        assert!(SlotBlock::decode(&bytes, Slot(4), &FSID).is_err(), "another slot's block");
        assert!(SlotBlock::decode(&bytes, Slot(3), &Fsid([8; 16])).is_err(), "another filesystem's");
        let mut moved = [0u8; BLOCK_SIZE];
        moved[SECTOR_BYTES..2 * SECTOR_BYTES].copy_from_slice(&bytes[..SECTOR_BYTES]);
        assert!(SlotBlock::decode(&moved, Slot(3), &FSID).is_err(), "a BEGIN in the place of TERM");
        assert!(SlotBlock::decode(&bytes[..512], Slot(3), &FSID).is_err());
        assert_eq!(SlotState::decode(&[0; BLOCK_SIZE], Slot(3), &FSID), SlotState::Empty);
    }

    #[test]
    fn an_election_is_over_when_a_stop_names_the_same_run_and_term() {
        let mut block = SlotBlock::new(Slot(3));
        assert!(block.unstopped().is_none());
        block.set(EventKind::Elect, event(5));
        block.set(EventKind::Stop, event(4));
        assert_eq!(block.unstopped(), Some(&event(5)), "an older STOP is not about it");
        block.set(EventKind::Stop, SlotEvent { rid: Rid(1), ..event(5) });
        assert!(block.unstopped().is_some(), "nor is another run's");
        block.set(EventKind::Stop, SlotEvent { write: 9, ..event(5) });
        assert!(block.unstopped().is_none());
        assert_eq!(block.newest_write(), 9);
    }
}

//! What the store writes as whole blocks. Each input is taken as it came, and with its checksum put right: only so is the
//! decoder behind it reached.

use bytes::Bytes;
use vellum_base::{
    BLOCK_SIZE, BlockAddr, BlockRange, ChunkIndex, Epoch, Fsid, Key, KeyRange, LogId, SegmentId, ShardId,
};
use vellum_base::{Slot, Term, crc32c_seeded};
use vellum_format::block::{self, BLOCK_HEADER, BlockKind};
use vellum_format::log::{PART_VERSION, records, verify_part};
use vellum_format::manifest::MANIFEST_VERSION;
use vellum_format::quorum::{EventKind, SlotBlock, SlotEvent};
use vellum_format::seal::SEAL_VERSION;
use vellum_format::segment::block as segment_block;
use vellum_format::segment::entry::{self, Entries, EntryWriter};
use vellum_format::segment::filter;
use vellum_format::segment::{BlockKind as SegmentBlockKind, Place};
use vellum_format::superblock::{Features, MAX_SLOTS, SUPERBLOCK_VERSION};
use vellum_format::{
    ChunkUse, LogMeta, ManifestEdit, ManifestRecord, PartBuilder, PartPlace, PartRef, ProcessIdentity, Record,
    RecordBody, Run, Seal, SegmentMeta, SlotState, Superblock,
};

const FSID: Fsid = Fsid([7; 16]);
const AT: BlockAddr = BlockAddr(9);
const SEGMENT: SegmentId = SegmentId(77);

/// Whole blocks, with magic, kind, place, length and checksum as they have to be; the body is the input's.
fn forged(bytes: &[u8], kind: BlockKind, version: u16) -> Vec<u8> {
    let body = bytes.get(BLOCK_HEADER..).unwrap_or_default();
    let said = bytes.get(12..16).map_or(0, |len| u32::from_le_bytes(len.try_into().unwrap_or_default()) as usize);
    let generation = bytes.get(32..40).map_or(0, |g| u64::from_le_bytes(g.try_into().unwrap_or_default()));
    let body_len = said.min(body.len());
    let mut out = vec![0; block::padded_len(body_len)];
    out[BLOCK_HEADER..BLOCK_HEADER + body_len].copy_from_slice(&body[..body_len]);
    block::finish(&mut out, kind, version, AT, &FSID, generation, body_len);
    out
}

pub fn superblocks() -> Vec<Vec<u8>> {
    let range = |start| BlockRange::new(start, 16);
    let slots = (0..MAX_SLOTS).map(|slot| vec![b'a'; slot]).collect();
    let superblock = Superblock {
        fsid: FSID,
        generation: 2,
        format_version: 1,
        features: Features::default(),
        blocks: 1024,
        chunk_blocks: 256,
        copy: BlockAddr(1023),
        slots_area: range(1),
        manifest: [[range(32), range(512)], [range(64), range(528)]],
        manifest_generation: 77,
        metadata_copies: 1,
        created: 1,
        slots,
    };
    vec![superblock.encode(AT).to_vec()]
}

pub fn whole_superblock(bytes: &[u8]) -> bool {
    let Ok(superblock) = Superblock::decode(bytes, AT) else { return false };
    let again = superblock.encode(AT);
    assert_eq!(Superblock::decode(&again, AT).as_ref(), Ok(&superblock));
    true
}

pub fn superblock(bytes: &[u8]) -> bool {
    whole_superblock(bytes) | whole_superblock(&forged(bytes, BlockKind::Superblock, SUPERBLOCK_VERSION))
}

fn meta() -> SegmentMeta {
    SegmentMeta {
        id: SEGMENT,
        run: Epoch(3),
        ranges: vec![BlockRange::new(7, 2), BlockRange::new(20, 3)],
        mirror: vec![BlockRange::new(40, 5)],
        len_bytes: 5 * BLOCK_SIZE as u64,
        last: Key::MAX,
        entries: 9,
        index: Place { at_blocks: 3, len_blocks: 1 },
        ..SegmentMeta::default()
    }
}

pub fn manifest_records() -> Vec<Vec<u8>> {
    let (shard, term) = (ShardId(1), Term(2));
    let run = Run {
        term,
        first_number: 2,
        first_epoch: Epoch(3),
        seal_chunks: vec![ChunkIndex(4), ChunkIndex(5)],
        floor_number: 1,
        floor_hash: 6,
        durable_number: 7,
        cut: Some(8),
        logs: vec![LogMeta { id: LogId(8), chunks: vec![ChunkIndex(9)], floor: 10 }],
    };
    let all = vec![
        ManifestEdit::Term(term),
        ManifestEdit::NextIds { segment: SegmentId(1), log: LogId(2) },
        ManifestEdit::Base { number: 1, hash: u64::MAX, epoch: Epoch(3) },
        ManifestEdit::Chunks { first: ChunkIndex(1), count: 2, used_for: ChunkUse::Data(9) },
        ManifestEdit::Shard { id: shard, first_bucket: 0, last_bucket: 9, flushed_through: Epoch(1) },
        ManifestEdit::FlushedThrough { shard, epoch: Epoch(4) },
        ManifestEdit::SegmentAdd { shard, level: 2, meta: meta() },
        ManifestEdit::SegmentRemove { shard, segment: SEGMENT },
        ManifestEdit::Run(run),
        ManifestEdit::SealFloor { term, number: 1, hash: 2, durable_number: 3 },
        ManifestEdit::LogFloor { log: LogId(8), place: 11 },
        ManifestEdit::Cut { term, number: 9 },
        ManifestEdit::RunDrop { term },
        ManifestEdit::Split { shard, at: 5, new: ShardId(2) },
    ];
    let record = |edits: &[ManifestEdit]| {
        let body = RecordBody::new(3, 4, edits);
        let mut out = vec![0; body.padded_len()];
        body.finish(&mut out, AT, &FSID, 5);
        out
    };
    let mut samples: Vec<Vec<u8>> = all.iter().map(|edit| record(std::slice::from_ref(edit))).collect();
    samples.push(record(&all));
    samples
}

pub fn whole_manifest_record(bytes: &[u8]) -> bool {
    let Ok((record, ..)) = ManifestRecord::decode(bytes, AT, &FSID) else { return false };
    let body = RecordBody::new(record.sequence, record.prev_hash, &record.edits);
    let mut again = vec![0; body.padded_len()];
    body.finish(&mut again, AT, &FSID, record.generation);
    let (back, hash, _) = ManifestRecord::decode(&again, AT, &FSID).expect("what is written again is read");
    assert_eq!((back, hash), (record, body.hash()));
    true
}

pub fn manifest_record(bytes: &[u8]) -> bool {
    whole_manifest_record(bytes) | whole_manifest_record(&forged(bytes, BlockKind::Manifest, MANIFEST_VERSION))
}

pub fn seals() -> Vec<Vec<u8>> {
    let part = PartRef { log: LogId(1), place: 2, addr: BlockAddr(3), len_blocks: 4, crc: 5 };
    [(1, 0), (3, 2), (64, 128)]
        .map(|(parts, runs)| Seal {
            term: Term(6),
            number: 7,
            epoch: Epoch(8),
            prev_hash: u64::MAX,
            durable_number: 5,
            parts: vec![part; parts],
            new_data: vec![BlockRange::new(11, 12); runs],
        })
        .map(|seal| seal.encode(AT, &FSID).0.to_vec())
        .to_vec()
}

pub fn whole_seal(bytes: &[u8]) -> bool {
    let Ok((seal, _)) = Seal::decode(bytes, AT, &FSID) else { return false };
    let (again, hash) = seal.encode(AT, &FSID);
    assert_eq!(Seal::decode(&again, AT, &FSID), Ok((seal, hash)));
    true
}

pub fn seal(bytes: &[u8]) -> bool {
    let mut forged = forged(bytes, BlockKind::Seal, SEAL_VERSION);
    forged.truncate(BLOCK_SIZE);
    let old = self::forged(bytes, BlockKind::Seal, 1);
    whole_seal(bytes) | whole_seal(&forged) | whole_seal(&old[..BLOCK_SIZE])
}

const PLACE: PartPlace = PartPlace { log: LogId(1), epoch: Epoch(2), term: Term(3), place: 4, addr: AT };

fn part_of(records: &[Record]) -> Vec<u8> {
    let mut builder = PartBuilder::default();
    records.iter().for_each(|record| builder.push(record));
    let mut out = vec![0; builder.padded_len()];
    builder.finish(&mut out, &PLACE, &FSID);
    out
}

pub fn parts() -> Vec<Vec<u8>> {
    let key = |n| Key::fs(vellum_base::Ino(n), 1, 0, 0, 0);
    let all = [
        Record::Put { key: key(1), value: Bytes::from(vec![7; 300]) },
        Record::Delete { key: key(2) },
        Record::DeleteRange { range: KeyRange::of_inode(vellum_base::Ino(3)) },
        Record::Put { key: key(4), value: Bytes::new() },
    ];
    vec![part_of(&all), part_of(&all[1..2])]
}

pub fn whole_part(bytes: &[u8]) -> bool {
    let Ok(body) = verify_part(bytes, &PLACE, &FSID).map(Bytes::copy_from_slice) else { return false };
    let Ok(found) = records(&body).collect::<Result<Vec<Record>, _>>() else { return false };
    if found.is_empty() {
        return false;
    }
    let again = part_of(&found);
    let body = Bytes::copy_from_slice(verify_part(&again, &PLACE, &FSID).expect("what is written again verifies"));
    assert_eq!(records(&body).collect::<Result<Vec<Record>, _>>().as_ref(), Ok(&found));
    true
}

pub fn part(bytes: &[u8]) -> bool {
    whole_part(bytes) | whole_part(&forged(bytes, BlockKind::Part, PART_VERSION))
}

pub fn slot_blocks() -> Vec<Vec<u8>> {
    let mut block = SlotBlock::new(Slot(2));
    let process = ProcessIdentity { pid: 4, ..ProcessIdentity::default() };
    for (write, kind) in (1..).zip(EventKind::ALL) {
        let rid = vellum_base::Rid(5);
        let vote = (kind == EventKind::Term).then_some(Slot(1));
        block.set(kind, SlotEvent { write, rid, term: Term(6), time_ms: 7, process, vote });
    }
    vec![block.encode(&FSID).to_vec(), SlotBlock::new(Slot(2)).encode(&FSID).to_vec()]
}

pub fn whole_slot_block(bytes: &[u8]) -> bool {
    match SlotState::decode(bytes, Slot(2), &FSID) {
        SlotState::Written(block) => {
            assert_eq!(SlotBlock::decode(&block.encode(&FSID), Slot(2), &FSID), Ok(block));
            true
        }
        SlotState::Empty => true,
        SlotState::Unreadable(_) => false,
    }
}

pub fn slot_block(bytes: &[u8]) -> bool {
    let mut forged = bytes.to_vec();
    forged.resize(BLOCK_SIZE, 0);
    for sector in forged.chunks_exact_mut(512).filter(|sector| sector.iter().any(|byte| *byte != 0)) {
        let crc = crc32c_seeded(2, block::fsid_tag(&FSID), &sector[4..]);
        sector[..4].copy_from_slice(&crc.to_le_bytes());
    }
    whole_slot_block(bytes) | whole_slot_block(&forged)
}

pub fn segment_metas() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    meta().encode(&mut out);
    vec![out]
}

pub fn segment_meta(bytes: &[u8]) -> bool {
    let Ok((meta, rest)) = SegmentMeta::decode(bytes) else { return false };
    let mut again = Vec::new();
    meta.encode(&mut again);
    assert_eq!(again.len() + rest.len(), bytes.len());
    assert_eq!(SegmentMeta::decode(&again), Ok((meta.clone(), &[][..])));
    for at in [0, meta.len_bytes - 1, meta.len_bytes, u64::MAX] {
        let _ = (meta.locate(0, at), meta.locate(1, at), meta.tombstone_percent());
    }
    true
}

pub fn segment_blocks() -> Vec<Vec<u8>> {
    let key = |n| Key::fs(vellum_base::Ino(n), 1, n, 0, 0);
    let sealed = |kind, fill: &dyn Fn(&mut EntryWriter)| {
        let mut writer = EntryWriter::new(4);
        fill(&mut writer);
        let len = writer.payload_len();
        let mut out = vec![0; segment_block::block_len(len)];
        writer.finish_into(&mut out[segment_block::HEADER_LEN..][..len]);
        segment_block::seal(&mut out, kind, len, SEGMENT, 0);
        out
    };
    let data = sealed(SegmentBlockKind::Data, &|writer| {
        (0..20).for_each(|n| writer.add(&key(n), Epoch(n % 3), (n % 4 != 0).then_some(&[5; 30][..])));
    });
    let index = sealed(SegmentBlockKind::Index, &|writer| {
        let mut value = Vec::new();
        entry::put_index_value(&mut value, 3, 1);
        (0..5).for_each(|n| writer.add(&key(n), Epoch::NONE, Some(&value)));
    });
    let ranges = sealed(SegmentBlockKind::Tombstones, &|writer| {
        for n in 0..5 {
            let mut value = Vec::new();
            entry::put_range_value(&mut value, &key(n), &key(n + 1), &[Epoch(5), Epoch(2)]);
            writer.add(&key(n + 1), Epoch::NONE, Some(&value));
        }
    });
    vec![data, index, ranges]
}

/// Everything that a reader does with a block's entries.
fn read_entries(payload: &[u8]) -> bool {
    let Ok(entries) = Entries::new(payload) else { return false };
    let (mut at, mut before, mut count) = (0, Key::MIN, 0);
    let mut epochs = Vec::new();
    while let Ok(Some(entry)) = entries.decode(at, &before) {
        assert!(entry.next_at > at, "no entry takes no room");
        let value = entry.value.clone().map_or(&[][..], |value| entries.value(&value));
        let _ = entry::get_index_value(value);
        if entry::get_range_value(value, &entry.key, &mut epochs).is_some() {
            assert!(epochs.len() <= value.len());
        }
        (at, before, count) = (entry.next_at, entry.key, count + 1);
    }
    for key in [Key::MIN, Key::MAX, before, Key::fs(vellum_base::Ino(7), 1, 7, 0, 0)] {
        let _ = (entries.seek(&key), entries.seek_floor(&key));
        let _ = filter::may_contain(payload, filter::prefix_hash(&key));
    }
    count > 0
}

pub fn whole_segment_block(bytes: &[u8]) -> bool {
    segment_block::open(bytes, SEGMENT, 0).is_ok_and(|(_, payload)| read_entries(payload))
}

pub fn segment_block(bytes: &[u8]) -> bool {
    let _ = segment_block::claimed_len(bytes);
    let mut forged = bytes.to_vec();
    forged.resize(forged.len().next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE), 0);
    let blocks = (forged.len() / BLOCK_SIZE) as u16;
    forged[..4].copy_from_slice(&segment_block::MAGIC.to_le_bytes());
    forged[10..12].copy_from_slice(&blocks.to_le_bytes());
    let crc = crc32c_seeded(SEGMENT.0, 0, &forged[segment_block::CRC_FROM..]);
    forged[4..8].copy_from_slice(&crc.to_le_bytes());
    whole_segment_block(bytes) | whole_segment_block(&forged)
}

//! One sample of every durable structure, with every field told from the others by its value.
//!
//! `golden.rs` holds today's encoder and decoder against the bytes kept in `golden/`; `document.rs` reads the same bytes
//! as `docs/FORMAT.md` says and must find these values.
#![allow(dead_code, reason = "each of the two tests uses its own half")]

pub mod table;

use bytes::Bytes;
use vellum_base::{
    BLOCK_SIZE, BatchNo, BlockAddr, BlockRange, Bucket, ChunkIndex, Epoch, Fsid, Ino, Key, KeyRange, LogId, Rid,
    SegmentId, ShardId, Slot, Term, Zone,
};
use vellum_format::block::BLOCK_HEADER;
use vellum_format::item::xattr;
use vellum_format::quorum::EventKind;
use vellum_format::segment::block::{self as segment_block, HEADER_LEN};
use vellum_format::segment::entry::{self, EntryWriter};
use vellum_format::segment::{BlockKind, filter};
use vellum_format::superblock::{Features, MAX_SLOTS};
use vellum_format::system::LastBatch;
use vellum_format::{
    Bitmap, ChunkUse, ClientIdentity, Dirent, Extent, ExtentHeader, FileKind, Inode, LogMeta, ManifestEdit, Origin,
    Owners, PartBuilder, PartPlace, PartRef, Place, Principal, ProcessId, ProcessIdentity, Record, RecordBody, Run,
    Seal, SegmentMeta, SlotBlock, SlotEvent, Superblock, Timestamp,
};

pub const FSID: Fsid = Fsid([0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 8, 9, 10, 11, 12, 13, 14, 15]);
pub const SUPERBLOCK_AT: BlockAddr = BlockAddr(0);
pub const RECORD_AT: BlockAddr = BlockAddr(0x0123_4567);
pub const SEAL_AT: BlockAddr = BlockAddr(0x0055_6677);
pub const SEGMENT: SegmentId = SegmentId(0x3132_3334_3536_3738);
/// Place of the sampled segment blocks in their segment.
pub const BLOCK_AT: u64 = 0x6000;

pub fn superblock() -> Superblock {
    let range = |start, len| BlockRange::new(start, len);
    Superblock {
        fsid: FSID,
        generation: 0x1112_1314,
        format_version: 1, // of the golden image
        features: Features { incompatible: 0x21, read_only: 0x2200, compatible: 0x0023_0000 },
        blocks: 0x0010_0000,
        chunk_blocks: 0x0100,
        copy: BlockAddr(0x000f_ffff),
        slots_area: range(1, 16),
        manifest: [[range(0x0100, 0x101), range(0x0300, 0x103)], [range(0x0200, 0x102), range(0x0400, 0x104)]],
        manifest_generation: 0x2425_2627,
        metadata_copies: 2,
        created: 0x6012_3456,
        slots: (0..MAX_SLOTS).map(|i| if i < 2 { format!("node{i}:70").into_bytes() } else { Vec::new() }).collect(),
    }
}

pub fn run() -> Run {
    let log = |id: u64, first: u32| LogMeta {
        id: LogId(id),
        chunks: vec![ChunkIndex(first), ChunkIndex(first + 1), ChunkIndex(first + 9)],
        floor: 0x7000 + id,
    };
    Run {
        term: Term(0x41),
        first_number: 0x4200,
        first_epoch: Epoch(0x0043_0000),
        seal_chunks: vec![ChunkIndex(0x44), ChunkIndex(0x45)],
        floor_number: 0x46_0000_0001,
        floor_hash: 0x4748_494a_4b4c_4d4e,
        durable_number: 0x46_0000_0002,
        cut: Some(0x46_0000_0003),
        logs: vec![log(0x51, 0x60), log(0x52, 0x70)],
    }
}

pub fn meta() -> SegmentMeta {
    SegmentMeta {
        id: SEGMENT,
        run: Epoch(0x71),
        ranges: vec![BlockRange::new(100, 3), BlockRange::new(200, 4)],
        mirror: vec![BlockRange::new(300, 7)],
        len_bytes: 7 * BLOCK_SIZE as u64,
        first: Key::fs(Ino(1), 1, 0, 0, 0),
        last: Key::fs(Ino(2), 3, 4, 5, 6),
        entries: 0x72,
        tombstones: 0x73,
        range_tombstones: 0x74,
        min_epoch: Epoch(0x75),
        max_epoch: Epoch(0x76),
        data_blocks: 2,
        filter: Place { at_blocks: 3, len_blocks: 1 },
        index: Place { at_blocks: 4, len_blocks: 1 },
        tombstone_index: Place { at_blocks: 5, len_blocks: 1 },
        checksum: 0x7778_797a,
    }
}

/// One edit of each kind, in the order of their codes, with its name in the document.
pub fn edits() -> Vec<(&'static str, ManifestEdit)> {
    let (shard, term) = (ShardId(0x81), Term(0x82));
    vec![
        ("Term", ManifestEdit::Term(term)),
        ("NextIds", ManifestEdit::NextIds { segment: SegmentId(0x83), log: LogId(0x84) }),
        ("Base", ManifestEdit::Base { number: 0x85, hash: 0x86, epoch: Epoch(0x87) }),
        ("Chunks", ManifestEdit::Chunks { first: ChunkIndex(0x88), count: 0x89, used_for: ChunkUse::Data(0x8a) }),
        ("Shard", ManifestEdit::Shard { id: shard, first_bucket: 3, last_bucket: 4, flushed_through: Epoch(0x8b) }),
        ("FlushedThrough", ManifestEdit::FlushedThrough { shard, epoch: Epoch(0x8c) }),
        ("SegmentAdd", ManifestEdit::SegmentAdd { shard, level: 5, meta: meta() }),
        ("SegmentRemove", ManifestEdit::SegmentRemove { shard, segment: SegmentId(0x8d) }),
        ("Run", ManifestEdit::Run(run())),
        ("SealFloor", ManifestEdit::SealFloor { term, number: 0x8e, hash: 0x8f, durable_number: 0x90 }),
        ("LogFloor", ManifestEdit::LogFloor { log: LogId(0x91), place: 0x92 }),
        ("Cut", ManifestEdit::Cut { term, number: 0x93 }),
        ("RunDrop", ManifestEdit::RunDrop { term }),
    ]
}

pub const RECORD_GENERATION: u64 = 0x9495;
pub const RECORD_SEQUENCE: u64 = 0x9697_9899;
pub const RECORD_PREV: u64 = 0x9a9b_9c9d_9e9f_a0a1;

/// Edits that came after the first golden images, and need a feature bit.
pub fn later_edits() -> Vec<(&'static str, ManifestEdit)> {
    vec![("Split", ManifestEdit::Split { shard: ShardId(0x0102_0304), at: 0x80, new: ShardId(0x0506_0708) })]
}

pub fn manifest_record(edits: &[ManifestEdit]) -> Vec<u8> {
    let body = RecordBody::new(RECORD_SEQUENCE, RECORD_PREV, edits);
    let mut out = vec![0; body.padded_len()];
    body.finish(&mut out, RECORD_AT, &FSID, RECORD_GENERATION);
    out
}

pub fn part_place() -> PartPlace {
    PartPlace { log: LogId(0xb1), epoch: Epoch(0xb2b3), term: Term(0xb4), place: 0x00b5_b6b7, addr: BlockAddr(0xb8b9) }
}

pub fn records() -> Vec<(&'static str, Record)> {
    let key = Key::fs(Ino(0x1122), 1, 2, 3, 4);
    vec![
        ("Put", Record::Put { key, value: Bytes::from_static(b"value") }),
        ("Delete", Record::Delete { key }),
        ("DeleteRange", Record::DeleteRange { range: KeyRange::of_inode(Ino(0x3344)) }),
    ]
}

pub fn part(records: &[Record]) -> Vec<u8> {
    let mut builder = PartBuilder::default();
    records.iter().for_each(|r| builder.push(r));
    let mut out = vec![0; builder.padded_len()];
    builder.finish(&mut out, &part_place(), &FSID);
    out
}

pub const SLOT: Slot = Slot(11);

/// Every event with values of its own.
pub fn slot_block() -> SlotBlock {
    let mut block = SlotBlock::new(SLOT);
    for (n, kind) in (1u64..).zip(EventKind::ALL) {
        let process =
            ProcessIdentity { pid: 0x0101 * n as u32, boot_id: [0x10 + n as u8; 16], start_ticks: 0x2000 + n };
        let vote = (kind == EventKind::Term).then_some(Slot(14));
        let (rid, term) = (Rid(0x3132_3334_0000 + n), Term(0x4100 + 16 * n));
        block.set(kind, SlotEvent { write: 0x5100 + n, rid, term, vote, time_ms: 0x0198_6162_0000 + n, process });
    }
    block
}

pub fn seal() -> Seal {
    let part = |n: u64| PartRef {
        log: LogId(0xc1 + n),
        place: 0xc200 + n,
        addr: BlockAddr(0x00c3_0000 + n),
        len_blocks: 0xc4,
        crc: 0xc5c6_c7c8,
    };
    Seal {
        term: Term(0xc9),
        number: 0xcacb,
        epoch: Epoch(0xcccd),
        prev_hash: 0xcecf_d0d1_d2d3_d4d5,
        durable_number: 0xd6d7,
        parts: vec![part(0), part(1)],
        new_data: vec![BlockRange::new(0x00d8_0000, 0xd9), BlockRange::new(0x00da_0000, 0xdb)],
    }
}

fn segment_frame(kind: BlockKind, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; segment_block::block_len(payload.len())];
    out[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
    segment_block::seal(&mut out, kind, payload.len(), SEGMENT, BLOCK_AT);
    out
}

fn payload(mut writer: EntryWriter) -> Vec<u8> {
    let mut out = vec![0; writer.payload_len()];
    writer.finish_into(&mut out);
    out
}

/// What a data block holds: key, epoch, value.
pub fn entries() -> Vec<(Key, Epoch, Option<Vec<u8>>)> {
    let key = |second, third| Key::fs(Ino(0x0405), 3, second, third, 0);
    vec![
        (key(1, 0), Epoch::NONE, Some(b"first".to_vec())),
        (key(1, 2), Epoch(300), None),
        (key(1, 2), Epoch::NONE, Some(Vec::new())),
        (Key::MAX, Epoch::NONE, Some(vec![7; 200])),
    ]
}

pub fn data_payload() -> Vec<u8> {
    let mut writer = EntryWriter::new(3);
    entries().iter().for_each(|(key, epoch, value)| writer.add(key, *epoch, value.as_deref()));
    payload(writer)
}

pub fn tombstone_range() -> (KeyRange, Vec<Epoch>) {
    (KeyRange::of_inode(Ino(0x0607)), vec![Epoch(900), Epoch::NONE])
}

pub fn tombstone_payload() -> Vec<u8> {
    let (range, epochs) = tombstone_range();
    let mut value = Vec::new();
    entry::put_range_value(&mut value, &range.first, &range.last, &epochs);
    let mut writer = EntryWriter::new(16);
    writer.add(&range.last, Epoch::NONE, Some(&value));
    payload(writer)
}

pub const INDEX_PLACE: Place = Place { at_blocks: 300, len_blocks: 2 };

pub fn index_payload() -> Vec<u8> {
    let mut value = Vec::new();
    entry::put_index_value(&mut value, INDEX_PLACE.at_blocks, INDEX_PLACE.len_blocks);
    let mut writer = EntryWriter::new(8);
    writer.add(&Key::fs(Ino(0x0809), 1, 0, 0, 0), Epoch::NONE, Some(&value));
    payload(writer)
}

/// Prefixes in the sampled filter page.
pub fn filter_keys() -> Vec<Key> {
    (1..=5).map(|n| Key::fs(Ino(n), 1, 0, 0, 0)).collect()
}

pub fn filter_payload() -> Vec<u8> {
    let mut page = vec![0; filter::PAGE_PAYLOAD];
    filter_keys().iter().for_each(|key| filter::insert(&mut page, filter::prefix_hash(key)));
    page
}

pub fn footer_payload() -> Vec<u8> {
    let mut out = Vec::new();
    SegmentMeta { ranges: Vec::new(), mirror: Vec::new(), checksum: 0, ..meta() }.encode(&mut out);
    out
}

pub fn bitmap() -> Bitmap {
    let mut bitmap = Bitmap::default();
    [0, 9, 64, 2047].into_iter().for_each(|bit| bitmap.set(bit, true));
    bitmap
}

pub fn owners() -> Owners {
    let mut owners = Owners::default();
    owners.add(3, 200, 1);
    owners.add(10, 1, 1);
    owners
}

pub fn inode() -> Inode {
    let time = |n: i64| Timestamp { secs: -n, nanos: n as u32 + 1 };
    Inode {
        size: 0xe1e2_e3e4,
        mode: 0o100_640,
        nlink: 0xe5,
        uid: 0xe6,
        gid: 0xe7,
        rdev: 0xe8,
        flags: 0xe9,
        atime: time(0x1001),
        mtime: time(0x2001),
        ctime: time(0x3001),
        crtime: time(0x4001),
        meta_seq: 0xea,
        data_seq: 0xeb,
        data_version: 0xec,
        online_blocks: 0xed,
        offline_blocks: 0xee,
        next_pos: 0xef,
        next_xattr_id: 0xf0,
        project: 0xf1,
    }
}

pub fn dirent() -> Dirent {
    Dirent { ino: Ino(0xf2f3), pos: 0xf4f5, kind: FileKind::Regular, name: Bytes::from_static(b"a name") }
}

pub fn extent() -> Extent {
    let header = ExtentHeader { start: BlockAddr(0xf6f7), len_blocks: 3, offline: false };
    Extent { header, checksums: vec![0x0102_0304, 0x0506_0708, 0x090a_0b0c] }
}

pub fn offline_extent() -> Extent {
    let header = ExtentHeader { start: BlockAddr::NONE, len_blocks: 0x1234, offline: true };
    Extent { header, checksums: Vec::new() }
}

pub const XATTR_NAME: &[u8] = b"user.tag";

pub fn xattr_value() -> Vec<u8> {
    (0..1030u32).map(|i| i as u8).collect()
}

pub fn last_batch() -> LastBatch {
    LastBatch { number: BatchNo(0x0a0b), epoch: Epoch(0x0c0d) }
}

pub fn identity() -> ClientIdentity {
    let process = ProcessId { boot: [0x61; 16], namespace: 0x6263_6465, pid: 0x6667, start: 0x6869_6a6b };
    ClientIdentity {
        principal: Principal::Certificate("client/gw-1".into()),
        origin: Origin::Process(process),
        worker: None,
    }
}

pub fn key() -> Key {
    Key::new(Bucket(0x11), Zone::Fs, 0x1213_1415_1617_1819, 0x21, 0x2223_2425_2627_2829, 0x3132_3334_3536_3738, 0x41)
}

pub const RID: Rid = Rid(0x5152_5354_5556_5758);

/// Every golden image by its name.
pub fn images() -> Vec<(&'static str, Vec<u8>)> {
    let edits: Vec<ManifestEdit> = edits().into_iter().map(|(_, edit)| edit).collect();
    let later: Vec<ManifestEdit> = later_edits().into_iter().map(|(_, edit)| edit).collect();
    let records: Vec<Record> = records().into_iter().map(|(_, record)| record).collect();
    let mut segment_meta = Vec::new();
    meta().encode(&mut segment_meta);
    let mut parts = xattr::encode(XATTR_NAME, &xattr_value()).into_iter().map(|part| part.to_vec());
    vec![
        ("superblock", superblock().encode(SUPERBLOCK_AT).to_vec()),
        ("manifest_record", manifest_record(&edits)),
        ("manifest_record_split", manifest_record(&later)),
        ("part", part(&records)),
        ("seal", seal().encode(SEAL_AT, &FSID).0.to_vec()),
        ("quorum_block", slot_block().encode(&FSID).to_vec()),
        ("segment_description", segment_meta),
        ("segment_data", segment_frame(BlockKind::Data, &data_payload())),
        ("segment_tombstones", segment_frame(BlockKind::Tombstones, &tombstone_payload())),
        ("segment_filter", segment_frame(BlockKind::Filter, &filter_payload())),
        ("segment_index", segment_frame(BlockKind::Index, &index_payload())),
        ("segment_footer", segment_frame(BlockKind::Footer, &footer_payload())),
        ("key", key().0.to_vec()),
        ("inode", inode().encode().to_vec()),
        ("dirent", dirent().encode().to_vec()),
        ("extent", extent().encode().to_vec()),
        ("extent_offline", offline_extent().encode().to_vec()),
        ("xattr_first", parts.next().unwrap_or_default()),
        ("xattr_second", parts.next().unwrap_or_default()),
        ("bitmap", bitmap().encode().to_vec()),
        ("owners", owners().encode().to_vec()),
        ("last_batch", last_batch().encode().to_vec()),
        ("client_identity", identity().encode().to_vec()),
        ("counter", vellum_format::system::encode_counter(0x0e0f_1011).to_vec()),
    ]
}

pub fn image(name: &str) -> Vec<u8> {
    images().into_iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no image {name}")).1
}

/// The body of a structure that stands on whole blocks.
pub fn body(block: &[u8]) -> &[u8] {
    let len = u32::from_le_bytes([block[12], block[13], block[14], block[15]]) as usize;
    &block[BLOCK_HEADER..BLOCK_HEADER + len]
}

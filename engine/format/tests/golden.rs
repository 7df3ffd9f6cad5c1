//! Golden images: the bytes of format version 1, as they were when it was fixed. Today's code must write them again and
//! read them. A failure means that the durable format changed: that needs a new version, not a new image.
//!
//! A file holds `length N`, then lines of an offset and up to 32 bytes in hex; lines of zeros are left out.
//! `VELLUM_GOLDEN=write` writes the images that are missing, never one that is there; run the tests once more then.

mod common;

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use common::*;
use vellum_base::{Epoch, Key};
use vellum_format::item::xattr;
use vellum_format::log::{records as read_records, verify_part};
use vellum_format::segment::entry::{Entries, get_index_value, get_range_value};
use vellum_format::segment::{BlockKind, block, filter};
use vellum_format::system::{LastBatch, decode_counter};
use vellum_format::{
    Bitmap, ClientIdentity, Dirent, Extent, Inode, ManifestRecord, Owners, Seal, SegmentMeta, SlotBlock, Superblock,
};

const LINE: usize = 32;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"))
}

/// Of versions that are read and not written any more.
const OLD: [&str; 1] = ["seal_version_1"];

fn to_text(bytes: &[u8]) -> String {
    let mut out = format!("length {}\n", bytes.len());
    for (i, line) in bytes.chunks(LINE).enumerate().filter(|(_, line)| line.iter().any(|b| *b != 0)) {
        let _ = write!(out, "{:06x} ", i * LINE);
        line.iter().for_each(|b| write!(out, "{b:02x}").unwrap());
        out.push('\n');
    }
    out
}

fn golden(name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("golden image {name}: {e}"));
    let mut lines = text.lines();
    let len = lines.next().and_then(|l| l.strip_prefix("length ")).and_then(|n| n.parse().ok()).expect("a length");
    let mut out = vec![0u8; len];
    for line in lines {
        let (at, hex) = line.split_once(' ').expect("an offset and bytes");
        let at = usize::from_str_radix(at, 16).expect("an offset");
        for (i, pair) in hex.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).expect("hex");
            out[at + i] = u8::from_str_radix(pair, 16).expect("hex");
        }
    }
    out
}

#[test]
fn todays_code_writes_the_bytes_of_version_1() {
    let write = std::env::var("VELLUM_GOLDEN").is_ok_and(|v| v == "write");
    let images = images();
    for (name, bytes) in &images {
        if write && !path(name).exists() {
            std::fs::write(path(name), to_text(bytes)).unwrap();
        }
        let old = golden(name);
        let differs = old.iter().zip(bytes).position(|(a, b)| a != b);
        assert!(
            old == *bytes,
            "{name}: {} bytes now, {} then; the first difference is at {differs:?}",
            bytes.len(),
            old.len()
        );
    }
    let files = std::fs::read_dir(path("x").parent().unwrap()).unwrap().count();
    assert_eq!(files, images.len() + OLD.len(), "every file in tests/golden is an image that is read");
}

#[test]
fn todays_code_reads_the_whole_blocks_of_version_1() {
    assert_eq!(Superblock::decode(&golden("superblock"), SUPERBLOCK_AT), Ok(superblock()));

    let (record, _, len) = ManifestRecord::decode(&golden("manifest_record"), RECORD_AT, &FSID).unwrap();
    let place = (record.generation, record.sequence, record.prev_hash);
    assert_eq!(place, (RECORD_GENERATION, RECORD_SEQUENCE, RECORD_PREV));
    assert_eq!(record.edits, edits().into_iter().map(|(_, e)| e).collect::<Vec<_>>());
    assert_eq!(len, golden("manifest_record").len());
    let (split, ..) = ManifestRecord::decode(&golden("manifest_record_split"), RECORD_AT, &FSID).unwrap();
    assert_eq!(split.edits, later_edits().into_iter().map(|(_, e)| e).collect::<Vec<_>>());

    let part = golden("part");
    let body = Bytes::copy_from_slice(verify_part(&part, &part_place(), &FSID).unwrap());
    let found: Vec<_> = read_records(&body).collect::<Result<_, _>>().unwrap();
    assert_eq!(found, records().into_iter().map(|(_, r)| r).collect::<Vec<_>>());

    assert_eq!(Seal::decode(&golden("seal"), SEAL_AT, &FSID).unwrap().0, seal());
    let [seal_1] = OLD;
    assert_eq!(Seal::decode(&golden(seal_1), SEAL_AT, &FSID).unwrap().0, Seal { new_data: Vec::new(), ..seal() });
    assert_eq!(SlotBlock::decode(&golden("quorum_block"), SLOT, &FSID), Ok(slot_block()));
}

#[test]
fn todays_code_reads_the_segments_of_version_1() {
    let description = golden("segment_description");
    assert_eq!(SegmentMeta::decode(&description), Ok((meta(), &[][..])));

    let open = |name: &str, kind| {
        let block = golden(name);
        let (found, payload) = block::open(&block, SEGMENT, BLOCK_AT).unwrap();
        assert_eq!(found, kind, "{name}");
        payload.to_vec()
    };
    let data = open("segment_data", BlockKind::Data);
    let list = Entries::new(&data).unwrap();
    let (mut at, mut before, mut found) = (0, Key::MIN, Vec::new());
    while let Some(e) = list.decode(at, &before).unwrap() {
        found.push((e.key, e.epoch, e.value.map(|v| list.value(&v).to_vec())));
        (at, before) = (e.next_at, e.key);
    }
    assert_eq!(found, entries());

    let tombstones = open("segment_tombstones", BlockKind::Tombstones);
    let list = Entries::new(&tombstones).unwrap();
    let e = list.first().unwrap().unwrap();
    let (range, epochs) = tombstone_range();
    let mut found = Vec::<Epoch>::new();
    assert_eq!(get_range_value(list.value(&e.value.unwrap()), &e.key, &mut found), Some(range.first));
    assert_eq!((e.key, found), (range.last, epochs));

    let index = open("segment_index", BlockKind::Index);
    let list = Entries::new(&index).unwrap();
    let e = list.first().unwrap().unwrap();
    assert_eq!(get_index_value(list.value(&e.value.unwrap())), Some(INDEX_PLACE));

    let page = open("segment_filter", BlockKind::Filter);
    assert!(filter_keys().iter().all(|key| filter::may_contain(&page, filter::prefix_hash(key))));

    assert_eq!(open("segment_footer", BlockKind::Footer), footer_payload());
}

#[test]
fn todays_code_reads_the_items_of_version_1() {
    let bytes = |name| Bytes::from(golden(name));
    assert_eq!(golden("key"), key().0);
    assert_eq!(Inode::decode(&golden("inode")), Ok(inode()));
    assert_eq!(Dirent::decode(&bytes("dirent")), Ok(dirent()));
    assert_eq!(Extent::decode(&golden("extent")), Ok(extent()));
    assert_eq!(Extent::decode(&golden("extent_offline")), Ok(offline_extent()));
    assert_eq!(Bitmap::decode(&golden("bitmap")), Ok(bitmap()));
    assert_eq!(Owners::decode(&golden("owners")), Ok(owners()));
    assert_eq!(LastBatch::decode(&golden("last_batch")), Ok(last_batch()));
    assert_eq!(ClientIdentity::decode(&golden("client_identity")), Ok(identity()));
    assert_eq!(decode_counter(&golden("counter")), Ok(0x0e0f_1011));
    let first = xattr::decode_first(&bytes("xattr_first")).unwrap();
    assert_eq!((&first.name[..], first.value_len, first.parts()), (XATTR_NAME, 1030, 2));
    assert_eq!([first.value.to_vec(), golden("xattr_second")].concat(), xattr_value());
}

//! Holds `docs/FORMAT.md` against the code: its tables are the decoder. Each table of a structure must cover the sample
//! without gaps and find every field's value at the offset, of the size and in the byte order that it says; tables of
//! codes and constants must name all that the code knows, and nothing else.

mod common;

use std::collections::BTreeMap;

use common::table::*;
use common::*;
use vellum_base::{BLOCK_SIZE, Bucket, ChunkIndex, Ino, Key, Zone, crc32c, crc32c_seeded};
use vellum_format::block::{self, BLOCK_HEADER, fsid_tag};
use vellum_format::item::{self, IndexKind, ItemKind, xattr};
use vellum_format::segment::{self, entry, filter};
use vellum_format::{
    Bitmap, ChunkUse, Dirent, Extent, FileKind, Inode, ManifestEdit, Origin, Orphan, Owners, Record, log, manifest,
    name_hash, quorum, seal, superblock as sb, system,
};

#[test]
fn constants_are_those_of_the_code() {
    let known = sb::KNOWN;
    let want: BTreeMap<&str, u64> = BTreeMap::from([
        ("BLOCK_SIZE", BLOCK_SIZE as u64),
        ("FORMAT_VERSION", sb::FORMAT_VERSION.into()),
        ("SUPERBLOCK_VERSION", sb::SUPERBLOCK_VERSION.into()),
        ("MANIFEST_VERSION", manifest::MANIFEST_VERSION.into()),
        ("PART_VERSION", log::PART_VERSION.into()),
        ("SEAL_VERSION", seal::SEAL_VERSION.into()),
        ("QUORUM_VERSION", quorum::QUORUM_VERSION.into()),
        ("QUORUM_MAGIC", quorum::QUORUM_MAGIC.into()),
        ("SECTOR_BYTES", quorum::SECTOR_BYTES as u64),
        ("EVENTS", quorum::EVENTS as u64),
        ("Term::LIMIT", vellum_base::Term::LIMIT.0),
        ("MAX_COUNTED", vellum_format::codec::MAX_COUNTED),
        ("SEGMENT_BLOCK_VERSION", segment::block::VERSION.into()),
        ("META_VERSION", segment::META_VERSION.into()),
        ("INODE_VERSION", item::INODE_VERSION.into()),
        ("IDENTITY_VERSION", vellum_format::identity::IDENTITY_VERSION.into()),
        ("MAGIC", block::MAGIC.into()),
        ("SEGMENT_MAGIC", segment::block::MAGIC.into()),
        ("KNOWN.incompatible", known.incompatible),
        ("KNOWN.read_only", known.read_only),
        ("KNOWN.compatible", known.compatible),
        ("BLOCK_HEADER", BLOCK_HEADER as u64),
        ("PART_HEADER", log::PART_HEADER as u64),
        ("SEAL_HEADER", seal::SEAL_HEADER as u64),
        ("PART_REF", seal::PART_REF as u64),
        ("DATA_RUN", seal::DATA_RUN as u64),
        ("MAX_NEW_DATA", seal::MAX_NEW_DATA as u64),
        ("MAX_PARTS", seal::MAX_PARTS as u64),
        ("MAX_SLOTS", sb::MAX_SLOTS as u64),
        ("SLOT_BYTES", sb::SLOT_BYTES as u64),
        ("MAX_LEVELS", manifest::MAX_LEVELS.into()),
        ("SEGMENT_HEADER", segment::block::HEADER_LEN as u64),
        ("SEGMENT_CRC_FROM", segment::block::CRC_FROM as u64),
        ("MAX_BLOCK_BYTES", segment::block::MAX_BLOCK_BYTES as u64),
        ("Key::LEN", Key::LEN as u64),
        ("Inode::LEN", Inode::LEN as u64),
        ("MAX_VALUE", item::MAX_VALUE as u64),
        ("MAX_INLINE", item::MAX_INLINE as u64),
        ("PART_BYTES", item::PART_BYTES as u64),
        ("MAX_SYMLINK", item::MAX_SYMLINK as u64),
        ("MAX_NAME", item::MAX_NAME as u64),
        ("MAX_XATTR", xattr::MAX_XATTR as u64),
        ("MAX_EXTENT_BLOCKS", item::MAX_EXTENT_BLOCKS.into()),
        ("FLAG_OFFLINE", item::FLAG_OFFLINE.into()),
        ("BITMAP_BLOCKS", vellum_format::bitmap::BITMAP_BLOCKS.into()),
        ("BITMAP_BYTES", vellum_format::bitmap::BITMAP_BYTES as u64),
        ("OWNERS_BLOCKS", vellum_format::owners::OWNERS_BLOCKS.into()),
        ("OWNERS_RUN", vellum_format::owners::OWNERS_RUN as u64),
        ("OWNERS_BYTES", vellum_format::owners::OWNERS_BYTES as u64),
        ("SHARED_BLOCKS", sb::SHARED_BLOCKS.into()),
        ("SLOT_BITS", Ino::SLOT_BITS.into()),
        ("PREFIX_LEN", filter::PREFIX_LEN as u64),
        ("OWNER_LEN", filter::OWNER_LEN as u64),
        ("LINE_BYTES", filter::LINE_BYTES as u64),
        ("LINES_PER_PAGE", filter::LINES_PER_PAGE),
        ("PROBES", filter::PROBES.into()),
        ("BITS_PER_KEY", filter::BITS_PER_KEY),
        ("PAGE_PAYLOAD", filter::PAGE_PAYLOAD as u64),
    ]);
    let rows = table("constants").rows;
    for row in &rows {
        let code = want.get(&row[0][..]).unwrap_or_else(|| panic!("the code has no {}", row[0]));
        assert_eq!(parse_int(&row[1]), i128::from(*code), "{}", row[0]);
    }
    assert_eq!(rows.len(), want.len(), "a constant is missing in the document");
}

/// The store is not to be known here; its source is compared as text.
#[test]
fn the_stores_constants_stand_in_its_source() {
    for row in table("store constants").rows {
        let source = std::fs::read_to_string(root().join("engine/store/src").join(&row[0])).expect(&row[0]);
        assert!(source.lines().any(|l| l.trim() == row[1]), "{}: no line {:?}", row[0], row[1]);
    }
}

#[test]
fn hashes_are_those_of_the_code() {
    let want = [
        ("chain_hash", block::chain_hash(b"vellum")),
        ("prefix_hash", filter::prefix_hash(&key())),
        ("owner_hash", filter::owner_hash(&key())),
        ("name_hash", name_hash(b"vellum")),
        ("crc32c", crc32c(b"123456789").into()),
        ("crc32c_seeded", crc32c_seeded(1, 2, b"vellum").into()),
    ];
    let rows = table("hash vectors").rows;
    assert_eq!(rows.len(), want.len());
    for (row, (name, value)) in rows.iter().zip(want) {
        assert_eq!((&row[0][..], parse_int(&row[2])), (name, i128::from(value)), "{name} is {value:#x}");
    }
}

#[test]
fn codes_are_those_of_the_code() {
    let named = |code: i128, name: &dyn std::fmt::Debug| (code, format!("{name:?}"));
    use block::BlockKind as B;
    let kinds = [B::Superblock, B::Manifest, B::Part, B::Seal];
    check_codes("block kinds", &kinds.map(|k| named(k as i128, &k)));
    use segment::BlockKind as S;
    let kinds = [S::Data, S::Tombstones, S::Filter, S::Index, S::Footer];
    check_codes("segment block kinds", &kinds.map(|k| named(k as i128, &k)));
    let zones: Vec<_> = (0..=255).filter_map(|z| Zone::from_u8(z).map(|zone| named(z.into(), &zone))).collect();
    check_codes("zones", &zones);
    let kinds: Vec<_> = (0..=255).filter_map(|k| FileKind::from_dtype(k).map(|kind| named(k.into(), &kind))).collect();
    check_codes("file kinds", &kinds);
    let flags = [
        (entry::SHARED_MASK, "SHARED_MASK"),
        (entry::TOMBSTONE, "TOMBSTONE"),
        (entry::HAS_EPOCH, "HAS_EPOCH"),
        (entry::FILL_FF, "FILL_FF"),
    ];
    check_codes("entry flags", &flags.map(|(v, name)| (v.into(), name.to_string())));
    let uses = [
        (ChunkUse::Free, "Free"),
        (ChunkUse::Fixed, "Fixed"),
        (ChunkUse::Log, "Log"),
        (ChunkUse::SealLog, "SealLog"),
        (ChunkUse::Segment, "Segment"),
        (ChunkUse::Data(7), "Data"),
    ];
    // The code stands after kind, first and count of the edit.
    let code = |used_for| edit_bytes(&ManifestEdit::Chunks { first: ChunkIndex(1), count: 1, used_for })[9];
    check_codes("chunk uses", &uses.map(|(used, name)| (code(used).into(), name.to_string())));
}

#[test]
fn the_block_header_is_as_described() {
    let images = [
        ("superblock", 1, SUPERBLOCK_AT, superblock().generation),
        ("manifest_record", 2, RECORD_AT, RECORD_GENERATION),
        ("part", 3, part_place().addr, part_place().term.0),
        ("seal", 4, SEAL_AT, seal().term.0),
    ];
    for (name, kind, addr, generation) in images {
        let bytes = image(name);
        let tag = fsid_tag(&FSID);
        assert_eq!(tag.to_le_bytes(), FSID.0[..8]);
        let want = [
            ("crc", int(crc32c_seeded(addr.0, tag, &bytes[4..]))),
            ("magic", int(block::MAGIC)),
            ("kind", int(kind)),
            ("version", int(if name == "seal" { seal::SEAL_VERSION } else { 1 })),
            ("body_len", int(body(&bytes).len() as u64)),
            ("addr", int(addr.0)),
            ("fsid", int(tag)),
            ("generation", int(generation)),
        ];
        check("block header", 0, &bytes[..BLOCK_HEADER], &want);
        assert!(bytes[BLOCK_HEADER + body(&bytes).len()..].iter().all(|b| *b == 0), "{name}: zeros at the end");
    }
}

fn edit_bytes(edit: &ManifestEdit) -> Vec<u8> {
    body(&manifest_record(std::slice::from_ref(edit)))[20..].to_vec()
}

#[test]
fn the_superblock_is_as_described() {
    let (bytes, sb) = (image("superblock"), superblock());
    let area = |i: usize, copy: usize| range(sb.manifest[i][copy].start.0, sb.manifest[i][copy].len_blocks);
    let slots = &body(&bytes)[141..];
    let want = [
        ("fsid", raw(&FSID.0)),
        ("format_version", int(sb.format_version)),
        ("incompatible", int(sb.features.incompatible)),
        ("read_only", int(sb.features.read_only)),
        ("compatible", int(sb.features.compatible)),
        ("blocks", int(sb.blocks)),
        ("chunk_blocks", int(sb.chunk_blocks)),
        ("copy", int(sb.copy.0)),
        ("slots_area", range(sb.slots_area.start.0, sb.slots_area.len_blocks)),
        ("manifest_a0", area(0, 0)),
        ("manifest_a1", area(0, 1)),
        ("manifest_b0", area(1, 0)),
        ("manifest_b1", area(1, 1)),
        ("manifest_generation", int(sb.manifest_generation)),
        ("metadata_copies", int(sb.metadata_copies)),
        ("created", int(sb.created)),
        ("slots", raw(slots)),
    ];
    check("superblock", 0, body(&bytes), &want);
    for (slot, text) in slots.chunks(sb::SLOT_BYTES).zip(&sb.slots) {
        let mut field = text.clone();
        field.resize(63, 0);
        check("slot", 0, slot, &[("len", int(text.len() as i128)), ("text", raw(&field))]);
    }
    let area = &sb.manifest[0][1];
    let want = [("start", int(area.start.0)), ("len_blocks", int(area.len_blocks))];
    check("range", 0, &body(&bytes)[88..100], &want);
}

#[test]
fn quorum_blocks_are_as_described() {
    use quorum::{EventKind, SECTOR_BYTES};
    check_codes("quorum events", &EventKind::ALL.map(|k| (k as i128, format!("{k:?}"))));
    let (bytes, block) = (image("quorum_block"), slot_block());
    let (sectors, rest) = bytes.split_at(EventKind::ALL.len() * SECTOR_BYTES);
    for (kind, sector) in EventKind::ALL.into_iter().zip(sectors.chunks(SECTOR_BYTES)) {
        let event = block.get(kind).unwrap();
        let want = [
            ("crc", int(crc32c_seeded(SLOT.0.into(), fsid_tag(&FSID), &sector[4..]))),
            ("magic", int(quorum::QUORUM_MAGIC)),
            ("version", int(quorum::QUORUM_VERSION)),
            ("kind", int(kind as u8)),
            ("slot", int(SLOT.0)),
            ("pid", int(event.process.pid)),
            ("fsid", raw(&FSID.0)),
            ("write", int(event.write)),
            ("rid", int(event.rid.0)),
            ("term", int(event.term.0)),
            ("time_ms", int(event.time_ms)),
            ("start_ticks", int(event.process.start_ticks)),
            ("boot_id", raw(&event.process.boot_id)),
            ("vote", int(event.vote.map_or(0, |slot| slot.0 + 1))),
            ("padding", raw(&[0; SECTOR_BYTES - 89])),
        ];
        check("quorum event", 0, sector, &want);
    }
    assert!(rest.iter().all(|b| *b == 0));
}

#[test]
fn the_manifest_is_as_described() {
    let bytes = image("manifest_record");
    let edits = edits();
    let all: Vec<u8> = edits.iter().flat_map(|(_, e)| edit_bytes(e)).collect();
    let want = [
        ("sequence", int(RECORD_SEQUENCE)),
        ("prev_hash", int(RECORD_PREV)),
        ("count", int(edits.len() as i128)),
        ("edits", raw(&all)),
    ];
    check("manifest record", 0, body(&bytes), &want);

    let run = run();
    let run_bytes = edit_bytes(&ManifestEdit::Run(run.clone()))[1..].to_vec();
    let n = run.seal_chunks.len();
    let logs = &run_bytes[64 + 4 * n..];
    let want = [
        ("term", int(run.term.0)),
        ("first_number", int(run.first_number)),
        ("first_epoch", int(run.first_epoch.0)),
        ("seal_chunk_count", int(n as i128)),
        ("seal_chunks", u32s(run.seal_chunks.iter().map(|c| c.0))),
        ("floor_number", int(run.floor_number)),
        ("floor_hash", int(run.floor_hash)),
        ("durable_number", int(run.durable_number)),
        ("cut", int(run.cut.unwrap())),
        ("log_count", int(run.logs.len() as i128)),
        ("logs", raw(logs)),
    ];
    check("run", n, &run_bytes, &want);
    for (log, bytes) in run.logs.iter().zip(logs.chunks(20 + 4 * 3)) {
        let want = [
            ("id", int(log.id.0)),
            ("floor", int(log.floor)),
            ("chunk_count", int(3)),
            ("chunks", u32s(log.chunks.iter().map(|c| c.0))),
        ];
        check("run log", 3, bytes, &want);
    }
    let open = edit_bytes(&ManifestEdit::Run(vellum_format::Run { cut: None, ..run }));
    assert_eq!(open[1 + 52 + 4 * n..][..8], [0xff; 8], "an undecided cut is all ones");
}

/// `a u64, b u8, c 28, d rest` as names and values of the bytes.
fn split(fields: &str, mut bytes: &[u8]) -> Vec<(String, Want)> {
    let mut out = Vec::new();
    for field in fields.split(", ") {
        let (name, kind) = field.split_once(' ').expect("a name and a type");
        let size = match kind {
            "u8" => 1,
            "u32" => 4,
            "u64" => 8,
            "rest" => bytes.len(),
            n => n.parse().expect("a size"),
        };
        let (head, rest) = bytes.split_at(size);
        out.push((name.to_string(), read(if kind.starts_with('u') { kind } else { "bytes" }, head, fields)));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "{fields}: {} bytes are left", bytes.len());
    out
}

/// Name, bytes, fields.
type Sample<'a> = (&'a str, Vec<u8>, Vec<(&'a str, Want)>);

#[test]
fn edits_and_records_are_as_described() {
    let show = |fields: &[(&str, Want)]| fields.iter().map(|(f, w)| format!("{f}={w:x?}")).collect::<Vec<_>>();
    let compare = |name: &str, samples: Vec<Sample<'_>>| {
        let rows = table(name).rows;
        assert_eq!(rows.len(), samples.len(), "table `{name}`");
        for (row, (what, bytes, want)) in rows.iter().zip(samples) {
            assert_eq!((parse_int(&row[0]), &row[1][..]), (bytes[0].into(), what), "table `{name}`");
            let found = split(&row[2], &bytes[1..]);
            let found: Vec<(&str, Want)> = found.iter().map(|(f, w)| (&f[..], w.clone())).collect();
            assert_eq!(show(&found), show(&want), "table `{name}`, {what}");
        }
    };
    let all = edits().into_iter().chain(later_edits());
    let samples = all.map(|(name, edit)| (name, edit_bytes(&edit), edit_fields(&edit))).collect();
    compare("edits", samples);
    let samples = records()
        .into_iter()
        .map(|(name, record)| {
            let image = part(std::slice::from_ref(&record));
            (name, body(&image)[log::PART_HEADER..].to_vec(), record_fields(&record))
        })
        .collect();
    compare("records", samples);
}

/// No wildcard: a new edit has to be described.
fn edit_fields(edit: &ManifestEdit) -> Vec<(&'static str, Want)> {
    match edit {
        ManifestEdit::Term(term) | ManifestEdit::RunDrop { term } => vec![("term", int(term.0))],
        ManifestEdit::NextIds { segment, log } => vec![("segment", int(segment.0)), ("log", int(log.0))],
        ManifestEdit::Base { number, hash, epoch } => {
            vec![("number", int(*number)), ("hash", int(*hash)), ("epoch", int(epoch.0))]
        }
        ManifestEdit::Chunks { first, count, used_for } => {
            let ChunkUse::Data(bucket) = used_for else { panic!("the sample is of data") };
            vec![("first", int(first.0)), ("count", int(*count)), ("code", int(5)), ("bucket", int(*bucket))]
        }
        ManifestEdit::Shard { id, first_bucket, last_bucket, flushed_through } => vec![
            ("shard", int(id.0)),
            ("first_bucket", int(*first_bucket)),
            ("last_bucket", int(*last_bucket)),
            ("flushed_through", int(flushed_through.0)),
        ],
        ManifestEdit::FlushedThrough { shard, epoch } => vec![("shard", int(shard.0)), ("epoch", int(epoch.0))],
        ManifestEdit::SegmentAdd { shard, level, .. } => {
            vec![("shard", int(shard.0)), ("level", int(*level)), ("description", raw(&image("segment_description")))]
        }
        ManifestEdit::SegmentRemove { shard, segment } => vec![("shard", int(shard.0)), ("segment", int(segment.0))],
        ManifestEdit::Run(_) => vec![("run", raw(&edit_bytes(edit)[1..]))], // described by its own table
        ManifestEdit::SealFloor { term, number, hash, durable_number } => vec![
            ("term", int(term.0)),
            ("number", int(*number)),
            ("hash", int(*hash)),
            ("durable_number", int(*durable_number)),
        ],
        ManifestEdit::LogFloor { log, place } => vec![("log", int(log.0)), ("place", int(*place))],
        ManifestEdit::Cut { term, number } => vec![("term", int(term.0)), ("number", int(*number))],
        ManifestEdit::Split { shard, at, new } => {
            vec![("shard", int(shard.0)), ("at", int(*at)), ("new", int(new.0))]
        }
    }
}

fn record_fields(record: &Record) -> Vec<(&'static str, Want)> {
    match record {
        Record::Put { key, value } => {
            vec![("key", raw(&key.0)), ("value_len", int(value.len() as i128)), ("value", raw(value))]
        }
        Record::Delete { key } => vec![("key", raw(&key.0))],
        Record::DeleteRange { range } => vec![("first", raw(&range.first.0)), ("last", raw(&range.last.0))],
    }
}

#[test]
fn parts_and_seals_are_as_described() {
    let (bytes, place) = (image("part"), part_place());
    let want = [
        ("log", int(place.log.0)),
        ("epoch", int(place.epoch.0)),
        ("place", int(place.place)),
        ("term", int(place.term.0)),
        ("records", raw(&body(&bytes)[log::PART_HEADER..])),
    ];
    check("part", 0, body(&bytes), &want);

    let (bytes, seal) = (image("seal"), seal());
    let parts = &body(&bytes)[seal::SEAL_HEADER..];
    let want = [
        ("number", int(seal.number)),
        ("epoch", int(seal.epoch.0)),
        ("prev_hash", int(seal.prev_hash)),
        ("durable_number", int(seal.durable_number)),
        ("count", int(seal.parts.len() as i128)),
        ("data_count", int(seal.new_data.len() as i128)),
        ("parts", raw(&parts[..seal.parts.len() * seal::PART_REF])),
        ("new_data", raw(&parts[seal.parts.len() * seal::PART_REF..])),
    ];
    check("seal", seal.parts.len(), body(&bytes), &want);
    for (part, bytes) in seal.parts.iter().zip(parts.chunks(seal::PART_REF)) {
        let want = [
            ("log", int(part.log.0)),
            ("place", int(part.place)),
            ("addr", int(part.addr.0)),
            ("len_blocks", int(part.len_blocks)),
            ("crc", int(part.crc)),
        ];
        check("part reference", 0, bytes, &want);
    }
    for (run, bytes) in seal.new_data.iter().zip(parts[seal.parts.len() * seal::PART_REF..].chunks(seal::DATA_RUN)) {
        check("data run", 0, bytes, &[("addr", int(run.start.0 as i128)), ("len_blocks", int(run.len_blocks as i128))]);
    }
}

#[test]
fn segments_are_as_described() {
    let (bytes, meta) = (image("segment_description"), meta());
    let place = |p: vellum_format::Place| raw(&[p.at_blocks.to_le_bytes(), p.len_blocks.to_le_bytes()].concat());
    let runs: Vec<u8> = meta
        .ranges
        .iter()
        .chain(&meta.mirror)
        .flat_map(|r| [&r.start.0.to_le_bytes()[..], &r.len_blocks.to_le_bytes()].concat())
        .collect();
    let want = [
        ("version", int(segment::META_VERSION)),
        ("ranges", int(2)),
        ("mirror", int(1)),
        ("reserved", int(0)),
        ("checksum", int(meta.checksum)),
        ("data_blocks", int(meta.data_blocks)),
        ("id", int(meta.id.0)),
        ("run", int(meta.run.0)),
        ("len_bytes", int(meta.len_bytes)),
        ("entries", int(meta.entries)),
        ("tombstones", int(meta.tombstones)),
        ("range_tombstones", int(meta.range_tombstones)),
        ("min_epoch", int(meta.min_epoch.0)),
        ("max_epoch", int(meta.max_epoch.0)),
        ("filter", place(meta.filter)),
        ("index", place(meta.index)),
        ("tombstone_index", place(meta.tombstone_index)),
        ("first", raw(&meta.first.0)),
        ("last", raw(&meta.last.0)),
        ("runs", raw(&runs)),
    ];
    check("segment description", 3, &bytes, &want);
    let want = [("at_blocks", int(meta.index.at_blocks)), ("len_blocks", int(meta.index.len_blocks))];
    check("place", 0, &bytes[88..96], &want);

    let blocks = [
        ("segment_data", 1, data_payload()),
        ("segment_tombstones", 2, tombstone_payload()),
        ("segment_filter", 3, filter_payload()),
        ("segment_index", 4, index_payload()),
        ("segment_footer", 5, footer_payload()),
    ];
    for (name, kind, payload) in blocks {
        let block = image(name);
        let want = [
            ("magic", int(segment::block::MAGIC)),
            ("crc", int(crc32c_seeded(SEGMENT.0, BLOCK_AT, &block[8..]))),
            ("kind", int(kind)),
            ("version", int(segment::block::VERSION)),
            ("len_blocks", int((block.len() / BLOCK_SIZE) as i128)),
            ("payload_len", int(payload.len() as i128)),
        ];
        check("segment block header", 0, &block[..16], &want);
        assert_eq!(block[16..16 + payload.len()], payload[..], "{name}");
    }
    // Flags, suffix_len, value_len, suffix, value: the first entry of the data block, written out by hand.
    let first = &entries()[0].0.0[..19];
    let by_hand = [&[0, 19, 5][..], first, b"first"].concat();
    assert_eq!(data_payload()[..by_hand.len()], by_hand[..]);
}

#[test]
fn keys_are_as_described() {
    let k = key();
    let want = [
        ("bucket", int(k.bucket().0)),
        ("zone", int(k.0[1])),
        ("first", int(k.first())),
        ("kind", int(k.kind())),
        ("second", int(k.second())),
        ("third", int(k.third())),
        ("fourth", int(k.fourth())),
    ];
    check("key", 0, &k.0, &want);

    let (ino, dir, pos, name) = (Ino(0x0711), Ino(0x0822), 0x0933, &b"name"[..]);
    let keys = [
        ("inode", Inode::key(ino)),
        ("xattr", xattr::key(ino, name, 0x0a44, 3)),
        ("dirent", Dirent::key_by_name(dir, name, pos)),
        ("readdir", Dirent::key_by_pos(dir, pos)),
        ("backref", Dirent::key_backref(ino, dir, pos)),
        ("symlink", Key::fs(ino, ItemKind::Symlink as u8, 0, 0, 3)),
        ("inline", Key::fs(ino, ItemKind::Inline as u8, 0, 0, 0)),
        ("extent", Extent::key(ino, 0x0b50, 6)),
        ("orphan", Orphan::key(ino)),
        ("meta_seq", IndexKind::MetaSeq.key(0x0c66, ino)),
        ("data_seq", IndexKind::DataSeq.key(0x0c66, ino)),
        ("bitmap", Bitmap::key(Bucket(9), ChunkIndex(0x0d77), 0x0e88)),
        ("owners", Owners::key(Bucket(9), ChunkIndex(0x0d77), 0x0e88)),
        ("client", system::client_key(RID)),
        ("batch", system::batch_key(RID)),
        ("group", system::group_key(Bucket(9))),
        ("root", system::root_key(0x0f99)),
        ("scrub", system::scrub_key()),
    ];
    let word = |cell: &str| match cell {
        "ino" => i128::from(ino.0),
        "dir" => dir.0.into(),
        "hash" => name_hash(name).into(),
        "pos" => pos.into(),
        "id" => 0x0a44,
        "part" => 3,
        "last" => 0x0b50 + 5,
        "seq" => 0x0c66,
        "chunk" => 0x0d77,
        "index" => 0x0e88,
        "rid" => RID.0.into(),
        "group" => 0x0f99,
        number => parse_int(number),
    };
    let rows = table("item keys").rows;
    assert_eq!(rows.len(), keys.len());
    for (row, (item, key)) in rows.iter().zip(keys) {
        let described: Vec<i128> = row[1..7].iter().map(|cell| word(cell)).collect();
        let first = [i128::from(key.0[1]), key.kind().into(), key.first().into()];
        let rest = [key.second().into(), key.third().into(), key.fourth().into()];
        assert_eq!((&row[0][..], described), (item, [first, rest].concat()), "key of {item}");
    }
    let bucket = RID.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    assert_eq!(u64::from(system::client_key(RID).bucket().0), bucket);
}

#[test]
fn items_are_as_described() {
    let i = inode();
    let time = |t: vellum_format::Timestamp| raw(&[&t.secs.to_le_bytes()[..], &t.nanos.to_le_bytes()].concat());
    let want = [
        ("version", int(item::INODE_VERSION)),
        ("mode", int(i.mode)),
        ("nlink", int(i.nlink)),
        ("uid", int(i.uid)),
        ("gid", int(i.gid)),
        ("rdev", int(i.rdev)),
        ("flags", int(i.flags)),
        ("atime", time(i.atime)),
        ("mtime", time(i.mtime)),
        ("ctime", time(i.ctime)),
        ("crtime", time(i.crtime)),
        ("reserved", int(0)),
        ("size", int(i.size)),
        ("meta_seq", int(i.meta_seq)),
        ("data_seq", int(i.data_seq)),
        ("data_version", int(i.data_version)),
        ("online_blocks", int(i.online_blocks)),
        ("offline_blocks", int(i.offline_blocks)),
        ("next_pos", int(i.next_pos)),
        ("next_xattr_id", int(i.next_xattr_id)),
        ("project", int(i.project)),
    ];
    check("inode", 0, &image("inode"), &want);
    check("time", 0, &image("inode")[28..40], &[("secs", int(i.atime.secs)), ("nanos", int(i.atime.nanos))]);

    let d = dirent();
    let want = [("ino", int(d.ino.0)), ("pos", int(d.pos)), ("kind", int(d.kind as u8)), ("name", raw(&d.name))];
    check("dirent", 0, &image("dirent"), &want);

    let value = xattr_value();
    let want = [
        ("name_len", int(XATTR_NAME.len() as i128)),
        ("value_len", int(value.len() as i128)),
        ("name", raw(XATTR_NAME)),
        ("value", raw(&value[..item::PART_BYTES])),
    ];
    check("xattr", XATTR_NAME.len(), &image("xattr_first"), &want);
    assert_eq!(image("xattr_second"), value[item::PART_BYTES..]);

    for (name, e) in [("extent", extent()), ("extent_offline", offline_extent())] {
        let want = [
            ("start", int(e.header.start.0)),
            ("len_blocks", int(e.header.len_blocks)),
            ("flags", int(if e.header.offline { item::FLAG_OFFLINE } else { 0 })),
            ("checksums", u32s(e.checksums.iter().copied())),
        ];
        check("extent", e.checksums.len(), &image(name), &want);
    }

    let mut bits = vec![0u8; vellum_format::bitmap::BITMAP_BYTES];
    [0, 9, 64, 2047].into_iter().for_each(|bit| bits[bit / 8] |= 1 << (bit % 8));
    check("bitmap", 0, &image("bitmap"), &[("bits", raw(&bits))]);
    let counted = owners();
    let run = counted.runs()[0];
    let want = [("first", int(run.first)), ("len", int(run.len)), ("extra", int(run.extra))];
    check("owners", 0, &image("owners")[..8], &want);
    assert_eq!((counted.runs().len(), image("owners").len()), (3, 24));
    let last = last_batch();
    let want = [("number", int(last.number.0)), ("epoch", int(last.epoch.0))];
    check("last batch", 0, &image("last_batch"), &want);
    let scrub = system::LastScrub { ended_at_s: 0x0102_0304, problems: 0x0506, repaired: 0x0708 };
    let want =
        [("ended_at_s", int(scrub.ended_at_s)), ("problems", int(scrub.problems)), ("repaired", int(scrub.repaired))];
    check("last scrub", 0, &scrub.encode(), &want);
    assert_eq!(system::LastScrub::decode(&scrub.encode()), Ok(scrub));
    let identity = identity();
    let Origin::Process(process) = identity.origin else { panic!("the sample has a process") };
    let mut subject = b"client/gw-1".to_vec();
    subject.resize(vellum_format::identity::MAX_SUBJECT, 0);
    let want = [
        ("version", int(2)),
        ("principal", int(vellum_format::identity::BY_CERTIFICATE)),
        ("origin", int(vellum_format::identity::FROM_PROCESS)),
        ("subject_len", int(11)),
        ("uid", int(0)),
        ("boot", raw(&process.boot)),
        ("namespace", int(process.namespace)),
        ("start", int(process.start)),
        ("pid", int(process.pid)),
        ("worker", int(0)),
        ("reserved", raw(&[0; 3])),
        ("subject", raw(&subject)),
    ];
    check("client identity", 0, &image("client_identity"), &want);
    check("counter", 0, &image("counter"), &[("value", int(0x0e0f_1011))]);
}

/// Every announced table is compared by some test: a name that nobody asks for is a spelling mistake.
#[test]
fn no_table_is_left_out() {
    let source = include_str!("document.rs");
    for name in tables().keys() {
        assert!(source.contains(&format!("(\"{name}\"")), "table `{name}` is not compared");
    }
}

//! Structures whose checksums hold and whose content cannot be: an error that names the place, and nothing is written by them.

mod common;

use std::sync::Arc;

use common::*;
use vellum_base::{BlockAddr, BlockRange, ChunkIndex, Epoch, Key, LogId, SegmentId, ShardId, Term};
use vellum_format::{LogMeta, ManifestEdit, ManifestRecord, RecordBody, Run, SegmentMeta, Superblock};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::native::block_on;
use vellum_store::{CheckOptions, StoreError, check};

/// A new filesystem whose manifest goes on with `edits`.
fn forged(edits: &[ManifestEdit]) -> Image {
    let memory = MemoryDevice::new(64 * MIB);
    block_on(make(&(Arc::new(memory.clone()) as Arc<dyn Device>)));
    let mut image = memory.snapshot();
    let mut block = vec![0; 4096];
    image.read(0, &mut block);
    let sb = Superblock::decode(&block, BlockAddr(0)).unwrap();
    let checkpoint = |area: &[BlockRange; 2]| {
        let mut bytes = vec![0; area[0].len_bytes()];
        image.read(area[0].start.bytes(), &mut bytes);
        ManifestRecord::decode(&bytes, area[0].start, &sb.fsid).ok().map(|found| (*area, found))
    };
    let (area, (record, hash, len)) = sb.manifest.iter().find_map(checkpoint).unwrap();
    let body = RecordBody::new(1, hash, edits);
    let mut bytes = vec![0; body.padded_len()];
    for copy in area {
        let at = BlockAddr(copy.start.0 + len as u64 / 4096);
        body.finish(&mut bytes, at, &sb.fsid, record.generation);
        image.write(at.bytes(), &bytes);
    }
    image
}

fn run(seal_chunks: &[u32], log_chunks: &[u32]) -> ManifestEdit {
    let chunks = |list: &[u32]| list.iter().map(|chunk| ChunkIndex(*chunk)).collect();
    ManifestEdit::Run(Run {
        term: Term(1),
        first_number: 1,
        first_epoch: Epoch(1),
        seal_chunks: chunks(seal_chunks),
        floor_number: 0,
        floor_hash: 0,
        durable_number: 0,
        cut: None,
        logs: vec![LogMeta { id: LogId(1), chunks: chunks(log_chunks), floor: 0 }],
    })
}

/// Found by fuzzing whole images: a run's chunk that is none was an index out of bounds when the run's rest was freed.
#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let meta = SegmentMeta {
        id: SegmentId(9),
        ranges: vec![BlockRange::new(1 << 40, 1)],
        len_bytes: 4096,
        last: Key::MAX,
        ..SegmentMeta::default()
    };
    for (what, edit) in [
        ("chunk 70000", run(&[70_000], &[])),
        ("chunk 4294967295", run(&[], &[u32::MAX])),
        ("chunk 20", run(&[], &[20])), // a free one
        ("segment 9", ManifestEdit::SegmentAdd { shard: ShardId(0), level: 1, meta }),
        // Found by fuzzing, too: a bucket of no shard kept whoever asked for its items waiting for ever.
        (
            "bucket 7",
            ManifestEdit::Shard { id: ShardId(999), first_bucket: 7, last_bucket: 7, flushed_through: Epoch(0) },
        ),
    ] {
        let image = forged(&[edit]);
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image.clone()));
        block_on(async {
            let queue = queue(&device);
            let refused = [
                start(&device, options(2)).await.map(|_| ()).unwrap_err(),
                check(&device, &queue, CheckOptions::default()).await.map(|_| ()).unwrap_err(),
            ];
            for error in refused {
                assert!(matches!(error, StoreError::Corrupt { .. }) && error.is_damage(), "{error:?}");
                assert!(error.to_string().contains(what), "{error}");
            }
        });
    }
    let image = forged(&[ManifestEdit::Term(Term(3))]);
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image));
    block_on(async { assert_eq!(start(&device, options(2)).await.unwrap().1.term, Term(4)) });
}

/// Found by fuzzing whole images: an extent that ends beyond all addresses, and numbers that leave no room for the next.
#[test]
fn what_counts_up_from_zero_has_room_above() {
    for edit in [
        ManifestEdit::Term(Term(u64::MAX)),
        ManifestEdit::NextIds { segment: SegmentId(u64::MAX), log: LogId(1) },
        ManifestEdit::Base { number: u64::MAX, hash: 1, epoch: Epoch(1) },
        ManifestEdit::Base { number: 1, hash: 1, epoch: Epoch(u64::MAX - 7) },
    ] {
        let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(forged(std::slice::from_ref(&edit))));
        block_on(async {
            // It is whole, so a crash has not left it: not the end of the manifest, but damage.
            let error = start(&device, options(2)).await.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("manifest record 1") && error.contains("no legal value"), "{edit:?}: {error}");
        });
    }
}

/// Found by fuzzing whole images: a manifest area over block 0 was served, and would have been written there.
#[test]
fn areas_that_overlap_are_refused() {
    let mut image = forged(&[]);
    let mut block = [0; 4096];
    image.read(0, &mut block);
    let mut sb = Superblock::decode(&block, BlockAddr(0)).unwrap();
    sb.manifest[0][0].start = BlockAddr(0);
    [BlockAddr(0), sb.copy].into_iter().for_each(|at| image.write(at.bytes(), &sb.encode(at)));
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(image));
    block_on(async {
        let error = start(&device, options(1)).await.map(|_| ()).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("superblock"), "{error}");
    });
}

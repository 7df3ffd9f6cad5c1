//! Small legal images to begin from, and where their structures lie.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use vellum_base::{Batch, BatchNo, BlockAddr, BlockRange, DmaBuf, Fsid, Ino, ItemOp, Rid, crc32c};
use vellum_format::segment::block as segment_block;
use vellum_format::{
    Dirent, Extent, ExtentHeader, FileKind, Inode, ManifestEdit, ManifestRecord, Run, Seal, SegmentMeta, Superblock,
};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_rt::sim::{SimConfig, World};
use vellum_store::{Everyone, MkfsOptions, OpenOptions, Store, mkfs, open};

use super::run::queue;

const BYTES: u64 = 64 << 20;
const BLOCK: usize = vellum_base::BLOCK_SIZE;
const RID: Rid = Rid(0x1234_5678);

/// A block of a segment: what its checksum is seeded with, and its bytes on the device.
pub struct SegmentBlock {
    pub meta: SegmentMeta,
    pub at_bytes: u64,
    pub device_bytes: u64,
    pub len_bytes: usize,
}

/// A legal image and its structures, in the order in which they are chained.
pub struct Base {
    pub image: Image,
    pub fsid: Fsid,
    pub superblocks: [BlockAddr; 2],
    /// Both copies of each record of the area that counts, and its length in bytes.
    pub manifest: Vec<([BlockAddr; 2], usize)>,
    /// Of the last run.
    pub seals: Vec<(BlockAddr, Seal)>,
    pub segment_blocks: Vec<SegmentBlock>,
    /// Blocks that are not zeros.
    pub written: Vec<u64>,
}

/// Every base; what is drawn of them is the same in each run.
pub fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        [(1, 1, false), (2, 2, false), (3, 1, true)]
            .map(|(seed, copies, clean)| Base::of(made(seed, copies, clean)))
            .into()
    })
}

pub fn read(image: &Image, at: BlockAddr, len_bytes: usize) -> Vec<u8> {
    let mut out = vec![0; len_bytes];
    image.read(at.bytes(), &mut out);
    out
}

/// A filesystem with a directory of small and large files, most of it in segments, the rest in the log unless it was
/// stopped `clean`.
fn made(seed: u64, metadata_copies: u8, clean: bool) -> Image {
    let memory = MemoryDevice::new(BYTES);
    let device: Arc<dyn Device> = Arc::new(memory.clone());
    let mut world = World::new(seed, SimConfig::default());
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let work = async move {
        let options = MkfsOptions { metadata_copies, ..MkfsOptions::default() };
        let q = queue(&device);
        mkfs(&device, &q, options).await.expect("a new filesystem");
        let mut next = 2;
        for round in 0..3 {
            let options = OpenOptions { reactors: 2, memtable_bytes: 4 << 20, ..OpenOptions::default() };
            let opened = open(&device, &q, options).await.expect("the filesystem opens");
            let mut stores = Vec::new();
            for seed in opened.seeds {
                stores.push(Store::start(seed, Rc::new(Everyone)).await.expect("a store starts"));
            }
            files(&stores[0], &mut next).await;
            if round < 2 || clean {
                stores[0].shutdown().await.expect("it stops");
            }
        }
    };
    world.block_on(reactor, Duration::from_secs(600), work).expect("a filesystem is made");
    memory.snapshot()
}

async fn files(store: &Rc<Store>, next: &mut u64) {
    let mut number = store.open_rid(RID, b"fuzz").await.expect("a client").last_batch.0;
    for _ in 0..12 {
        let n = *next;
        *next += 1;
        let (ino, bucket) = (Ino(((n * 37) & 0xff) << 56 | n), (n * 37) & 0xff);
        let mut data = DmaBuf::new(BLOCK * (1 + n as usize % 3));
        data.fill(n as u8);
        let data = data.freeze();
        let ranges = store.write_data(RID, data.clone()).await.expect("room for data");
        let mut ops = Vec::new();
        let mut at = 0;
        for range in ranges {
            let header = ExtentHeader { start: range.start, len_blocks: range.len_blocks, offline: false };
            let end = at + range.len_bytes();
            let checksums = data[at..end].chunks(BLOCK).map(crc32c).collect();
            let key = Extent::key(ino, (at / BLOCK) as u64, range.len_blocks);
            ops.push(ItemOp::Put { key, value: Extent { header, checksums }.encode() });
            at = end;
        }
        // Its directory is an inode of the same bucket, with one name in it.
        let dir = Ino(bucket << 56 | (n + 5000));
        let entry = |ino| Dirent { ino, pos: 3, kind: FileKind::Regular, name: b"file".to_vec().into() };
        let back = Dirent { kind: FileKind::Directory, ..entry(dir) };
        let online_blocks = (at / BLOCK) as u64;
        let file =
            Inode { mode: 0o100644, nlink: 1, size: at as u64, online_blocks, data_version: 1, ..Inode::default() };
        let directory = Inode { mode: 0o040755, nlink: 2, size: 1, next_pos: 4, ..Inode::default() };
        ops.extend([
            ItemOp::Put { key: Inode::key(ino), value: file.encode() },
            ItemOp::Put { key: Inode::key(dir), value: directory.encode() },
            ItemOp::Put { key: Dirent::key_by_name(dir, b"file", 3), value: entry(ino).encode() },
            ItemOp::Put { key: Dirent::key_by_pos(dir, 3), value: entry(ino).encode() },
            ItemOp::Put { key: Dirent::key_backref(ino, dir, 3), value: back.encode() },
        ]);
        number += 1;
        let epoch = store.commit(RID, Batch { number: BatchNo(number), ops }).await.expect("a legal batch");
        store.wait_durable(epoch).await.expect("it is durable");
    }
}

impl Base {
    fn of(image: Image) -> Base {
        let sb = Superblock::decode(&read(&image, BlockAddr(0), BLOCK), BlockAddr(0)).expect("a superblock");
        let written = (0..image.len_bytes() / BLOCK as u64)
            .filter(|block| read(&image, BlockAddr(*block), BLOCK).iter().any(|byte| *byte != 0))
            .collect();
        let (manifest, edits) = [0, 1]
            .map(|area| records(&image, &sb, area))
            .into_iter()
            .max_by_key(|(generation, ..)| *generation)
            .map(|(_, places, edits)| (places, edits))
            .expect("two areas");
        let mut runs: Vec<Run> = Vec::new();
        let mut metas: Vec<SegmentMeta> = Vec::new();
        for edit in edits {
            match edit {
                ManifestEdit::Run(run) => runs.push(run),
                ManifestEdit::RunDrop { term } => runs.retain(|run| run.term != term),
                ManifestEdit::SegmentAdd { meta, .. } => metas.push(meta),
                ManifestEdit::SegmentRemove { segment, .. } => metas.retain(|meta| meta.id != segment),
                _ => {}
            }
        }
        let seals = runs.last().map(|run| seals(&image, &sb, run)).unwrap_or_default();
        let segment_blocks = metas.iter().flat_map(|meta| blocks(&image, meta)).collect();
        let superblocks = [BlockAddr(0), sb.copy];
        Base { image, fsid: sb.fsid, superblocks, manifest, seals, segment_blocks, written }
    }
}

type Records = (u64, Vec<([BlockAddr; 2], usize)>, Vec<ManifestEdit>);

fn records(image: &Image, sb: &Superblock, area: usize) -> Records {
    let copies: [BlockRange; 2] = sb.manifest[area];
    let (mut generation, mut at, mut places, mut edits) = (0, 0, Vec::new(), Vec::new());
    while at < u64::from(copies[0].len_blocks) {
        let places_of = copies.map(|copy| BlockAddr(copy.start.0 + at));
        let rest = (u64::from(copies[0].len_blocks) - at) as usize * BLOCK;
        let Ok((record, _, len)) = ManifestRecord::decode(&read(image, places_of[0], rest), places_of[0], &sb.fsid)
        else {
            break;
        };
        if record.sequence != places.len() as u64 || generation != 0 && record.generation != generation {
            break;
        }
        generation = record.generation;
        edits.extend(record.edits);
        places.push((places_of, len));
        at += (len / BLOCK) as u64;
    }
    (generation, places, edits)
}

fn seals(image: &Image, sb: &Superblock, run: &Run) -> Vec<(BlockAddr, Seal)> {
    let places = run.seal_chunks.iter().flat_map(|chunk| {
        let start = u64::from(chunk.0) * u64::from(sb.chunk_blocks);
        (start..start + u64::from(sb.chunk_blocks)).map(BlockAddr)
    });
    let found = places.map(|at| Seal::decode(&read(image, at, BLOCK), at, &sb.fsid).ok().map(|(seal, _)| (at, seal)));
    found.map_while(|found| found).collect()
}

fn blocks(image: &Image, meta: &SegmentMeta) -> Vec<SegmentBlock> {
    let (mut at_bytes, mut out) = (0, Vec::new());
    while at_bytes < meta.len_bytes {
        let Some((device_bytes, run)) = meta.locate(0, at_bytes) else { break };
        let first = read(image, BlockAddr(device_bytes / BLOCK as u64), BLOCK);
        let Some(len_bytes) = segment_block::claimed_len(&first).filter(|len| *len as u64 <= run) else { break };
        out.push(SegmentBlock { meta: meta.clone(), at_bytes, device_bytes, len_bytes });
        at_bytes += len_bytes as u64;
    }
    out
}

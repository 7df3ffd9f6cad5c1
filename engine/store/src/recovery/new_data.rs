//! File data that may have been lost with its epoch.
//!
//! A seal may reach the medium before the data that its epoch refers to. It lists where that data is, and the extents among
//! the epoch's records say what has to be there. Epochs that no seal says were durable count only as far as that agrees.
//!
//! A block whose data is wrong shuts out the epochs that have it in use: from its own on, until a later one frees it. Freed
//! by an epoch that was durable, it may hold newer data already, and nobody misses the older.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use vellum_base::{BLOCK_SIZE, BlockAddr, ChunkIndex, DmaBuf, Key, Zone, crc32c};
use vellum_format::item::{Extent, ItemKind};
use vellum_format::{BITMAP_BLOCKS, Bitmap, Record, log};
use vellum_nvme::Queue;

use super::Whole;
use crate::error::StoreError;

/// How many epochs of `tail` count, and what is missing of the next one.
pub(super) async fn whole_prefix(
    queue: &Rc<dyn Queue>,
    chunk_blocks: u32,
    tail: &VecDeque<Whole>,
) -> Result<(usize, Option<String>), StoreError> {
    let mut count = tail.len();
    let mut missing = None;
    let mut states: HashMap<Place, Vec<(usize, Option<Bitmap>)>> = HashMap::new();
    // From the end: what becomes of a block is known when the epoch comes that wrote it.
    for (at, whole) in tail.iter().enumerate().rev() {
        let found = match Found::of(whole) {
            Ok(found) => found,
            Err(reason) => {
                (count, missing) = (at, Some(reason));
                continue;
            }
        };
        for (place, bitmap) in &found.bitmaps {
            states.entry(*place).or_default().push((at, bitmap.clone()));
        }
        let bad = first_bad(queue, whole, &found, |addr| {
            let (place, bit) = bitmap_place(chunk_blocks, addr);
            let free = |bitmap: &Option<Bitmap>| bitmap.as_ref().is_none_or(|b| !b.get(bit));
            states.get(&place).into_iter().flatten().any(|(at, bitmap)| *at < count && free(bitmap))
        });
        if let Some(addr) = bad.await? {
            (count, missing) = (at, Some(format!("file data of epoch {} is not at block {addr}", whole.seal.epoch)));
        }
    }
    Ok((count, missing))
}

type Place = (ChunkIndex, u32);

fn bitmap_place(chunk_blocks: u32, addr: BlockAddr) -> (Place, u32) {
    let block = (addr.0 % u64::from(chunk_blocks)) as u32;
    ((ChunkIndex((addr.0 / u64::from(chunk_blocks)) as u32), block / BITMAP_BLOCKS), block % BITMAP_BLOCKS)
}

/// What the records of an epoch say of blocks.
#[derive(Default)]
struct Found {
    checksums: BTreeMap<BlockAddr, u32>,
    bitmaps: Vec<(Place, Option<Bitmap>)>, // none: all are free
}

impl Found {
    fn of(whole: &Whole) -> Result<Found, String> {
        let mut found = Found::default();
        for record in whole.parts.iter().flat_map(|part| log::records(&part.records)) {
            match record.map_err(|e| e.to_string())? {
                Record::Put { key, value } => found.put(&key, &value)?,
                Record::Delete { key } => found.bitmaps.extend(Bitmap::place(&key).map(|place| (place, None))),
                Record::DeleteRange { .. } => {} // of an inode: no bitmap is among it
            }
        }
        Ok(found)
    }

    fn put(&mut self, key: &Key, value: &[u8]) -> Result<(), String> {
        if let Some(place) = Bitmap::place(key) {
            self.bitmaps.push((place, Some(Bitmap::decode(value).map_err(|e| e.to_string())?)));
        } else if key.zone() == Some(Zone::Fs) && key.kind() == ItemKind::Extent as u8 {
            let extent = Extent::decode(value).map_err(|e| e.to_string())?;
            let blocks = extent.checksums.iter().enumerate();
            self.checksums.extend(blocks.map(|(i, crc)| (BlockAddr(extent.header.start.0 + i as u64), *crc)));
        }
        Ok(())
    }
}

/// The first block of the epoch's new data that does not hold what its extent says, but for those that are `free`.
async fn first_bad(
    queue: &Rc<dyn Queue>,
    whole: &Whole,
    found: &Found,
    free: impl Fn(BlockAddr) -> bool,
) -> Result<Option<BlockAddr>, StoreError> {
    for run in &whole.seal.new_data {
        let Some(end) = run.end() else { return Ok(Some(run.start)) };
        let expected: Vec<_> = found.checksums.range(run.start..end).filter(|(addr, _)| !free(**addr)).collect();
        if expected.is_empty() {
            continue;
        }
        let data = queue.read(run.start.bytes(), DmaBuf::new(run.len_bytes())).await?;
        for (addr, crc) in expected {
            let at = (addr.0 - run.start.0) as usize * BLOCK_SIZE;
            if crc32c(&data[at..at + BLOCK_SIZE]) != *crc {
                return Ok(Some(*addr));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::ReplayPart;
    use super::*;
    use bytes::Bytes;
    use vellum_base::{BlockRange, Bucket, Epoch, Fsid, Ino, Term};
    use vellum_format::item::ExtentHeader;
    use vellum_format::{PartBuilder, PartPlace, Seal};

    const FSID: Fsid = Fsid([1; 16]);

    /// An epoch that wrote the block at `new` of the first chunk with zeros, and after which these blocks are in use.
    fn epoch(n: u64, new: Option<u64>, used: &[u64]) -> Whole {
        let mut bitmap = Bitmap::default();
        used.iter().for_each(|block| bitmap.set(*block as u32, true));
        let mut records = PartBuilder::default();
        records.push(&Record::Put { key: Bitmap::key(Bucket(0), ChunkIndex(0), 0), value: bitmap.encode() });
        if let Some(start) = new {
            let header = ExtentHeader { start: BlockAddr(start), len_blocks: 1, offline: false };
            let value = Extent { header, checksums: vec![crc32c(&[0; BLOCK_SIZE])] }.encode();
            records.push(&Record::Put { key: Extent::key(Ino(2 + n), 0, 1), value });
        }
        let mut buf = DmaBuf::new(records.padded_len());
        let place =
            PartPlace { log: vellum_base::LogId(1), epoch: Epoch(n), term: Term(1), place: 0, addr: BlockAddr(1) };
        records.finish(&mut buf, &place, &FSID);
        let records = Bytes::copy_from_slice(vellum_format::log::verify_part(&buf, &place, &FSID).unwrap());
        let seal = Seal {
            term: Term(1),
            number: n,
            epoch: Epoch(n),
            prev_hash: 0,
            durable_number: 0,
            parts: Vec::new(),
            new_data: new.map(|start| BlockRange::new(start, 1)).into_iter().collect(),
        };
        Whole { seal, hash: 0, parts: vec![ReplayPart { epoch: Epoch(n), records }] }
    }

    /// How many of the epochs count on a device of zeros where these blocks are lost.
    fn count(lost: &[u64], epochs: &[(Option<u64>, &[u64])]) -> usize {
        let mut image = vellum_nvme::Image::zeroed(1 << 20);
        lost.iter().for_each(|block| image.write(block * BLOCK_SIZE as u64, &[1; BLOCK_SIZE]));
        vellum_rt::native::block_on(async {
            let device = vellum_nvme::memory::MemoryDevice::from_image(image);
            let queue = crate::PolledQueue::open(&device, 8, "test").unwrap();
            let tail = (1..).zip(epochs).map(|(n, (new, used))| epoch(n, *new, used)).collect();
            whole_prefix(&queue, 256, &tail).await.unwrap().0
        })
    }

    #[test]
    fn epochs_count_up_to_the_first_whose_data_is_missing() {
        let epochs: [(Option<u64>, &[u64]); 3] = [(Some(10), &[10]), (Some(11), &[10, 11]), (None, &[10, 11])];
        assert_eq!(count(&[], &epochs), 3);
        assert_eq!(count(&[11], &epochs), 1);
        assert_eq!(count(&[10], &epochs), 0);
    }

    #[test]
    fn data_that_a_later_epoch_freed_is_not_missed_but_that_epoch_is_needed_then() {
        let epochs: [(Option<u64>, &[u64]); 3] = [(Some(10), &[10]), (Some(11), &[11]), (Some(12), &[11, 12])];
        assert_eq!(count(&[10], &epochs), 3);
        assert_eq!(count(&[10, 12], &epochs), 2);
        assert_eq!(count(&[10, 11], &epochs), 0);
        assert_eq!(count(&[10], &epochs[..1]), 0);
    }
}

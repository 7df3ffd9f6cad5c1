//! Tombstones and what they delete go away in the end.

use bytes::Bytes;
use vellum_base::{Ino, KeyRange};
use vellum_nvme::memory::MemoryDevice;

use super::{DEVICE_BYTES, Lab, key};
use crate::lsm::ItemWrite;

#[test]
fn deletions_do_vanish() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::new(1, &device);
        for round in 0..20u64 {
            for i in 0..400 {
                let k = key(i);
                let value = Bytes::from(vec![round as u8; 100]);
                lab.shard.apply(lab.epoch, ItemWrite::Put { key: k, value });
            }
            let closed = lab.close_epoch();
            lab.shard.freeze(closed);
            for ino in 1..=50 {
                lab.shard.apply(lab.epoch, ItemWrite::DeleteRange { range: KeyRange::of_inode(Ino(ino)) });
            }
            let closed = lab.close_epoch();
            lab.env.oldest.set(closed);
            lab.shard.freeze(closed);
            lab.flush().await;
            lab.compact(100).await;
        }
        // A few more runs, so that the last of them leave level 0 too.
        for _ in 0..4 {
            lab.shard.apply(lab.epoch, ItemWrite::Put { key: key(10_000), value: Bytes::from_static(b"x") });
            let closed = lab.close_epoch();
            lab.env.oldest.set(closed);
            lab.shard.freeze(closed);
            lab.flush().await;
            lab.compact(100).await;
        }
        let left: u64 = lab.levels.iter().skip(1).flatten().map(|m| m.entries + m.range_tombstones).sum();
        assert!(left <= 60, "{left} entries are left of a shard with one item: {:?}", lab.levels);
    });
}

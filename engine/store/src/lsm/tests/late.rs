//! What was applied and is in no memtable yet. (That nobody sees a difference is in the model tests, which leave some late.)

use bytes::Bytes;
use vellum_base::Epoch;
use vellum_nvme::memory::MemoryDevice;

use crate::lsm::ItemWrite;

use super::{DEVICE_BYTES, Lab, key};

#[test]
fn a_memtable_owes_little_and_nothing_once_somebody_looks() {
    vellum_rt::native::block_on(async {
        let lab = Lab::new(1, &MemoryDevice::new(DEVICE_BYTES));
        let put = |i: u64| lab.shard.apply(lab.epoch, ItemWrite::Put { key: key(i), value: Bytes::from(vec![7; 60]) });
        let owed = || {
            let mut writes = 0;
            while lab.shard.catch_up(1) {
                writes += 1;
            }
            writes
        };
        (0..10).for_each(put);
        assert_eq!(owed(), 9, "the last one says that no more come");
        (0..1000).for_each(put);
        assert!((100..=256).contains(&owed()));
        (1000..1010).for_each(put);
        assert!(lab.shard.get(&key(1009), Epoch(u64::MAX)).await.unwrap().is_some());
        assert_eq!(owed(), 0);
        (1010..1020).for_each(put);
        assert_eq!(lab.shard.unflushed_from(), Some(lab.epoch));
        assert_eq!(owed(), 0);
    });
}

//! One flush at a time. While a node shuts down, two tasks look after one shard. The second one was refused a flush, and
//! that refusal ended the first one's right to it; so did its word that all before is in segments. The frozen memtable was
//! written twice, and two runs of one name overlapped (found by the crash test of a growth).

use bytes::Bytes;
use vellum_base::Epoch;
use vellum_nvme::memory::MemoryDevice;

use super::{DEVICE_BYTES, Lab, key, open};

#[test]
fn a_flush_that_runs_is_ended_by_its_edit_alone() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::new(1, &device);
        let before = lab.close_epoch();
        lab.put(key(1), Bytes::from_static(b"one"));
        let closed = lab.close_epoch();
        assert!(lab.shard.freeze(closed));
        let edit = lab.shard.flush(closed).await.unwrap().expect("a flush");
        lab.shard.advance(before);
        assert_eq!(lab.shard.flushed_through(), before);
        for again in 0..3 {
            assert!(lab.shard.flush(Epoch(u64::MAX)).await.unwrap().is_none(), "it is being written ({again})");
        }
        lab.install(edit);
        assert!(lab.shard.flush(Epoch(u64::MAX)).await.unwrap().is_none(), "it is written");
        assert_eq!(lab.shard.frozen_tables(), 0);
    });
}

#[test]
fn what_was_flushed_is_read_from_memory_and_is_what_the_medium_has() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::new(1, &device);
        for i in 0..150 {
            lab.put(key(i), Bytes::from(vec![i as u8; 60]));
        }
        let closed = lab.close_epoch();
        lab.shard.freeze(closed);
        lab.flush().await;
        let cold = open(&lab.env, lab.levels.clone(), closed, 1);
        for i in 0..150 {
            let value = lab.shard.get(&key(i), closed).await.unwrap();
            assert_eq!(value, lab.model.get(&key(i), closed));
            assert_eq!(value, cold.get(&key(i), closed).await.unwrap());
        }
        assert_eq!(lab.shard.cache.stats().misses, 0);
        assert!(cold.cache.stats().misses > 3);
        for (id, block) in cold.cache.contents() {
            let warmed = lab.shard.cache.get(id).expect("every block but the footer");
            assert_eq!((warmed.bytes(), warmed.payload(), warmed.kind), (block.bytes(), block.payload(), block.kind));
        }
    });
}

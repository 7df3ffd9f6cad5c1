//! Bad media: what is read is right or refused, and repaired where there is a second copy.

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, Ino, KeyRange};
use vellum_nvme::memory::MemoryDevice;

use super::{DEVICE_BYTES, Lab, key, open};
use crate::lsm::ItemWrite;

#[test]
fn a_flipped_bit_anywhere_is_an_error_and_never_another_answer() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::new(2, &device);
        for i in 0..300 {
            lab.shard.apply(lab.epoch, ItemWrite::Put { key: key(i), value: Bytes::from(vec![i as u8; 60]) });
        }
        lab.shard.apply(lab.epoch.next(), ItemWrite::DeleteRange { range: KeyRange::of_inode(Ino(9)) });
        lab.close_epoch();
        let closed = lab.close_epoch();
        lab.shard.freeze(closed);
        lab.flush().await;
        let clean = lab.shard.scan(KeyRange::ALL, closed, usize::MAX, usize::MAX).await.unwrap();
        assert_eq!(clean.items.len(), 292);
        let meta = lab.levels[0][0].clone();
        let mut random = Prng::new(3);
        let mut refused = 0;
        for block in 0..meta.len_bytes / BLOCK_SIZE as u64 {
            let (at, _) = meta.locate(0, block * BLOCK_SIZE as u64).unwrap();
            let before = device.snapshot();
            let mut spoiled = device.snapshot();
            let byte = at + random.below(BLOCK_SIZE as u64);
            let mut value = [0u8];
            spoiled.read(byte, &mut value);
            spoiled.write(byte, &[value[0] ^ (1 << random.below(8))]);
            device.restore(spoiled);
            let shard = open(&lab.env, lab.levels.clone(), closed, 1);
            match shard.scan(KeyRange::ALL, closed, usize::MAX, usize::MAX).await {
                Ok(page) => assert_eq!(page, clean, "block {block} was changed and believed"),
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("segment"), "{error}");
                }
            }
            device.restore(before);
        }
        assert!(refused >= 3, "only {refused} blocks were read at all");
    });
}

#[test]
fn the_second_copy_answers_for_the_first_and_repairs_it() {
    vellum_rt::native::block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = Lab::with_copies(4, &device, 2);
        for i in 0..300 {
            lab.put(key(i), Bytes::from(vec![i as u8; 60]));
        }
        let closed = lab.close_epoch();
        lab.shard.freeze(closed);
        lab.flush().await;
        let meta = lab.levels[0][0].clone();
        assert!(!meta.mirror.is_empty());
        let mut spoiled = device.snapshot();
        for block in 0..meta.len_bytes / BLOCK_SIZE as u64 - 1 {
            let (at, _) = meta.locate(0, block * BLOCK_SIZE as u64).unwrap();
            spoiled.write(at + 100, &[0xa5; 40]);
        }
        device.restore(spoiled);
        let range = KeyRange { first: key(0), last: key(299) };
        for round in 0..2 {
            let shard = open(&lab.env, lab.levels.clone(), closed, 2);
            for i in 0..300 {
                assert_eq!(shard.get(&key(i), closed).await.unwrap(), lab.model.get(&key(i), closed), "{i}");
            }
            assert_eq!(shard.scan(range, closed, 1000, 1 << 20).await.unwrap().items, lab.model.scan(range, closed));
            // In the second round the copies change their roles: the first must be good again.
            let mut spoiled = device.snapshot();
            for block in 0..meta.len_bytes / BLOCK_SIZE as u64 - 1 {
                let (at, _) = meta.locate(1, block * BLOCK_SIZE as u64).unwrap();
                spoiled.write(at + 100, &[0xa5; 40]);
            }
            if round == 0 {
                device.restore(spoiled);
            }
        }
    });
}

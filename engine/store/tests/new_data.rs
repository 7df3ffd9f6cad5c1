//! File data and the seal of its epoch reach the medium in one flush: which epochs count when only one of them did.

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::crash::CrashDevice;
use common::*;
use vellum_base::BlockRange;
use vellum_format::{Extent, Inode};
use vellum_nvme::Image;
use vellum_rt::native::block_on;
use vellum_rt::sleep;
use vellum_store::Store;

fn fresh() -> CrashDevice {
    let device = CrashDevice::new(Image::zeroed(64 * MIB));
    block_on(make(&device.as_device()));
    device
}

/// A file's only block, written anew; durable when this ends. Gives where it is.
async fn write(store: &Rc<Store>, client: &mut Client, n: u64, byte: u8) -> BlockRange {
    let file = ino(0, 2 + n);
    let data = blocks(1, byte).freeze();
    let place = store.write_data(client.rid, data.clone()).await.unwrap()[0];
    let content = Inode { online_blocks: 1, ..inode(4096, byte.into()) };
    let epoch = client.commit(store, vec![extent_op(file, 0, place, &data), put_inode(file, &content)]).await.unwrap();
    store.wait_durable(epoch).await.unwrap();
    place
}

/// Loses what was written to these blocks, and starts anew: the `data_version` of files 1 and 2, 0 for none.
fn versions_without(device: &CrashDevice, lost: &[BlockRange]) -> [u64; 2] {
    let mut image = device.snapshot();
    lost.iter().for_each(|run| image.write(run.start.bytes(), &[0xee; 4096]));
    let device = CrashDevice::new(image);
    block_on(async {
        let (stores, _) = start(&device.as_device(), options(1)).await.unwrap();
        let mut found = [0; 2];
        for (n, version) in (1..).zip(&mut found) {
            if let Some(value) = get(&stores[0], Inode::key(ino(0, 2 + n))).await {
                *version = Inode::decode(&value).unwrap().data_version;
                assert!(get(&stores[0], Extent::key(ino(0, 2 + n), 0, 1)).await.is_some());
            }
        }
        found
    })
}

#[test]
fn the_last_epoch_counts_only_with_its_data() {
    let device = fresh();
    let (one, two) = block_on(async {
        let (stores, _) = start(&device.as_device(), options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        (write(&stores[0], &mut client, 1, 1).await, write(&stores[0], &mut client, 2, 2).await)
    });
    assert_eq!(versions_without(&device, &[]), [1, 2]);
    assert_eq!(versions_without(&device, &[two]), [1, 0]);
    // The seal of the second epoch says that the first was durable: this is rot, which whoever reads the file will hear of.
    assert_eq!(versions_without(&device, &[one]), [1, 2]);
}

#[test]
fn after_some_quiet_nothing_is_taken_for_lost() {
    let device = fresh();
    let two = block_on(async {
        let (stores, _) = start(&device.as_device(), options(1)).await.unwrap();
        let mut client = Client::open(&stores[0], RID).await;
        write(&stores[0], &mut client, 1, 1).await;
        let two = write(&stores[0], &mut client, 2, 2).await;
        let before = stores[0].status().await.unwrap().durable_epoch;
        while stores[0].status().await.unwrap().durable_epoch == before {
            sleep(Duration::from_millis(10)).await; // until an empty epoch confirmed the last one
        }
        two
    });
    assert_eq!(versions_without(&device, &[two]), [1, 2]);
}

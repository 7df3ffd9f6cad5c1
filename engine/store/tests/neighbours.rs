//! What is read ahead on the device: few reads for small files in a row, and never an old block.

mod common;

use std::rc::Rc;

use common::count::CountingDevice;
use common::*;
use vellum_base::{BLOCK_SIZE, BlockRange};
use vellum_rt::native::block_on;
use vellum_store::Store;

const FILES: usize = 200;

/// One block after the other, each with a content of its own.
async fn write_files(store: &Rc<Store>) -> Vec<BlockRange> {
    let mut places = Vec::new();
    for i in 0..FILES {
        let ranges = store.write_data(RID, blocks(1, i as u8).freeze()).await.unwrap();
        let [place] = ranges[..] else { panic!("one block is one range") };
        places.push(place);
    }
    places
}

async fn content(store: &Rc<Store>, place: BlockRange) -> u8 {
    let data = store.read_data(&[place]).await.unwrap();
    assert!(data.len() == BLOCK_SIZE && data.iter().all(|b| *b == data[0]));
    data[0]
}

#[test]
fn small_files_in_a_row_take_few_reads() {
    block_on(async {
        let device = CountingDevice::new(256 * MIB);
        make(&device.as_device()).await;
        let (stores, _) = start(&device.as_device(), options(1)).await.unwrap();
        let store = &stores[0];
        let places = write_files(store).await;
        device.take_reads();
        for (i, place) in places.iter().enumerate() {
            assert_eq!(content(store, *place).await, i as u8);
        }
        let reads = device.take_reads();
        assert!(reads <= 2 + FILES as u64 / 16, "{reads} reads for {FILES} files");
        // Eight at a time wait for the same windows.
        let mut handles = Vec::new();
        for reader in 0..8 {
            let (store, places) = (store.clone(), places.clone());
            handles.push(vellum_rt::spawn(vellum_rt::Class::Request, "reader", async move {
                for i in (reader..FILES).step_by(8) {
                    assert_eq!(content(&store, places[i]).await, i as u8);
                }
            }));
        }
        for handle in handles {
            handle.await.unwrap();
        }
        let reads = device.take_reads();
        assert!(reads <= 8 + FILES as u64 / 16, "{reads} reads for {FILES} files of eight readers");
    });
}

#[test]
fn a_block_that_is_written_again_is_read_again_on_every_reactor() {
    for reactors in [1, 2] {
        block_on(async {
            let device = memory(256 * MIB);
            make(&device).await;
            let (stores, _) = start(&device, options(reactors)).await.unwrap();
            let (writer, reader) = (&stores[0], &stores[reactors - 1]);
            let places = write_files(writer).await;
            for round in 0..20u8 {
                let at = usize::from(round) * 5;
                for i in 0..3 {
                    content(reader, places[at + i]).await; // a window over the next 32 from the second on
                }
                let again = at + 10;
                writer.discard_data(RID, &[places[again]]).await.unwrap();
                let other = blocks(1, 255 - round).freeze();
                let mut written = writer.write_data(RID, other.clone()).await.unwrap();
                while written != [places[again]] {
                    // Space is not taken from the lowest on: until it comes round.
                    written = writer.write_data(RID, other.clone()).await.unwrap();
                }
                assert_eq!(content(reader, places[again]).await, 255 - round, "round {round}");
            }
        });
    }
}

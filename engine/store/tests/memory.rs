//! What a store has in memory is within what it says of itself, however much it is given.
//!
//! Found by a mount in which 10^7 names were made: the engine had 649 MiB where its bounds said 384. The block cache counted its
//! blocks, and the allocator needed half as much again between them.
#![allow(unsafe_code)] // an allocator that counts is unsafe by its trait

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use common::{Client, MIB, RID, make, put, start};
use vellum_base::dma::slabs;
use vellum_base::{Ino, ItemOp, Key};
use vellum_format::ItemKind;
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Image};
use vellum_store::{OpenOptions, Store};

/// The system's, with a count of what is handed out.
struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; the counter is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PER_BATCH: u64 = 500;
/// Ten times the cache, so that its blocks are changed again and again.
const BATCHES: u64 = 400;
const CACHE_BYTES: usize = 8 << 20;

fn ops(batch: u64) -> Vec<ItemOp> {
    let value = |n: u64| Bytes::from(vec![n as u8; 60 + n as usize % 500]);
    let item = |n: u64| {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        put(Key::fs(Ino(mixed), ItemKind::Symlink as u8, n, 0, 0), value(n))
    };
    (batch * PER_BATCH..(batch + 1) * PER_BATCH).map(item).collect()
}

async fn check(store: &Rc<Store>, before: usize) -> usize {
    let status = store.status().await.unwrap();
    let one = &status.reactors[0];
    let heap = LIVE_BYTES.load(Relaxed) - before;
    let found = heap + status.memory.buffer_bytes;
    assert!(found <= status.memory.bound_bytes, "{heap} bytes of heap with {:?}", status.memory);
    assert!(one.memtable_bytes <= one.memtable_bound_bytes && one.cache.bytes <= one.cache_bound_bytes, "{one:?}");
    let slabs = slabs::stats();
    let between = slabs.mapped_bytes - slabs.used_bytes;
    assert!(between <= slabs.used_bytes / 4 + 2 * slabs::SPARE_BYTES, "too much lies between the buffers: {slabs:?}");
    found
}

#[test]
fn p5_memory_stays_within_its_bound_while_items_are_made() {
    // All there from the beginning, so that what is written to it takes no more memory.
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::from_image(Image::from_bytes(&vec![1; 256 * MIB as usize])));
    vellum_rt::native::block_on(async move {
        make(&device).await;
        let before = LIVE_BYTES.load(Relaxed);
        let options = OpenOptions { cache_bytes: CACHE_BYTES, memtable_bytes: 8 << 20, ..OpenOptions::default() };
        let (stores, _) = start(&device, options).await.unwrap();
        let store = &stores[0];
        let mut client = Client::open(store, RID).await;
        let mut peak = 0;
        for batch in 0..BATCHES {
            client.commit(store, ops(batch)).await.unwrap();
            if batch % 8 == 7 {
                peak = check(store, before).await.max(peak);
            }
        }
        let status = store.status().await.unwrap();
        assert!(status.reactors[0].cache.bytes > CACHE_BYTES * 3 / 4, "the cache was filled: {status:?}");
        println!("at most {} MiB, bound {}", peak >> 20, status.memory.bound_bytes >> 20);
        store.shutdown().await.unwrap();
    });
}

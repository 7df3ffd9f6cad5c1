//! Creates items by the million and prints where the memory is: what the store says of itself, what is in buffers
//! and on the heap, and what the process has.
//!
//! `cargo run --release -p vellum-store --example fill_memory -- IMAGE [thousand items] [memtables MiB] [cache MiB]`
#![allow(unsafe_code)] // an allocator that counts is unsafe by its trait

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use common::{RID, fresh};
use vellum_base::{Batch, BatchNo, Ino, ItemOp, Key};
use vellum_format::ItemKind;
use vellum_store::OpenOptions;

/// The system's, with a count of what is handed out.
struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; the counter is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NAMES_PER_BATCH: u64 = 250;
/// Inode, name by hash, name in order, backref: about what a file without content has.
const ITEMS_PER_NAME: u64 = 4;
const VALUE_BYTES: usize = 100;
const INODES_PER_GROUP: u64 = 1024;

/// Of the process, from the kernel.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn mib(bytes: usize) -> usize {
    bytes >> 20
}

fn ops(first: u64, values: &Bytes) -> Vec<ItemOp> {
    let mut ops = Vec::new();
    let mut put = |key: Key| {
        let at = ops.len() * VALUE_BYTES;
        ops.push(ItemOp::Put { key, value: values.slice(at..at + VALUE_BYTES) });
    };
    let item = ItemKind::Symlink as u8;
    for n in first..first + NAMES_PER_BATCH {
        let group = 1 + n / INODES_PER_GROUP;
        let ino = Ino(((group % 256) << 56) | (group << 10) | (n % INODES_PER_GROUP));
        put(Key::fs(ino, item, 0, 0, 0));
        put(Key::fs(ino, item, 1, 0, 0));
        put(Key::fs(Ino(1), item, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 0, 0));
        put(Key::fs(Ino(1), item, n, 1, 0));
    }
    ops
}

async fn run(
    image: String,
    items: u64,
    memtable_bytes: usize,
    cache_bytes: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let names = items / ITEMS_PER_NAME;
    let file = std::fs::File::create(&image)?;
    file.set_len(items * 400 + (1 << 30))?;
    let store = fresh(&image, OpenOptions { cache_bytes, memtable_bytes, ..OpenOptions::default() }).await?;
    println!("thousand items | memtables | cache | buffers: used, all | heap | resident, anonymous | bound (MiB)");
    let batches = names / NAMES_PER_BATCH;
    for n in 0..batches {
        let mut values = BytesMut::zeroed(NAMES_PER_BATCH as usize * ITEMS_PER_NAME as usize * VALUE_BYTES);
        vellum_base::prng::Prng::new(n).fill(&mut values);
        let ops = ops(n * NAMES_PER_BATCH, &values.freeze());
        store.commit(RID, Batch { number: BatchNo(n + 1), ops }).await?;
        if (n + 1) % (batches / 20).max(1) == 0 {
            let status = store.status().await?;
            let one = &status.reactors[0];
            println!(
                "{:>14} | {:>4} of {:>3} | {:>4} of {:>3} | {:>5} {:>5} | {:>5} | {:>5} | {:>5}",
                (n + 1) * NAMES_PER_BATCH * ITEMS_PER_NAME / 1000,
                mib(one.memtable_bytes),
                mib(one.memtable_bound_bytes),
                mib(one.cache.bytes),
                mib(one.cache_bound_bytes),
                mib(status.memory.buffer_used_bytes),
                mib(status.memory.buffer_bytes),
                mib(LIVE_BYTES.load(Ordering::Relaxed)),
                resident_mib(),
                mib(status.memory.bound_bytes),
            );
        }
    }
    store.shutdown().await?;
    Ok(std::fs::remove_file(&image)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or("usage: fill_memory IMAGE [thousand items] [memtables MiB] [cache MiB]")?;
    let mut figure = |default: u64| args.next().map_or(Ok(default), |arg| arg.parse());
    let (items, memtables, cache) = (figure(4000)? * 1000, figure(128)? << 20, figure(256)? << 20);
    vellum_rt::native::block_on(run(image, items, memtables as usize, cache as usize))
}

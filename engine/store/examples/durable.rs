//! Durable batches of 100 items, one client that waits for each: where the time of one goes.
//!
//! `cargo run --release -p vellum-store --example durable -- IMAGE [batches]`; under `strace -c -f` or `perf stat` for more.

mod common;

use std::time::Instant;

use bytes::BytesMut;
use common::{RID, fresh};
use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, Ino, ItemOp, Key};
use vellum_format::ItemKind;
use vellum_store::OpenOptions;

const ITEMS: usize = 100;
const VALUE_BYTES: usize = 100;
const IMAGE_BYTES: usize = 1 << 30;

/// User and system time, and voluntary context switches, of this thread.
fn used() -> (f64, u64) {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let switches = switches.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    (cpu.tv_sec as f64 * 1e6 + cpu.tv_nsec as f64 / 1e3, switches)
}

fn batch(number: u64) -> Batch {
    let mut prng = Prng::new(number);
    let mut values = BytesMut::zeroed(ITEMS * VALUE_BYTES);
    prng.fill(&mut values);
    let values = values.freeze();
    let put = |i: usize| ItemOp::Put {
        key: Key::fs(Ino(prng.next_u64()), ItemKind::Symlink as u8, i as u64, 0, 0),
        value: values.slice(i * VALUE_BYTES..(i + 1) * VALUE_BYTES),
    };
    Batch { number: BatchNo(number), ops: (0..ITEMS).map(put).collect() }
}

fn median(times_us: &mut [f64]) -> f64 {
    times_us.sort_by(f64::total_cmp);
    times_us.get(times_us.len() / 2).copied().unwrap_or_default()
}

async fn run(image: String, batches: u64) -> Result<(), Box<dyn std::error::Error>> {
    // Written before: on a file with holes each flush would commit the host filesystem's journal.
    std::fs::write(&image, vec![0u8; IMAGE_BYTES])?;
    let store = fresh(&image, OpenOptions::default()).await?;
    let (mut commits, mut waits) = (Vec::new(), Vec::new());
    let all: Vec<Batch> = (1..=batches).map(batch).collect();
    let (began, (cpu, switches)) = (Instant::now(), used());
    for batch in all {
        let start = Instant::now();
        let epoch = store.commit(RID, batch).await?;
        let committed = Instant::now();
        store.wait_durable(epoch).await?;
        commits.push((committed - start).as_secs_f64() * 1e6);
        waits.push(committed.elapsed().as_secs_f64() * 1e6);
    }
    let (cpu_after, switches_after) = used();
    let n = batches as f64;
    println!(
        "per batch: {:.0} us ({:.0} to be applied, {:.0} to be durable: medians); mean {:.0}; {:.0} us of CPU, {:.2} sleeps",
        median(&mut commits) + median(&mut waits),
        median(&mut commits),
        median(&mut waits),
        began.elapsed().as_secs_f64() * 1e6 / n,
        (cpu_after - cpu) / n,
        (switches_after - switches) as f64 / n
    );
    store.shutdown().await?;
    Ok(std::fs::remove_file(&image)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or("usage: durable IMAGE [batches]")?;
    let batches = args.next().map_or(Ok(2000), |arg| arg.parse())?;
    vellum_rt::native::block_on(run(image, batches))
}

//! Tells which input it was when one takes for ever, or all memory: such a process cannot tell itself.

use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// An input that takes longer is a finding. Long, because the machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

static SEED: AtomicU64 = AtomicU64::new(0);
static INPUT: AtomicU64 = AtomicU64::new(0);
/// Inputs that were begun, by all threads.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static TARGET: Mutex<&str> = Mutex::new("");

/// From now on input `input` of `seed` is looked at.
pub fn begin(target: &'static str, seed: u64, input: u64) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(std::thread::spawn(watch)));
    SEED.store(seed, Relaxed);
    INPUT.store(input, Relaxed);
    BEGUN.fetch_add(1, Relaxed);
    *TARGET.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = target;
}

/// What is looked at now, for whoever is about to end the process.
pub fn now() -> String {
    let target = TARGET.try_lock().map_or("?", |target| *target);
    format!("{target} --seed {} --input {}", SEED.load(Relaxed), INPUT.load(Relaxed))
}

fn watch() {
    let mut seen = (0, Instant::now());
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let begun = BEGUN.load(Relaxed);
        if begun != seen.0 {
            seen = (begun, Instant::now());
        } else if seen.1.elapsed() > PATIENCE {
            eprintln!("FOUND an input that does not end: {}", now());
            std::process::abort();
        }
    }
}

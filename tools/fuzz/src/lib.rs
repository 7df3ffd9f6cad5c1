//! Fuzz targets of what decodes bytes that are not ours, and of whole images.
//!
//! A target takes any bytes and must not panic; what it accepts must say the same when it is written again, so that two
//! readers never understand one message in two ways. [`run`] drives a target from a seed, with samples that are legal and
//! mutations of them: the same inputs each time, on stable Rust, in a test of a second or a night of `cargo xtask fuzz`.

mod image;
mod memory;
mod mutate;
mod samples;
mod targets;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeMap;

pub use image::story;
pub use mutate::MAX_INPUT;
pub use targets::{TARGETS, Target};

use vellum_base::prng::Prng;

/// What a run saw: a run that accepts nothing proves little.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    pub inputs: u64,
    pub accepted: u64,
    /// By the place of the panic: its message, how often it came, and the number of the first such input.
    pub findings: BTreeMap<String, (String, u64, u64)>,
}

thread_local! {
    /// Place and message of the last panic of this thread.
    static PANIC: RefCell<(String, String)> = RefCell::default();
}

/// Keeps what panics say, instead of printing it. For the whole process.
fn catch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CATCHING.get() {
                return print(info);
            }
            let place = info.location().map_or_else(String::new, ToString::to_string);
            let text = message(info.payload());
            PANIC.with(|panic| *panic.borrow_mut() = (place, text));
        }));
    });
}

thread_local! {
    static CATCHING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Gives the target one input. `Err` has place and message of its panic.
fn attempt(target: &Target, input: &[u8]) -> Result<bool, (String, String)> {
    catch_panics();
    CATCHING.set(true);
    let (outcome, peak) = memory::measured(|| std::panic::catch_unwind(|| (target.check)(input)));
    CATCHING.set(false);
    if peak > target.memory_bytes {
        return Err(("memory".into(), format!("{peak} bytes at once")));
    }
    outcome.map_err(|_| PANIC.with(|panic| panic.take()))
}

/// Gives `target` inputs until `go_on` says no.
///
/// # Panics
/// When a legal sample is refused, or panics: a finding of its own.
pub fn run(target: &Target, seed: u64, mut go_on: impl FnMut(u64) -> bool) -> Seen {
    let samples = (target.samples)();
    let mut seen = Seen::default();
    // Samples first: what is legal is accepted.
    for sample in &samples {
        let outcome = attempt(target, sample);
        let start = &sample[..sample.len().min(100)];
        assert!(outcome == Ok(true), "{}: a legal sample is refused ({outcome:?}): {} ..", target.name, hex(start));
        seen.accepted += 1;
        seen.inputs += 1;
    }
    while go_on(seen.inputs) {
        watch::begin(target.name, seed, seen.inputs);
        match attempt(target, &nth(target, &samples, seed, seen.inputs)) {
            Ok(accepted) => seen.accepted += u64::from(accepted),
            Err((place, text)) => seen.findings.entry(place).or_insert((text, 0, seen.inputs)).1 += 1,
        }
        seen.inputs += 1;
    }
    seen
}

/// Input `n` of a seed, by itself: a finding is run again without those before it.
pub fn nth(target: &Target, samples: &[Vec<u8>], seed: u64, n: u64) -> Vec<u8> {
    let mut prng = Prng::new(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (target.draw)(&mut prng, samples)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

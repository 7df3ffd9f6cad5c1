//! Fuzz targets of what decodes bytes that are not ours: frames, messages, greetings, quorum datagrams and blocks, client
//! records, certificates' subjects and dates.
//!
//! A target takes any bytes and must not panic; what it accepts must say the same when it is written again, so that two
//! readers never understand one message in two ways. [`run`] drives a target from a seed, with samples that are legal and
//! mutations of them: the same inputs each time, on stable Rust, in a test of a second or a night of `cargo xtask fuzz`.

mod mutate;
mod samples;
mod targets;

pub use mutate::{MAX_INPUT, mutate};
pub use targets::{TARGETS, Target};

use vellum_base::prng::Prng;

/// What a run saw: a run that accepts nothing proves little.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    pub inputs: u64,
    pub accepted: u64,
}

/// Gives `target` inputs until `go_on` says no. A panic of the target is the finding; its message has seed and number.
pub fn run(target: &Target, seed: u64, mut go_on: impl FnMut(u64) -> bool) -> Seen {
    let samples = (target.samples)();
    let mut seen = Seen::default();
    // Samples first: what is legal is accepted.
    for sample in &samples {
        assert!((target.check)(sample), "{}: a legal sample is refused", target.name);
        seen.accepted += 1;
        seen.inputs += 1;
    }
    while go_on(seen.inputs) {
        let input = nth(&samples, seed, seen.inputs);
        let outcome = std::panic::catch_unwind(|| (target.check)(&input));
        match outcome {
            Ok(accepted) => seen.accepted += u64::from(accepted),
            Err(_) => panic!("target {} seed {seed} input {}: {}", target.name, seen.inputs, hex(&input)),
        }
        seen.inputs += 1;
    }
    seen
}

/// Input `n` of a seed, by itself: a finding is run again without those before it.
pub fn nth(samples: &[Vec<u8>], seed: u64, n: u64) -> Vec<u8> {
    let mut prng = Prng::new(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mutate(&mut prng, samples)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

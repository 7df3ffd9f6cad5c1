//! A flipped bit under a checksum is an error, in every structure that has one: each bit of each legal sample.

use vellum_fuzz::TARGETS;

/// Decoders that have a checksum around all that they are given. Their targets put it right; so the decoders are asked here.
#[test]
fn no_bit_can_flip_unnoticed() {
    let mut bits = 0;
    for target in TARGETS {
        let Some(verify) = target.verify else { continue };
        for sample in (target.samples)() {
            assert!(verify(&sample), "{}: a legal sample", target.name);
            let step = if sample.len() > 4096 { 13 } else { 1 };
            for bit in (0..sample.len() * 8).step_by(step) {
                let mut bad = sample.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(!verify(&bad), "{}: bit {bit} of a sample of {} bytes", target.name, sample.len());
                bits += 1;
            }
        }
    }
    assert!(bits > 200_000, "{bits}");
}

//! From legal inputs to nearly legal ones.

use vellum_base::prng::Prng;

/// Longest input, in bytes.
pub const MAX_INPUT: usize = 8 << 10;

/// Values at which decoders err: ends of ranges, and lengths around them.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 1 << 20, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// One of the samples, changed in some ways; now and then bytes from nowhere.
pub fn mutate(prng: &mut Prng, samples: &[Vec<u8>]) -> Vec<u8> {
    if samples.is_empty() || prng.below(32) == 0 {
        let len = prng.below(256) as usize;
        let mut bytes = vec![0; len];
        prng.fill(&mut bytes);
        return bytes;
    }
    let mut input = pick(prng, samples).clone();
    for _ in 0..=prng.below(3) {
        step(prng, &mut input, samples);
    }
    input.truncate(MAX_INPUT);
    input
}

fn pick<'a>(prng: &mut Prng, samples: &'a [Vec<u8>]) -> &'a Vec<u8> {
    &samples[prng.below(samples.len() as u64) as usize]
}

fn step(prng: &mut Prng, input: &mut Vec<u8>, samples: &[Vec<u8>]) {
    if input.is_empty() {
        return input.push(prng.next_u64() as u8);
    }
    let at = prng.below(input.len() as u64) as usize;
    match prng.below(8) {
        0 => input[at] ^= 1 << prng.below(8),
        1 => input[at] = prng.next_u64() as u8,
        2 => input.truncate(at),
        3 => {
            let more = prng.below(64) as usize;
            input.resize(input.len() + more, prng.next_u64() as u8);
        }
        4 => edge(prng, &mut input[at..]),
        // A part again, or a part of another.
        5 => {
            let end = (at + 1 + prng.below(32) as usize).min(input.len());
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        6 => {
            let other = pick(prng, samples);
            let from = prng.below(other.len() as u64 + 1) as usize;
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = (at + 1 + prng.below(8) as usize).min(input.len());
            input.drain(at..end);
        }
    }
}

/// Writes over a few bytes of `part`; its length stays.
pub fn overwrite(prng: &mut Prng, part: &mut [u8]) {
    if part.is_empty() {
        return;
    }
    let at = prng.below(part.len() as u64) as usize;
    let rest = &mut part[at..];
    match prng.below(5) {
        0 => rest[0] ^= 1 << prng.below(8),
        1 => rest[0] = prng.next_u64() as u8,
        2 => rest[0] = rest[0].wrapping_add(1).wrapping_sub(2 * prng.below(2) as u8),
        _ => edge(prng, rest),
    }
}

/// A number of some width, at its edge.
fn edge(prng: &mut Prng, to: &mut [u8]) {
    let edge = EDGES[prng.below(EDGES.len() as u64) as usize].wrapping_sub(prng.below(2));
    let width = 1 << prng.below(4);
    for (to, from) in to.iter_mut().zip(edge.to_le_bytes()).take(width) {
        *to = from;
    }
}

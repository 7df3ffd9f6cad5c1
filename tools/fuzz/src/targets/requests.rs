//! FUSE requests, as the kernel sends them: a session takes them apart, and answers each exactly once.

use vellum_fuse::testing::converse;

const HEADER: usize = 40;

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out[..4].copy_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    out[4..8].copy_from_slice(&opcode.to_ne_bytes());
    out[8..16].copy_from_slice(&77u64.to_ne_bytes());
    out[16..24].copy_from_slice(&1u64.to_ne_bytes());
    out.extend_from_slice(body);
    out
}

/// Every opcode with arguments of zeros and two names, and what is longer for those that carry data.
pub fn samples() -> Vec<Vec<u8>> {
    (1..=53)
        .flat_map(|opcode| {
            let zeros = |len: usize, names: &[u8]| message(opcode, &[&vec![0; len][..], names].concat());
            [zeros(0, b"abc\0def\0"), zeros(16, b"abc\0def\0"), zeros(64, b"abc\0def\0")]
        })
        .filter(|sample| accepted(sample))
        .collect()
}

/// A message says its own length; so it is put right, but for inputs that end in an odd byte.
fn accepted(bytes: &[u8]) -> bool {
    let mut whole = bytes.to_vec();
    let len = (whole.len() as u32).to_ne_bytes();
    if whole.last().is_some_and(|last| last % 8 != 1)
        && let Some(to) = whole.first_chunk_mut()
    {
        *to = len;
    }
    converse(&[whole]) == 1
}

pub fn request(bytes: &[u8]) -> bool {
    accepted(bytes)
}

//! Compactions that are handed to other processes, and what those answer.

use vellum_base::{BlockRange, Epoch, Key, SegmentId};
use vellum_format::SegmentMeta;
use vellum_store::lsm::{CompactionJob, Outcome};

fn segments(out: &mut Vec<u8>, count: u64) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
    for id in 1..=count {
        let meta = SegmentMeta {
            id: SegmentId(id),
            run: Epoch(3),
            ranges: vec![BlockRange::new(7 * id, 5)],
            len_bytes: 5 * 4096,
            last: Key::MAX,
            entries: 9,
            ..SegmentMeta::default()
        };
        meta.encode(out);
    }
}

pub fn outcomes() -> Vec<Vec<u8>> {
    let mut out = vec![0; 16];
    segments(&mut out, 2);
    vec![out]
}

pub fn outcome(bytes: &[u8]) -> bool {
    let Ok(outcome) = Outcome::decode(bytes) else { return false };
    let again = outcome.encode().expect("it was short enough");
    assert_eq!(Outcome::decode(&again).ok().and_then(|back| back.encode()), Some(again));
    true
}

pub fn jobs() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    out.extend_from_slice(&1u32.to_le_bytes()); // shard
    out.push(1); // level
    out.extend_from_slice(&Key::MIN.0);
    out.extend_from_slice(&Key::MAX.0);
    out.push(1); // copies
    out.extend_from_slice(&(1u32 << 20).to_le_bytes()); // bytes of a segment
    out.extend_from_slice(&4096u32.to_le_bytes()); // bytes of a block
    for number in [5u64, 100, 4] {
        out.extend_from_slice(&number.to_le_bytes()); // oldest epoch, first id, ids
    }
    out.extend_from_slice(&2u32.to_le_bytes());
    segments(&mut out, 1);
    segments(&mut out, 2);
    out.extend_from_slice(&0u32.to_le_bytes()); // older ranges
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&500u64.to_le_bytes());
    out.extend_from_slice(&64u32.to_le_bytes());
    vec![out]
}

pub fn job(bytes: &[u8]) -> bool {
    let Ok(job) = CompactionJob::decode(bytes) else { return false };
    let again = job.encode().expect("it was short enough");
    let back = CompactionJob::decode(&again).expect("what is written again is read");
    assert_eq!(back.encode(), Some(again));
    true
}

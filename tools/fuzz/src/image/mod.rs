//! Whole images: a small legal filesystem is changed here and there, and everything that reads one is let loose on it.
//! What comes out is what was there, a repair, or an error; never a panic, a loop without end, or memory without bound.
//!
//! An input is the number of a base image and a list of changes, eight bytes each, from which a change is drawn.

mod base;
mod forge;
mod run;

use base::{Base, bases};
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, BlockAddr};
use vellum_nvme::Image;
use vellum_store::StoreError;

/// The bases as they are.
pub fn samples() -> Vec<Vec<u8>> {
    (0..bases().len()).map(|base| vec![base as u8]).collect()
}

/// A base and one to three changes.
pub fn draw(prng: &mut Prng, _: &[Vec<u8>]) -> Vec<u8> {
    let mut input = vec![prng.below(bases().len() as u64) as u8];
    for _ in 0..=prng.below(3) {
        input.extend_from_slice(&prng.next_u64().to_le_bytes());
    }
    input
}

/// The base, the image, and whether it is a forgery that nobody can see through.
fn changed(input: &[u8]) -> Option<(&'static Base, Image, bool)> {
    let (number, changes) = input.split_first()?;
    let base = bases().get(usize::from(*number))?;
    let mut image = base.image.clone();
    let mut forged = false;
    for change in changes.as_chunks::<8>().0 {
        forged |= forge::change(base, &mut image, u64::from_le_bytes(*change));
    }
    Some((base, image, forged))
}

/// What an input changes, for people: each run of bytes, before and after.
pub fn story(input: &[u8]) -> Vec<String> {
    let Some((base, image, _)) = changed(input) else { return Vec::new() };
    let mut out = Vec::new();
    for block in 0..image.len_bytes() / BLOCK_SIZE as u64 {
        let [before, after] = [&base.image, &image].map(|image| base::read(image, BlockAddr(block), BLOCK_SIZE));
        let differs = |at: &usize| before[*at] != after[*at];
        let mut at = 0;
        while let Some(from) = (at..BLOCK_SIZE).find(differs) {
            let end = (from..BLOCK_SIZE).find(|at| !differs(at)).unwrap_or(BLOCK_SIZE);
            let (was, is) = (crate::hex(&before[from..end]), crate::hex(&after[from..end]));
            out.push(format!("block {block} byte {from}: {was} -> {is}"));
            at = end;
        }
    }
    out
}

pub fn image(input: &[u8]) -> bool {
    let Some((_, image, forged)) = changed(input) else { return false };
    run::dumped(&image);
    let whole = run::checked(&image).is_ok_and(|report| report.problem_count == 0);
    let (served, after) = run::served(&image);
    // A newer version's filesystem may be read and not written, and all free chunks may be said to be for data, which leaves none
    // for logs.
    if whole && !matches!(served, Err(StoreError::Features { .. } | StoreError::NoSpace)) {
        served.unwrap_or_else(|e| panic!("it is whole and is not served: {e}"));
        if forged {
            return true;
        }
        let again = run::checked(&after).unwrap_or_else(|e| panic!("it was whole and was served, and then: {e}"));
        assert!(again.problem_count == 0, "it was whole and was served, and then: {:?}", again.problems);
    }
    let (repaired, after) = run::repaired(&image);
    if repaired {
        run::checked(&after).unwrap_or_else(|e| panic!("it was repaired, and then: {e}"));
    }
    whole
}

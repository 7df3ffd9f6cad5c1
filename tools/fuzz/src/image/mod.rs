//! Whole images: a small legal filesystem is changed here and there, and everything that reads one is let loose on it.
//! What comes out is what was there, a repair, or an error; never a panic, a loop without end, or memory without bound.
//!
//! An input is the number of a base image and a list of changes, eight bytes each, from which a change is drawn.

mod base;
mod forge;
mod run;

use base::bases;
use vellum_base::prng::Prng;
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

pub fn image(input: &[u8]) -> bool {
    let Some((number, changes)) = input.split_first() else { return false };
    let Some(base) = bases().get(usize::from(*number)) else { return false };
    let mut image = base.image.clone();
    for change in changes.as_chunks::<8>().0 {
        forge::change(base, &mut image, u64::from_le_bytes(*change));
    }
    run::dumped(&image);
    let whole = run::checked(&image).is_ok_and(|report| report.problem_count == 0);
    let (served, after) = run::served(&image);
    // A newer version's filesystem may be read and not written.
    if whole && !matches!(served, Err(StoreError::Features { .. })) {
        served.unwrap_or_else(|e| panic!("it is whole and is not served: {e}"));
        let again = run::checked(&after).unwrap_or_else(|e| panic!("it was whole and was served, and then: {e}"));
        assert!(again.problem_count == 0, "it was whole and was served, and then: {:?}", again.problems);
    }
    let (repaired, after) = run::repaired(&image);
    if repaired {
        run::checked(&after).unwrap_or_else(|e| panic!("it was repaired, and then: {e}"));
    }
    whole
}

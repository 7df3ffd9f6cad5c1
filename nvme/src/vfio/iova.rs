//! Where in a device's address space the arena is.

use std::ops::RangeInclusive;

use vellum_base::dma::arena::{GRANULE_BYTES, SPAN_BYTES};

/// Where it is when nothing speaks against it: above what machines reserve below 4 GiB (interrupts, firmware), and with the
/// whole span within the 39 bits that every IOMMU has.
const PREFERRED: u64 = 1 << 32;
const _: () = assert!(PREFERRED + SPAN_BYTES as u64 <= 1 << 39);

/// The device address of the arena's first byte, such that all of the arena that will ever be is in one of the `allowed`
/// ranges: [`PREFERRED`], or else the lowest. Never 0, which some controllers take for no address.
pub(super) fn base(allowed: &[RangeInclusive<u64>]) -> Option<u64> {
    let fits = |base: u64, range: &RangeInclusive<u64>| {
        base.checked_add(SPAN_BYTES as u64 - 1).is_some_and(|last| range.contains(&base) && range.contains(&last))
    };
    if allowed.iter().any(|range| fits(PREFERRED, range)) {
        return Some(PREFERRED);
    }
    let lowest = |range: &RangeInclusive<u64>| {
        let base = (*range.start()).max(1).checked_next_multiple_of(GRANULE_BYTES as u64)?;
        fits(base, range).then_some(base)
    };
    allowed.iter().filter_map(lowest).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u64 = SPAN_BYTES as u64;
    const GRANULE: u64 = GRANULE_BYTES as u64;

    #[test]
    fn the_arena_is_put_where_the_machine_allows_it() {
        let below_interrupts = 0..=0xfedf_ffff;
        assert_eq!(base(&[0..=u64::MAX]), Some(PREFERRED));
        assert_eq!(base(&[below_interrupts.clone(), 0xfef0_0000..=(1 << 39) - 1]), Some(PREFERRED), "an Intel machine");
        let window = [below_interrupts.clone(), 0xfef0_0000..=(1 << 33) - 1, 1 << 34..=(1 << 48) - 1];
        assert_eq!(base(&window), Some(1 << 34), "a window of a bridge is in the way");
        assert_eq!(base(&[5..=GRANULE + SPAN - 1]), Some(GRANULE), "a whole granule, and never address 0");
        assert_eq!(base(&[5..=GRANULE + SPAN - 2]), None, "one byte too few");
        assert_eq!(base(&[below_interrupts]), None);
        assert_eq!(base(&[u64::MAX - 1..=u64::MAX]), None);
        assert_eq!(base(&[]), None);
    }
}

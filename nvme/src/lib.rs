//! Polled block devices behind one Device trait.

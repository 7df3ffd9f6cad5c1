//! What archive agents ask: walks, paths, totals.

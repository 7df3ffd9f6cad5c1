//! The node: sessions and locks wired to the store.

//! Counters of one client.

use std::cell::Cell;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Default)]
        pub(crate) struct Counters { $(pub $name: Cell<u64>,)* }

        /// What the client has done since it began, and what it holds now.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct ClientStats {
            $($(#[$doc])* pub $name: u64,)*
            pub locks_held: u64,
            pub cached_bytes: u64,
            pub cached_groups: u64,
            pub retained_batches: u64,
            pub retained_batch_bytes: u64,
            pub retained_data_bytes: u64,
        }

        impl Counters {
            pub fn snapshot(&self) -> ClientStats {
                ClientStats { $($name: self.$name.get(),)* ..ClientStats::default() }
            }
        }
    };
}

counters! {
    /// `lock` calls answered from cached leases, and by the engine.
    lock_hits, lock_requests,
    invalidations, locks_given_back,
    item_hits, item_misses, scan_hits, scan_misses, evictions,
    txns, ops,
    batches, batch_ops, syncs, sync_requests,
    data_blocks_written, data_blocks_read, data_blocks_from_memory,
    groups_allocated,
    recoveries, batches_resent, data_runs_resent,
}

pub(crate) fn count(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

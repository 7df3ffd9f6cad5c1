//! What the store tells about itself, as operators get it.

use serde_json::{Value, json};
use vellum_store::{Growth, LastScrub, ReactorStatus, ScrubStatus, ShardStatus, StoreStatus};

pub(crate) fn status(status: &StoreStatus) -> Value {
    json!({
        "term": status.term.0,
        "open_epoch": status.open_epoch.0,
        "durable_epoch": status.durable_epoch.0,
        "failed": status.failed,
        "manifest_generation": status.manifest_generation,
        "segments": status.segments,
        "seals_used": status.seals_used,
        "seals_bound": status.seals_bound,
        "withheld_blocks": status.withheld_blocks,
        "free_chunks": status.free_chunks,
        "reserve_chunks": status.reserve_chunks,
        "scrub": {
            "running": status.scrub.running,
            "read_bytes": status.scrub.read_bytes,
            "problems": status.scrub.problems,
            "repaired": status.scrub.repaired,
            "completed": status.scrub.completed,
            "last": status.scrub.last.map(last_scrub),
            "next_at_s": status.scrub.next_at_s,
        },
        "evacuation": {
            "running": status.evacuation.running,
            "passes": status.evacuation.passes,
            "moved_bytes": status.evacuation.moved_bytes,
            "moved_extents": status.evacuation.moved_extents,
            "problems": status.evacuation.problems,
            "last_error": status.evacuation.last_error,
        },
        "space": {
            "block_bytes": status.space.block_bytes,
            "total_blocks": status.space.total_blocks,
            "free_blocks": status.space.free_blocks,
            "used_data_blocks": status.space.used_data_blocks,
            "metadata_blocks": status.space.metadata_blocks,
        },
        "memory": {
            "buffer_bytes": status.memory.buffer_bytes,
            "buffer_used_bytes": status.memory.buffer_used_bytes,
            "bound_bytes": status.memory.bound_bytes,
        },
        "reactors": status.reactors.iter().map(reactor).collect::<Vec<_>>(),
    })
}

fn reactor(r: &ReactorStatus) -> Value {
    json!({
        "reactor": r.reactor.0,
        "shards": r.shards.len(),
        "shard_ranges": r.shards.iter().map(shard).collect::<Vec<_>>(),
        "shard_bound_bytes": r.shard_bound_bytes,
        "splits": r.splits,
        "shards_moved": r.moves.done,
        "moves_given_up": r.moves.given_up,
        "last_move_stall_us": r.moves.last.as_micros() as u64,
        "longest_move_stall_us": r.moves.longest.as_micros() as u64,
        "memtable_bytes": r.memtable_bytes,
        "memtable_bound_bytes": r.memtable_bound_bytes,
        "frozen_tables": r.frozen_tables,
        "pressure": r.pressure,
        "compaction_debt": r.compaction_debt,
        "write_bound_bytes_per_s": r.write_bound_bytes_per_s,
        "slowed_batches": r.slowed_batches,
        "slowed_ms": r.slowed.as_millis() as u64,
        "compactions": {
            "running": r.compactions.running,
            "running_bound": r.compactions.running_bound,
            "handed_over": r.compactions.handed_over,
            "done": r.compactions.done,
            "done_elsewhere": r.compactions.done_elsewhere,
            "failed": r.compactions.failed,
            "lost": r.compactions.lost,
            "withheld_blocks": r.compactions.withheld_blocks,
            "resting_shards": r.compactions.resting_shards,
            "last_error": r.compactions.last_error,
        },
        "log_used_bytes": r.log_used_bytes,
        "log_bound_bytes": r.log_bound_bytes,
        "open_part_bytes": r.open_part_bytes,
        "data_chunks": r.data_chunks,
        "free_blocks": r.free_blocks,
        "used_blocks": r.used_blocks,
        "pending_blocks": r.pending_blocks,
        "waiting_blocks": r.waiting_blocks,
        "draining_chunks": r.draining_chunks,
        "emptied_chunks": r.emptied_chunks,
        "reservations": r.reservations,
        "clients": r.clients,
        "io_in_flight": r.io_in_flight,
        "cache_bytes": r.cache.bytes,
        "cache_hits": r.cache.hits,
        "cache_misses": r.cache.misses,
        "cache_bound_bytes": r.cache_bound_bytes,
        "batches": r.batches,
        "epochs_with_changes": r.epochs_with_changes,
    })
}

fn shard(s: &ShardStatus) -> Value {
    json!({
        "id": s.id.0,
        "first_bucket": s.first_bucket.0,
        "last_bucket": s.last_bucket.0,
        "segments": s.segments,
        "segment_bytes": s.segment_bytes,
        "clipped_segments": s.clipped,
        "memtable_bytes": s.memtable_bytes,
    })
}

pub(crate) fn growth(growth: &Growth) -> Value {
    json!({
        "before_bytes": growth.before_bytes,
        "after_bytes": growth.after_bytes,
        "device_bytes": growth.device_bytes,
    })
}

/// The last one that saw everything, also of an earlier run of the engine.
fn last_scrub(last: LastScrub) -> Value {
    json!({ "ended_at_s": last.ended_at_s, "problems": last.problems, "repaired": last.repaired })
}

pub(crate) fn scrub(status: &ScrubStatus) -> Value {
    let findings = status.findings.iter().map(|found| {
        json!({
            "place": found.place, "detail": found.detail, "affects": found.affects,
            "repaired": found.repaired, "advice": found.advice,
        })
    });
    json!({
        "running": status.running,
        "phase": status.phase,
        "rate_bytes_per_s": status.rate_bytes_per_s,
        "read_bytes": status.read_bytes,
        "expected_bytes": status.expected_bytes,
        "problems": status.problems,
        "repaired": status.repaired,
        "completed": status.completed,
        "last": status.last.map(last_scrub),
        "next_at_s": status.next_at_s,
        "ended_early": status.ended_early,
        "findings": findings.collect::<Vec<_>>(),
    })
}

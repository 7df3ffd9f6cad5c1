//! The quorum as people and tools see it: of a running member, and of the blocks on the device.

use std::time::Duration;

use serde_json::{Value, json};
use vellum_base::Slot;
use vellum_format::quorum::{EventKind, SlotBlock, SlotEvent, SlotState};
use vellum_proto::quorum::{DELAY_BOUNDS_MS, DelayRecord, QuorumRole, QuorumStatus};

use super::blocks::{Membership, open_leaderships};

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn event(event: &SlotEvent) -> Value {
    json!({
        "write": event.write,
        "rid": event.rid.to_string(),
        "term": event.term.0,
        "vote": event.vote.map(|slot| slot.0),
        "time_ms": event.time_ms,
        "pid": event.process.pid,
    })
}

fn events(block: &SlotBlock) -> Value {
    let each = EventKind::ALL.into_iter().filter_map(|kind| {
        let name = format!("{kind:?}").to_lowercase();
        Some((name, event(block.get(kind)?)))
    });
    Value::Object(each.collect())
}

/// What the slots' blocks say, of slots that have an address or a block.
pub fn block_status(members: &Membership, blocks: &[SlotState]) -> Value {
    let mut slots = Vec::new();
    let open = open_leaderships(blocks);
    for (slot, state) in Slot::all().zip(blocks) {
        let address = members.address(slot).map(|address| address.to_string());
        let mut of_slot = match state {
            SlotState::Empty if address.is_none() => continue,
            SlotState::Empty => json!({ "state": "never started" }),
            SlotState::Unreadable(error) => json!({ "state": "unreadable", "error": error.to_string() }),
            SlotState::Written(block) => json!({
                "state": if block.running().is_some() { "started" } else { "ended" },
                "elected": open.iter().find(|elect| block.unstopped() == Some(*elect)).map(|elect| elect.term.0),
                "events": events(block),
            }),
        };
        if let Value::Object(fields) = &mut of_slot {
            fields.insert("slot".into(), json!(slot.0));
            fields.insert("address".into(), json!(address));
        }
        slots.push(of_slot);
    }
    json!({ "fsid": members.fsid.to_string(), "slots": slots })
}

fn delays(record: &DelayRecord) -> Value {
    json!({
        "bounds_ms": DELAY_BOUNDS_MS,
        "counts": record.counts(),
        "longest_ms": record.longest().map(|(gap, _)| ms(gap)),
    })
}

/// What a running member knows.
pub fn quorum_status(status: &QuorumStatus, members: &Membership) -> Value {
    let role = match status.role {
        QuorumRole::PreCandidate => "pre-candidate".to_owned(),
        role => format!("{role:?}").to_lowercase(),
    };
    let peers: Vec<Value> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "slot": peer.slot.0,
                "rid": peer.rid.map(|rid| rid.to_string()),
                "term": peer.term.0,
                "heard_ms_ago": peer.heard_ago.map(ms),
                "written_ms_ago": peer.written_ago.map(ms),
                "delays": delays(&peer.delays),
            })
        })
        .collect();
    let fencing: Vec<Value> = status
        .fencing
        .iter()
        .map(|target| {
            json!({
                "slot": target.slot.0,
                "rid": target.rid.map(|rid| rid.to_string()),
                "term": target.term.map(|term| term.0),
                "reason": target.reason.to_string(),
            })
        })
        .collect();
    let counters = &status.counters;
    json!({
        "slot": status.slot.0,
        "rid": status.rid.to_string(),
        "role": role,
        "term": status.term.0,
        "leader": status.leader.map(|slot| slot.0),
        "peers": peers,
        "fencing": fencing,
        "error": status.error,
        "write_latency_ms": ms(status.write_latency),
        "write_stalled_ms": ms(status.write_stalled),
        "write_errors": status.write_errors,
        "elections": counters.elections,
        "elected": counters.elected,
        "deposed": counters.deposed,
        "fences": counters.fences,
        "fences_failed": counters.fences_failed,
        "late_wakes": counters.late_wakes,
        "dropped_datagrams": counters.dropped,
        "blocks": block_status(members, &status.blocks),
    })
}

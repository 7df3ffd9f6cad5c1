//! status, locks, clients: what an operator looks at first, and the one thing to do about a client.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_base::Rid;
use vellum_wire::AdminRequest;

use crate::cli::{Clients, ClientsCommand, KeyArgs, List, On};
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::figures;
use crate::session::with_client;
use crate::{duration, size};

fn ask(on: &str, keys: &KeyArgs, what: AdminRequest) -> Result<String> {
    with_client(&Target::parse_or_mounted(on)?, keys, async |client| Ok(client.admin(what).await?))
}

fn read(json: &str) -> Result<Value> {
    serde_json::from_str(json).context("the engine's answer cannot be read")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn sum(list: &Value, path: &str) -> u64 {
    list.as_array().into_iter().flatten().filter_map(|one| one.pointer(path)?.as_u64()).sum()
}

fn ago(ms: &Value) -> String {
    let time = Duration::from_millis(number(ms));
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        s @ 1..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

// ---- status

pub fn status(args: &On) -> Result<()> {
    let (json, value) = match figures::address(&args.on) {
        Some(address) => {
            let value = figures::status(address)?;
            (value.to_string(), value)
        }
        None => {
            let target = Target::parse_or_mounted(&args.on)?;
            let json = with_client(&target, &args.keys, async |client| Ok(client.status().await?))?;
            let value = read(&json)?;
            (json, value)
        }
    };
    if args.json {
        println!("{json}");
    } else if value["leads"] == 0 {
        print!("{}", follower(&value));
    } else {
        print!("{}", summary(&value));
    }
    Ok(())
}

/// What a member knows that does not lead.
fn follower(status: &Value) -> String {
    let quorum = &status["quorum"];
    let leader = match (quorum["leader"].as_u64(), status["leader_address"].as_str()) {
        (Some(slot), Some(address)) => {
            format!("slot {slot} at {address}, heard {} ms ago", text(&status["leader_heard_ms_ago"]))
        }
        _ => "nobody that is known here".to_owned(),
    };
    let mut out = format!("filesystem   {}\n", text(&status["fsid"]));
    out += &format!(
        "member       slot {}, {}, term {}\n",
        number(&quorum["slot"]),
        text(&quorum["role"]),
        number(&status["term"])
    );
    out += &format!("leader       {leader}\n");
    if let Some(why) = quorum["error"].as_str() {
        out += &format!("quorum error {why}\n");
    }
    out
}

/// How many there are on each reactor, and the longest.
fn shards(reactors: &Value) -> String {
    let all = || reactors.as_array().into_iter().flatten();
    let counts: Vec<String> = all().map(|reactor| number(&reactor["shards"]).to_string()).collect();
    let ranges = all().flat_map(|reactor| reactor["shard_ranges"].as_array().into_iter().flatten());
    let longest = ranges.map(|shard| number(&shard["segment_bytes"])).max().unwrap_or(0);
    let bound = all().map(|reactor| number(&reactor["shard_bound_bytes"])).max().unwrap_or(0);
    let moved: u64 = all().map(|reactor| number(&reactor["shards_moved"])).sum();
    let moved = if moved > 0 { format!("; {moved} have moved") } else { String::new() };
    let (longest, bound) = (size::show(longest), size::show(bound));
    format!("{} on the reactors; the longest has {longest} of {bound}{moved}", counts.join(", "))
}

/// The status in a screenful: what is wrong first.
fn summary(status: &Value) -> String {
    let (store, reactors) = (&status["store"], &status["reactors"]);
    let mut out = String::new();
    let mut line = |name: &str, value: String| out.push_str(&format!("{name:<12} {value}\n"));
    line("filesystem", text(&status["fsid"]));
    let quorum = &status["quorum"];
    match quorum["leader"].as_u64() {
        Some(leader) => line("leader", format!("slot {leader}, term {}", number(&status["term"]))),
        None => line("term", number(&status["term"]).to_string()),
    }
    for peer in quorum["peers"].as_array().into_iter().flatten() {
        let heard = match &peer["heard_ms_ago"] {
            Value::Null => "not heard of".to_owned(),
            ms => format!("heard {:.0} ms ago", ms.as_f64().unwrap_or(0.0)),
        };
        let longest =
            peer["delays"]["longest_ms"].as_f64().map_or(String::new(), |ms| format!(", longest gap {ms:.0} ms"));
        line("node", format!("slot {}: {heard}{longest}", number(&peer["slot"])));
    }
    for (name, value) in [("failed", &store["failed"]), ("quorum error", &quorum["error"])] {
        if let Some(why) = value.as_str() {
            line(name, why.to_owned());
        }
    }
    let waits_for = sum(reactors, "/recovery_waits_for");
    if waits_for > 0 || reactors.pointer("/0/locks/recovering").and_then(Value::as_bool) == Some(true) {
        line("recovery", format!("waits for {waits_for} clients of the term before; no lock is granted meanwhile"));
    }
    let lag = number(&store["open_epoch"]).saturating_sub(number(&status["durable_epoch"]) + 1);
    line("epochs", format!("durable {}, {lag} on their way", number(&status["durable_epoch"])));
    line(
        "clients",
        format!(
            "{} ({} not back yet, {} reclaimed), at most {}",
            sum(reactors, "/clients"),
            sum(reactors, "/clients_not_returned"),
            sum(reactors, "/clients_reclaimed"),
            number(&status["limits"]["clients"])
        ),
    );
    line(
        "locks",
        format!(
            "{}, {} waited for; {} granted, {} taken back",
            sum(reactors, "/locks/locks"),
            sum(reactors, "/locks/waited_for"),
            sum(reactors, "/locks/granted"),
            sum(reactors, "/locks/invalidations")
        ),
    );
    let space = &store["space"];
    let bytes = |blocks: u64| size::show(blocks * number(&space["block_bytes"]).max(1));
    line(
        "space",
        format!("{} free of {}", bytes(number(&space["free_blocks"])), bytes(number(&space["total_blocks"]))),
    );
    let store_reactors = &store["reactors"];
    let of = |used: &str, bound: &str| {
        format!("{} of {}", size::show(sum(store_reactors, used)), size::show(sum(store_reactors, bound)))
    };
    line("log", of("/log_used_bytes", "/log_bound_bytes"));
    line("shards", shards(store_reactors));
    line("memtables", of("/memtable_bytes", "/memtable_bound_bytes"));
    line("block cache", of("/cache_bytes", "/cache_bound_bytes"));
    let memory = |name: &str| size::show(number(&store["memory"][name]));
    line(
        "buffers",
        format!(
            "{}, {} in use; with memtables and the rest at most {}",
            memory("buffer_bytes"),
            memory("buffer_used_bytes"),
            memory("bound_bytes")
        ),
    );
    line("client memory", client_memory(reactors, &status["limits"]));
    let scrub = &store["scrub"];
    if let Some(what) = scrubs(scrub, seconds_since_1970()) {
        line("scrub", what);
    }
    if let Some(what) = evacuation(store) {
        line("evacuation", what);
    }
    line(
        "compaction",
        format!(
            "{} running, {} done, {} failed; {} batches were slowed",
            sum(store_reactors, "/compactions/running"),
            sum(store_reactors, "/compactions/done"),
            sum(store_reactors, "/compactions/failed"),
            sum(store_reactors, "/slowed_batches")
        ),
    );
    for kind in ["commit", "sync", "lock"] {
        let worst = |figure: &str| {
            let all = reactors.as_array().into_iter().flatten();
            all.map(|r| number(&r["latencies_us"][kind][figure])).max().unwrap_or(0)
        };
        let count = sum(reactors, &format!("/latencies_us/{kind}/count"));
        if count > 0 {
            let figures = format!(
                "{count} times; worst reactor: median {} us, 99 % {} us, longest {} us",
                worst("p50"),
                worst("p99"),
                worst("max")
            );
            line(&format!("{kind} takes"), figures);
        }
    }
    out
}

fn seconds_since_1970() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The scrub that runs, or what the last one found, and when the next one begins; nothing where there was none and none is due.
fn scrubs(scrub: &Value, now_s: u64) -> Option<String> {
    let found = |of: &Value| format!("{} problems, {} repaired", number(&of["problems"]), number(&of["repaired"]));
    let mut parts = Vec::new();
    if scrub["running"] == Value::Bool(true) {
        parts.push(format!("running, {} read, {}", size::show(number(&scrub["read_bytes"])), found(scrub)));
    } else if number(&scrub["problems"]) > 0 {
        parts.push(format!("{} read, {}", size::show(number(&scrub["read_bytes"])), found(scrub)));
    }
    if let Some(ended) = scrub["last"]["ended_at_s"].as_u64() {
        let ago = duration::show(now_s.saturating_sub(ended));
        parts.push(format!("last one ended {ago} ago ({})", found(&scrub["last"])));
    }
    if let Some(next) = scrub["next_at_s"].as_u64() {
        parts.push(format!("next one in {}", duration::show(next.saturating_sub(now_s))));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// How sparse chunks are emptied; nothing where that was never needed.
fn evacuation(store: &Value) -> Option<String> {
    let (status, reactors) = (&store["evacuation"], &store["reactors"]);
    if number(&status["passes"]) == 0 {
        return None;
    }
    let running = if status["running"] == Value::Bool(true) { "running, " } else { "" };
    let mut what = format!(
        "{running}{} chunks emptied, {} moved in {} passes; {} chunks are free, {} of them kept back",
        sum(reactors, "/emptied_chunks"),
        size::show(number(&status["moved_bytes"])),
        number(&status["passes"]),
        number(&store["free_chunks"]),
        number(&store["reserve_chunks"]).min(number(&store["free_chunks"])),
    );
    if number(&status["problems"]) > 0 {
        what.push_str(&format!("; {} rotten blocks stay where they are", number(&status["problems"])));
    }
    if let Some(error) = status["last_error"].as_str() {
        what.push_str(&format!("; a pass ended early: {error}"));
    }
    Some(what)
}

/// What clients hold of the engine's memory: requests not answered and their data, and the largest client's share.
fn client_memory(reactors: &Value, limits: &Value) -> String {
    let clients = || reactors.as_array().into_iter().flatten().filter_map(|r| r["client_list"].as_array()).flatten();
    let sum_of = |name: &str| clients().map(|client| number(&client[name])).sum::<u64>();
    let most = |name: &str| clients().map(|client| number(&client[name])).max().unwrap_or(0);
    format!(
        "{} in {} requests; the most of one client: {} of {}, {} of {} requests",
        size::show(sum_of("bytes")),
        sum_of("requests"),
        size::show(most("bytes")),
        size::show(number(&limits["data_bytes_per_client"])),
        most("requests"),
        number(&limits["requests_per_client"])
    )
}

// ---- locks

pub fn locks(args: &List) -> Result<()> {
    let json = ask(&args.on.on, &args.on.keys, AdminRequest::Locks { max: args.max })?;
    if args.on.json {
        println!("{json}");
    } else {
        print!("{}", locks_text(&read(&json)?));
    }
    Ok(())
}

fn locks_text(list: &Value) -> String {
    let mut out = format!(
        "{} locks, {} of them waited for by {} requests\n",
        number(&list["locks"]),
        number(&list["waited_for"]),
        number(&list["waiting"])
    );
    for lock in list["listed"].as_array().into_iter().flatten() {
        out.push_str(&format!("{}\n", text(&lock["lock"])));
        for holder in lock["holders"].as_array().into_iter().flatten() {
            let asked = holder["asked_for"].as_str().map_or(String::new(), |to| format!(", asked to go to {to}"));
            let (rid, mode) = (text(&holder["rid"]), text(&holder["mode"]));
            out.push_str(&format!("  {rid} holds {mode} for {}{asked}\n", ago(&holder["since_ms"])));
        }
        for waiter in lock["waiters"].as_array().into_iter().flatten() {
            let (rid, mode) = (text(&waiter["rid"]), text(&waiter["mode"]));
            out.push_str(&format!("  {rid} waits for {mode} since {}\n", ago(&waiter["since_ms"])));
        }
    }
    left_off(&mut out, list, "locks");
    out.push_str(&file_locks_text(&list["file_locks"]));
    out
}

/// What applications hold: fcntl (also of open file descriptions) and flock.
fn file_locks_text(list: &Value) -> String {
    let mut out = format!(
        "{} file locks on {} files, {} requests wait\n",
        number(&list["held"]),
        number(&list["files"]),
        number(&list["waiting"])
    );
    let range = |one: &Value| match one["end"].as_u64() {
        Some(end) if end < i64::MAX as u64 => format!("bytes {}-{end}", number(&one["start"])),
        _ => format!("bytes {}-", number(&one["start"])),
    };
    for file in list["listed"].as_array().into_iter().flatten() {
        out.push_str(&format!("inode {}\n", number(&file["ino"])));
        for (who, does) in [("holders", "holds"), ("waiters", "waits for")] {
            for one in file[who].as_array().into_iter().flatten() {
                let (rid, kind, mode, pid) =
                    (text(&one["rid"]), text(&one["kind"]), text(&one["mode"]), number(&one["pid"]));
                out.push_str(&format!("  {rid} pid {pid} {does} {kind} {mode}, {}\n", range(one)));
            }
        }
    }
    out
}

fn left_off(out: &mut String, list: &Value, what: &str) {
    match number(&list["left_off"]) {
        0 => {}
        n => out.push_str(&format!("and {n} more {what}\n")),
    }
}

// ---- clients

pub fn clients(args: &Clients) -> Result<()> {
    if let Some(ClientsCommand::Evict { rid, on }) = &args.command {
        return evict(rid, on);
    }
    let on = args.on.as_deref().context("clients takes ENDPOINT|DIR").exit(Exit::Usage)?;
    let json = ask(on, &args.keys, AdminRequest::Clients { max: args.max })?;
    if args.json {
        println!("{json}");
    } else {
        print!("{}", clients_text(&read(&json)?));
    }
    Ok(())
}

fn clients_text(list: &Value) -> String {
    let mut out = format!("{:<16} {:<12} {:>8} {:>8} {:>12}  who\n", "rid", "phase", "locks", "waits", "last batch");
    for client in list["listed"].as_array().into_iter().flatten() {
        let phase = if client["connected"] == Value::Bool(true) { text(&client["phase"]) } else { "away".into() };
        out.push_str(&format!(
            "{:<16} {phase:<12} {:>8} {:>8} {:>12}  {}\n",
            text(&client["rid"]),
            number(&client["locks"]),
            number(&client["locks_waited_for"]),
            number(&client["last_batch"]),
            text(&client["who"])
        ));
    }
    left_off(&mut out, list, "clients");
    out
}

fn evict(rid: &str, on: &On) -> Result<()> {
    let number = u64::from_str_radix(rid, 16);
    let number = number.with_context(|| format!("{rid:?} is no rid; `vellum clients` shows them")).exit(Exit::Usage)?;
    let json = ask(&on.on, &on.keys, AdminRequest::Evict { rid: Rid(number) })?;
    if on.json {
        println!("{json}");
    } else {
        let within = ago(&read(&json)?["reclaimed_within_ms"]);
        println!("{rid} has lost its connection and is not let in again; what it held is free within {within}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_tells_of_scrubs() {
        let day = 24 * 3600;
        let last = json!({ "ended_at_s": 90 * day, "problems": 2, "repaired": 1 });
        let status = json!({ "running": false, "problems": 0, "last": last, "next_at_s": 120 * day });
        let told = scrubs(&status, 100 * day).unwrap();
        assert_eq!(told, "last one ended 10 days ago (2 problems, 1 repaired); next one in 20 days");
        let running =
            json!({ "running": true, "read_bytes": 1 << 20, "problems": 0, "repaired": 0, "next_at_s": null });
        assert_eq!(scrubs(&running, 0).unwrap(), "running, 1.0 MiB read, 0 problems, 0 repaired");
        assert_eq!(scrubs(&json!({ "running": false, "problems": 0 }), 0), None);
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let status = json!({
            "fsid": "f", "term": 33, "durable_epoch": 10, "limits": { "clients": 4096 },
            "quorum": { "leader": 1, "error": "fencing failed", "peers": [{ "slot": 2, "heard_ms_ago": null, "delays": {} }] },
            "store": { "open_epoch": 13, "failed": "a flush failed", "space": { "block_bytes": 4096, "free_blocks": 1, "total_blocks": 2 },
                       "reactors": [{ "shards": 3, "shard_bound_bytes": 1 << 30, "shard_ranges": [{ "segment_bytes": 5 << 20 }] },
                                    { "shards": 2, "shard_bound_bytes": 1 << 30, "shard_ranges": [] }] },
            "reactors": [{ "clients": 3, "recovery_waits_for": 2, "locks": { "recovering": true, "locks": 7, "waited_for": 1 },
                           "latencies_us": { "sync": { "count": 5, "p50": 100, "p99": 200, "max": 300 } } }],
        });
        let text = summary(&status);
        for part in [
            "slot 1, term 33",
            "slot 2: not heard of",
            "a flush failed",
            "fencing failed",
            "waits for 2 clients",
            "durable 10, 2 on their way",
            "7, 1 waited for",
            "median 100 us",
            "3, 2 on the reactors",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn locks_and_clients_are_listed() {
        let list = json!({ "locks": 9, "waited_for": 1, "waiting": 1, "left_off": 8, "listed": [{
            "lock": "group 5",
            "holders": [{ "rid": "aa", "mode": "write", "since_ms": 2500, "asked_for": "null" }],
            "waiters": [{ "rid": "bb", "mode": "read", "since_ms": 300_000 }],
        }] });
        let text = locks_text(&list);
        assert!(text.contains("aa holds write for 2 s, asked to go to null"), "{text}");
        assert!(text.contains("bb waits for read since 5 min") && text.contains("and 8 more locks"), "{text}");
        assert!(text.contains("0 file locks on 0 files"), "{text}");
        let one =
            |pid, end| json!({ "rid": "cc", "kind": "fcntl", "mode": "exclusive", "start": 5, "end": end, "pid": pid });
        let text = file_locks_text(&json!({ "held": 1, "files": 1, "waiting": 1, "listed": [
            { "ino": 77, "holders": [one(8, 9u64)], "waiters": [one(9, i64::MAX as u64)] } ] }));
        assert!(text.contains("inode 77\n  cc pid 8 holds fcntl exclusive, bytes 5-9\n"), "{text}");
        assert!(text.contains("  cc pid 9 waits for fcntl exclusive, bytes 5-\n"), "{text}");
        let list = json!({ "clients": 1, "left_off": 0, "listed": [
            { "rid": "aa", "phase": "serving", "connected": false, "locks": 3, "last_batch": 7, "who": "uid 0, pid 9" } ] });
        let text = clients_text(&list);
        assert!(text.contains("away") && text.contains("uid 0, pid 9"), "{text}");
    }
}

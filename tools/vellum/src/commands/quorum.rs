//! quorum status, quorum change: the members of a cluster.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vellum_format::SlotState;
use vellum_server::cluster::{Membership, block_status, open_leaderships, read_blocks};
use vellum_store::SlotChange;

use crate::cli::{KeyArgs, Quorum, QuorumChange};
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::session::with_client;
use crate::{device, slots};

pub fn quorum(what: &Quorum) -> Result<()> {
    match what {
        Quorum::Status { on, json, keys } => status(on, *json, keys),
        Quorum::Change(args) => change(args),
    }
}

fn status(on: &str, json: bool, keys: &KeyArgs) -> Result<()> {
    let value = if is_device(on) { of_device(on)? } else { of_leader(on, keys)? };
    if json {
        return print(&format!("{value}\n"));
    }
    let mut out = String::new();
    show(&mut out, &value)?;
    print(&out)
}

/// A reader of our pipe that has seen enough is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// What is neither an endpoint nor a directory is a device.
fn is_device(on: &str) -> bool {
    if ["unix:", "tcp:"].iter().any(|scheme| on.starts_with(scheme)) {
        return false;
    }
    !std::path::Path::new(on).is_dir()
}

fn of_device(spec: &str) -> Result<Value> {
    let spec = spec.strip_prefix("file:").unwrap_or(spec);
    let target = device::observe(spec)?;
    device::with_queue(&target, async |queue| {
        let members = Membership::of(&vellum_store::read_superblock(&queue).await.exit(Exit::Device)?);
        Ok(block_status(&members, &read_blocks(&queue, &members).await))
    })
}

fn of_leader(on: &str, keys: &KeyArgs) -> Result<Value> {
    let text = with_client(&Target::parse_or_mounted(on)?, keys, async |client| Ok(client.status().await?))?;
    let value: Value = serde_json::from_str(&text).context("the engine's status cannot be read")?;
    match value.get("quorum") {
        Some(quorum) if !quorum.is_null() => Ok(quorum.clone()),
        _ => Err(anyhow::anyhow!("{on} is served by a single node: there is no quorum")).exit(Exit::Endpoint),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn show(out: &mut String, value: &Value) -> fmt::Result {
    if let Some(role) = value.get("role") {
        writeln!(
            out,
            "slot {} is {}, term {}, leader {}; elections {}, elected {}, deposed {}, fences {} ({} failed)",
            text(&value["slot"]),
            text(role),
            text(&value["term"]),
            text(&value["leader"]),
            text(&value["elections"]),
            text(&value["elected"]),
            text(&value["deposed"]),
            text(&value["fences"]),
            text(&value["fences_failed"]),
        )?;
        if !value["error"].is_null() {
            writeln!(out, "last error: {}", text(&value["error"]))?;
        }
        for peer in value["peers"].as_array().into_iter().flatten() {
            writeln!(
                out,
                "  slot {:>2}: heard {} ms ago, wrote {} ms ago, longest gap {} ms, term {}",
                text(&peer["slot"]),
                text(&peer["heard_ms_ago"]),
                text(&peer["written_ms_ago"]),
                text(&peer["delays"]["longest_ms"]),
                text(&peer["term"]),
            )?;
        }
        for target in value["fencing"].as_array().into_iter().flatten() {
            writeln!(
                out,
                "  fencing slot {}, term {}: {}",
                text(&target["slot"]),
                text(&target["term"]),
                text(&target["reason"])
            )?;
        }
        return show_blocks(out, &value["blocks"]);
    }
    show_blocks(out, value)
}

fn show_blocks(out: &mut String, value: &Value) -> fmt::Result {
    writeln!(out, "fsid {}", text(&value["fsid"]))?;
    let slots = value["slots"].as_array().map(Vec::as_slice).unwrap_or_default();
    if slots.is_empty() {
        writeln!(out, "no slots: a single node serves it")?;
    }
    for slot in slots {
        let elected = match slot.get("elected") {
            Some(Value::Number(term)) => format!(", leads (or died leading) in term {term}"),
            _ => String::new(),
        };
        writeln!(
            out,
            "slot {:>2} {:<24} {}{elected}",
            text(&slot["slot"]),
            text(&slot["address"]),
            text(&slot["state"])
        )?;
        if let Some(error) = slot.get("error") {
            writeln!(out, "        {}", text(error))?;
        }
        for (name, event) in slot.get("events").and_then(Value::as_object).into_iter().flatten() {
            let vote = if event["vote"].is_null() { String::new() } else { format!(" vote {}", text(&event["vote"])) };
            writeln!(
                out,
                "        {name:<6} term {:<8} rid {} write {}{vote}",
                text(&event["term"]),
                text(&event["rid"]),
                text(&event["write"])
            )?;
        }
    }
    Ok(())
}

fn change(args: &QuorumChange) -> Result<()> {
    let set = slots::to_table(&args.set).exit(Exit::Usage)?;
    if args.set.is_empty() && args.remove.is_empty() && !args.confirm_dead {
        return Err(anyhow::anyhow!("nothing to change: give --set, --remove or --confirm-dead")).exit(Exit::Usage);
    }
    if let Some(both) = args.remove.iter().find(|n| args.set.iter().any(|s| s.slot == **n)) {
        return Err(anyhow::anyhow!("slot {both} is both set and removed")).exit(Exit::Usage);
    }
    // Alone: a member that runs on this host is in the way. Those of other hosts are found by their blocks.
    let target = device::open_alone(&args.device)?;
    let value = device::with_queue(&target, async |queue| {
        let sb = vellum_store::read_superblock(&queue).await.exit(Exit::Device)?;
        let members = Membership::of(&sb);
        let blocks = read_blocks(&queue, &members).await;
        let open = open_leaderships(&blocks);
        if !open.is_empty() && !args.confirm_dead {
            let terms: Vec<String> =
                open.iter().map(|e| format!("slot {} in term {}", e.term.slot(), e.term)).collect();
            bail!(
                "{} led and did not stop in order: it may run on another host. Start the members, so that it is fenced, and \
                 stop them; or make sure that it is dead and give --confirm-dead",
                terms.join(", ")
            );
        }
        let unreadable = |state: &SlotState| match state {
            SlotState::Unreadable(error) => Some(error.clone()),
            _ => None,
        };
        if let Some(error) = blocks.iter().find_map(unreadable) {
            bail!("{error}: whose block cannot be read counts as a leader, and this command does not judge it");
        }
        let mut table: Vec<String> = sb.slots.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        table.resize(vellum_format::superblock::MAX_SLOTS, String::new());
        for (place, new) in table.iter_mut().zip(&set).filter(|(_, new)| !new.is_empty()) {
            place.clone_from(new);
        }
        for slot in &args.remove {
            if let Some(place) = table.get_mut(usize::from(*slot)) {
                place.clear();
            }
        }
        let doubles = |i: usize, address: &String| table.iter().skip(i + 1).any(|other| other == address);
        if let Some((i, address)) = table.iter().enumerate().find(|(i, a)| !a.is_empty() && doubles(*i, a)) {
            bail!("slot {i} would share its address {address} with another slot");
        }
        let change = SlotChange { slots: table, stop: args.confirm_dead };
        vellum_store::change_slots(&queue, change).await.exit(Exit::Device)?;
        let members = Membership::of(&vellum_store::read_superblock(&queue).await.exit(Exit::Device)?);
        Ok(block_status(&members, &read_blocks(&queue, &members).await))
    })?;
    if args.json {
        return print(&format!("{}\n", json!({ "changed": value })));
    }
    let mut out = String::new();
    show_blocks(&mut out, &value)?;
    print(&out)
}

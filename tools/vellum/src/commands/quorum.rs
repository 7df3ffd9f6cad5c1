//! quorum status: the members of a cluster.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_server::cluster::{Membership, block_status, read_blocks};

use crate::cli::{KeyArgs, Quorum};
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::session::with_client;
use crate::{device, figures};

pub fn quorum(what: &Quorum) -> Result<()> {
    match what {
        Quorum::Status { on, json, keys } => status(on, *json, keys),
        Quorum::Change(args) => super::quorum_change::change(args),
    }
}

fn status(on: &str, json: bool, keys: &KeyArgs) -> Result<()> {
    let value = match figures::address(on) {
        Some(address) => figures::status(address)?["quorum"].clone(),
        None if is_device(on) => of_device(on)?,
        None => of_leader(on, keys)?,
    };
    if json {
        return print(&format!("{value}\n"));
    }
    let mut out = String::new();
    show(&mut out, &value)?;
    print(&out)
}

/// A reader of our pipe that has seen enough is no error.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// What is neither an endpoint nor a directory is a device.
pub(super) fn is_device(on: &str) -> bool {
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

pub(super) fn show_blocks(out: &mut String, value: &Value) -> fmt::Result {
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

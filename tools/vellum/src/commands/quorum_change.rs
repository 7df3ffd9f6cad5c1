//! quorum change: through the leader while one serves, else on the device itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vellum_base::Slot;
use vellum_client::ClientError;
use vellum_format::SlotState;
use vellum_server::cluster::{Membership, block_status, open_leaderships, read_blocks};
use vellum_store::SlotChange;
use vellum_wire::{AdminRequest, ErrorCode};

use super::quorum::{is_device, print, show_blocks};
use crate::cli::QuorumChange;
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit, code_of};
use crate::session::with_client;
use crate::{device, slots};

/// A leader that has to resign first, and members that learn of a change before, are waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);

pub fn change(args: &QuorumChange) -> Result<()> {
    let set = slots::to_table(&args.set).exit(Exit::Usage)?;
    if args.set.is_empty() && args.remove.is_empty() && !args.confirm_dead {
        return Err(anyhow::anyhow!("nothing to change: give --set, --remove or --confirm-dead")).exit(Exit::Usage);
    }
    if let Some(both) = args.remove.iter().find(|n| args.set.iter().any(|s| s.slot == **n)) {
        return Err(anyhow::anyhow!("slot {both} is both set and removed")).exit(Exit::Usage);
    }
    if !is_device(&args.on) {
        return of_leader(args, &Target::parse_or_mounted(&args.on)?);
    }
    let spec = args.on.strip_prefix("file:").unwrap_or(&args.on);
    let members = || Target::parse(&format!("file:{spec}")).ok().filter(|t| matches!(t, Target::Served(_)));
    // Alone: a member that runs on this host is in the way. Those of other hosts are found by their blocks.
    let target = match device::open_alone(spec) {
        Ok(target) => target,
        Err(in_use) => match members() {
            Some(members) => return unless_silent(of_leader(args, &members)).unwrap_or(Err(in_use)),
            None => return Err(in_use),
        },
    };
    let open = device::with_queue(&target, async |queue| {
        let sb = vellum_store::read_superblock(&queue).await.exit(Exit::Device)?;
        Ok(open_leaderships(&read_blocks(&queue, &Membership::of(&sb)).await))
    })?;
    // Who led last and has not stopped may lead now, on another host.
    let edits = args.set.len() + args.remove.len();
    if !open.is_empty()
        && edits > 0
        && let Some(members) = members()
        && let Some(answered) = unless_silent(of_leader(args, &members))
    {
        return answered;
    }
    of_device(args, &set, &target)
}

/// None when nobody answered at all.
fn unless_silent(answered: Result<()>) -> Option<Result<()>> {
    match answered {
        Err(error) if code_of(&error) == Exit::Endpoint => None,
        answered => Some(answered),
    }
}

fn of_leader(args: &QuorumChange, target: &Target) -> Result<()> {
    let edits = args.set.iter().map(|s| (s.slot, Some(s.addr))).chain(args.remove.iter().map(|n| (*n, None)));
    let edits: Vec<_> = edits.collect();
    let [(slot, address)] = edits[..] else {
        return Err(anyhow::anyhow!("{} changes at once: while the cluster serves, one member at a time", edits.len()))
            .exit(Exit::Usage);
    };
    let what = AdminRequest::SetSlot { slot, address, dead: args.confirm_dead };
    let text = with_client(target, &args.keys, async |client| {
        let begun = Instant::now();
        loop {
            match client.admin(what).await {
                Err(ClientError::Engine(e)) if e.code == ErrorCode::Busy && begun.elapsed() < PATIENCE => {
                    vellum_rt::sleep(AGAIN).await;
                }
                Err(ClientError::Engine(e)) => return Err(anyhow::anyhow!("the leader refuses: {e}")),
                answered => return Ok(answered?),
            }
        }
    })?;
    let value: Value = serde_json::from_str(&text).context("the leader's answer cannot be read")?;
    debug_assert!(usize::from(slot) < Slot::COUNT, "clap has seen to it");
    show(args, &value["changed"])
}

fn show(args: &QuorumChange, slots: &Value) -> Result<()> {
    if args.json {
        return print(&format!("{}\n", json!({ "changed": slots })));
    }
    let mut out = String::new();
    show_blocks(&mut out, slots)?;
    print(&out)
}

fn of_device(args: &QuorumChange, set: &[String], target: &std::sync::Arc<dyn vellum_nvme::Device>) -> Result<()> {
    let value = device::with_queue(target, async |queue| {
        let sb = vellum_store::read_superblock(&queue).await.exit(Exit::Device)?;
        let members = Membership::of(&sb);
        let blocks = read_blocks(&queue, &members).await;
        let open = open_leaderships(&blocks);
        if !open.is_empty() && !args.confirm_dead {
            let terms: Vec<String> =
                open.iter().map(|e| format!("slot {} in term {}", e.term.slot(), e.term)).collect();
            bail!(
                "{} led and did not stop in order, and no leader answers: it may run on another host. Start the members, so \
                 that it is fenced; or make sure that it is dead and give --confirm-dead",
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
        let change = SlotChange { slots: edited(members.table(), args, set)?, stop: args.confirm_dead };
        vellum_store::change_slots(&queue, change).await.exit(Exit::Device)?;
        let members = Membership::of(&vellum_store::read_superblock(&queue).await.exit(Exit::Device)?);
        Ok(block_status(&members, &read_blocks(&queue, &members).await))
    })?;
    show(args, &value)
}

/// The table with everything that is asked for.
fn edited(mut table: Vec<String>, args: &QuorumChange, set: &[String]) -> Result<Vec<String>> {
    for (place, new) in table.iter_mut().zip(set).filter(|(_, new)| !new.is_empty()) {
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
    Ok(table)
}

//! move-shard: a shard goes to another reactor.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vellum_wire::AdminRequest;

use crate::cli::MoveShard;
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::session::with_client;

pub fn move_shard(args: &MoveShard) -> Result<()> {
    let (bucket, reactor) = (args.bucket, args.reactor);
    let json = with_client(&Target::parse_or_mounted(&args.on)?, &args.keys, async |client| {
        let asked = client.admin(AdminRequest::MoveShard { bucket, reactor }).await;
        asked.context("moving a shard").exit(Exit::Device)
    })?;
    let answer: Value = serde_json::from_str(&json).context("the engine's answer cannot be read")?;
    let now_on = &answer["reactor"];
    let text = match answer["moved"] == true {
        true => format!("the shard of bucket {bucket} is on reactor {reactor} now"),
        // Whoever asks twice has what he wants.
        false if *now_on == reactor => format!("the shard of bucket {bucket} is already on reactor {reactor}"),
        false => String::new(),
    };
    if args.json {
        println!("{json}");
    } else if !text.is_empty() {
        println!("{text}");
    }
    if text.is_empty() {
        bail!(
            "the shard of bucket {bucket} stays on reactor {now_on}: a scrub, an evacuation or a compaction of it is \
             running, or clients of the term before are waited for; try again later"
        );
    }
    Ok(())
}

//! move-shard: a shard goes to another reactor.

use anyhow::{Context, Result};
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
    if args.json {
        println!("{json}");
        return Ok(());
    }
    let answer: Value = serde_json::from_str(&json).context("the engine's answer cannot be read")?;
    if answer["moved"] == true {
        println!("the shard of bucket {bucket} is reactor {reactor}'s");
    } else {
        println!(
            "the shard of bucket {bucket} stays where it is: it is reactor {reactor}'s already, or a scrub, an evacuation, \
             or a compaction of it is running; try again later"
        );
    }
    Ok(())
}

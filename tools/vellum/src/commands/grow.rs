//! grow: take in what a device has become larger by, served or not.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_wire::AdminRequest;

use crate::cli::Grow;
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::session::with_client;
use crate::size;

/// An endpoint, a directory of a mount, or a device. A cluster's device stands for its members.
fn target(on: &str) -> Result<Target> {
    let served = ["unix:", "tcp:", "file:"].iter().any(|scheme| on.starts_with(scheme));
    if served || Path::new(on).is_dir() { Target::parse_or_mounted(on) } else { Target::parse(&format!("file:{on}")) }
}

pub fn grow(args: &Grow) -> Result<()> {
    let json = with_client(&target(&args.on)?, &args.keys, async |client| {
        client.admin(AdminRequest::Grow).await.context("growing").exit(Exit::Device)
    })?;
    if args.json {
        println!("{json}");
        return Ok(());
    }
    let growth: Value = serde_json::from_str(&json).context("the engine's answer cannot be read")?;
    let bytes = |name: &str| growth[name].as_u64().unwrap_or(0);
    let (before, after, device) = (bytes("before_bytes"), bytes("after_bytes"), bytes("device_bytes"));
    if before == after {
        println!(
            "{}: nothing to gain, {} of the device's {} are in use",
            args.on,
            size::show(after),
            size::show(device)
        );
    } else {
        println!("{}: grown from {} to {}", args.on, size::show(before), size::show(after));
    }
    Ok(())
}

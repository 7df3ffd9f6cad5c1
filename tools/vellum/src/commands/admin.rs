//! mkfs, check, dump: on a device that nobody serves.

use std::fs::OpenOptions;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use vellum_base::KeyRange;
use vellum_store::{CheckOptions, MkfsOptions, StoreError};

use crate::cli::{Check, Dump, Mkfs, What};
use crate::exit::{Coded, Exit, WithExit};
use crate::{device, size, slots};

/// Records and items that `dump` prints at most.
const DUMP_LIMIT: usize = 1_000_000;

pub fn mkfs(args: &Mkfs) -> Result<()> {
    let slots = slots::to_table(&args.slots).exit(Exit::Usage)?;
    prepare_file(&args.device, args.size, args.preallocate).exit(Exit::Device)?;
    let target = device::open_alone(&args.device)?;
    let options = MkfsOptions {
        size: args.size,
        force: args.force,
        slots,
        metadata_copies: args.metadata_copies,
        ..MkfsOptions::default()
    };
    let sb = device::with_queue(&target, async |queue| {
        vellum_store::mkfs(&target, &queue, options).await.exit(Exit::Device)
    })?;
    let bytes = sb.blocks * vellum_base::BLOCK_SIZE as u64;
    if args.json {
        let slots: serde_json::Map<String, serde_json::Value> =
            args.slots.iter().map(|s| (s.slot.to_string(), json!(s.addr.to_string()))).collect();
        println!("{}", json!({ "fsid": sb.fsid.to_string(), "device": args.device, "bytes": bytes, "slots": slots }));
    } else {
        println!("{}: {} in {} blocks of 4 KiB, fsid {}", args.device, size::show(bytes), sb.blocks, sb.fsid);
        args.slots.iter().for_each(|s| println!("  slot {} at {}", s.slot, s.addr));
    }
    Ok(())
}

/// Makes the file, or extends it to the size asked for. Block devices and other backends are taken as they are.
fn prepare_file(spec: &str, size: Option<u64>, written: bool) -> Result<()> {
    let path = match spec.split_once(':') {
        Some(("uring" | "file", path)) => path,
        Some(_) => return Ok(()),
        None => spec,
    };
    let path = Path::new(path);
    let existing = match path.metadata() {
        Ok(meta) if meta.file_type().is_block_device() => return Ok(()),
        Ok(meta) => Some(meta.len()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    match (existing, size) {
        (None, None) => bail!("{} does not exist; give --size to make it", path.display()),
        (Some(0), None) => bail!("{} is empty; give --size", path.display()),
        (Some(len), Some(size)) if len >= size => Ok(()),
        (Some(_), None) => Ok(()),
        (_, Some(size)) if written => vellum_nvme::uring::fill::extend_written(path, size)
            .with_context(|| format!("cannot write {} of {}", size::show(size), path.display())),
        (_, Some(size)) => {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            file.set_len(size).with_context(|| format!("cannot extend {} to {}", path.display(), size::show(size)))
        }
    }
}

/// Repairs what has a second copy, and says what it did; `check` names the rest.
fn repair(args: &Check) -> Result<()> {
    let target = device::open_alone(&args.device)?;
    let report = device::with_queue(&target, async |queue| {
        let sb = vellum_store::read_superblock(&queue).await.exit(Exit::Device)?;
        if sb.slots.iter().any(|slot| !slot.is_empty()) {
            bail!(
                "{} belongs to a cluster, whose members on other machines may use it: start them and run `vellum scrub file:{}`",
                args.device,
                args.device
            );
        }
        vellum_store::repair(&target, &queue).await.map_err(damage)
    })?;
    for place in &report.repaired {
        eprintln!("repaired: {place}");
    }
    for finding in &report.left {
        eprintln!("lost: {}: {}", finding.place, finding.detail);
        eprintln!("  affects {}", finding.affects);
        eprintln!("  {}", finding.advice);
    }
    if report.left_count > report.left.len() as u64 {
        eprintln!("and {} more", report.left_count - report.left.len() as u64);
    }
    Ok(())
}

fn damage(error: StoreError) -> anyhow::Error {
    let code = if error.is_damage() { Exit::NotClean } else { Exit::Device };
    Coded { code, error: error.into() }.into()
}

pub fn check(args: &Check) -> Result<()> {
    if args.repair {
        repair(args)?;
    }
    let target = device::open_still(&args.device)?;
    let options = CheckOptions { data: args.data };
    let report = vellum_rt::native::block_on(vellum_store::check_alone(&target, options)).map_err(damage)?;
    if args.json {
        let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        println!(
            "{}",
            json!({
                "clean": report.problem_count == 0,
                "inodes": report.inodes, "dirents": report.dirents, "items": report.items, "extents": report.extents,
                "data_blocks": report.data_blocks, "verified_blocks": report.verified_blocks,
                "segments": report.segments, "problems": problems, "problem_count": report.problem_count,
                "replayed_epochs": report.recovery.epochs,
            })
        );
    } else {
        report.problems.iter().for_each(|problem| println!("{problem}"));
        println!(
            "{} inodes, {} names, {} items in {} segments, {} data blocks ({} verified): {}",
            report.inodes,
            report.dirents,
            report.items,
            report.segments,
            report.data_blocks,
            report.verified_blocks,
            if report.problem_count == 0 { "clean".to_owned() } else { format!("{} problems", report.problem_count) }
        );
    }
    if report.problem_count > 0 {
        let error = anyhow::anyhow!("{} is not clean", args.device);
        return Err(Coded { code: Exit::NotClean, error }.into());
    }
    Ok(())
}

pub fn dump(args: &Dump) -> Result<()> {
    let target = match args.what {
        What::Superblock => device::observe(&args.device)?,
        _ => device::open_still(&args.device)?,
    };
    let dump = device::with_queue(&target, async |queue| {
        use vellum_store::dump;
        match args.what {
            What::Superblock => dump::superblock(&queue).await,
            What::Manifest => dump::manifest(&queue).await,
            What::Log => dump::log(&queue, DUMP_LIMIT).await,
            What::Items => dump::items(&target, &queue, KeyRange::ALL, DUMP_LIMIT).await,
            What::Space => dump::space(&target, &queue).await,
        }
        .exit(Exit::Device)
    })?;
    if args.json {
        let fields: Vec<_> = dump.fields.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        println!("{}", json!({ "title": dump.title, "fields": fields }));
    } else {
        print!("{dump}");
    }
    Ok(())
}

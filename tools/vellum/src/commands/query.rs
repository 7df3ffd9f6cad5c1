//! walk, stat, ino-path, df, status: questions to an engine.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use vellum_archive as archive;
use vellum_base::{BLOCK_SIZE, Ino};
use vellum_format::{FileKind, IndexKind, Inode, Timestamp};

use crate::cli::{Index, InoPath, On, Stat, Walk};
use crate::endpoint::Target;
use crate::exit::{Exit, WithExit};
use crate::session::with_client;
use crate::size;

/// How often `--follow` looks for newly durable entries.
const FOLLOW_POLL: Duration = Duration::from_millis(50);

pub fn walk(args: &Walk) -> Result<()> {
    let (to, on) = match args.rest.as_slice() {
        [on] => (u64::MAX, on),
        [to, on] => {
            let to = to.parse().with_context(|| format!("{to:?} is no sequence")).exit(Exit::Usage)?;
            (to, on)
        }
        _ => anyhow::bail!("walk takes [TO] ENDPOINT|DIR"),
    };
    let index = match args.index {
        Index::MetaSeq => IndexKind::MetaSeq,
        Index::DataSeq => IndexKind::DataSeq,
    };
    with_client(&Target::parse_or_mounted(on)?, &args.keys, async |client| {
        let mut walk = archive::Walk::new(client, index, (args.from, Ino::NONE), to);
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        loop {
            let entries = if args.follow { walk.follow(FOLLOW_POLL).await? } else { walk.page().await? };
            if entries.is_empty() {
                return Ok(());
            }
            for (seq, ino) in &entries {
                let printed = if args.json {
                    writeln!(out, "{}", json!({ "seq": seq, "ino": ino.0 }))
                } else {
                    writeln!(out, "{seq} {}", ino.0)
                };
                if printed.is_err() {
                    return Ok(()); // the reader of our pipe has seen enough
                }
            }
            if out.flush().is_err() {
                return Ok(());
            }
        }
    })
}

pub fn stat(args: &Stat) -> Result<()> {
    let meta = std::fs::symlink_metadata(&args.path).with_context(|| args.path.display().to_string())?;
    let ino = Ino(meta.ino());
    let near = if meta.is_symlink() { args.path.parent().unwrap_or(&args.path) } else { &args.path };
    let target = Target::of_path(if near.as_os_str().is_empty() { std::path::Path::new(".") } else { near })?;
    let (inode, committed) = with_client(&target, &args.keys, async |client| {
        Ok((archive::inode(&client, ino).await?, archive::committed_seq(&client)))
    })?;
    let fields = fields(ino, &inode, committed.0);
    if args.json {
        println!("{}", serde_json::Value::Object(fields));
    } else {
        println!("{}", args.path.display());
        for (name, value) in fields {
            println!("  {name:<16} {value}");
        }
    }
    Ok(())
}

fn fields(ino: Ino, inode: &Inode, committed_seq: u64) -> serde_json::Map<String, serde_json::Value> {
    let time = |t: Timestamp| format!("{}.{:09}", t.secs, t.nanos);
    let kind = inode.kind().map_or("unknown".into(), |k| format!("{k:?}").to_lowercase());
    let inline = inode.kind() == Some(FileKind::Regular) && inode.size > 0 && inode.online_blocks == 0;
    let value = json!({
        "ino": ino.0, "kind": kind, "mode": format!("{:o}", inode.mode & 0o7777), "nlink": inode.nlink,
        "uid": inode.uid, "gid": inode.gid, "size": inode.size,
        "online_blocks": inode.online_blocks, "offline_blocks": inode.offline_blocks, "inline": inline,
        "data_version": inode.data_version, "meta_seq": inode.meta_seq, "data_seq": inode.data_seq,
        "committed_seq": committed_seq,
        "atime": time(inode.atime), "mtime": time(inode.mtime), "ctime": time(inode.ctime),
        "crtime": time(inode.crtime),
    });
    match value {
        serde_json::Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

pub fn ino_path(args: &InoPath) -> Result<()> {
    let ino = Ino(args.ino);
    let paths = with_client(&Target::parse_or_mounted(&args.on)?, &args.keys, async |client| {
        archive::inode(&client, ino).await?;
        Ok(archive::ino_paths(&client, ino).await?)
    })?;
    for path in paths {
        let text = String::from_utf8_lossy(&path);
        if args.json {
            println!("{}", json!({ "ino": ino.0, "path": text }));
        } else {
            println!("{text}");
        }
    }
    Ok(())
}

pub fn df(args: &On) -> Result<()> {
    let s = with_client(&Target::parse_or_mounted(&args.on)?, &args.keys, async |client| Ok(client.statfs().await?))?;
    let bytes = |blocks: u64| blocks * BLOCK_SIZE as u64;
    if args.json {
        println!(
            "{}",
            json!({ "total_bytes": bytes(s.total_blocks), "free_bytes": bytes(s.free_blocks),
                    "available_bytes": bytes(s.available_blocks), "inodes": s.inodes })
        );
    } else {
        println!("{:>12} {:>12} {:>12}", "total", "used", "available");
        println!(
            "{:>12} {:>12} {:>12}",
            size::show(bytes(s.total_blocks)),
            size::show(bytes(s.total_blocks.saturating_sub(s.free_blocks))),
            size::show(bytes(s.available_blocks))
        );
    }
    Ok(())
}

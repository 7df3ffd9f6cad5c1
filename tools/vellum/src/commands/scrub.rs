//! scrub: have a running engine verify everything, and see what it finds.

use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_client::Client;
use vellum_wire::AdminRequest;

use crate::cli::Scrub;
use crate::endpoint::Target;
use crate::exit::{Coded, Exit};
use crate::session::with_client;
use crate::size;

/// Between two looks at one that runs.
const PAUSE: Duration = Duration::from_millis(250);

async fn ask(client: &Rc<Client>, what: AdminRequest) -> Result<Value> {
    serde_json::from_str(&client.admin(what).await?).context("the engine's answer cannot be read")
}

fn number(status: &Value, name: &str) -> u64 {
    status[name].as_u64().unwrap_or(0)
}

pub fn scrub(args: &Scrub) -> Result<()> {
    let rate_bytes_per_s = args.rate.unwrap_or(vellum_store::DEFAULT_SCRUB_RATE);
    let first = match (args.status, args.stop) {
        (true, _) => AdminRequest::ScrubStatus,
        (_, true) => AdminRequest::StopScrub,
        _ => AdminRequest::Scrub { rate_bytes_per_s },
    };
    let wait = !(args.background || args.status || args.stop);
    let status = with_client(&Target::parse_or_mounted(&args.on)?, &args.keys, async |client| {
        let mut status = ask(&client, first).await?;
        let watched = wait && !args.json && std::io::stderr().is_terminal();
        while wait && status["running"] == Value::Bool(true) {
            if watched {
                eprint!("\r{}\x1b[K", progress(&status));
                std::io::stderr().flush()?;
            }
            vellum_rt::sleep(PAUSE).await;
            status = ask(&client, AdminRequest::ScrubStatus).await?;
        }
        if watched {
            eprint!("\r\x1b[K");
        }
        Ok(status)
    })?;
    if args.json {
        println!("{status}");
    } else {
        print!("{}", summary(&status));
    }
    let left = number(&status, "problems") - number(&status, "repaired").min(number(&status, "problems"));
    if left > 0 {
        let error = anyhow::anyhow!("{left} problems without a good copy");
        return Err(Coded { code: Exit::NotClean, error }.into());
    }
    match status["ended_early"].as_str().filter(|_| wait) {
        Some(why) => Err(anyhow::anyhow!("the scrub ended early: {why}")),
        None => Ok(()),
    }
}

fn progress(status: &Value) -> String {
    let (read, expected) = (number(status, "read_bytes"), number(status, "expected_bytes"));
    let share = (read * 100).checked_div(expected).unwrap_or(0).min(100);
    let problems = number(status, "problems");
    let phase = status["phase"].as_str().unwrap_or_default();
    format!("{phase}: {} read, about {share} %, {problems} problems", size::show(read))
}

fn summary(status: &Value) -> String {
    let mut out = String::new();
    for found in status["findings"].as_array().into_iter().flatten() {
        let text = |name: &str| found[name].as_str().unwrap_or_default();
        let (place, detail, affects) = (text("place"), text("detail"), text("affects"));
        out.push_str(&format!("{place}: {detail}\n"));
        if !affects.is_empty() {
            out.push_str(&format!("  affects {affects}\n"));
        }
        let repaired = if found["repaired"] == Value::Bool(true) { "repaired; " } else { "" };
        out.push_str(&format!("  {repaired}{}\n", text("advice")));
    }
    let left_off = number(status, "problems") - status["findings"].as_array().map_or(0, |list| list.len() as u64);
    if left_off > 0 {
        out.push_str(&format!("and {left_off} more problems\n"));
    }
    let state = match (status["running"] == Value::Bool(true), status["ended_early"].as_str()) {
        (true, _) => format!("running at {}/s, ", size::show(number(status, "rate_bytes_per_s"))),
        (false, Some(why)) => format!("ended early ({why}), "),
        (false, None) if number(status, "completed") == 0 => "none since the engine's start, ".into(),
        (false, None) => String::new(),
    };
    let (problems, repaired) = (number(status, "problems"), number(status, "repaired"));
    out + &format!(
        "scrub: {state}{} read, {problems} problems, {repaired} of them repaired\n",
        size::show(number(status, "read_bytes"))
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_lost_is_said_with_what_to_do() {
        let status = json!({
            "running": false, "problems": 3, "repaired": 1, "read_bytes": 4096, "completed": 1, "findings": [
                { "place": "block 7", "detail": "checksum", "affects": "/a (inode 5)", "repaired": false, "advice": "restore" },
                { "place": "superblock", "detail": "magic", "affects": "", "repaired": true, "advice": "watch" } ],
        });
        let text = summary(&status);
        assert!(text.contains("affects /a (inode 5)\n  restore") && text.contains("  repaired; watch"), "{text}");
        assert!(text.contains("and 1 more problems") && text.contains("3 problems, 1 of them repaired"), "{text}");
    }
}

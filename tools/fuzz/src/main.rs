//! `vellum-fuzz [TARGET...]`: runs targets for a time, each with fresh seeds. Findings are told by the place that
//! panicked, with seed and number of the first input; `--seed` and `--input` give that to the target again, alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use vellum_fuzz::{TARGETS, Target, hex, nth, run, story};

#[derive(Parser)]
struct Args {
    /// Default: every one.
    targets: Vec<String>,
    /// For each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: this input alone.
    #[arg(long, requires = "seed")]
    input: Option<u64>,
}

fn shortened(text: &str) -> String {
    text.chars().take(400).collect()
}

fn main() -> Result<()> {
    let args = Args::parse();
    let find = |name: &String| {
        TARGETS.iter().find(|target| target.name == name).with_context(|| {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            format!("no target {name}; there are {}", names.join(", "))
        })
    };
    let chosen: Vec<&Target> = match args.targets.as_slice() {
        [] => TARGETS.iter().collect(),
        names => names.iter().map(find).collect::<Result<_>>()?,
    };
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let mut found = 0;
    for target in chosen {
        let seed = args.seed.unwrap_or(fresh);
        if let Some(n) = args.input {
            let input = nth(target, &(target.samples)(), seed, n);
            println!("{}: {}", target.name, hex(&input));
            if target.name == "image" {
                story(&input).iter().for_each(|line| println!("{}", shortened(line)));
            }
            println!("accepted: {}", (target.check)(&input));
            continue;
        }
        let end = Instant::now() + Duration::from_secs(args.seconds);
        let seen = run(target, seed, |n| n % 64 != 0 || Instant::now() < end);
        println!("{:<16} seed {seed}: {} inputs, {} accepted", target.name, seen.inputs, seen.accepted);
        for (place, (text, times, first)) in &seen.findings {
            println!("  FOUND {place}, {times} times, first by --seed {seed} --input {first}: {}", shortened(text));
            found += 1;
        }
    }
    if found > 0 {
        bail!("{found} places that panic");
    }
    Ok(())
}

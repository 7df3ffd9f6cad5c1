//! `cargo xtask sim`: runs, shrinks and hunts.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use clap::{Parser, ValueEnum};
use vellum_base::{Mutant, mutant};
use vellum_sim::{Edits, Outcome, Plan, Profile, mutants, run, shrink};

#[derive(Parser)]
#[command(name = "cargo xtask sim", about = "The simulation: one seed, or seeds for a time")]
struct Cli {
    /// Reproduces this seed exactly.
    #[arg(long)]
    seed: Option<u64>,
    /// What is taken away from the seed's plan, as --shrink says it.
    #[arg(long, default_value = "")]
    edit: Edits,
    /// Makes a failing seed smaller.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// How long to try fresh seeds, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Runs so many seeds from --from on instead.
    #[arg(long)]
    count: Option<u64>,
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    #[arg(long, value_enum, default_value_t = Kind::Both)]
    profile: Kind,
    /// Only runs of this season ("members", "astray", ...).
    #[arg(long)]
    season: Option<String>,
    /// Runs every deliberate bug until a seed finds it; prints the table.
    #[arg(long)]
    mutants: bool,
    /// Runs one deliberate bug.
    #[arg(long)]
    mutant: Option<String>,
    /// Seeds that a deliberate bug may survive.
    #[arg(long, default_value_t = 60)]
    bound: usize,
    /// Measures how fast virtual time goes when three nodes and two clients are idle.
    #[arg(long)]
    idle: bool,
    /// The last steps of the scheduler too, when a run fails.
    #[arg(long)]
    steps: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Single,
    Cluster,
    Both,
}

impl Kind {
    /// A seed belongs to one profile.
    fn of(self, seed: u64) -> Profile {
        match self {
            Kind::Single => Profile::Single,
            Kind::Cluster => Profile::Cluster,
            Kind::Both if seed.is_multiple_of(2) => Profile::Cluster,
            Kind::Both => Profile::Single,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Single => "single",
            Kind::Cluster => "cluster",
            Kind::Both => "both",
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let good = match (cli.seed, &cli.mutant) {
        (_, Some(name)) => one_mutant(&cli, name),
        _ if cli.idle => {
            let idle = vellum_sim::idle::idle(3, 2, Duration::from_secs(3600));
            let (took, steps) = (idle.real_time, idle.steps);
            println!("an idle hour took {took:.2?} in {steps} steps: {:.0} times faster than real time", idle.factor());
            true
        }
        _ if cli.mutants => all_mutants(&cli),
        (Some(seed), _) if cli.shrink => make_smaller(&cli, seed),
        (Some(seed), _) => try_seed(&cli, seed).0,
        (None, _) => try_many(&cli),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed: whether it went well, and whether the order of its operations was decided, if there were any.
fn try_seed(cli: &Cli, seed: u64) -> (bool, Option<bool>) {
    let outcome = run(Plan::draw(seed, cli.profile.of(seed)).edited(&cli.edit));
    println!("{outcome}");
    if outcome.violations.is_empty() {
        return (true, outcome.decided);
    }
    tell(&outcome, cli.steps);
    let edit = if cli.edit == Edits::default() { String::new() } else { format!(" --edit \"{}\"", cli.edit) };
    println!("\nseed {seed} failed. Again: cargo xtask sim --profile {} --seed {seed}{edit}", cli.profile.name());
    (false, outcome.decided)
}

fn tell(outcome: &Outcome, steps: bool) {
    if steps {
        outcome.trace.iter().for_each(|step| println!("  {step}"));
    }
    println!("story:");
    outcome.story.iter().for_each(|line| println!("  {line}"));
    println!("faults:");
    outcome.faults.iter().for_each(|fault| println!("  {fault}"));
    println!("violations:");
    outcome.violations.iter().take(10).for_each(|what| println!("  {what}"));
}

fn try_many(cli: &Cli) -> bool {
    let until = Instant::now() + Duration::from_secs(cli.seconds);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let (first, count) = match cli.count {
        Some(count) => (cli.from, count),
        None => ((now >> 10) % 1_000_000_000, u64::MAX),
    };
    let began = Instant::now();
    let (mut runs, mut failed, mut histories, mut decided) = (0u64, 0u64, 0u64, 0u64);
    for seed in first.. {
        if runs == count || (cli.count.is_none() && Instant::now() >= until) {
            break;
        }
        let season = Plan::draw(seed, cli.profile.of(seed)).season.map(|season| format!("{season:?}").to_lowercase());
        if cli.season.is_some() && cli.season != season {
            continue;
        }
        runs += 1;
        let (good, order) = try_seed(cli, seed);
        histories += u64::from(order.is_some());
        decided += u64::from(order == Some(true));
        if !good {
            failed += 1;
            if !cli.keep_going {
                break;
            }
        }
    }
    let (share, took) = (100.0 * decided as f64 / histories.max(1) as f64, began.elapsed().as_secs_f64());
    println!("{runs} runs, {failed} failed, {took:.0} s; {decided} of {histories} histories decided ({share:.1} %)");
    failed == 0
}

fn make_smaller(cli: &Cli, seed: u64) -> bool {
    let profile = cli.profile.of(seed);
    let found = shrink::shrink(seed, profile, &mut |edits, fails| {
        println!("  {} without \"{edits}\"", if fails { "fails" } else { "passes" });
    });
    let Some(found) = found else {
        println!("seed {seed} does not fail");
        return true;
    };
    println!("{}", found.outcome);
    tell(&found.outcome, cli.steps);
    let (runs, edits) = (found.runs, &found.edits);
    println!(
        "\nmade smaller in {runs} runs. Again: cargo xtask sim --profile {} --seed {seed} --edit \"{edits}\"",
        cli.profile.name()
    );
    false
}

fn one_mutant(cli: &Cli, name: &str) -> bool {
    let Some(bug) = Mutant::ALL.iter().copied().find(|bug| bug.name() == name) else {
        println!("no such bug: {name}");
        return false;
    };
    let profile = match cli.profile {
        Kind::Both => mutants::profile_of(bug),
        Kind::Single => Profile::Single,
        Kind::Cluster => Profile::Cluster,
    };
    let fit = || mutants::seeds(bug, profile, cli.from).take(cli.bound).collect();
    let seeds: Vec<u64> = cli.seed.map_or_else(fit, |seed| vec![seed]);
    if let Some(seed) = cli.seed {
        // One run with the bug, as a story.
        mutant::replace(Some(bug));
        let outcome = run(Plan::draw(seed, profile));
        mutant::replace(None);
        println!("{outcome}");
        tell(&outcome, cli.steps);
    }
    match mutants::hunt(bug, profile, seeds.into_iter(), cli.bound) {
        Some(found) => {
            let what: String = found.what.replace('\n', " ").chars().take(160).collect();
            println!("| {name} | {} | {} | {} | {} | {what}", bug.what(), found.by, found.runs, found.seed);
            true
        }
        None => {
            println!("| {name} | {} | NOT FOUND | {} | |", bug.what(), cli.bound);
            false
        }
    }
}

/// Each in a process of its own: a bug may end in an abort, or never.
fn all_mutants(cli: &Cli) -> bool {
    let me = std::env::current_exe().expect("this program has a path");
    let mut all_found = true;
    println!("| bug | what it does | found by | after runs | seed |");
    for bug in Mutant::ALL {
        let mut child = Command::new(&me);
        child.args(["--mutant", bug.name(), "--bound", &cli.bound.to_string(), "--profile", cli.profile.name()]);
        let output = child.stderr(std::process::Stdio::null()).output().expect("this program can be started again");
        let said = String::from_utf8_lossy(&output.stdout);
        match said.lines().find(|line| line.starts_with("| ")) {
            Some(line) => println!("{line}"),
            None => println!("| {} | {} | abort | | |", bug.name(), bug.what()),
        }
        all_found &= output.status.success() || said.is_empty();
    }
    all_found
}

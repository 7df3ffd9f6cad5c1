//! C3 with real processes: a follower is killed with SIGKILL while it merges for the leader. Nothing is lost or used twice, and
//! what it may have been writing comes back when its slot works again.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::cluster::ClusterLab;
use common::load::Load;
use common::{can_mount, vellum, wait_until};
use serde_json::Value;

const SLOTS: usize = 3;
const LONG: Duration = Duration::from_secs(120);
/// Attempts to meet a follower with a job in hand.
const ROUNDS: u64 = 60;

/// Files small enough to be items: what compactions merge.
fn write_small(mount: &Path, round: u64) {
    let dir = mount.join(format!("small{}", round % 4));
    fs::create_dir_all(&dir).expect("a directory");
    for n in 0..3_000 {
        fs::write(dir.join(format!("{n}")), vec![(n + round) as u8; 900]).expect("a small file");
    }
    fs::File::open(&dir).expect("a directory").sync_all().expect("durable");
}

fn compact(lab: &ClusterLab) -> Child {
    let mut command = lab.command();
    command.args(["compact", &lab.endpoints()]).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("compact starts")
}

fn status(lab: &ClusterLab) -> Value {
    serde_json::from_slice(&vellum(&["status", &lab.endpoints(), "--json"]).stdout).unwrap_or_default()
}

/// Jobs that the follower in that slot has in hand.
fn jobs(status: &Value, slot: usize) -> u64 {
    let reactors = status["reactors"].as_array().into_iter().flatten();
    let workers = reactors.filter_map(|r| r["client_list"].as_array()).flatten().map(|client| &client["worker"]);
    workers.filter(|worker| worker["slot"] == slot).filter_map(|worker| worker["jobs"].as_u64()).sum()
}

fn sum(status: &Value, what: &str) -> u64 {
    let reactors = status["store"]["reactors"].as_array().into_iter().flatten();
    reactors.filter_map(|r| r["compactions"][what].as_u64()).sum()
}

#[test]
fn c3_a_follower_that_is_killed_in_the_middle_of_a_compaction_leaks_nothing() {
    if !can_mount("a killed worker") {
        return;
    }
    let mut lab = ClusterLab::new(SLOTS, "1G");
    lab.start_all();
    let mount = lab.mount("a");
    let mut load = Load::start(&mount, "a", 2);
    let mut killed = None;
    for round in 0..ROUNDS {
        let (leader, _) = lab.wait_leader(0);
        let follower = (leader + 1) % SLOTS;
        write_small(&mount, round);
        let mut merging = compact(&lab);
        std::thread::sleep(Duration::from_millis(10 + round * 17 % 150));
        // Stopped, it cannot answer: a job that it has in hand now is in the middle.
        lab.pause(follower);
        let caught = jobs(&status(&lab), follower) > 0;
        if caught {
            lab.kill(follower);
            killed = Some(follower);
        } else {
            lab.resume(follower);
        }
        // What is lost is merged anew by somebody else, and the command waits for that.
        wait_until("everything is merged", LONG, || merging.try_wait().expect("a child").is_some());
        if caught {
            assert!(merging.wait().expect("it ended").success());
            break;
        }
    }
    let killed = killed.expect("no follower was ever found with a job in hand");
    let after = status(&lab);
    assert!(sum(&after, "lost") >= 1, "{after:#}");
    assert!(sum(&after, "withheld_blocks") > 0, "it may have been writing: {after:#}");
    lab.start(killed);
    wait_until("its blocks come back", LONG, || sum(&status(&lab), "withheld_blocks") == 0);
    assert_eq!(load.stop(), [""; 0], "no application sees an error");
    load.verify(&mount);
    lab.finish();
}

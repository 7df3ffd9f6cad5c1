//! Members that must not be: each is refused with a reason and an exit code; and what an operator may ask and change.

mod common;

use common::cluster::ClusterLab;
use common::{Lab, vellum, vellum_fails, vellum_ok};

#[test]
fn who_must_not_be_a_member_is_told_why() {
    let mut lab = ClusterLab::new(3, "128M");
    lab.start_all();
    let image = lab.image();
    // Scenario 35.
    vellum_fails(&["serve", &image, "--slot", "1"], 4, &["the slot has a running member", "slot 1"]);
    vellum_fails(&["serve", &image, "--slot", "7"], 2, &["slot 7 is unknown", &lab.addresses[2]]);
    vellum_fails(&["serve", &image, "--slot", "15"], 2, &["0 to 14"]);
    vellum_fails(&["serve", "/no/such/device", "--slot", "1"], 4, &["/no/such/device"]);
    vellum_fails(&["serve", &image, "--slot", "1", "--fence", "hope"], 2, &["host", "reservation", "script:PATH"]);
    vellum_fails(&["serve", &image, "--slot", "1", "--fence", "script:/no/such"], 2, &["/no/such"]);
    // Everybody else is kept out of a device that is being served.
    vellum_fails(&["check", &image], 4, &["being served"]);
    vellum_fails(&["mkfs", &image, "--force"], 4, &["in use"]);
    // Without keys everybody on the host is anybody: nobody who may change the quorum.
    vellum_fails(&["quorum", "change", &image, "--remove", "2"], 1, &["root", "certificate"]);
    let text = vellum_ok(&["dump", &image, "superblock"]);
    assert!(lab.addresses.iter().all(|address| text.contains(address)), "{text}");
    // The leader answers at any of the endpoints, and knows its peers.
    let text = vellum_ok(&["quorum", "status", &lab.endpoints(), "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status["role"].as_str(), status["peers"].as_array().map(Vec::len)),
        (Some("leading"), Some(2)),
        "{text}"
    );
    let shown = vellum_ok(&["quorum", "status", &lab.endpoints()]);
    assert!(shown.contains("is leading") && shown.contains("longest gap"), "{shown}");
    // The device names its members to who only has that.
    vellum_ok(&["df", &format!("file:{image}")]);
    lab.finish();
    vellum_fails(&["serve", &image], 2, &["belongs to a cluster", "--slot"]);
}

#[test]
fn a_device_without_slots_has_no_members() {
    let mut lab = Lab::new("128M");
    vellum_fails(&["serve", &lab.image_str(), "--slot", "1"], 2, &["no quorum"]);
    lab.serve();
    vellum_fails(&["quorum", "status", &lab.endpoint()], 5, &["single node"]);
    lab.stop_server();
}

#[test]
fn slots_are_checked_at_mkfs_and_changed_while_nobody_runs() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("x.img").display().to_string();
    let mkfs = |slots: &[&str]| {
        let mut args = vec!["mkfs", image.as_str(), "--size", "128M"];
        slots.iter().for_each(|slot| args.extend(["--slot", slot]));
        vellum(&args)
    };
    for (slots, says) in [
        (&["1=127.0.0.1:7400", "1=127.0.0.1:7401"][..], "slot 1 is given twice"),
        (&["1=127.0.0.1:7400", "2=127.0.0.1:7400"], "address 127.0.0.1:7400 is given twice"),
        (&["1=localhost:7400"], "no ADDR:PORT"),
        (&["15=127.0.0.1:7400"], "0 to 14"),
        (&["1"], "N=ADDR:PORT"),
    ] {
        let out = mkfs(slots);
        assert_eq!(out.status.code(), Some(2), "{slots:?}");
        assert!(
            String::from_utf8_lossy(&out.stderr).contains(says),
            "{slots:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    assert!(mkfs(&["1=127.0.0.1:7400"]).status.success());
    let changed = vellum_ok(&["quorum", "change", &image, "--set", "2=127.0.0.1:7401", "--set", "1=127.0.0.1:7402"]);
    assert!(changed.contains("127.0.0.1:7401") && changed.contains("127.0.0.1:7402") && !changed.contains("7400"));
    vellum_fails(&["quorum", "change", &image, "--set", "3=127.0.0.1:7401"], 1, &["share its address"]);
    vellum_fails(&["quorum", "change", &image], 2, &["nothing to change"]);
    let changed = vellum_ok(&["quorum", "change", &image, "--remove", "2", "--json"]);
    assert!(!changed.contains("7401"), "{changed}");
}

/// A leader that was killed left an election without an end: on the operator's word alone it counts as over.
#[test]
fn an_election_without_an_end_is_in_the_way_of_a_change() {
    let mut lab = ClusterLab::new(1, "128M");
    lab.start_all();
    lab.kill(0);
    let image = lab.image();
    let change = ["quorum", "change", image.as_str(), "--set", "1=127.0.0.1:7401"];
    vellum_fails(&change, 1, &["did not stop in order", "--confirm-dead"]);
    vellum_ok(&[&change[..], &["--confirm-dead"]].concat());
    assert_eq!(lab.leader(), None);
}

/// A node is replaced while the others serve: its slot gets another address, the process that had it leaves, one at the new
/// address takes part. A slot is taken out, the leader's too; what is unsafe is refused.
#[test]
fn the_quorum_is_changed_through_the_leader() {
    let mut lab = ClusterLab::with_keys_on_loopback(3, "128M");
    lab.start_all();
    let image = lab.image();
    let change = |lab: &ClusterLab, args: &[&str], keys: &str| {
        let out = lab.command_of(keys).args(["quorum", "change", &image]).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    };
    let refused = |lab: &ClusterLab, args: &[&str], keys: &str, code, says: &str| {
        let (found, text) = change(lab, args, keys);
        assert!(found == Some(code) && text.contains(says), "{args:?}: {found:?} {text}");
    };
    refused(&lab, &["--remove", "7"], "nodes/n0", 1, "slot 7 has no member");
    refused(&lab, &["--remove", "1", "--remove", "2"], "nodes/n0", 2, "one member at a time");
    refused(&lab, &["--set", &format!("1={}", lab.addresses[2])], "nodes/n0", 1, "would share its address");
    refused(&lab, &["--remove", "2"], "clients/gw", 1, "certificate");
    let (leader, _) = lab.wait_leader(0);
    let moved = (leader + 1) % 3;
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, text) = change(&lab, &["--set", &format!("{moved}={free}")], "nodes/n0");
    assert!(code == Some(0) && text.contains(&free.to_string()), "{code:?} {text}");
    lab.wait_stopped(moved);
    lab.addresses[moved] = free.to_string();
    lab.start(moved);
    common::wait_until("the leader hears it at its new address", std::time::Duration::from_secs(30), || {
        let out = lab.command_of("nodes/n0").args(["quorum", "status", &lab.endpoints(), "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().any(|p| p["slot"] == moved && p["heard_ms_ago"].as_f64().is_some_and(|ms| ms < 500.0))
    });
    // The leader's own slot: it resigns, and the next leader does it.
    let (leader, _) = lab.wait_leader(0);
    let (code, text) = change(&lab, &["--remove", &leader.to_string()], "nodes/n0");
    assert_eq!(code, Some(0), "{text}");
    lab.wait_stopped(leader);
    let (next, _) = lab.wait_leader(0);
    assert_ne!(next, leader);
    lab.finish();
}

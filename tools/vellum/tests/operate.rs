//! What an operator does with a running engine: look at it, at its locks and clients, give one up, scrape its metrics; and what a
//! busy gateway does to the machine.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::cluster::ClusterLab;
use common::{Lab, VELLUM, can_mount, vellum_fails, vellum_ok, wait_until};
use serde_json::Value;

const CPU_LATENCY: &str = "/dev/cpu_dma_latency";

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&vellum_ok(args)).expect("JSON")
}

/// Status line and body of one request to a unix socket.
fn http(socket: &Path, request: &[u8]) -> (String, String) {
    let mut stream = UnixStream::connect(socket).expect("the metrics socket");
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = stream.write_all(request); // closed at once when all places are taken: then there is no answer either
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[test]
fn an_engine_is_looked_at_and_a_client_given_up() {
    let mut lab = Lab::new("256M");
    lab.serve();
    let at = lab.endpoint();
    // A client that stays, and has locks: none is needed to walk, so a copy of the endpoint is enough to be listed.
    let mut follower = Command::new(VELLUM)
        .args(["walk", "meta-seq", "0", &at, "--follow"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = format!("pid {}", follower.id());
    let mut rid = String::new();
    wait_until("the follower is a client", Duration::from_secs(30), || {
        let clients = json(&["clients", &at, "--json"]);
        let listed = clients["listed"].as_array().unwrap();
        assert_eq!(clients["clients"].as_u64().unwrap() as usize, listed.len());
        let found = listed.iter().find(|c| c["who"].as_str().is_some_and(|who| who.contains(&pid)));
        rid = found.map_or(String::new(), |c| c["rid"].as_str().unwrap().to_owned());
        !rid.is_empty()
    });
    assert!(vellum_ok(&["clients", &at]).contains(&rid));
    let text = vellum_ok(&["status", &at]);
    assert!(text.contains("epochs") && text.contains("clients") && text.contains("locks"), "{text}");
    let locks = json(&["locks", &at, "--json"]);
    assert!(locks["locks"].is_u64() && locks["listed"].is_array(), "{locks}");
    assert!(vellum_ok(&["locks", &at]).contains("waited for"));

    vellum_ok(&["clients", "evict", &rid, &at]);
    wait_until("the evicted client ends", Duration::from_secs(60), || follower.try_wait().unwrap().is_some());
    assert!(!follower.wait().unwrap().success(), "it says that it was given up");
    wait_until("it is reclaimed", Duration::from_secs(60), || !vellum_ok(&["clients", &at]).contains(&rid));
    vellum_fails(&["clients", "evict", "1234", &at], 1, &["no client"]);
    vellum_fails(&["clients", "evict", "no-rid", &at], 2, &["is no rid"]);
}

/// Asking twice is no mistake; asking for what cannot be is, and says once why.
#[test]
fn a_shard_that_is_there_already_is_a_success() {
    let mut lab = Lab::new("256M");
    lab.serve();
    let at = lab.endpoint();
    let status = json(&["status", &at, "--json"]);
    let reactors = status["store"]["reactors"].as_array().unwrap();
    let has_17 = |reactor: &Value| {
        let of = |range: &Value, name: &str| range[name].as_u64().unwrap();
        let mut ranges = reactor["shard_ranges"].as_array().unwrap().iter();
        ranges.any(|range| (of(range, "first_bucket")..=of(range, "last_bucket")).contains(&17))
    };
    let home = reactors.iter().position(has_17).unwrap().to_string();
    let said = vellum_ok(&["move-shard", &at, "17", &home]);
    assert_eq!(said, format!("the shard of bucket 17 is already on reactor {home}\n"));
    if let Some(other) = (0..reactors.len()).map(|n| n.to_string()).find(|n| *n != home) {
        let said = vellum_ok(&["move-shard", &at, "17", &other]);
        assert_eq!(said, format!("the shard of bucket 17 is on reactor {other} now\n"));
        let again = json(&["move-shard", &at, "17", &other, "--json"]);
        assert_eq!((&again["moved"], again["reactor"].to_string()), (&Value::Bool(false), other));
    }
    let said = vellum_fails(&["move-shard", &at, "17", "1000"], 4, &["the engine answered"]);
    for part in ["moving a shard: ", "the engine answered: ", "there is no reactor 1000"] {
        assert_eq!(said.matches(part).count(), 1, "{part:?} in {said}");
    }
}

#[test]
fn metrics_are_given_and_strangers_cost_nothing() {
    let mut lab = Lab::new("256M");
    let socket = lab.dir.path().join("metrics.sock");
    let metrics = format!("unix:{}", socket.display());
    lab.serve_with(&["--metrics", &metrics]);
    wait_until("metrics", Duration::from_secs(30), || UnixStream::connect(&socket).is_ok());
    vellum_ok(&["df", &lab.endpoint()]);
    let (status, body) = http(&socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status, "HTTP/1.1 200 OK");
    for part in [
        "# TYPE vellum_reactor_locks_granted counter",
        "vellum_store_durable_epoch ",
        "vellum_store_space_free_blocks ",
        "vellum_store_reactor_log_used_bytes{reactor=\"0\"} ",
        "vellum_commit_seconds_count{reactor=\"0\"} ",
        "vellum_info{fsid=",
    ] {
        assert!(body.contains(part), "no {part:?} in\n{body}");
    }
    for (request, answer) in
        [(&b"GET /other HTTP/1.1\r\n\r\n"[..], "404"), (b"POST /metrics HTTP/1.1\r\n\r\n", "405"), (b"\r\n\r\n", "400")]
    {
        assert!(http(&socket, request).0.contains(answer), "{request:?}");
    }
    assert!(http(&socket, &[b'a'; 4096]).0.contains("431"), "a request without end");
    // Silent connections take places for a while; when they are gone there is room again.
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    drop(silent);
    wait_until("a scrape after many silent ones", Duration::from_secs(30), || {
        http(&socket, b"GET /metrics HTTP/1.1\r\n\r\n").0.contains("200")
    });
    vellum_fails(&["serve", &lab.image_str(), "--metrics", "8.8.8.8:9"], 2, &["loopback"]);
}

/// Every member of a cluster answers for itself, whether it leads or not; a follower says who does.
#[test]
fn followers_are_scraped_and_name_their_leader() {
    let mut lab = ClusterLab::new(3, "128M");
    let sockets: Vec<_> = (0..3).map(|slot| lab.dir.path().join(format!("metrics{slot}.sock"))).collect();
    for (slot, socket) in sockets.iter().enumerate() {
        lab.start_with(slot, &["--metrics", &format!("unix:{}", socket.display())]);
    }
    let (leader, term) = lab.wait_leader(0);
    for (slot, socket) in sockets.iter().enumerate() {
        let follows = slot != leader;
        let leads = format!("vellum_leads {}", u8::from(!follows));
        wait_until(&format!("slot {slot} says {leads}"), Duration::from_secs(30), || {
            UnixStream::connect(socket).is_ok()
                && http(socket, b"GET /metrics HTTP/1.1\r\n\r\n").1.lines().any(|line| line == leads)
        });
        let body = http(socket, b"GET /metrics HTTP/1.1\r\n\r\n").1;
        assert_eq!(body.contains("vellum_leader_heard_ms_ago "), follows, "{body}");
        assert_eq!(body.contains("vellum_store_durable_epoch "), !follows, "{body}");
        let status: Value = serde_json::from_str(&http(socket, b"GET /status HTTP/1.1\r\n\r\n").1).unwrap();
        assert_eq!(status["leads"], u8::from(!follows), "{status}");
        let text = vellum_ok(&["status", &format!("metrics:unix:{}", socket.display())]);
        let says = if follows { format!("slot {leader} at {}", lab.addresses[leader]) } else { format!("term {term}") };
        assert!(text.contains(&says), "{says:?} is not in {text}");
    }
    lab.finish();
}

/// What the kernel has been asked for by everybody, in microseconds.
fn wakeup_latency() -> i32 {
    let mut bytes = [0; 4];
    std::fs::File::open(CPU_LATENCY)
        .and_then(|mut device| device.read_exact(&mut bytes))
        .expect("the latency in force");
    i32::from_ne_bytes(bytes)
}

#[test]
fn a_busy_mount_keeps_idle_cores_awake_unless_told_not_to() {
    let test = "a_busy_mount_keeps_idle_cores_awake_unless_told_not_to";
    if !can_mount(test) {
        return;
    }
    if !Path::new(CPU_LATENCY).exists() {
        println!("SKIPPED {test}: this kernel has no {CPU_LATENCY}");
        return;
    }
    let mut lab = Lab::new("256M");
    lab.serve();
    let (awake, halting) = (lab.mount("awake", None), lab.mount_with("halting", None, &["--idle-cores", "halt"]));
    let asks = |at: &Path| {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", lab.mount_pid(at))).expect("the gateway's descriptors");
        fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == Path::new(CPU_LATENCY)))
    };
    assert!(asks(&awake) && !asks(&halting));
    let mut names = 0..;
    wait_until("the cores are kept awake", Duration::from_secs(30), || {
        names.by_ref().take(100).for_each(|name| std::fs::write(awake.join(format!("{name}")), b"x").unwrap());
        wakeup_latency() == 0
    });
    // The request of another test's mount may outlast this one's, so that its end is for the unit test.
    lab.unmount(&awake);
    lab.unmount(&halting);
}

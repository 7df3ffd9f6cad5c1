//! TCP with keys, by the real binary: who may listen, who may ask, and what read-only keys allow.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::cluster::ClusterLab;
use common::{Lab, VELLUM, can_mount, is_mounted, terminate, vellum_fails, vellum_ok, wait_for, wait_until};

const USAGE: i32 = 2;
const ENDPOINT: i32 = 5;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Keys of a node `a` at loopback and of the clients `gw`, and `reader` that may only look.
struct Keys {
    dir: PathBuf,
}

impl Keys {
    fn new(lab: &Lab) -> Keys {
        let dir = lab.dir.path().join("authority");
        let at = text(&dir);
        vellum_ok(&["keys", "init", at]);
        vellum_ok(&["keys", "node", at, "a", "--address", "127.0.0.1:7000", "--address", "::1"]);
        vellum_ok(&["keys", "client", at, "gw"]);
        vellum_ok(&["keys", "client", at, "reader", "--read-only"]);
        Keys { dir }
    }

    fn of(&self, bundle: &str) -> String {
        self.dir.join(bundle).display().to_string()
    }
}

struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    fn start(lab: &Lab, keys: &str) -> Server {
        let log = lab.dir.path().join("serve.out");
        let _ = fs::remove_file(&log);
        let child = Command::new(VELLUM)
            .args(["serve", &lab.image_str(), "--listen", "tcp:127.0.0.1:0", "--keys", keys])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut endpoint = None;
        wait_until("the engine serves", Duration::from_secs(30), || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let at =
                said.split(' ').find(|word| word.starts_with("tcp:")).map(|at| at.trim_end_matches(':').to_owned());
            endpoint = at.filter(|_| said.ends_with('\n'));
            endpoint.is_some()
        });
        Server { child, endpoint: endpoint.unwrap() }
    }

    fn stop(mut self) {
        terminate(&self.child);
        let status = wait_for(&mut self.child, Duration::from_secs(30)).expect("it ends on SIGTERM");
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_are_made_listed_and_never_lost_by_accident() {
    let lab = Lab::new("64M");
    let keys = Keys::new(&lab);
    let at = text(&keys.dir);
    let listed = vellum_ok(&["keys", "list", at]);
    for line in ["node     a ", "client   gw ", "client   reader "] {
        assert!(listed.contains(line), "{listed}");
    }
    assert!(listed.lines().any(|line| line.contains("reader") && line.contains("read-only")));
    let first: serde_json::Value =
        serde_json::from_str(vellum_ok(&["keys", "list", at, "--json"]).lines().next().unwrap()).unwrap();
    assert_eq!((&first["role"], &first["name"]), (&"node".into(), &"a".into()));
    assert!((729..=730).contains(&first["days_left"].as_i64().unwrap()), "{first}");

    vellum_fails(&["keys", "init", at], 1, &["exists"]);
    vellum_fails(&["keys", "client", at, "gw"], 1, &["exists"]);
    vellum_ok(&["keys", "client", at, "gw", "--renew", "--days", "10"]);
    assert!(vellum_ok(&["keys", "list", at]).contains("RENEW"));
    vellum_fails(&["keys", "client", at, "../x"], USAGE, &["no name"]);
    vellum_fails(&["keys", "node", at, "b", "--address", "not an address"], USAGE, &["no address"]);
    vellum_fails(&["keys", "node", at, "b"], USAGE, &["--address"]);
    vellum_fails(&["keys", "client", at, "x", "--path", "/projects/x"], USAGE, &["cannot hold a client to a subtree"]);
    vellum_fails(&["keys", "list", "/nonexistent"], 1, &["/nonexistent"]);
}

#[test]
fn nothing_listens_beyond_loopback_without_a_nodes_keys() {
    let lab = Lab::new("64M");
    let keys = Keys::new(&lab);
    let serve = |more: &[&str]| {
        let image = lab.image_str();
        let args: Vec<&str> = ["serve", &image, "--listen", "tcp:0.0.0.0:0"].iter().chain(more).copied().collect();
        vellum_fails(&args, USAGE, &[])
    };
    let said = serve(&[]);
    assert!(said.contains("--keys"), "{said}");
    let said = serve(&["--keys", &keys.of("clients/gw")]);
    assert!(said.contains("a node's are needed"), "{said}");
    let said = serve(&["--keys", "/nonexistent"]);
    assert!(said.contains("/nonexistent/own.crt"), "{said}");
    fs::set_permissions(keys.dir.join("nodes/a/own.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let said = serve(&["--keys", &keys.of("nodes/a")]);
    assert!(said.contains("chmod"), "{said}");
    // The way out is no way around it.
    vellum_fails(&["df", "tcp:192.0.2.77:7000"], ENDPOINT, &["--keys"]);
}

#[test]
fn an_engine_with_keys_answers_its_installation_alone() {
    let lab = Lab::new("64M");
    let keys = Keys::new(&lab);
    let server = Server::start(&lab, &keys.of("nodes/a"));
    let at = server.endpoint.clone();
    let gw = keys.of("clients/gw");
    vellum_ok(&["df", &at, "--keys", &gw]);
    let status = vellum_ok(&["status", &at, "--json", "--keys", &keys.of("clients/reader")]);
    assert!(status.contains("client/reader"), "{status}");
    let asked = Command::new(VELLUM).args(["df", &at]).env("VELLUM_KEYS", &gw).output().unwrap();
    assert!(asked.status.success(), "the environment names keys too");
    vellum_fails(&["df", &at], ENDPOINT, &["TLS", "--keys"]);
    let other = lab.dir.path().join("other");
    vellum_ok(&["keys", "init", text(&other)]);
    vellum_ok(&["keys", "client", text(&other), "gw"]);
    vellum_fails(&["df", &at, "--keys", text(&other.join("clients/gw"))], ENDPOINT, &["certificate"]);
    server.stop();
    lab.check();
}

#[test]
fn read_only_keys_read() {
    if !can_mount("read_only_keys_read") {
        return;
    }
    let lab = Lab::new("128M");
    let keys = Keys::new(&lab);
    let server = Server::start(&lab, &keys.of("nodes/a"));
    let mount = |name: &str, bundle: &str| {
        let dir = lab.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let child = Command::new(VELLUM)
            .args(["mount", &server.endpoint, text(&dir), "--keys", &keys.of(bundle)])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the mount is there", Duration::from_secs(30), || is_mounted(&dir));
        (dir, child)
    };
    let (writes, mut writer) = mount("writes", "clients/gw");
    fs::write(writes.join("file"), vec![7; 3 << 20]).unwrap();
    let (reads, mut reader) = mount("reads", "clients/reader");
    assert_eq!(fs::read(reads.join("file")).unwrap(), vec![7; 3 << 20]);
    fs::write(writes.join("file"), b"changed").unwrap();
    assert_eq!(fs::read(reads.join("file")).unwrap(), b"changed", "coherent");
    for refused in
        [fs::write(reads.join("new"), b"x"), fs::remove_file(reads.join("file")), fs::create_dir(reads.join("dir"))]
    {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    }
    for (child, dir) in [(&mut reader, &reads), (&mut writer, &writes)] {
        terminate(child);
        let status = wait_for(child, Duration::from_secs(30)).expect("it ends on SIGTERM");
        assert!(status.success() && !is_mounted(dir));
    }
    server.stop();
    lab.check();
}

/// Three members and a mount beyond loopback: elections over tagged datagrams, everything else over TLS, and a failover.
#[test]
fn a_cluster_beyond_loopback_has_keys_or_does_not_start() {
    if !can_mount("a_cluster_beyond_loopback_has_keys_or_does_not_start") {
        return;
    }
    let mut lab = ClusterLab::on_hosts(3, "256M");
    let refused = lab.command().args(["serve", &lab.image(), "--slot", "0"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(USAGE));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--keys"));
    lab.start_all();
    let (first, term) = lab.wait_leader(0);
    let at = lab.mount("m");
    let write = |name: &str| {
        let file = fs::File::create(at.join(name)).unwrap();
        std::io::Write::write_all(&mut &file, &vec![5; 1 << 20]).unwrap();
        file.sync_all().unwrap();
    };
    write("before");
    lab.kill(first);
    let (second, _) = lab.wait_leader(term);
    assert_ne!(first, second);
    write("after"); // over the new leader, whose certificate is another
    assert_eq!(fs::read(at.join("before")).unwrap(), vec![5; 1 << 20]);
    let endpoints = lab.endpoints();
    let status = |command: &mut Command| command.args(["status", &endpoints, "--json"]).output().unwrap();
    let told = status(&mut lab.command_of("clients/gw"));
    assert!(String::from_utf8_lossy(&told.stdout).contains("client/gw"));
    let told = status(&mut lab.command());
    assert_eq!(told.status.code(), Some(ENDPOINT));
    assert!(String::from_utf8_lossy(&told.stderr).contains("--keys"));
    lab.start(first);
    lab.finish();
}

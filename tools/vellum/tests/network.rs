//! TCP with keys, by the real binary: who may listen, who may ask, and what read-only keys allow.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::cluster::ClusterLab;
use common::gateways::Gateways;
use common::{Lab, VELLUM, can_mount, terminate, vellum_fails, vellum_ok, wait_for, wait_until};
use rustix::io::Errno;

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
        Server::start_at(lab, keys, "tcp:127.0.0.1:0")
    }

    fn start_at(lab: &Lab, keys: &str, listen: &str) -> Server {
        let log = lab.dir.path().join("serve.out");
        let _ = fs::remove_file(&log);
        let child = Command::new(VELLUM)
            .args(["serve", &lab.image_str(), "--listen", listen, "--keys", keys])
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
    for path in ["projects", "/", "/a/../b", "/a//b"] {
        vellum_fails(&["keys", "client", at, "x", "--path", path], USAGE, &["cannot be the directory of a client"]);
    }
    vellum_ok(&["keys", "client", at, "x", "--path", "/projects/x y/", "--read-only"]);
    let listed = vellum_ok(&["keys", "list", at]);
    assert!(listed.lines().any(|line| line.contains("read-only") && line.contains("/projects/x y ")), "{listed}");
    assert!(vellum_ok(&["keys", "list", at, "--json"]).contains(r#""confined_to":"/projects/x y""#));
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
    let mut gateways = Gateways::default();
    let mut mount = |name: &str, bundle: &str| mount(&mut gateways, &lab, &server.endpoint, name, &keys.of(bundle));
    let writes = mount("writes", "clients/gw");
    fs::write(writes.join("file"), vec![7; 3 << 20]).unwrap();
    let reads = mount("reads", "clients/reader");
    assert_eq!(fs::read(reads.join("file")).unwrap(), vec![7; 3 << 20]);
    fs::write(writes.join("file"), b"changed").unwrap();
    assert_eq!(fs::read(reads.join("file")).unwrap(), b"changed", "coherent");
    for refused in
        [fs::write(reads.join("new"), b"x"), fs::remove_file(reads.join("file")), fs::create_dir(reads.join("dir"))]
    {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    }
    gateways.stop(&reads);
    gateways.stop(&writes);
    server.stop();
    lab.check();
}

/// Two gateways side by side, one of them confined to /projects/x: it sees that, works there as anybody does, over a restart
/// of the engine too, and reaches nothing else.
#[test]
fn confined_keys_see_one_directory() {
    if !can_mount("confined_keys_see_one_directory") {
        return;
    }
    let lab = Lab::new("256M");
    let keys = Keys::new(&lab);
    vellum_ok(&["keys", "client", text(&keys.dir), "x", "--path", "/projects/x"]);
    let (node, confined) = (keys.of("nodes/a"), keys.of("clients/x"));
    let mut server = Server::start(&lab, &node);
    let at = server.endpoint.clone();
    let mut gateways = Gateways::default();
    let all = mount(&mut gateways, &lab, &at, "all", &keys.of("clients/gw"));
    let refused = |what: &str| {
        sync(&all);
        vellum_fails(&["mount", &at, text(&all), "--keys", &confined], ENDPOINT, &["/projects/x", what, "keys client"]);
    };
    refused("does not exist");
    fs::create_dir(all.join("projects")).unwrap();
    fs::write(all.join("projects/x"), b"").unwrap();
    refused("is no directory");
    fs::remove_file(all.join("projects/x")).unwrap();
    fs::create_dir_all(all.join("projects/x/old/deep")).unwrap();
    fs::create_dir(all.join("projects/y")).unwrap();
    fs::write(all.join("projects/y/secret"), vec![9; 1 << 20]).unwrap();
    fs::write(all.join("projects/x/large"), vec![7; 3 << 20]).unwrap();
    fs::write(all.join("projects/x/old/deep/file"), b"deep").unwrap();
    sync(&all);

    let mine = mount(&mut gateways, &lab, &at, "mine", &confined);
    let x = all.join("projects/x");
    assert_eq!(names(&mine), ["large", "old"]);
    assert_eq!(fs::read(mine.join("large")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(fs::read(mine.join("old/deep/file")).unwrap(), b"deep");
    // Work on both sides, each seen by the other.
    fs::create_dir(mine.join("new")).unwrap();
    for n in 0..200 {
        fs::write(mine.join(format!("new/{n}")), vec![n as u8; 5000]).unwrap();
    }
    fs::rename(mine.join("new/0"), mine.join("old/deep/zero")).unwrap();
    fs::rename(mine.join("old/deep"), mine.join("new/deep")).unwrap();
    fs::hard_link(mine.join("large"), mine.join("new/link")).unwrap();
    fs::remove_file(mine.join("large")).unwrap();
    std::os::unix::fs::symlink("../../y/secret", mine.join("new/way-out")).unwrap();
    assert_eq!(names(&x), ["new", "old"]);
    assert_eq!(fs::read(x.join("new/deep/zero")).unwrap(), vec![0; 5000]);
    assert_eq!(fs::read(x.join("new/link")).unwrap(), vec![7; 3 << 20]);
    fs::write(x.join("new/1"), b"from outside").unwrap();
    assert_eq!(fs::read(mine.join("new/1")).unwrap(), b"from outside");
    assert!(fs::read(mine.join("new/way-out")).is_err(), "it leads to nothing that this mount has");

    // A file that is open outlives its name, and a link from outside is a way in as long as it stands.
    let mut open = fs::File::options().read(true).write(true).create_new(true).open(mine.join("tmp")).unwrap();
    fs::remove_file(mine.join("tmp")).unwrap();
    open.write_all(b"kept").unwrap();
    fs::hard_link(all.join("projects/y/secret"), x.join("shared")).unwrap();
    assert_eq!(fs::read(mine.join("shared")).unwrap(), vec![9; 1 << 20]);
    fs::remove_file(x.join("shared")).unwrap();
    assert_eq!(fs::read(mine.join("shared")).unwrap_err().kind(), ErrorKind::NotFound);

    // The engine dies; what both have not made durable is sent again to the next one.
    fs::write(mine.join("new/before"), vec![1; 100_000]).unwrap();
    server.child.kill().unwrap();
    drop(server);
    server = Server::start_at(&lab, &node, &at);
    fs::write(mine.join("new/after"), vec![2; 100_000]).unwrap();
    open.write_all(b" on").unwrap();
    open.rewind().unwrap();
    let mut kept = String::new();
    open.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "kept on");
    drop(open);
    assert_eq!(fs::read(x.join("new/before")).unwrap(), vec![1; 100_000]);
    assert_eq!(fs::read(x.join("new/after")).unwrap(), vec![2; 100_000]);

    // What is moved out is out of reach, also by what the kernel remembers of it.
    let deep = fs::File::open(mine.join("new/deep")).unwrap();
    fs::rename(x.join("new/deep"), all.join("projects/y/deep")).unwrap();
    assert_eq!(fs::read(mine.join("new/deep/zero")).unwrap_err().kind(), ErrorKind::NotFound);
    let through_it = fs::read(format!("/proc/self/fd/{}/zero", deep.as_raw_fd()));
    assert_eq!(through_it.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(deep);
    // The tools are confined as well.
    vellum_ok(&["df", &at, "--keys", &confined]);
    for command in ["status", "clients", "locks"] {
        vellum_fails(&[command, &at, "--keys", &confined], 1, &["confined"]);
    }
    let ino = |path: &Path| fs::metadata(path).unwrap().ino().to_string();
    let path_of = |ino: &str| vellum_ok(&["ino-path", ino, &at, "--keys", &confined]);
    assert_eq!(path_of(&ino(&x.join("new/link"))).trim(), "/new/link");
    vellum_fails(&["ino-path", &ino(&all.join("projects/y/secret")), &at, "--keys", &confined], 1, &["not below"]);

    // Removed: the mount has nothing any more, and the keys lead nowhere.
    fs::remove_dir_all(&x).unwrap();
    assert_eq!(fs::read_dir(&mine).map(|_| ()).unwrap_err().raw_os_error(), Some(Errno::STALE.raw_os_error()));
    gateways.stop(&mine);
    refused("does not exist");
    gateways.stop(&all);
    server.stop();
    lab.check();
}

/// The directory of confined keys is moved, or removed, and the engine dies: the next one looks at the path again. Another
/// directory under that name is not shown as if it were the old one, what was held there holds up nobody else, and
/// mounting again shows what is there now.
#[test]
fn a_confined_mount_whose_path_leads_elsewhere_after_a_failover_ends() {
    if !can_mount("a_confined_mount_whose_path_leads_elsewhere_after_a_failover_ends") {
        return;
    }
    let lab = Lab::new("256M");
    let keys = Keys::new(&lab);
    vellum_ok(&["keys", "client", text(&keys.dir), "x", "--path", "/x"]);
    let (node, confined) = (keys.of("nodes/a"), keys.of("clients/x"));
    let mut server = Server::start(&lab, &node);
    let at = server.endpoint.clone();
    let mut gateways = Gateways::default();
    let all = mount(&mut gateways, &lab, &at, "all", &keys.of("clients/gw"));
    fs::create_dir(all.join("x")).unwrap();
    fs::write(all.join("x/old"), b"old").unwrap();
    sync(&all);
    let mine = mount(&mut gateways, &lab, &at, "mine", &confined);

    // As long as the engine lives the mount goes on with its directory, under whatever name.
    let held = fs::File::options().append(true).open(mine.join("old")).unwrap();
    fs::rename(all.join("x"), all.join("elsewhere")).unwrap();
    fs::create_dir(all.join("x")).unwrap();
    fs::write(all.join("x/new"), b"new").unwrap();
    sync(&all);
    (&held).write_all(b" and synced").unwrap();
    held.sync_all().unwrap();
    assert_eq!(names(&mine), ["old"]);

    server.child.kill().unwrap();
    drop(server);
    server = Server::start_at(&lab, &node, &at);
    ended(&mine, "old");
    assert!((&held).write_all(b" and lost").and_then(|()| held.sync_all()).is_err(), "its gateway has given up");
    drop(held);
    // Nobody waits for what it held.
    fs::write(all.join("elsewhere/old"), b"by another").unwrap();
    assert_eq!(fs::read(all.join("elsewhere/old")).unwrap(), b"by another");
    gateways.kill(&mine); // in order it would say that what was written last is lost
    let again = mount(&mut gateways, &lab, &at, "again", &confined);
    assert_eq!((names(&again), fs::read(again.join("new")).unwrap()), (vec!["new".to_owned()], b"new".to_vec()));

    // And when there is no such directory any more.
    fs::remove_dir_all(all.join("x")).unwrap();
    sync(&all);
    server.child.kill().unwrap();
    drop(server);
    server = Server::start_at(&lab, &node, &at);
    ended(&again, "new");
    gateways.kill(&again);
    vellum_fails(&["mount", &at, text(&again), "--keys", &confined], ENDPOINT, &["/x", "does not exist"]);
    fs::write(all.join("elsewhere/old"), b"it goes on").unwrap();
    gateways.stop(&all);
    server.stop();
    lab.check();
}

/// Waits until nothing is to be had there any more; it is an error, and never what another directory has.
fn ended(mount: &Path, file: &str) {
    wait_until("the mount ends", Duration::from_secs(30), || {
        // Where the mount's own file is "new" nothing else could be shown, and the mount may end between two reads of it.
        assert!(file == "new" || fs::read(mount.join("new")).is_err(), "another directory is shown");
        fs::read(mount.join(file)).is_err()
    });
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What was done through a mount is with the engine: until then it is with its gateway, for milliseconds.
fn sync(dir: &Path) {
    fs::File::open(dir).unwrap().sync_all().unwrap();
}

fn mount(gateways: &mut Gateways, lab: &Lab, endpoint: &str, name: &str, keys: &str) -> PathBuf {
    let dir = lab.dir.path().join(name);
    gateways.start(Command::new(VELLUM).args(["mount", endpoint, "--keys", keys]), &dir);
    dir
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
        (&file).write_all(&vec![5; 1 << 20]).unwrap();
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

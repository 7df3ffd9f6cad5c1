//! Every form of DEVICE is one to every command: a file by two names, a controller of another process, a controller model.
//! And what `vellum nvme` does to a controller.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::gateways::Gateways;
use common::{VELLUM, can_mount, files, terminate, vellum, vellum_fails, vellum_ok, wait_for, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

/// A process that ends with the test.
struct Process(Child);

impl Process {
    /// Runs the binary until something can be connected to at `socket`.
    fn serving(args: &[&str], socket: &Path) -> Process {
        let child = Command::new(VELLUM).args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
        let process = Process(child);
        wait_until("it serves", LIMIT, || std::os::unix::net::UnixStream::connect(socket).is_ok());
        process
    }

    fn stop(mut self) {
        terminate(&self.0);
        let status = wait_for(&mut self.0, LIMIT).expect("it ends on SIGTERM");
        assert!(status.success(), "ended with {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A controller model in a process of its own.
fn emulate(dir: &Path) -> (Process, PathBuf) {
    let socket = dir.join("controller.sock");
    let process = Process::serving(&["nvme", "emulate", socket.to_str().unwrap(), "--size", "128M"], &socket);
    (process, socket)
}

/// A filesystem is made on `device`, written through an engine, and read through a mount of the device itself.
fn carries_a_filesystem(dir: &Path, device: &str, name: &str) {
    let (at, socket) = (dir.join(name), dir.join(format!("{name}.sock")));
    let endpoint = format!("unix:{}", socket.display());
    vellum_ok(&["mkfs", device]);
    let engine = Process::serving(&["serve", device, "--listen", &endpoint, "--cores", "0"], &socket);
    let mut mounts = Gateways::default();
    let data = files::random(7, 3 << 20);
    mounts.start(Command::new(VELLUM).args(["mount", &endpoint]), &at);
    std::fs::write(at.join("blob"), &data).unwrap();
    mounts.unmount(&at);
    engine.stop();
    mounts.start(Command::new(VELLUM).args(["mount", &format!("file:{device}"), "--cores", "0"]), &at);
    assert!(std::fs::read(at.join("blob")).unwrap() == data, "{device}");
    mounts.unmount(&at);
    vellum_ok(&["check", device]);
    assert!(!vellum_ok(&["dump", device, "superblock"]).is_empty(), "{device}");
}

#[test]
fn every_form_of_device_carries_a_filesystem() {
    if !can_mount("every_form_of_device_carries_a_filesystem") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(128 << 20).unwrap();
        path.display().to_string()
    };
    carries_a_filesystem(dir.path(), &file("a.img"), "path");
    carries_a_filesystem(dir.path(), &format!("uring:{}", file("b.img")), "uring");
    carries_a_filesystem(dir.path(), &format!("emu:file:{}", file("c.img")), "emu");
    let (_controller, socket) = emulate(dir.path());
    carries_a_filesystem(dir.path(), &format!("vfio-user:{}/1", socket.display()), "vfio-user");
    // Memory is gone with its process: there is nothing on it for the next.
    vellum_ok(&["mkfs", "memory:64M"]);
    let out = vellum(&["check", "memory:64M"]);
    assert!(!out.status.success() && !String::from_utf8_lossy(&out.stderr).contains("panicked"), "{out:?}");
}

#[test]
fn a_controller_is_described_measured_and_changed_with_a_flag_only() {
    let dir = tempfile::tempdir().unwrap();
    let (_controller, socket) = emulate(dir.path());
    let device = format!("vfio-user:{}/1", socket.display());
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_str(&vellum_ok(args)).expect("JSON") };
    let identity = json(&["nvme", "identify", &device, "--json"]);
    assert_eq!(identity["namespaces"][0]["lba_bytes"], 4096, "{identity}");
    assert!(identity["reached_by"].as_str().unwrap().starts_with("vfio-user"), "{identity}");

    let (count, cores) = if std::thread::available_parallelism().unwrap().get() > 1 { (2, "0,1") } else { (1, "0") };
    let perf = ["nvme", "perf", &device, "-q", "4", "-o", "8K", "-w", "randrw", "-M", "70", "-t", "1", "-c", cores];
    vellum_fails(&perf, 1, &["--destroy-all-data"]);
    let result = json(&[&perf[..], &["--json", "--destroy-all-data"]].concat());
    let rows = result["cores"].as_array().unwrap();
    assert_eq!(rows.len(), count, "a row for each core: {result}");
    assert!(rows.iter().all(|row| row["ops"].as_u64().unwrap() > 0 && row["average_us"].as_f64().unwrap() > 0.0));
    assert!(result["latency_us"].as_array().unwrap().len() > 5, "{result}");
    let table = vellum_ok(&[&perf[..], &["--destroy-all-data"]].concat());
    assert!(table.contains("99.9"), "percentiles: {table}");
    let smart = json(&["nvme", "smart", &device, "--json"]);
    assert_eq!((&smart["temperature_celsius"], &smart["media_errors"]), (&27.into(), &0.into()), "{smart}");
    // A controller for each session: this one has done nothing wrong yet.
    assert!(vellum_ok(&["nvme", "log", &device]).contains("the error log is empty"));
    assert!(json(&["nvme", "log", &device, "--json"]).as_array().unwrap().is_empty());

    vellum_fails(&["nvme", "write-zeroes", &device], 1, &["--destroy-all-data"]);
    vellum_ok(&["nvme", "write-zeroes", &device, "--destroy-all-data"]);
    vellum_fails(&["nvme", "format", &device, "--lba", "512"], 1, &["--destroy-all-data"]);
    vellum_fails(&["nvme", "format", &device, "--lba", "520", "--destroy-all-data"], 2, &["512", "4096"]);
    vellum_ok(&["nvme", "format", &device, "--lba", "512", "--destroy-all-data"]);
    let identity = json(&["nvme", "identify", &device, "--json"]);
    assert_eq!(identity["namespaces"][0]["lba_bytes"], 512, "{identity}");
    vellum_fails(&["check", &format!("vfio-user:{}/9", socket.display())], 4, &["namespace 9"]);
}

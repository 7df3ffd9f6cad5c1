//! Two suites that others wrote for any filesystem, through a real mount: pjdfstest (what each call must answer) and fsx
//! (random reads, writes, mappings, truncations, holes, and copies against memory). Both are crates; `.ci/run` installs them.
//! Where they are not installed the test says so and passes, but under CI it fails.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Lab, can_mount};

/// Files whose owners and groups these tests change: users that every Linux has.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// fsx's operations and their weights; `invalidate` drops the page cache.
const FSX: &str = "
flen = 1000000
[opsize]
max = 100000
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 2
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 5
";
const FSX_OPERATIONS: &str = "3000";

/// A program of PATH or of cargo's own directory.
fn find(test: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(std::env::var_os("CARGO_HOME").map(|home| PathBuf::from(home).join("bin")));
    places.extend(std::env::home_dir().map(|home| home.join(".cargo/bin")));
    let found = places.into_iter().map(|dir| dir.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs {name}: .ci/run installs it");
        println!("SKIPPED {test}: it needs {name} (cargo install --locked {name})");
    }
    found
}

/// For mount(8) on the mount itself (to make it read-only and back): without the helper of fuse3, which would start `vellum`
/// anew, and again when a RELEASE is still on its way, as the kernel counts a file as open until that is answered.
const MOUNT: &str = r#"#!/bin/sh
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    said=$(/usr/bin/mount -i "$@" 2>&1) && exit 0
    sleep 0.05
done
echo "$said" >&2
exit 1
"#;

/// A mount that every user can reach.
fn mount(lab: &mut Lab) -> PathBuf {
    // pjdfstest 0.2.2 makes a path of PATH_MAX bytes from components of 127, and fails when they come out even. Its own two
    // directories have names of 10 letters.
    let even = |name: &str| (4095 - lab.dir.path().join(name).as_os_str().len() - 22).is_multiple_of(127);
    let name = if even("m") { "mm" } else { "m" };
    let mount = lab.mount(name, None);
    fs::set_permissions(lab.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&mount, fs::Permissions::from_mode(0o755)).unwrap();
    mount
}

/// Runs a suite; its whole output is shown when it fails. Answers what it printed.
fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().expect("it starts");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}\n{said}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    said
}

/// Another filesystem, for what must not work across two.
struct Elsewhere(tempfile::TempDir);

impl Elsewhere {
    fn new() -> Elsewhere {
        let dir = tempfile::tempdir().unwrap();
        let options = rustix::mount::MountFlags::empty();
        rustix::mount::mount("elsewhere", dir.path(), "tmpfs", options, None).unwrap();
        Elsewhere(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn pjdfstest_passes() {
    let Some(program) = find("pjdfstest", "pjdfstest").filter(|_| can_mount("pjdfstest")) else { return };
    let mut lab = Lab::new("512M");
    lab.serve();
    let mount = mount(&mut lab);
    let elsewhere = Elsewhere::new();
    let bin = lab.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("mount"), MOUNT).unwrap();
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    // Those that make the filesystem read-only run by themselves: the others leave a file open, on any filesystem.
    for (remount, only) in [("false", None), ("true", Some("erofs"))] {
        let config = lab.dir.path().join("pjdfstest.toml");
        fs::write(&config, PJDFSTEST.replace("REMOUNT", remount)).unwrap();
        let mut suite = Command::new(&program);
        suite.env("PATH", &path).arg("-c").arg(&config).arg("-p").arg(&mount).arg("-s").arg(elsewhere.path());
        let said = run(suite.args(only));
        println!("{}", said.lines().rfind(|line| line.contains("passed")).expect("a summary"));
    }
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();
}

#[test]
fn fsx_passes() {
    let Some(program) = find("fsx", "fsx").filter(|_| can_mount("fsx")) else { return };
    let mut lab = Lab::new("512M");
    lab.serve();
    let mount = mount(&mut lab);
    let config = lab.dir.path().join("fsx.toml");
    fs::write(&config, FSX).unwrap();
    let seed = std::env::var("FSX_SEED").unwrap_or_else(|_| "1".into());
    let operations = std::env::var("FSX_OPERATIONS").unwrap_or_else(|_| FSX_OPERATIONS.into());
    let artifacts = lab.dir.path().to_path_buf();
    run(Command::new(program)
        .args(["-N", &operations, "-S", &seed, "-f"])
        .arg(&config)
        .arg("-P")
        .arg(&artifacts)
        .arg(mount.join("file")));
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();
}

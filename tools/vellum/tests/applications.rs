//! Programs that people use, on a real mount of a served engine: git, tar, rsync, sqlite3, make, cargo. Each is skipped by name
//! where it is not installed; under CI that is a failure.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::files::random;
use common::{Lab, can_mount, wait_until};

/// True when all of `programs` are there and a mount is possible.
fn can_run(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = programs.iter().find(|name| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    if let Some(name) = missing {
        assert!(std::env::var_os("CI").is_none(), "{test} needs {name}: .ci/run installs it");
        println!("SKIPPED {test}: it needs {name}");
        return false;
    }
    can_mount(test)
}

/// Runs a shell script in `dir` and expects success; answers its output.
fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).stdin(Stdio::null());
    // Nothing of the user's own settings; one fixed author.
    for (key, value) in [("HOME", "/nonexistent"), ("GIT_CONFIG_NOSYSTEM", "1"), ("LC_ALL", "C")] {
        command.env(key, value);
    }
    for key in ["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"] {
        command.env(key, "a@example.org");
    }
    let out = command.output().expect("sh starts");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{script}\n{said}\n{}", String::from_utf8_lossy(&out.stderr));
    said
}

fn served(size: &str) -> (Lab, PathBuf) {
    let mut lab = Lab::new(size);
    lab.serve();
    let mount = lab.mount("m", None);
    (lab, mount)
}

fn finish(mut lab: Lab, mount: &Path) {
    lab.unmount(mount);
    lab.stop_server();
    lab.check();
}

/// A tree with everything that an archiver must bring back.
fn make_tree(root: &Path) {
    for i in 0..40u64 {
        let dir = root.join(format!("dir{}/sub{}", i % 4, i % 10));
        fs::create_dir_all(&dir).unwrap();
        for j in 0..10 {
            let len = (i * 977 + j * 3001) % 60_000;
            fs::write(dir.join(format!("f{i}-{j}")), random(i * 100 + j, len as usize)).unwrap();
        }
    }
    fs::hard_link(root.join("dir0/sub0/f0-1"), root.join("hard")).unwrap();
    std::os::unix::fs::symlink("dir0/sub0/f0-2", root.join("soft")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 20 << 20).unwrap();
    sh(root, "mkfifo pipe; chmod 4750 dir1/sub1/f1-0; chmod 1777 dir2; touch -d '2001-02-03 04:05:06.789012345' dir3");
}

#[test]
fn git_keeps_many_objects() {
    if !can_run("git", &["git"]) {
        return;
    }
    let (lab, mount) = served("1G");
    sh(&mount, "git init -q repo");
    let repo = mount.join("repo");
    for round in 0..3 {
        for i in 0..700 {
            let dir = repo.join(format!("d{}", i % 20));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("f{i}")), format!("round {round} of file {i}\n").repeat(i % 50)).unwrap();
        }
        sh(&repo, &format!("git add -A; git commit -qm 'round {round}'; git fsck --strict"));
    }
    sh(&repo, "git gc -q --prune=now; git fsck --strict; git clone -q . ../clone; git -C ../clone fsck --strict");
    assert_eq!(sh(&repo, "git status --porcelain"), "");
    assert_eq!(sh(&repo, "git rev-list --count HEAD").trim(), "3");
    sh(&mount, "diff -r -x .git repo clone");
    finish(lab, &mount);
}

#[test]
fn tar_brings_a_tree_there_and_back() {
    if !can_run("tar", &["tar", "diff"]) {
        return;
    }
    let (lab, mount) = served("1G");
    let plain = tempfile::tempdir().unwrap();
    fs::create_dir(plain.path().join("tree")).unwrap();
    make_tree(&plain.path().join("tree"));
    let at = mount.display();
    sh(plain.path(), &format!("tar -cS -H posix -f {at}/there.tar tree; tar -x -f {at}/there.tar -C {at}"));
    sh(&mount, "tar -cS -H posix -f back.tar tree; tar -d -f back.tar");
    sh(plain.path(), &format!("tar -d -f {at}/there.tar; tar -d -f {at}/back.tar"));
    let list = "cd tree; find . -printf '%P %y %m %n %U %G %T@ %l ' -type f -printf '%s\\n' -o -printf '\\n' | sort";
    let (ours, theirs) = (sh(&mount, list), sh(plain.path(), list));
    let differs = ours.lines().zip(theirs.lines()).find(|(a, b)| a != b);
    assert_eq!((differs, ours.len()), (None, theirs.len()));
    let kib: u64 = sh(&mount, "du -k tree/sparse | cut -f1").trim().parse().unwrap();
    assert!(kib < 100, "the sparse file has {kib} KiB");
    finish(lab, &mount);
}

#[test]
fn rsync_has_nothing_to_do_the_second_time() {
    if !can_run("rsync", &["rsync"]) {
        return;
    }
    let (lab, mount) = served("1G");
    let plain = tempfile::tempdir().unwrap();
    make_tree(plain.path());
    let copy = format!("rsync -aHAXS --checksum --itemize-changes ./ {}/copy/", mount.display());
    assert!(sh(plain.path(), &copy).lines().count() > 400);
    assert_eq!(sh(plain.path(), &copy), "", "the second time");
    let back = format!("rsync -aHAXS --checksum --itemize-changes {}/copy/ ./", mount.display());
    assert_eq!(sh(plain.path(), &back), "", "back");
    finish(lab, &mount);
}

/// Transactions until something ends it; each that was acknowledged is printed. FULL would not do: a transaction ends when its
/// journal is unlinked, and only EXTRA syncs the directory after that (SQLite, "PRAGMA synchronous").
fn sqlite_load(mount: &Path, acknowledged: &Path) -> Child {
    let script = "i=0; while :; do i=$((i+1)); \
        sqlite3 base.db \"PRAGMA synchronous=EXTRA; INSERT INTO t VALUES($i, hex(randomblob(2000)));\" || exit 1; \
        echo $i >> $1; done";
    let mut command = Command::new("sh");
    command.args(["-c", script, "load"]).arg(acknowledged).current_dir(mount);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh starts")
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Kills the engine, then the gateway, under a database: it is whole, and has every row that was acknowledged.
#[test]
fn sqlite_survives_sigkill_of_engine_and_gateway() {
    if !can_run("sqlite3", &["sqlite3"]) {
        return;
    }
    let (mut lab, mut mount) = served("512M");
    sh(&mount, "sqlite3 base.db 'PRAGMA journal_mode=DELETE; CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT);'");
    let acknowledged = lab.dir.path().join("acknowledged");
    let mut load = sqlite_load(&mount, &acknowledged);
    for _ in 0..2 {
        let before = lines(&acknowledged);
        wait_until("some rows", Duration::from_secs(60), || lines(&acknowledged) > before + 5);
        lab.kill_server();
        lab.serve();
    }
    let before = lines(&acknowledged);
    wait_until("rows after the engine's end", Duration::from_secs(60), || lines(&acknowledged) > before + 5);
    lab.kill_mount(&mount);
    load.kill().unwrap();
    load.wait().unwrap();
    let rows = lines(&acknowledged);
    mount = lab.mount("again", None);
    assert_eq!(sh(&mount, "sqlite3 base.db 'PRAGMA integrity_check'").trim(), "ok");
    let found = sh(&mount, &format!("sqlite3 base.db 'SELECT count(*) FROM t WHERE i <= {rows}'"));
    assert_eq!(found.trim(), rows.to_string(), "every acknowledged row");
    finish(lab, &mount);
}

/// A C project of many files, built twice: the second time there is nothing to do, as times are as they were made.
#[test]
fn make_builds_a_project_once() {
    if !can_run("make", &["make", "cc"]) {
        return;
    }
    let (mut lab, mount) = served("512M");
    let project = mount.join("project");
    fs::create_dir(&project).unwrap();
    let mut sum = String::new();
    for i in 0..60 {
        fs::write(
            project.join(format!("part{i}.c")),
            format!("#include \"all.h\"\nint part{i}(void) {{ return {i}; }}\n"),
        )
        .unwrap();
        sum.push_str(&format!(" + part{i}()"));
    }
    let header: String = (0..60).map(|i| format!("int part{i}(void);\n")).collect();
    fs::write(project.join("all.h"), header).unwrap();
    let main =
        format!("#include <stdio.h>\n#include \"all.h\"\nint main(void) {{ printf(\"%d\\n\", 0{sum}); return 0; }}\n");
    fs::write(project.join("main.c"), main).unwrap();
    let mut makefile = fs::File::create(project.join("Makefile")).unwrap();
    writeln!(makefile, "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))").unwrap();
    writeln!(makefile, "program: libparts.a main.o\n\tcc -o $@ main.o -L. -lparts").unwrap();
    writeln!(makefile, "libparts.a: $(filter-out main.o,$(OBJECTS))\n\tar rcs $@ $^").unwrap();
    writeln!(makefile, "%.o: %.c all.h\n\tcc -O1 -c -o $@ $<").unwrap();
    drop(makefile);
    sh(&project, "make -s -j4");
    assert_eq!(sh(&project, "./program").trim(), "1770");
    assert!(sh(&project, "make").contains("up to date"));
    // A second mount of the node sees the project, and changes it for the first.
    let second = lab.mount("second", None);
    assert!(sh(&second.join("project"), "make").contains("up to date"));
    sh(&second.join("project"), "sed -i 's/return 7;/return 8;/' part7.c; make -s");
    assert_eq!(sh(&project, "./program").trim(), "1771");
    assert!(sh(&project, "make").contains("up to date"));
    lab.unmount(&second);
    finish(lab, &mount);
}

/// A project as it is: one of this workspace's crates with all that it depends on, built by cargo with everything that it writes
/// on the mount (rustc maps what it reads, cargo locks, makes hard links and goes by times in nanoseconds), and its tests run
/// from there.
#[test]
fn cargo_builds_and_tests_a_crate() {
    if !can_run("cargo", &["cc"]) {
        return;
    }
    let (lab, mount) = served("2G");
    let build = || {
        let out = Command::new(env!("CARGO"))
            .args(["test", "--offline", "--package", "vellum-wire", "--target-dir"])
            .arg(mount.join("target"))
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .env_remove("RUSTFLAGS")
            .output()
            .expect("cargo starts");
        let said = [&out.stderr[..], &out.stdout].map(String::from_utf8_lossy).concat();
        assert!(out.status.success(), "{said}");
        said
    };
    let first = build();
    assert!(first.contains("Compiling vellum-wire") && first.contains("test result: ok"), "{first}");
    let second = build();
    assert!(!second.contains("Compiling") && second.contains("test result: ok"), "{second}");
    finish(lab, &mount);
}

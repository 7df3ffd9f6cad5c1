//! Mounts the tests' filesystem in memory: what the transport costs, without any filesystem behind it.
//!
//!     memfs DIR          serves until `umount DIR`, then prints what it counted
//!     memfs --load DIR   two threads create, stat, read and remove files in DIR, on whatever is mounted there

#[path = "../tests/common/memfs.rs"]
mod memfs;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use vellum_fuse::{MountOptions, mount_filesystem};

const FILES: usize = 5000;
const PER_DIR: usize = 1000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--load", dir, threads @ ..] => load(Path::new(dir), threads.first().map_or(2, |n| n.parse().unwrap_or(2))),
        [dir] => serve(Path::new(dir)),
        _ => eprintln!("usage: memfs DIR | memfs --load DIR [THREADS]"),
    }
}

fn serve(dir: &Path) {
    let (end, statistics) = vellum_rt::native::block_on(async {
        let fs = Rc::new(memfs::MemFs::new(Default::default()));
        let handle = mount_filesystem(fs, dir, &MountOptions::default()).expect("mount");
        (handle.until_unmounted().await, handle.statistics())
    });
    println!("{end:?} {statistics:#?}");
}

fn load(dir: &Path, threads: usize) {
    let path = |t: usize, i: usize| dir.join(format!("t{t}/d{}/f{i}", i / PER_DIR));
    for t in 0..threads {
        for d in 0..FILES / PER_DIR {
            fs::create_dir_all(dir.join(format!("t{t}/d{d}"))).expect("mkdir");
        }
    }
    let run = |name: &str, per_thread: usize, f: &(dyn Fn(usize, usize) + Sync)| {
        let _ = fs::write("/proc/sys/vm/drop_caches", "3");
        let began = Instant::now();
        std::thread::scope(|scope| {
            for t in 0..threads {
                scope.spawn(move || (0..per_thread).for_each(|i| f(t, i)));
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        println!("{name:<14} {:>9.0} /s", (per_thread * threads) as f64 / seconds);
    };
    let content = vec![7u8; 4096];
    run("create+write", FILES, &|t, i| File::create_new(path(t, i)).unwrap().write_all(&content).unwrap());
    run("stat", FILES, &|t, i| assert_eq!(fs::metadata(path(t, i)).unwrap().len(), 4096));
    run("open+read", FILES, &|t, i| {
        let mut buf = [0; 4096];
        File::open(path(t, i)).unwrap().read_exact(&mut buf).unwrap();
    });
    run("readdir+stat", 1, &|t, _| {
        for d in 0..FILES / PER_DIR {
            for entry in fs::read_dir(dir.join(format!("t{t}/d{d}"))).unwrap() {
                entry.unwrap().metadata().unwrap();
            }
        }
    });
    run("rename", FILES, &|t, i| fs::rename(path(t, i), dir.join(format!("t{t}/r{i}"))).unwrap());
    run("unlink", FILES, &|t, i| fs::remove_file(dir.join(format!("t{t}/r{i}"))).unwrap());
    let frame = vec![1u8; 1 << 20];
    let big = dir.join("big");
    run("write MiB", 512 / threads, &|t, i| {
        let mut file = File::options().append(true).create(true).open(format!("{}{t}", big.display())).unwrap();
        file.write_all(&frame).unwrap();
        let _ = i;
    });
    run("read 256 MiB", 1, &|t, _| {
        let mut file = File::open(format!("{}{t}", big.display())).unwrap();
        let mut buf = vec![0; 1 << 20];
        while file.read(&mut buf).unwrap() > 0 {}
    });
}

//! P1 on the real thing: whatever fsync acknowledged is there, byte for byte, after SIGKILL at any moment.
//!
//! A verifier outside the mount keeps the list of what was acknowledged. Each round kills the engine, the gateway, or
//! both while eight threads write; afterwards every acknowledged file is compared and the device is checked.

mod common;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Lab, can_mount};
use vellum_base::prng::Prng;

/// Content of a file is a function of its seed and length, so that the verifier needs to keep only those.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    Prng::new(seed).fill(&mut bytes);
    bytes
}

#[derive(Default)]
struct Acknowledged(Mutex<HashMap<PathBuf, (u64, usize)>>);

impl Acknowledged {
    fn insert(&self, path: PathBuf, what: (u64, usize)) {
        self.0.lock().unwrap().insert(path, what);
    }

    fn verify(&self, mount: &Path) {
        let all = self.0.lock().unwrap();
        for (path, (seed, len)) in all.iter() {
            let found = fs::read(mount.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(found.len(), *len, "{}: its length", path.display());
            assert!(found == content(*seed, *len), "{}: its content", path.display());
        }
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Creates, and replaces by rename; remembers what fsync acknowledged. The first error ends it.
fn write_until(
    stop: &AtomicBool,
    mount: &Path,
    round: u64,
    thread: u64,
    acknowledged: &Acknowledged,
) -> std::io::Result<()> {
    let mut prng = Prng::new(round * 100 + thread);
    let dir = PathBuf::from(format!("r{round}-t{thread}"));
    fs::create_dir(mount.join(&dir))?;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let len = match prng.below(4) {
            0 => prng.below(1000) as usize,
            1 => prng.below(20_000) as usize,
            2 => 4096,
            _ => prng.below(400_000) as usize,
        };
        let seed = prng.next_u64();
        let bytes = content(seed, len);
        let name = dir.join(format!("f{n}"));
        let temporary = mount.join(dir.join("temporary"));
        let replace = prng.one_in(3);
        let path = if replace { temporary.clone() } else { mount.join(&name) };
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        let cut = prng.below(len as u64 + 1) as usize;
        file.write_all(&bytes[..cut])?;
        file.write_all(&bytes[cut..])?;
        if replace {
            fs::rename(&temporary, mount.join(&name))?;
        }
        file.sync_all()?;
        if replace {
            File::open(mount.join(&dir))?.sync_all()?;
        }
        acknowledged.insert(name, (seed, len));
    }
    Ok(())
}

/// Eight writers, and `during` beside them. Returns the errors that writers met.
fn load(mount: &Path, round: u64, acknowledged: &Acknowledged, during: impl FnOnce()) -> Vec<std::io::Error> {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..8).map(|thread| scope.spawn(move || write_until(stop, mount, round, thread, acknowledged))).collect();
        during();
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().filter_map(|w| w.join().expect("a writer panicked").err()).collect()
    })
}

#[test]
fn what_fsync_acknowledged_survives_sigkill_of_engine_and_gateway() {
    if !can_mount("kill9") {
        return;
    }
    let mut lab = Lab::new("1G");
    let acknowledged = Acknowledged::default();
    let mut prng = Prng::new(0x6b69_6c6c);
    for round in 0..4 {
        lab.serve();
        let mount = lab.mount(&format!("m{round}"), None);
        acknowledged.verify(&mount);
        let pause = Duration::from_millis(200 + prng.below(600));
        load(&mount, round, &acknowledged, || {
            std::thread::sleep(pause);
            lab.kill_server();
            lab.kill_mount(&mount);
        });
        lab.check();
    }
    assert!(acknowledged.len() > 20, "only {} files were acknowledged", acknowledged.len());
    lab.serve();
    let mount = lab.mount("last", None);
    acknowledged.verify(&mount);
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();
}

#[test]
fn an_application_does_not_notice_that_the_engine_was_killed_and_started_again() {
    if !can_mount("kill9 reconnect") {
        return;
    }
    let mut lab = Lab::new("1G");
    let acknowledged = Acknowledged::default();
    lab.serve();
    let mount = lab.mount("m", None);
    let errors = load(&mount, 0, &acknowledged, || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(400));
            lab.kill_server();
            lab.serve();
        }
        std::thread::sleep(Duration::from_millis(400));
    });
    assert!(errors.is_empty(), "applications saw {errors:?}");
    for thread in 0..8 {
        assert!(acknowledged.0.lock().unwrap().keys().any(|p| p.starts_with(format!("r0-t{thread}"))));
    }
    acknowledged.verify(&mount);
    lab.unmount(&mount);
    lab.stop_server();
    lab.check();
}

#[test]
fn an_embedded_engine_dies_with_its_mount_and_keeps_what_was_acknowledged() {
    if !can_mount("kill9 embedded") {
        return;
    }
    let mut lab = Lab::new("1G");
    let acknowledged = Acknowledged::default();
    let endpoint = format!("file:{}", lab.image_str());
    for round in 0..3 {
        let mount = lab.mount(&format!("m{round}"), Some(&endpoint));
        acknowledged.verify(&mount);
        load(&mount, round, &acknowledged, || {
            std::thread::sleep(Duration::from_millis(500));
            lab.kill_mount(&mount);
        });
        lab.check();
    }
    assert!(acknowledged.len() > 10);
    let mount = lab.mount("last", Some(&endpoint));
    acknowledged.verify(&mount);
    lab.unmount(&mount);
    lab.check();
}

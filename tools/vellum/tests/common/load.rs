//! A load that knows what was acknowledged: writers that create or replace files, fsync, and remember.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vellum_base::prng::Prng;

/// Content of a file is a function of its seed and length.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    Prng::new(seed).fill(&mut bytes);
    bytes
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Path below the mount: seed and length of what fsync acknowledged last.
    files: Mutex<BTreeMap<PathBuf, (u64, usize)>>,
    /// Per writer: when its last acknowledged operation began, and when it was acknowledged.
    last: Mutex<Vec<Option<(Instant, Instant)>>>,
    errors: Mutex<Vec<String>>,
}

/// Writers on a mount, each in a directory of its own: create or replace, fsync, remember.
pub struct Load {
    shared: Arc<Shared>,
    mount: PathBuf,
    writers: Vec<std::thread::JoinHandle<()>>,
}

/// Files of one writer that are replaced again and again; more are not kept, so that the image stays small.
const FILES: u64 = 200;

impl Load {
    pub fn start(mount: &Path, name: &str, writers: usize) -> Load {
        let shared = Arc::new(Shared { last: Mutex::new(vec![None; writers]), ..Shared::default() });
        let threads = (0..writers)
            .map(|n| {
                let (shared, mount) = (shared.clone(), mount.to_owned());
                let dir = PathBuf::from(format!("{name}-{n}"));
                std::thread::spawn(move || {
                    if let Err(error) = write_until_told(&shared, &mount, &dir, n) {
                        shared.errors.lock().unwrap().push(format!("{}: {error}", dir.display()));
                    }
                })
            })
            .collect();
        Load { shared, mount: mount.to_owned(), writers: threads }
    }

    /// Waits until every writer has an acknowledgement of an operation that began after `event`; how long that took from
    /// there to the last of them.
    pub fn continues_after(&self, event: Instant, limit: Duration) -> Duration {
        loop {
            let errors = self.shared.errors.lock().unwrap().clone();
            assert!(errors.is_empty(), "applications saw {errors:?}");
            let last = self.shared.last.lock().unwrap().clone();
            if last.iter().all(|one| one.is_some_and(|(began, _)| began > event)) {
                let when = last.iter().flatten().map(|(_, acknowledged)| *acknowledged).max().unwrap_or(event);
                return when - event;
            }
            assert!(event.elapsed() < limit, "the load does not go on within {limit:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn acknowledged(&self) -> usize {
        self.shared.files.lock().unwrap().len()
    }

    /// Ends the writers; errors that they met.
    pub fn stop(&mut self) -> Vec<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("a writer panicked"));
        self.shared.errors.lock().unwrap().clone()
    }

    /// What was acknowledged is at `mount`, byte for byte.
    pub fn verify(&self, mount: &Path) {
        for (path, (seed, len)) in self.shared.files.lock().unwrap().iter() {
            let found = fs::read(mount.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(found.len(), *len, "{}: its length", path.display());
            assert!(found == content(*seed, *len), "{}: its content", path.display());
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn write_until_told(shared: &Shared, mount: &Path, dir: &Path, n: usize) -> std::io::Result<()> {
    let mut prng = Prng::new(77 + n as u64);
    fs::create_dir(mount.join(dir))?;
    File::open(mount.join(dir))?.sync_all()?;
    while !shared.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let name = dir.join(format!("f{}", prng.below(FILES)));
        let len = match prng.below(4) {
            0 => prng.below(900) as usize,
            1 => 4096,
            2 => prng.below(20_000) as usize,
            _ => prng.below(120_000) as usize,
        };
        let seed = prng.next_u64();
        let temporary = mount.join(dir.join("temporary"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&temporary)?;
        file.write_all(&content(seed, len))?;
        file.sync_all()?;
        // From here on it is the old file or the new one.
        shared.files.lock().unwrap().remove(&name);
        fs::rename(&temporary, mount.join(&name))?;
        File::open(mount.join(dir))?.sync_all()?;
        shared.files.lock().unwrap().insert(name, (seed, len));
        if let Some(last) = shared.last.lock().unwrap().get_mut(n) {
            *last = Some((began, Instant::now()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

//! This very program started again: engines and mounts that a benchmark or the quickstart can kill. All end with their
//! owner, by pid.

mod owned;

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, access};
use vellum_fuse::{Unmount, unmount};

pub use owned::{Process, Workplace, end_with_signals};

const START_WITHIN: Duration = Duration::from_secs(60);

fn own(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

fn wait_for(what: &str, process: &mut Process, mut ready: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !ready()? {
        if let Some(status) = process.try_wait()? {
            bail!("{what} ended with {status}");
        }
        if start.elapsed() > START_WITHIN {
            bail!("{what} did not come up within {START_WITHIN:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed())
}

/// A fresh filesystem there, whatever there was.
pub fn mkfs(image: &Path, bytes: u64) -> Result<()> {
    formatted(&["mkfs", &image.display().to_string(), "--size", &bytes.to_string(), "--force"])
}

/// The same in a file whose blocks are all allocated, so that flushes cost what they cost on a device.
pub fn mkfs_written(image: &Path, bytes: u64) -> Result<()> {
    let _ = std::fs::remove_file(image); // only what the file grows by is written
    formatted(&["mkfs", &image.display().to_string(), "--size", &bytes.to_string(), "--force", "--preallocate"])
}

fn formatted(args: &[&str]) -> Result<()> {
    Process::start(&mut own(args)?)?.finish("mkfs")
}

/// `vellum nvme emulate` without a medium, on the machine's last core.
pub struct NullController(#[expect(dead_code, reason = "it ends with this")] Process);

impl NullController {
    pub fn start(socket: &Path) -> Result<NullController> {
        let last = std::thread::available_parallelism()?.get() - 1;
        let socket_text = socket.display().to_string();
        let args = ["nvme", "emulate", &socket_text, "--null", "--size", "1T", "--core", &last.to_string()];
        let mut process = Process::start(&mut own(&args)?)?;
        wait_for("the controller's process", &mut process, || Ok(socket.exists()))?;
        Ok(NullController(process))
    }
}

/// `vellum serve` on a unix socket.
pub struct Engine {
    process: Process,
    /// From the start of the process until it says that it serves.
    pub start_time: Duration,
    /// What it says then, with what it replayed.
    pub said: String,
}

impl Engine {
    pub fn start(image: &Path, socket: &Path) -> Result<Engine> {
        let listen = format!("unix:{}", socket.display());
        let mut command = own(&["serve", &image.display().to_string(), "--listen", &listen])?;
        let start = Instant::now();
        let mut process = Process::start(command.stdout(Stdio::piped()))?;
        // Its own word, not a connection: a killed engine's socket accepts until the kernel has torn down its ring.
        let mut line = String::new();
        if let Some(out) = process.stdout() {
            std::io::BufReader::new(out).read_line(&mut line)?;
        }
        let start_time = start.elapsed();
        if !line.starts_with("serving") {
            process.finish("the engine")?;
            bail!("the engine ended before it served");
        }
        Ok(Engine { process, start_time, said: line.trim_end().to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL.
    pub fn kill(self) {}

    /// SIGTERM: it must end by itself, well.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate()?;
        self.process.finish("the engine")
    }
}

/// Resident memory of a process, as the kernel counts it, file pages included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    pub now_bytes: u64,
    /// The most since [`Resident::forget_peak`].
    pub peak_bytes: u64,
}

impl Resident {
    pub fn of(pid: u32) -> Result<Resident> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>()? << 10)
        };
        Ok(Resident { now_bytes: field("VmRSS")?, peak_bytes: field("VmHWM")? })
    }

    /// The peak begins anew at what is resident now.
    pub fn forget_peak(pid: u32) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
    }
}

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// `vellum compact-worker`; it ends with this.
pub struct Worker(#[expect(dead_code, reason = "it ends with this")] Process);

impl Worker {
    pub fn start(image: &Path, socket: &Path, core: Option<usize>) -> Result<Worker> {
        let mut command =
            own(&["compact-worker", &image.display().to_string(), &format!("unix:{}", socket.display())])?;
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        Ok(Worker(Process::start(&mut command)?))
    }
}

/// `vellum mount`.
pub struct Mount {
    pub dir: PathBuf,
    process: Process,
}

impl Mount {
    pub fn new(endpoint: &str, dir: &Path) -> Result<Mount> {
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let process = Process::start(&mut own(&["mount", endpoint, &dir.display().to_string()])?)?;
        let mut mount = Mount { dir, process };
        wait_for("the gateway", &mut mount.process, || Ok(is_mounted(&mount.dir)))?;
        Ok(mount)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL; the dead mount is taken out of the tree.
    pub fn kill(self) {}

    pub fn unmount(mut self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = unmount(&self.dir, Unmount::WhenIdle) {
            if start.elapsed() > Duration::from_secs(10) {
                return Err(error).context("unmounting");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process.finish("the gateway")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.process.kill(); // before its mount: it must not see an end in order
            let _ = unmount(&self.dir, Unmount::Lazy);
        }
    }
}

fn is_mounted(dir: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

/// What keeps this process from mounting, if anything.
pub fn cannot_mount() -> Option<String> {
    if let Err(errno) = access("/dev/fuse", Access::READ_OK | Access::WRITE_OK) {
        return Some(format!("this user cannot open /dev/fuse: {errno}"));
    }
    let helper = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("fusermount3").exists()));
    if !rustix::process::geteuid().is_root() && !helper {
        return Some("this user is not root and fusermount3 is not installed".into());
    }
    None
}

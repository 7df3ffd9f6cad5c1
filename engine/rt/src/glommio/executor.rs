//! Makes the executor. glommio panics, or ends the process, where the kernel lacks what it needs: so the kernel is asked before.

use std::io;
use std::time::Duration;

use ::glommio::{CpuSet, LocalExecutor, LocalExecutorBuilder, Placement};
use rustix::process::{Resource, getrlimit};
use rustix::thread::sched_getaffinity;
use vellum_uring::{Kind, Ring};

use crate::native::{Config, PollMode};

/// What glommio asks for (`RLIMIT_MEMLOCK`), whatever it then locks.
const LOCKED_BYTES: u64 = 512 << 10;

pub(super) fn build(config: &Config) -> io::Result<LocalExecutor> {
    check_kernel()?;
    check_locked_memory()?;
    let spin = match config.poll {
        PollMode::Adaptive => config.spin,
        PollMode::Always => Duration::MAX,
    };
    LocalExecutorBuilder::new(placement()?)
        .spin_before_park(spin)
        // Memory for files' IO, which is not used here. It makes 64 KiB of it, locked in each of three rings.
        .io_memory(0)
        .ring_depth(config.ring_entries as usize)
        // Never: there is one task, and a preemption before it has begun makes glommio 0.9 park although it is ready.
        .preempt_timer(Duration::from_secs(24 * 3600))
        .make()
        .map_err(|e| io::Error::other(format!("glommio makes no executor: {e}")))
}

/// The cores that the thread may run on as it is: glommio spins only when it has been told some.
fn placement() -> io::Result<Placement> {
    let allowed = sched_getaffinity(None)?;
    let cores = CpuSet::online()
        .map_err(|e| io::Error::other(format!("glommio cannot read the machine's cores from /sys: {e}")))?;
    Ok(Placement::Fenced(cores.filter(|core| allowed.is_set(core.cpu))))
}

fn check_kernel() -> io::Result<()> {
    Ring::new(2, Kind::Watched)
        .map(drop)
        .map_err(|e| io::Error::new(e.kind(), format!("the kernel gives no io_uring, which glommio needs: {e}")))
}

fn check_locked_memory() -> io::Result<()> {
    let may_lock = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    if may_lock >= LOCKED_BYTES {
        return Ok(());
    }
    let (needs, has) = (LOCKED_BYTES >> 10, may_lock >> 10);
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "glommio must be allowed to lock {needs} KiB of memory, this process is allowed {has} KiB: raise RLIMIT_MEMLOCK \
             (`ulimit -l {needs}`, or LimitMEMLOCK= of a systemd unit)"
        ),
    ))
}

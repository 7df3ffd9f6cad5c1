//! Fences members that run on this host: kills the process, and waits for its last operation at the device.
//!
//! A killed process may have operations in flight that land later. Every description through which a member does IO holds
//! its slot's lock, and the kernel gives that up only when the last operation of the description has ended: so the lock,
//! not the death, is the proof ([`vellum_nvme::Device::slot_has_io`]). It also speaks for processes that cannot be seen
//! from here (other pid namespaces): one kernel, one set of locks.
//!
//! Members on other hosts, and of an earlier boot, are another fencer's: nothing here can know of them.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vellum_base::Slot;
use vellum_nvme::Device;
use vellum_rt::{now, sleep};

use super::fencer::{FenceError, FenceFuture, FenceOrder, Fencer};
use crate::process;

/// How long a killed process and its operations are waited for.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

pub struct HostFencer {
    device: Arc<dyn Device>,
    own: Slot,
}

impl HostFencer {
    /// `device`: as this member has opened it.
    pub fn new(device: Arc<dyn Device>, own: Slot) -> HostFencer {
        HostFencer { device, own }
    }
}

impl std::fmt::Debug for HostFencer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostFencer({})", self.device.geometry().name)
    }
}

impl Fencer for HostFencer {
    fn fence(&self, order: FenceOrder) -> FenceFuture {
        let (device, own) = (self.device.clone(), self.own);
        Box::pin(async move { fence(&*device, own, order).await })
    }
}

async fn fence(device: &dyn Device, own: Slot, order: FenceOrder) -> Result<(), FenceError> {
    let Some(process) = order.process() else {
        return Err(FenceError::NotMine("the block does not say which process it was".into()));
    };
    if !process::is_this_boot(&process.boot_id) {
        return Err(FenceError::NotMine("it ran on another host, or before this host's last boot".into()));
    }
    if order.slot() == own {
        return Ok(()); // an earlier run of our slot: we got its lock when we opened the device
    }
    let has_io = || match device.slot_has_io(order.slot().0) {
        Ok(Some(has_io)) => Ok(has_io),
        Ok(None) => Err(FenceError::NotMine("this kind of device cannot tell who uses it".into())),
        Err(error) => Err(FenceError::Failed(error.to_string())),
    };
    if !has_io()? {
        return Ok(());
    }
    kill(&process)?;
    let give_up = now() + LIMIT;
    while has_io()? {
        if now() >= give_up {
            return Err(FenceError::TimedOut(LIMIT));
        }
        sleep(LOOK).await;
    }
    tracing::info!(%order, pid = process.pid, "fenced: killed, and its last operation has ended");
    Ok(())
}

/// The process of this number may be another one by now: the descriptor is opened first, then it is made sure whose it is.
fn kill(process: &vellum_format::ProcessIdentity) -> Result<(), FenceError> {
    let failed = |what: &str, errno: Errno| {
        let error = std::io::Error::from(errno);
        Err(FenceError::Failed(format!("cannot {what} process {}: {error}", process.pid)))
    };
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return Err(FenceError::Failed(format!("{} is no process", process.pid)));
    };
    let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(Errno::SRCH) => return Ok(()), // dead; its operations are waited for
        Err(errno) => return failed("open", errno),
    };
    if process::start_of(process.pid) != Some(process.start_ticks) {
        return Ok(()); // dead, or not to be seen from here: the lock tells
    }
    match pidfd_send_signal(&descriptor, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => failed("kill", errno),
    }
}

//! A client with a VFS on it, from its connection to its farewell.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::Rid;
use vellum_base::prng::Prng;
use vellum_client::{Client, ClientError, ClientOptions, ConnectOptions};
use vellum_rt::sleep;
use vellum_vfs::{Caller, OpenFlags, Vfs, VfsError, VfsOptions};

use super::{REPLACE, Shared};

pub(super) const CALLER: Caller = Caller { uid: 1, gid: 1, pid: 1, umask: 0 };
pub(super) const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, append: false, truncate: false, exclusive: false, sync: false };

/// Why a life ended before its time.
pub(super) enum End {
    /// It was fenced, or the device failed: it is to be replaced.
    Lost,
    /// What no fault excuses.
    Wrong(String),
}

pub(super) struct Mount {
    pub rid: Rid,
    pub vfs: Rc<Vfs>,
    client: Rc<Client>,
    shared: Rc<Shared>,
    failures: u64,
}

impl Mount {
    /// Small bounds are reached.
    pub async fn new(shared: &Rc<Shared>, machine: usize, prng: &mut Prng) -> Result<Mount, End> {
        let failures = shared.device_failures.get();
        let (rid, _) = shared.begin_life(machine);
        let link = ConnectOptions {
            timers: shared.timers,
            open_within: None,
            insecure_network: true,
            ..ConnectOptions::default()
        };
        let options = ClientOptions {
            rid: Some(rid),
            cache_bytes: 8 << 10 << prng.below(8),
            large_group_items: 16,
            max_idle_locks: 2 + prng.below(20) as usize,
            batch_ops: 128,
            max_retained_batches: 8,
            ..ClientOptions::default()
        };
        let client = match Client::connect(shared.address(), None, link, options).await {
            Ok(client) => client,
            Err(ClientError::Fenced { .. }) => return Err(End::Lost),
            Err(_) if shared.excuses(failures) => return Err(End::Lost),
            Err(error) => return Err(End::Wrong(error.to_string())),
        };
        let options = VfsOptions {
            max_dirty_bytes: 16 << 10 << prng.below(6),
            dirty_age: Duration::from_millis(1 + prng.below(200)),
            orphan_scan: Duration::from_millis(500),
            ..VfsOptions::default()
        };
        let vfs = Vfs::new(client.clone(), options);
        Ok(Mount { rid, vfs, client, shared: shared.clone(), failures })
    }

    /// Unmounts; or says why the work ended.
    pub async fn end(self, mut worked: Result<(), VfsError>) -> Result<(), End> {
        if worked.is_ok() {
            worked = self.vfs.shutdown().await;
        }
        let ended = match worked {
            Ok(()) => self.client.farewell().await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let Err(what) = ended else { return Ok(()) };
        // Why it failed is the client's to say; a call may fail a moment before the client knows.
        sleep(REPLACE).await;
        let fenced = matches!(self.client.sync().await, Err(ClientError::Fenced { .. }));
        if fenced {
            self.shared.checks.borrow_mut().told_fenced(self.rid);
        }
        self.client.abort();
        self.shared.checks.borrow_mut().reach.died(self.rid);
        let device_failed = self.shared.excuses(self.failures);
        Err(if fenced || device_failed { End::Lost } else { End::Wrong(what) })
    }
}

/// Errors that other gateways' work explains.
pub(super) fn tolerate<T>(result: Result<T, VfsError>) -> Result<Option<T>, VfsError> {
    use VfsError as E;
    const FINE: &[VfsError] =
        &[E::NOENT, E::EXIST, E::NOTEMPTY, E::ISDIR, E::NOTDIR, E::STALE, E::INVAL, E::LOOP, E::MLINK, E::PERM];
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if FINE.contains(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lives one after the other until the run's end; what no fault excuses in one is a violation.
pub(super) async fn lives(
    shared: Rc<Shared>,
    machine: usize,
    what: &str,
    one_life: impl AsyncFn(&Rc<Shared>, usize) -> Result<(), End>,
) {
    while !shared.stop.get() {
        match one_life(&shared, machine).await {
            Ok(()) => {}
            Err(End::Lost) => shared.end_life(machine),
            Err(End::Wrong(wrong)) => {
                shared.end_life(machine);
                shared.history.borrow_mut().violate("end", format!("{what} {machine}: {wrong}"));
            }
        }
        sleep(REPLACE).await;
    }
    shared.finish(machine);
}

//! What a simulated gateway does: POSIX operations through the VFS, in directories that all gateways share and in one of
//! its own.
//!
//! The shared names are for the store's checker: whatever is cut or lost, no name may lead nowhere and no rename be
//! half done (P2). In its own directory a gateway knows every byte: it reads them back all the time, and after its death
//! its successor finds what was fsynced (P1).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{Ino, Rid};
use vellum_client::{Address, Client, ClientError, ClientOptions, ConnectOptions};
use vellum_rt::{random_u64, sleep};
use vellum_vfs::{Caller, OpenFlags, RenameMode, SetAttr, Vfs, VfsError, VfsOptions};

use crate::client::Shared;
use crate::server::endpoint;

const REPLACE: Duration = Duration::from_millis(50);
const CALLER: Caller = Caller { uid: 1, gid: 1, pid: 1, umask: 0 };
const MAX_WRITE: u64 = 40_000;
const OWN_FILES: u64 = 6;
const SHARED_NAMES: u64 = 12;
const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, append: false, truncate: false, exclusive: false, sync: false };

#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    /// Nothing was changed since the last fsync that was answered.
    durable: bool,
}

/// Files of the gateway's own directory. They outlive the gateway's lives.
#[derive(Clone, Default)]
pub struct Own {
    files: Rc<std::cell::RefCell<BTreeMap<Vec<u8>, Content>>>,
}

enum End {
    Lost,
    Wrong(String),
}

struct Gateway {
    vfs: Rc<Vfs>,
    shared: Rc<Shared>,
    own: Own,
    home: Ino,
}

/// A gateway's task for the whole run.
pub async fn live(shared: Rc<Shared>, index: u64, own: Own) {
    while !shared.stop.get() {
        // What was not durable in the life before may have any content now.
        own.files.borrow_mut().retain(|_, content| content.durable);
        if let Err(End::Wrong(what)) = one_life(&shared, index, &own).await {
            shared.history.borrow_mut().violate(format!("gateway {index}: {what}"));
        }
        sleep(REPLACE).await;
    }
    shared.finished.set(shared.finished.get() + 1);
}

async fn one_life(shared: &Rc<Shared>, index: u64, own: &Own) -> Result<(), End> {
    let mut prng = Prng::new(random_u64());
    let failures = shared.device_failures.get();
    let link = ConnectOptions { timers: shared.timers, open_within: None, ..ConnectOptions::default() };
    let options = ClientOptions {
        rid: Some(Rid(random_u64())),
        cache_bytes: 8 << 10 << prng.below(8),
        max_idle_locks: 2 + prng.below(20) as usize,
        batch_ops: 128,
        max_retained_batches: 8,
        ..ClientOptions::default()
    };
    let client = match Client::connect(Address::Net(endpoint()), None, link, options).await {
        Ok(client) => client,
        Err(_) if shared.device_failed.get() => return Err(End::Lost),
        Err(error) => return Err(End::Wrong(error.to_string())),
    };
    let options = VfsOptions {
        max_dirty_bytes: 16 << 10 << prng.below(6),
        dirty_age: Duration::from_millis(1 + prng.below(200)),
        orphan_scan: Duration::from_millis(500),
        ..VfsOptions::default()
    };
    let vfs = Vfs::new(client.clone(), options);
    let mut gateway = Gateway { vfs, shared: shared.clone(), own: own.clone(), home: Ino::NONE };
    let mut worked = gateway.work(&mut prng, index).await;
    if worked.is_ok() {
        worked = gateway.vfs.shutdown().await;
    }
    let ended = match worked {
        Ok(()) => client.farewell().await.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let Err(what) = ended else { return Ok(()) };
    // Why it failed is the client's to say; a call may fail a moment before the client knows.
    sleep(REPLACE).await;
    let fenced = matches!(client.sync().await, Err(ClientError::Fenced { .. }));
    client.abort();
    let device_failed = shared.device_failed.get() || shared.device_failures.get() != failures;
    Err(if fenced || device_failed { End::Lost } else { End::Wrong(what) })
}

/// Errors that other gateways' work explains.
fn tolerate<T>(result: Result<T, VfsError>) -> Result<Option<T>, VfsError> {
    use VfsError as E;
    const FINE: &[VfsError] =
        &[E::NOENT, E::EXIST, E::NOTEMPTY, E::ISDIR, E::NOTDIR, E::STALE, E::INVAL, E::LOOP, E::MLINK, E::PERM];
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if FINE.contains(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Gateway {
    async fn work(&mut self, prng: &mut Prng, index: u64) -> Result<(), VfsError> {
        self.vfs.make_root(CALLER).await?;
        let home = format!("gateway {index}");
        tolerate(self.vfs.mkdir(CALLER, Ino::ROOT, home.as_bytes(), 0o755).await)?;
        self.home = self.vfs.lookup(Ino::ROOT, home.as_bytes()).await?.ino;
        let known: Vec<_> = self.own.files.borrow().keys().cloned().collect();
        for name in known {
            self.verify(&name).await?;
        }
        for _ in 0..5 + prng.below(150) {
            if self.shared.stop.get() {
                break;
            }
            let name = format!("own {}", prng.below(OWN_FILES)).into_bytes();
            match prng.below(10) {
                0..=2 => self.change_own(&name, prng).await?,
                3 => self.verify(&name).await?,
                4 => {
                    self.own.files.borrow_mut().remove(&name);
                    tolerate(self.vfs.unlink(self.home, &name).await)?;
                }
                5 if prng.one_in(4) => self.vfs.syncfs().await?,
                _ => self.change_names(prng).await?,
            }
            if prng.one_in(self.shared.pause_one_in) {
                sleep(Duration::from_micros(prng.below(20_000))).await;
            }
        }
        Ok(())
    }

    async fn change_own(&self, name: &[u8], prng: &mut Prng) -> Result<(), VfsError> {
        let before = self.own.files.borrow_mut().remove(name);
        let truncate = before.is_none() || prng.one_in(8);
        let mut bytes = before.filter(|_| !truncate).unwrap_or_default().bytes;
        let flags = OpenFlags { truncate, ..READ_WRITE };
        let (_, handle) = self.vfs.create(CALLER, self.home, name, 0o644, flags).await?;
        for _ in 0..1 + prng.below(3) {
            let at = prng.below(bytes.len() as u64 + 6000) as usize;
            let bound = if prng.one_in(2) { 600 } else { MAX_WRITE };
            let mut data = vec![0; 1 + prng.below(bound) as usize];
            prng.fill(&mut data);
            self.vfs.write(handle, at as u64, &data, false).await?;
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[at..at + data.len()].copy_from_slice(&data);
        }
        if prng.one_in(6) {
            let size = prng.below(bytes.len() as u64 + 5000);
            let attr = self.vfs.lookup(self.home, name).await?;
            self.vfs.setattr(attr.ino, SetAttr { size: Some(size), ..SetAttr::default() }).await?;
            bytes.resize(size as usize, 0);
        }
        let durable = prng.one_in(3);
        if durable {
            self.vfs.fsync(handle).await?;
        }
        self.vfs.release(handle).await?;
        self.own.files.borrow_mut().insert(name.to_vec(), Content { bytes, durable });
        Ok(())
    }

    async fn verify(&self, name: &[u8]) -> Result<(), VfsError> {
        let Some(expected) = self.own.files.borrow().get(name).cloned() else { return Ok(()) };
        let found = self.read(name).await;
        if found.as_ref() == Ok(&expected.bytes) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(name);
        let what = match found {
            Err(VfsError::NOENT) => "it is not there".into(),
            Err(error) => return Err(error),
            Ok(found) => {
                let at = found.iter().zip(&expected.bytes).position(|(a, b)| a != b);
                format!("{} bytes, expected {}, the first other one at {at:?}", found.len(), expected.bytes.len())
            }
        };
        let home = self.home;
        self.shared.history.borrow_mut().violate(format!("{name} in {home}, durable {}: {what}", expected.durable));
        Ok(())
    }

    async fn read(&self, name: &[u8]) -> Result<Vec<u8>, VfsError> {
        let attr = self.vfs.lookup(self.home, name).await?;
        let (handle, _) = self.vfs.open(attr.ino, OpenFlags { write: false, ..READ_WRITE }).await?;
        let mut found = Vec::new();
        let read = loop {
            match self.vfs.read(handle, found.len() as u64, 16 << 10).await {
                Ok(slices) if slices.iter().all(|slice| slice.is_empty()) => break Ok(found),
                Ok(slices) => slices.iter().for_each(|slice| found.extend_from_slice(slice)),
                Err(error) => break Err(error),
            }
        };
        self.vfs.release(handle).await?;
        read
    }

    /// A directory that all use: the root or one just below it.
    async fn some_dir(&self, prng: &mut Prng) -> Result<Ino, VfsError> {
        let name = format!("dir {}", prng.below(4));
        match prng.below(3) {
            0 => Ok(Ino::ROOT),
            _ => Ok(tolerate(self.vfs.lookup(Ino::ROOT, name.as_bytes()).await)?.map_or(Ino::ROOT, |attr| attr.ino)),
        }
    }

    async fn change_names(&self, prng: &mut Prng) -> Result<(), VfsError> {
        let (dir, other) = (self.some_dir(prng).await?, self.some_dir(prng).await?);
        let mut name = || format!("name {}", prng.below(SHARED_NAMES)).into_bytes();
        let (name, new_name) = (name(), name());
        let vfs = &self.vfs;
        match prng.below(10) {
            0..=2 => {
                let made = tolerate(vfs.create(CALLER, dir, &name, 0o644, READ_WRITE).await)?;
                let Some((_, handle)) = made else { return Ok(()) };
                let data = vec![prng.next_u64() as u8; 1 + prng.below(MAX_WRITE) as usize];
                tolerate(vfs.write(handle, 0, &data, false).await)?;
                vfs.release(handle).await?;
            }
            3 | 4 => {
                let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][prng.below(3) as usize];
                tolerate(vfs.rename(dir, &name, other, &new_name, mode).await)?;
            }
            5 => {
                if let Some(attr) = tolerate(vfs.lookup(dir, &name).await)? {
                    tolerate(vfs.link(attr.ino, other, &new_name).await)?;
                }
            }
            6 => {
                tolerate(vfs.unlink(dir, &name).await)?;
            }
            7 => {
                let dir_name = format!("dir {}", prng.below(4));
                if prng.one_in(4) {
                    tolerate(vfs.rmdir(Ino::ROOT, dir_name.as_bytes()).await)?;
                } else {
                    tolerate(vfs.mkdir(CALLER, Ino::ROOT, dir_name.as_bytes(), 0o755).await)?;
                }
            }
            8 => {
                tolerate(vfs.symlink(CALLER, dir, &name, b"somewhere").await)?;
            }
            _ => {
                // Listed whole, every name leads somewhere unless it is gone by then.
                let mut pos = 0;
                loop {
                    let entries = tolerate(vfs.readdir(dir, pos, 5, false).await)?.unwrap_or_default();
                    let Some(last) = entries.last() else { break };
                    pos = last.next_pos;
                }
            }
        }
        Ok(())
    }
}

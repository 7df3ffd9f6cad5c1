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
use vellum_base::{BLOCK_SIZE, Ino};
use vellum_rt::{random_u64, sleep};
use vellum_vfs::{OpenFlags, RenameMode, SetAttr, Vfs, VfsError};

use super::mount::{CALLER, End, Mount, READ_WRITE, tolerate};
use super::{REPLACE, Shared};

const MAX_WRITE: u64 = 40_000;
const OWN_FILES: u64 = 6;
const SHARED_NAMES: u64 = 12;
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    /// Nothing was changed since the last fsync that was answered.
    durable: bool,
    /// Failures of the device before it was written: what is not durable by the next one may be lost.
    failures: u64,
}

/// Files of the gateway's own directory. They outlive the gateway's lives.
#[derive(Clone, Default)]
pub struct Own {
    files: Rc<std::cell::RefCell<BTreeMap<Vec<u8>, Content>>>,
}

struct Gateway {
    vfs: Rc<Vfs>,
    shared: Rc<Shared>,
    own: Own,
    home: Ino,
}

/// A gateway's task for the whole run.
pub async fn live(shared: Rc<Shared>, index: usize, own: Own) {
    while !shared.stop.get() {
        // What was not durable in the life before may have any content now.
        own.files.borrow_mut().retain(|_, content| content.durable);
        if let Err(End::Wrong(what)) = one_life(&shared, index, &own).await {
            shared.history.borrow_mut().violate("end", format!("gateway {index}: {what}"));
        }
        sleep(REPLACE).await;
    }
    shared.finish(index);
}

async fn one_life(shared: &Rc<Shared>, index: usize, own: &Own) -> Result<(), End> {
    let mut prng = Prng::new(random_u64());
    let mount = Mount::new(shared, index, &mut prng).await?;
    let mut gateway = Gateway { vfs: mount.vfs.clone(), shared: shared.clone(), own: own.clone(), home: Ino::NONE };
    let worked = gateway.work(&mut prng, index).await;
    mount.end(worked).await
}

impl Gateway {
    async fn work(&mut self, prng: &mut Prng, index: usize) -> Result<(), VfsError> {
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
                5 => {
                    let other = format!("own {}", prng.below(OWN_FILES)).into_bytes();
                    self.copy_own(&other, &name, prng).await?;
                }
                _ => self.change_names(prng).await?,
            }
            if prng.one_in(self.shared.pause_one_in) {
                sleep(Duration::from_micros(prng.below(20_000))).await;
            }
        }
        Ok(())
    }

    /// A device that failed may have taken along what was not durable: the kernel's way, an error at the next fsync.
    fn counts(&self, content: &Content) -> bool {
        content.durable || !self.shared.excuses(content.failures)
    }

    async fn change_own(&self, name: &[u8], prng: &mut Prng) -> Result<(), VfsError> {
        let before = self.own.files.borrow_mut().remove(name).filter(|content| self.counts(content));
        let failures = self.shared.device_failures.get();
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
        self.own.files.borrow_mut().insert(name.to_vec(), Content { bytes, durable, failures });
        Ok(())
    }

    /// From one file into another, often so that whole blocks lie alike in both and can be shared.
    async fn copy_own(&self, from: &[u8], to: &[u8], prng: &mut Prng) -> Result<(), VfsError> {
        let known = |name: &[u8]| self.own.files.borrow().get(name).cloned().filter(|content| self.counts(content));
        let (Some(source), Some(target)) = (known(from), known(to)) else { return Ok(()) };
        if from == to || source.bytes.is_empty() {
            return Ok(());
        }
        // Until it has ended, nobody knows what is in the file.
        self.own.files.borrow_mut().remove(to);
        let unit = if prng.one_in(4) { 1 } else { BLOCK_SIZE as u64 };
        let from_at = prng.below(source.bytes.len() as u64) / unit * unit;
        let to_at = prng.below(target.bytes.len() as u64 + 6000) / unit * unit;
        let len = if prng.one_in(2) { u64::MAX / 2 } else { 1 + prng.below(MAX_WRITE) };
        let failures = self.shared.device_failures.get();
        let part = &source.bytes[from_at as usize..];
        let part = &part[..part.len().min(usize::try_from(len).unwrap_or(usize::MAX))];
        let durable = prng.one_in(3);
        let done = self.copy(from, to, (from_at, to_at, part.len() as u64), durable).await;
        if !self.counts(&source) || !self.counts(&target) {
            return Ok(());
        }
        match done {
            Err(VfsError::IO) if self.shared.device_lies.get() => {
                self.shared.errors.set(self.shared.errors.get() + 1);
                return Ok(());
            }
            done => done?,
        }
        let (mut bytes, at) = (target.bytes, to_at as usize);
        bytes.resize(bytes.len().max(at + part.len()), 0);
        bytes[at..at + part.len()].copy_from_slice(part);
        self.own.files.borrow_mut().insert(to.to_vec(), Content { bytes, durable, failures });
        Ok(())
    }

    async fn copy(&self, from: &[u8], to: &[u8], range: (u64, u64, u64), durable: bool) -> Result<(), VfsError> {
        let (from_at, to_at, len) = range;
        let from = self.vfs.open(self.vfs.lookup(self.home, from).await?.ino, READ_WRITE).await?.0;
        let to = self.vfs.open(self.vfs.lookup(self.home, to).await?.ino, READ_WRITE).await?.0;
        let (mut done, mut result) = (0, Ok(()));
        while done < len && result.is_ok() {
            match self.vfs.copy_range((from, from_at + done), (to, to_at + done), len - done, false).await {
                Ok(0) => result = Err(VfsError::NODATA), // the file is shorter than it was
                Ok(copied) => done += copied,
                Err(error) => result = Err(error),
            }
        }
        if durable && result.is_ok() {
            result = self.vfs.fsync(to).await;
        }
        self.vfs.release(from).await?;
        self.vfs.release(to).await?;
        result
    }

    async fn verify(&self, name: &[u8]) -> Result<(), VfsError> {
        let Some(expected) = self.own.files.borrow().get(name).cloned() else { return Ok(()) };
        if !self.counts(&expected) {
            return Ok(());
        }
        let found = self.read(name).await;
        if !self.counts(&expected) {
            return Ok(());
        }
        if found.as_ref() == Ok(&expected.bytes) {
            return Ok(());
        }
        let what = match found {
            Err(VfsError::NOENT) => "it is not there".into(),
            // What the device has lost, or gives wrongly, is told: the file is not what it was, and nobody is misled.
            Err(VfsError::IO) if self.shared.device_lies.get() => {
                self.shared.errors.set(self.shared.errors.get() + 1);
                self.own.files.borrow_mut().remove(name);
                return Ok(());
            }
            Err(error) => return Err(error),
            Ok(found) => {
                let at = found.iter().zip(&expected.bytes).position(|(a, b)| a != b);
                format!("{} bytes, expected {}, the first other one at {at:?}", found.len(), expected.bytes.len())
            }
        };
        let (home, name) = (self.home, String::from_utf8_lossy(name));
        self.shared
            .history
            .borrow_mut()
            .violate("P1", format!("{name} in {home}, durable {}: {what}", expected.durable));
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

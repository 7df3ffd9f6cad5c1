//! Few names and small files in one directory, under all gateways at once; every operation is told with its call and its
//! answer to [`crate::check::linear`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{Ino, Rid};
use vellum_rt::{random_u64, sleep};
use vellum_vfs::{FileHandle, OpenFlags, RenameMode, Vfs, VfsError};

use super::Shared;
use super::mount::{CALLER, End, Mount, READ_WRITE, lives, tolerate};
use crate::check::linear::{Answer, FileId, Name, Op};

const NAMES: u64 = 4;
/// Contents stay small: they are compared at each read.
const MAX_SIZE: u64 = 6000;
/// Operations of the whole run: the search for an order must end.
const MAX_OPS: usize = 1500;
/// Files that a client holds open at a time.
const OPEN_FILES: usize = 3;

struct Names {
    rid: Rid,
    vfs: Rc<Vfs>,
    shared: Rc<Shared>,
    dir: Ino,
    open: std::cell::RefCell<BTreeMap<FileId, (FileHandle, bool)>>,
    next_write: Cell<u8>,
}

/// Its task for the whole run.
pub async fn live(shared: Rc<Shared>, machine: usize) {
    lives(shared, machine, "client", one_life).await;
}

async fn one_life(shared: &Rc<Shared>, machine: usize) -> Result<(), End> {
    let mut prng = Prng::new(random_u64());
    let mount = Mount::new(shared, machine, &mut prng).await?;
    let mut names = Names {
        rid: mount.rid,
        vfs: mount.vfs.clone(),
        shared: shared.clone(),
        dir: Ino::NONE,
        open: Default::default(),
        next_write: Cell::new(random_u64() as u8),
    };
    let worked = names.work(&mut prng).await;
    let rid = mount.rid;
    let ended = mount.end(worked).await;
    if ended.is_ok() {
        let done = shared.ops.borrow().len_of(rid);
        shared.ops.borrow_mut().synced(rid, done);
    }
    ended
}

impl Names {
    fn now(&self) -> u64 {
        self.shared.checks.borrow().out.story.now()
    }

    /// Tells an operation and its answer. Errors that are no answers end the life.
    async fn told<T>(
        &self,
        op: Op,
        work: impl Future<Output = Result<T, VfsError>>,
        answer: impl FnOnce(T) -> Answer,
    ) -> Result<Answer, VfsError> {
        self.shared.checks.borrow_mut().out.story.detail(|story| format!("{} calls {op:?}", story.name(self.rid)));
        self.shared.ops.borrow_mut().called(self.rid, op, self.now());
        let answer = match work.await {
            Ok(value) => answer(value),
            Err(VfsError::NOENT | VfsError::STALE) => Answer::NotThere,
            Err(VfsError::EXIST) => Answer::There,
            Err(error) => return Err(error), // unknown: its call stays open
        };
        self.shared.checks.borrow_mut().out.story.detail(|story| {
            let name = story.name(self.rid);
            match &answer {
                Answer::Content(content) => format!("{name} is answered {} bytes", content.len()),
                other => format!("{name} is answered {other:?}"),
            }
        });
        self.shared.ops.borrow_mut().answered(self.rid, answer.clone(), self.now());
        Ok(answer)
    }

    async fn work(&mut self, prng: &mut Prng) -> Result<(), VfsError> {
        self.vfs.make_root(CALLER).await?;
        tolerate(self.vfs.mkdir(CALLER, Ino::ROOT, b"names", 0o755).await)?;
        self.dir = self.vfs.lookup(Ino::ROOT, b"names").await?.ino;
        for _ in 0..5 + prng.below(120) {
            if self.shared.stop.get() || self.shared.ops.borrow().len() >= MAX_OPS {
                break;
            }
            self.one(prng).await?;
            if prng.one_in(self.shared.pause_one_in) {
                sleep(Duration::from_micros(prng.below(20_000))).await;
            }
        }
        let open = self.open.take();
        for (handle, _) in open.into_values() {
            self.vfs.release(handle).await?;
        }
        Ok(())
    }

    async fn one(&self, prng: &mut Prng) -> Result<(), VfsError> {
        let (a, b) = (prng.below(NAMES) as Name, prng.below(NAMES) as Name);
        match prng.below(16) {
            0..=2 => self.create(a).await,
            3 | 4 => self.find(a, prng).await,
            5 => self.told(Op::Unlink(a), self.vfs.unlink(self.dir, &text(a)), |()| Answer::Done).await.map(drop),
            6 => self.rename(a, b, RenameMode::Replace).await,
            7 => self.rename(a, b, RenameMode::NoReplace).await,
            8 if a != b => self.rename(a, b, RenameMode::Exchange).await,
            9 => {
                let Some(file) = self.some_file(prng) else { return Ok(()) };
                let name = text(b);
                let work = self.vfs.link(Ino(file), self.dir, &name);
                self.told(Op::Link(file, b), work, |_| Answer::Done).await.map(drop)
            }
            10..=12 => self.read(prng).await,
            13 if prng.one_in(3) => {
                let before = self.shared.ops.borrow().len_of(self.rid);
                self.vfs.syncfs().await?;
                self.shared.ops.borrow_mut().synced(self.rid, before);
                Ok(())
            }
            _ => self.write(prng).await,
        }
    }

    fn some_file(&self, prng: &mut Prng) -> Option<FileId> {
        let open = self.open.borrow();
        open.keys().nth(prng.below(open.len().max(1) as u64) as usize).copied()
    }

    /// Takes a file into those that are held open.
    async fn hold(&self, file: FileId, handle: FileHandle, append: bool) -> Result<(), VfsError> {
        let old = self.open.borrow_mut().insert(file, (handle, append));
        let mut gone: Vec<FileHandle> = old.into_iter().map(|(handle, _)| handle).collect();
        if self.open.borrow().len() > OPEN_FILES {
            gone.extend(self.open.borrow_mut().pop_first().map(|(_, (handle, _))| handle));
        }
        for handle in gone {
            self.vfs.release(handle).await?;
        }
        Ok(())
    }

    async fn create(&self, name: Name) -> Result<(), VfsError> {
        let made = Cell::new(None);
        let flags = OpenFlags { exclusive: true, ..READ_WRITE };
        let name_text = text(name);
        let work = self.vfs.create(CALLER, self.dir, &name_text, 0o644, flags);
        self.told(Op::Create(name), work, |(attr, handle)| {
            made.set(Some((attr.ino.0, handle)));
            Answer::File(attr.ino.0)
        })
        .await?;
        match made.take() {
            Some((file, handle)) => self.hold(file, handle, false).await,
            None => Ok(()),
        }
    }

    async fn find(&self, name: Name, prng: &mut Prng) -> Result<(), VfsError> {
        let name_text = text(name);
        let work = self.vfs.lookup(self.dir, &name_text);
        let found = self.told(Op::Lookup(name), work, |attr| Answer::File(attr.ino.0)).await?;
        if let Answer::File(file) = found {
            let append = prng.one_in(2);
            let flags = OpenFlags { append, ..READ_WRITE };
            if let Some((handle, _)) = tolerate(self.vfs.open(Ino(file), flags).await)? {
                self.hold(file, handle, append).await?;
            }
        }
        Ok(())
    }

    async fn rename(&self, from: Name, to: Name, mode: RenameMode) -> Result<(), VfsError> {
        let op = match mode {
            RenameMode::Replace => Op::Rename(from, to),
            RenameMode::NoReplace if from == to => return Ok(()),
            RenameMode::NoReplace => Op::RenameNoReplace(from, to),
            RenameMode::Exchange => Op::Exchange(from, to),
        };
        let (from, to) = (text(from), text(to));
        self.told(op, self.vfs.rename(self.dir, &from, self.dir, &to, mode), |()| Answer::Done).await.map(drop)
    }

    async fn read(&self, prng: &mut Prng) -> Result<(), VfsError> {
        let Some(file) = self.some_file(prng) else { return Ok(()) };
        let handle = self.open.borrow()[&file].0;
        // One call: the whole content is of one moment.
        let work = self.vfs.read(handle, 0, 1 << 20);
        self.told(Op::Read(file), work, |slices| Answer::Content(slices.iter().flat_map(|s| s.to_vec()).collect()))
            .await
            .map(drop)
    }

    async fn write(&self, prng: &mut Prng) -> Result<(), VfsError> {
        let Some(file) = self.some_file(prng) else { return Ok(()) };
        let (handle, append) = self.open.borrow()[&file];
        self.next_write.set(self.next_write.get().wrapping_add(1));
        let bound = if prng.one_in(4) { 3000 } else { 40 };
        let data = vec![self.next_write.get(); 1 + prng.below(bound) as usize];
        if append {
            let work = self.vfs.write(handle, 0, &data, false);
            return self.told(Op::Append(file, data.clone()), work, |_| Answer::Done).await.map(drop);
        }
        let at = prng.below(MAX_SIZE);
        let work = self.vfs.write(handle, at, &data, false);
        self.told(Op::Write(file, at, data.clone()), work, |_| Answer::Done).await.map(drop)
    }
}

fn text(name: Name) -> Vec<u8> {
    format!("name {name}").into_bytes()
}

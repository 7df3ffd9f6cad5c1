//! A batch of a confined client: what it touches is inside, and it moves nothing across the wall.
//!
//! Judged by what is there before the batch, while all inodes that it changes are reserved. So no name comes in by being
//! written beside a name that goes out, and two batches cannot do together what neither may.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Ino, ItemOp, Key, View, Zone};
use vellum_format::{Dirent, Inode, ItemKind, Orphan};
use vellum_wire::{ErrorCode, WireError};

use super::{Confined, Standing, Verdict, is_clients, outside};
use crate::backend::{BackendFuture, BatchJudge};

/// A name, as a backref's key says it.
type Place = (Ino, u64);

/// What a batch does to the names of one inode.
#[derive(Default)]
struct NameChange {
    made: BTreeSet<Place>,
    gone: BTreeSet<Place>,
}

impl NameChange {
    /// The names afterwards.
    fn applied_to(&self, before: Vec<Place>) -> BTreeSet<Place> {
        let left = before.into_iter().filter(|place| !self.gone.contains(place));
        left.chain(self.made.iter().copied()).collect()
    }
}

/// What a batch comes to.
#[derive(Default)]
struct Shape {
    /// Whose items it writes.
    touched: BTreeSet<Ino>,
    /// Directories whose entries it writes, or that its backrefs name.
    dirs: BTreeSet<Ino>,
    /// What its entries name.
    entered: BTreeSet<Ino>,
    names: BTreeMap<Ino, NameChange>,
    inodes: BTreeMap<Ino, Inode>,
    dying: BTreeSet<Ino>,
    /// The root in a record of an orphan.
    orphans: Vec<Option<Ino>>,
}

fn malformed(key: &Key, what: impl std::fmt::Display) -> WireError {
    WireError { code: ErrorCode::Malformed, message: format!("{key:?}: {what}") }
}

impl Shape {
    fn of(ops: &[ItemOp]) -> Result<Shape, WireError> {
        let mut shape = Shape::default();
        for op in ops {
            match op {
                ItemOp::Put { key, value } => shape.add(key, Some(value))?,
                ItemOp::Delete { key } => shape.add(key, None)?,
                ItemOp::DeleteInode { ino } => {
                    shape.touched.insert(*ino);
                    shape.dying.insert(*ino);
                }
            }
        }
        Ok(shape)
    }

    fn add(&mut self, key: &Key, value: Option<&Bytes>) -> Verdict {
        if !is_clients(key) {
            return Err(outside(format_args!("{key:?}")));
        }
        let ino = Ino(key.first());
        self.touched.insert(ino);
        if key.zone() == Some(Zone::Orphan) {
            let record = value.map(|value| Orphan::decode(value)).transpose().map_err(|e| malformed(key, e))?;
            self.orphans.extend(record.map(|orphan| orphan.root));
            return Ok(());
        }
        match ItemKind::from_u8(key.kind()) {
            Some(ItemKind::Dirent | ItemKind::Readdir) => {
                self.dirs.insert(ino);
                if let Some(value) = value {
                    self.entered.insert(Dirent::decode(value).map_err(|e| malformed(key, e))?.ino);
                }
            }
            Some(ItemKind::Backref) => {
                let place = (Ino(key.second()), key.third());
                self.dirs.insert(place.0);
                let change = self.names.entry(ino).or_default();
                if value.is_some() {
                    change.made.insert(place)
                } else {
                    change.gone.insert(place)
                };
            }
            Some(ItemKind::Inode) => {
                if let Some(value) = value {
                    self.inodes.insert(ino, Inode::decode(value).map_err(|e| malformed(key, e))?);
                }
            }
            Some(ItemKind::Xattr | ItemKind::Symlink | ItemKind::Inline | ItemKind::Extent) => {}
            None => return Err(malformed(key, "no such kind of item")),
        }
        Ok(())
    }
}

impl Confined {
    /// For the store: asked when everything is reserved.
    pub(crate) fn judge(self: &Rc<Self>, ops: Vec<ItemOp>) -> BatchJudge {
        let (confined, ops) = (self.clone(), Rc::new(ops));
        Rc::new(move || -> BackendFuture<()> {
            let (confined, ops) = (confined.clone(), ops.clone());
            Box::pin(async move { confined.judge_ops(&ops).await })
        })
    }

    async fn judge_ops(&self, ops: &[ItemOp]) -> Verdict {
        let shape = Shape::of(ops)?;
        let mut standings = BTreeMap::new();
        for ino in shape.touched.iter().chain(&shape.dirs).chain(&shape.entered) {
            if !standings.contains_key(ino) {
                standings.insert(*ino, self.standing(*ino).await?);
            }
        }
        let of = |ino: &Ino| standings.get(ino).copied().unwrap_or(Standing::Outside);
        let refuse = |ino: &Ino| outside(format_args!("inode {ino}"));
        if let Some(ino) = shape.touched.iter().find(|ino| of(ino) == Standing::Outside) {
            return Err(refuse(ino));
        }
        // Names are only in what is inside by name itself, or new.
        let holds_names = |ino: &Ino| matches!(of(ino), Standing::Root | Standing::Named | Standing::New);
        if let Some(ino) = shape.dirs.iter().find(|ino| !holds_names(ino)) {
            return Err(refuse(ino));
        }
        // The root's names are outside; and what a client merely has open gets no name again.
        let may_have_name = |ino: &Ino| matches!(of(ino), Standing::Named | Standing::New | Standing::Nameless);
        let made = shape.names.iter().filter(|(_, change)| !change.made.is_empty()).map(|(ino, _)| ino);
        if let Some(ino) = shape.entered.iter().chain(made).find(|ino| !may_have_name(ino)) {
            return Err(refuse(ino));
        }
        if shape.names.contains_key(&self.root) || shape.dying.contains(&self.root) {
            return Err(outside("the name of the directory itself"));
        }
        if shape.orphans.iter().any(|root| *root != Some(self.root)) {
            return Err(outside("a record of an orphan that names another directory"));
        }
        for ino in shape.dying.iter().filter(|ino| of(ino) != Standing::New) {
            self.judge_death(*ino, &shape).await?;
        }
        self.judge_inodes(&shape, of).await?;
        self.note_names(&shape).await
    }

    /// An inode dies only with all its names, and those outside stay.
    async fn judge_death(&self, ino: Ino, shape: &Shape) -> Verdict {
        let before = self.members.backrefs_of(ino).await?;
        let change = NameChange::default();
        for (dir, _) in shape.names.get(&ino).unwrap_or(&change).applied_to(before) {
            if !matches!(self.standing(dir).await?, Standing::Root | Standing::Named | Standing::New) {
                return Err(outside(format_args!("a name of inode {ino}, which would die,")));
            }
        }
        Ok(())
    }

    /// What is there keeps its kind. A file is not said to have fewer names than it has: with the last one that is counted
    /// it would die, also for those who have it by a name outside. A directory has one name.
    async fn judge_inodes(&self, shape: &Shape, of: impl Fn(&Ino) -> Standing) -> Verdict {
        let named_anew = shape.names.iter().filter(|(_, change)| !change.made.is_empty()).map(|(ino, _)| *ino);
        let inos: BTreeSet<Ino> = shape.inodes.keys().copied().chain(named_anew).collect();
        let inos: Vec<Ino> = inos.into_iter().filter(|ino| of(ino) != Standing::New).collect();
        let before = self.backend.get(inos.iter().map(|ino| Inode::key(*ino)).collect(), View::Applied).await?;
        let unchanged = NameChange::default();
        for (ino, before) in inos.iter().zip(before) {
            let Some(before) = before else { continue };
            let before = Inode::decode(&before).map_err(|e| malformed(&Inode::key(*ino), e))?;
            let change = shape.names.get(ino).unwrap_or(&unchanged);
            let after = shape.inodes.get(ino);
            if after.is_some_and(|after| after.kind() != before.kind()) {
                return Err(malformed(&Inode::key(*ino), "an inode keeps its kind"));
            }
            let fewer = after.is_some_and(|after| after.nlink < before.nlink);
            let second_name = before.is_dir() && !change.made.is_empty();
            if before.is_dir() && after.is_some_and(|after| after.nlink < 2) {
                return Err(malformed(&Inode::key(*ino), "a directory with fewer than 2 links"));
            }
            if second_name || (fewer && !before.is_dir()) {
                let names = change.applied_to(self.members.backrefs_of(*ino).await?).len();
                if second_name && names > 1 {
                    return Err(malformed(&Inode::key(*ino), "a second name of a directory"));
                }
                if after.is_some_and(|after| !before.is_dir() && (after.nlink as usize) < names) {
                    return Err(malformed(&Inode::key(*ino), "fewer links than names"));
                }
            }
        }
        Ok(())
    }

    /// Who takes the last name inside away may have the inode open: it stays with this client.
    async fn note_names(&self, shape: &Shape) -> Verdict {
        for (ino, change) in shape.names.iter().filter(|(ino, _)| !shape.dying.contains(ino)) {
            if change.gone.is_empty() || !change.made.is_empty() {
                continue;
            }
            let mut dirs = change.applied_to(self.members.backrefs_of(*ino).await?).into_iter().map(|(dir, _)| dir);
            if !self.any_inside(&mut dirs).await? {
                self.keep(std::iter::once(*ino));
            }
        }
        let mut kept = self.kept.borrow_mut();
        for ino in &shape.dying {
            kept.remove(ino);
        }
        Ok(())
    }

    async fn any_inside(&self, dirs: &mut impl Iterator<Item = Ino>) -> Result<bool, WireError> {
        for dir in dirs {
            if self.standing(dir).await? != Standing::Outside {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

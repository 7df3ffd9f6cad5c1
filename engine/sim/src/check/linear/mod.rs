//! Are the clients' histories linearizable on a small model filesystem? (Wing and Gong 1993, with the memory of Lowe 2017.)
//!
//! Each life of a client does one operation at a time. Between its call and its answer each takes effect at once, at some
//! moment, on a model of names and contents; the search looks for such moments. Two things are Vellum's own: a life that
//! ended without a farewell may lose a suffix of what it did since its last sync, all of it and what it saw meanwhile (and
//! any of what it wrote into files since then, for content is written back in an order of its own); and what was under way
//! when it ended may have happened or not.
//!
//! - [`model`]: the filesystem; [`search`]: the search.
//!
//! Bound: a search gives up after [`MAX_WORK`]. Then the parts of the history are searched one by one: all that is about names,
//! and the content of each file. A history has an order if each object's has one (Herlihy and Wing 1990), and one of them that
//! has none is a proof. Only what a life that lost something saw of one part while it lost of another is not looked at then. What
//! is not decided so either is counted ("not decided"), and is no pass.

mod model;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use vellum_base::Rid;

use self::search::Search;

/// What one search may cost, in lives that are looked at: about a second of a core; most need a hundredth of it.
const MAX_WORK: usize = 6_000_000;

pub type Name = u8;
/// A file, as the clients call it: its inode number.
pub type FileId = u64;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Exclusively: gives the file, or that the name is there.
    Create(Name),
    Lookup(Name),
    Unlink(Name),
    /// Replaces the target.
    Rename(Name, Name),
    /// Fails when the target exists.
    RenameNoReplace(Name, Name),
    Exchange(Name, Name),
    /// Another name of a file.
    Link(FileId, Name),
    Read(FileId),
    /// At an offset.
    Write(FileId, u64, Vec<u8>),
    Append(FileId, Vec<u8>),
    /// In the history of one file: it begins.
    Made(FileId),
}

impl Op {
    fn is_of_content(&self) -> bool {
        matches!(self, Op::Read(_) | Op::Write(..) | Op::Append(..))
    }
}

/// What the client was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Done,
    File(FileId),
    Content(Vec<u8>),
    /// No such name, or no such file.
    NotThere,
    /// The name exists.
    There,
    /// Not known: the client is gone, or was told so.
    Unknown,
}

#[derive(Clone, Debug)]
struct Done {
    op: Op,
    answer: Answer,
    called: u64,
    answered: u64,
}

impl Done {
    /// Answered so it changes nothing, wherever it takes effect. (A rename that is done may, or may not.)
    fn only_looks(&self) -> bool {
        let looked = matches!(self.op, Op::Lookup(_) | Op::Read(_)) && self.answer != Answer::Unknown;
        looked || matches!(self.answer, Answer::NotThere | Answer::There)
    }

    /// The file whose content it is about; whether a file has a name is a question about names.
    fn file_part(&self) -> Option<FileId> {
        match (&self.op, &self.answer) {
            (_, Answer::NotThere) => None,
            (Op::Read(file) | Op::Write(file, ..) | Op::Append(file, _), _) => Some(*file),
            _ => None,
        }
    }
}

#[derive(Clone, Default, Debug)]
struct Life {
    rid: Rid,
    ops: Vec<Done>,
    /// Operations that a sync has made certain.
    synced: usize,
    /// It may have lost what it did since.
    lost: bool,
}

/// What all clients of the kind did.
#[derive(Default, Debug)]
pub struct Ops {
    lives: Vec<Life>,
}

/// How a search ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Linearizable {
        states: usize,
    },
    /// No order explains this.
    Broken {
        why: String,
    },
    /// The bound was reached.
    GaveUp,
}

impl Ops {
    fn life(&mut self, rid: Rid) -> &mut Life {
        let at = match self.lives.iter().position(|life| life.rid == rid) {
            Some(at) => at,
            None => {
                self.lives.push(Life { rid, ..Life::default() });
                self.lives.len() - 1
            }
        };
        &mut self.lives[at]
    }

    /// An operation is called; the answer comes with [`Self::answered`].
    pub fn called(&mut self, rid: Rid, op: Op, now: u64) {
        self.life(rid).ops.push(Done { op, answer: Answer::Unknown, called: now, answered: u64::MAX });
    }

    pub fn answered(&mut self, rid: Rid, answer: Answer, now: u64) {
        if let Some(last) = self.life(rid).ops.last_mut() {
            (last.answer, last.answered) = (answer, now);
        }
    }

    /// A sync has returned that was called when `ops` were done.
    pub fn synced(&mut self, rid: Rid, ops: usize) {
        let life = self.life(rid);
        life.synced = life.synced.max(ops);
    }

    pub fn len_of(&self, rid: Rid) -> usize {
        self.lives.iter().find(|life| life.rid == rid).map_or(0, |life| life.ops.len())
    }

    pub fn died(&mut self, rid: Rid) {
        if let Some(life) = self.lives.iter_mut().find(|life| life.rid == rid) {
            life.lost = true;
        }
    }

    pub fn len(&self) -> usize {
        self.lives.iter().map(|life| life.ops.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was called before a time. What was answered later may have happened by then, or not.
    pub fn before(&self, time: u64) -> Ops {
        let life = |life: &Life| {
            let mut ops: Vec<Done> = life.ops.iter().filter(|done| done.called < time).cloned().collect();
            let mut lost = life.lost;
            for open in ops.iter_mut().filter(|done| done.answered >= time) {
                (open.answered, lost) = (u64::MAX, true);
            }
            let done = ops.iter().filter(|done| done.answered < time).count();
            Life { rid: life.rid, synced: life.synced.min(done), lost, ops }
        };
        Ops { lives: self.lives.iter().map(life).collect() }
    }

    /// Looks for an order that explains everything.
    pub fn check(&self) -> Verdict {
        self.check_within(MAX_WORK)
    }

    fn check_within(&self, max_work: usize) -> Verdict {
        match self.search(max_work) {
            Verdict::GaveUp => self.check_parts(max_work),
            verdict => verdict,
        }
    }

    fn search(&self, max_work: usize) -> Verdict {
        let mut search = Search::new(&self.lives, max_work);
        match search.run() {
            Some(true) => Verdict::Linearizable { states: search.states() },
            Some(false) => Verdict::Broken { why: search.stuck },
            None => Verdict::GaveUp,
        }
    }

    fn check_parts(&self, max_work: usize) -> Verdict {
        let all = self.lives.iter().flat_map(|life| &life.ops);
        let files: BTreeSet<FileId> = all.filter_map(|done| done.file_part()).collect();
        let parts = std::iter::once(None).chain(files.into_iter().map(Some));
        let (mut all_states, mut gave_up) = (0, false);
        for part in parts {
            match self.part(part).search(max_work) {
                Verdict::Linearizable { states } => all_states += states,
                Verdict::Broken { why } => return Verdict::Broken { why },
                Verdict::GaveUp => gave_up = true,
            }
        }
        if gave_up { Verdict::GaveUp } else { Verdict::Linearizable { states: all_states } }
    }

    /// The history of a file's content, or of all names.
    fn part(&self, of: Option<FileId>) -> Ops {
        let of_part = |done: &Done| -> Option<Done> {
            match (of, &done.op, &done.answer) {
                (Some(file), Op::Create(_), Answer::File(made)) if *made == file => {
                    Some(Done { op: Op::Made(file), ..done.clone() })
                }
                _ => (done.file_part() == of).then(|| done.clone()),
            }
        };
        let life = |life: &Life| {
            let ops: Vec<Done> = life.ops.iter().filter_map(of_part).collect();
            let synced = life.ops[..life.synced.min(life.ops.len())].iter().filter_map(of_part).count();
            Life { rid: life.rid, lost: life.lost, synced, ops }
        };
        Ops { lives: self.lives.iter().map(life).filter(|life| !life.ops.is_empty()).collect() }
    }
}

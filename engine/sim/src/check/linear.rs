//! Are the clients' histories linearizable on a small model filesystem? (Wing and Gong 1993, with the memory of Lowe 2017.)
//!
//! Each life of a client does one operation at a time. Between its call and its answer each takes effect at once, at some
//! moment, on a model of names and contents; the search looks for such moments. Two things are Vellum's own: a life that
//! ended without a farewell may lose a suffix of what it did since its last sync, all of it and what it saw meanwhile (and
//! any of what it wrote into files since then, for content is written back in an order of its own); and what was under way
//! when it ended may have happened or not.
//!
//! Bound: the search gives up after [`MAX_WORK`]; that is counted ("not decided"), and is no pass.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use vellum_base::Rid;

/// What one search may cost: each step that is tried costs the names, files and lives that are copied for it. About two
/// seconds of a core; most searches need a hundredth of it.
const MAX_WORK: usize = 40_000_000;

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
        let mut search =
            Search { lives: &self.lives, seen: HashSet::new(), left: max_work, best: 0, stuck: String::new() };
        let start = Position { at: vec![0; self.lives.len()], cut: vec![false; self.lives.len()] };
        match search.from(start, Model::default()) {
            Some(true) => Verdict::Linearizable { states: search.seen.len() },
            Some(false) => Verdict::Broken { why: search.stuck },
            None => Verdict::GaveUp,
        }
    }
}

/// Names and contents. A file without a name keeps its content: it may be open somewhere.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
struct Model {
    names: BTreeMap<Name, FileId>,
    files: BTreeMap<FileId, Rc<Content>>,
}

/// What is in a file, with its hash: states are compared by it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Content {
    bytes: Vec<u8>,
    hash: u64,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Rc<Content> {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Rc::new(Content { bytes, hash: hasher.finish() })
    }
}

impl Hash for Content {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Model {
    fn has_name(&self, file: FileId) -> bool {
        self.names.values().any(|named| *named == file)
    }

    /// The state after `op` was answered so; `None` when it cannot be answered so here.
    fn after(&self, op: &Op, answer: &Answer) -> Option<Model> {
        let mut next = self.clone();
        let unknown = *answer == Answer::Unknown;
        let there = |name: &Name| self.names.contains_key(name);
        match op {
            Op::Create(name) => match (there(name), answer) {
                (true, Answer::There | Answer::Unknown) => Some(next),
                (false, Answer::File(file)) => {
                    next.names.insert(*name, *file);
                    next.files.insert(*file, Content::new(Vec::new()));
                    Some(next)
                }
                // Which file it would be is not known; nobody can have seen it, or the search finds another way.
                _ => None,
            },
            Op::Lookup(name) => match (self.names.get(name), answer) {
                (_, Answer::Unknown) | (None, Answer::NotThere) => Some(next),
                (Some(file), Answer::File(found)) if file == found => Some(next),
                _ => None,
            },
            Op::Unlink(name) => match (there(name), answer) {
                (true, Answer::Done | Answer::Unknown) => {
                    next.names.remove(name);
                    Some(next)
                }
                (false, Answer::NotThere | Answer::Unknown) => Some(next),
                _ => None,
            },
            Op::Rename(from, to) | Op::RenameNoReplace(from, to) => {
                let no_replace = matches!(op, Op::RenameNoReplace(..));
                let Some(file) = self.names.get(from).copied() else {
                    return (unknown || *answer == Answer::NotThere).then_some(next);
                };
                if no_replace && there(to) {
                    return (unknown || *answer == Answer::There).then_some(next);
                }
                if !unknown && *answer != Answer::Done {
                    return None;
                }
                // Two names of one file: nothing happens.
                if self.names.get(to) != Some(&file) {
                    next.names.remove(from);
                    next.names.insert(*to, file);
                }
                Some(next)
            }
            Op::Exchange(a, b) => match (self.names.get(a).copied(), self.names.get(b).copied()) {
                (Some(x), Some(y)) if unknown || *answer == Answer::Done => {
                    next.names.insert(*a, y);
                    next.names.insert(*b, x);
                    Some(next)
                }
                (Some(_), Some(_)) => None,
                _ => (unknown || *answer == Answer::NotThere).then_some(next),
            },
            Op::Link(file, name) => match (self.has_name(*file), there(name), answer) {
                (true, false, Answer::Done | Answer::Unknown) => {
                    next.names.insert(*name, *file);
                    Some(next)
                }
                (_, true, Answer::There | Answer::Unknown) | (false, _, Answer::NotThere | Answer::Unknown) => {
                    Some(next)
                }
                _ => None,
            },
            Op::Read(file) => match answer {
                Answer::Unknown => Some(next),
                Answer::Content(content) => {
                    let is_so = self.files.get(file).is_some_and(|is| is.bytes == *content);
                    is_so.then_some(next)
                }
                _ => (!self.has_name(*file)).then_some(next),
            },
            Op::Write(file, at, data) => self.change(*file, answer, |content| {
                let end = *at as usize + data.len();
                content.resize(content.len().max(end), 0);
                content[*at as usize..end].copy_from_slice(data);
            }),
            Op::Append(file, data) => self.change(*file, answer, |content| content.extend_from_slice(data)),
        }
    }

    fn change(&self, file: FileId, answer: &Answer, change: impl FnOnce(&mut Vec<u8>)) -> Option<Model> {
        let mut next = self.clone();
        match answer {
            Answer::Done | Answer::Unknown => {
                let content = next.files.get_mut(&file)?;
                let mut bytes = content.bytes.clone();
                change(&mut bytes);
                *content = Content::new(bytes);
                Some(next)
            }
            _ => (!self.has_name(file)).then_some(next),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Position {
    /// How many operations of each life have taken effect.
    at: Vec<usize>,
    /// The rest of the life is lost.
    cut: Vec<bool>,
}

struct Search<'a> {
    lives: &'a [Life],
    /// Where the search has been without success.
    seen: HashSet<u64>,
    /// Work that it may still do.
    left: usize,
    /// The longest order that was found, and what ended it.
    best: usize,
    stuck: String,
}

struct Step {
    position: Position,
    model: Model,
    /// Lives to try next, those whose operation was called first at the end.
    choices: Vec<Choice>,
}

#[derive(Clone, Copy)]
enum Choice {
    Apply(usize),
    /// An operation whose outcome is unknown did nothing; content was not written back.
    Skip(usize),
    Cut(usize),
}

impl Search<'_> {
    /// `None` when the bound is reached.
    fn from(&mut self, position: Position, model: Model) -> Option<bool> {
        let choices = self.choices(&position);
        let mut stack = vec![Step { position, model, choices }];
        while let Some(step) = stack.last_mut() {
            if self.is_over(&step.position) {
                return Some(true);
            }
            let Some(choice) = step.choices.pop() else {
                stack.pop();
                continue;
            };
            let cost = step.model.names.len() + step.model.files.len() + self.lives.len();
            self.left = self.left.checked_sub(cost)?;
            let mut position = step.position.clone();
            let model = match choice {
                Choice::Cut(life) => {
                    position.cut[life] = true;
                    Some(step.model.clone())
                }
                Choice::Skip(life) => {
                    position.at[life] += 1;
                    Some(step.model.clone())
                }
                Choice::Apply(life) => {
                    let done = &self.lives[life].ops[position.at[life]];
                    position.at[life] += 1;
                    step.model.after(&done.op, &done.answer)
                }
            };
            let Some(model) = model else { continue };
            let mut hasher = DefaultHasher::new();
            (&position, &model).hash(&mut hasher);
            if !self.seen.insert(hasher.finish()) {
                continue;
            }
            self.note(&position, &model);
            let choices = self.choices(&position);
            stack.push(Step { position, model, choices });
        }
        Some(false)
    }

    fn is_over(&self, position: &Position) -> bool {
        self.lives.iter().enumerate().all(|(i, life)| position.cut[i] || position.at[i] == life.ops.len())
    }

    /// The operations that may take effect next: none that was called after another one's answer.
    fn choices(&self, position: &Position) -> Vec<Choice> {
        let open = |i: usize| self.lives[i].ops.get(position.at[i]).filter(|_| !position.cut[i]);
        let first_answer = (0..self.lives.len()).filter_map(open).map(|done| done.answered).min();
        let mut next: Vec<(u64, Choice)> = Vec::new();
        for i in 0..self.lives.len() {
            let Some(done) = open(i) else { continue };
            let life = &self.lives[i];
            if life.lost && position.at[i] >= life.synced {
                next.push((u64::MAX, Choice::Cut(i))); // last of all
            }
            if first_answer.is_some_and(|first| done.called > first) {
                continue;
            }
            let unsynced = life.lost && position.at[i] >= life.synced;
            if done.answer == Answer::Unknown || (unsynced && done.op.is_of_content()) {
                next.push((u64::MAX - 1, Choice::Skip(i)));
            }
            next.push((done.answered, Choice::Apply(i)));
        }
        next.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
        next.into_iter().map(|(_, choice)| choice).collect()
    }

    fn note(&mut self, position: &Position, model: &Model) {
        let done: usize = position.at.iter().sum();
        if done <= self.best {
            return;
        }
        self.best = done;
        let open: Vec<String> = (0..self.lives.len())
            .filter(|i| !position.cut[*i])
            .filter_map(|i| Some((i, self.lives[i].ops.get(position.at[i])?)))
            .map(|(i, done)| format!("rid {}: {:?} -> {:?}", self.lives[i].rid, done.op, done.answer))
            .collect();
        self.stuck =
            format!("after {done} operations the names are {:?} and next are {}", model.names, open.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Rid = Rid(1);
    const B: Rid = Rid(2);

    fn history(ops: &[(Rid, Op, Answer, u64, u64)]) -> Ops {
        let mut all = Ops::default();
        for (rid, op, answer, called, answered) in ops {
            all.called(*rid, op.clone(), *called);
            if *answered != u64::MAX {
                all.answered(*rid, answer.clone(), *answered);
            }
        }
        all
    }

    fn is_fine(ops: &Ops) -> bool {
        matches!(ops.check(), Verdict::Linearizable { .. })
    }

    #[test]
    fn overlapping_operations_may_take_effect_in_any_order_and_others_not() {
        let made = (A, Op::Create(1), Answer::File(7), 0, 10);
        let none = (B, Op::Lookup(1), Answer::NotThere, 5, 8);
        assert!(is_fine(&history(&[made.clone(), none])));
        let too_late = (B, Op::Lookup(1), Answer::NotThere, 11, 12);
        assert!(!is_fine(&history(&[made.clone(), too_late])), "it was made before");
        let there = (B, Op::Lookup(1), Answer::File(7), 11, 12);
        let again = (B, Op::Create(1), Answer::There, 13, 14);
        assert!(is_fine(&history(&[made, there, again])));
    }

    #[test]
    fn a_stale_read_and_a_lost_append_are_found() {
        let made = (A, Op::Create(1), Answer::File(7), 0, 1);
        let a = (A, Op::Append(7, vec![1]), Answer::Done, 2, 5);
        let b = (B, Op::Append(7, vec![2]), Answer::Done, 3, 6);
        let read = |content: &[u8]| (A, Op::Read(7), Answer::Content(content.to_vec()), 7, 8);
        for good in [[1, 2], [2, 1]] {
            assert!(is_fine(&history(&[made.clone(), a.clone(), b.clone(), read(&good)])));
        }
        for bad in [&[][..], &[1], &[2], &[1, 1], &[1, 2, 2]] {
            assert!(!is_fine(&history(&[made.clone(), a.clone(), b.clone(), read(bad)])), "{bad:?}");
        }
    }

    #[test]
    fn a_dead_client_may_lose_a_suffix_and_nothing_that_it_synced() {
        let made = (A, Op::Create(1), Answer::File(7), 0, 1);
        let moved = (A, Op::Rename(1, 2), Answer::Done, 2, 3);
        let at_old = (B, Op::Lookup(1), Answer::File(7), 4, 5);
        let nowhere = [(B, Op::Lookup(1), Answer::NotThere, 4, 5), (B, Op::Lookup(2), Answer::NotThere, 6, 7)];
        let mut ops = history(&[made.clone(), moved.clone(), at_old.clone()]);
        assert!(!is_fine(&ops), "it lives");
        ops.died(A);
        assert!(is_fine(&ops), "the rename is lost");
        ops.synced(A, 2);
        assert!(!is_fine(&ops), "it was synced");
        let mut ops = history(&[made, moved, nowhere[0].clone(), nowhere[1].clone()]);
        ops.died(A);
        assert!(is_fine(&ops), "both are lost");
        ops.synced(A, 1);
        assert!(!is_fine(&ops), "half a rename");
    }

    #[test]
    fn content_is_written_back_in_its_own_order() {
        let ops = [
            (A, Op::Create(1), Answer::File(7), 0, 1),
            (A, Op::Append(7, vec![1]), Answer::Done, 2, 3),
            (A, Op::Unlink(2), Answer::NotThere, 4, 5),
            (A, Op::Rename(1, 2), Answer::Done, 6, 7),
            (B, Op::Lookup(2), Answer::File(7), 10, 11),
            (B, Op::Read(7), Answer::Content(vec![]), 12, 13),
        ];
        let mut lost = history(&ops);
        lost.synced(A, 1);
        assert!(!is_fine(&lost), "it lives");
        lost.died(A);
        assert!(is_fine(&lost), "the rename was sent, the content was not");
        lost.synced(A, 2);
        assert!(!is_fine(&lost), "it was synced");
    }

    /// Sixteen appends at once and a read that saw none of them: every subset of them is a state.
    #[test]
    fn a_search_that_takes_too_long_decides_nothing() {
        let mut ops = history(&[(A, Op::Create(1), Answer::File(7), 0, 1)]);
        for n in 0..16 {
            let rid = Rid(10 + n);
            ops.called(rid, Op::Append(7, vec![n as u8]), 2);
            ops.answered(rid, Answer::Done, 9);
        }
        ops.called(B, Op::Read(7), 10);
        ops.answered(B, Answer::Content(vec![]), 11);
        assert_eq!(ops.check_within(100_000), Verdict::GaveUp);
    }

    #[test]
    fn what_was_under_way_may_have_happened() {
        let made = (A, Op::Create(1), Answer::File(7), 0, 1);
        let open = (A, Op::Unlink(1), Answer::Unknown, 2, u64::MAX);
        for found in [Answer::File(7), Answer::NotThere] {
            let mut ops = history(&[made.clone(), open.clone(), (B, Op::Lookup(1), found, 10, 11)]);
            ops.synced(A, 1);
            ops.died(A);
            assert!(is_fine(&ops));
        }
    }
}

//! The search for an order: depth first, over one state that is changed and changed back, with a memory of where it has been.

use std::collections::HashSet;

use super::model::{Change, Model, hash_of};
use super::{Answer, Done, Life};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Apply(usize),
    /// An operation whose outcome is unknown did nothing; content was not written back.
    Skip(usize),
    /// The rest of the life is lost.
    Cut(usize),
}

/// A step that was taken, and what else there is to try after it.
struct Step {
    /// None at the start.
    taken: Option<(Choice, Change)>,
    /// To try next, operations that were answered first at the end.
    choices: Vec<Choice>,
}

pub struct Search<'a> {
    lives: &'a [Life],
    model: Model,
    /// How many operations of each life have taken effect, and whether its rest is lost.
    at: Vec<usize>,
    cut: Vec<bool>,
    /// Of `at` and `cut`.
    hash: u64,
    /// Where the search has been without success.
    seen: HashSet<u64>,
    /// Work that it may still do.
    left: usize,
    /// The longest order that was found, and what ended it.
    best: usize,
    pub stuck: String,
}

impl<'a> Search<'a> {
    pub fn new(lives: &'a [Life], max_work: usize) -> Search<'a> {
        Search {
            lives,
            model: Model::default(),
            at: vec![0; lives.len()],
            cut: vec![false; lives.len()],
            hash: 0,
            seen: HashSet::new(),
            left: max_work,
            best: 0,
            stuck: String::new(),
        }
    }

    pub fn states(&self) -> usize {
        self.seen.len()
    }

    /// Whether there is an order; `None` when the bound is reached.
    pub fn run(&mut self) -> Option<bool> {
        let mut stack = vec![Step { taken: None, choices: self.choices() }];
        while let Some(step) = stack.last_mut() {
            if self.is_over() {
                return Some(true);
            }
            let Some(choice) = step.choices.pop() else {
                if let Some((choice, back)) = stack.pop().and_then(|step| step.taken) {
                    self.take_back(choice, back);
                }
                continue;
            };
            self.left = self.left.checked_sub(1 + self.lives.len())?;
            let Some(back) = self.take(choice)? else { continue };
            if !self.seen.insert(self.hash ^ self.model.hash) {
                self.take_back(choice, back);
                continue;
            }
            self.note();
            let choices = self.choices();
            stack.push(Step { taken: Some((choice, back)), choices });
        }
        Some(false)
    }

    /// The inner `None`: it cannot be; the outer one: the bound is reached.
    fn take(&mut self, choice: Choice) -> Option<Option<Change>> {
        let back = match choice {
            Choice::Apply(life) => {
                let done = &self.lives[life].ops[self.at[life]];
                let Some(change) = self.model.effect(&done.op, &done.answer) else { return Some(None) };
                self.left = self.left.checked_sub(change.bytes() / 64)?;
                self.model.apply(change)
            }
            Choice::Skip(_) | Choice::Cut(_) => Change::default(),
        };
        self.step(choice, 1);
        Some(Some(back))
    }

    fn take_back(&mut self, choice: Choice, back: Change) {
        self.model.apply(back);
        self.step(choice, -1);
    }

    fn step(&mut self, choice: Choice, by: isize) {
        match choice {
            Choice::Apply(life) | Choice::Skip(life) => {
                self.hash ^= hash_of((2u8, life, self.at[life]));
                self.at[life] = self.at[life].wrapping_add_signed(by);
                self.hash ^= hash_of((2u8, life, self.at[life]));
            }
            Choice::Cut(life) => {
                self.cut[life] = by > 0;
                self.hash ^= hash_of((3u8, life));
            }
        }
    }

    fn is_over(&self) -> bool {
        self.lives.iter().enumerate().all(|(i, life)| self.cut[i] || self.at[i] == life.ops.len())
    }

    fn open(&self, life: usize) -> Option<&'a Done> {
        self.lives[life].ops.get(self.at[life]).filter(|_| !self.cut[life])
    }

    /// The operations that may take effect next: none that was called after another one's answer.
    ///
    /// One that only looks, and is answered as here, is the only choice: any order that has it later is one with it here.
    fn choices(&self) -> Vec<Choice> {
        let first_answer = (0..self.lives.len()).filter_map(|i| self.open(i)).map(|done| done.answered).min();
        let mut next: Vec<(u64, Choice)> = Vec::new();
        for (i, life) in self.lives.iter().enumerate() {
            let Some(done) = self.open(i) else { continue };
            let unsynced = life.lost && self.at[i] >= life.synced;
            if unsynced {
                next.push((u64::MAX, Choice::Cut(i))); // last of all
            }
            if first_answer.is_some_and(|first| done.called > first) {
                continue;
            }
            let unknown = done.answer == Answer::Unknown;
            if done.only_looks() && self.model.effect(&done.op, &done.answer).is_some() {
                return vec![Choice::Apply(i)];
            }
            if unknown || (unsynced && done.op.is_of_content()) {
                next.push((u64::MAX - 1, Choice::Skip(i)));
            }
            next.push((done.answered, Choice::Apply(i)));
        }
        next.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
        next.into_iter().map(|(_, choice)| choice).collect()
    }

    fn note(&mut self) {
        let done: usize = self.at.iter().sum();
        if done <= self.best {
            return;
        }
        self.best = done;
        let open: Vec<String> = (0..self.lives.len())
            .filter_map(|i| Some((i, self.open(i)?)))
            .map(|(i, done)| format!("rid {}: {:?} -> {:?}", self.lives[i].rid, done.op, done.answer))
            .collect();
        self.stuck =
            format!("after {done} operations the names are {:?} and next are {}", self.model.names, open.join("; "));
    }
}

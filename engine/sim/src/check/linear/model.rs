//! The small filesystem: names and contents. It changes in place and takes changes back, so that a step of a search costs no
//! copy; its hash follows each change.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::{Answer, FileId, Name, Op};

/// What is in a file, with its hash: states are compared by it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Content {
    bytes: Vec<u8>,
    hash: u64,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Rc<Content> {
        let hash = hash_of(&bytes);
        Rc::new(Content { bytes, hash })
    }
}

pub fn hash_of(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// What an operation does to names and contents; nothing for one that only looks.
#[derive(Default, Debug)]
pub struct Change {
    names: Vec<(Name, Option<FileId>)>,
    content: Option<(FileId, Option<Rc<Content>>)>,
}

impl Change {
    fn name(name: Name, file: Option<FileId>) -> Change {
        Change { names: vec![(name, file)], content: None }
    }

    /// Bytes that had to be copied for it.
    pub fn bytes(&self) -> usize {
        self.content.as_ref().and_then(|(_, content)| content.as_ref()).map_or(0, |content| content.bytes.len())
    }
}

/// A file without a name keeps its content: it may be open somewhere.
#[derive(Default, Debug)]
pub struct Model {
    pub names: BTreeMap<Name, FileId>,
    files: BTreeMap<FileId, Rc<Content>>,
    /// Of everything above, whatever the order of the changes was.
    pub hash: u64,
}

impl Model {
    fn has_name(&self, file: FileId) -> bool {
        self.names.values().any(|named| *named == file)
    }

    /// Changes the state, and gives what takes the change back.
    pub fn apply(&mut self, change: Change) -> Change {
        let mut back = Change::default();
        for (name, file) in change.names {
            let before = match file {
                Some(file) => self.names.insert(name, file),
                None => self.names.remove(&name),
            };
            for file in before.into_iter().chain(file) {
                self.hash ^= hash_of((0u8, name, file));
            }
            back.names.push((name, before));
        }
        back.names.reverse();
        if let Some((file, content)) = change.content {
            let hash = |content: &Rc<Content>| hash_of((1u8, file, content.hash));
            self.hash ^= content.as_ref().map_or(0, hash);
            let before = match content {
                Some(content) => self.files.insert(file, content),
                None => self.files.remove(&file),
            };
            self.hash ^= before.as_ref().map_or(0, hash);
            back.content = Some((file, before));
        }
        back
    }

    /// What `op` changes when it is answered so; `None` when it cannot be answered so here.
    pub fn effect(&self, op: &Op, answer: &Answer) -> Option<Change> {
        let nothing = Some(Change::default());
        let unknown = *answer == Answer::Unknown;
        let there = |name: &Name| self.names.contains_key(name);
        match op {
            Op::Create(name) => match (there(name), answer) {
                (true, Answer::There | Answer::Unknown) => nothing,
                (false, Answer::File(file)) => {
                    let content = Some((*file, Some(Content::new(Vec::new()))));
                    Some(Change { names: vec![(*name, Some(*file))], content })
                }
                // Which file it would be is not known; nobody can have seen it, or the search finds another way.
                _ => None,
            },
            Op::Made(file) => {
                Some(Change { content: Some((*file, Some(Content::new(Vec::new())))), ..Change::default() })
            }
            Op::Lookup(name) => match (self.names.get(name), answer) {
                (_, Answer::Unknown) | (None, Answer::NotThere) => nothing,
                (Some(file), Answer::File(found)) if file == found => nothing,
                _ => None,
            },
            Op::Unlink(name) => match (there(name), answer) {
                (true, Answer::Done | Answer::Unknown) => Some(Change::name(*name, None)),
                (false, Answer::NotThere | Answer::Unknown) => nothing,
                _ => None,
            },
            Op::Rename(from, to) | Op::RenameNoReplace(from, to) => {
                let no_replace = matches!(op, Op::RenameNoReplace(..));
                let Some(file) = self.names.get(from).copied() else {
                    return nothing.filter(|_| unknown || *answer == Answer::NotThere);
                };
                if no_replace && there(to) {
                    return nothing.filter(|_| unknown || *answer == Answer::There);
                }
                if !unknown && *answer != Answer::Done {
                    return None;
                }
                // Two names of one file: nothing happens.
                match self.names.get(to) == Some(&file) {
                    true => nothing,
                    false => Some(Change { names: vec![(*from, None), (*to, Some(file))], content: None }),
                }
            }
            Op::Exchange(a, b) => match (self.names.get(a).copied(), self.names.get(b).copied()) {
                (Some(x), Some(y)) if unknown || *answer == Answer::Done => {
                    Some(Change { names: vec![(*a, Some(y)), (*b, Some(x))], content: None })
                }
                (Some(_), Some(_)) => None,
                _ => nothing.filter(|_| unknown || *answer == Answer::NotThere),
            },
            Op::Link(file, name) => match (self.has_name(*file), there(name), answer) {
                (true, false, Answer::Done | Answer::Unknown) => Some(Change::name(*name, Some(*file))),
                (_, true, Answer::There | Answer::Unknown) | (false, _, Answer::NotThere | Answer::Unknown) => nothing,
                _ => None,
            },
            Op::Read(file) => match answer {
                Answer::Unknown => nothing,
                Answer::Content(content) => {
                    let is_so = self.files.get(file).is_some_and(|is| is.bytes == *content);
                    nothing.filter(|_| is_so)
                }
                _ => nothing.filter(|_| !self.has_name(*file)),
            },
            Op::Write(file, at, data) => self.change(*file, answer, |content| {
                let end = *at as usize + data.len();
                content.resize(content.len().max(end), 0);
                content[*at as usize..end].copy_from_slice(data);
            }),
            Op::Append(file, data) => self.change(*file, answer, |content| content.extend_from_slice(data)),
        }
    }

    fn change(&self, file: FileId, answer: &Answer, change: impl FnOnce(&mut Vec<u8>)) -> Option<Change> {
        match answer {
            Answer::Done | Answer::Unknown => {
                let mut bytes = self.files.get(&file)?.bytes.clone();
                change(&mut bytes);
                Some(Change { content: Some((file, Some(Content::new(bytes)))), ..Change::default() })
            }
            _ => (!self.has_name(file)).then(Change::default),
        }
    }
}

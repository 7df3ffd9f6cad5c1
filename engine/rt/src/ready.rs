//! Ready queues of the four classes, and which of them runs next.
//!
//! Stride scheduling: each class has a virtual time that grows by (time used / weight); the ready class with the least
//! runs. A class that was idle starts at the present, so that it cannot save up a claim.

use std::collections::VecDeque;

use crate::Class;
use crate::task::TaskId;

#[derive(Default)]
pub(crate) struct Ready {
    queues: [VecDeque<TaskId>; Class::COUNT],
    virtual_time: [u64; Class::COUNT],
    /// Virtual time of the class that ran last.
    present: u64,
    len: usize,
}

impl Ready {
    pub fn push(&mut self, class: Class, task: TaskId) {
        let c = class as usize;
        if self.queues[c].is_empty() {
            self.virtual_time[c] = self.virtual_time[c].max(self.present);
        }
        self.queues[c].push_back(task);
        self.len += 1;
    }

    pub fn pop(&mut self) -> Option<(Class, TaskId)> {
        if self.len == 0 {
            return None;
        }
        let class = Class::ALL
            .into_iter()
            .filter(|&class| !self.queues[class as usize].is_empty())
            .min_by_key(|&class| self.virtual_time[class as usize])?;
        let task = self.queues[class as usize].pop_front()?;
        self.present = self.virtual_time[class as usize];
        self.len -= 1;
        Some((class, task))
    }

    /// Takes the `n`th ready task of all classes together: the simulation's choice.
    pub fn take_nth(&mut self, mut n: usize) -> Option<(Class, TaskId)> {
        for class in Class::ALL {
            let queue = &mut self.queues[class as usize];
            if n < queue.len() {
                self.len -= 1;
                return queue.remove(n).map(|task| (class, task));
            }
            n -= queue.len();
        }
        None
    }

    /// `used` nanoseconds went to `class`.
    pub fn charge(&mut self, class: Class, used: u64) {
        self.virtual_time[class as usize] += used * (Class::Request.weight() / class.weight()).max(1);
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn clear(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::clear);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_share_by_weight_and_no_class_starves() {
        let mut ready = Ready::default();
        let task = TaskId { slot: 0, generation: 0 };
        ready.push(Class::Request, task);
        ready.push(Class::Scrub, task);
        let mut runs = [0u64; Class::COUNT];
        for _ in 0..1700 {
            let (class, task) = ready.pop().unwrap();
            runs[class as usize] += 1;
            ready.push(class, task);
            ready.charge(class, 1000);
        }
        assert!((1550..1650).contains(&runs[Class::Request as usize]), "{runs:?}");
        assert!(runs[Class::Scrub as usize] >= 95, "{runs:?}");
    }

    #[test]
    fn an_idle_class_saves_up_no_claim() {
        let mut ready = Ready::default();
        let task = TaskId { slot: 0, generation: 0 };
        for _ in 0..1000 {
            ready.push(Class::Request, task);
            let (class, _) = ready.pop().unwrap();
            ready.charge(class, 1000);
        }
        ready.push(Class::Request, task);
        ready.push(Class::Compaction, task);
        let mut compactions = 0;
        for _ in 0..10 {
            let (class, task) = ready.pop().unwrap();
            compactions += usize::from(class == Class::Compaction);
            ready.push(class, task);
            ready.charge(class, 1000);
        }
        assert!(compactions <= 4, "{compactions}");
    }
}

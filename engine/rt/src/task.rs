//! Tasks of one reactor: a slab of boxed futures, spawn, poll, cancel, join.
//!
//! A slot's generation grows when its task ends, so that a stale wake finds nothing. While a task is polled it is
//! moved out of its slot, and nothing of the slab is borrowed: a task may spawn, wake and cancel freely.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::Class;
use crate::reactor;
use crate::ready::Ready;
use crate::wake::{Remote, WakeCell};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskId {
    pub slot: u32,
    pub generation: u32,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
    cell: Arc<WakeCell>,
    name: &'static str,
    scope: ScopeId,
}

/// The scope that a task belongs to and its spawns inherit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct ScopeId(u64);

enum State {
    Free,
    Idle(Task),
    /// Being polled; the task is on the stack of [`Tasks::poll`].
    Running,
}

struct Slot {
    generation: u32,
    state: State,
}

/// What [`Tasks::poll`] did.
pub(crate) struct Polled {
    pub name: &'static str,
}

#[derive(Default)]
struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
pub(crate) struct Tasks {
    slab: RefCell<Slab>,
    ready: RefCell<Ready>,
    /// Of what runs now.
    scope: Cell<ScopeId>,
    last_scope: Cell<u64>,
}

impl Tasks {
    pub fn spawn<F: Future + 'static>(
        &self,
        remote: &Arc<Remote>,
        class: Class,
        name: &'static str,
        future: F,
    ) -> JoinHandle<F::Output> {
        let join = Rc::new(Join { state: RefCell::new(JoinState::Running(None)) });
        let guard = Finish(join.clone());
        let future = Box::pin(async move {
            let guard = guard;
            let output = future.await;
            guard.0.end(JoinState::Done(output));
        });
        let id = self.reserve();
        let cell = Arc::new(WakeCell::new(remote.clone(), id, class));
        let task = Task { future, waker: Waker::from(cell.clone()), cell: cell.clone(), name, scope: self.scope.get() };
        self.slab.borrow_mut().slots[id.slot as usize].state = State::Idle(task);
        task_wake(&cell);
        JoinHandle { join, cell }
    }

    fn reserve(&self) -> TaskId {
        let mut slab = self.slab.borrow_mut();
        let slot = slab.free.pop().unwrap_or_else(|| {
            slab.slots.push(Slot { generation: 0, state: State::Free });
            (slab.slots.len() - 1) as u32
        });
        TaskId { slot, generation: slab.slots[slot as usize].generation }
    }

    pub fn make_ready(&self, class: Class, task: TaskId) {
        self.ready.borrow_mut().push(class, task);
    }

    pub fn ready_len(&self) -> usize {
        self.ready.borrow().len()
    }

    pub fn pop(&self) -> Option<(Class, TaskId)> {
        self.ready.borrow_mut().pop()
    }

    pub fn take_nth(&self, n: usize) -> Option<(Class, TaskId)> {
        self.ready.borrow_mut().take_nth(n)
    }

    pub fn charge(&self, class: Class, used: u64) {
        self.ready.borrow_mut().charge(class, used);
    }

    pub fn live(&self) -> usize {
        let slab = self.slab.borrow();
        slab.slots.len() - slab.free.len()
    }

    /// Polls (or drops, when cancelled) one task; `None` when the wake was stale.
    pub fn poll(&self, id: TaskId) -> Option<Polled> {
        let mut task = {
            let mut slab = self.slab.borrow_mut();
            let slot = slab.slots.get_mut(id.slot as usize)?;
            if slot.generation != id.generation {
                return None;
            }
            match std::mem::replace(&mut slot.state, State::Running) {
                State::Idle(task) => task,
                other => {
                    slot.state = other;
                    return None;
                }
            }
        };
        task.cell.begin_poll();
        let polled = Polled { name: task.name };
        let outer = self.enter_scope(task.scope);
        let mut done = task.cell.is_cancelled();
        if !done {
            done = task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready();
            done |= task.cell.is_cancelled(); // it cancelled itself
        }
        if done {
            drop(task); // outside any borrow: destructors spawn and wake
            self.release(id);
        } else {
            self.slab.borrow_mut().slots[id.slot as usize].state = State::Idle(task);
        }
        self.enter_scope(outer);
        Some(polled)
    }

    pub fn new_scope(&self) -> ScopeId {
        self.last_scope.set(self.last_scope.get() + 1);
        ScopeId(self.last_scope.get())
    }

    /// What is spawned from now on belongs to `scope`; gives the one before.
    pub fn enter_scope(&self, scope: ScopeId) -> ScopeId {
        self.scope.replace(scope)
    }

    fn release(&self, id: TaskId) {
        let mut slab = self.slab.borrow_mut();
        let slot = &mut slab.slots[id.slot as usize];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slab.free.push(id.slot);
    }

    /// Drops every task, also those that destructors spawn meanwhile. Bounded: a destructor that always spawns is a bug.
    pub fn clear(&self) {
        self.drop_where(|_| true);
        self.ready.borrow_mut().clear();
    }

    /// Drops every task of the scope, as [`Self::clear`] does.
    pub fn clear_scope(&self, scope: ScopeId) {
        let outer = self.enter_scope(scope);
        self.drop_where(|task| task.scope == scope);
        self.enter_scope(outer);
    }

    fn drop_where(&self, drops: impl Fn(&Task) -> bool) {
        for _ in 0..64 {
            let ids: Vec<TaskId> = {
                let slab = self.slab.borrow();
                let slots = slab.slots.iter().enumerate();
                let dropped = slots.filter(|(_, slot)| matches!(&slot.state, State::Idle(task) if drops(task)));
                dropped.map(|(i, slot)| TaskId { slot: i as u32, generation: slot.generation }).collect()
            };
            if ids.is_empty() {
                break;
            }
            for id in ids {
                let state = {
                    let mut slab = self.slab.borrow_mut();
                    std::mem::replace(&mut slab.slots[id.slot as usize].state, State::Running)
                };
                drop(state);
                self.release(id);
            }
        }
    }
}

fn task_wake(cell: &Arc<WakeCell>) {
    std::task::Wake::wake_by_ref(cell);
}

/// The task was cancelled (or its reactor ended) before it had a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the task was cancelled")]
pub struct Cancelled;

enum JoinState<T> {
    Running(Option<Waker>),
    Done(T),
    Cancelled,
    Taken,
}

struct Join<T> {
    state: RefCell<JoinState<T>>,
}

impl<T> Join<T> {
    fn end(&self, with: JoinState<T>) {
        let before = std::mem::replace(&mut *self.state.borrow_mut(), with);
        if let JoinState::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// Travels in the task: a drop before the end is a cancellation.
struct Finish<T>(Rc<Join<T>>);

impl<T> Drop for Finish<T> {
    fn drop(&mut self) {
        let running = matches!(*self.0.state.borrow(), JoinState::Running(_));
        if running {
            self.0.end(JoinState::Cancelled);
        }
    }
}

/// A spawned task's result and reins. Dropping it detaches the task.
#[must_use = "dropping the handle detaches the task; say `.detach()`"]
pub struct JoinHandle<T> {
    join: Rc<Join<T>>,
    cell: Arc<WakeCell>,
}

impl<T> JoinHandle<T> {
    /// Drops the task's future at the reactor's next turn. The join then says [`Cancelled`], unless the task was done.
    pub fn cancel(&self) {
        if !self.is_finished() {
            self.cell.cancel();
        }
    }

    pub fn detach(self) {}

    pub fn is_finished(&self) -> bool {
        !matches!(*self.join.state.borrow(), JoinState::Running(_))
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.join.state.borrow_mut();
        if let JoinState::Running(waker) = &mut *state {
            match waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, JoinState::Taken) {
            JoinState::Done(output) => Poll::Ready(Ok(output)),
            _ => Poll::Ready(Err(Cancelled)),
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish()
    }
}

/// Starts `future` on the current reactor. It is first polled in a later turn, never inside this call. A panic in it ends
/// the whole reactor (and with it the thread or the simulation): half-done work of one task must not be built upon.
pub fn spawn<F: Future + 'static>(class: Class, name: &'static str, future: F) -> JoinHandle<F::Output> {
    reactor::with(|reactor| reactor.tasks.spawn(reactor.wakes.remote(), class, name, future))
}

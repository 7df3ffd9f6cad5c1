//! A single-threaded executor with virtual time and a seeded order of tasks.
//!
//! It panics when everything waits and no timer is left: a lost wakeup is found, not slept through.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use vellum_base::prng::Prng;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Executor {
    tasks: RefCell<HashMap<u64, (Task, Waker)>>,
    ready: Arc<Mutex<Vec<u64>>>,
    timers: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    timer_wakers: RefCell<HashMap<u64, Waker>>,
    next_id: Cell<u64>,
    now_ns: Cell<u64>,
    prng: RefCell<Prng>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(|poison| poison.into_inner());
        if !ready.contains(&self.id) {
            ready.push(self.id);
        }
    }
}

fn current() -> Rc<Executor> {
    CURRENT.with(|c| c.borrow().clone()).expect("inside testing::block_on")
}

pub fn now_ns() -> u64 {
    current().now_ns.get()
}

pub fn random_u64() -> u64 {
    current().prng.borrow_mut().next_u64()
}

pub fn spawn_detached(task: impl Future<Output = ()> + 'static) {
    let executor = current();
    let id = executor.next_id.replace(executor.next_id.get() + 1);
    let waker = Waker::from(Arc::new(TaskWaker { id, ready: executor.ready.clone() }));
    waker.wake_by_ref();
    executor.tasks.borrow_mut().insert(id, (Box::pin(task), waker));
}

/// Runs `task` beside the others; the result is the handle's.
pub fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> impl Future<Output = T> {
    let slot: Rc<RefCell<(Option<T>, Option<Waker>)>> = Rc::new(RefCell::new((None, None)));
    let write = slot.clone();
    spawn_detached(async move {
        let value = task.await;
        let mut slot = write.borrow_mut();
        slot.0 = Some(value);
        if let Some(waker) = slot.1.take() {
            waker.wake();
        }
    });
    poll_fn(move |cx| {
        let mut slot = slot.borrow_mut();
        match slot.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                slot.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
}

pub async fn sleep(time: Duration) {
    let executor = current();
    let until = executor.now_ns.get() + time.as_nanos() as u64;
    let id = executor.next_id.replace(executor.next_id.get() + 1);
    executor.timers.borrow_mut().push(Reverse((until, id)));
    poll_fn(|cx| {
        if executor.now_ns.get() >= until {
            return Poll::Ready(());
        }
        executor.timer_wakers.borrow_mut().insert(id, cx.waker().clone());
        Poll::Pending
    })
    .await;
}

/// Runs `main` and everything it spawns until `main` is done. The order of ready tasks is drawn from `seed`.
pub fn block_on<T: 'static>(seed: u64, main: impl Future<Output = T> + 'static) -> T {
    let executor = Rc::new(Executor {
        tasks: RefCell::default(),
        ready: Arc::default(),
        timers: RefCell::default(),
        timer_wakers: RefCell::default(),
        next_id: Cell::new(1),
        now_ns: Cell::new(1_000_000_000),
        prng: RefCell::new(Prng::new(seed)),
    });
    let outer = CURRENT.with(|c| c.borrow_mut().replace(executor.clone()));
    let done = Rc::new(RefCell::new(None));
    let result = done.clone();
    spawn_detached(async move {
        let value = main.await;
        *result.borrow_mut() = Some(value);
    });
    let value = loop {
        if let Some(value) = done.borrow_mut().take() {
            break value;
        }
        executor.turn();
    };
    let left = std::mem::take(&mut *executor.tasks.borrow_mut());
    drop(left);
    CURRENT.with(|c| *c.borrow_mut() = outer);
    value
}

impl Executor {
    fn turn(&self) {
        let picked = {
            let mut ready = self.ready.lock().unwrap_or_else(|poison| poison.into_inner());
            if ready.is_empty() {
                None
            } else {
                let at = self.prng.borrow_mut().below(ready.len() as u64) as usize;
                Some(ready.swap_remove(at))
            }
        };
        let Some(id) = picked else {
            let Some(Reverse((at, timer))) = self.timers.borrow_mut().pop() else {
                panic!("everything waits and no timer is left: {} tasks", self.tasks.borrow().len());
            };
            self.now_ns.set(self.now_ns.get().max(at));
            if let Some(waker) = self.timer_wakers.borrow_mut().remove(&timer) {
                waker.wake();
            }
            return;
        };
        let Some((mut task, waker)) = self.tasks.borrow_mut().remove(&id) else { return };
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut().insert(id, (task, waker));
        }
    }
}

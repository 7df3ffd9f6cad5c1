//! Tasks: spawn, join, cancel.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Poll;

use rt::{Cancelled, Class};
use vellum_rt as rt;

pub async fn a_spawned_task_is_joined() {
    let mut sum = 0;
    let tasks: Vec<_> = (0..100u64).map(|i| rt::spawn(Class::Request, "adder", async move { i })).collect();
    for task in tasks {
        sum += task.await.unwrap();
    }
    assert_eq!(sum, 4950);
}

struct OnDrop(Rc<Cell<u32>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

pub async fn a_cancelled_task_is_dropped_and_says_so() {
    let drops = Rc::new(Cell::new(0));
    let held = OnDrop(drops.clone());
    let task = rt::spawn(Class::Request, "waits for ever", async move {
        let _held = held;
        std::future::pending::<()>().await
    });
    rt::yield_now().await;
    task.cancel();
    assert_eq!(task.await, Err(Cancelled));
    assert_eq!(drops.get(), 1);
    let done = rt::spawn(Class::Request, "done", async { 5 });
    while !done.is_finished() {
        rt::yield_now().await;
    }
    done.cancel();
    assert_eq!(done.await, Ok(5), "a task that was done stays done");
}

pub async fn a_task_may_cancel_itself() {
    let own: Rc<RefCell<Option<rt::JoinHandle<()>>>> = Rc::default();
    let handle = own.clone();
    let ran = Rc::new(Cell::new(false));
    let flag = ran.clone();
    let task = rt::spawn(Class::Request, "suicidal", async move {
        rt::yield_now().await;
        if let Some(handle) = handle.take() {
            handle.cancel();
        }
        rt::yield_now().await;
        flag.set(true);
    });
    *own.borrow_mut() = Some(task);
    for _ in 0..50 {
        rt::yield_now().await;
    }
    assert!(!ran.get());
}

pub async fn a_dropped_handle_detaches() {
    let ran = Rc::new(Cell::new(false));
    let flag = ran.clone();
    drop(rt::spawn(Class::Request, "detached", async move {
        rt::yield_now().await;
        flag.set(true);
    }));
    while !ran.get() {
        rt::yield_now().await;
    }
}

pub async fn ten_thousand_tasks_come_and_go() {
    let before = rt::stats().tasks;
    let count = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..10_000)
        .map(|_| {
            let count = count.clone();
            rt::spawn(Class::Request, "one of many", async move {
                rt::yield_now().await;
                count.set(count.get() + 1);
            })
        })
        .collect();
    assert_eq!(rt::stats().tasks, before + 10_000);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(count.get(), 10_000);
    assert_eq!(rt::stats().tasks, before);
}

pub async fn a_wake_during_a_poll_is_not_lost() {
    let mut polls = 0;
    std::future::poll_fn(|cx| {
        polls += 1;
        let another = cx.waker().clone();
        cx.waker().wake_by_ref();
        another.wake();
        if polls < 1000 { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

pub async fn dropped_tasks_run_their_destructors() {
    // A destructor may use the runtime: it spawns here.
    struct Spawns(Rc<Cell<bool>>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            let flag = self.0.clone();
            rt::spawn(Class::Request, "last words", async move { flag.set(true) }).detach();
        }
    }
    let flag = Rc::new(Cell::new(false));
    let held = Spawns(flag.clone());
    let task = rt::spawn(Class::Request, "doomed", async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    task.cancel();
    while !flag.get() {
        rt::yield_now().await;
    }
}

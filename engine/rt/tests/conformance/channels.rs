//! Primitives between tasks, and channels between reactors.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use rt::channel::{self, SendError};
use rt::{Class, local};
use vellum_rt as rt;

use crate::worlds::{Main, main};

pub async fn notify_wakes_one_or_all() {
    let notify = Rc::new(local::Notify::new());
    let passed = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..5)
        .map(|_| {
            let (notify, passed) = (notify.clone(), passed.clone());
            rt::spawn(Class::Request, "waiter", async move {
                notify.notified().await;
                passed.set(passed.get() + 1);
            })
        })
        .collect();
    rt::sleep(Duration::from_millis(1)).await;
    notify.notify_one();
    rt::sleep(Duration::from_millis(1)).await;
    assert_eq!(passed.get(), 1);
    notify.notify_all();
    for task in tasks {
        task.await.unwrap();
    }
    notify.notify_one();
    notify.notified().await; // the permit was kept
    let dropped = notify.notified();
    let kept = notify.notified();
    notify.notify_one();
    drop(dropped);
    kept.await; // it was passed on
}

pub async fn an_event_lets_everyone_pass() {
    let event = Rc::new(local::Event::new());
    let waits = event.clone();
    let task = rt::spawn(Class::Request, "waiter", async move { waits.wait().await });
    rt::sleep(Duration::from_millis(1)).await;
    assert!(!task.is_finished());
    event.set();
    task.await.unwrap();
    event.wait().await;
}

pub async fn a_semaphore_serves_in_order() {
    let semaphore = Rc::new(local::Semaphore::new(2));
    let order: Rc<RefCell<Vec<usize>>> = Rc::default();
    let held = semaphore.acquire(2).await;
    assert!(semaphore.try_acquire(1).is_none());
    let mut tasks = Vec::new();
    for n in [2, 1, 1] {
        let (semaphore, order) = (semaphore.clone(), order.clone());
        let waiting = semaphore.waiting();
        tasks.push(rt::spawn(Class::Request, "waiter", {
            let semaphore = semaphore.clone();
            async move {
                let _permit = semaphore.acquire(n).await;
                order.borrow_mut().push(n);
                rt::yield_now().await;
            }
        }));
        while semaphore.waiting() == waiting {
            rt::yield_now().await;
        }
    }
    drop(held);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.borrow(), [2, 1, 1]);
    assert_eq!(semaphore.available(), 2);
    let permit = semaphore.acquire_owned(2).await;
    assert!(rt::timeout(Duration::from_millis(1), semaphore.acquire(1)).await.is_err());
    drop(permit);
    assert!(semaphore.try_acquire(2).is_some());
}

pub async fn a_mutex_is_held_across_awaits() {
    let mutex = Rc::new(local::Mutex::new(0));
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let mutex = mutex.clone();
            rt::spawn(Class::Request, "adder", async move {
                for _ in 0..10 {
                    let mut value = mutex.lock().await;
                    let before = *value;
                    rt::yield_now().await;
                    *value = before + 1;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*mutex.lock().await, 100);
}

pub async fn readers_share_and_writers_do_not() {
    let lock = Rc::new(local::RwLock::new(0));
    let (a, b) = (lock.read().await, lock.read().await);
    assert!(lock.try_write().is_none());
    let writer = {
        let lock = lock.clone();
        rt::spawn(Class::Request, "writer", async move { *lock.write().await = 1 })
    };
    rt::sleep(Duration::from_millis(1)).await;
    assert!(lock.try_read().is_none(), "a reader does not overtake the writer that waits");
    drop((a, b));
    writer.await.unwrap();
    assert_eq!(*lock.read().await, 1);
}

pub async fn a_oneshot_delivers_or_closes() {
    let (sender, receiver) = local::oneshot();
    let task = rt::spawn(Class::Request, "receiver", receiver);
    rt::yield_now().await;
    sender.send(5).unwrap();
    assert_eq!(task.await.unwrap(), Ok(5));
    let (sender, receiver) = local::oneshot::<u32>();
    drop(sender);
    assert_eq!(receiver.await, Err(local::Closed));
    let (sender, receiver) = local::oneshot();
    drop(receiver);
    assert_eq!(sender.send(1), Err(1));
}

pub async fn a_local_channel_is_bounded() {
    let (sender, mut receiver) = local::channel(2);
    sender.try_send(1).unwrap();
    sender.try_send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(SendError::Full(3)));
    let task = rt::spawn(Class::Request, "sender", async move {
        for i in 3..100 {
            sender.send(i).await.unwrap();
        }
    });
    for i in 1..100 {
        assert_eq!(receiver.recv().await, Some(i));
    }
    assert_eq!(receiver.recv().await, None);
    task.await.unwrap();
    let (sender, receiver) = local::channel(1);
    drop(receiver);
    assert_eq!(sender.send(1).await, Err(SendError::Closed(1)));
}

pub fn messages_cross_in_order() -> (Main, Main) {
    let (there, mut from_first) = channel::bounded::<u64>(16);
    let (back, mut from_second) = channel::bounded::<u64>(16);
    let first = main(move || async move {
        for i in 0..2000 {
            there.send(i).await.unwrap();
            assert_eq!(from_second.recv().await, Some(i * 2));
            if i % 500 == 0 {
                rt::sleep(Duration::from_millis(2)).await; // the other side falls asleep
            }
        }
    });
    let second = main(move || async move {
        while let Some(i) = from_first.recv().await {
            back.send(i * 2).await.unwrap();
        }
    });
    (first, second)
}

pub fn a_full_channel_holds_its_senders() -> (Main, Main) {
    let (sender, mut receiver) = channel::bounded::<u64>(4);
    let first = main(move || async move {
        let tasks: Vec<_> = (0..8u64)
            .map(|task| {
                let sender = sender.clone();
                rt::spawn(Class::Request, "sender", async move {
                    for i in 0..200 {
                        sender.send(task << 32 | i).await.unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        for task in tasks {
            task.await.unwrap();
        }
    });
    let second = main(move || async move {
        rt::sleep(Duration::from_millis(2)).await;
        let mut next = [0; 8];
        while let Some(message) = receiver.recv().await {
            let (task, i) = ((message >> 32) as usize, message & 0xffff_ffff);
            assert_eq!(next[task], i, "the order of one sender holds");
            next[task] += 1;
        }
        assert_eq!(next, [200; 8]);
    });
    (first, second)
}

pub fn a_gone_receiver_is_told() -> (Main, Main) {
    let (sender, receiver) = channel::bounded::<u64>(1);
    let first = main(move || async move {
        let mut result = Ok(());
        while result.is_ok() {
            result = sender.send(1).await;
        }
        assert_eq!(result, Err(SendError::Closed(1)));
        assert!(sender.is_closed());
    });
    let second = main(move || async move {
        rt::sleep(Duration::from_millis(2)).await;
        drop(receiver);
    });
    (first, second)
}

/// Any waker may be woken from any thread: here through a shared flag, many times, while its reactor sleeps or not.
pub fn a_waker_works_from_another_reactor() -> (Main, Main) {
    type Slot = Arc<Mutex<(u64, Option<Waker>)>>;
    let shared: Slot = Arc::default();
    let theirs = shared.clone();
    const ROUNDS: u64 = 300;
    let first = main(move || async move {
        let mut seen = 0;
        std::future::poll_fn(|cx| {
            let mut shared = shared.lock().unwrap();
            seen = seen.max(shared.0);
            shared.1 = Some(cx.waker().clone());
            if seen == ROUNDS { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    let second = main(move || async move {
        for i in 1..=ROUNDS {
            let waker = {
                let mut shared = theirs.lock().unwrap();
                shared.0 = i;
                shared.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
            if i % 100 == 0 {
                rt::sleep(Duration::from_millis(1)).await;
            }
            rt::yield_now().await;
        }
    });
    (first, second)
}

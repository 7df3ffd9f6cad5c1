//! Time and pollers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rt::{Class, Elapsed};
use vellum_rt as rt;

pub async fn sleeps_end_in_order_and_not_early() {
    let order: Rc<RefCell<Vec<u64>>> = Rc::default();
    let began = rt::now();
    let tasks: Vec<_> = [9u64, 3, 12, 6]
        .map(|ms| {
            let order = order.clone();
            rt::spawn(Class::Request, "sleeper", async move {
                let began = rt::now();
                rt::sleep(Duration::from_millis(ms)).await;
                assert!(began.elapsed() >= Duration::from_millis(ms));
                order.borrow_mut().push(ms);
            })
        })
        .into();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.borrow(), [3, 6, 9, 12]);
    assert!(began.elapsed() < Duration::from_millis(500), "took {:?}", began.elapsed());
    rt::sleep(Duration::ZERO).await;
    assert!(rt::wall_clock().secs > 1_700_000_000);
}

pub async fn a_timeout_cuts_a_future_off() {
    let never = std::future::pending::<()>();
    assert_eq!(rt::timeout(Duration::from_millis(2), never).await, Err(Elapsed));
    assert_eq!(rt::timeout(Duration::from_secs(5), async { 7 }).await, Ok(7));
}

pub async fn a_dropped_timer_leaves_nothing() {
    let began = rt::now();
    for _ in 0..1000 {
        let _ = rt::timeout(Duration::from_secs(3600), rt::yield_now()).await;
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

pub async fn a_poller_runs_until_it_is_dropped() {
    let calls = Rc::new(Cell::new(0));
    let counter = calls.clone();
    let poller = rt::add_poller("counter", move || {
        counter.set(counter.get() + 1);
        0
    });
    while calls.get() < 10 {
        rt::sleep(Duration::from_micros(100)).await;
    }
    drop(poller);
    let then = calls.get();
    for _ in 0..10 {
        rt::sleep(Duration::from_micros(100)).await;
    }
    assert!(calls.get() <= then + 1);
    assert_eq!(rt::stats().pollers, 0);
}

pub async fn a_waker_is_woken_later() {
    let began = rt::now();
    let mut armed = false;
    std::future::poll_fn(|cx| {
        if !std::mem::replace(&mut armed, true) {
            rt::wake_after(Duration::from_millis(3), cx.waker().clone());
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(())
    })
    .await;
    assert!(began.elapsed() >= Duration::from_millis(3));
}

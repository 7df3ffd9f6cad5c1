//! Scopes: a part of a reactor's tasks that ends as one.
//!
//! What a future spawns, and what those tasks spawn, may be many tasks that hold each other's objects for as long as they
//! live: an engine, say. A reactor that outlives the engine ends it by dropping the scope that it was started in.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::reactor::{self, Reactor};
use crate::task::ScopeId;

struct Scope<F> {
    reactor: Rc<Reactor>,
    id: ScopeId,
    /// Until the scope's end.
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Scope<F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let outer = self.reactor.tasks.enter_scope(self.id);
        let poll = future.as_mut().poll(cx);
        self.reactor.tasks.enter_scope(outer);
        poll
    }
}

impl<F> Drop for Scope<F> {
    fn drop(&mut self) {
        let outer = self.reactor.tasks.enter_scope(self.id);
        self.future = None; // its destructors may spawn, too
        self.reactor.tasks.enter_scope(outer);
        self.reactor.tasks.clear_scope(self.id);
    }
}

/// Runs `future`; when it is done, or dropped, every task of the current reactor that it spawned, and that those spawned
/// in turn, is dropped. Pollers, watches and timers go with the objects that hold them. A scope within a scope ends with
/// the future that entered it.
pub async fn scope<F: Future>(future: F) -> F::Output {
    let reactor = reactor::with(Rc::clone);
    let mut scope = Scope { id: reactor.tasks.new_scope(), reactor, future: Some(Box::pin(future)) };
    std::future::poll_fn(move |cx| scope.poll(cx)).await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use crate::{Class, native, sleep, spawn};
    use std::rc::Rc;

    struct Alive(Rc<Cell<i32>>);

    impl Alive {
        fn new(count: &Rc<Cell<i32>>) -> Alive {
            count.set(count.get() + 1);
            Alive(count.clone())
        }
    }

    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    #[test]
    fn a_scope_takes_all_its_tasks_with_it_and_no_others() {
        native::block_on(async {
            let count = Rc::new(Cell::new(0));
            let (outside, held) = (count.clone(), Alive::new(&count));
            let before = spawn(Class::Request, "outside", async move {
                let _held = held;
                sleep(Duration::from_millis(30)).await;
                outside.get()
            });
            let inner = count.clone();
            let answer = super::scope(async move {
                let of_task = inner.clone();
                spawn(Class::Commit, "task", async move {
                    let _held = Alive::new(&of_task);
                    let (of_child, at_end) = (of_task.clone(), of_task.clone());
                    spawn(Class::Scrub, "child", async move {
                        let _held = Alive::new(&of_child);
                        std::future::pending::<()>().await;
                    })
                    .detach();
                    // Its destructor spawns one more.
                    struct Spawns(Rc<Cell<i32>>);
                    impl Drop for Spawns {
                        fn drop(&mut self) {
                            let held = Alive::new(&self.0);
                            spawn(Class::Request, "late", async move {
                                let _held = held;
                                std::future::pending::<()>().await;
                            })
                            .detach();
                        }
                    }
                    let _spawns = Spawns(at_end);
                    std::future::pending::<()>().await;
                })
                .detach();
                sleep(Duration::from_millis(5)).await;
                assert_eq!(inner.get(), 3);
                42
            })
            .await;
            assert_eq!((answer, count.get()), (42, 1), "the task outside lives");
            assert_eq!(before.await, Ok(1));
            assert_eq!(count.get(), 0);
        });
    }
}

//! What happens inside, told to whoever checks it: the simulation's invariant checkers.
//!
//! A crate says its facts in words of its own (`vellum_store::Fact`, `vellum_client::Fact`, ...), one line at the place where
//! each happens: `probe::tell(|| Fact::Durable { .. })`. Nobody listens in a program that ships: with debug assertions
//! that is a look at a variable of the thread, in a release build nothing at all.

use std::any::Any;

#[cfg(debug_assertions)]
mod seat {
    use std::any::Any;
    use std::cell::RefCell;
    use std::rc::Rc;

    pub type Observer = Rc<dyn Fn(&dyn Any)>;

    thread_local! {
        static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
    }

    pub fn tell<F: Any>(fact: impl FnOnce() -> F) {
        let observer = OBSERVER.with(|seat| seat.borrow().clone());
        if let Some(observer) = observer {
            observer(&fact());
        }
    }

    pub fn replace(observer: Option<Observer>) -> Option<Observer> {
        OBSERVER.with(|seat| seat.replace(observer))
    }
}

/// Tells a fact to the observer of this thread; it is made only when there is one.
#[inline]
pub fn tell<F: Any>(fact: impl FnOnce() -> F) {
    #[cfg(debug_assertions)]
    seat::tell(fact);
    #[cfg(not(debug_assertions))]
    let _ = fact;
}

/// Listens on this thread until it is dropped. In a release build nothing is told.
pub struct Listening {
    #[cfg(debug_assertions)]
    before: Option<seat::Observer>,
}

/// `observer` gets every fact that is told on this thread from now on; it downcasts to the kinds that it knows. It must
/// not call back into what tells.
pub fn listen(observer: impl Fn(&dyn Any) + 'static) -> Listening {
    #[cfg(debug_assertions)]
    return Listening { before: seat::replace(Some(std::rc::Rc::new(observer))) };
    #[cfg(not(debug_assertions))]
    {
        let _ = observer;
        Listening {}
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        seat::replace(self.before.take());
    }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn facts_are_heard_while_somebody_listens() {
        let heard: Rc<RefCell<Vec<u32>>> = Rc::default();
        tell(|| -> u32 { unreachable!("nobody listens") });
        {
            let to = heard.clone();
            let _listening = listen(move |fact| to.borrow_mut().extend(fact.downcast_ref::<u32>()));
            tell(|| 1u32);
            tell(|| "another kind");
        }
        tell(|| 2u32);
        assert_eq!(*heard.borrow(), [1]);
    }
}

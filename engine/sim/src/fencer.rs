//! The simulated fencer: what members order waits here until the run carries it out, late, or not at all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vellum_rt::channel::{Sender, bounded};
use vellum_server::cluster::{FenceError, FenceFuture, FenceOrder, Fencer};

/// An order, and where the answer goes.
pub struct Order {
    pub order: FenceOrder,
    answer: Sender<Result<(), FenceError>>,
}

impl Order {
    /// Who asked may be gone.
    pub fn answer(self, result: Result<(), FenceError>) {
        let _ = self.answer.try_send(result);
    }
}

/// Orders that nobody has looked at.
#[derive(Clone, Default)]
pub struct Orders {
    waiting: Arc<Mutex<Vec<Order>>>,
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, Vec<Order>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn are_there(&self) -> bool {
        !self.lock().is_empty()
    }

    pub fn take(&self) -> Vec<Order> {
        std::mem::take(&mut *self.lock())
    }

    pub fn clear(&self) {
        self.lock().clear();
    }
}

/// A member's way to give orders.
#[derive(Clone)]
pub struct SimFencer(pub Orders);

impl std::fmt::Debug for SimFencer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimFencer")
    }
}

impl Fencer for SimFencer {
    fn fence(&self, order: FenceOrder) -> FenceFuture {
        let (answer, mut answered) = bounded(1);
        self.0.lock().push(Order { order, answer });
        Box::pin(async move {
            answered.recv().await.unwrap_or_else(|| Err(FenceError::Failed("nobody carries out orders".into())))
        })
    }
}

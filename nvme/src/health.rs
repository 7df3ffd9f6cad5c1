//! The latch of a failed device, shared by its queues.
//!
//! Why a latch: after a failed flush nobody knows which acknowledged writes reached the medium, and the kernel reports
//! the error only once; a retried flush that succeeds would be a lie (the "fsyncgate" of 2018). So: no retry.

use std::sync::OnceLock;

use crate::DeviceError;

#[derive(Default)]
pub(crate) struct Health {
    failed: OnceLock<String>,
}

impl Health {
    /// The first reason stays.
    pub fn fail(&self, reason: String) -> DeviceError {
        let reason = self.failed.get_or_init(|| {
            tracing::error!(%reason, "device failed");
            reason
        });
        DeviceError::Failed { reason: reason.clone() }
    }

    pub fn check(&self) -> Result<(), DeviceError> {
        match self.failed.get() {
            None => Ok(()),
            Some(reason) => Err(DeviceError::Failed { reason: reason.clone() }),
        }
    }
}

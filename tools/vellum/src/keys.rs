//! The keys that a command was given.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use vellum_keys::Keys;

use crate::cli::KeyArgs;
use crate::exit::{Exit, WithExit};

/// A certificate that ends within so many days is spoken of at each start.
const WARN_DAYS: i64 = 30;

impl KeyArgs {
    pub fn load(&self) -> Result<Option<Arc<Keys>>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let keys = Keys::load(dir).exit(Exit::Usage)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let left = keys.validity().not_after - now;
        if left < 0 {
            tracing::warn!("the certificate in {} has expired: nobody will believe it", dir.display());
        } else if left < WARN_DAYS * 86_400 {
            tracing::warn!("the certificate in {} ends in {} days: renew it", dir.display(), left / 86_400);
        }
        Ok(Some(Arc::new(keys)))
    }
}

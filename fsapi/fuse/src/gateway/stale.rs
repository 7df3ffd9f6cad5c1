//! Names that another gateway replaces again and again.
//!
//! Between the kernel's LOOKUP and its OPEN (or GETATTR, READLINK..) the inode may die: another gateway renamed a new file over
//! the name. The kernel takes ESTALE for "look again", once. So that the second look succeeds whatever the others do, what is
//! looked up soon after an ESTALE is kept alive for a while, as an open file is. Without conflicts it costs nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use vellum_rt::{self as rt, Class, Instant};
use vellum_vfs::{Attr, Vfs, VfsError};

/// How long lookups are kept after an ESTALE, and each of them: many times what a kernel needs from LOOKUP to OPEN.
const WHILE: Duration = Duration::from_secs(5);
/// A name whose inode dies before it can be kept is looked up again so often.
const TRIES: u32 = 100;

#[derive(Default)]
pub(super) struct Stale {
    until: Cell<Option<Instant>>,
}

impl Stale {
    /// Notes an ESTALE that the kernel is about to be told.
    pub fn note<T>(&self, result: Result<T, VfsError>) -> Result<T, VfsError> {
        if matches!(result, Err(VfsError::STALE)) {
            self.until.set(Some(rt::now() + WHILE));
        }
        result
    }

    fn is_recent(&self) -> bool {
        self.until.get().is_some_and(|until| rt::now() < until)
    }

    /// A lookup whose result stays alive for a while when there was a conflict.
    pub async fn lookup(&self, vfs: &Rc<Vfs>, parent: vellum_base::Ino, name: &[u8]) -> Result<Attr, VfsError> {
        for _ in 0..TRIES {
            let found = vfs.lookup(parent, name).await?;
            if !self.is_recent() {
                return Ok(found);
            }
            match vfs.pin(found.ino).await {
                Err(VfsError::STALE) => {}
                Err(_) => return Ok(found), // a directory
                Ok(pin) => {
                    let vfs = vfs.clone();
                    rt::spawn(Class::Request, "keep what was looked up", async move {
                        rt::sleep(WHILE).await;
                        let _ = vfs.release(pin).await; // it is ours, and released once
                    })
                    .detach();
                    return Ok(found);
                }
            }
        }
        Err(VfsError::STALE)
    }
}

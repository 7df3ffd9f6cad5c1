//! What a namespace is stored on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use crate::Image;

pub enum Medium {
    /// Stores nothing, moves nothing: for measuring everything else. Reads leave the buffer as it is.
    Null,
    Memory(RwLock<Cached>),
    /// Without a cache of its own; a flush syncs the file.
    File(File),
}

/// Memory with a write cache in front that [`Medium::lose_power`] loses.
pub struct Cached {
    visible: Image,
    /// What a power loss leaves. None: there is no volatile cache.
    durable: Option<Image>,
}

impl Medium {
    pub fn memory(image: Image, volatile_write_cache: bool) -> Medium {
        let durable = volatile_write_cache.then(|| image.clone());
        Medium::Memory(RwLock::new(Cached { visible: image, durable }))
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Medium::Null)
    }

    /// The caller has checked the range.
    pub fn read(&self, at_bytes: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Medium::Null => {}
            Medium::Memory(cached) => {
                cached.read().unwrap_or_else(PoisonError::into_inner).visible.read(at_bytes, out);
            }
            Medium::File(file) => file.read_exact_at(out, at_bytes)?,
        }
        Ok(())
    }

    /// `fua`: this data is on the medium afterwards.
    pub fn write(&self, at_bytes: u64, data: &[u8], fua: bool) -> io::Result<()> {
        match self {
            Medium::Null => {}
            Medium::Memory(cached) => {
                let cached = &mut *cached.write().unwrap_or_else(PoisonError::into_inner);
                cached.visible.write(at_bytes, data);
                if let (true, Some(durable)) = (fua, &mut cached.durable) {
                    durable.write(at_bytes, data);
                }
            }
            Medium::File(file) => {
                file.write_all_at(data, at_bytes)?;
                if fua {
                    file.sync_data()?;
                }
            }
        }
        Ok(())
    }

    pub fn zero(&self, at_bytes: u64, len_bytes: u64) -> io::Result<()> {
        match self {
            Medium::Null => {}
            Medium::Memory(cached) => {
                cached.write().unwrap_or_else(PoisonError::into_inner).visible.zero(at_bytes, len_bytes);
            }
            Medium::File(file) => {
                let flags = rustix::fs::FallocateFlags::ZERO_RANGE | rustix::fs::FallocateFlags::KEEP_SIZE;
                if rustix::fs::fallocate(file, flags, at_bytes, len_bytes).is_err() {
                    let zeros = [0; 4096];
                    for at in (at_bytes..at_bytes + len_bytes).step_by(zeros.len()) {
                        let len = zeros.len().min((at_bytes + len_bytes - at) as usize);
                        file.write_all_at(&zeros[..len], at)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub fn flush(&self) -> io::Result<()> {
        match self {
            Medium::Null => Ok(()),
            Medium::Memory(cached) => {
                let cached = &mut *cached.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(durable) = &mut cached.durable {
                    *durable = cached.visible.clone();
                }
                Ok(())
            }
            Medium::File(file) => file.sync_data(),
        }
    }

    /// What was written and neither flushed nor FUA is gone.
    pub fn lose_power(&self) {
        if let Medium::Memory(cached) = self {
            let cached = &mut *cached.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(durable) = &cached.durable {
                cached.visible = durable.clone();
            }
        }
    }

    /// What reads see; for tests that look at the medium itself. None: not in memory.
    pub fn image(&self) -> Option<Image> {
        match self {
            Medium::Memory(cached) => Some(cached.read().unwrap_or_else(PoisonError::into_inner).visible.clone()),
            _ => None,
        }
    }
}

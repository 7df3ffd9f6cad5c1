//! Where a command's data is: what goes into its data pointer (NVMe base 4.1.1, 4.1.2).
//!
//! A buffer is contiguous for the device (see [`vellum_base::dma::arena`]) and begins at a page, so its PRP list is an
//! arithmetic sequence, and one SGL data block always suffices.

use std::sync::Arc;

use vellum_base::dma::SharedPages;

use super::{ControllerError, Transport};
use crate::spec::{PAGE_BYTES, Submission};

/// Longest transfer: one page of PRP list (512 entries) and the first PRP, rounded to what others use.
pub(super) const MAX_TRANSFER_BYTES: usize = 1 << 20;
const _: () = assert!(MAX_TRANSFER_BYTES / PAGE_BYTES - 1 <= PAGE_BYTES / 8, "a list never needs a second page");
/// From so many pages on an SGL is used where the controller has it. Below, a list of PRPs is short, and what controllers
/// are made for; Linux draws the line at 32 KiB too.
const SGL_FROM_PAGES: usize = 9;
const _: () = assert!(SGL_FROM_PAGES > 2, "up to two pages are in the command itself");

/// A page for each command id: its PRP list, or its ranges for Dataset Management.
pub(super) struct CommandPages {
    chunks: Vec<(Arc<SharedPages>, u64)>,
}

/// Pages in one piece of shared memory.
const CHUNK_PAGES: usize = 64;

impl CommandPages {
    pub fn new<T: Transport>(depth: usize, transport: &T) -> Result<CommandPages, ControllerError> {
        let chunk = || {
            let pages = SharedPages::new(CHUNK_PAGES * PAGE_BYTES).ok_or(ControllerError::NoMemory)?;
            let address = transport.address_of(pages.arena_offset(), pages.len()).ok_or(ControllerError::NoMemory)?;
            Ok((Arc::new(pages), address))
        };
        let chunks = (0..depth.div_ceil(CHUNK_PAGES)).map(|_| chunk()).collect::<Result<_, ControllerError>>()?;
        Ok(CommandPages { chunks })
    }

    /// What the controller may read as long as it has commands.
    pub fn memory(&self) -> impl Iterator<Item = Arc<SharedPages>> + '_ {
        self.chunks.iter().map(|(pages, _)| pages.clone())
    }

    /// The memory, the offset in it, and the device address of the page of command `index`.
    #[inline]
    fn page(&self, index: usize) -> (&SharedPages, usize, u64) {
        let (chunk, base) = &self.chunks[index / CHUNK_PAGES];
        let at = index % CHUNK_PAGES * PAGE_BYTES;
        (chunk, at, base + at as u64)
    }

    /// Points `command` at `len` bytes at device address `address`, which begin at a page.
    #[inline]
    pub fn point(&self, command: Submission, index: usize, address: u64, len: usize, sgl: bool) -> Submission {
        let pages = len.div_ceil(PAGE_BYTES);
        match pages {
            0 | 1 => command.with_prp(address, 0),
            2 => command.with_prp(address, address + PAGE_BYTES as u64),
            _ if sgl && pages >= SGL_FROM_PAGES => command.with_sgl(address, len as u32),
            _ => {
                let (memory, at, list) = self.page(index);
                for entry in 1..pages {
                    let page = address + (entry * PAGE_BYTES) as u64;
                    memory.store64(at + 8 * (entry - 1), page.to_le());
                }
                command.with_prp(address, list)
            }
        }
    }

    /// Writes the ranges of a Dataset Management command into the page of `index`; gives its address.
    pub fn put_ranges(&self, index: usize, ranges: impl Iterator<Item = (u64, u32)>) -> (u64, u32) {
        let (memory, at, address) = self.page(index);
        let mut count = 0;
        for (start_lba, len_lbas) in ranges.take(crate::spec::MAX_DSM_RANGES) {
            let attributes_and_len = u64::from(len_lbas) << 32;
            memory.store_words(at + 16 * count as usize, [attributes_and_len.to_le(), start_lba.to_le()]);
            count += 1;
        }
        (address, count)
    }
}

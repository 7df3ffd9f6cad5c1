//! A plain loop over io_uring, as a program of one thread would have it: what the reads of a reactor are held against.
#![allow(unsafe_code)] // submissions carry raw pointers into the buffers; the argument is at the block

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use vellum_base::{BLOCK_SIZE, DmaBuf, prng::Prng};

use crate::recorder::Recorder;

/// Random 4 KiB reads of `file`, `depth` in flight: all that have ended are replaced, then one system call submits and waits.
/// The ring has the settings that suit one thread best (single issuer, deferred task run, a registered file).
pub fn reads(file: &File, blocks: u64, depth: usize, count: usize, recorder: &mut Recorder) -> Result<()> {
    let mut prng = Prng::new(5);
    let mut bufs: Vec<DmaBuf> = (0..depth).map(|_| DmaBuf::new(BLOCK_SIZE)).collect();
    let mut begun = vec![Instant::now(); depth];
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(depth.next_power_of_two() as u32)
        .context("an io_uring of one issuer (Linux 6.1)")?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let mut idle: Vec<usize> = (0..depth).collect();
    let (mut started, mut ended, mut failed) = (0, 0, None);
    while ended < started || (started < count && failed.is_none()) {
        while let Some(slot) = idle.pop_if(|_| started < count && failed.is_none()) {
            let at = prng.below(blocks) * BLOCK_SIZE as u64;
            let read = opcode::Read::new(types::Fixed(0), bufs[slot].as_mut_ptr(), BLOCK_SIZE as u32).offset(at);
            begun[slot] = Instant::now();
            // SAFETY: the buffer has BLOCK_SIZE bytes, is not touched until the completion, and is not dropped before: the loop
            // ends only when everything that was started has ended, or leaks the buffers.
            let pushed = unsafe { ring.submission().push(&read.build().user_data(slot as u64)) };
            assert!(pushed.is_ok(), "the submission queue has an entry for each slot");
            started += 1;
        }
        if let Err(error) = ring.submit_and_wait(1)
            && error.raw_os_error() != Some(libc::EINTR)
        {
            #[allow(clippy::mem_forget)] // the only safe end
            std::mem::forget(bufs); // the kernel may still write there
            return Err(error.into());
        }
        for done in ring.completion() {
            let slot = done.user_data() as usize;
            recorder.record(begun[slot].elapsed(), BLOCK_SIZE as u64);
            if done.result() != BLOCK_SIZE as i32 {
                failed = Some(done.result());
            }
            idle.push(slot);
            ended += 1;
        }
    }
    ensure!(failed.is_none(), "a read answered {failed:?}");
    Ok(())
}

//! When dirty data leaves: by size, by age, by fsync, and when a lease goes.
//!
//! Bounds: `max_dirty_bytes` in memory over all files (writers wait above it), `max_frames` requests at once. One frame
//! of a file leaves as soon as it is full; many small files share frames, oldest first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, Ino};
use vellum_client::LockGuard;
use vellum_rt::{self as rt, Class, Instant};

use crate::error::{Result, VfsError};
use crate::file::File;
use crate::gate::Gate;
use crate::ino_locks::Mode;
use crate::vfs::Vfs;

use super::frame::Frame;
use super::runs::FRAME_BLOCKS;

/// Pause of a drain that finds only files whose write-back is held back.
const HELD_BACK_DELAY: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(crate) struct Writeback {
    /// Blocks in memory, dirty or flying.
    blocks: Cell<usize>,
    /// The dirty ones among them.
    dirty_blocks: Cell<usize>,
    /// Files in the order in which they became dirty; a file may be clean again when its turn comes.
    by_age: RefCell<VecDeque<(Instant, Ino)>>,
    frames: Cell<usize>,
    /// Opened when blocks or frames become fewer.
    room: Gate,
    clock_runs: Cell<bool>,
    drain_runs: Cell<bool>,
}

impl Vfs {
    /// Dirty and flying file data in memory, in bytes.
    pub fn buffered_bytes(&self) -> usize {
        self.writeback.blocks.get() * BLOCK_SIZE
    }

    pub(crate) async fn wait_for_room(&self) -> Result<()> {
        let max = self.options.max_dirty_bytes / BLOCK_SIZE;
        if self.writeback.blocks.get() < max {
            return Ok(());
        }
        self.start_drain();
        let room = || (self.writeback.blocks.get() < max || self.stopped.get()).then_some(());
        self.writeback.room.until(room).await;
        if self.stopped.get() { Err(VfsError::NOTCONN) } else { Ok(()) }
    }

    pub(crate) fn count_dirty(&self, added: usize) {
        let w = &self.writeback;
        w.blocks.set(w.blocks.get() + added);
        w.dirty_blocks.set(w.dirty_blocks.get() + added);
    }

    /// Dirty blocks were dropped without being written.
    pub(crate) fn count_dropped(&self, blocks: usize) {
        let w = &self.writeback;
        w.dirty_blocks.set(w.dirty_blocks.get() - blocks);
        self.count_gone(blocks);
    }

    /// Flying blocks are committed, or lost.
    pub(crate) fn count_gone(&self, blocks: usize) {
        let w = &self.writeback;
        w.blocks.set(w.blocks.get() - blocks);
        w.room.open();
    }

    fn count_boarded(&self, blocks: usize) {
        self.writeback.dirty_blocks.set(self.writeback.dirty_blocks.get() - blocks);
    }

    /// A write has made `added` more blocks dirty (perhaps none: it hit dirty ones).
    pub(crate) fn became_dirty(&self, file: &File, added: usize) {
        self.count_dirty(added);
        self.note_dirty(file);
        if self.writeback.dirty_blocks.get() > self.soft_limit() {
            self.start_drain();
        }
    }

    /// The file has something pending: its age begins.
    pub(crate) fn note_dirty(&self, file: &File) {
        let mut buffer = file.buffer.borrow_mut();
        if buffer.dirty_since.is_none() {
            let now = rt::now();
            buffer.dirty_since = Some(now);
            self.writeback.by_age.borrow_mut().push_back((now, file.ino));
            self.start_clock();
        }
    }

    fn soft_limit(&self) -> usize {
        self.options.max_dirty_bytes / BLOCK_SIZE / 4
    }

    /// Sends the frames of one file that are full.
    pub(crate) fn launch_full_frames(&self, file: &Rc<File>) {
        while file.buffer.borrow().dirty.len_blocks() >= FRAME_BLOCKS {
            let mut frame = Frame::default();
            let boarded = frame.board(file);
            if boarded == 0 {
                break; // held back
            }
            self.count_boarded(boarded);
            self.launch(frame);
        }
    }

    /// Begins to write back everything dirty of `files`. Inline content is committed on the way; `under` is a guard that
    /// covers the files, if there is one. False when nothing could leave.
    pub(crate) async fn write_back(&self, files: &[Rc<File>], under: Option<&LockGuard>) -> bool {
        let mut left = false;
        for file in files {
            if file.buffer.borrow().wants_inline() {
                self.commit_inline(file, under).await;
                left |= file.buffer.borrow().pending.is_none();
            }
        }
        // Nothing waits between boarding and launch: who holds the lock that would be waited for may itself wait, under
        // it, for what is on board to land.
        let mut frame = Frame::default();
        for file in files {
            loop {
                let boarded = frame.board(file);
                self.count_boarded(boarded);
                left |= boarded > 0;
                if frame.room_blocks() > 0 {
                    break;
                }
                self.launch(std::mem::take(&mut frame));
            }
        }
        if !frame.is_empty() {
            self.launch(frame);
        }
        left
    }

    fn launch(&self, frame: Frame) {
        let Some(vfs) = self.rc() else { return };
        rt::spawn(Class::Request, "write back", async move { vfs.fly(frame).await }).detach();
    }

    async fn fly(&self, frame: Frame) {
        let w = &self.writeback;
        let max = self.options.max_frames.max(1);
        w.room
            .until(|| {
                let free = w.frames.get() < max;
                free.then(|| w.frames.set(w.frames.get() + 1))
            })
            .await;
        let result = self.client.write_blocks(frame.payload()).await;
        w.frames.set(w.frames.get() - 1);
        w.room.open();
        let files = frame.land(result.map_err(VfsError::from));
        for file in &files {
            file.changed.open();
        }
        for file in &files {
            // Under a lease that is on its way out this waits; the release itself commits then.
            if let Err(error) = self.commit_landed(file, None).await {
                tracing::warn!(ino = %file.ino, %error, "write back");
            }
        }
    }

    /// Everything dirty of the group's files is committed under the guard of a release.
    pub(crate) async fn clean_group(&self, guard: &LockGuard, group: u64) {
        let files = self.files.of_group(group);
        if files.iter().all(|f| f.buffer.borrow().pending.is_none()) {
            return;
        }
        self.write_back(&files, Some(guard)).await;
        for file in &files {
            self.settle(file, Some(guard)).await;
        }
    }

    /// Looks at the oldest dirty files, as long as there are any.
    fn start_clock(&self) {
        let Some(vfs) = self.rc().filter(|_| !self.writeback.clock_runs.replace(true)) else { return };
        let age = self.options.dirty_age;
        rt::spawn(Class::Request, "write back by age", async move {
            while vfs.writeback.dirty_blocks.get() > 0 || !vfs.writeback.by_age.borrow().is_empty() {
                rt::sleep((age / 4).max(Duration::from_millis(1))).await;
                let now = rt::now();
                vfs.write_back_oldest(|since| now.since(since) >= age, usize::MAX).await;
            }
            vfs.writeback.clock_runs.set(false);
        })
        .detach();
    }

    /// Writes the oldest dirty data back until half of the soft limit is reached.
    fn start_drain(&self) {
        let Some(vfs) = self.rc().filter(|_| !self.writeback.drain_runs.replace(true)) else { return };
        rt::spawn(Class::Request, "write back by size", async move {
            let goal = vfs.soft_limit() / 2;
            while vfs.writeback.dirty_blocks.get() > goal {
                match vfs.write_back_oldest(|_| true, FRAME_BLOCKS).await {
                    None => break,
                    Some(true) => {}
                    // All held back by truncations, which need this reactor to come to their end.
                    Some(false) => rt::sleep(HELD_BACK_DELAY).await,
                }
            }
            vfs.writeback.drain_runs.set(false);
        })
        .detach();
    }

    /// Takes files from the age queue while `due`, until about `max_blocks` are taken. `None` when none was due, else
    /// whether anything could leave.
    async fn write_back_oldest(&self, due: impl Fn(Instant) -> bool, max_blocks: usize) -> Option<bool> {
        let mut files = Vec::new();
        let mut blocks = 0;
        while blocks < max_blocks {
            let Some((since, ino)) = self.writeback.by_age.borrow().front().copied() else { break };
            if !due(since) {
                break;
            }
            self.writeback.by_age.borrow_mut().pop_front();
            let Some(file) = self.files.get(ino) else { continue };
            if file.buffer.borrow().dirty_since == Some(since) {
                blocks += file.buffer.borrow().dirty.len_blocks().max(1);
                files.push(file);
            }
        }
        let left = self.write_back(&files, None).await;
        for file in &files {
            let mut buffer = file.buffer.borrow_mut();
            let stays = buffer.dirty_since.take().is_some() && !buffer.dirty.is_empty();
            drop(buffer);
            if stays {
                self.note_dirty(file); // held back, or failed: it comes again
            }
        }
        (!files.is_empty()).then_some(left)
    }

    /// The exclusive lock of an inode, for those who have its lease already.
    pub(crate) async fn acquire_inode(&self, ino: Ino) -> crate::ino_locks::InoLock {
        self.ino_locks.acquire(ino, Mode::Exclusive).await
    }
}

/// No new flights of a file begin while it lives.
pub(crate) struct HoldFlights(pub Rc<File>);

impl Drop for HoldFlights {
    fn drop(&mut self) {
        self.0.buffer.borrow_mut().holds -= 1;
        self.0.changed.open();
    }
}

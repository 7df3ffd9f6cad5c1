//! File locks and open inodes of the fake engine: the engine's own tables, without reactors between them.

use std::rc::Rc;

use vellum_base::Rid;
use vellum_proto::files::{Owner, WaitGraph};
use vellum_proto::{FileLockOutput, FileLockTable, OpenTable};
use vellum_wire::{ErrorCode, FileLock, FileLockSpace, Request, Response};

use super::FakeEngine;
use crate::env;

#[derive(Default)]
pub(super) struct FakeFiles {
    locks: FileLockTable,
    waits: WaitGraph,
    pub opens: OpenTable,
}

impl FakeEngine {
    /// Handles what concerns files; `None` when it is something else, or must wait for the clients to come back.
    pub(super) fn file_request(self: &Rc<Self>, rid: Rid, request: &Request) -> Option<Response> {
        let recovering = self.is_recovering();
        let mut state = self.state.borrow_mut();
        let files = &mut state.files;
        let response = match request {
            Request::ReassertFiles { locks, opens } => {
                let refused = locks.iter().find_map(|held| files.locks.reassert(rid, held.ino, &held.lock).err());
                match refused {
                    Some(error) => Response::error(ErrorCode::NotPermitted, error.to_string()),
                    None => {
                        let _ = files.opens.opened(rid, opens); // no test opens a million
                        Response::Reasserted
                    }
                }
            }
            Request::Opened { inos } => {
                let _ = files.opens.opened(rid, inos);
                Response::Noted
            }
            Request::Closed { inos } => {
                files.opens.closed(rid, inos);
                Response::Noted
            }
            Request::Openers { inos } => {
                let open = |ino| recovering || files.opens.is_open_elsewhere(rid, ino);
                Response::Openers { open: inos.iter().map(|ino| open(*ino)).collect() }
            }
            Request::FileLock { .. } | Request::FileLockTest { .. } | Request::FileLockCancel { .. } if recovering => {
                return None;
            }
            Request::FileLock { ino, lock, ticket } => {
                files.locks.lock(rid, 0, *ino, *lock, *ticket);
                drop(state);
                return self.drive_file_locks();
            }
            Request::FileLockTest { ino, lock } => {
                files.locks.test(rid, 0, *ino, *lock);
                drop(state);
                return self.drive_file_locks();
            }
            Request::FileLockCancel { ino, ticket } => {
                files.locks.cancel(rid, 0, *ino, *ticket);
                drop(state);
                return self.drive_file_locks();
            }
            _ => return None,
        };
        Some(response)
    }

    pub(super) fn forget_files(self: &Rc<Self>, rid: Rid) {
        {
            let files = &mut self.state.borrow_mut().files;
            files.opens.reclaim(rid);
            files.locks.reclaim(rid);
        }
        self.drive_file_locks();
    }

    /// Tells waiters their end; the answer to the request that was just handled.
    fn drive_file_locks(self: &Rc<Self>) -> Option<Response> {
        let mut answer = None;
        loop {
            let (mut changes, mut ended) = (Vec::new(), Vec::new());
            let mut state = self.state.borrow_mut();
            while let Some(output) = state.files.locks.poll_output() {
                match output {
                    FileLockOutput::Answer { outcome, .. } => answer = Some(Response::FileLocked { outcome }),
                    FileLockOutput::Found { rid, found, .. } => {
                        let own = found.is_some_and(|held| held.owner == Owner { rid, ..held.owner });
                        let found = found.map(|h| FileLock {
                            space: FileLockSpace::Posix,
                            mode: h.mode,
                            owner: h.owner.id,
                            pid: h.pid,
                            start: h.start,
                            end: h.end,
                        });
                        answer = Some(Response::FileLockFound { found, own });
                    }
                    FileLockOutput::Ended { rid, ticket, outcome } => ended.push((rid, ticket, outcome)),
                    FileLockOutput::Graph(change) => changes.push(change),
                }
            }
            let circles = state.files.waits.apply(changes);
            for (id, ino) in &circles {
                state.files.locks.deadlocked(*ino, *id);
            }
            drop(state);
            for (rid, ticket, outcome) in ended {
                let upcalls = self.find(rid).and_then(|port| port.upcalls.borrow().clone());
                env::spawn("fake file lock", async move {
                    env::sleep(std::time::Duration::from_micros(1)).await;
                    if let Some(upcalls) = upcalls {
                        upcalls.file_lock_ended(ticket, outcome);
                    }
                });
            }
            if circles.is_empty() {
                return answer;
            }
        }
    }
}

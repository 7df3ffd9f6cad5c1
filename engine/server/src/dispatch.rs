//! Each request of a client, in the order of arrival, to where it is handled.
//!
//! What depends on order is queued here, before the first await: batches, locks. The rest runs concurrently.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::{BLOCK_SIZE, Batch, BatchNo, BlockRange, DmaSlice, Ino};
use vellum_link::Responder;
use vellum_rt::{Class, now, spawn};
use vellum_wire::{ErrorCode, FilePart, MAX_PAYLOAD, Request, Response};

use crate::backend::BackendFuture;
use crate::client::{Client, Phase};
use crate::confine::{self, Confined};
use crate::file_service::FileOp;
use crate::reactor::Reactor;

/// Keys of one `Get`: their values fit a frame unless nearly all are of the greatest length.
pub const MAX_GET_KEYS: usize = 4096;
/// Items and bytes of one page of a scan: with keys and lengths they fit a frame.
const MAX_SCAN_ITEMS: u32 = 32_768;
const MAX_SCAN_BYTES: u32 = 2 << 20;
const MAX_WALK_ENTRIES: u32 = 32_768;

impl Reactor {
    /// Sends a response with the newest durable epoch.
    pub(crate) fn reply(&self, client: &Client, responder: Responder, response: Response) {
        client.session.set_durable(self.backend.durable_epoch(), false);
        responder.send(response, None);
    }

    /// The way of every request of a client: that of a confined one leads through its wall.
    pub(crate) fn dispatch(
        self: &Rc<Self>,
        client: &Rc<Client>,
        request: Request,
        payload: Option<DmaSlice>,
        responder: Responder,
    ) {
        match &client.confined {
            None => self.serve(client, request, payload, responder),
            Some(confined) => self.serve_confined(client, confined, request, payload, responder),
        }
    }

    pub(crate) fn serve(
        self: &Rc<Self>,
        client: &Rc<Client>,
        request: Request,
        payload: Option<DmaSlice>,
        responder: Responder,
    ) {
        let now = self.keep_request(client, request, payload, responder);
        let Some((request, payload, responder)) = now else { return };
        match (client.phase.get(), &request) {
            (Phase::Serving, _)
            | (_, Request::Keepalive)
            | (Phase::Recovering, Request::Reassert { .. } | Request::ReassertFiles { .. } | Request::Farewell) => {}
            (Phase::Recovering, _) => return responder.fail(ErrorCode::Malformed, "say your locks first"),
            (Phase::Leaving, _) => return responder.fail(ErrorCode::Stopping, "the client has said farewell"),
        }
        if let Some(why) = client.access.get().refuses(&request) {
            return responder.fail(ErrorCode::NotPermitted, why);
        }
        let works = matches!(
            request,
            Request::Work { .. } | Request::Reassert { .. } | Request::Farewell | Request::Status | Request::Keepalive
        );
        if client.seat().is_some() && !works {
            return responder.fail(ErrorCode::NotPermitted, "a worker holds no locks and changes nothing");
        }
        let backend = self.backend.clone();
        match request {
            Request::Lock { wants } => self.begin_lock(client, wants, responder),
            Request::Unlock { to } => self.unlock(client, to, responder),
            Request::Reassert { locks, last } => self.reassert(client, locks, last, responder),
            Request::ReassertFiles { locks, opens } => self.reassert_files(client, locks, opens, responder),
            Request::FileLock { ino, lock, ticket } => {
                self.begin_file_op(client, ino, FileOp::Lock { lock, ticket }, responder);
            }
            Request::FileLockTest { ino, lock } => self.begin_file_op(client, ino, FileOp::Test { lock }, responder),
            Request::FileLockCancel { ino, ticket } => {
                self.begin_file_op(client, ino, FileOp::Cancel { ticket }, responder);
            }
            Request::Opened { inos } => self.opened(client, inos, responder),
            Request::Closed { inos } => self.closed(client, inos, responder),
            Request::Openers { inos } => self.openers(client, inos, responder),
            Request::Commit { batch } => self.commit(client, batch, responder),
            Request::Sync { through } => self.sync(client, through, responder),
            Request::Farewell => self.farewell(client, responder),
            Request::Get { keys, .. } if keys.len() > MAX_GET_KEYS => {
                responder.fail(ErrorCode::Malformed, format!("{} keys; ask for {MAX_GET_KEYS} at most", keys.len()));
            }
            Request::Get { keys, view } => {
                let named = client.confined.clone().map(|confined| (confined, confine::named(&keys)));
                let work = confine::held(named, backend.get(keys, view));
                self.later(client, responder, work, |values| Response::Items { values });
            }
            Request::Scan { range, max_items, max_bytes, view } => {
                let items = max_items.clamp(1, MAX_SCAN_ITEMS) as usize;
                let bytes = max_bytes.clamp(1, MAX_SCAN_BYTES) as usize;
                let page = confine::sift_page(client.confined.clone(), backend.scan(range, items, bytes, view));
                self.later(client, responder, page, |(items, next)| Response::Scanned { items, next });
            }
            Request::Walk { index, from_seq, from_ino, to_seq, max } => {
                let most = if client.confined.is_some() { confine::MAX_WALK_ENTRIES } else { MAX_WALK_ENTRIES };
                let page = backend.walk(index, (from_seq, from_ino), to_seq, max.clamp(1, most) as usize);
                let page = confine::sift_walk(client.confined.clone(), page);
                self.later(client, responder, page, |(entries, next, through)| Response::Walked {
                    entries,
                    next,
                    through,
                });
            }
            Request::WriteData => match payload {
                Some(data) if data.is_block_aligned() => {
                    let written = backend.write_data(client.rid, data);
                    self.later(client, responder, written, |ranges| Response::Written { ranges });
                }
                _ => responder.fail(ErrorCode::Malformed, "data are whole blocks"),
            },
            Request::ReadData { ranges } => self.read(client, ranges, None, responder),
            Request::ReadFile { ino, parts } => {
                let ranges = parts.iter().map(|part| part.range).collect();
                let checked = client.confined.clone().map(|confined| (confined, ino, parts));
                self.read(client, ranges, checked, responder);
            }
            Request::AllocGroup { near } => {
                let confined = client.confined.clone();
                let group = backend.alloc_group(near, confined.as_ref().map(|confined| confined.root));
                self.later(client, responder, group, move |group| {
                    confined.iter().for_each(|confined| confined.given(group));
                    Response::Group { group }
                });
            }
            Request::StatFs => self.later(client, responder, backend.statfs(), Response::StatFs),
            Request::Status => {
                let reactor = self.clone();
                let status: BackendFuture<String> = Box::pin(async move { Ok(reactor.status().await.to_string()) });
                self.later(client, responder, status, |json| Response::Status { json });
            }
            Request::Admin { what } => self.admin(client, what, responder),
            Request::Keepalive => self.keepalive(responder),
            Request::Work { jobs } => self.work(client, jobs, responder),
            Request::CompactAll => {
                self.later(client, responder, backend.compact_all(), |()| Response::CompactedAll);
            }
            Request::Invalidate { .. } | Request::FileLockDone { .. } | Request::Compact { .. } => {
                responder.fail(ErrorCode::Malformed, "only the engine says that");
            }
        }
    }

    /// The answer prolongs the client's lease, and only a leader may do that. One that was stopped and deposed answers when it
    /// wakes what lay in its sockets, though the next leader gives its locks to others: so it has written its own block first,
    /// which it cannot when it was fenced. A leader that is awake does so all the time. (Found by the simulation.)
    fn keepalive(&self, responder: Responder) {
        let slack = self.slack();
        match &self.options.quorum {
            Some(quorum) if !self.may_begin_leases() => {
                let quorum = quorum.clone();
                spawn(Class::Request, "keepalive", async move {
                    quorum.until_had_device(slack).await;
                    responder.send(Response::Alive, None);
                })
                .detach();
            }
            _ => responder.send(Response::Alive, None),
        }
    }

    /// A new leader waits so much longer for a client than its lease lasts.
    fn slack(&self) -> Duration {
        let timers = &self.options.timers;
        timers.recovery_window.saturating_sub(timers.lease)
    }

    /// A lease that begins now ends before another leader gives the client's locks to others.
    pub(crate) fn may_begin_leases(&self) -> bool {
        self.options.quorum.as_ref().is_none_or(|quorum| quorum.had_device(self.slack()))
    }

    /// Answers when the store has.
    fn later<T: 'static>(
        self: &Rc<Self>,
        client: &Rc<Client>,
        responder: Responder,
        work: BackendFuture<T>,
        answer: impl FnOnce(T) -> Response + 'static,
    ) {
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "request", async move {
            let response = match work.await {
                Ok(value) => answer(value),
                Err(error) => Response::Error(error),
            };
            reactor.reply(&client, responder, response);
        })
        .detach();
    }

    /// Blocks of the device; for a confined client with whose they are said to be.
    fn read(
        self: &Rc<Self>,
        client: &Rc<Client>,
        ranges: Vec<BlockRange>,
        checked: Option<(Rc<Confined>, Ino, Vec<FilePart>)>,
        responder: Responder,
    ) {
        let blocks = ranges.iter().fold(0u64, |sum, range| sum.saturating_add(u64::from(range.len_blocks)));
        if blocks == 0 || blocks > (MAX_PAYLOAD / BLOCK_SIZE) as u64 {
            return responder.fail(ErrorCode::Malformed, "no blocks, or more than one frame holds");
        }
        let work: BackendFuture<DmaSlice> = match checked {
            None => self.backend.read_data(ranges),
            Some((confined, ino, parts)) => {
                let backend = self.backend.clone();
                Box::pin(async move {
                    let _held = backend.hold_blocks();
                    confined.check_blocks(ino, &parts).await?;
                    backend.read_data(ranges).await
                })
            }
        };
        let client = client.clone();
        let reactor = self.clone();
        spawn(Class::Request, "read", async move {
            match work.await {
                Ok(data) => {
                    client.session.set_durable(reactor.backend.durable_epoch(), false);
                    responder.send(Response::Data, Some(data));
                }
                Err(error) => responder.send(Response::Error(error), None),
            }
        })
        .detach();
    }

    fn commit(self: &Rc<Self>, client: &Rc<Client>, batch: Batch, responder: Responder) {
        let (number, begun) = (batch.number, now());
        let judge = client.confined.as_ref().map(|confined| confined.judge(batch.ops.clone()));
        let work = self.backend.commit(client.rid, batch, judge);
        let (reactor, who) = (self.clone(), client.clone());
        let done = Box::new(move |result| {
            let response = match result {
                Ok(epoch) => {
                    reactor.latencies.borrow_mut().committed(begun);
                    who.note_applied(number, epoch, reactor.backend.durable_epoch());
                    if !who.undurable.borrow().is_empty() {
                        reactor.undurable.borrow_mut().insert(who.rid);
                    }
                    Response::Committed { number, epoch }
                }
                Err(error) => {
                    tracing::warn!(rid = %who.rid, %number, %error, "batch refused");
                    Response::Error(error)
                }
            };
            reactor.reply(&who, responder, response);
        });
        client.commits.push(number, work, done);
    }

    /// Durable through a batch: it must have been applied, and its epoch be durable. It came after its batches, so those
    /// are in work or done.
    fn sync(self: &Rc<Self>, client: &Rc<Client>, through: BatchNo, responder: Responder) {
        let (reactor, client, begun) = (self.clone(), client.clone(), now());
        spawn(Class::Request, "sync", async move {
            client.commits.settled(through).await;
            if through > client.applied.get() {
                let applied = client.applied.get();
                let message = format!("batch {through} was not applied (the last was {applied})");
                return responder.fail(ErrorCode::NotPermitted, message);
            }
            if let Some(epoch) = client.epoch_of(through)
                && let Err(error) = reactor.backend.wait_durable(epoch).await
            {
                return responder.send(Response::Error(error), None);
            }
            reactor.latencies.borrow_mut().synced(begun);
            let durable = reactor.backend.durable_epoch();
            reactor.reply(&client, responder, Response::Synced { durable });
        })
        .detach();
    }
}

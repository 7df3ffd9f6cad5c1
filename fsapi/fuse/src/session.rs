//! One reader of a FUSE connection: takes requests, begins them, answers them.
//!
//! One wake-up reads and handles requests until there is none left. A request's future is polled once at once; most end
//! there and are answered before the next is read. One that waits becomes a task, entered in `Pending`, where an
//! INTERRUPT finds it. Every request that wants an answer gets exactly one. FORGETs are passed on with exact counts.
//! INIT, INTERRUPT, FORGET and DESTROY are answered here; everything else is `dispatch`'s.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use vellum_base::DmaBuf;
use vellum_rt as rt;
use zerocopy::FromBytes;

use crate::abi::{self, InHeader, Opcode, init};
use crate::buffer;
use crate::context::Context;
use crate::decode::{self, Args};
use crate::device;
use crate::dispatch::{self, Answering, Layout};
use crate::filesystem::Filesystem;
use crate::init::{SessionInfo, Wants, negotiate};
use crate::interrupt::{Interrupted, Pending};
use crate::notify::Notifier;
use crate::readers::{Board, Reader, take_interrupts};
use crate::reply::Reply;
use crate::stats::{Recorder, Statistics};
use crate::types::Errno;

/// Requests that may wait at once; above it they are refused with ENOMEM. INTERRUPTs must still be read then, so
/// reading cannot simply stop.
const WAITING_MAX: usize = 65_536;
/// How often a request whose caller got a handled signal is looked at again: the kernel tells of the first signal only.
const SECOND_SIGNAL_LOOK: Duration = Duration::from_millis(100);

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Nothing was under way.
    Unmounted,
    /// Forced away or aborted, with requests cut off.
    Aborted,
    /// Reading failed with this errno.
    Failed(Errno),
}

/// What is to be done with a message.
pub(crate) enum Step {
    Answer(Result<Reply, Errno>),
    Begun(Answering),
    Silent,
}

/// A message that was understood as far as its header.
pub(crate) struct Incoming {
    pub header: InHeader,
    pub opcode: Option<Opcode>,
    pub step: Step,
}

pub(crate) struct Session<F> {
    fs: Rc<F>,
    device: Arc<OwnedFd>,
    pending: Rc<Pending>,
    recorder: Recorder,
    wants: Wants,
    info: RefCell<Option<SessionInfo>>,
    layout: Cell<Layout>,
    max_read: usize,
    notifier: Notifier,
    board: Arc<Board>,
    /// Number on the board, and what it passes on until `run` takes it.
    seat: (usize, Cell<Option<rt::channel::Receiver<u64>>>),
    after_init: RefCell<Option<Box<dyn FnOnce()>>>,
    end: Cell<Option<End>>,
    pub ended: rt::local::Event,
}

impl<F: Filesystem> Session<F> {
    pub fn new(fs: Rc<F>, device: Arc<OwnedFd>, wants: Wants, max_read: usize, board: Arc<Board>) -> Rc<Session<F>> {
        let notifier = Notifier::new(&device);
        let (id, passed) = board.join();
        Rc::new(Session {
            fs,
            device,
            pending: Rc::default(),
            recorder: Recorder::new(),
            wants,
            info: RefCell::default(),
            layout: Cell::default(),
            max_read,
            notifier,
            board,
            seat: (id, Cell::new(Some(passed))),
            after_init: RefCell::default(),
            end: Cell::new(None),
            ended: rt::local::Event::new(),
        })
    }

    pub fn end(&self) -> Option<End> {
        self.end.get()
    }

    pub fn info(&self) -> Option<SessionInfo> {
        *self.info.borrow()
    }

    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Done once, when INIT has been answered.
    pub fn after_init(&self, task: Box<dyn FnOnce()>) {
        *self.after_init.borrow_mut() = Some(task);
    }

    pub fn statistics(&self) -> Statistics {
        self.recorder.read(self.pending.len())
    }

    /// Reads and handles until the connection ends.
    pub async fn run(self: Rc<Self>, input: rt::fd::AsyncFd) {
        let interrupts = self
            .seat
            .1
            .take()
            .map(|passed| rt::spawn(rt::Class::Request, "fuse-interrupts", take_interrupts(self.clone(), passed)));
        let mut buf = buffer::new(self.wants.max_write);
        let end = loop {
            let room = buffer::room(&buf);
            let (result, back) = input.read(buf, room).await;
            buf = match result {
                Ok(len) => self.handle(back, len).await,
                Err(e) => match e.raw_os_error() {
                    // ENOENT: the request was taken back before we had it.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => back,
                    Some(libc::ENODEV) => break End::Unmounted,
                    Some(libc::ECONNABORTED) => break End::Aborted,
                    other => break End::Failed(Errno(other.unwrap_or(libc::EIO))),
                },
            };
            rt::yield_if_needed().await;
        };
        if let Some(task) = interrupts {
            task.cancel();
        }
        self.finish(end);
    }

    /// One more descriptor of this connection, once INIT has been answered.
    pub fn another_reader(&self) -> io::Result<Reader> {
        let info = self.info().ok_or_else(|| io::Error::other("the kernel has not begun the session yet"))?;
        let device = device::clone_of(self.device.as_fd())?;
        Ok(Reader { device, info, wants: self.wants, max_read: self.max_read, board: self.board.clone() })
    }

    fn finish(&self, end: End) {
        if self.end.get().is_none() {
            // The kernel says the same (ENODEV) for both; but a mount that is idle has nothing waiting.
            let cut_off = self.pending.missed();
            self.recorder.rest.borrow_mut().cut_off = cut_off as u64;
            let end = if end == End::Unmounted && cut_off > 0 { End::Aborted } else { end };
            tracing::debug!(?end, "the mount is gone");
            self.end.set(Some(end));
            self.pending.cancel_all();
            self.fs.ended();
            self.ended.set();
        }
    }

    /// Handles one message and gives a buffer for the next one back.
    pub(crate) async fn handle(self: &Rc<Self>, buf: DmaBuf, len: usize) -> DmaBuf {
        let began = rt::now();
        let (incoming, buf) = self.accept(buf, len);
        let Some(Incoming { header, opcode, step }) = incoming else {
            self.recorder.rest.borrow_mut().malformed += 1;
            return buf;
        };
        match step {
            Step::Silent => self.record(opcode, began, false),
            Step::Answer(result) => self.answer(&header, opcode, began, &result),
            Step::Begun(mut answering) => {
                let first = poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await;
                match (first, opcode) {
                    (Poll::Ready(result), _) => {
                        self.recorder.rest.borrow_mut().answered_inline += 1;
                        self.answer(&header, opcode, began, &result);
                    }
                    (Poll::Pending, Some(opcode)) => self.park(header, opcode, began, answering),
                    (Poll::Pending, None) => self.answer(&header, opcode, began, &Err(Errno::ENOSYS)),
                }
            }
        }
        buf
    }

    /// Understands one message of `len` bytes in `buf`. Never panics, whatever the bytes. `None`: nobody to answer to.
    pub(crate) fn accept(self: &Rc<Self>, buf: DmaBuf, len: usize) -> (Option<Incoming>, DmaBuf) {
        let message = buffer::message(&buf, len);
        let Some((header, body)) = decode::split(message) else { return (None, buf) };
        let Some(opcode) = Opcode::from_number(header.opcode) else {
            let step = Step::Answer(Err(Errno::ENOSYS));
            return (Some(Incoming { header, opcode: None, step }), buf);
        };
        if opcode == Opcode::Write {
            return self.accept_write(header, buf, len);
        }
        let step = self.begin(opcode, &header, body);
        (Some(Incoming { header, opcode: Some(opcode), step }), buf)
    }

    /// Large data leaves with the buffer, small data is copied.
    fn accept_write(self: &Rc<Self>, header: InHeader, buf: DmaBuf, len: usize) -> (Option<Incoming>, DmaBuf) {
        let opcode = Some(Opcode::Write);
        let refused = |errno| Some(Incoming { header, opcode, step: Step::Answer(Err(errno)) });
        let body = decode::split(buffer::message(&buf, len)).map_or(&[][..], |(_, body)| body);
        let Ok((write, data)) = abi::WriteIn::read_from_prefix(body) else { return (refused(Errno::EINVAL), buf) };
        let size = data.len();
        if size != write.size as usize || header.total_extlen != 0 {
            return (refused(Errno::EINVAL), buf);
        }
        if self.pending.len() >= WAITING_MAX {
            return (refused(Errno::ENOMEM), buf);
        }
        let (data, buf) = buffer::take_data(buf, size, self.wants.max_write);
        let answering = dispatch::begin_write(&self.fs, self.context(&header), header.nodeid, &write, data);
        (Some(Incoming { header, opcode, step: Step::Begun(answering) }), buf)
    }

    fn begin(self: &Rc<Self>, opcode: Opcode, header: &InHeader, body: &[u8]) -> Step {
        match opcode {
            Opcode::Init => Step::Answer(self.init(body)),
            Opcode::Destroy => Step::Answer(Ok(Reply::empty())),
            Opcode::Forget => {
                if let Ok(a) = Args::new(body).take::<abi::ForgetIn>() {
                    self.fs.forget(header.nodeid, a.nlookup);
                }
                Step::Silent
            }
            Opcode::BatchForget => {
                self.batch_forget(body);
                Step::Silent
            }
            Opcode::Interrupt => self.interrupt(body),
            _ if self.pending.len() >= WAITING_MAX => Step::Answer(Err(Errno::ENOMEM)),
            _ => {
                let begun = dispatch::begin(&self.fs, self.context(header), opcode, header, body, self.layout.get());
                begun.map_or_else(|errno| Step::Answer(Err(errno)), Step::Begun)
            }
        }
    }

    fn context(&self, header: &InHeader) -> Context {
        let InHeader { unique, uid, gid, pid, .. } = *header;
        Context { unique, uid, gid, pid, pending: self.pending.clone() }
    }

    fn init(&self, body: &[u8]) -> Result<Reply, Errno> {
        let mut args = Args::new(body);
        let offer: abi::InitIn = args.take()?;
        let flags2 = args.take::<abi::InitExtIn>().ok().map(|ext| ext.flags2);
        let flags2 = flags2.filter(|_| offer.flags as u64 & init::INIT_EXT != 0);
        let (out, info) = negotiate(&offer, flags2, &self.wants)
            .inspect_err(|_| tracing::error!(offer.major, offer.minor, "this kernel's FUSE protocol is too old"))?;
        if let Some(info) = info {
            tracing::debug!(?info, "FUSE session");
            self.agreed(info);
        }
        Ok(Reply::of(&out))
    }

    /// What INIT, here or at another reader, has settled.
    pub fn agreed(&self, info: SessionInfo) {
        self.layout.set(Layout { setxattr_ext: info.has(init::SETXATTR_EXT), max_read: self.max_read });
        *self.info.borrow_mut() = Some(info);
        self.fs.started(&info, &self.notifier);
    }

    fn batch_forget(&self, body: &[u8]) {
        let mut args = Args::new(body);
        let Ok(batch) = args.take::<abi::BatchForgetIn>() else { return };
        for _ in 0..batch.count {
            let Ok(one) = args.take::<abi::ForgetOne>() else { return };
            self.fs.forget(one.nodeid, one.nlookup);
        }
    }

    fn interrupt(self: &Rc<Self>, body: &[u8]) -> Step {
        let Ok((request, _)) = abi::InterruptIn::read_from_prefix(body) else { return Step::Silent };
        self.recorder.rest.borrow_mut().interrupted += 1;
        match self.interrupt_request(request.unique) {
            Interrupted::Cancelled | Interrupted::Told => Step::Silent,
            Interrupted::Unknown if self.board.pass_on(self.seat.0, request.unique) => Step::Silent,
            // Answered already, and then the kernel finds nobody for this answer; or it has not begun, and then EAGAIN
            // lets the kernel send the INTERRUPT again.
            Interrupted::Unknown => Step::Answer(Err(Errno::EAGAIN)),
        }
    }

    pub fn interrupt_request(self: &Rc<Self>, unique: u64) -> Interrupted {
        let interrupted = self.pending.interrupt(unique);
        if interrupted == Interrupted::Told {
            rt::spawn(rt::Class::Request, "fuse-interrupted", self.clone().watch_for_death(unique)).detach();
        }
        interrupted
    }

    async fn watch_for_death(self: Rc<Self>, unique: u64) {
        loop {
            rt::sleep(SECOND_SIGNAL_LOOK).await;
            if self.pending.interrupt(unique) != Interrupted::Told {
                return;
            }
        }
    }

    fn park(self: &Rc<Self>, header: InHeader, opcode: Opcode, began: rt::Instant, answering: Answering) {
        self.recorder.rest.borrow_mut().waited += 1;
        let waiting = self.pending.insert(header.unique, opcode, header.pid);
        let session = self.clone();
        let mut answering = Some(answering);
        rt::spawn(rt::Class::Request, opcode.name(), async move {
            let result = poll_fn(|cx| {
                let Some(future) = answering.as_mut().filter(|_| !waiting.poll_cancelled(cx)) else {
                    answering = None; // what it held is let go before the caller is told
                    return Poll::Ready(Err(Errno::EINTR));
                };
                future.as_mut().poll(cx)
            })
            .await;
            drop(answering);
            session.pending.remove(header.unique);
            session.answer(&header, Some(opcode), began, &result);
        })
        .detach();
    }

    fn answer(&self, header: &InHeader, opcode: Option<Opcode>, began: rt::Instant, result: &Result<Reply, Errno>) {
        if let Err(error) = device::answer(self.device.as_fd(), header.unique, result) {
            match error.raw_os_error() {
                // Nobody waits any more: interrupted and taken back, aborted, unmounted.
                Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED | libc::ENOTCONN | libc::EPERM) => {}
                _ => {
                    let name = opcode.map_or("unknown", Opcode::name);
                    tracing::error!(%error, opcode = name, ?result, "the kernel refused an answer");
                    let _ = device::answer(self.device.as_fd(), header.unique, &Err(Errno::EIO)); // so that nobody hangs
                }
            }
        }
        self.record(opcode, began, result.is_err());
        if opcode == Some(Opcode::Init)
            && result.is_ok()
            && let Some(task) = self.after_init.take()
        {
            task();
        }
    }

    fn record(&self, opcode: Option<Opcode>, began: rt::Instant, error: bool) {
        if let Some(opcode) = opcode {
            self.recorder.record(opcode, Duration::from_nanos(rt::now().0.saturating_sub(began.0)), error);
        }
    }
}

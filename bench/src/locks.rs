//! The `locks` suite: what a lock costs from request to grant, on one core, beside bare messages in memory; and how long
//! others wait while very many locks come back at once.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vellum_base::{BatchNo, Epoch, Fsid, Ino, Rid, Term};
use vellum_link::{Address, ConnectOptions, Connection, Identity};
use vellum_proto::channel::Urgency;
use vellum_proto::{
    ClientEvent, ClientSession, LockOutput, LockTable, ServerEvent, ServerSession, Time, Timers, Window,
};
use vellum_rt::{Class, channel, native, spawn};
use vellum_server::Node;
use vellum_wire::{Body, Greeted, LockMode, LockName, LockWant, PROTOCOL, Request, Response};

use crate::node;
use crate::recorder::{Recorder, Usage};
use crate::report::{Report, Row};

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub round_trips: usize,
    /// Locks that are given back at once.
    pub many: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { round_trips: 1_000_000, many: 100_000 }
    }
}

/// Requests in flight of a client that keeps a core busy.
const DEPTH: usize = 32;
const GROUPS: u64 = 4096;

pub fn run(shape: &Shape) -> Result<Report> {
    let mut report = Report::new("locks", "ring");
    report.push(case("round trip", "ring", |r| ring(shape.round_trips, r))?);
    report.push(case("round trip", "table", |r| table(shape.round_trips, r))?);
    report.push(case("round trip", "table+session", |r| sessions(shape.round_trips, r))?);
    let node = node::in_memory(1)?;
    for depth in [1, DEPTH] {
        let count = shape.round_trips / if depth == 1 { 50 } else { 5 };
        report.push(case("round trip", &format!("node qd{depth}"), |r| through_a_node(&node, depth, count, r))?);
    }
    report.push(case("while others rest", "node", |r| while_many_come_back(&node, 0, r))?);
    report.push(case("while many come back", "node", |r| while_many_come_back(&node, shape.many, r))?);
    node.shutdown()?;
    Ok(report)
}

fn case(name: &str, system: &str, work: impl FnOnce(&mut Recorder) -> Result<()>) -> Result<Row> {
    let (before, start) = (Usage::now(), Instant::now());
    let mut recorder = Recorder::default();
    work(&mut recorder)?;
    Ok(Row::of(name, system, &recorder, start.elapsed(), Usage::now().since(before)))
}

fn group(bucket: u64, n: u64) -> LockName {
    LockName::Group(Ino((bucket << 56) | ((n + 1) << Ino::SLOT_BITS)).group())
}

fn write(name: LockName) -> LockWant {
    LockWant { name, mode: LockMode::Write }
}

/// A bounded ring there and one back between two tasks of one reactor: what no protocol can be faster than.
fn ring(count: usize, recorder: &mut Recorder) -> Result<()> {
    native::block_on(async {
        let (there, mut theirs) = channel::bounded::<Instant>(DEPTH);
        let (back, mut ours) = channel::bounded::<Instant>(DEPTH);
        let echo = spawn(Class::Request, "echo", async move {
            while let Some(m) = theirs.recv().await {
                if back.send(m).await.is_err() {
                    return;
                }
            }
        });
        let sender = spawn(Class::Request, "sender", async move {
            for _ in 0..count {
                if there.send(Instant::now()).await.is_err() {
                    return;
                }
            }
        });
        for _ in 0..count {
            let sent = ours.recv().await.context("the echo has ended")?;
            recorder.record(sent.elapsed(), 0);
        }
        sender.await.ok();
        echo.await.ok();
        Ok(())
    })
}

/// Request, grant, give back, in the lock table alone.
fn table(count: usize, recorder: &mut Recorder) -> Result<()> {
    let mut table = LockTable::new(Term(1), 0, 1, false);
    let rid = Rid(7);
    for n in 0..count as u64 {
        let start = Instant::now();
        let want = write(group(n % 256, n % GROUPS));
        table.request(rid, n + 1, want)?;
        let granted = matches!(table.poll_output(), Some(LockOutput::Granted { .. }));
        ensure!(granted, "nobody else holds it");
        table.unlock(rid, &[LockWant { mode: LockMode::Null, ..want }]);
        recorder.record(start.elapsed(), 0);
    }
    Ok(())
}

/// The same through both ends of a session, both on this core: every frame that goes over a socket, without the socket.
fn sessions(count: usize, recorder: &mut Recorder) -> Result<()> {
    let now = Time(1);
    let rid = Rid(7);
    let mut table = LockTable::new(Term(1), 0, 1, false);
    let mut client = ClientSession::new(rid, None, Timers::DEFAULT, 1, now);
    let window = Window { max_requests: 1024, max_bytes: 1 << 20 };
    let mut server = ServerSession::new(rid, Term(1), window, Timers::DEFAULT, now);
    client.handle_timeout(now);
    client.handle_connected(now);
    let hello = client.poll_transmit().context("a greeting")?;
    let Body::Greeting(greeting) = &hello.body else { anyhow::bail!("a greeting comes first") };
    let greeted = Greeted {
        fsid: Fsid([1; 16]),
        term: Term(1),
        last_batch: BatchNo(0),
        durable: Epoch(0),
        protocol: PROTOCOL,
        format: 1,
        lease_ms: 9_000,
        keepalive_ms: 1_000,
        max_requests: window.max_requests,
        max_data_bytes: window.max_bytes as u32,
        read_only: false,
        root: Ino::ROOT,
    };
    server.attach(now, greeting, hello.ack, greeted).map_err(|why| anyhow::anyhow!("{why:?}"))?;
    let mut open = std::collections::VecDeque::with_capacity(DEPTH);
    let (mut begun, mut done) = (0u64, 0usize);
    while done < count {
        while open.len() < DEPTH && client.is_up() {
            let want = write(group(begun % 256, begun % GROUPS));
            begun += 1;
            open.push_back((Instant::now(), want));
            client.request(Request::Lock { wants: vec![want] }, None, Urgency::Normal);
        }
        while let Some(frame) = client.poll_transmit() {
            server.handle_frame(now, frame)?;
        }
        while let Some(event) = server.poll_event() {
            let ServerEvent::Request { token, request, .. } = event else { continue };
            match &*request {
                Request::Lock { wants } => {
                    table.request(rid, begun + 1, wants[0])?;
                    let Some(LockOutput::Granted { grant, .. }) = table.poll_output() else {
                        anyhow::bail!("nobody else holds it");
                    };
                    server.respond(token, Response::Granted { grants: vec![grant], opens: Vec::new() }, None);
                }
                Request::Unlock { to } => {
                    table.unlock(rid, to);
                    server.respond(token, Response::Unlocked, None);
                }
                _ => {}
            }
        }
        while let Some(frame) = server.poll_transmit() {
            client.handle_frame(now, frame)?;
        }
        let mut back = Vec::with_capacity(DEPTH);
        while let Some(event) = client.poll_event() {
            if let ClientEvent::Response { response, .. } = event
                && matches!(&*response, Response::Granted { .. })
            {
                let (sent, want) = open.pop_front().context("in order")?;
                recorder.record(sent.elapsed(), 0);
                back.push(LockWant { mode: LockMode::Null, ..want });
                done += 1;
            }
        }
        if !back.is_empty() {
            client.request(Request::Unlock { to: back }, None, Urgency::Normal);
        }
    }
    Ok(())
}

async fn connect(node: &Node, rid: u64) -> Result<Rc<Connection>> {
    let identity = Identity { rid: Rid(rid), fsid: None };
    let options = ConnectOptions { open_within: Some(Duration::from_secs(10)), ..ConnectOptions::default() };
    Ok(Connection::open(Address::InProcess(node.dialer()), identity, options).await?)
}

async fn lock_and_return(connection: &Connection, name: LockName) -> Result<Duration> {
    let start = Instant::now();
    let reply = connection.call(Request::Lock { wants: vec![write(name)] }, None).await?;
    let took = start.elapsed();
    ensure!(matches!(reply.body, Response::Granted { .. }), "{:?}", reply.body);
    connection.call(Request::Unlock { to: vec![LockWant { name, mode: LockMode::Null }] }, None).await?;
    Ok(took)
}

/// Round trips of a client in this process to a node of one reactor, on another thread.
fn through_a_node(node: &Node, depth: usize, count: usize, recorder: &mut Recorder) -> Result<()> {
    native::block_on(async {
        let connection = connect(node, 0x0b5e_0000 + depth as u64).await?;
        let workers: Vec<_> = (0..depth)
            .map(|worker| {
                let connection = connection.clone();
                spawn(Class::Request, "locker", async move {
                    let mut took = Vec::with_capacity(count / depth);
                    for n in 0..count / depth {
                        took.push(lock_and_return(&connection, group(worker as u64, n as u64 % GROUPS)).await?);
                    }
                    anyhow::Ok(took)
                })
            })
            .collect();
        for worker in workers {
            let took = worker.await.map_err(|_| anyhow::anyhow!("a locker was cancelled"))??;
            took.into_iter().for_each(|t| recorder.record(t, 0));
        }
        Ok(connection.farewell().await?)
    })
}

/// One client asks for locks, one after the other, while another gives `many` back in messages as long as they may be.
fn while_many_come_back(node: &Node, many: usize, recorder: &mut Recorder) -> Result<()> {
    const PAGE: usize = vellum_wire::MAX_WANTS;
    native::block_on(async {
        let hoarder = connect(node, 0x0b5e_1000 + many as u64).await?;
        let other = connect(node, 0x0b5e_2000 + many as u64).await?;
        let names: Vec<LockName> = (0..many as u64).map(|n| group(9, n)).collect();
        for page in names.chunks(PAGE) {
            hoarder.call(Request::Lock { wants: page.iter().map(|name| write(*name)).collect() }, None).await?;
        }
        let give_back = {
            let hoarder = hoarder.clone();
            spawn(Class::Request, "hoarder", async move {
                let calls: Vec<_> = names
                    .chunks(PAGE)
                    .map(|page| {
                        let to = page.iter().map(|name| LockWant { name: *name, mode: LockMode::Null }).collect();
                        hoarder.call(Request::Unlock { to }, None)
                    })
                    .collect();
                for call in calls {
                    call.await?;
                }
                anyhow::Ok(())
            })
        };
        for n in 0..2_000u64 {
            recorder.record(lock_and_return(&other, group(10, n % GROUPS)).await?, 0);
        }
        give_back.await.map_err(|_| anyhow::anyhow!("the hoarder was cancelled"))??;
        hoarder.farewell().await?;
        Ok(other.farewell().await?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_small() {
        let report = run(&Shape { round_trips: 2_000, many: 9_000 }).unwrap();
        assert_eq!(report.rows.len(), 7, "{}", report.table());
        assert!(report.rows.iter().all(|row| row.ops > 0));
    }
}

//! A client that breaks the rules on purpose: it writes without locks, gives back what it does not hold, names blocks of
//! others (E14, scenario 8). Each is an error to it and harms nobody (P6): what it could break is seen by the others' checks.

use std::rc::Rc;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, BlockAddr, Ino, ItemOp};
use vellum_format::{Extent, ExtentHeader, Inode};
use vellum_link::{ConnectOptions, Connection, Identity, LinkError};
use vellum_rt::{random_u64, sleep, timeout};
use vellum_wire::{ErrorCode, LockMode, LockName, LockWant, Request, Response};

use super::{REPLACE, Shared};

/// It does not wait longer for any answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Its task for the whole run.
pub async fn live(shared: Rc<Shared>, machine: usize) {
    while !shared.stop.get() {
        let _ = timeout(PATIENCE * 20, one_life(&shared, machine)).await;
        shared.end_life(machine); // its connection was dropped without a word
        sleep(REPLACE).await;
    }
    shared.finish(machine);
}

async fn one_life(shared: &Rc<Shared>, machine: usize) -> Result<(), LinkError> {
    let mut prng = Prng::new(random_u64());
    let (rid, name) = shared.begin_life(machine);
    let options = ConnectOptions {
        timers: shared.timers,
        open_within: Some(PATIENCE),
        insecure_network: true,
        ..ConnectOptions::default()
    };
    let identity = Identity { rid, fsid: None };
    let connection = Connection::open(shared.address(), identity, options).await?;
    for _ in 0..1 + prng.below(30) {
        if shared.stop.get() {
            break;
        }
        let victim = {
            let files = shared.files.borrow();
            files.get(prng.below(files.len().max(1) as u64) as usize).copied()
        };
        let Some(victim) = victim else { break }; // all are deleted
        let request = some_request(victim, &mut prng);
        let may_succeed = matches!(request, Request::Unlock { .. });
        let said = format!("{request:?}");
        let Ok(answer) = timeout(PATIENCE, connection.call(request, None)).await else { return Ok(()) };
        match answer {
            Err(LinkError::Remote(error)) => {
                let told = matches!(error.code, ErrorCode::NotPermitted | ErrorCode::Malformed);
                let other = matches!(
                    error.code,
                    ErrorCode::Io | ErrorCode::Stopping | ErrorCode::Interrupted | ErrorCode::Busy
                );
                if !told && !other {
                    let what = format!("{name} is told {error} for {said}");
                    shared.history.borrow_mut().violate("P6", what);
                }
            }
            Err(other) => return Err(other),
            Ok(reply) if may_succeed && reply.body == Response::Unlocked => {}
            Ok(reply) => {
                let what = format!("{name} may do what it may not: {said} is answered with {:?}", reply.body);
                shared.history.borrow_mut().violate("L10", what);
            }
        }
        sleep(Duration::from_micros(prng.below(20_000))).await;
    }
    connection.close();
    Ok(())
}

fn some_request(victim: Ino, prng: &mut Prng) -> Request {
    let inode = Inode { mode: 0o100644, nlink: 1, size: 666, ..Inode::default() };
    match prng.below(4) {
        0 => {
            let put = ItemOp::Put { key: Inode::key(victim), value: inode.encode() };
            Request::Commit { batch: Batch { number: BatchNo(1), ops: vec![put] } }
        }
        1 => {
            let batch = Batch { number: BatchNo(1), ops: vec![ItemOp::DeleteInode { ino: victim }] };
            Request::Commit { batch }
        }
        2 => {
            let header = ExtentHeader { start: BlockAddr(prng.below(20_000)), len_blocks: 1, offline: false };
            let value = Extent { header, checksums: vec![0] }.encode();
            let put = ItemOp::Put { key: Extent::key(victim, 0, 1), value };
            Request::Commit { batch: Batch { number: BatchNo(1 + prng.below(2)), ops: vec![put] } }
        }
        _ => Request::Unlock { to: vec![LockWant { name: LockName::of(victim), mode: LockMode::Null }] },
    }
}

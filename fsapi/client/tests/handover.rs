//! Two clients of a real node that fight for one group of inodes (scenario 12).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::Ino;
use vellum_client::{Client, ClientOptions};
use vellum_format::Inode;
use vellum_link::{Address, ConnectOptions};
use vellum_nvme::Device;
use vellum_nvme::memory::MemoryDevice;
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::{Class, JoinHandle, sleep, spawn, timeout};
use vellum_server::{Node, NodeOptions};
use vellum_store::{MkfsOptions, OpenOptions, PolledQueue, mkfs};
use vellum_wire::{LockMode, LockName};

/// An inode of the group that is fought for.
// Far from the groups that the engine hands out: what a client is given anew it knows to be empty.
const INO: Ino = Ino((7 << 56) | (5_000 << 10) | 1);

fn formatted() -> Arc<dyn Device> {
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(256 << 20));
    block_on(async {
        let queue = PolledQueue::open(&*device, 64, "mkfs").unwrap();
        mkfs(&device, &queue, MkfsOptions::default()).await.unwrap();
    });
    device
}

fn timers() -> Timers {
    Timers::DEFAULT.faster(5)
}

fn node(device: &Arc<dyn Device>, unix: &str) -> Node {
    let options = NodeOptions {
        listen: vec![unix.parse().unwrap()],
        cores: vec![None; 2],
        timers: timers(),
        store: OpenOptions { cache_bytes: 8 << 20, memtable_bytes: 8 << 20, ..OpenOptions::default() },
        ..NodeOptions::default()
    };
    Node::start(device.clone(), options).unwrap()
}

async fn connect(unix: &str) -> Rc<Client> {
    let link = ConnectOptions { timers: timers(), ..ConnectOptions::default() };
    Client::connect(Address::Net(unix.parse().unwrap()), None, link, ClientOptions::default()).await.unwrap()
}

async fn size(client: &Rc<Client>, mode: LockMode) -> (vellum_client::LockGuard, u64) {
    let guard = client.lock(&[(LockName::Group(INO.group()), mode)]).await.unwrap();
    let found = client.get(&guard, Inode::key(INO)).await.unwrap();
    (guard, found.map_or(0, |value| Inode::decode(&value).unwrap().size))
}

#[derive(Default)]
struct Fight {
    last: Cell<usize>,
    handovers: Cell<u64>,
    added: Cell<u64>,
    over: Cell<bool>,
}

impl Fight {
    /// Adds one after the other, each of them durable, until the fight is over.
    fn join(self: &Rc<Self>, me: usize, client: Rc<Client>) -> JoinHandle<()> {
        let fight = self.clone();
        spawn(Class::Request, "fighter", async move {
            while !fight.over.get() {
                let (guard, before) = size(&client, LockMode::Write).await;
                assert_eq!(before, fight.added.get(), "what the other one did is seen");
                let mut txn = client.begin(&guard);
                let inode = Inode { mode: 0o100644, nlink: 1, size: before + 1, ..Inode::default() };
                txn.put(Inode::key(INO), inode.encode());
                let id = txn.commit().unwrap();
                fight.added.set(before + 1);
                if fight.last.replace(me) != me {
                    fight.handovers.set(fight.handovers.get() + 1);
                }
                drop(guard);
                client.sync_txn(id).await.unwrap();
            }
        })
    }
}

/// Every grant is used before it is taken away again: the fight moves on, however close the next invalidation is.
#[test]
fn two_clients_hand_one_group_to_each_other() {
    let device = formatted();
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", dir.path().display());
    let node = node(&device, &unix);
    block_on(async {
        let clients = [connect(&unix).await, connect(&unix).await];
        let fight = Rc::new(Fight::default());
        let tasks: Vec<_> = clients.iter().enumerate().map(|(i, client)| fight.join(i + 1, client.clone())).collect();
        let moved = timeout(Duration::from_secs(120), async {
            while fight.handovers.get() < 2000 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        let moved = moved.await;
        fight.over.set(true);
        assert!(moved.is_ok(), "only {} handovers", fight.handovers.get());
        for task in tasks {
            task.await.unwrap();
        }
        assert!(fight.added.get() < 4 * fight.handovers.get(), "{} for {}", fight.added.get(), fight.handovers.get());
        for client in clients {
            client.farewell().await.unwrap();
        }
    });
    node.shutdown().unwrap();
}

/// An invalidation of a leader that is gone is void; nothing is lost or counted twice, and the fight goes on.
#[test]
fn a_group_that_is_fought_for_survives_its_leaders() {
    let device = formatted();
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", dir.path().display());
    let serving = RefCell::new(Some(node(&device, &unix)));
    block_on(async {
        let clients = [connect(&unix).await, connect(&unix).await];
        let fight = Rc::new(Fight::default());
        let tasks: Vec<_> = clients.iter().enumerate().map(|(i, client)| fight.join(i + 1, client.clone())).collect();
        for round in 0..5 {
            let aim = fight.handovers.get() + 30;
            let moved = timeout(Duration::from_secs(30), async {
                while fight.handovers.get() < aim {
                    sleep(Duration::from_millis(1)).await;
                }
            });
            assert!(moved.await.is_ok(), "round {round}: {} handovers", fight.handovers.get());
            serving.take().unwrap().kill().unwrap();
            *serving.borrow_mut() = Some(node(&device, &unix));
        }
        fight.over.set(true);
        for task in tasks {
            timeout(Duration::from_secs(30), task).await.expect("no lost wakeup").unwrap();
        }
        for client in &clients {
            let (_guard, found) = size(client, LockMode::Read).await;
            assert_eq!(found, fight.added.get());
        }
        for client in clients {
            client.farewell().await.unwrap();
        }
    });
    serving.take().unwrap().shutdown().unwrap();
    // A run after a crash ends as cleanly as any: nothing is left to replay.
    let last = node(&device, &unix);
    assert!(last.up().report.clean && last.up().report.epochs == 0, "{:?}", last.up().report);
    last.shutdown().unwrap();
}

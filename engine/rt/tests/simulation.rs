//! What only the simulation has: determinism, faults, nodes that die.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rt::Class;
use rt::net::{Datagram, Endpoint, Listener, Stream};
use rt::sim::{NodeId, ReactorHandle, SimConfig, World};
use vellum_base::DmaBuf;
use vellum_rt as rt;

const MINUTE: Duration = Duration::from_secs(60);

fn server_at() -> Endpoint {
    "tcp:10.0.0.1:7000".parse().unwrap()
}

async fn serve() {
    let listener = Listener::bind(&server_at()).unwrap();
    loop {
        let stream = listener.accept().await.unwrap();
        rt::spawn(Class::Request, "connection", async move {
            let mut buf = DmaBuf::new(4096);
            loop {
                let (result, back) = stream.recv(buf, 0..4096).await;
                buf = back;
                match result {
                    Ok(n) if n > 0 => {
                        if stream.send_all(buf[..n].to_vec(), None).await.0.is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        })
        .detach();
    }
}

/// One message there and back.
async fn call(stream: &Stream, message: &[u8]) -> io::Result<()> {
    stream.send_all(message.to_vec(), None).await.0?;
    let mut buf = DmaBuf::new(message.len());
    let mut got = 0;
    while got < message.len() {
        let (result, back) = stream.recv(buf, got..message.len()).await;
        buf = back;
        match result? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got += n,
        }
    }
    assert_eq!(&buf[..], message, "bytes come back as they were sent, or not at all");
    Ok(())
}

fn two_nodes(seed: u64, config: SimConfig) -> (World, [NodeId; 2], [ReactorHandle; 2]) {
    let mut world = World::new(seed, config);
    let nodes = [world.add_node(), world.add_node()];
    let reactors = nodes.map(|node| world.add_reactor(node));
    (world, nodes, reactors)
}

/// Clients that call, reconnect after errors, and count; returns (calls, errors).
fn busy_world(seed: u64) -> (World, u64, u64) {
    let (mut world, [server, _], [on_server, on_client]) = two_nodes(seed, SimConfig::hostile());
    world.spawn(on_server, Class::Request, "server", serve()).detach();
    let counts = Rc::new(Cell::new((0, 0)));
    for client in 0..4u8 {
        let counts = counts.clone();
        let task = async move {
            rt::sleep(Duration::from_millis(1)).await;
            loop {
                let Ok(stream) = Stream::connect(&server_at()).await else {
                    rt::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                while call(&stream, &[client; 1000]).await.is_ok() {
                    counts.set((counts.get().0 + 1, counts.get().1));
                }
                counts.set((counts.get().0, counts.get().1 + 1));
            }
        };
        world.spawn(on_client, Class::Request, "client", task).detach();
    }
    world.run_for(Duration::from_secs(5));
    world.kill_node(server);
    world.run_for(Duration::from_secs(1));
    let on_server = world.add_reactor(server);
    world.spawn(on_server, Class::Request, "server", serve()).detach();
    world.run_for(Duration::from_secs(5));
    let (calls, errors) = counts.get();
    (world, calls, errors)
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let mut hashes = Vec::new();
    for seed in 0..5 {
        let (a, calls, errors) = busy_world(seed);
        let (b, ..) = busy_world(seed);
        println!("{a:?}: {calls} calls, {errors} errors, {} steps", a.steps());
        assert!(calls > 100 && errors > 4, "{calls} calls, {errors} errors");
        assert_eq!((a.trace_hash(), a.now(), a.steps()), (b.trace_hash(), b.now(), b.steps()), "seed {seed}");
        hashes.push(a.trace_hash());
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 5, "other seeds give other runs");
}

#[test]
fn a_killed_node_tears_frames_and_refuses_connections() {
    let (mut torn, mut resets, mut ends) = (0, 0, 0);
    for seed in 0..60 {
        let config = SimConfig { latency: Duration::from_millis(1)..Duration::from_millis(2), ..SimConfig::default() };
        let (mut world, [server, _], [on_server, on_client]) = two_nodes(seed, config);
        let sends = async {
            let listener = Listener::bind(&server_at()).unwrap();
            let stream = listener.accept().await.unwrap();
            loop {
                let _ = stream.send_all(vec![7; 100_000], None).await;
                rt::sleep(Duration::from_micros(100)).await;
            }
        };
        world.spawn(on_server, Class::Request, "sends", sends).detach();
        let receives = async move {
            rt::sleep(Duration::from_millis(1)).await;
            let stream = Stream::connect(&server_at()).await.unwrap();
            let (mut buf, mut got) = (DmaBuf::new(1 << 16), 0);
            loop {
                let (received, back) = stream.recv(buf, 0..1 << 16).await;
                buf = back;
                match received {
                    Ok(n) if n > 0 => got += n,
                    last => return (got, last),
                }
            }
        };
        let task = world.spawn(on_client, Class::Request, "receives", receives);
        world.run_for(Duration::from_millis(20));
        world.kill_node(server);
        let (got, last) = world.block_on(on_client, MINUTE, task).unwrap().unwrap();
        torn += usize::from(got % 100_000 != 0);
        match last {
            Ok(_) => ends += 1,
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
                resets += 1;
            }
        }
        let refused = world.block_on(on_client, MINUTE, async { Stream::connect(&server_at()).await }).unwrap();
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
    println!("torn {torn}, resets {resets}, ends {ends}");
    assert!(torn > 10 && resets > 10 && ends > 10);
}

#[test]
fn a_node_without_power_is_silent() {
    let (mut world, [server, _], [on_server, on_client]) = two_nodes(1, SimConfig::default());
    world.spawn(on_server, Class::Request, "server", serve()).detach();
    world.run_for(Duration::from_millis(1));
    let task = async {
        let stream = Stream::connect(&server_at()).await.unwrap();
        call(&stream, b"before").await.unwrap();
        stream
    };
    let stream = world.block_on(on_client, MINUTE, task).unwrap();
    world.power_off(server);
    let silent = async { rt::timeout(Duration::from_secs(5), Stream::connect(&server_at())).await };
    assert!(world.block_on(on_client, MINUTE, silent).unwrap().is_err(), "not refused: nobody answers");
    let waits = stream.clone();
    let silent = async move { rt::timeout(Duration::from_secs(5), waits.recv(DmaBuf::new(1), 0..1)).await };
    assert!(world.block_on(on_client, MINUTE, silent).unwrap().is_err());
    let fails = async move { call(&stream, b"after").await };
    let error = world.block_on(on_client, MINUTE, fails).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_partition_delays_streams_and_drops_datagrams() {
    let (mut world, [a, b], [on_a, on_b]) = two_nodes(3, SimConfig::default());
    world.spawn(on_a, Class::Request, "server", serve()).detach();
    world.run_for(Duration::from_millis(1));
    let (to_a, to_b) = ("10.0.0.1:9000".parse().unwrap(), "10.0.0.2:9000".parse().unwrap());
    let received = Rc::new(Cell::new(0));
    let count = received.clone();
    let receives = async move {
        let socket = Datagram::bind(to_a).unwrap();
        loop {
            socket.recv_from(&mut [0; 10]).await.unwrap();
            count.set(count.get() + 1);
        }
    };
    world.spawn(on_a, Class::Request, "receives", receives).detach();
    let done = Rc::new(Cell::new(false));
    let flag = done.clone();
    let task = async move {
        let stream = Stream::connect(&server_at()).await.unwrap();
        let socket = Datagram::bind(to_b).unwrap();
        loop {
            call(&stream, b"hello").await.unwrap();
            socket.send_to(b"x", to_a).await.unwrap();
            rt::sleep(Duration::from_millis(10)).await;
            flag.set(true);
        }
    };
    world.spawn(on_b, Class::Request, "client", task).detach();
    world.run_for(Duration::from_secs(1));
    let before = received.get();
    assert!(before > 50);
    world.partition(a, b);
    world.run_for(Duration::from_millis(100));
    done.set(false);
    world.run_for(Duration::from_secs(2));
    assert!(!done.get() && received.get() <= before + 1, "nothing gets through");
    world.heal(a, b);
    world.run_for(Duration::from_secs(1));
    assert!(done.get() && received.get() > before + 50, "the stream goes on where it was");
}

#[test]
fn a_paused_node_does_nothing_until_it_resumes() {
    let (mut world, [node, _], [on_node, _]) = two_nodes(4, SimConfig::default());
    let ticks = Rc::new(Cell::new(0u64));
    let count = ticks.clone();
    let task = async move {
        loop {
            rt::sleep(Duration::from_millis(10)).await;
            count.set(count.get() + 1);
        }
    };
    world.spawn(on_node, Class::Request, "ticks", task).detach();
    world.run_for(Duration::from_secs(1));
    let before = ticks.get();
    assert!((90..=100).contains(&before));
    world.pause_node(node);
    world.run_for(Duration::from_secs(1));
    assert_eq!(ticks.get(), before);
    world.resume_node(node);
    world.run_for(Duration::from_secs(1));
    assert!(ticks.get() > before + 90);
}

#[test]
fn datagrams_are_lost_doubled_and_overtaken() {
    let config = SimConfig { datagram_loss_one_in: 10, datagram_duplicate_one_in: 10, ..SimConfig::default() };
    let (mut world, _, [on_a, on_b]) = two_nodes(5, config);
    let (to_a, to_b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
    let got: Rc<RefCell<Vec<u16>>> = Rc::default();
    let log = got.clone();
    let receives = async move {
        let socket = Datagram::bind(to_a).unwrap();
        let mut buf = [0; 2];
        loop {
            socket.recv_from(&mut buf).await.unwrap();
            log.borrow_mut().push(u16::from_le_bytes(buf));
        }
    };
    world.spawn(on_a, Class::Request, "receives", receives).detach();
    let sends = async move {
        let socket = Datagram::bind(to_b).unwrap();
        for i in 0..1000u16 {
            socket.send_to(&i.to_le_bytes(), to_a).await.unwrap();
            rt::sleep(Duration::from_micros(50)).await;
        }
    };
    world.block_on(on_b, MINUTE, sends).unwrap();
    world.run_for(Duration::from_secs(1));
    let got = got.borrow();
    let mut distinct = got.clone();
    distinct.sort();
    distinct.dedup();
    assert!((800..980).contains(&distinct.len()), "{} arrived", distinct.len());
    assert!(got.len() > distinct.len() + 30, "some twice");
    assert!(!got.is_sorted(), "some overtaken");
}

#[test]
fn virtual_time_passes_only_when_nobody_can_run() {
    let mut world = World::new(6, SimConfig { clock_drift_ppm: 0, ..SimConfig::default() });
    let node = world.add_node();
    let reactor = world.add_reactor(node);
    let began = std::time::Instant::now();
    let slept = world.block_on(reactor, Duration::from_secs(2_000_000), async {
        let began = rt::now();
        rt::sleep(Duration::from_secs(1_000_000)).await;
        began.elapsed()
    });
    let slept = slept.unwrap();
    assert!(slept >= Duration::from_secs(1_000_000) && slept < Duration::from_secs(1_000_001));
    assert!(began.elapsed() < Duration::from_secs(1));
    world.run_until_idle();
}

#[test]
fn a_panic_in_a_task_reaches_the_test() {
    let caught = std::panic::catch_unwind(|| {
        let mut world = World::new(7, SimConfig::default());
        let node = world.add_node();
        let reactor = world.add_reactor(node);
        world.spawn(reactor, Class::Request, "panics", async { panic!("on purpose") }).detach();
        world.run_for(Duration::from_secs(1));
    });
    assert!(caught.is_err());
    assert!(!rt::has_reactor());
}

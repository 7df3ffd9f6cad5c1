//! What only reactors on the kernel have: sleep in the kernel, threads on cores, descriptors. Each test runs on each executor.

use std::cell::Cell;
use std::future::Future;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rt::Class;
use rt::fd::AsyncFd;
use rt::native::{self, Config, PollMode};
use rt::net::{Endpoint, Listener, Stream};
use vellum_base::DmaBuf;
use vellum_rt as rt;

/// Makes tests of functions that take a configuration.
macro_rules! on_each_executor {
    ($($name:ident,)*) => {$(
        mod $name {
            use super::Config;
            #[test]
            fn native() {
                super::$name(Config::default());
            }
            #[cfg(feature = "glommio")]
            #[test]
            fn glommio() {
                super::$name(Config { executor: super::native::Executor::Glommio, ..Config::default() });
            }
        }
    )*};
}

on_each_executor! {
    an_idle_reactor_sleeps_in_the_kernel,
    a_poller_lets_go_of_what_it_holds_at_once,
    a_channel_message_ends_a_sleep_soon,
    a_watched_fd_ends_a_sleep_and_runs_the_pollers,
    a_poller_that_keeps_awake_sees_its_device_at_once,
    always_polling_never_sleeps,
    reactors_start_on_cores_and_are_joined,
    a_reactor_ends_with_operations_in_flight,
    an_async_fd_reads_and_writes_messages,
    the_main_future_may_borrow,
    a_left_over_socket_file_is_taken_over_and_a_live_one_is_not,
    no_wake_up_is_lost_between_two_sleepers,
    hundreds_of_streams_wait_in_one_ring,
    a_panic_in_a_task_ends_its_reactor_and_leaves_the_thread_usable,
    pollers_run_after_a_task_and_before_a_sleep,
}

fn block_on<F: Future>(config: &Config, future: F) -> F::Output {
    native::block_on_with(config.clone(), future).unwrap()
}

/// A path of its own for each test, process and executor.
fn socket(name: &str, config: &Config) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("vellum-rt-{name}-{:?}-{}.sock", config.executor, std::process::id()))
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn an_idle_reactor_sleeps_in_the_kernel(config: Config) {
    block_on(&config, async {
        // Everything that could keep it awake: a listener, a stream with a receive, a poller with a watched fd, timers.
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse::<Endpoint>().unwrap()).unwrap();
        let client = Stream::connect(&listener.local_endpoint().unwrap()).await.unwrap();
        let server = listener.accept().await.unwrap();
        rt::spawn(Class::Request, "receives", async move { server.recv(DmaBuf::new(1), 0..1).await.0 }).detach();
        rt::spawn(Class::Request, "accepts", async move { listener.accept().await.map(|_| ()) }).detach();
        let (read, _write) = std::io::pipe().unwrap();
        let _watch = rt::watch_fd(read.as_raw_fd());
        let _poller = rt::add_poller("idle", || 0);
        rt::sleep(Duration::from_millis(10)).await;
        let (cpu, turns) = (cpu_time(), rt::stats().turns);
        rt::sleep(Duration::from_millis(500)).await;
        let (cpu, turns) = (cpu_time() - cpu, rt::stats().turns - turns);
        println!("half a second idle: {cpu:?} of CPU, {turns} turns");
        assert!(cpu < Duration::from_millis(5), "{cpu:?} of CPU in an idle half second");
        drop(client);
    });
}

/// A controller had one queue pair; the poller of the queue that recovery had used kept it until the next turn, so that the
/// store found none (met in the virtual machine).
fn a_poller_lets_go_of_what_it_holds_at_once(config: Config) {
    block_on(&config, async {
        let held = std::rc::Rc::new(());
        let holds = held.clone();
        let poller = rt::add_poller("holder", move || std::rc::Rc::strong_count(&holds) - 2);
        drop(poller);
        assert_eq!(std::rc::Rc::strong_count(&held), 1);
        rt::sleep(Duration::from_millis(1)).await;
    });
}

fn a_channel_message_ends_a_sleep_soon(config: Config) {
    let (sender, mut receiver) = rt::channel::bounded::<std::time::Instant>(30);
    let sleeper = native::spawn_thread_with("sleeper", None, config, move || async move {
        let mut latencies = Vec::new();
        while let Some(sent) = receiver.recv().await {
            latencies.push(sent.elapsed());
        }
        assert!(rt::stats().sleeps >= 20, "it slept between messages");
        latencies.sort();
        latencies[latencies.len() / 2]
    })
    .unwrap();
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(3));
        sender.try_send(std::time::Instant::now()).unwrap(); // from a thread without a reactor
    }
    drop(sender);
    let median = sleeper.join().unwrap();
    println!("median wake-up {median:?}");
    assert!(median < Duration::from_millis(5), "{median:?}");
}

fn a_watched_fd_ends_a_sleep_and_runs_the_pollers(config: Config) {
    block_on(&config, async {
        let (read, mut write) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let watch = rt::watch_fd(read.as_raw_fd());
        let handled = Rc::new(Cell::new(0));
        let count = handled.clone();
        let poller = rt::add_poller("pipe", move || {
            let n = rustix::io::read(&read, &mut [0u8; 64]).unwrap_or(0);
            count.set(count.get() + n);
            n
        });
        let writer = std::thread::spawn(move || {
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(10));
                write.write_all(b"x").unwrap();
            }
            write
        });
        let began = rt::now();
        while handled.get() < 5 {
            rt::yield_now().await;
            if rt::stats().sleeps == 0 || began.elapsed() < Duration::from_secs(5) {
                rt::sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(handled.get(), 5);
        drop(writer.join().unwrap());
        drop(watch);
        drop(poller);
        let sleeps = rt::stats().sleeps;
        rt::sleep(Duration::from_millis(5)).await;
        assert!(rt::stats().sleeps <= sleeps + 3, "a dropped watch wakes nobody");
    });
}

fn a_poller_that_keeps_awake_sees_its_device_at_once(config: Config) {
    block_on(&config, async {
        let poller = rt::add_poller("busy", || 0);
        poller.keep_awake(true);
        let before = rt::stats();
        while rt::stats().turns <= before.turns + 100 {
            rt::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(rt::stats().sleeps, before.sleeps);
    });
}

fn always_polling_never_sleeps(config: Config) {
    let config = Config { poll: PollMode::Always, ..config };
    let sleeps = native::block_on_with(config, async {
        rt::sleep(Duration::from_millis(10)).await;
        rt::stats().sleeps
    });
    assert_eq!(sleeps.unwrap(), 0);
}

fn reactors_start_on_cores_and_are_joined(config: Config) {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let reactors = native::start(&[Some(0), None, None], config.clone(), move |id| {
        let count = count.clone();
        async move {
            assert_eq!(rt::reactor_id(), id);
            rt::sleep(Duration::from_millis(1)).await;
            count.fetch_add(1 + id.0 as usize, Ordering::Relaxed);
        }
    });
    reactors.unwrap().join().unwrap();
    assert_eq!(ran.load(Ordering::Relaxed), 6);
    let nowhere = native::start(&[Some(1 << 20)], config, |_| async {});
    assert!(nowhere.is_err());
}

fn a_reactor_ends_with_operations_in_flight(config: Config) {
    for _ in 0..20 {
        block_on(&config, async {
            let listener = Listener::bind(&"tcp:127.0.0.1:0".parse::<Endpoint>().unwrap()).unwrap();
            let client = Stream::connect(&listener.local_endpoint().unwrap()).await.unwrap();
            let server = listener.accept().await.unwrap();
            for stream in [client, server] {
                rt::spawn(Class::Request, "receives", async move {
                    let _ = stream.recv(DmaBuf::new(1 << 16), 0..1 << 16).await;
                })
                .detach();
            }
            rt::spawn(Class::Request, "accepts", async move { listener.accept().await.map(|_| ()) }).detach();
            rt::sleep(Duration::from_micros(100)).await;
        });
    }
}

fn an_async_fd_reads_and_writes_messages(config: Config) {
    block_on(&config, async {
        let (a, b) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (a, b) = (AsyncFd::new(OwnedFd::from(a)).unwrap(), AsyncFd::new(OwnedFd::from(b)).unwrap());
        let reader = rt::spawn(Class::Request, "reads", async move {
            let mut buf = DmaBuf::new(4096);
            let mut sizes = Vec::new();
            for _ in 0..3 {
                let (result, back) = b.read(buf, 0..4096).await;
                buf = back;
                sizes.push(result.unwrap());
            }
            sizes
        });
        rt::sleep(Duration::from_millis(1)).await;
        let payload = DmaBuf::copy_from(&[1; 100], false).freeze();
        assert_eq!(a.writev(vec![0; 5], Some(payload)).await.0.unwrap(), 105);
        rt::sleep(Duration::from_millis(1)).await;
        assert_eq!(a.writev(vec![0; 7], None).await.0.unwrap(), 7);
        assert_eq!(a.writev(vec![0; 8], None).await.0.unwrap(), 8);
        assert_eq!(reader.await.unwrap(), [105, 7, 8]);
    });
}

fn the_main_future_may_borrow(config: Config) {
    let mut value = 1;
    block_on(&config, async {
        rt::yield_now().await;
        value += 1;
    });
    assert_eq!(value, 2);
}

fn a_left_over_socket_file_is_taken_over_and_a_live_one_is_not(config: Config) {
    let path = socket("stale", &config);
    let at = Endpoint::Unix(path.clone());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // std leaves the file behind
    block_on(&config, async {
        let listener = Listener::bind(&at).unwrap();
        assert!(Listener::bind(&at).is_err(), "somebody listens there");
        drop(listener);
        assert!(!path.exists());
    });
}

/// Both sides sleep after every message (no spinning), each on a core, and falls asleep about when the
/// other's message comes. A lost wake-up leaves both asleep for ever (as it does when the
/// reactor sleeps although its last look at the queue found something).
fn no_wake_up_is_lost_between_two_sleepers(config: Config) {
    const ROUNDS: u64 = 20_000;
    let (there, from_first) = rt::channel::bounded::<u64>(1);
    let (back, from_second) = rt::channel::bounded::<u64>(1);
    let first = std::sync::Mutex::new(Some((there, from_second)));
    let second = std::sync::Mutex::new(Some((back, from_first)));
    let ends = Arc::new([first, second]);
    let config = Config { spin: Duration::ZERO, ..config };
    let cores = if std::thread::available_parallelism().unwrap().get() > 1 { [Some(0), Some(1)] } else { [None; 2] };
    let reactors = native::start(&cores, config, move |id| {
        let (sender, mut receiver) = ends[id.0 as usize].lock().unwrap().take().unwrap();
        async move {
            for i in 0..ROUNDS {
                if id.0 == 1 {
                    assert_eq!(receiver.recv().await, Some(i));
                }
                sender.send(i).await.unwrap();
                // Falls asleep about when the answer comes.
                let (began, pause) = (std::time::Instant::now(), Duration::from_nanos(rt::random_u64() % 30_000));
                while began.elapsed() < pause {
                    std::hint::spin_loop();
                }
                if id.0 == 0 {
                    assert_eq!(receiver.recv().await, Some(i));
                }
            }
            assert!(rt::stats().sleeps > 100);
        }
    });
    reactors.unwrap().join().unwrap();
}

/// More operations in flight than the ring has entries, and more receives than may spin.
fn hundreds_of_streams_wait_in_one_ring(config: Config) {
    const STREAMS: usize = 300;
    let config = Config { ring_entries: 8, ..config };
    let path = socket("many", &config);
    native::block_on_with(config, async {
        let listener = Listener::bind(&Endpoint::Unix(path)).unwrap();
        let at = listener.local_endpoint().unwrap();
        let mut clients = Vec::new();
        for _ in 0..STREAMS {
            clients.push(Stream::connect(&at).await.unwrap());
            let server = listener.accept().await.unwrap();
            rt::spawn(Class::Request, "echo", async move {
                let mut buf = DmaBuf::new(64);
                loop {
                    let (result, back) = server.recv(buf, 0..64).await;
                    buf = back;
                    match result.unwrap() {
                        0 => return,
                        n => server.send_all(buf[..n].to_vec(), None).await.0.unwrap(),
                    }
                }
            })
            .detach();
        }
        rt::sleep(Duration::from_millis(2)).await; // they all wait in the ring
        for round in 0..3u8 {
            let calls: Vec<_> = clients
                .iter()
                .map(|client| {
                    let client = client.clone();
                    rt::spawn(Class::Request, "call", async move {
                        client.send_all(vec![round; 32], None).await.0.unwrap();
                        let (result, buf) = client.recv(DmaBuf::new(64), 0..64).await;
                        assert_eq!(&buf[..result.unwrap()], &[round; 32]);
                    })
                })
                .collect();
            for call in calls {
                call.await.unwrap();
            }
        }
        assert!(rt::stats().completions > 300, "{:?}", rt::stats());
    })
    .unwrap();
}

fn a_panic_in_a_task_ends_its_reactor_and_leaves_the_thread_usable(config: Config) {
    let caught = std::panic::catch_unwind(|| {
        block_on(&config, async {
            rt::spawn(Class::Request, "waits", rt::sleep(Duration::from_secs(60))).detach();
            rt::spawn(Class::Request, "panics", async { panic!("on purpose") }).await
        })
    });
    assert!(caught.is_err());
    assert!(!rt::has_reactor());
    block_on(&config, rt::yield_now());
}

/// A task that spun on its socket hands work to a poller: the reactor may not sleep before that poller has run, even if
/// it never spins otherwise. (The turn in which a spinning task succeeded was once taken for an idle one.)
fn pollers_run_after_a_task_and_before_a_sleep(config: Config) {
    let config = Config { spin: Duration::ZERO, ..config };
    let path = socket("spun", &config);
    native::block_on_with(config, async {
        let queued = Rc::new(rt::local::Semaphore::new(0));
        let submitted = Rc::new(Cell::new(0usize));
        let (queue, device) = (submitted.clone(), queued.clone());
        let _poller = rt::add_poller("device", move || {
            let n = queue.take();
            device.add_permits(n);
            n
        });
        let listener = Listener::bind(&Endpoint::Unix(path.clone())).unwrap();
        let client = std::thread::spawn(move || {
            let mut client = std::os::unix::net::UnixStream::connect(path).unwrap();
            for i in 0..500u64 {
                client.write_all(&[1]).unwrap();
                // Waits for the answer, so that each byte comes alone, about when the reactor gives up spinning.
                std::io::Read::read_exact(&mut client, &mut [0]).unwrap();
                let began = std::time::Instant::now();
                while began.elapsed() < Duration::from_micros(i % 25) {
                    std::hint::spin_loop();
                }
            }
        });
        let server = listener.accept().await.unwrap();
        let mut buf = DmaBuf::new(1);
        for _ in 0..500 {
            let (result, back) = server.recv(buf, 0..1).await;
            buf = back;
            assert_eq!(result.unwrap(), 1);
            submitted.set(submitted.get() + 1);
            let began = rt::now();
            let permit = rt::timeout(Duration::from_secs(2), queued.acquire(1)).await.expect("the poller ran");
            assert!(began.elapsed() < Duration::from_secs(1), "it ran only because a timer woke the reactor");
            permit.forget();
            server.send_all(vec![1], None).await.0.unwrap();
        }
        client.join().unwrap();
    })
    .unwrap();
}

#[test]
fn what_was_asked_for_ends_the_turn() {
    block_on(&Config::default(), async {
        let turns = Rc::new(Cell::new(0));
        let counted = turns.clone();
        let _poller = rt::add_poller("turns", move || {
            counted.set(counted.get() + 1);
            0
        });
        let ran_in = |name, asks: bool| {
            let turns = turns.clone();
            rt::spawn(Class::Request, name, async move {
                if asks {
                    rt::stay_awake(Duration::from_micros(1));
                }
                turns.get()
            })
        };
        let (asks, after) = (ran_in("asks", true), ran_in("after", false));
        let (asks, after) = (asks.await.unwrap(), after.await.unwrap());
        assert!(after > asks, "the device was told before the next task ran");
    });
}

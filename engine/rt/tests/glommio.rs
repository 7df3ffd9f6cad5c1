//! What only reactors on glommio's executor have: its limits, and what it might leave behind.
#![cfg(feature = "glommio")]

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use rt::Class;
use rt::native::{self, Config, Executor};
use rt::net::{Endpoint, Listener, Stream};
use vellum_base::DmaBuf;
use vellum_rt as rt;

fn glommio() -> Config {
    Config { executor: Executor::Glommio, ..Config::default() }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A waker of glommio's that outlives its executor keeps a task and an eventfd; so would an operation that is never
/// answered. Each executor here ends with some of both. glommio 0.9 itself leaves one eventfd of each executor that ran.
#[test]
fn executors_leave_no_descriptors_behind() {
    const RUNS: usize = 20;
    let run = || {
        let (sender, mut receiver) = rt::channel::bounded::<u64>(1);
        let waker = native::block_on_with(glommio(), async {
            let listener = Listener::bind(&"tcp:127.0.0.1:0".parse::<Endpoint>().unwrap()).unwrap();
            let client = Stream::connect(&listener.local_endpoint().unwrap()).await.unwrap();
            let server = listener.accept().await.unwrap();
            for stream in [client, server] {
                rt::spawn(Class::Request, "receives", async move { stream.recv(DmaBuf::new(64), 0..64).await.0 })
                    .detach();
            }
            rt::spawn(Class::Request, "accepts", async move { listener.accept().await.map(|_| ()) }).detach();
            rt::spawn(Class::Request, "receives", async move { receiver.recv().await }).detach();
            let (pipe, _write) = io::pipe().unwrap();
            let _watch = rt::watch_fd(std::os::fd::AsRawFd::as_raw_fd(&pipe));
            rt::sleep(Duration::from_millis(1)).await;
            std::future::poll_fn(|cx| std::task::Poll::Ready(cx.waker().clone())).await
        });
        waker.unwrap().wake();
        assert!(sender.try_send(1).is_err(), "its receiver is gone");
    };
    run(); // what is made once per process
    let before = open_descriptors();
    for _ in 0..RUNS {
        run();
    }
    // The executors' second threads end in their own time.
    let began = Instant::now();
    while open_descriptors() > before + RUNS && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(open_descriptors() <= before + RUNS, "{} descriptors, {before} before", open_descriptors());
}

#[test]
fn too_little_locked_memory_is_an_error_that_says_what_to_do() {
    let me = std::env::current_exe().unwrap();
    let limited = Command::new("sh")
        .args(["-c", "ulimit -S -l 64 && exec \"$@\"", "sh"])
        .arg(me)
        .args(["--ignored", "--exact", "with_little_locked_memory", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stdout);
    assert!(
        limited.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&limited.stderr)
    );
}

/// Run by the test above, in a process of its own.
#[test]
#[ignore = "needs a process with a low limit"]
fn with_little_locked_memory() {
    let error = native::block_on_with(glommio(), async {}).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let text = error.to_string();
    assert!(text.contains("512 KiB") && text.contains("64 KiB") && text.contains("ulimit -l"), "{text}");
}

/// The thread may run where it might before, and nowhere else.
#[test]
fn an_executor_leaves_its_threads_affinity_alone() {
    let allowed = |config: Config| {
        std::thread::spawn(move || {
            let mut one = rustix::thread::CpuSet::new();
            one.set(0);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            native::block_on_with(config, async { rustix::thread::sched_getaffinity(None).unwrap() }).unwrap()
        })
        .join()
        .unwrap()
    };
    assert_eq!(allowed(glommio()), allowed(Config::default()));
}

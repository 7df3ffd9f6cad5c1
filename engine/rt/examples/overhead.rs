//! What the native reactor costs: `cargo run --release -p vellum-rt --example overhead`.
//!
//! Prints nanoseconds per task poll, spawn, local and cross-thread message, and echo round trips (on one reactor, and
//! between two threads) beside plain sockets that spin. `-- echo` leaves all but the echoes out.

use std::hint::black_box;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rt::Class;
use rt::native;
use rt::net::{Endpoint, Listener, Stream};
use vellum_base::DmaBuf;
use vellum_rt as rt;

const ECHOES: u32 = 50_000;

fn report(what: &str, count: u32, began: Instant) {
    println!("{what:<52} {:>9.1} ns", began.elapsed().as_nanos() as f64 / f64::from(count));
}

async fn polls() {
    const N: u32 = 2_000_000;
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            rt::spawn(Class::Request, "yields", async {
                for _ in 0..N / 100 {
                    rt::yield_now().await;
                }
            })
        })
        .collect();
    let began = Instant::now();
    for task in tasks {
        let _ = task.await;
    }
    report("task poll and wake, 100 tasks", N, began);
    let began = Instant::now();
    for _ in 0..N {
        black_box(rt::now());
    }
    report("now()", N, began);
    let began = Instant::now();
    for _ in 0..300_000 {
        let _ = rt::spawn(Class::Request, "nothing", async {}).await;
    }
    report("spawn, run, join", 300_000, began);
    let (sender, mut receiver) = rt::local::channel(64);
    let began = Instant::now();
    rt::spawn(Class::Request, "sends", async move {
        for i in 0..1_000_000u32 {
            let _ = sender.send(i).await;
        }
    })
    .detach();
    while receiver.recv().await.is_some() {}
    report("local channel, one message", 1_000_000, began);
}

fn cross_thread() {
    let (there, mut from_here) = rt::channel::bounded::<u32>(256);
    let (back, mut from_there) = rt::channel::bounded::<u32>(256);
    let other = native::spawn_thread("other", None, move || async move {
        while let Some(i) = from_here.recv().await {
            let _ = back.send(i).await;
        }
    });
    native::block_on(async move {
        let began = Instant::now();
        for i in 0..100_000 {
            let _ = there.send(i).await;
            from_there.recv().await;
        }
        report("message to another thread and back, one at a time", 100_000, began);
        let began = Instant::now();
        for i in 0..1_000_000u32 {
            let _ = there.send(i).await;
            while from_there.try_recv().is_some() {}
            if i % 64 == 63 {
                rt::yield_now().await;
            }
        }
        report("message to another thread and back, streaming", 1_000_000, began);
    });
    if let Ok(other) = other {
        let _ = other.join();
    }
}

async fn echo(stream: Stream) {
    let mut buf = DmaBuf::new(4096);
    let mut head = Vec::new();
    loop {
        let (result, back) = stream.recv(buf, 0..4096).await;
        buf = back;
        let n = result.unwrap_or(0);
        if n == 0 {
            return;
        }
        head.clear();
        head.extend_from_slice(&buf[..n]);
        let (_, back) = stream.send_all(head, None).await;
        head = back;
    }
}

async fn ping(stream: Stream, what: &str) {
    let mut buf = DmaBuf::new(4096);
    let mut head = vec![1; 100];
    let began = Instant::now();
    for _ in 0..ECHOES {
        let (_, back) = stream.send_all(head, None).await;
        head = back;
        let (_, back) = stream.recv(buf, 0..4096).await;
        buf = back;
    }
    report(what, ECHOES, began);
    stream.shutdown();
}

fn echoes(at: &Endpoint) {
    let kind = if matches!(at, Endpoint::Unix(_)) { "unix" } else { "tcp" };
    let address = at.clone();
    native::block_on(async move {
        let listener = Listener::bind(&address).expect("bind");
        let at = listener.local_endpoint().expect("bound");
        rt::spawn(Class::Request, "echo", async move {
            if let Ok(stream) = listener.accept().await {
                echo(stream).await;
            }
        })
        .detach();
        ping(Stream::connect(&at).await.expect("connect"), &format!("echo over {kind}, one reactor")).await;
    });
    let (ready, mut address) = rt::channel::bounded(1);
    let at = at.clone();
    let server = native::spawn_thread("server", None, move || async move {
        let listener = Listener::bind(&at).expect("bind");
        let _ = ready.send(listener.local_endpoint().expect("bound")).await;
        if let Ok(stream) = listener.accept().await {
            echo(stream).await;
        }
    });
    native::block_on(async move {
        let at = address.recv().await.expect("the server started");
        ping(Stream::connect(&at).await.expect("connect"), &format!("echo over {kind}, two reactors")).await;
    });
    if let Ok(server) = server {
        let _ = server.join();
    }
}

fn spin<R>(mut f: impl FnMut() -> std::io::Result<R>) -> R {
    loop {
        match f() {
            Ok(done) => return done,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
}

fn plain(what: &str, nonblocking: bool) {
    let (mut a, mut b) = UnixStream::pair().expect("socketpair");
    a.set_nonblocking(nonblocking).expect("set");
    b.set_nonblocking(nonblocking).expect("set");
    let server = std::thread::spawn(move || {
        let mut buf = [0; 4096];
        loop {
            let n = spin(|| b.read(&mut buf));
            if n == 0 {
                return;
            }
            spin(|| b.write(&buf[..n]));
        }
    });
    let mut buf = [0; 4096];
    let began = Instant::now();
    for _ in 0..ECHOES {
        spin(|| a.write(&[1; 100]));
        spin(|| a.read(&mut buf));
    }
    report(what, ECHOES, began);
    drop(a);
    let _ = server.join();
}

fn main() {
    if std::env::args().nth(1).as_deref() != Some("echo") {
        native::block_on(polls());
        cross_thread();
    }
    plain("echo over unix, two threads, plain blocking", false);
    plain("echo over unix, two threads, plain spinning", true);
    let path = std::env::temp_dir().join(format!("vellum-rt-overhead-{}.sock", std::process::id()));
    echoes(&Endpoint::Unix(path));
    echoes(&"tcp:127.0.0.1:0".parse().expect("an endpoint"));
    std::thread::sleep(Duration::from_millis(1));
}
